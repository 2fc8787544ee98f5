/** What follows the pointer, on a canvas of its own so that the picture below need not be drawn again. */

import { FONT, MARGIN, STRIP, shortStep } from "./axes.js";
import { elideName } from "./labels.js";
import { plainNumber } from "./numbers.js";

/**
 * Return where a row and a column lie.
 *
 * @param {object} plot Of the heatmap, with `rowRange`, `stepRange` and `edges`.
 * @param {number} rowIndex The row.
 * @param {number} column The column.
 * @returns {{left: number, right: number, top: number, bottom: number}} In CSS pixels, cut to the picture.
 */
export function cellBox(plot, rowIndex, column) {
  const across = (step) => plot.left + Math.min(Math.max(plot.stepRange.place(step, plot.width), 0), plot.width);
  const down = (row) => plot.top + Math.min(Math.max(plot.rowRange.place(row, plot.height), 0), plot.height);
  return {
    left: across(plot.edges[column]),
    right: across(plot.edges[column + 1]),
    top: down(rowIndex),
    bottom: down(rowIndex + 1),
  };
}

/**
 * Draw lines through a cell, and tags that name its row and step.
 *
 * @param {CanvasRenderingContext2D} context Of the overlay.
 * @param {object} plot As for `cellBox`, with `called` and `text`.
 * @param {object} cell The cell.
 */
export function drawCrosshair(context, plot, cell) {
  const box = snapped(cellBox(plot, cell.rowIndex, cell.column));
  const { text } = plot;
  context.globalAlpha = 0.55;
  for (const [color, width] of [[text.paper, 3], [text.ink, 1]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    const [right, bottom] = [plot.left + plot.width, plot.top + plot.height];
    for (const y of edgesOf(box.top, box.bottom)) crossLine(context, [plot.left, y], [box.left - 1, y], [box.right + 1, y], [right, y]);
    for (const x of edgesOf(box.left, box.right)) crossLine(context, [x, plot.top], [x, box.top - 1], [x, box.bottom + 1], [x, bottom]);
    context.stroke();
  }
  context.globalAlpha = 1;
  drawBox(context, box, text);
  drawTags(context, plot, cell, box);
}

// Two lines along a thin row would hide its neighbors.
function edgesOf(from, to) {
  return to - from < 5 ? [Math.floor((from + to) / 2) + 0.5] : [from, to];
}

function crossLine(context, ...points) {
  points.forEach(([x, y], index) => (index % 2 === 0 ? context.moveTo(x, y) : context.lineTo(x, y)));
}

// Lines between pixels are blurred.
function snapped({ left, right, top, bottom }) {
  return { left: Math.floor(left) - 0.5, top: Math.floor(top) - 0.5, right: Math.ceil(right) + 0.5, bottom: Math.ceil(bottom) + 0.5 };
}

function drawBox(context, box, text) {
  for (const [color, width] of [[text.paper, 3], [text.ink, 1]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(box.left, box.top, box.right - box.left, box.bottom - box.top);
  }
}

function drawTags(context, plot, cell, box) {
  const { text } = plot;
  context.font = FONT;
  context.textBaseline = "middle";
  const most = plot.left - 14;
  const name = elideName(plot.called.names[cell.rowIndex], (part) => context.measureText(part).width <= most - 8);
  const wide = Math.min(context.measureText(name).width + 10, plot.left);
  const middle = Math.min(Math.max((box.top + box.bottom) / 2, plot.top + 8), plot.top + plot.height - 8);
  drawTag(context, text, [plot.left - 4 - wide, middle - 8, wide, 16], name);
  const step = cell.lastStep > cell.step ? `${shortTag(cell.step)}\u2013${shortTag(cell.lastStep)}` : shortTag(cell.step);
  const width = context.measureText(step).width + 10;
  const center = Math.min(Math.max((box.left + box.right) / 2, plot.left + width / 2), plot.left + plot.width + MARGIN.right - width / 2);
  drawTag(context, text, [center - width / 2, plot.top + plot.height + STRIP + 6, width, 16], step);
}

// Up to seven digits the exact step is as short as a rounded one.
function shortTag(step) {
  return step < 1e7 ? plainNumber(step) : shortStep(step);
}

function drawTag(context, text, [left, top, width, height], label) {
  context.fillStyle = text.ink;
  context.beginPath();
  context.roundRect(left, top, width, height, 3);
  context.fill();
  context.fillStyle = text.paper;
  context.textAlign = "center";
  context.fillText(label, left + width / 2, top + height / 2 + 0.5);
}

/**
 * Draw a box around the cell that was picked.
 *
 * @param {CanvasRenderingContext2D} context Of the overlay.
 * @param {object} plot As for `cellBox`.
 * @param {object} cell With `rowIndex` and `column`.
 */
export function drawSelection(context, plot, cell) {
  const box = snapped(cellBox(plot, cell.rowIndex, cell.column));
  if (box.right <= plot.left || box.left >= plot.left + plot.width || box.bottom <= plot.top || box.top >= plot.top + plot.height) return;
  for (const [color, width] of [[plot.text.paper, 5], [plot.text.accent, 2.5]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(box.left - 1, box.top - 1, box.right - box.left + 2, box.bottom - box.top + 2);
  }
  context.fillStyle = plot.text.accent;
  const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  context.beginPath();
  [[plot.left - 1, y - 4], [plot.left - 1, y + 4], [plot.left + 6, y]].forEach((point) => context.lineTo(...point));
  context.fill();
  context.beginPath();
  const below = plot.top + plot.height + 1;
  [[x - 4, below + STRIP], [x + 4, below + STRIP], [x, below - 2]].forEach((point) => context.lineTo(...point));
  context.fill();
}

/**
 * Return the part of the picture that was drawn around: a thin box means all rows, or all steps.
 *
 * @param {object} plot Of the heatmap.
 * @param {number[]} from Where the pointer went down, [x, y].
 * @param {number[]} to Where it is.
 * @returns {{left: number, right: number, top: number, bottom: number, isWide: boolean, isTall: boolean}} In CSS pixels.
 */
export function brushBox(plot, from, to) {
  const inside = (value, least, size) => Math.min(Math.max(value, least), least + size);
  const xs = [from[0], to[0]].map((x) => inside(x, plot.left, plot.width)).sort((a, b) => a - b);
  const ys = [from[1], to[1]].map((y) => inside(y, plot.top, plot.height)).sort((a, b) => a - b);
  const isWide = xs[1] - xs[0] >= 6;
  const isTall = ys[1] - ys[0] >= 24 || (!isWide && ys[1] - ys[0] >= 6);
  const [left, right] = isWide ? xs : [plot.left, plot.left + plot.width];
  const [top, bottom] = isTall ? ys : [plot.top, plot.top + plot.height];
  return { left, right, top, bottom, isWide, isTall };
}

/**
 * Draw the part that is about to be zoomed into.
 *
 * @param {CanvasRenderingContext2D} context Of the overlay.
 * @param {object} plot Of the heatmap.
 * @param {object} box Of `brushBox`.
 */
export function drawBrush(context, plot, box) {
  context.fillStyle = plot.text.paper;
  context.globalAlpha = 0.55;
  context.beginPath();
  context.rect(plot.left, plot.top, plot.width, plot.height);
  context.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
  context.fill("evenodd");
  context.globalAlpha = 1;
  drawBox(context, snapped(box), plot.text);
}
