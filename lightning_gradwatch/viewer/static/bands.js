/** Which rows share a line of pixels, where there are more rows than lines. */

import { blocksOf } from "./rows.js";
import { segmentsOf } from "./view.js";

/**
 * Return how many rows a block of the network has, so that a line of pixels can show whole blocks or even parts of one.
 *
 * @param {object[]} rows Of `layerRows`.
 * @returns {{size: number, first: number}} The most frequent number, and the row where the first such block begins; 1
 *     where nothing repeats.
 */
export function blockPeriod(rows) {
  const blocks = blocksOf(rows.map((row) => row.label));
  const runs = [];
  blocks.forEach((block, index) => {
    const before = runs[runs.length - 1];
    if (before && block !== "" && before.block === block) before.size += 1;
    else runs.push({ block, first: index, size: 1 });
  });
  const counts = new Map();
  for (const { size } of runs) counts.set(size, (counts.get(size) ?? 0) + size);
  const [size] = [...counts].reduce((best, one) => (one[1] > best[1] ? one : best), [1, 0]);
  return { size, first: runs.find((run) => run.size === size)?.first ?? 0 };
}

/**
 * Return how many rows share a line: as few as fit, but so that blocks and lines begin together again and again.
 *
 * Layers of one block differ by decades. Lines of any other number would catch now these, now those of them, and draw
 * wide bands that the network does not have.
 *
 * @param {number} shown Rows that are in sight.
 * @param {number} lines Lines of pixels.
 * @param {number} period Rows of a block.
 * @returns {number} 1 where each row has a line of its own.
 */
export function rowsPerLine(shown, lines, period) {
  let count = Math.ceil(shown / Math.max(lines, 1));
  while (count > 1 && period % count !== 0 && count % period !== 0) count += 1;
  return Math.max(count, 1);
}

/**
 * Return the stretches of lines, and the rows that each of them shows, as `segmentsOf` does for columns.
 *
 * @param {number} numRows How many rows there are.
 * @param {{size: number, first: number}} period Of `blockPeriod`.
 * @param {AxisRange} range Rows that are in sight.
 * @param {number} lines Lines of pixels.
 * @returns {object} Of `segmentsOf`, with `first` and `last` in rows.
 */
export function bandsOf(numRows, period, range, lines) {
  const count = rowsPerLine(range.last - range.first, lines, period.size);
  const begin = period.first % count;
  const edges = [0];
  for (let row = begin || count; row < numRows; row += count) edges.push(row);
  if (numRows > 0) edges.push(numRows);
  const bands = segmentsOf(Float64Array.from(edges), range, lines);
  for (let band = 0; band < bands.count; band += 1) {
    bands.first[band] = edges[bands.first[band]];
    bands.last[band] = edges[bands.last[band] + 1] - 1;
  }
  return bands;
}
