// How numbers are written, read and fitted. Everything here is a pure function.

// Ours: below and above, a power of ten is read faster than a row of zeros.
const PLAIN_FROM = 0.01;
const PLAIN_TO = 10000;

/**
 * Write the number whose log10 is given, such as "1.2e-8", "0.21" or "0".
 * NaN means that there is no number, and gives a dash.
 */
export function formatLog(log, digits = 2) {
  if (Number.isNaN(log)) return "\u2013";
  if (log === -Infinity) return "0";
  if (log === Infinity) return "+inf";
  const value = 10 ** log;
  if (value >= PLAIN_FROM && value < PLAIN_TO) return plainNumber(Number(value.toPrecision(digits)));
  let exponent = Math.floor(log);
  let mantissa = Number((10 ** (log - exponent)).toPrecision(digits));
  if (mantissa >= 10) {
    mantissa = 1;
    exponent += 1;
  }
  return `${mantissa}e${exponent}`;
}

/** Write a plain number with a comma between thousands, as steps are. */
export function plainNumber(value) {
  const [whole, rest] = String(value).split(".");
  const grouped = whole.length > 4 ? whole.replace(/\B(?=(\d{3})+$)/g, ",") : whole;
  return rest === undefined ? grouped : `${grouped}.${rest}`;
}

/** Write a count with its noun: "1 layer", "20 layers". */
export function counted(number, noun) {
  return `${plainNumber(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Write a step, or the steps that share a column. */
export function formatSteps(first, last) {
  return last > first ? `steps ${plainNumber(first)} to ${plainNumber(last)}` : `step ${plainNumber(first)}`;
}

/** Write a power of ten as an axis does: "1e-8", but "1" and "0.1" as they are. */
export function formatDecade(exponent) {
  return exponent >= -1 && exponent <= 2 ? String(Number((10 ** exponent).toPrecision(1))) : formatLog(exponent);
}

/**
 * Read what a person wrote as an end of the color scale.
 * Returns {log} where it is a number above zero, else {error} with what is wrong and how to write it.
 */
export function parseEnd(text) {
  const written = text
    .trim()
    .replace(/\u2212/g, "-")
    .replace(/^10\^/, "1e");
  if (written === "") return { error: "Write a number, such as 1e-8." };
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written)) {
    return { error: `"${text.trim()}" is not a number. Write it like 1e-8 or 0.001.` };
  }
  const value = Number(written);
  if (value <= 0) return { error: `An end has to be above zero. Got ${text.trim()}; write it like 1e-8.` };
  const log = Math.log10(value);
  return Number.isFinite(log) ? { log } : { error: `${text.trim()} is too large. Write it like 1e5.` };
}

/** Say what is wrong with two ends together; null where nothing is. */
export function faultOfEnds(low, high) {
  if (low < high) return null;
  return `The lower end has to be below the upper one. Got ${formatLog(low, 3)} and ${formatLog(high, 3)}.`;
}

/**
 * Fit a line through log10 numbers by least squares over their positions; what is not finite is left out.
 * `factor` is what the number is multiplied by one position back, 10^-slope; `r2` the share of the variance explained.
 * Returns null with fewer than three numbers, which any line nearly fits.
 */
export function fitAlong(logs) {
  const points = [...logs].map((log, place) => [place, log]).filter(([, log]) => Number.isFinite(log));
  if (points.length < 3) return null;
  const mean = (index) => points.reduce((sum, point) => sum + point[index], 0) / points.length;
  const [middle, level] = [mean(0), mean(1)];
  const sum = (term) => points.reduce((total, [x, y]) => total + term(x - middle, y - level), 0);
  const spread = sum((x) => x * x);
  const variance = sum((x, y) => y * y);
  const slope = sum((x, y) => x * y) / spread;
  const left = sum((x, y) => (y - slope * x) ** 2);
  return {
    slope,
    factor: 10 ** -slope,
    r2: variance > 0 ? 1 - left / variance : 1,
    count: points.length,
    at: (place) => level + slope * (place - middle),
    first: points[0],
    last: points[points.length - 1],
  };
}

/** Choose powers of ten for an axis between two log10 numbers, at most so many. */
export function decadeTicks(low, high, most) {
  const span = Math.max(Math.floor(high) - Math.ceil(low), 0);
  const every = [1, 2, 3, 5, 10, 20, 50, 100].find((step) => span / step + 1 <= most) || 100;
  const ticks = [];
  for (let tick = Math.ceil(low / every) * every; tick <= high; tick += every) ticks.push(tick);
  return ticks;
}

/** Choose round steps for an axis, at most so many, none behind `newest`: the axis may end behind what was trained. */
export function stepTicks(first, last, most, newest = Infinity) {
  if (last <= first) return [first];
  const rough = (last - first) / Math.max(most - 1, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const every = Math.max(1, power * [1, 2, 5, 10].find((factor) => factor * power >= rough));
  const ticks = [];
  for (let tick = Math.ceil(first / every) * every; tick <= Math.min(last, newest); tick += every) ticks.push(tick);
  return ticks;
}

/** Return the middle of log10 numbers, zeros included; NaN where there is none. */
export function medianOf(logs) {
  const known = [...logs].filter((log) => !Number.isNaN(log)).sort((a, b) => a - b);
  if (!known.length) return NaN;
  const [lower, upper] = [known[(known.length - 1) >> 1], known[known.length >> 1]];
  return lower === -Infinity ? upper : (lower + upper) / 2;
}
