// All layers at one step, in forward order: how the quantity changes along depth, and a line through it.

import { drawing } from "./elements.js";
import { logOf, STATE_NAN, STATE_INF, STATE_ZERO } from "./blob.js";
import { beginChart, brokenPath, logRange } from "./chart.js";
import { fitAlong, formatLog } from "./numbers.js";
import { travelOf } from "./words.js";

// As GradWatch's rules have it: below that, single layers are odd and depth is not the reason.
const STEADY_R2 = 0.5;
// Ours: between them a person sees a flat line.
const FLAT = [0.95, 1.05];

/** Return log10 of each layer in a column, in forward order. */
export function profileOf(series, column) {
  return Array.from({ length: series.numLayers }, (_, layer) => logOf(series.median[layer * series.numColumns + column]));
}

/**
 * Draw the depth profile of a column.
 *
 * `size`: {width, height}; `layer`: the chosen one; `onLayer(layer)`: the person has clicked at a layer.
 */
export function drawProfile(series, column, { size, layer, onLayer }) {
  const logs = profileOf(series, column);
  const fit = travelOf(series.quantity) ? fitAlong(logs) : null;
  const last = series.numLayers - 1;
  const isTime = series.quantity === "time";
  const chart = beginChart({
    ...size,
    label: [`${series.title} of each ${isTime ? "time step" : "layer"}`, slopeInWords(series, logs)].filter(Boolean).join(": "),
    xRange: [-0.3, last + 0.3],
    yRange: logRange(logs),
    xTicks: [],
    xTitle: isTime ? "\u2190 first time step \u00b7 last time step \u2192" : "\u2190 input layer \u00b7 output layer \u2192",
  });
  const steady = fit && fit.r2 >= STEADY_R2;
  if (steady) {
    const ends = [fit.first[0], fit.last[0]].map((place) => `${chart.x(place)} ${chart.y(fit.at(place))}`);
    chart.svg.append(drawing("path", { className: "gw-fit", d: `M${ends.join("L")}` }));
  }
  chart.svg.append(
    drawing("path", { className: "gw-line gw-thin", d: brokenPath(logs.map((log, place) => [chart.x(place), chart.y(log)])) }),
  );
  drawDots(chart, series, column, logs, layer);
  chart.svg.addEventListener("click", (event) => onLayer(layerUnder(event, chart, last)));
  return chart.svg;
}

function drawDots(chart, series, column, logs, chosen) {
  const radius = series.numLayers > 120 ? 1.2 : series.numLayers > 50 ? 2 : 3;
  logs.forEach((log, place) => {
    const state = series.state[place * series.numColumns + column];
    const kind = state & STATE_NAN ? "nan" : state & STATE_INF ? "inf" : state & STATE_ZERO ? "zero" : null;
    const x = chart.x(place);
    if (kind) {
      const y = kind === "zero" ? chart.inside.bottom - 5 : chart.inside.top;
      chart.svg.append(drawing("rect", { className: `gw-odd gw-odd-${kind}`, x: x - 2, y, width: 4, height: 5 }));
    }
    if (Number.isFinite(log)) chart.svg.append(drawing("circle", { className: "gw-dot", cx: x, cy: chart.y(log), r: radius }));
  });
  const x = chart.x(chosen);
  chart.svg.append(drawing("line", { className: "gw-cursor", x1: x, x2: x, y1: chart.inside.top, y2: chart.inside.bottom }));
  if (Number.isFinite(logs[chosen])) {
    chart.svg.append(drawing("circle", { className: "gw-dot gw-chosen", cx: x, cy: chart.y(logs[chosen]), r: radius + 2.5 }));
  }
}

function layerUnder(event, chart, last) {
  const box = chart.svg.getBoundingClientRect();
  const x = (event.clientX - box.left) * (chart.svg.viewBox.baseVal.width / box.width);
  const part = (x - chart.inside.left) / (chart.inside.right - chart.inside.left);
  return Math.round(Math.min(Math.max(part * (last + 0.6) - 0.3, 0), last));
}

/** Say what the line through the layers means; empty where depth says nothing about the quantity. */
export function slopeInWords(series, logs) {
  const travel = travelOf(series.quantity);
  if (!travel) return "";
  const thing = series.quantity === "time" ? "time step" : "layer";
  const fit = fitAlong(logs);
  if (!fit) return `Too few ${thing}s have a value here to see a trend.`;
  const share = `${Math.round(100 * Math.max(fit.r2, 0))}%`;
  const factor = travel === "back" ? fit.factor : 1 / fit.factor;
  if (factor >= FLAT[0] && factor <= FLAT[1])
    return `Steady along ${thing === "layer" ? "depth" : "time"}: every ${thing} ${travel} multiplies by ${formatLog(Math.log10(factor))}.`;
  if (fit.r2 < STEADY_R2) return `No steady trend: a straight line explains ${share} of the differences between ${thing}s.`;
  const [from, to] = travel === "back" ? [fit.last, fit.first] : [fit.first, fit.last];
  const whole = `${formatLog(to[1] - from[1])} times from ${travel === "back" ? "last to first" : "first to last"}`;
  return `Every ${thing} ${travel} multiplies by ${formatLog(Math.log10(factor))}: ${whole} (a line explains ${share}).`;
}
