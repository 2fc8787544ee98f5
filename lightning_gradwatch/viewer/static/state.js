// What a person has chosen: kept when the page is loaded again.

import { matchesQuery } from "./rows.js";

const STATE_VERSION = 1;

/** Return the state of a page that nobody has touched. Empty `runs` and `quantity` mean: choose for me. */
export function freshState() {
  return {
    runs: [],
    quantity: "",
    optimizer: 0,
    module: "",
    relative: false,
    ends: {},
    query: "",
    grouped: false,
    open: [],
    table: false,
    sort: { column: "place", down: false },
    steps: null,
    selected: null,
  };
}

/** Write a state as a text. */
export function encodeState(state) {
  return JSON.stringify({ version: STATE_VERSION, ...state });
}

/** Read a state back; whatever is missing or makes no sense is as in a fresh one. */
export function decodeState(text) {
  const state = freshState();
  let kept;
  try {
    kept = JSON.parse(text);
  } catch {
    return state;
  }
  if (!kept || kept.version !== STATE_VERSION) return state;
  for (const name of Object.keys(state)) if (STATE_CHECKS[name](kept[name])) state[name] = kept[name];
  return state;
}

const isText = (value) => typeof value === "string";
const isFlag = (value) => typeof value === "boolean";
const isTexts = (value) => Array.isArray(value) && value.every(isText);
const isPair = (value) => Array.isArray(value) && value.length === 2 && value.every(Number.isFinite) && value[0] < value[1];
const isRecord = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

const STATE_CHECKS = {
  runs: isTexts,
  quantity: isText,
  optimizer: (value) => Number.isInteger(value) && value >= 0,
  module: isText,
  relative: isFlag,
  ends: (value) => isRecord(value) && Object.values(value).every(isPair),
  query: isText,
  grouped: isFlag,
  open: isTexts,
  table: isFlag,
  sort: (value) => isRecord(value) && isText(value.column) && isFlag(value.down),
  steps: (value) => value === null || isPair(value),
  selected: (value) =>
    value === null || (isRecord(value) && isText(value.run) && isText(value.layer) && Number.isFinite(value.step)),
};

/** Leave out of a kept state what is no more: runs that are gone, and a selection or a zoom in them. */
export function fittedState(state, runs) {
  const names = new Set(runs.map((run) => run.name));
  const shown = state.runs.filter((name) => names.has(name));
  const selected = state.selected && names.has(state.selected.run) ? state.selected : null;
  return { ...state, runs: shown, selected, steps: selected || shown.length || !state.runs.length ? state.steps : null };
}

/** Under which key of the ends a view's own are kept: relative ones are another scale. */
export function keyOfEnds(quantity, relative) {
  return relative ? `${quantity} relative` : quantity;
}

/** Return the part of a state that brings a diagnosis into sight; `about`: the series on which it rests. */
export function stateForDiagnosis(state, about, diagnosis) {
  const isOutside = state.steps && (diagnosis.step < state.steps[0] || diagnosis.step > state.steps[1]);
  return {
    quantity: about.quantity,
    optimizer: about.optimizer,
    module: about.module || "",
    table: false,
    query: matchesQuery(diagnosis.layers?.[0] || "", state.query) ? state.query : "",
    steps: isOutside ? null : state.steps,
  };
}
