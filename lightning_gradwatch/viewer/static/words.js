// What a person reads about a cell, a layer and a picture. Pure functions.

import { STATE_PRESENT, STATE_ZERO, STATE_NAN, STATE_INF, logOf } from "./blob.js";
import { formatLog, formatSteps } from "./numbers.js";
import { lastStepOf } from "./view.js";

/** Say why there is no number. */
export const ABSENT_IN_WORDS = "no gradient: frozen, unused, or another optimizer\u2019s";

/** Say what was seen beside plain numbers; empty where nothing was. `state`: bits of a window. */
export function stateInWords(state, quantity = "norms") {
  if (!(state & STATE_PRESENT)) return quantity === "signal" || quantity === "time" ? "not measured" : ABSENT_IN_WORDS;
  const seen = [];
  if (state & STATE_NAN) seen.push("NaN");
  if (state & STATE_INF) seen.push("+infinity");
  if (state & STATE_ZERO) seen.push("exactly zero");
  return seen.join(", ");
}

/** Return what a series holds of a layer in a column. */
export function readingOf(series, layer, column) {
  const at = layer * series.numColumns + column;
  return {
    step: series.steps[column],
    lastStep: lastStepOf(series, column),
    value: logOf(series.median[at]),
    low: logOf(series.low16[at]),
    high: logOf(series.high16[at]),
    state: series.state[at],
  };
}

/** Return the column that holds a step; the first one for a step before it. */
export function columnAt(series, step) {
  let [low, high] = [0, series.numColumns - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (series.steps[middle] <= step) low = middle;
    else high = middle - 1;
  }
  return Math.max(low, 0);
}

/** Write a reading as [value, more lines]: "1.2e-8", then the range and what else was seen. */
export function readingInWords(reading, quantity) {
  const words = stateInWords(reading.state, quantity);
  const broken = reading.state & STATE_NAN ? "NaN" : reading.state & STATE_INF ? "+inf" : "";
  const value = Number.isNaN(reading.value) ? broken || "no value" : formatLog(reading.value);
  const lines = [];
  const spread = reading.high - reading.low > 0.02 || (reading.low === -Infinity && reading.high > -Infinity);
  if (spread) lines.push(`between ${formatLog(reading.low)} and ${formatLog(reading.high)} in these steps`);
  if (words && words !== value) lines.push(words);
  return { value, lines };
}

/** Say in one line what a cell shows, for who cannot see the picture. */
export function cellInWords(name, reading, series) {
  const { value, lines } = readingInWords(reading, series.quantity);
  return [`${name}, ${formatSteps(reading.step, reading.lastStep)}: ${series.title} ${value}`, ...lines].join(", ");
}

/** Say which layer is on top. */
export function onTopInWords(series) {
  return series.quantity === "time" ? "First time step on top." : "Input layer on top.";
}

/** Say how a picture is read, and that depth is not training time: [which way, what is no such thing]. */
export function directionInWords(series) {
  const training = "From left to right training goes on";
  const told = {
    time: [
      "The gradient travels from the last time step, at the bottom, up to the first one. It vanishes or explodes if it shrinks or grows on that way, from row to row.",
      `${training}; a change in that direction is neither.`,
    ],
    signal: [
      "The signal travels from the input layer, on top, down to the output. It fades or blows up if it shrinks or grows on that way, from row to row.",
      `${training}; a change in that direction is neither.`,
    ],
    updates: [
      "Compare the rows: those that are much bluer than the others hardly learn, those that are much redder are thrown about.",
      `${training}; steps usually become smaller then, which is no fault.`,
    ],
  };
  const gradient = [
    "The gradient travels from the loss, below the picture, up to the input layer, on top. It vanishes or explodes if it shrinks or grows on that way, along depth, from row to row.",
    `${training}; a change in that direction is neither.`,
  ];
  return told[series.quantity] || gradient;
}

/** Tell whether a line through the layers says something about depth, and which way the quantity travels. */
export function travelOf(quantity) {
  return { norms: "back", delta: "back", time: "back", signal: "on" }[quantity] || null;
}
