/** Reads a series from the block of bytes that `wire.py` has made. */

const BLOB_SCALE = 256;

/** The two numbers that stand for what has no logarithm, and the bits of `state`, as `wire.py` and `windows.py` have them. */
export const NOTHING16 = -32768;
export const ZERO16 = -32767;
export const STATE_PRESENT = 1;
export const STATE_ZERO = 2;
export const STATE_NAN = 4;
export const STATE_INF = 8;

/**
 * Decode a series.
 *
 * @param {ArrayBuffer} buffer Length of the head, head, steps, median, low, high, state.
 * @returns {object} The head's fields, `lastStep`, `numLayers`, `numColumns`, `steps` (Float64Array), `median`, `low16`, `high16`
 *     (Int16Array, [layer * numColumns + column], log10 times 256) and `state` (Uint8Array).
 * @throws {Error} Where the block is shorter than its head says.
 */
export function decodeSeries(buffer) {
  const length = buffer.byteLength < 4 ? 0 : new DataView(buffer).getUint32(0, true);
  if (length === 0 || 4 + length > buffer.byteLength) throw new Error("This series is cut off in its head.");
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const numLayers = head.layers.length;
  const numColumns = head.num_columns;
  const size = numLayers * numColumns;
  const start = 4 + length;
  if (start + 8 * numColumns + 7 * size > buffer.byteLength) {
    throw new Error(`This series is cut off: ${numLayers} layers and ${numColumns} columns do not fit into ${buffer.byteLength} bytes.`);
  }
  const table = (index) => new Int16Array(buffer, start + 8 * numColumns + 2 * size * index, size);
  const steps = new Float64Array(buffer, start, numColumns);
  return {
    ...head,
    // The newest step that is known; a record tells only the first one of its column.
    lastStep: head.last_step ?? steps[numColumns - 1] ?? null,
    numLayers,
    numColumns,
    steps,
    median: table(0),
    low16: table(1),
    high16: table(2),
    state: new Uint8Array(buffer, start + 8 * numColumns + 6 * size, size),
  };
}

/**
 * Return the log10 that a code stands for.
 *
 * @param {number} code An int16 of a series.
 * @returns {number} `-Infinity` for zero, NaN for nothing.
 */
export function logOf(code) {
  if (code === NOTHING16) return NaN;
  return code === ZERO16 ? -Infinity : code / BLOB_SCALE;
}

/**
 * Return the code of a log10, the other way round.
 *
 * @param {number} log A finite log10.
 * @returns {number} An int16 that is neither of the two special ones.
 */
export function codeOf(log) {
  return Math.max(ZERO16 + 1, Math.min(-ZERO16, Math.round(log * BLOB_SCALE)));
}

/**
 * Return the median of a layer over the whole run, against which the relative picture is drawn.
 *
 * @param {object} series A decoded series.
 * @param {number} layer The layer.
 * @returns {number} The code in the middle of those that are finite; `NOTHING16` where none is.
 */
export function typicalOfLayer({ numColumns, median }, layer) {
  const sorted = median.slice(layer * numColumns, (layer + 1) * numColumns).sort();
  let first = 0;
  while (first < numColumns && sorted[first] <= ZERO16) first += 1;
  return first < numColumns ? sorted[first + ((numColumns - first) >> 1)] : NOTHING16;
}
