/** Draws the whole picture that does not follow the pointer. */

import { FONT, MARGIN, drawFrame, drawRowLabels, drawStepAxis, drawStrip, labelRoom } from "./axes.js";
import { bandsOf } from "./bands.js";
import { extremesOfCell } from "./extremes.js";
import { clusterMarks, drawMarks } from "./marks.js";
import { CODE_ABOVE, CODE_BELOW, cssColor } from "./palette.js";
import { paintCells, reduceCells } from "./raster.js";
import { newestStep, segmentsOf } from "./view.js";

// Smaller cells have no room for a notch; the strip below the picture tells their extremes.
const NOTCH_ROOM = { width: 3, height: 6 };
// From here on rows are told apart by a line between them.
const ROW_LINE_FROM = 10;

/**
 * Return where everything lies.
 *
 * @param {object} heatmap `series`, `cells`, `rows`, `period`, `called`, `edges`, `stepRange`, `rowRange`, `colors`, `text`, `extremes`.
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {{width: number, height: number, density: number}} size In CSS pixels; device pixels in one of them.
 * @returns {object} The plot, as `axes.js` and `overlay.js` read it.
 */
export function planPlot(heatmap, context, { width, height, density }) {
  const { series, cells, rows, period, called, edges, stepRange, rowRange, text, colors, extremes } = heatmap;
  const left = labelRoom(context, called, width);
  const plot = {
    left,
    top: MARGIN.top,
    width: Math.max(width - left - MARGIN.right, 1),
    height: Math.max(height - MARGIN.top - MARGIN.bottom, 1),
    density, series, cells, rows, called, edges, stepRange, rowRange, text, extremes,
    newest: heatmap.newest ?? newestStep(series),
    ends: { above: cssColor(colors.rgb[CODE_ABOVE]), below: cssColor(colors.rgb[CODE_BELOW]) },
  };
  plot.columns = segmentsOf(edges, stepRange, Math.round(plot.width * density));
  plot.bandRows = bandsOf(rows.length, period, rowRange, Math.round(plot.height * density));
  plot.bands = Array.from({ length: plot.bandRows.count }, (_, band) => {
    const shared = rows.slice(plot.bandRows.first[band], plot.bandRows.last[band] + 1);
    return shared.length === 1 ? shared[0].layers : [...new Set(shared.flatMap((row) => row.layers))];
  });
  return plot;
}

/**
 * Draw the picture.
 *
 * @param {CanvasRenderingContext2D} context Scaled to CSS pixels.
 * @param {object} plot Of `planPlot`.
 * @param {ColorScale} scale The colors of numbers.
 * @param {object} colors Of `scaleColors`.
 * @param {object[]} marks Diagnoses.
 * @returns {object[]} The clusters of marks, for the pointer.
 */
export function drawPicture(context, plot, scale, colors, marks) {
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  drawFrame(context, plot);
  const clusters = clusterMarks(marks, plot.stepRange, plot.width);
  if (plot.rows.length === 0 || plot.series.numColumns === 0) {
    drawMessage(context, plot, plot.rows.length === 0 ? "No layer matches the search." : "No readings yet.");
    return clusters;
  }
  drawCells(context, plot, scale, colors);
  drawRowLines(context, plot);
  drawNotches(context, plot, scale, colors);
  drawStrip(context, plot);
  drawRowLabels(context, plot);
  drawStepAxis(context, plot);
  drawMarks(context, plot, clusters);
  return clusters;
}

function drawCells(context, plot, scale, colors) {
  const codes = reduceCells(plot.cells, plot.series.numColumns, plot.bands, plot.columns, scale);
  const [width, height] = [Math.round(plot.width * plot.density), Math.round(plot.height * plot.density)];
  const data = context.createImageData(width, height);
  const image = { width, height, words: new Uint32Array(data.data.buffer) };
  paintCells(image, codes, plot.columns, plot.bandRows, colors, plot.density);
  context.putImageData(data, Math.round(plot.left * plot.density), Math.round(plot.top * plot.density));
}

function drawMessage(context, plot, message) {
  context.font = FONT;
  context.fillStyle = plot.text.faint;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(message, plot.left + plot.width / 2, plot.top + plot.height / 2);
}

function drawRowLines(context, plot) {
  const { rows, rowRange, text } = plot;
  if (plot.height / (rowRange.last - rowRange.first) < ROW_LINE_FROM) return;
  context.fillStyle = text.paper;
  for (let row = Math.max(1, Math.ceil(rowRange.first)); row < Math.min(rows.length, rowRange.last); row += 1) {
    const thick = rows[row].group !== null ? 2 : 1;
    const y = plot.top + Math.round(rowRange.place(row, plot.height) * plot.density) / plot.density;
    context.fillRect(plot.left, y - thick + 1 / plot.density, plot.width, thick);
  }
}

/** A notch at the upper or lower edge of a cell has the color of the extreme that the median hides. */
function drawNotches(context, plot, scale, colors) {
  const { columns, bandRows, density, top, left } = plot;
  const rowHeight = plot.height / (plot.rowRange.last - plot.rowRange.first);
  if (rowHeight < NOTCH_ROOM.height) return;
  const thick = Math.max(2, Math.round(rowHeight * 0.2));
  for (let part = 0; part < columns.count; part += 1) {
    const wide = (columns.end[part] - columns.start[part]) / density;
    if (wide < NOTCH_ROOM.width || columns.first[part] !== columns.last[part]) continue;
    if (plot.extremes[columns.first[part]] === 0) continue;
    for (let band = 0; band < bandRows.count; band += 1) {
      const { above, below } = extremesOfCell(plot.series, plot.bands[band], columns.first[part], scale);
      const high = (bandRows.end[band] - bandRows.start[band]) / density;
      const box = [left + columns.start[part] / density, top + bandRows.start[band] / density, wide, high];
      if (above !== null) drawNotch(context, box, thick, true, cssColor(colors.rgb[above]));
      if (below !== null) drawNotch(context, box, thick, false, cssColor(colors.rgb[below]));
    }
  }
}

function drawNotch(context, [left, top, width, height], thick, isUp, color) {
  context.fillStyle = color;
  const inset = width >= 8 ? Math.round(width * 0.15) : 0;
  context.fillRect(left + inset, isUp ? top : top + height - thick, width - 2 * inset, thick);
}

/** What stands above and below the rows of the picture, in CSS pixels. */
export const FRAME_HEIGHT = MARGIN.top + MARGIN.bottom;
