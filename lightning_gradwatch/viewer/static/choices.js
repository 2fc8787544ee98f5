// What can be chosen for the shown runs, and the scale that follows from a choice. Pure functions.

import { isOpenFault } from "./runs.js";
import { keyOfEnds } from "./state.js";
import { columnEdges, newestStep } from "./view.js";

// Ours: a layer that moves by three decades from its own median has changed its behavior.
const RELATIVE_ENDS = [-3, 3];

/** Return the quantities that the runs have, in the order of their series: {quantity, title, isFaulty}. */
export function quantitiesOf(shown) {
  const found = new Map();
  for (const run of shown) {
    const faulty = new Set(run.diagnoses.filter(isOpenFault).map((diagnosis) => diagnosis.view));
    for (const series of run.series) {
      const known = found.get(series.quantity) || { quantity: series.quantity, title: series.title, isFaulty: false };
      known.isFaulty = known.isFaulty || faulty.has(series.name);
      found.set(series.quantity, known);
    }
  }
  return [...found.values()];
}

/** Return the optimizers that have a quantity: [[number, words], ...]. */
export function optimizersOf(shown, quantity) {
  const found = new Map();
  for (const series of shown.flatMap((run) => run.series)) {
    if (series.quantity === quantity)
      found.set(series.optimizer, `${series.optimizer}${series.optimizer_label ? `: ${series.optimizer_label}` : ""}`);
  }
  return [...found].sort(([a], [b]) => a - b).map(([number, words]) => [String(number), words]);
}

/** Return the recurrent layers of an optimizer: [[name, name], ...]. */
export function modulesOf(shown, { quantity, optimizer }) {
  const near = shown
    .flatMap((run) => run.series)
    .filter((series) => series.quantity === quantity && series.optimizer === optimizer);
  return [...new Set(near.map((series) => series.module || ""))].filter(Boolean).map((name) => [name, name]);
}

/** Return all that can be chosen for runs and a view: {quantities, optimizers, modules}. */
export function choicesOf(shown, view) {
  const optimizers = view ? optimizersOf(shown, view.quantity) : [];
  return { quantities: quantitiesOf(shown), optimizers, modules: view ? modulesOf(shown, view) : [] };
}

/** Return the ends that the pictures have where nobody has written others: the person's thresholds, else fixed ones. */
export function standardEnds(series, relative) {
  if (relative) return RELATIVE_ENDS;
  const own = series.quantity === "norms" ? series : {};
  const low = own.vanishing_threshold > 0 ? Math.log10(own.vanishing_threshold) : series.low;
  const high = own.exploding_threshold > 0 ? Math.log10(own.exploding_threshold) : series.high;
  return low < high ? [low, high] : [series.low, series.high];
}

/** Return the scale of all pictures: {low, high, relative, own}. */
export function scaleOf(series, state) {
  const own = state.ends[keyOfEnds(series.quantity, state.relative)];
  const [low, high] = own || standardEnds(series, state.relative);
  return { low, high, relative: state.relative, own: Boolean(own) };
}

/** Return the levels that a curve is held against: the person's thresholds, else the ends of the colors. */
export function levelsOf(series, scale) {
  const isNorm = series.quantity === "norms";
  const level = (own, end, kind) => {
    if (isNorm && own > 0)
      return { log: Math.log10(own), name: kind === "low" ? "vanishing threshold" : "exploding threshold", kind };
    return scale.relative ? null : { log: end, name: kind === "low" ? "deep blue below" : "deep red above", kind };
  };
  return [level(series.vanishing_threshold, scale.low, "low"), level(series.exploding_threshold, scale.high, "high")].filter(
    Boolean,
  );
}

/** Return the newest step of all series; null where there is none. */
export function newestOf(series) {
  const steps = series.filter((one) => one && one.numColumns).map(newestStep);
  return steps.length ? Math.max(...steps) : null;
}

/** Return from where to where the steps of all series go, their last columns included; null where there is none. */
export function stepsOf(series) {
  const filled = series.filter((one) => one && one.numColumns);
  if (!filled.length) return null;
  return [
    Math.min(...filled.map((one) => one.steps[0])),
    Math.max(...filled.map((one) => columnEdges(one.steps)[one.numColumns])),
  ];
}
