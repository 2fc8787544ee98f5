/** Which cells hide an extreme: a value far above or below the median of its window. */

import { ZERO16 } from "./blob.js";
import { EXTREME_DECADES, placeOnScale } from "./raster.js";

/** A value more than `EXTREME_DECADES` above the median, and below it. */
export const EXTREME_ABOVE = 1;
export const EXTREME_BELOW = 2;

/**
 * Whether a cell hides an extreme.
 *
 * @param {object} series A decoded series.
 * @param {number} at Index of the cell, layer * numColumns + column.
 * @returns {number} `EXTREME_ABOVE`, `EXTREME_BELOW`, their sum or 0.
 */
export function extremesAt({ median, low16, high16 }, at) {
  const middle = median[at];
  // A window that was zero more often than not hides whatever was not zero.
  if (middle <= ZERO16) return middle === ZERO16 && high16[at] > ZERO16 ? EXTREME_ABOVE : 0;
  const far = EXTREME_DECADES * 256;
  return (high16[at] - middle > far ? EXTREME_ABOVE : 0) + (middle - low16[at] > far ? EXTREME_BELOW : 0);
}

/**
 * Find the columns that hide extremes.
 *
 * @param {object} series A decoded series.
 * @param {Iterable<number>} layers Those to look at.
 * @returns {Uint8Array} Of each column, what its layers hide.
 */
export function extremeColumns(series, layers) {
  const { numColumns } = series;
  const found = new Uint8Array(numColumns);
  for (const layer of layers) {
    const base = layer * numColumns;
    for (let column = 0; column < numColumns; column += 1) found[column] |= extremesAt(series, base + column);
  }
  return found;
}

/**
 * Return the colors of the extremes that a cell hides; of several layers those of the farthest.
 *
 * @param {object} series A decoded series.
 * @param {number[]} layers That share the cell.
 * @param {number} column Its column.
 * @param {ColorScale} scale The colors.
 * @returns {{above: number | null, below: number | null}} Codes of the palette.
 */
export function extremesOfCell(series, layers, column, scale) {
  const found = { above: null, below: null };
  let [most, least] = [-Infinity, Infinity];
  for (const layer of layers) {
    const at = layer * series.numColumns + column;
    const bits = extremesAt(series, at);
    const code = (value) => scale.codes[placeOnScale(value, scale.shiftOf(layer))];
    if (bits & EXTREME_ABOVE && series.high16[at] > most) [most, found.above] = [series.high16[at], code(series.high16[at])];
    if (bits & EXTREME_BELOW && series.low16[at] < least) [least, found.below] = [series.low16[at], code(series.low16[at])];
  }
  return found;
}
