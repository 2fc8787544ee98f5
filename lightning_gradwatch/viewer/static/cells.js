/** A cell of the picture as others read it, found by its place or below a pointer. */

import { STATE_INF, STATE_NAN, STATE_PRESENT, STATE_ZERO, logOf } from "./blob.js";
import { formatLog, formatSteps } from "./numbers.js";
import { pickCell } from "./raster.js";
import { indexAt, lastStepOf, segmentAt } from "./view.js";

/**
 * Describe a cell.
 *
 * @param {object} heatmap Whose `series`, `rows`, `edges` and `typicalAt` it is read from.
 * @param {number} rowIndex Its row.
 * @param {number} column Its column.
 * @param {number} layer Its layer.
 * @returns {object} `row`, `rowIndex`, `layer`, `column`, `step`, `lastStep`, `value`, `low`, `high`, `typical` (log10),
 *     `state`, `marks`, and `numLayers` and `numColumns` that share the pixel.
 */
export function cellOf(heatmap, rowIndex, column, layer) {
  const { series, rows, edges } = heatmap;
  const at = layer * series.numColumns + column;
  return {
    row: rows[rowIndex], rowIndex, layer, column,
    step: edges[column],
    lastStep: lastStepOf(series, column),
    value: logOf(series.median[at]),
    low: logOf(series.low16[at]),
    high: logOf(series.high16[at]),
    typical: logOf(heatmap.typicalAt(layer)),
    state: series.state[at],
    marks: [],
    numLayers: rows[rowIndex].layers.length,
    numColumns: 1,
  };
}

/**
 * Describe the cell of a row that its color comes from, in one column.
 *
 * @param {object} heatmap As for `cellOf`, with `cells` and `scale`.
 * @param {number} rowIndex Its row.
 * @param {number} column Its column.
 * @returns {object} The cell.
 */
export function cellInRow(heatmap, rowIndex, column) {
  const { series, cells, rows, scale } = heatmap;
  const { layer } = pickCell(cells, series.numColumns, rows[rowIndex].layers, [column, column], column, scale);
  return cellOf(heatmap, rowIndex, column, layer);
}

/**
 * Describe the cell that a pixel shows; where several share the pixel, the one that gave it its color.
 *
 * @param {object} heatmap As for `cellInRow`, with `plot`.
 * @param {number} x In CSS pixels from the left of the canvas.
 * @param {number} y In CSS pixels from its top.
 * @returns {object | null} Null outside of the picture, and where the run has no step.
 */
export function cellAtPoint(heatmap, x, y) {
  const { plot, series, cells, rows, scale } = heatmap;
  if (plot === null || !rows.length || !series.numColumns) return null;
  const part = segmentAt(plot.columns, (x - plot.left) * plot.density);
  const band = segmentAt(plot.bandRows, (y - plot.top) * plot.density);
  if (part < 0 || band < 0) return null;
  const columns = [plot.columns.first[part], plot.columns.last[part]];
  const near = indexAt(plot.edges, plot.stepRange.valueAt(x - plot.left, plot.width));
  const { layer, column } = pickCell(cells, series.numColumns, plot.bands[band], columns, near, scale);
  let rowIndex = plot.bandRows.first[band];
  while (rowIndex < plot.bandRows.last[band] && !rows[rowIndex].layers.includes(layer)) rowIndex += 1;
  const cell = cellOf(heatmap, rowIndex, column, layer);
  return { ...cell, numLayers: plot.bands[band].length, numColumns: columns[1] - columns[0] + 1 };
}

/**
 * Write a cell as a screen reader says it.
 *
 * @param {object} series Its series.
 * @param {object} cell Of `cellOf`.
 * @returns {string}
 */
export function cellText(series, cell) {
  const name = cell.row.group === null ? series.layers[cell.layer] : `${cell.row.group}, most abnormal: ${series.layers[cell.layer]}`;
  const seen = [];
  if (cell.state & STATE_NAN) seen.push("NaN");
  if (cell.state & STATE_INF) seen.push("infinite");
  if (cell.state & STATE_ZERO && cell.value !== -Infinity) seen.push("zero once");
  const number = cell.value === -Infinity ? "exactly zero" : formatLog(cell.value);
  const value = cell.state === 0 || !(cell.state & STATE_PRESENT) ? "no value" : Number.isNaN(cell.value) ? "" : number;
  return `${name}, ${formatSteps(cell.step, cell.lastStep)}: ${[value, ...seen].filter(Boolean).join(", ")}`;
}
