// The page: asks its source, keeps what a person has chosen, and tells each part what to show.

import { element } from "./elements.js";
import { emptyPage } from "./head.js";
import { Library } from "./library.js";
import { buildPage } from "./page.js";
import { RunPanel } from "./panel.js";
import { layerRows } from "./rows.js";
import { choicesOf, levelsOf, newestOf, scaleOf, stepsOf } from "./choices.js";
import { capital, newsBetween, reasonInWords, runsToShow, viewToShow } from "./runs.js";
import { decodeState, encodeState, fittedState, keyOfEnds, stateForDiagnosis } from "./state.js";
import { cellInWords, columnAt, onTopInWords, readingOf } from "./words.js";
import { isShown, keepText, keptText, watchReload, watchSize, watchTheme } from "./host.js";

const LOOK_EVERY = 5000;
// One picture may be so high, several share the window.
const SHARE_OF_ONE = 0.62;
const SHARE_OF_MANY = 0.36;

/** Everything around the pictures. `root` is emptied; `source` as in source.js. */
export class App {
  constructor(root, source) {
    this.root = root;
    this.source = source;
    this.fetched = new Library(source);
    this.state = decodeState("");
    this.runs = null;
    this.panels = new Map();
    this.loaded = [];
    this.openedRuns = [];
    this.newRuns = new Set();
    this.ticket = 0;
  }

  /** Draw the page, and look again as long as it is open where the source may grow. */
  async start() {
    Object.assign(this, buildPage(this.root, this));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented && this.state.selected) this.closeInspector();
    });
    watchTheme((theme) => this.setTheme(theme));
    await this.look();
    watchSize(this.page, () => this.draw());
    if (!this.source.live) return;
    watchReload(() => this.look());
    setInterval(() => isShown() && this.look(), LOOK_EVERY);
    document.addEventListener("visibilitychange", () => isShown() && this.look());
  }

  setTheme(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    this.draw();
  }

  /** Ask the source once more; what cannot be read is told and asked for again. */
  async look() {
    if (this.looking) return;
    this.looking = true;
    try {
      const told = await this.source.runs();
      this.tell("");
      if (!this.runs) this.restore(told);
      this.announce(told);
      this.runs = told;
    } catch (error) {
      this.tell(
        this.source.live ? `${error.message} This page tries again every 5 s; what is shown is from before.` : error.message,
      );
    } finally {
      this.looking = false;
    }
    await this.refresh();
  }

  tell(text) {
    this.head.tell(text);
    this.trouble = text;
  }

  restore(runs) {
    this.key = `gradwatch ${window.location.pathname} ${this.source.place || ""}`;
    this.state = fittedState(decodeState(keptText(this.key) || ""), runs);
  }

  announce(told) {
    if (!this.runs) return;
    const news = newsBetween(this.runs, told);
    news.runs.forEach((name) => this.newRuns.add(name));
    const words = [...news.runs.map((name) => `New run ${name}`), ...news.findings];
    if (words.length) this.said.textContent = words.join(". ");
  }

  /** Take over a part of the state, and show what follows from it. */
  change(part) {
    if ("runs" in part) this.opened = null;
    this.state = { ...this.state, ...part };
    this.keep();
    return this.refresh();
  }

  keep() {
    if (this.key) keepText(this.key, encodeState(this.state));
  }

  async refresh() {
    this.ticket += 1;
    const mine = this.ticket;
    if (!this.runs) return this.showBlank(this.trouble || "Reading the runs \u2026");
    if (!this.runs.length) return this.showBlank(null);
    // What opened by itself stays while training runs, or it would change under the eyes of who looks.
    const shown = runsToShow(this.runs, this.state.runs.length ? this.state.runs : this.openedRuns);
    shown.forEach((run) => this.newRuns.delete(run.name));
    const view = this.state.quantity || !this.opened ? viewToShow(shown, this.state) : this.opened;
    const loaded = await Promise.all(shown.map((run) => this.fetched.load(run, view)));
    if (mine !== this.ticket) return undefined;
    if (!this.state.quantity) this.opened = view;
    this.openedRuns = shown.map((run) => run.name);
    [this.shown, this.view, this.loaded] = [shown, view, loaded];
    this.fetched.keepOnly(loaded);
    return this.draw();
  }

  showBlank(text) {
    this.main.hidden = true;
    this.blank.hidden = false;
    if (text !== null) this.blank.textContent = text;
    else if (!this.blank.querySelector(".gw-empty")) this.blank.replaceChildren(emptyPage(this.source.live, () => this.look()));
  }

  /** Show everything that is loaded. */
  draw() {
    if (!this.shown || !this.theme || !this.page.clientWidth) return;
    this.main.hidden = false;
    this.blank.hidden = true;
    this.head.show(this.shown);
    this.head.looked(this.source.live && this.shown.some((run) => !run.ended) ? "Updates by itself every 5 s" : "");
    this.diagnoses.show(this.shown);
    const first = this.loaded.find((one) => one.series);
    this.whole = stepsOf(this.loaded.map((one) => one.series));
    this.newest = newestOf(this.loaded.map((one) => one.series));
    const { steps } = this.state;
    // Where the shown runs have no step at all, a zoom would show nothing.
    if (steps && this.whole && (steps[0] >= this.whole[1] || steps[1] <= this.whole[0])) this.state.steps = null;
    this.showControls(first?.series);
    this.legend.root.hidden = !first || this.state.table;
    this.subject.hidden = !first;
    if (first) this.showSubject(first.series);
    this.showPanels(first ? scaleOf(first.series, this.state) : null);
    this.showSelected();
  }

  showControls(series) {
    const { state, view, runs, shown, newRuns } = this;
    const isZoomed = Boolean(state.steps || this.isZoomedIn);
    const found = state.query && series ? layerRows(series.layers, { query: state.query }).length : null;
    this.controls.show({ runs, shown, newRuns, view, state, isZoomed, found, ...choicesOf(shown, view) });
  }

  showSubject(series) {
    const along = series.quantity === "time" && series.module ? ` in ${series.module}` : "";
    const reason = this.state.quantity ? "" : reasonInWords(this.view);
    this.subject.replaceChildren(
      element("b", { text: `${capital(series.title)}${along}` }),
      `: ${series.explanation}. ${onTopInWords(series)} `,
      element("span", { className: "gw-reason", text: reason }),
    );
    this.legend.show({ ...scaleOf(series, this.state), theme: this.theme });
  }

  showPanels(scale) {
    const names = new Set(this.shown.map((run) => run.name));
    for (const [name, panel] of this.panels) {
      if (!names.has(name)) {
        panel.destroy();
        this.panels.delete(name);
      }
    }
    const share = this.loaded.length > 1 ? SHARE_OF_MANY : SHARE_OF_ONE;
    this.loaded.forEach((loaded, place) => {
      const panel = this.panelOf(loaded.run.name);
      if (this.stack.children[place] !== panel.root) this.stack.insertBefore(panel.root, this.stack.children[place] || null);
      const markdown = this.source.markdown?.(loaded.run.name) || "";
      const whole = this.loaded.length > 1 ? this.whole : null;
      panel.show({
        loaded,
        scale,
        theme: this.theme,
        state: this.state,
        view: this.view,
        steps: this.state.steps,
        whole,
        newest: this.newest,
        share,
        markdown,
        live: this.source.live,
        isAlone: this.loaded.length === 1,
      });
    });
  }

  panelOf(name) {
    if (!this.panels.has(name)) {
      const panel = new RunPanel({
        onCell: (from, cell, pointer) => this.hover(from, cell, pointer),
        onPick: (from, cell) => this.selectCell(name, cell),
        onView: (from, view) => this.follow(from, view),
        onGroup: (group) => this.toggleGroup(group),
        onSort: (sort) => this.change({ sort }),
        onMark: (from, diagnosis) => this.jump(from.model.loaded.run, diagnosis),
      });
      this.panels.set(name, panel);
    }
    return this.panels.get(name);
  }

  hover(panel, cell, pointer) {
    const series = panel.model?.loaded.series;
    if (!cell || !series) return this.tooltip.show(null);
    const point = { x: pointer?.clientX ?? pointer?.x ?? 0, y: pointer?.clientY ?? pointer?.y ?? 0 };
    const marks = panel.marks().filter((mark) => mark.step >= cell.step && mark.step <= cell.lastStep);
    return this.tooltip.show(cell, series, point, marks);
  }

  /** Keep all pictures at the steps that a person has zoomed or moved one of them to. */
  follow(from, { first, last, isWhole }) {
    const isAll = !this.whole || (first <= this.whole[0] && last >= this.whole[1]);
    this.state.steps = isAll ? null : [first, last];
    this.isZoomedIn = !isWhole;
    for (const panel of this.panels.values()) if (panel !== from) panel.setSteps(isAll ? this.whole : [first, last]);
    this.controls.reset.hidden = isAll && isWhole;
    this.keep();
    this.showSelected();
  }

  resetZoom() {
    for (const panel of this.panels.values()) panel.heatmap?.reset();
    this.state.steps = null;
    this.isZoomedIn = false;
    this.keep();
    this.draw();
  }

  toggleGroup(group) {
    const open = this.state.open.includes(group) ? this.state.open.filter((name) => name !== group) : [...this.state.open, group];
    this.change({ open });
  }

  setEnds(ends) {
    const key = keyOfEnds(this.view.quantity, this.state.relative);
    const { [key]: _, ...others } = this.state.ends;
    this.change({ ends: ends ? { ...others, [key]: ends } : others });
  }

  /** Open the inspector on a cell of a run: {layer, column}; without a column at the chosen step, else the last one. */
  selectCell(run, cell) {
    if (!cell) return this.closeInspector();
    const series = this.loaded.find((one) => one.run.name === run)?.series;
    if (!series?.numColumns) return undefined;
    const column = cell.column ?? (this.state.selected ? columnAt(series, this.state.selected.step) : series.numColumns - 1);
    this.state.selected = { run, layer: series.layers[cell.layer], step: series.steps[column] };
    this.keep();
    this.said.textContent = cellInWords(series.layers[cell.layer], readingOf(series, cell.layer, column), series);
    return this.showSelected();
  }

  closeInspector() {
    this.state.selected = null;
    this.keep();
    this.showSelected();
  }

  showSelected() {
    const { selected } = this.state;
    for (const [name, panel] of this.panels) if (name !== selected?.run) panel.select(null);
    const loaded = selected && this.loaded.find((one) => one.run.name === selected.run);
    const layer = loaded?.series ? loaded.series.layers.indexOf(selected.layer) : -1;
    this.page.classList.toggle("gw-has-drawer", layer >= 0);
    if (layer < 0) return this.inspector.show(null);
    const { run, series } = loaded;
    const column = columnAt(series, selected.step);
    const panel = this.panels.get(run.name);
    panel?.select({ layer, column });
    const range = this.state.steps || stepsOf([series]);
    const levels = levelsOf(series, scaleOf(series, this.state));
    const [newest, marks] = [this.newest, panel?.marks() || []];
    return this.inspector.show({ run: run.name, series, layer, step: selected.step, range, newest, levels, marks });
  }

  /** Show the view, the layer and the step on which a diagnosis rests. */
  async jump(run, diagnosis) {
    const about = run.series.find((series) => series.name === diagnosis.view);
    this.diagnoses.open(run, diagnosis);
    if (!about) return;
    await this.change(stateForDiagnosis(this.state, about, diagnosis));
    const series = this.loaded.find((one) => one.run.name === run.name)?.series;
    if (!series?.numColumns) return;
    const place = Math.max(series.layers.indexOf(diagnosis.layers?.[0]), 0);
    this.selectCell(run.name, { layer: place, column: columnAt(series, diagnosis.step) });
    this.panels.get(run.name)?.root.scrollIntoView({ block: "nearest" });
  }
}
