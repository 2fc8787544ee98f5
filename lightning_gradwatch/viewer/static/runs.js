// What is said of runs as a whole: which are shown, on which view the page opens, and the verdict. Pure functions.

import { counted, plainNumber } from "./numbers.js";

// So many fit under each other before a person has to scroll far.
const SHOWN_UNASKED = 3;
/** More pictures than that are not drawn at once. */
export const MOST_RUNS = 8;

/** Tell whether a diagnosis is a fault now: a warning that lasts and that nobody has muted. */
export function isOpenFault(diagnosis) {
  return diagnosis.severity === "warning" && !isOver(diagnosis) && !diagnosis.muted;
}

/** Tell whether a diagnosis is over. */
export function isOver(diagnosis) {
  return diagnosis.recovered_at !== null && diagnosis.recovered_at !== undefined;
}

/** Sort diagnoses, the worst first: warnings before notices, open ones before those that are over, muted ones last. */
export function worstFirst(diagnoses) {
  const rank = (one) => (one.muted ? 4 : 0) + (one.severity === "warning" ? 0 : 2) + (isOver(one) ? 1 : 0);
  return [...diagnoses].sort((a, b) => rank(a) - rank(b) || a.step - b.step);
}

/** Choose the runs to show where nobody has: all of up to three, as sigmoid beside ReLU, else the one that began last. */
export function runsToShow(runs, chosen) {
  const known = chosen.map((name) => runs.find((run) => run.name === name)).filter(Boolean);
  if (known.length) return known;
  const telling = runs.filter((run) => run.series.length || run.diagnoses.length || run.disabled);
  // Not the last by name: that need not be the last that began.
  const newest = (some) => some.reduce((one, other) => (beganAt(other) >= beganAt(one) ? other : one));
  if (!telling.length) return runs.length ? [newest(runs)] : [];
  return telling.length <= SHOWN_UNASKED ? telling : [newest(telling)];
}

function beganAt(run) {
  return Math.max(run.began ?? 0, ...run.series.map((series) => series.started || 0));
}

/** Return what one answer of the source has that the one before had not: {runs: names, findings: sentences}. */
export function newsBetween(before, now) {
  const known = new Map(before.map((run) => [run.name, new Set(run.diagnoses.map((one) => `${one.rule} ${one.step}`))]));
  const fresh = (run) => run.diagnoses.filter((one) => !known.get(run.name).has(`${one.rule} ${one.step}`));
  const old = now.filter((run) => known.has(run.name));
  return {
    runs: now.filter((run) => !known.has(run.name)).map((run) => run.name),
    findings: old.flatMap((run) => fresh(run).map((one) => `${run.name}, step ${plainNumber(one.step)}: ${one.message}`)),
  };
}

/** Choose the view: what was chosen, else that on which the worst diagnosis of the shown runs rests. */
export function viewToShow(shown, state) {
  const all = shown.flatMap((run) => run.series);
  if (state.quantity) {
    const near = all.filter((series) => series.quantity === state.quantity);
    const exact = near.find((series) => series.optimizer === state.optimizer && series.module === state.module);
    const found = exact || near.find((series) => series.optimizer === state.optimizer) || near[0];
    if (found) return { ...viewOf(found), reason: null };
  }
  return openingView(shown, all);
}

function openingView(shown, all) {
  const [worst] = worstFirst(shown.flatMap((run) => run.diagnoses.filter((diagnosis) => !diagnosis.muted)));
  const named = worst ? worst.view : shown[0]?.opens_on;
  const found = all.find((series) => series.name === named) || all[0];
  return found ? { ...viewOf(found), reason: worst && worst.view === found.name ? worst : null } : null;
}

/** Return what names a view: quantity, optimizer and, for time, the layer. */
export function viewOf(series) {
  return { quantity: series.quantity, optimizer: series.optimizer, module: series.module || "", title: series.title };
}

/** Return the series of a run that shows a view; null where it has none. */
export function seriesOf(run, view) {
  const same = run.series.filter((series) => series.quantity === view.quantity);
  const exact = (series) => series.optimizer === view.optimizer && (series.module || "") === view.module;
  return same.find(exact) || (same.length === 1 && !view.module ? same[0] : null);
}

/** Say why the page opened on a view; empty where a person has chosen it. */
export function reasonInWords(view) {
  if (!view.reason) return "";
  const word = view.reason.severity === "warning" ? "warning" : "notice";
  const over = isOver(view.reason) ? "earlier " : "";
  const because = `Opened on \u201c${view.title}\u201d, because that is where the ${over}${word} rests`;
  const alone = view.quantity === "delta" ? "; the gradient norm alone may not show it" : "";
  return `${because}${alone}.`;
}

const SYMPTOMS = {
  vanishing: "vanishing gradient",
  exploding: "exploding gradient",
  non_finite: "NaN or infinite gradient",
  spike: "gradient spike",
  dead: "dead layers",
  disconnected: "disconnected layers",
};

/** Name a symptom as a person would. */
export function symptomInWords(symptom) {
  return SYMPTOMS[symptom] || String(symptom || "finding").replace(/_/g, " ");
}

/**
 * Say the verdict on a run: {kind, head, text}. `kind` is "warning", "notice" or "well"; `head` a few words, `text`
 * the sentence.
 */
export function verdictOn(run) {
  if (run.disabled && !run.series.length) {
    return { kind: "warning", head: "GradWatch was switched off", text: sentence(`before its first reading: ${run.disabled}`) };
  }
  if (run.disabled) {
    return { kind: "warning", head: "GradWatch switched itself off", text: sentence(`nothing is known since: ${run.disabled}`) };
  }
  if (run.ended && run.ended.num_readings === 0) {
    return { kind: "notice", head: "No gradient was ever seen", text: "Nothing can be said about this run." };
  }
  const sorted = worstFirst(run.diagnoses);
  const faults = sorted.filter(isOpenFault);
  if (faults.length) {
    const more = faults.length > 1 ? ` And ${counted(faults.length - 1, "more open warning")}.` : "";
    const head = capital(symptomInWords(faults[0].symptom));
    return { kind: "warning", head, text: `${sentence(faults[0].message)}${more}` };
  }
  const notices = sorted.filter((one) => one.severity !== "warning" && !isOver(one) && !one.muted);
  const over = sorted.filter((one) => one.severity === "warning" && isOver(one) && !one.muted);
  if (over.length) {
    const also = notices.length ? ` ${counted(notices.length, "notice")} beside.` : "";
    return {
      kind: "notice",
      head: "No fault now",
      text: `${counted(over.length, "earlier warning")} ${over.length === 1 ? "is" : "are"} over.${also}`,
    };
  }
  if (run.last_step === null && !notices.length) {
    return { kind: "notice", head: "Nothing was measured so far", text: "Nothing can be said about this run yet." };
  }
  const text = notices.length ? `${counted(notices.length, "notice")}.` : seenInWords(run);
  return { kind: notices.length ? "notice" : "well", head: "No faults seen", text };
}

function seenInWords(run) {
  const layers = Math.max(0, ...run.series.filter((series) => series.quantity !== "time").map((series) => series.num_layers));
  return `${counted(layers, "layer")} watched up to step ${plainNumber(run.last_step)}.`;
}

/** Make a sentence of a message: a capital first, a full stop last. */
export function sentence(text) {
  const whole = capital(String(text || "").trim());
  return !whole || /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** Begin with a capital letter. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
