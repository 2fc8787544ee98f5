// What a click on the picture opens: the curve of the layer and the depth profile of the step.

import { element, button, showOnce } from "./elements.js";
import { drawCurve } from "./curve.js";
import { drawProfile, profileOf, slopeInWords } from "./profile.js";
import { columnAt, readingInWords, readingOf } from "./words.js";
import { formatLog, formatSteps } from "./numbers.js";

const CHART_HEIGHT = 176;

/** The drawer below the pictures. */
export class Inspector {
  /** `onMove({layer, column})`: another cell of the same picture is wanted; `onClose()`. */
  constructor(onMove, onClose) {
    this.onMove = onMove;
    this.onClose = onClose;
    this.title = element("h2", { className: "gw-drawer-title", tabindex: "-1" });
    this.charts = element("div", { className: "gw-drawer-charts" });
    const close = button("\u00d7", "icon", () => this.close(), { "aria-label": "Close (Escape)", title: "Close (Escape)" });
    this.root = element(
      "section",
      { className: "gw-drawer", "aria-label": "Layer and step", hidden: true, on: { keydown: (event) => this.onKey(event) } },
      element("div", { className: "gw-drawer-head" }, this.title, this.steppers(), close),
      this.charts,
    );
    new ResizeObserver(() => this.draw()).observe(this.charts);
  }

  steppers() {
    const pair = (noun, layer, column) => {
      const move = (sign) => () => this.move(sign * layer, sign * column);
      const keys = layer ? ["\u2191", "\u2193"] : ["\u2190", "\u2192"];
      return element(
        "span",
        { className: "gw-stepper", role: "group", "aria-label": noun },
        button(keys[0], "icon", move(-1), { "aria-label": `Previous ${noun}`, title: `Previous ${noun}` }),
        element("span", { text: noun }),
        button(keys[1], "icon", move(1), { "aria-label": `Next ${noun}`, title: `Next ${noun}` }),
      );
    };
    return element("div", { className: "gw-steppers" }, pair("layer", 1, 0), pair("step", 0, 1));
  }

  onKey(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") this.close();
    else if (moves[event.key]) this.move(...moves[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  close() {
    const hasFocus = this.root.contains(document.activeElement);
    this.onClose();
    // Who came by keyboard goes on from where the drawer was opened.
    if (hasFocus && this.before?.isConnected) this.before.focus();
  }

  move(layers, columns) {
    const { series, layer, column } = this.shown;
    const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
    this.onMove({ layer: inside(layer + layers, series.numLayers), column: inside(column + columns, series.numColumns) });
  }

  /** Show a cell: {run, series, layer, step, range, newest, levels, marks}; null closes. */
  show(cell) {
    if (cell && this.root.hidden) this.before = document.activeElement;
    this.root.hidden = !cell;
    if (!cell) {
      this.shown = null;
      return;
    }
    this.shown = { ...cell, column: columnAt(cell.series, cell.step) };
    this.draw();
  }

  draw() {
    if (!this.shown || !this.charts.clientWidth) return;
    const { run, series, layer, column } = this.shown;
    const reading = readingOf(series, layer, column);
    const { value, lines } = readingInWords(reading, series.quantity);
    showOnce(this.title, [run, series.layers[layer], column, value].join("\n"), () =>
      [
        element("span", { className: "gw-drawer-name", text: series.layers[layer] }),
        element(
          "span",
          { className: "gw-drawer-value" },
          `${series.title} `,
          element("b", { text: value }),
          ` at ${formatSteps(reading.step, reading.lastStep)}`,
        ),
        lines.length ? element("span", { className: "gw-faint", text: lines.join(", ") }) : null,
      ].filter(Boolean),
    );
    const wide = this.charts.clientWidth >= 700;
    const size = { width: Math.floor(wide ? (this.charts.clientWidth - 24) / 2 : this.charts.clientWidth), height: CHART_HEIGHT };
    this.charts.replaceChildren(this.curve(size), this.profile(size));
  }

  curve(size) {
    const { series, layer, column, range, newest, levels, marks } = this.shown;
    const onStep = (step) => this.onMove({ layer, column: columnAt(series, step) });
    const drawn = drawCurve(series, layer, { size, levels, marks, range, newest, step: series.steps[column], onStep });
    const head = "This layer over training";
    const under = `${bandInWords(series, layer)}${relation(series, layer, column)}`;
    return figureOf(size, head, under, drawn);
  }

  profile(size) {
    const { series, layer, column } = this.shown;
    const drawn = drawProfile(series, column, { size, layer, onLayer: (other) => this.onMove({ layer: other, column }) });
    const head = series.quantity === "time" ? "All time steps at this training step" : "All layers at this step";
    const under = slopeInWords(series, profileOf(series, column));
    return figureOf(size, head, under, drawn);
  }
}

// The width is set here, not as an attribute, which a strict content policy would refuse.
function figureOf(size, head, under, drawn) {
  const figure = element(
    "figure",
    { className: "gw-figure" },
    element("figcaption", {}, element("b", { text: head }), " ", under),
    drawn,
  );
  figure.style.width = `${size.width}px`;
  return figure;
}

// Where each column is one step there is no band to explain.
function bandInWords(series, layer) {
  const [from, to] = [layer * series.numColumns, (layer + 1) * series.numColumns];
  const isBand = series.low16.subarray(from, to).some((code, place) => code !== series.high16[from + place]);
  return isBand ? "Line: median. Band: least to largest of the steps that share a column." : "";
}

// How the chosen value compares with where the layer began, which is what training did to it.
function relation(series, layer, column) {
  const [first, now] = [0, column].map((place) => readingOf(series, layer, place).value);
  return Number.isFinite(first) && Number.isFinite(now) && column > 0
    ? ` Here ${formatLog(now - first)} times what it was at first.`
    : "";
}
