/** Which steps and rows the picture shows, and where on the screen each of them lies. */

/** Everything between two edges that the picture shows, horizontally or vertically. */
export class AxisRange {
  /** @param {number} least The narrowest that may be shown. */
  constructor(least) {
    this.least = least;
    this.limits = [0, 1];
    this.first = 0;
    this.last = 1;
  }

  /** @returns {boolean} Whether all is shown. */
  get isWhole() {
    return this.first <= this.limits[0] && this.last >= this.limits[1];
  }

  /**
   * Set what there is; what is shown stays where it still lies inside.
   *
   * @param {number} first The lower limit.
   * @param {number} last The upper limit.
   */
  setLimits(first, last) {
    const wasWhole = this.isWhole;
    this.limits = [first, last > first ? last : first + 1];
    if (wasWhole || this.first < this.limits[0] || this.last > this.limits[1]) this.reset();
  }

  /** Show all. */
  reset() {
    [this.first, this.last] = this.limits;
  }

  /**
   * Show a part, moved and cut to what there is.
   *
   * @param {number} first The lower edge.
   * @param {number} last The upper edge.
   */
  set(first, last) {
    const [least, most] = this.limits;
    const width = Math.min(Math.max(last - first, Math.min(this.least, most - least)), most - least);
    const middle = (first + last) / 2;
    this.first = Math.min(Math.max(width >= last - first ? middle - width / 2 : first, least), most - width);
    this.last = this.first + width;
  }

  /**
   * Show a part `factor` times as narrow.
   *
   * @param {number} factor Larger than 1 to see more of less.
   * @param {number} part Where between the edges, 0 to 1, nothing moves.
   */
  zoom(factor, part) {
    const fixed = this.first + part * (this.last - this.first);
    const width = (this.last - this.first) / factor;
    const bounded = Math.min(Math.max(width, this.least), this.limits[1] - this.limits[0]);
    this.set(fixed - part * bounded, fixed + (1 - part) * bounded);
  }

  /** @param {number} part Of the range that is shown, by which to move on. */
  pan(part) {
    const shift = part * (this.last - this.first);
    this.set(this.first + shift, this.last + shift);
  }

  /**
   * @param {number} value A step or row.
   * @param {number} size Of the picture, in pixels.
   * @returns {number} The pixel.
   */
  place(value, size) {
    return ((value - this.first) / (this.last - this.first)) * size;
  }

  /**
   * @param {number} pixel From the picture's edge.
   * @param {number} size Of the picture, in pixels.
   * @returns {number} The step or row there.
   */
  valueAt(pixel, size) {
    return this.first + (pixel / size) * (this.last - this.first);
  }
}

/**
 * Return where each column begins, and where the last one ends.
 *
 * @param {Float64Array} steps First step of each column.
 * @returns {Float64Array} One more; the last column is taken to be as wide as the one before.
 */
export function columnEdges(steps) {
  const count = steps.length;
  const edges = new Float64Array(count + 1);
  edges.set(steps);
  if (count > 0) edges[count] = endOfSteps(steps);
  return edges;
}

function endOfSteps(steps) {
  const last = steps.length - 1;
  return steps[last] + (last > 0 ? Math.max(steps[last] - steps[last - 1], 1) : 1);
}

/**
 * Return the last step that a column speaks of, which is never one that was not trained.
 *
 * A probe of step 50 says nothing of step 51, although its column is as wide as the way to the next.
 *
 * @param {object} series With `steps`, `single` and `lastStep`.
 * @param {number} column The column.
 * @returns {number}
 */
export function lastStepOf({ steps, single, lastStep }, column) {
  const first = steps[column];
  if (single) return first;
  const isLast = column === steps.length - 1;
  return Math.max(first, isLast ? Math.min(lastStep ?? first, endOfSteps(steps) - 1) : steps[column + 1] - 1);
}

/**
 * @param {object} series As for `lastStepOf`.
 * @returns {number | null} The newest step of which it speaks; null where it has no column.
 */
export function newestStep(series) {
  return series.steps.length ? lastStepOf(series, series.steps.length - 1) : null;
}

/**
 * Return the stretches of pixels that show the same things: one wide thing, or all those that share a pixel.
 *
 * Nothing is left out: what is narrower than a pixel still belongs to the one it begins in.
 *
 * @param {Float64Array} edges Where each thing begins, ascending, and where the last one ends.
 * @param {AxisRange} range What is shown.
 * @param {number} size In pixels.
 * @returns {{start: Int32Array, end: Int32Array, first: Int32Array, last: Int32Array, count: number}} Pixels from `start`
 *     up to before `end`, things `first` to `last`, both of them included.
 */
export function segmentsOf(edges, range, size) {
  const first = new Int32Array(size).fill(-1);
  const last = new Int32Array(size).fill(-1);
  const place = (index) => Math.round(range.place(edges[index], size));
  const begin = Math.max(indexAt(edges, range.first), 0);
  for (let index = begin, left = place(begin); index < edges.length - 1 && edges[index] < range.last; index += 1) {
    const right = place(index + 1);
    const from = Math.min(Math.max(left, 0), size - 1);
    const to = Math.min(Math.max(right - 1, from), size - 1);
    for (let pixel = from; pixel <= to; pixel += 1) {
      if (first[pixel] < 0) first[pixel] = index;
      last[pixel] = index;
    }
    left = right;
  }
  return groupPixels(first, last);
}

function groupPixels(first, last) {
  const size = first.length;
  const parts = { start: new Int32Array(size), end: new Int32Array(size), first: new Int32Array(size), last: new Int32Array(size) };
  let count = 0;
  for (let pixel = 0; pixel < size; pixel += 1) {
    if (first[pixel] < 0) continue;
    const before = count - 1;
    if (count > 0 && parts.end[before] === pixel && parts.first[before] === first[pixel] && parts.last[before] === last[pixel]) {
      parts.end[before] = pixel + 1;
      continue;
    }
    parts.start[count] = pixel;
    parts.end[count] = pixel + 1;
    parts.first[count] = first[pixel];
    parts.last[count] = last[pixel];
    count += 1;
  }
  return { ...parts, count };
}

/**
 * Return which thing holds a value.
 *
 * @param {Float64Array} edges Where each thing begins, ascending.
 * @param {number} value A step, say.
 * @returns {number} Its index; -1 before the first, the last edge's index behind the last.
 */
export function indexAt(edges, value) {
  let low = -1;
  let high = edges.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= value) low = middle;
    else high = middle;
  }
  return low;
}

/**
 * Return which stretch of pixels a pixel lies in.
 *
 * @param {object} segments Of `segmentsOf`.
 * @param {number} pixel From the picture's edge.
 * @returns {number} Its index, or -1 where nothing is drawn.
 */
export function segmentAt(segments, pixel) {
  const at = indexAt(segments.start.subarray(0, segments.count), Math.floor(pixel));
  return at >= 0 && pixel < segments.end[at] ? at : -1;
}
