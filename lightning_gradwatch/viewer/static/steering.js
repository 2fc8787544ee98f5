/** What happens to the heatmap when a person points, drags, turns the wheel or presses a key. */

import { cellAtPoint, cellInRow, cellText } from "./cells.js";
import { brushBox, cellBox } from "./overlay.js";
import { movedCursor } from "./pointing.js";

// Three presses of plus show a third of what was there.
const KEY_ZOOM = 1.5;
const MARK_REACH = 6;

/**
 * Return what `attachPointing` calls.
 *
 * @param {Heatmap} heatmap The heatmap.
 * @returns {object} The target, see `attachPointing`.
 */
export function steering(heatmap) {
  return {
    canPan: () => !heatmap.view.isWhole,
    point: (x, y, event) => pointAt(heatmap, x, y, event),
    leave: () => heatmap.activate(null),
    click: (x, y) => clickAt(heatmap, x, y),
    reset: () => heatmap.reset(),
    key: (event) => pressKey(heatmap, event),
    brush: (from, to) => brushTo(heatmap, from, to),
    endBrush: (from, to) => endBrush(heatmap, from, to),
    panBy: (dx, dy) => panBy(heatmap, dx, dy),
    wheelZoom: (factor, x, y, isBoth) => wheelZoom(heatmap, factor, [x, y], isBoth),
  };
}

function brushTo(heatmap, from, to) {
  heatmap.box = heatmap.plot && brushBox(heatmap.plot, from, to);
  heatmap.redraw(false);
}

function endBrush(heatmap, from, to) {
  heatmap.box = null;
  if (from !== null && heatmap.plot !== null) zoomInto(heatmap, brushBox(heatmap.plot, from, to));
  heatmap.redraw(false);
}

function panBy(heatmap, dx, dy) {
  if (heatmap.plot === null) return;
  heatmap.rowRange.pan(-dy / heatmap.plot.height);
  heatmap.pan(-dx);
}

// Over the names the wheel zooms the rows; with alt both.
function wheelZoom(heatmap, factor, [x, y], isBoth) {
  const { plot } = heatmap;
  if (plot === null) return;
  const isBeside = x < plot.left;
  if (isBeside || isBoth) heatmap.rowRange.zoom(factor, Math.min(Math.max((y - plot.top) / plot.height, 0), 1));
  if (isBeside) heatmap.viewed();
  else heatmap.zoom(factor, x);
}

function zoomInto(heatmap, { left, right, top, bottom, isWide, isTall }) {
  const { plot, stepRange, rowRange } = heatmap;
  if (!isWide && !isTall) return;
  if (isWide) stepRange.set(...[left, right].map((x) => stepRange.valueAt(x - plot.left, plot.width)));
  // A row that was only touched is taken whole.
  if (isTall) {
    const [first, last] = [top, bottom].map((y) => rowRange.valueAt(y - plot.top, plot.height));
    rowRange.set(Math.floor(first), Math.ceil(last));
  }
  heatmap.viewed();
}

function clusterAt({ plot, clusters }, x, y) {
  if (plot === null || y >= plot.top) return null;
  return clusters.find((cluster) => Math.abs(plot.left + cluster.x - x) <= MARK_REACH + 2) ?? null;
}

function rowAt({ plot, rows }, y) {
  if (plot === null || y < plot.top || y >= plot.top + plot.height) return null;
  return rows[Math.floor(plot.rowRange.valueAt(y - plot.top, plot.height))] ?? null;
}

function pointAt(heatmap, x, y, event) {
  const { plot, overlay, host } = heatmap;
  if (plot === null) return;
  const isBeside = x < plot.left;
  const cell = isBeside ? null : cellAtPoint(heatmap, x, y);
  const cluster = clusterAt(heatmap, x, y);
  const isLink = cluster !== null || (isBeside && rowAt(heatmap, y) !== null);
  overlay.style.cursor = isLink ? "pointer" : cell === null ? "default" : !heatmap.view.isWhole ? "grab" : "crosshair";
  overlay.title = cluster === null ? "" : cluster.marks.map((mark) => mark.label).join("\n");
  if (cell !== null) {
    const near = heatmap.clusters.filter((mark) => Math.abs(plot.left + mark.x - x) <= MARK_REACH);
    cell.marks = near.flatMap((mark) => mark.marks);
  }
  const box = host.getBoundingClientRect();
  const pointer = { x: event.clientX - box.left, y: event.clientY - box.top, clientX: event.clientX, clientY: event.clientY };
  heatmap.activate(cell === null ? null : { cell, x, y, isByKey: false }, pointer);
}

function clickAt(heatmap, x, y) {
  const cluster = clusterAt(heatmap, x, y);
  const row = heatmap.plot !== null && x < heatmap.plot.left ? rowAt(heatmap, y) : null;
  const cell = cellAtPoint(heatmap, x, y);
  if (cluster !== null) heatmap.callbacks.onMark?.(cluster.marks[0]);
  else if (row !== null) heatmap.callbacks.onRow?.(row);
  else if (cell !== null) heatmap.callbacks.onPick?.(cell);
}

function pressKey(heatmap, event) {
  const { rows, series, active, selected } = heatmap;
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (["+", "=", "-", "_", "0"].includes(event.key)) {
    if (event.key === "0") heatmap.reset();
    else heatmap.zoom("+=".includes(event.key) ? KEY_ZOOM : 1 / KEY_ZOOM, cursorX(heatmap));
    return true;
  }
  if (event.key === "Escape" && active !== null) {
    heatmap.activate(null);
    return true;
  }
  if (!rows.length || !series.numColumns) return false;
  const from = active?.cell ?? (selected?.rowIndex >= 0 ? selected : null);
  if (event.key === "Enter" || event.key === " ") {
    if (from === null) return false;
    heatmap.callbacks.onPick?.(cellInRow(heatmap, from.rowIndex, from.column));
    return true;
  }
  const first = { rowIndex: Math.floor(heatmap.rowRange.first), column: firstColumn(heatmap) };
  const to = movedCursor(event, from ?? first, { rows: rows.length, columns: series.numColumns });
  if (to === null) return false;
  walkTo(heatmap, from === null && !["Home", "End"].includes(event.key) ? first : to);
  return true;
}

function firstColumn({ plot }) {
  return plot !== null && plot.columns.count > 0 ? plot.columns.first[0] : 0;
}

function cursorX({ plot, active }) {
  if (plot === null || active === null) return undefined;
  const box = cellBox(plot, active.cell.rowIndex, active.cell.column);
  return (box.left + box.right) / 2;
}

function walkTo(heatmap, { rowIndex, column }) {
  heatmap.reveal(rowIndex, column);
  const { plot, overlay, host } = heatmap;
  if (plot === null) return;
  const cell = cellInRow(heatmap, rowIndex, column);
  const box = cellBox(plot, rowIndex, column);
  const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  const [canvas, outer] = [overlay.getBoundingClientRect(), host.getBoundingClientRect()];
  const [clientX, clientY] = [canvas.left + x, canvas.top + y];
  heatmap.live.textContent = cellText(heatmap.series, cell);
  heatmap.activate({ cell, x, y, isByKey: true }, { x: clientX - outer.left, y: clientY - outer.top, clientX, clientY });
}
