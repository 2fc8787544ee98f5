// One layer over the steps of training: the median, what lay between the ends, and what was no number.

import { drawing } from "./elements.js";
import { logOf, STATE_NAN, STATE_INF, STATE_ZERO } from "./blob.js";
import { beginChart, brokenPath, levelLine, logRange } from "./chart.js";
import { formatLog, medianOf, plainNumber, stepTicks } from "./numbers.js";

/**
 * Draw the curve of a layer.
 *
 * `size`: {width, height}; `levels`: [{log, name, kind}]; `marks`: [{step, severity}]; `range`: first and last step that
 * are shown; `newest`: the last one that the axis may name; `step`: where the line of the chosen step is; `onStep(step)`:
 * the person has clicked at a step.
 */
export function drawCurve(series, layer, { size, levels, marks, range, newest, step, onStep }) {
  const columns = columnsBetween(series, range);
  const logs = (table) => columns.map((column) => logOf(table[layer * series.numColumns + column]));
  const [median, low, high] = [logs(series.median), logs(series.low16), logs(series.high16)];
  const yRange = logRange([...low, ...high], near(levels, [...low, ...high]));
  const most = Math.max(2, Math.floor(size.width / 90));
  const chart = beginChart({
    ...size,
    label: curveInWords(series, layer, median, low, high),
    xRange: range,
    yRange,
    xTicks: stepTicks(range[0], range[1], most, newest).map((tick) => [tick, plainNumber(tick)]),
    xTitle: "training step",
  });
  const at = columns.map((column) => chart.x(series.steps[column]));
  drawBand(chart, at, low, high);
  levels.forEach((level) => levelLine(chart, level.log, level.name, level.kind));
  chart.svg.append(drawing("path", { className: "gw-line", d: brokenPath(at.map((x, index) => [x, chart.y(median[index])])) }));
  drawLone(chart, at, median);
  drawOdd(chart, series, layer, columns, at);
  marks.forEach((mark) => upright(chart, mark.step, range, `gw-mark gw-is-${mark.severity}`));
  upright(chart, step, range, "gw-cursor");
  chart.svg.addEventListener("click", (event) => onStep(stepUnder(event, chart, range)));
  return chart.svg;
}

// A threshold far away from all values would press the curve flat.
function near(levels, logs) {
  const known = logs.filter(Number.isFinite);
  if (!known.length) return levels.map((level) => level.log);
  const [low, high] = [Math.min(...known) - 2, Math.max(...known) + 2];
  return levels.map((level) => level.log).filter((log) => log >= low && log <= high);
}

function columnsBetween(series, [first, last]) {
  const columns = [];
  for (let column = 0; column < series.numColumns; column += 1) {
    const next = series.steps[Math.min(column + 1, series.numColumns - 1)];
    if (series.steps[column] <= last && (next >= first || series.steps[column] >= first)) columns.push(column);
  }
  return columns;
}

function drawBand(chart, at, low, high) {
  let piece = [];
  const close = () => {
    if (piece.length) {
      const there = piece.map(([x, , upper]) => `${x.toFixed(1)} ${upper.toFixed(1)}`);
      const back = piece.map(([x, lower]) => `${x.toFixed(1)} ${lower.toFixed(1)}`).reverse();
      chart.svg.append(drawing("path", { className: "gw-band", d: `M${[...there, ...back].join("L")}Z` }));
    }
    piece = [];
  };
  at.forEach((x, index) => {
    const [lower, upper] = [low[index] === -Infinity ? chart.inside.bottom : chart.y(low[index]), chart.y(high[index])];
    if (Number.isFinite(lower) && Number.isFinite(upper)) piece.push([x, lower, upper]);
    else close();
  });
  close();
}

// A value between two that are missing is no line, and would be out of sight.
function drawLone(chart, at, median) {
  median.forEach((log, index) => {
    const isLone = ![median[index - 1], median[index + 1]].some(Number.isFinite);
    if (Number.isFinite(log) && isLone) chart.svg.append(drawing("circle", { className: "gw-dot", cx: at[index], cy: chart.y(log), r: 2.5 }));
  });
}

// What has no place on a log axis stands at its edge: not finite on top, zero at the bottom.
function drawOdd(chart, series, layer, columns, at) {
  columns.forEach((column, index) => {
    const state = series.state[layer * series.numColumns + column];
    const kind = state & STATE_NAN ? "nan" : state & STATE_INF ? "inf" : state & STATE_ZERO ? "zero" : null;
    if (!kind) return;
    const y = kind === "zero" ? chart.inside.bottom - 5 : chart.inside.top;
    chart.svg.append(drawing("rect", { className: `gw-odd gw-odd-${kind}`, x: at[index] - 1.5, y, width: 3, height: 5 }));
  });
}

function upright(chart, step, range, className) {
  if (step === null || step < range[0] || step > range[1]) return;
  const x = chart.x(step);
  chart.svg.append(drawing("line", { className, x1: x, x2: x, y1: chart.inside.top, y2: chart.inside.bottom }));
}

function stepUnder(event, chart, range) {
  const box = chart.svg.getBoundingClientRect();
  const x = (event.clientX - box.left) * (chart.svg.viewBox.baseVal.width / box.width);
  const part = (x - chart.inside.left) / (chart.inside.right - chart.inside.left);
  return range[0] + Math.min(Math.max(part, 0), 1) * (range[1] - range[0]);
}

function curveInWords(series, layer, median, low, high) {
  const known = (logs) => logs.filter(Number.isFinite);
  if (!known(median).length) return `${series.layers[layer]}: no finite value in these steps`;
  const least = known(low).reduce((a, b) => Math.min(a, b), Infinity);
  const most = known(high).reduce((a, b) => Math.max(a, b), -Infinity);
  const middle = formatLog(medianOf(median));
  return `${series.title} of ${series.layers[layer]} over training: median ${middle}, least ${formatLog(least)}, largest ${formatLog(most)}`;
}
