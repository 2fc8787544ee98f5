/** From the numbers of a series to colored pixels; nothing that is abnormal is averaged away. */

import { NOTHING16, STATE_INF, STATE_NAN, ZERO16, codeOf } from "./blob.js";
import { CODE_ABSENT, CODE_INF, CODE_NAN, CODE_OUTSIDE, CODE_ZERO, colorCode, isHatched } from "./palette.js";

/** How far apart, in decades, two values have to be not to be averaged: a factor of 100, as in `report/palette.py`. */
export const EXTREME_DECADES = 2;
const EXTREME16 = EXTREME_DECADES * 256;
// Values of cells beside the numbers themselves: `NOTHING16` and `ZERO16` as they are, and two from the upper end.
const NAN16 = 32767;
const INF16 = 32766;

/**
 * Put numbers and states together: one value a cell, in which NaN outweighs infinity, and both outweigh the median.
 *
 * @param {object} series A decoded series.
 * @returns {Int16Array} [layer * numColumns + column].
 */
export function cellValues({ median, state }) {
  const values = new Int16Array(median.length);
  for (let at = 0; at < values.length; at += 1) {
    const bits = state[at];
    if (bits & STATE_NAN) values[at] = NAN16;
    else if (bits & STATE_INF) values[at] = INF16;
    else if (bits === 0) values[at] = NOTHING16;
    else values[at] = Math.min(median[at], INF16 - 1);
  }
  return values;
}

/** What turns a value into a color and a rank: the ends of the scale and, in relative mode, each layer's median. */
export class ColorScale {
  /**
   * @param {number} low log10 of the blue end.
   * @param {number} high log10 of the red end.
   * @param {Int32Array | null} typical Of each layer, what to subtract; null for the absolute picture.
   */
  constructor(low, high, typical) {
    Object.assign(this, { low, high, typical, codes: new Uint8Array(65536), ranks: new Float32Array(65536) });
    const middle = codeOf((low + high) / 2);
    for (let value = -32768; value < 32768; value += 1) {
      this.codes[value + 32768] = colorCode(value / 256, low, high);
      this.ranks[value + 32768] = Math.abs(value - middle);
    }
    // What is more abnormal wins a shared pixel: far from the middle, then zero, then infinity, then NaN.
    const special = [[NOTHING16, CODE_ABSENT, -1], [ZERO16, CODE_ZERO, 1e6], [INF16, CODE_INF, 1e7], [NAN16, CODE_NAN, 1e8]];
    for (const [value, code, rank] of special) [this.codes[value + 32768], this.ranks[value + 32768]] = [code, rank];
  }

  /** @returns {number} What to subtract from a layer's values; zero where there is nothing to compare with. */
  shiftOf(layer) {
    const typical = this.typical === null ? 0 : this.typical[layer];
    return typical <= ZERO16 ? 0 : typical;
  }
}

/**
 * Return where a value stands in the tables of a scale.
 *
 * @param {number} value Of `cellValues`, of `high16` or of `low16`.
 * @param {number} shift Of `shiftOf`.
 * @returns {number} 0 to 65535.
 */
export function placeOnScale(value, shift) {
  if (shift === 0 || value <= ZERO16 || value >= INF16) return value + 32768;
  return Math.max(ZERO16 + 1, Math.min(INF16 - 1, value - shift)) + 32768;
}

/**
 * Return the value that stands for neighboring columns of a layer.
 *
 * NaN, infinity and zero outweigh numbers. Numbers within `EXTREME_DECADES` of each other are averaged; else it is the
 * one that is out of line, be it a spike or a drop.
 *
 * @param {Int16Array} cells Of `cellValues`.
 * @param {number} from Index of the first cell.
 * @param {number} to Index of the last one.
 * @returns {number} A value as in `cells`.
 */
export function reduceColumns(cells, from, to) {
  let special = NOTHING16;
  let count = 0;
  let sum = 0;
  let least = INF16;
  let most = ZERO16;
  for (let at = from; at <= to; at += 1) {
    const value = cells[at];
    if (value >= INF16 || value === ZERO16) {
      // Infinity and NaN are larger than any number, and NaN is the largest.
      if (value > special) special = value;
    } else if (value !== NOTHING16) {
      count += 1;
      sum += value;
      if (value < least) least = value;
      if (value > most) most = value;
    }
  }
  if (special !== NOTHING16 || count === 0) return special;
  if (most - least <= EXTREME16) return Math.round(sum / count);
  const above = most - sum / count - (sum / count - least);
  return (Math.abs(above) > 1 ? above : againstNeighbors(cells, from, to, most, least)) >= 0 ? most : least;
}

// Of two values neither is out of line by itself; the columns on both sides tell.
function againstNeighbors(cells, from, to, most, least) {
  const beside = [cells[from - 1], cells[to + 1]].filter((value) => value > ZERO16 && value < INF16);
  if (beside.length === 0) return 0;
  const usual = beside.reduce((sum, value) => sum + value, 0) / beside.length;
  return most - usual - (usual - least);
}

/**
 * Choose the color of every stretch of pixels: of the layers that share it, the most abnormal.
 *
 * @param {Int16Array} cells Of `cellValues`.
 * @param {number} numColumns Of the series.
 * @param {number[][]} bands Layers of each band of pixel rows.
 * @param {object} columns Stretches of pixels, of `segmentsOf`.
 * @param {ColorScale} scale The colors.
 * @returns {Uint8Array} Codes, [band * columns.count + stretch].
 */
export function reduceCells(cells, numColumns, bands, columns, scale) {
  const { count, first, last } = columns;
  const places = new Uint16Array(bands.length * count);
  const { codes, ranks } = scale;
  bands.forEach((layers, band) => {
    const start = band * count;
    for (const layer of layers) {
      const base = layer * numColumns;
      const shift = scale.shiftOf(layer);
      for (let part = 0; part < count; part += 1) {
        const from = base + first[part];
        const to = base + last[part];
        const place = placeOnScale(from === to ? cells[from] : reduceColumns(cells, from, to), shift);
        if (ranks[place] > ranks[places[start + part]]) places[start + part] = place;
      }
    }
  });
  const shown = new Uint8Array(places.length);
  for (let at = 0; at < places.length; at += 1) shown[at] = codes[places[at]];
  return shown;
}

/**
 * Find the layer and column that a pixel shows, by the same choice as `reduceCells`.
 *
 * @param {Int16Array} cells Of `cellValues`.
 * @param {number} numColumns Of the series.
 * @param {number[]} layers That share the pixel.
 * @param {[number, number]} columns The first and last column that share it.
 * @param {number} near The column below the pointer, taken where the columns were averaged.
 * @param {ColorScale} scale The colors.
 * @returns {{layer: number, column: number}}
 */
export function pickCell(cells, numColumns, layers, [first, last], near, scale) {
  let [best, layer, shown] = [-2, layers[0], NOTHING16];
  for (const candidate of layers) {
    const value = reduceColumns(cells, candidate * numColumns + first, candidate * numColumns + last);
    const rank = scale.ranks[placeOnScale(value, scale.shiftOf(candidate))];
    if (rank > best) [best, layer, shown] = [rank, candidate, value];
  }
  const base = layer * numColumns;
  const below = Math.max(first, Math.min(last, near));
  const isNumber = shown > ZERO16 && shown < INF16;
  if (cells[base + below] === shown || (isNumber && Math.abs(cells[base + below] - shown) < EXTREME16)) return { layer, column: below };
  const found = cells.subarray(base + first, base + last + 1).indexOf(shown);
  return { layer, column: found < 0 ? below : first + found };
}

/**
 * Paint codes into pixels.
 *
 * @param {{width: number, words: Uint32Array}} image Pixels to paint, as words of an ImageData.
 * @param {Uint8Array} codes Of `reduceCells`.
 * @param {object} columns Stretches of pixels from left to right.
 * @param {object} rows Stretches of pixels from top to bottom, one a band.
 * @param {{words: Uint32Array, nanHatch: number, absentHatch: number}} colors Of `scaleColors`.
 * @param {number} density Device pixels in a CSS pixel, for the hatches.
 */
export function paintCells(image, codes, columns, rows, colors, density) {
  const { width, words } = image;
  const { count, start, end } = columns;
  words.fill(colors.words[CODE_OUTSIDE]);
  for (let band = 0; band < rows.count; band += 1) {
    const top = rows.start[band] * width;
    const hatched = [];
    for (let part = 0; part < count; part += 1) {
      const code = codes[band * count + part];
      if (code >= CODE_NAN) hatched.push(part);
      const color = colors.words[code];
      const right = top + end[part];
      for (let x = top + start[part]; x < right; x += 1) words[x] = color;
    }
    for (let y = rows.start[band] + 1; y < rows.end[band]; y += 1) words.copyWithin(y * width, top, top + width);
    for (const part of hatched) {
      const code = codes[band * count + part];
      const box = [start[part], end[part], rows.start[band], rows.end[band]];
      hatchBox(image, box, code, code === CODE_NAN ? colors.nanHatch : colors.absentHatch, density);
    }
  }
}

function hatchBox({ width, words }, [left, right, top, bottom], code, color, density) {
  for (let y = top; y < bottom; y += 1) {
    const down = Math.floor(y / density);
    for (let x = left; x < right; x += 1) {
      if (isHatched(code, Math.floor(x / density), down)) words[y * width + x] = color;
    }
  }
}
