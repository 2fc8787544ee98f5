/** What a person does with pointer, wheel and keys, told to the heatmap in its own words. */

// A click trembles by a few pixels.
const TREMBLE = 4;
// One notch of a wheel is about 100 pixels, which zooms by a factor of 1.6.
const WHEEL_DECAY = 0.0047;

/**
 * Listen on a canvas.
 *
 * Zooming takes ctrl or meta with the wheel, so that the page still scrolls; a drag pans where something is out of
 * sight, else it draws a box to zoom into, as shift and drag always does.
 *
 * @param {HTMLCanvasElement} canvas What is touched and focused.
 * @param {object} target `point(x, y, event)`, `leave()`, `click(x, y)`, `canPan()`, `panBy(dx, dy)`, `brush(from, to)`,
 *     `endBrush(from, to)`, `wheelZoom(factor, x, y, both)`, `reset()`, `key(event)`, all in pixels of the canvas.
 * @returns {() => void} Stops listening.
 */
export function attachPointing(canvas, target) {
  const listeners = { ...dragListeners(canvas, target), ...plainListeners(canvas, target) };
  for (const [event, listener] of Object.entries(listeners)) canvas.addEventListener(event, listener, { passive: false });
  return () => {
    for (const [event, listener] of Object.entries(listeners)) canvas.removeEventListener(event, listener);
  };
}

function dragListeners(canvas, target) {
  const drag = new PointerDrag(canvas, target);
  return {
    pointerdown: (event) => drag.start(event),
    pointermove: (event) => drag.move(event),
    pointerup: (event) => drag.stop(event, true),
    pointercancel: (event) => drag.stop(event, false),
    pointerleave: () => !drag.isDown && target.leave(),
    keydown(event) {
      if (event.key === "Escape" && drag.isDown) drag.stop(event, false);
      else if (!target.key(event)) return;
      event.preventDefault();
    },
  };
}

// From pressing a button to letting it go: a click, a pan or a box, which is decided by the first few pixels.
class PointerDrag {
  constructor(canvas, target) {
    Object.assign(this, { canvas, target, isDown: false, kind: "click", from: [0, 0], to: [0, 0], whenMoved: "pan" });
  }

  start(event) {
    if (event.button !== 0) return;
    const at = placeOf(this.canvas, event);
    const whenMoved = event.shiftKey || !this.target.canPan() ? "brush" : "pan";
    Object.assign(this, { isDown: true, kind: "click", from: at, to: at, whenMoved });
  }

  move(event) {
    const { canvas, target, from, to } = this;
    const at = placeOf(canvas, event);
    if (!this.isDown) return void target.point(...at, event);
    if (this.kind === "click" && Math.hypot(at[0] - from[0], at[1] - from[1]) > TREMBLE) {
      this.kind = this.whenMoved;
      canvas.setPointerCapture(event.pointerId);
    }
    if (this.kind === "click") return;
    if (this.kind === "brush") target.brush(from, at);
    else target.panBy(at[0] - to[0], at[1] - to[1]);
    this.to = at;
  }

  stop(event, isDone) {
    if (!this.isDown) return;
    this.isDown = false;
    if (this.kind === "brush") this.target.endBrush(isDone ? this.from : null, this.to);
    else if (this.kind === "click" && isDone) this.target.click(...this.to);
    // Escape ends a drag as well, and has no place.
    if (isDone) this.target.point(...placeOf(this.canvas, event), event);
  }
}

function plainListeners(canvas, target) {
  return {
    wheel(event) {
      const scale = event.deltaMode === 1 ? 33 : 1;
      const [dx, dy] = [event.deltaX * scale, event.deltaY * scale];
      if (event.ctrlKey || event.metaKey) {
        target.wheelZoom(Math.exp(-dy * WHEEL_DECAY), ...placeOf(canvas, event), event.altKey);
        event.preventDefault();
      } else if (Math.abs(dx) > Math.abs(dy) && target.canPan()) {
        target.panBy(-dx, 0);
        event.preventDefault();
      }
    },
    dblclick(event) {
      target.reset();
      event.preventDefault();
    },
  };
}

function placeOf(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

/**
 * Return where the keys move the cursor.
 *
 * @param {KeyboardEvent} event Of the key.
 * @param {{rowIndex: number, column: number}} from Where it is.
 * @param {{rows: number, columns: number}} size How many there are.
 * @returns {{rowIndex: number, column: number} | null} Null where the key moves nothing.
 */
export function movedCursor(event, from, size) {
  const far = event.shiftKey ? 10 : 1;
  const moves = {
    ArrowLeft: [0, -far], ArrowRight: [0, far], ArrowUp: [-far, 0], ArrowDown: [far, 0],
    Home: [0, -Infinity], End: [0, Infinity], PageUp: [-10, 0], PageDown: [10, 0],
  };
  const move = moves[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return null;
  return {
    rowIndex: Math.min(Math.max(from.rowIndex + move[0], 0), size.rows - 1),
    column: Math.min(Math.max(from.column + move[1], 0), size.columns - 1),
  };
}
