// The list of what was found: what, since when, why, and the ways out.

import { element, button, copyButton, showOnce, sign } from "./elements.js";
import { counted, formatLog, plainNumber } from "./numbers.js";
import { isOpenFault, isOver, sentence, symptomInWords, worstFirst } from "./runs.js";

// More names are a wall of text; the picture shows them all.
const NAMED_LAYERS = 4;
// The first way out is the best one; a person asks for the others.
const WAYS_SHOWN = 2;

/** The findings of the shown runs. */
export class Diagnoses {
  /** `onJump(run, diagnosis)`: show the view and the step on which it rests. */
  constructor(onJump) {
    this.onJump = onJump;
    this.openOnes = new Set();
    this.visited = new Set();
    this.list = element("div", {});
    this.root = element("aside", { className: "gw-findings", "aria-label": "Findings" }, this.list);
  }

  /** Show the diagnoses of runs: [{name, diagnoses}]. Where there is room, the worst one is open from the start. */
  show(runs) {
    if (!this.runs && window.matchMedia("(min-width: 1101px)").matches) this.openWorst(runs);
    this.runs = runs;
    const number = runs.reduce((sum, run) => sum + run.diagnoses.length, 0);
    this.root.hidden = number === 0;
    const told = JSON.stringify([runs.map((run) => [run.name, run.diagnoses]), [...this.openOnes]]);
    showOnce(this.list, told, () => [
      element("h2", { className: "gw-heading" }, "Findings", element("span", { className: "gw-count", text: String(number) })),
      ...runs.filter((run) => run.diagnoses.length).flatMap((run) => this.part(run, runs.length > 1)),
    ]);
  }

  openWorst(runs) {
    const faults = runs.flatMap((run) => run.diagnoses.filter(isOpenFault).map((diagnosis) => ({ ...diagnosis, run })));
    const [worst] = worstFirst(faults);
    if (worst) this.openOnes.add(cardKey(worst.run, worst));
  }

  /** Open a diagnosis, because it is being shown in the picture. */
  open(run, diagnosis) {
    this.visited.add(cardKey(run, diagnosis));
    this.openOnes.add(cardKey(run, diagnosis));
    this.show(this.runs);
  }

  // The first press leads to the place also where the card is open already; only the next one closes it.
  press(run, diagnosis) {
    const key = cardKey(run, diagnosis);
    if (!this.openOnes.has(key) || !this.visited.has(key)) return this.onJump(run, diagnosis);
    this.openOnes.delete(key);
    return this.show(this.runs);
  }

  part(run, named) {
    const cards = worstFirst(run.diagnoses).map((diagnosis) => this.card(run, diagnosis));
    return [
      named ? element("h3", { className: "gw-finding-run", text: run.name }) : null,
      element("ul", { className: "gw-cards" }, ...cards),
    ].filter(Boolean);
  }

  card(run, diagnosis) {
    const key = cardKey(run, diagnosis);
    const isOpen = this.openOnes.has(key);
    const kind = diagnosis.muted ? "muted" : isOver(diagnosis) ? "over" : diagnosis.severity === "warning" ? "warning" : "notice";
    const head = element(
      "button",
      {
        type: "button",
        className: "gw-card-head",
        "aria-expanded": String(isOpen),
        "data-key": key,
        title: "Show it in the picture",
        on: { click: () => this.press(run, diagnosis) },
      },
      sign(kind),
      element(
        "span",
        { className: "gw-card-words" },
        element("span", { className: "gw-card-meta" }, ...metaOf(diagnosis, kind)),
        element("span", { className: "gw-card-message", text: sentence(diagnosis.message) }),
      ),
    );
    const more = isOpen ? this.details(run, diagnosis) : null;
    return element("li", { className: `gw-card gw-card-${kind}` }, head, more);
  }

  details(run, diagnosis) {
    const layers = diagnosis.layers || [];
    const rest = layers.length - NAMED_LAYERS;
    const where = layers.slice(0, NAMED_LAYERS).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
    const rows = [
      [layers.length === 1 ? "Layer" : "Layers", where],
      ["Measured", sentence(diagnosis.measured)],
      ["Why", sentence(diagnosis.cause)],
    ].filter(([, text]) => text);
    const facts = rows.flatMap(([name, text]) => [element("dt", { text: name }), element("dd", { text })]);
    return element(
      "div",
      { className: "gw-card-more" },
      element("dl", {}, ...facts),
      ...waysOut(diagnosis.remedies || []),
      element(
        "div",
        { className: "gw-card-end" },
        diagnosis.view ? button("Show it in the picture", "quiet", () => this.onJump(run, diagnosis)) : null,
        element("code", { className: "gw-faint", title: "The rule that found it", text: diagnosis.rule }),
      ),
    );
  }
}

function cardKey(run, diagnosis) {
  return [run.name, diagnosis.rule, diagnosis.optimizer, diagnosis.step].join("\n");
}

function metaOf(diagnosis, kind) {
  const over = isOver(diagnosis)
    ? `steps ${plainNumber(diagnosis.step)} to ${plainNumber(diagnosis.recovered_at)}`
    : `since step ${plainNumber(diagnosis.step)}`;
  const single = ["spike", "non_finite"].includes(diagnosis.symptom) && !isOver(diagnosis);
  const when = single ? `step ${plainNumber(diagnosis.step)}` : over;
  const state = { muted: "muted", over: "over" }[kind];
  const again = diagnosis.count > 1 ? `, ${counted(diagnosis.count, "time")} so far` : "";
  return [
    element("b", { text: symptomInWords(diagnosis.symptom) }),
    ` \u00b7 ${diagnosis.severity} \u00b7 ${when}${again}`,
    state ? element("span", { className: "gw-pill", text: state }) : "",
  ];
}

function waysOut(remedies) {
  if (!remedies.length) return [];
  const items = remedies.map((remedy, index) => way(remedy, index));
  const list = element("ol", { className: "gw-ways" }, ...items.slice(0, WAYS_SHOWN));
  const rest = items.slice(WAYS_SHOWN);
  const more = button(`${counted(rest.length, "more way")} out`, "quiet", () => {
    list.append(...rest);
    more.remove();
    rest[0].querySelector("summary, button")?.focus();
  });
  return [element("h4", { text: "Ways out, best first" }), list, rest.length ? more : null];
}

function way(remedy, index) {
  const effect = effectInWords(remedy.effect);
  return element(
    "li",
    {},
    element("div", { className: "gw-way-title", text: capitalWay(remedy.title) }),
    remedy.reason ? element("div", { className: "gw-way-reason", text: sentence(remedy.reason) }) : null,
    effect ? element("div", { className: "gw-way-effect", text: `Rehearsed on a copy: ${effect}` }) : null,
    remedy.code
      ? element(
          "details",
          { open: index === 0 },
          element("summary", { text: "Lines to paste" }),
          element(
            "div",
            { className: "gw-code" },
            element("pre", { tabindex: "0" }, element("code", { text: remedy.code })),
            copyButton("Copy", remedy.code),
          ),
        )
      : null,
  );
}

function capitalWay(title) {
  return /^[a-z]+ /.test(title) ? title.charAt(0).toUpperCase() + title.slice(1) : title;
}

/** Say what a remedy did when it was rehearsed; empty where it was not. */
export function effectInWords(effect) {
  if (!effect) return "";
  const number = (value) =>
    typeof value === "number" ? (value > 0 ? formatLog(Math.log10(value)) : String(value)) : String(value);
  const pair = (name) => [effect[`${name}_before`], effect[`${name}_after`]];
  const parts = [];
  const [first, then] = pair("first_over_last");
  if (first !== undefined && then !== undefined && number(first) !== number(then))
    parts.push(`first/last gradient ${number(first)} \u2192 ${number(then)}`);
  const [before, after] = pair("loss");
  if (before !== undefined && after !== undefined) {
    const steps = effect.steps ? ` in ${counted(effect.steps, "step")}` : "";
    const without = effect.loss_untreated !== undefined ? ` (${number(effect.loss_untreated)} without it)` : "";
    parts.push(`loss ${number(before)} \u2192 ${number(after)}${steps}${without}`);
  }
  return parts.length ? `${parts.join(", ")}.` : "";
}
