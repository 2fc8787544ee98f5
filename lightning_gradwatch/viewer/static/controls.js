// What a person can choose above the pictures.

import { element, button, showOnce, sign } from "./elements.js";
import { counted } from "./numbers.js";
import { MOST_RUNS, verdictOn } from "./runs.js";

// Ours: a list that short is read faster than searched.
const FILTER_FROM = 8;
// Milliseconds: shorter than between two words, longer than between two letters.
const SEARCH_WAIT = 120;

/** The toolbar. It tells `onChange(part of the state)` and `onReset()`. */
export class Controls {
  constructor(onChange, onReset) {
    this.onChange = onChange;
    this.runs = this.runChooser();
    this.quantities = element(
      "fieldset",
      { className: "gw-segments" },
      element("legend", { className: "gw-unseen", text: "Quantity" }),
    );
    this.chips = element("div", { className: "gw-segment-row" });
    this.quantities.append(this.chips);
    this.optimizer = chooser("Optimizer", (value) => onChange({ optimizer: Number(value), selected: null }));
    this.module = chooser("Recurrent layer", (value) => onChange({ module: value, selected: null }));
    this.scale = switcher(
      "Scale",
      [
        ["absolute", "absolute"],
        ["relative", "relative to own median"],
      ],
      (value) => onChange({ relative: value === "relative" }),
    );
    this.look = switcher(
      "Show as",
      [
        ["picture", "picture"],
        ["table", "table"],
      ],
      (value) => onChange({ table: value === "table" }),
    );
    this.search = this.searchField();
    this.grouped = this.groupBox();
    this.reset = button("Reset zoom", "outlined", onReset, { hidden: true });
    const row = (...parts) => element("div", { className: "gw-control-row" }, ...parts);
    this.picture = row(this.search, this.grouped, this.scale.root, this.look.root, this.reset);
    this.root = element(
      "div",
      { className: "gw-controls", role: "region", "aria-label": "Choose what to see" },
      row(this.runs, this.quantities, this.optimizer.root, this.module.root),
      this.picture,
    );
  }

  runChooser() {
    this.runWords = element("span", { className: "gw-runs-words" });
    this.runNews = element("span", { className: "gw-pill gw-new", hidden: true });
    this.runFilter = element("input", {
      type: "search",
      className: "gw-field",
      placeholder: "Find a run",
      "aria-label": "Find a run",
      on: { input: () => this.filterRuns() },
    });
    this.runList = element("div", { className: "gw-runs-list", role: "group", "aria-label": "Runs" });
    this.runHint = element("p", { className: "gw-faint" });
    const summary = element(
      "summary",
      { className: "gw-button gw-outlined" },
      element("span", { className: "gw-faint", text: "Runs" }),
      this.runWords,
      this.runNews,
    );
    const box = element(
      "details",
      { className: "gw-runs" },
      summary,
      element("div", { className: "gw-popover" }, this.runFilter, this.runList, this.runHint),
    );
    document.addEventListener("pointerdown", (event) => box.contains(event.target) || (box.open = false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !box.open) return;
      box.open = false;
      summary.focus();
      event.preventDefault();
    });
    return box;
  }

  filterRuns() {
    const wanted = this.runFilter.value.trim().toLowerCase();
    for (const row of this.runList.children) row.hidden = !row.title.toLowerCase().includes(wanted);
  }

  searchField() {
    this.query = element("input", {
      type: "search",
      className: "gw-field",
      placeholder: "Find layers by name",
      spellcheck: "false",
      "aria-label": "Find layers by name",
      title: "Part of a name; ^ in front means: begins with",
    });
    this.query.addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => {
        this.waiting = null;
        this.onChange({ query: this.query.value.trim() });
      }, SEARCH_WAIT);
    });
    this.found = element("span", { className: "gw-faint", role: "status" });
    return element("div", { className: "gw-search" }, this.query, this.found);
  }

  groupBox() {
    this.groupInput = element("input", {
      type: "checkbox",
      on: { change: () => this.onChange({ grouped: this.groupInput.checked }) },
    });
    return element(
      "label",
      { className: "gw-check", title: "One row for each module; click a module\u2019s name to open it" },
      this.groupInput,
      element("span", { text: "group by module" }),
    );
  }

  /** Show {runs, shown, view, state, quantities, optimizers, modules, isZoomed, found}. */
  show(model) {
    this.showRuns(model);
    this.showQuantities(model);
    // A run without a reading has nothing that could be searched or drawn in another way.
    this.quantities.hidden = this.picture.hidden = !model.quantities.length;
    this.optimizer.show(model.optimizers, String(model.view?.optimizer));
    this.module.show(model.modules, model.view?.module);
    this.scale.show(model.state.relative ? "relative" : "absolute");
    this.look.show(model.state.table ? "table" : "picture");
    this.scale.root.hidden = model.state.table;
    if (document.activeElement !== this.query && !this.waiting) this.query.value = model.state.query;
    this.found.textContent = model.found === null ? "" : counted(model.found, "layer");
    this.groupInput.checked = model.state.grouped;
    const isTime = model.view?.quantity === "time";
    this.grouped.hidden = model.state.table || isTime;
    this.query.placeholder = isTime ? "Find time steps" : "Find layers by name";
    this.reset.hidden = !model.isZoomed || model.state.table;
  }

  showRuns({ runs, shown, newRuns }) {
    const names = shown.map((run) => run.name);
    this.runWords.textContent = names.length > 2 ? `${names.length} of ${runs.length}` : names.join(", ") || "none";
    this.runNews.textContent = newRuns.size ? `${newRuns.size} new` : "";
    this.runNews.hidden = !newRuns.size;
    this.runFilter.hidden = runs.length < FILTER_FROM;
    this.runHint.textContent =
      names.length >= MOST_RUNS
        ? `${MOST_RUNS} runs at most are drawn at once.`
        : runs.length > 1
          ? "Tick several to see them under each other, on one scale."
          : "";
    showOnce(
      this.runList,
      JSON.stringify([runs.map((run) => [run.name, verdictOn(run).kind, newRuns.has(run.name)]), names]),
      () => runs.map((run) => this.runRow(run, names, newRuns.has(run.name))),
    );
    this.filterRuns();
  }

  runRow(run, names, isNew) {
    const isShown = names.includes(run.name);
    const choose = (event) => {
      const chosen = event.target.checked ? [...names, run.name] : names.filter((name) => name !== run.name);
      this.onChange({ runs: chosen.length ? chosen : [run.name] });
    };
    const box = element("input", {
      type: "checkbox",
      "data-key": run.name,
      disabled: !isShown && names.length >= MOST_RUNS,
      on: { change: choose },
    });
    box.checked = isShown;
    const only = button("only", "quiet", () => this.onChange({ runs: [run.name] }), {
      "aria-label": `Show only ${run.name}`,
      "data-key": `only ${run.name}`,
    });
    return element(
      "div",
      { className: "gw-run-row", title: run.name },
      element(
        "label",
        {},
        box,
        sign(verdictOn(run).kind),
        element("span", { text: run.name }),
        isNew ? element("span", { className: "gw-pill gw-new", text: "new" }) : null,
      ),
      only,
    );
  }

  showQuantities({ quantities, view }) {
    showOnce(this.chips, JSON.stringify([quantities, view?.quantity]), () =>
      quantities.map(({ quantity, title, isFaulty }) => {
        const radio = element("input", {
          type: "radio",
          name: "gw-quantity",
          value: quantity,
          "data-key": quantity,
          on: { change: () => this.onChange({ quantity, module: "" }) },
        });
        radio.checked = quantity === view?.quantity;
        const dot = isFaulty
          ? element("span", {
              className: "gw-dot-fault",
              role: "img",
              "aria-label": "an open warning rests on it",
              title: "An open warning rests on it",
            })
          : null;
        return element("label", { className: "gw-segment" }, radio, element("span", {}, title, dot));
      }),
    );
  }
}

function chooser(label, onChoose) {
  const select = element("select", { className: "gw-field", on: { change: () => onChoose(select.value) } });
  const root = element("label", { className: "gw-labeled" }, element("span", { className: "gw-faint", text: label }), select);
  const show = (options, chosen) => {
    root.hidden = options.length < 2;
    showOnce(select, JSON.stringify(options), () => options.map(([value, text]) => element("option", { value, text })));
    select.value = chosen ?? "";
  };
  return { root, show };
}

function switcher(label, options, onChoose) {
  const name = `gw-${label.replace(/\s/g, "-").toLowerCase()}`;
  const radios = options.map(([value]) =>
    element("input", { type: "radio", name, value, on: { change: () => onChoose(value) } }),
  );
  const rows = options.map(([, text], index) =>
    element("label", { className: "gw-segment" }, radios[index], element("span", { text })),
  );
  const root = element(
    "fieldset",
    { className: "gw-segments" },
    element("legend", { className: "gw-unseen", text: label }),
    element("div", { className: "gw-segment-row" }, ...rows),
  );
  const show = (chosen) => radios.forEach((radio) => (radio.checked = radio.value === chosen));
  return { root, show };
}
