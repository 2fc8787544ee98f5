/** The frame of the picture: names of the rows, steps, the strip of hidden extremes. */

import { chooseLabels, elideName } from "./labels.js";
import { stepTicks } from "./numbers.js";

/** Fonts of everything that is drawn as text. */
export const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
export const BOLD_FONT = `600 ${FONT}`;
/** Room around the picture, in CSS pixels. */
export const MARGIN = { top: 22, right: 14, bottom: 38 };
/** Height of the strip of hidden extremes below the picture. */
export const STRIP = 7;
const LABEL_ROOM = { least: 60, most: 240 };

/**
 * Write a step in short: 1k, 12.5k, 10M.
 *
 * @param {number} step The step.
 * @returns {string}
 */
export function shortStep(step) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(step) >= size) return `${Number((step / size).toPrecision(6))}${unit}`;
  }
  return String(Math.round(step));
}

/**
 * Write steps alike: where the ticks of an axis differ by less than their unit, all get as many digits as they need.
 *
 * @param {number[]} ticks Ascending steps.
 * @returns {string[]}
 */
export function stepLabels(ticks) {
  const texts = ticks.map(shortStep);
  return new Set(texts).size === texts.length ? texts : ticks.map(String);
}

/**
 * Return how much room the names need on the left.
 *
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {{prefix: string, names: string[]}} called Of `rowNames`.
 * @param {number} width Of the whole picture.
 * @returns {number} CSS pixels, at most a third of the width.
 */
export function labelRoom(context, called, width) {
  context.font = BOLD_FONT;
  // Measuring thousands of names costs more than drawing them.
  const longest = [...called.names].sort((a, b) => b.length - a.length).slice(0, 30);
  const widest = Math.max(0, ...longest.map((name) => context.measureText(name).width));
  const most = Math.max(LABEL_ROOM.least, Math.min(LABEL_ROOM.most, width / 3));
  return Math.round(Math.min(Math.max(widest + 26, LABEL_ROOM.least), most));
}

/**
 * Draw the names of the rows, thinned so that none touches another.
 *
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {object} plot `left`, `top`, `width`, `height` in CSS pixels, `rows`, `called`, `rowRange`, `text` (colors).
 */
export function drawRowLabels(context, plot) {
  const { rows, called, rowRange, text } = plot;
  const rowHeight = plot.height / (rowRange.last - rowRange.first);
  const fitted = (room) => (name) => context.measureText(name).width <= room;
  context.save();
  context.beginPath();
  context.rect(0, plot.top - 6, plot.left, plot.height + 12);
  context.clip();
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const label of chooseLabels(rows, called, rowHeight)) {
    const top = plot.top + rowRange.place(label.index, plot.height);
    const bottom = plot.top + rowRange.place(label.last + 1, plot.height);
    if (bottom < plot.top || top > plot.top + plot.height) continue;
    const row = rows[label.index];
    const isHeading = row.group !== null;
    const font = isHeading ? BOLD_FONT : FONT;
    if (context.font !== font) context.font = font;
    context.fillStyle = isHeading || rowHeight >= 12 || label.isBlock ? text.ink : text.faint;
    const inset = row.parent ? 18 : 8;
    const right = plot.left - 8;
    const end = plot.top + plot.height;
    const y = (Math.max(top, plot.top) + Math.min(bottom, end)) / 2;
    if (isHeading) drawChevron(context, 4, y, row.isOpen, text.faint);
    context.fillText(elideName(label.text, fitted(right - inset - (isHeading ? 6 : 0))), right, y);
    if (label.isBlock) drawBracket(context, plot, top, bottom, text.faint);
  }
  context.restore();
  drawPrefix(context, plot, fitted);
}

function drawChevron(context, x, y, isOpen, color) {
  context.save();
  context.fillStyle = color;
  context.beginPath();
  if (isOpen) [[x, y - 2], [x + 7, y - 2], [x + 3.5, y + 3]].forEach((point) => context.lineTo(...point));
  else [[x + 1, y - 3.5], [x + 6, y], [x + 1, y + 3.5]].forEach((point) => context.lineTo(...point));
  context.fill();
  context.restore();
}

// A bracket says that the name is that of all rows beside it.
function drawBracket(context, plot, top, bottom, color) {
  const x = Math.round(plot.left - 4) + 0.5;
  context.strokeStyle = color;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x + 3, Math.round(top) + 0.5);
  context.lineTo(x, Math.round(top) + 0.5);
  context.lineTo(x, Math.max(Math.round(bottom) - 1.5, Math.round(top) + 0.5));
  context.stroke();
}

function drawPrefix(context, plot, fitted) {
  if (plot.called.prefix === "") return;
  context.font = FONT;
  context.fillStyle = plot.text.faint;
  context.textAlign = "right";
  context.textBaseline = "alphabetic";
  context.fillText(elideName(`${plot.called.prefix}*`, fitted(plot.left - 12)), plot.left - 8, plot.top - 8);
}

/**
 * Draw the steps below the picture.
 *
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {object} plot As for `drawRowLabels`, with `stepRange` and `newest`, the last step that is named.
 */
export function drawStepAxis(context, plot) {
  const { stepRange, text } = plot;
  const bottom = plot.top + plot.height + STRIP;
  const ticks = stepTicks(stepRange.first, stepRange.last, Math.max(2, Math.floor(plot.width / 80)), plot.newest);
  context.font = FONT;
  context.textBaseline = "top";
  context.strokeStyle = text.line;
  context.lineWidth = 1;
  const labels = stepLabels(ticks);
  const title = context.measureText("step").width + 10;
  ticks.forEach((tick, index) => {
    const x = plot.left + stepRange.place(tick, plot.width);
    const half = context.measureText(labels[index]).width / 2;
    context.beginPath();
    context.moveTo(Math.round(x) + 0.5, bottom);
    context.lineTo(Math.round(x) + 0.5, bottom + 5);
    context.stroke();
    const center = Math.min(x, plot.left + plot.width + MARGIN.right - 1 - half);
    context.fillStyle = text.ink;
    context.textAlign = "center";
    context.fillText(labels[index], center, bottom + 8);
  });
  context.fillStyle = text.faint;
  context.textAlign = "right";
  if (plot.left > title) context.fillText("step", plot.left - 16, bottom + 8);
}

/**
 * Draw a tick below each column in which a window hides an extreme, so that a spike of one step is never out of sight.
 *
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {object} plot As for `drawRowLabels`, with `columns` (stretches of device pixels), `density`, `extremes` (bits of
 *     each column) and `ends` (colors of below and above).
 */
export function drawStrip(context, plot) {
  const { columns, density, extremes, ends } = plot;
  for (let part = 0; part < columns.count; part += 1) {
    let bits = 0;
    for (let column = columns.first[part]; column <= columns.last[part]; column += 1) bits |= extremes[column];
    if (bits === 0) continue;
    const left = plot.left + columns.start[part] / density;
    const width = Math.max((columns.end[part] - columns.start[part]) / density, 2);
    const top = plot.top + plot.height + 2;
    const height = STRIP - 2;
    if (bits & 1) fillStrip(context, ends.above, left, top, width, bits === 3 ? height / 2 : height);
    if (bits & 2) fillStrip(context, ends.below, left, bits === 3 ? top + height / 2 : top, width, bits === 3 ? height / 2 : height);
  }
}

function fillStrip(context, color, left, top, width, height) {
  context.fillStyle = color;
  context.fillRect(left, top, width, height);
}

/**
 * Draw a line around the picture.
 *
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {object} plot As for `drawRowLabels`.
 */
export function drawFrame(context, plot) {
  context.strokeStyle = plot.text.line;
  context.lineWidth = 1;
  context.strokeRect(plot.left - 0.5, plot.top - 0.5, plot.width + 1, plot.height + 1);
}
