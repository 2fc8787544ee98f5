// The frame of a small chart: axes, grid and clipping, as SVG.

import { drawing } from "./elements.js";
import { decadeTicks, formatDecade } from "./numbers.js";

const CHART_MARGIN = { top: 10, right: 12, bottom: 30, left: 46 };

/** Return the range of log10 numbers with a margin, all of `also` inside it, and at least two decades wide. */
export function logRange(logs, also = []) {
  let [low, high] = [Infinity, -Infinity];
  for (const log of [...logs, ...also]) {
    if (!Number.isFinite(log)) continue;
    if (log < low) low = log;
    if (log > high) high = log;
  }
  if (low > high) return [-1, 1];
  const missing = Math.max(0, 2 - (high - low)) / 2;
  return [low - missing - 0.15, high + missing + 0.15];
}

/**
 * Begin a chart: {svg, plot, x, y, width, height, inside}. `x` and `y` turn numbers into pixels.
 * `xTicks`: [[value, text], ...].
 */
export function beginChart({ width, height, label, xRange, yRange, xTicks, xTitle }) {
  const margin = CHART_MARGIN;
  const inside = { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  const x = (value) => inside.left + ((value - xRange[0]) / (xRange[1] - xRange[0] || 1)) * (inside.right - inside.left);
  const y = (value) => inside.bottom - ((value - yRange[0]) / (yRange[1] - yRange[0] || 1)) * (inside.bottom - inside.top);
  const svg = drawing("svg", {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    className: "gw-chart",
    role: "img",
    "aria-label": label,
  });
  for (const tick of decadeTicks(yRange[0], yRange[1], Math.max(2, Math.floor((inside.bottom - inside.top) / 24)))) {
    svg.append(
      drawing("line", { className: "gw-grid", x1: inside.left, x2: inside.right, y1: y(tick), y2: y(tick) }),
      drawing("text", { className: "gw-tick", x: inside.left - 6, y: y(tick) + 3.5, "text-anchor": "end" }, formatDecade(tick)),
    );
  }
  for (const [value, text] of xTicks) {
    svg.append(drawing("text", { className: "gw-tick", x: x(value), y: inside.bottom + 13, "text-anchor": "middle" }, text));
  }
  svg.append(
    drawing("line", { className: "gw-axis", x1: inside.left, x2: inside.right, y1: inside.bottom, y2: inside.bottom }),
    drawing(
      "text",
      { className: "gw-axis-title", x: (inside.left + inside.right) / 2, y: height - 4, "text-anchor": "middle" },
      xTitle,
    ),
  );
  return { svg, x, y, inside };
}

/** Draw a level across the chart with its name. */
export function levelLine(chart, log, name, kind) {
  const y = chart.y(log);
  if (y < chart.inside.top - 1 || y > chart.inside.bottom + 1) return;
  chart.svg.append(
    drawing("line", { className: `gw-level gw-level-${kind}`, x1: chart.inside.left, x2: chart.inside.right, y1: y, y2: y }),
    drawing(
      "text",
      { className: "gw-level-name", x: chart.inside.right - 2, y: kind === "high" ? y + 11 : y - 4, "text-anchor": "end" },
      name,
    ),
  );
}

/** Return the path through points, broken where one is missing. */
export function brokenPath(points) {
  let path = "";
  let drawn = false;
  for (const [x, y] of points) {
    const known = Number.isFinite(y);
    if (known) path += `${drawn ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${drawn ? "" : "h0"}`;
    drawn = known;
  }
  return path;
}
