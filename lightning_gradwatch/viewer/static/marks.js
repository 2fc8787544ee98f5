/** Diagnoses on the picture: a triangle above and a dashed line where each began. */

import { FONT } from "./axes.js";
import { elideLetters } from "./labels.js";

const MARK_SIZE = 5;
// Nearer than that two triangles would cover each other.
const MARK_GAP = 9;
// A shorter rest of a label says nothing.
const LEAST_LABEL = 64;

/**
 * Put marks that would cover each other together.
 *
 * @param {object[]} marks `step`, `severity`, `label`, `index`.
 * @param {AxisRange} stepRange What is shown.
 * @param {number} width Of the picture in CSS pixels.
 * @returns {{x: number, marks: object[], severity: string}[]} From left to right; a warning outweighs notices.
 */
export function clusterMarks(marks, stepRange, width) {
  const placed = marks
    .map((mark) => ({ mark, x: stepRange.place(mark.step, width) }))
    .filter(({ x }) => x >= 0 && x <= width)
    .sort((a, b) => a.x - b.x);
  const clusters = [];
  for (const { mark, x } of placed) {
    const before = clusters[clusters.length - 1];
    if (before && x - before.x < MARK_GAP) before.marks.push(mark);
    else clusters.push({ x, marks: [mark], severity: "notice" });
  }
  for (const cluster of clusters) {
    if (cluster.marks.some((mark) => mark.severity === "warning")) cluster.severity = "warning";
  }
  return clusters;
}

/**
 * Draw the marks with as much of their labels as there is room for.
 *
 * @param {CanvasRenderingContext2D} context Of the picture.
 * @param {object} plot As for `drawRowLabels`.
 * @param {object[]} clusters Of `clusterMarks`.
 */
export function drawMarks(context, plot, clusters) {
  context.save();
  context.font = FONT;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  clusters.forEach((cluster, place) => {
    const x = plot.left + cluster.x;
    const color = cluster.severity === "warning" ? plot.text.warning : plot.text.notice;
    drawMarkLine(context, plot, x, color);
    context.fillStyle = color;
    context.beginPath();
    [[x - MARK_SIZE, plot.top - 10], [x + MARK_SIZE, plot.top - 10], [x, plot.top - 1]].forEach((point) => context.lineTo(...point));
    context.fill();
    const end = place + 1 < clusters.length ? plot.left + clusters[place + 1].x - MARK_SIZE : plot.left + plot.width;
    drawMarkLabel(context, cluster, x + MARK_SIZE + 3, end - 6, plot.top - 6);
  });
  context.restore();
}

function drawMarkLine(context, plot, x, color) {
  // Beside the column that it speaks of: a spike of a single column would be hidden below it.
  const center = Math.max(Math.floor(x), plot.left + 1) - 0.5;
  const line = () => {
    context.beginPath();
    context.moveTo(center, plot.top);
    context.lineTo(center, plot.top + plot.height);
    context.stroke();
  };
  context.lineWidth = 1;
  // Paper below the dashes keeps them visible on every color.
  context.globalAlpha = 0.55;
  context.strokeStyle = plot.text.paper;
  line();
  context.globalAlpha = 1;
  context.strokeStyle = color;
  context.setLineDash([4, 3]);
  line();
  context.setLineDash([]);
}

function drawMarkLabel(context, cluster, left, right, baseline) {
  const more = cluster.marks.length > 1 ? `${cluster.marks.length}: ` : "";
  const text = `${more}${cluster.marks.map((mark) => mark.label).filter(Boolean).join(", ")}`;
  const fits = (part) => context.measureText(part).width <= right - left;
  if (fits(text)) context.fillText(text, left, baseline);
  else if (right - left > LEAST_LABEL) context.fillText(elideLetters(text, fits), left, baseline);
  else if (more !== "" && fits(String(cluster.marks.length))) context.fillText(String(cluster.marks.length), left, baseline);
}
