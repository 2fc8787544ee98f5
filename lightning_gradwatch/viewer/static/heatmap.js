/** The picture of all layers over all steps. */

import { blockPeriod } from "./bands.js";
import { NOTHING16, typicalOfLayer } from "./blob.js";
import { cellAtPoint, cellInRow } from "./cells.js";
import { extremeColumns } from "./extremes.js";
import { rowNames } from "./labels.js";
import { counted, formatSteps } from "./numbers.js";
import { drawBrush, drawCrosshair, drawSelection } from "./overlay.js";
import { scaleColors, themeColors } from "./palette.js";
import { FRAME_HEIGHT, drawPicture, planPlot } from "./picture.js";
import { attachPointing } from "./pointing.js";
import { ColorScale, cellValues } from "./raster.js";
import { fitCanvas, makeStage } from "./stage.js";
import { steering } from "./steering.js";
import { AxisRange, columnEdges, indexAt, newestStep } from "./view.js";

// A row of 18 pixels holds its name comfortably; three layers are still a picture.
const ROW_HEIGHT = 18;
const LEAST_PICTURE = 160;
// Zooming further than to four columns or rows shows nothing new.
const LEAST_SHOWN = 4;
// Of a median that nobody has asked for yet.
const UNKNOWN_TYPICAL = NOTHING16 - 1;

/** An interactive heatmap: layers from top to bottom, steps from left to right. */
export class Heatmap {
  /**
   * @param {HTMLElement} host Gets one child; nothing else of it is touched.
   * @param {object} [callbacks] `onHover(cell | null, pointer)`, `onPick(cell)`, `onView(view)`, `onRow(row)`,
   *     `onMark(mark)`; all may be missing. `pointer` has `x`, `y` (in the host), `clientX` and `clientY`.
   */
  constructor(host, callbacks = {}) {
    Object.assign(this, makeStage(host), { host, callbacks });
    // The numbers and how they are colored.
    Object.assign(this, { series: null, cells: null, rows: [], period: blockPeriod([]), called: rowNames([]), edges: columnEdges([]), marks: [], extremes: [] });
    Object.assign(this, { ends: { low: -7, high: 5, relative: false }, typical: new Int32Array(0), scale: null });
    // What is shown, pointed at and picked; what is out of date.
    Object.assign(this, { shared: null, newest: null, tallest: null, active: null, selected: null, box: null, plot: null, clusters: [] });
    Object.assign(this, { frame: 0, isStale: true, width: 0, theme: "light", shows: 0, drawn: "" });
    this.stepRange = new AxisRange(LEAST_SHOWN);
    this.rowRange = new AxisRange(LEAST_SHOWN);
    this.setTheme("light");
    this.detach = attachPointing(this.overlay, steering(this));
    this.onResize = () => this.redraw();
    this.observer = new ResizeObserver(() => host.clientWidth !== this.width && this.redraw());
    this.observer.observe(host);
    window.addEventListener("resize", this.onResize);
  }

  /** Take away everything. */
  destroy() {
    this.detach();
    this.observer.disconnect();
    window.removeEventListener("resize", this.onResize);
    cancelAnimationFrame(this.frame);
    this.stage.remove();
  }

  /**
   * Draw a series; what is shown of it stays where that still exists.
   *
   * @param {object} series Of `decodeSeries`.
   * @param {object[]} rows Of `layerRows`.
   */
  show(series, rows) {
    if (rows.length !== this.rows.length) this.rowRange.reset();
    this.shows += 1;
    // Another search or grouping of the same numbers comes with every letter that is typed.
    if (series !== this.series) this.takeNumbers(series);
    Object.assign(this, { rows, period: blockPeriod(rows), called: rowNames(rows) });
    this.extremes = extremeColumns(series, new Set(rows.flatMap((row) => row.layers)));
    this.rowRange.setLimits(0, rows.length);
    this.limitSteps();
    this.makeScale();
    this.keepCells();
    this.overlay.setAttribute("aria-label", this.aboutText());
    this.redraw();
  }

  /**
   * @param {{low: number, high: number, relative: boolean}} ends log10 of where the colors end; `relative`: of what a
   *     value is divided by its layer's own median.
   */
  setScale({ low, high, relative = false }) {
    this.ends = { low, high: high > low ? high : low + 1, relative };
    this.makeScale();
    this.redraw();
  }

  /** @param {"light" | "dark"} theme The page's. */
  setTheme(theme) {
    this.theme = theme;
    this.colors = scaleColors(theme);
    this.text = themeColors(theme);
    this.redraw();
  }

  /** @param {{step: number, severity: string, label: string, index: number}[]} marks Diagnoses. */
  setMarks(marks) {
    this.marks = marks;
    this.redraw();
  }

  /**
   * Keep several runs in step; nobody is called.
   *
   * @param {[number, number] | null} steps What to show, also beyond this run; null for this run alone.
   */
  setSteps(steps) {
    const { shared } = this;
    const [first, last] = shared ?? steps ?? [0, 0];
    this.shared = steps === null ? null : [Math.min(steps[0], first), Math.max(steps[1], last)];
    this.limitSteps();
    if (steps === null) this.stepRange.reset();
    else this.stepRange.set(...steps);
    this.redraw();
  }

  /** @param {number | null} step The last one that the axis may name, as of other runs; null for this run's own. */
  setNewest(step) {
    this.newest = step;
    this.redraw();
  }

  /** @param {number | null} pixels The tallest that the whole may be; null for what fits into the window. */
  setHeight(pixels) {
    this.tallest = pixels;
    this.redraw();
  }

  /** @param {object | null} cell What to draw a box around: `layer`, and `step` or `column`. */
  select(cell) {
    this.selected = cell === null ? null : { ...cell };
    this.keepCells();
    this.redraw(false);
  }

  /**
   * @param {number} factor Above 1 to see less, larger.
   * @param {number} [centerX] Where nothing moves, in CSS pixels from the left; the middle where it is left out.
   */
  zoom(factor, centerX) {
    const part = centerX === undefined || this.plot === null ? 0.5 : (centerX - this.plot.left) / this.plot.width;
    this.stepRange.zoom(factor, Math.min(Math.max(part, 0), 1));
    this.viewed();
  }

  /** @param {number} dx By how many CSS pixels to move on to later steps. */
  pan(dx) {
    this.stepRange.pan(dx / (this.plot?.width ?? 1));
    this.viewed();
  }

  /** Show all. */
  reset() {
    this.stepRange.reset();
    this.rowRange.reset();
    this.viewed();
  }

  /** @returns {object} What is shown: `first` and `last` step, `rowFirst` and `rowLast`, `isWhole`. */
  get view() {
    const { stepRange, rowRange } = this;
    const isWhole = stepRange.isWhole && rowRange.isWhole;
    return { first: stepRange.first, last: stepRange.last, rowFirst: rowRange.first, rowLast: rowRange.last, isWhole };
  }

  /** A person has moved what is shown. */
  viewed() {
    this.redraw();
    this.callbacks.onView?.(this.view);
  }

  /** Bring a cell into sight, by the shortest way. */
  reveal(rowIndex, column) {
    const { stepRange, rowRange, edges } = this;
    const before = JSON.stringify(this.view);
    for (const [range, first, last] of [[rowRange, rowIndex, rowIndex + 1], [stepRange, edges[column], edges[column + 1]]]) {
      const width = range.last - range.first;
      if (first < range.first) range.set(first, first + width);
      else if (last > range.last) range.set(last - width, last);
    }
    if (JSON.stringify(this.view) === before) return;
    this.viewed();
    this.draw();
  }

  /** Move the cross to a cell; null takes it away. */
  activate(active, pointer = null) {
    const isSame = active === null && this.active === null;
    this.active = active;
    if (isSame) return;
    this.callbacks.onHover?.(active === null ? null : active.cell, pointer);
    this.redraw(false);
  }

  /** Return the code of a layer's median over the run; each is found once. */
  typicalAt(layer) {
    if (this.typical[layer] === UNKNOWN_TYPICAL) this.typical[layer] = typicalOfLayer(this.series, layer);
    return this.typical[layer];
  }

  takeNumbers(series) {
    Object.assign(this, { series, cells: cellValues(series), edges: columnEdges(series.steps) });
    this.typical = new Int32Array(series.numLayers).fill(UNKNOWN_TYPICAL);
  }

  makeScale() {
    const { low, high, relative } = this.ends;
    if (relative) this.typical.forEach((_, layer) => this.typicalAt(layer));
    this.scale = new ColorScale(low, high, relative ? this.typical : null);
  }

  // Other runs may have begun earlier or gone on for longer.
  limitSteps() {
    const { edges, shared, stepRange } = this;
    const count = edges.length - 1;
    const own = count > 0 ? [edges[0], edges[count]] : (shared ?? [0, 1]);
    let narrowest = own[1] - own[0];
    for (let column = 0; column < count; column += 1) narrowest = Math.min(narrowest, edges[column + 1] - edges[column]);
    stepRange.least = LEAST_SHOWN * narrowest;
    stepRange.setLimits(Math.min(own[0], shared?.[0] ?? own[0]), Math.max(own[1], shared?.[1] ?? own[1]));
  }

  // Rows and columns may have moved below what was picked or pointed at.
  keepCells() {
    const { active, selected, rows, series, edges } = this;
    if (series === null) return;
    const isThere = active && active.cell.rowIndex < rows.length && active.cell.column < series.numColumns;
    if (active && !isThere) this.activate(null);
    else if (active) active.cell = cellInRow(this, active.cell.rowIndex, active.cell.column);
    if (!selected) return;
    const isAlone = rows.findIndex((row) => row.group === null && row.layers.includes(selected.layer));
    selected.rowIndex = isAlone >= 0 ? isAlone : rows.findIndex((row) => row.layers.includes(selected.layer));
    if (selected.step !== undefined) selected.column = indexAt(edges.subarray(0, -1), selected.step);
  }

  aboutText() {
    const { series, rows } = this;
    const steps = series.numColumns ? formatSteps(series.steps[0], newestStep(series)) : "no readings";
    const keys = "Arrow keys move from cell to cell, plus and minus zoom, 0 shows all, Enter opens a cell.";
    return `${series.title}: ${counted(rows.length, "row")}, ${steps}. ${keys}`;
  }

  /** Draw in the next frame; `isStale`: not only what follows the pointer. */
  redraw(isStale = true) {
    this.isStale ||= isStale;
    if (this.frame === 0) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.width = this.host.clientWidth;
    // TensorBoard hides a tab by its height; a ResizeObserver tells when it is back.
    if (this.width === 0 || this.series === null) return;
    if (this.isStale) this.drawBelow();
    this.isStale = false;
    this.drawAbove();
  }

  drawBelow() {
    const tallest = this.tallest ?? Math.max(320, window.innerHeight - 260);
    const wanted = Math.max(this.rows.length * ROW_HEIGHT, LEAST_PICTURE);
    const height = FRAME_HEIGHT + Math.min(wanted, Math.max(tallest - FRAME_HEIGHT, LEAST_PICTURE));
    this.stage.style.height = `${height}px`;
    const size = { width: this.stage.clientWidth, height, density: window.devicePixelRatio || 1 };
    // The page sets everything anew whenever any of it may have changed.
    const drawn = JSON.stringify([this.shows, this.view, this.newest, this.ends, this.theme, this.marks, size]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const context = fitCanvas(this.picture, size);
    this.plot = planPlot(this, context, size);
    this.clusters = drawPicture(context, this.plot, this.scale, this.colors, this.marks);
    fitCanvas(this.overlay, size);
    const { active } = this;
    if (active === null || active.isByKey) return;
    const cell = cellAtPoint(this, active.x, active.y);
    this.active = cell === null ? null : { ...active, cell };
  }

  drawAbove() {
    const { overlay, plot, active, selected, box } = this;
    const context = overlay.getContext("2d");
    context.clearRect(0, 0, overlay.width, overlay.height);
    if (selected !== null && selected.rowIndex >= 0 && selected.column >= 0) drawSelection(context, plot, selected);
    if (box !== null) drawBrush(context, plot, box);
    else if (active !== null) drawCrosshair(context, plot, active.cell);
  }
}
