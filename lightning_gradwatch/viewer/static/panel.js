// One run: its name, its heatmap or table, and how to read it.

import { element, copyButton, showOnce, sign } from "./elements.js";
import { Heatmap } from "./heatmap.js";
import { layerRows } from "./rows.js";
import { layerTable } from "./table.js";
import { counted, formatSteps } from "./numbers.js";
import { symptomInWords, verdictOn } from "./runs.js";
import { newestStep } from "./view.js";
import { directionInWords } from "./words.js";

const LEAST_HEIGHT = 240;

/**
 * A run on the page. `calls`: {onCell(panel, cell, pointer), onPick(panel, cell), onView(panel, view), onGroup(name),
 * onSort(sort), onMark(panel, index)}.
 */
export class RunPanel {
  constructor(calls) {
    this.calls = calls;
    this.rows = [];
    this.head = element("div", { className: "gw-panel-head" });
    this.host = element("div", { className: "gw-heatmap" });
    this.table = element("div", {});
    this.message = element("p", { className: "gw-message", role: "status", hidden: true });
    this.caption = element("p", { className: "gw-caption" });
    this.root = element("section", { className: "gw-panel" }, this.head, this.message, this.host, this.table, this.caption);
  }

  /**
   * Show {loaded, view, scale, theme, state, steps, whole, newest, share, markdown, live, isAlone}; `share`: of the
   * window's height; `newest`: the last step of all runs that are shown.
   */
  show(model) {
    const { loaded, state } = model;
    const { run, series } = loaded;
    this.model = model;
    this.root.setAttribute("aria-label", `Run ${run.name}`);
    this.showHead(run, model.markdown);
    const fault = this.faultInWords(model);
    this.message.hidden = !fault;
    if (this.message.textContent !== fault) this.message.textContent = fault;
    this.rows = series
      ? layerRows(series.layers, { query: state.query, grouped: state.grouped && !state.table, open: state.open })
      : [];
    const hasPicture = Boolean(series && series.numColumns && this.rows.length);
    this.host.hidden = !hasPicture || state.table;
    this.table.hidden = !hasPicture || !state.table;
    this.caption.hidden = !hasPicture;
    if (!hasPicture) return;
    const [way, not] = directionInWords(series);
    showOnce(this.caption, way + not, () => [
      element("b", { text: "How to read it. " }),
      `${way} `,
      element("span", { className: "gw-not", text: not }),
    ]);
    if (state.table) this.showTable();
    else this.showHeatmap();
  }

  showHead(run, markdown) {
    const { kind, head } = verdictOn(run);
    const series = this.model.loaded.series;
    const size = series
      ? `${counted(series.numLayers, series.quantity === "time" ? "time step" : "layer")}, ${stepsInWords(series)}`
      : "";
    const end = endInWords(run, this.model.live);
    showOnce(this.head, JSON.stringify([run.name, kind, head, size, end, markdown.length, this.model.isAlone]), () =>
      [
        element("h2", { className: "gw-run-name" }, sign(kind), element("span", { text: run.name })),
        this.model.isAlone ? null : element("span", { className: `gw-run-verdict gw-is-${kind}`, text: head }),
        element("span", { className: "gw-faint", text: [size, end].filter(Boolean).join(" \u00b7 ") }),
        markdown ? copyButton("Copy as Markdown", markdown) : null,
      ].filter(Boolean),
    );
  }

  faultInWords({ loaded, view, state }) {
    const { run, about, series, fault } = loaded;
    if (fault && series) return `The newest numbers could not be read; the picture is older. ${fault}`;
    if (fault) return `\u201c${view.title}\u201d of ${run.name} cannot be read. ${fault}`;
    if (!run.series.length && run.disabled) return "There is no picture: GradWatch was switched off before its first reading.";
    if (!run.series.length && run.ended) return "There is no picture: this run has ended without a reading.";
    if (run.diagnoses.length && !run.series.length) return "There is no picture: of this run only the findings are known.";
    if (!run.series.length) return "This run has no readings of GradWatch yet.";
    if (!about) {
      const others = [...new Set(run.series.map((one) => one.title))].join(", ");
      return `This run has no \u201c${view.title}\u201d. It has: ${others}.`;
    }
    if (!series.numColumns) return "No reading so far.";
    if (!layerRows(series.layers, { query: state.query }).length)
      return `No layer\u2019s name has \u201c${state.query}\u201d in it.`;
    if (series.numColumns === 1 && run.ended) return "There is only one reading, so the picture is one column wide.";
    if (series.numColumns === 1)
      return "Only one reading so far, so the picture is one column wide. It grows with the next reading.";
    return "";
  }

  showHeatmap() {
    const { loaded, scale, theme, steps, whole, share, state } = this.model;
    if (!this.heatmap) this.heatmap = this.makeHeatmap();
    this.heatmap.setHeight(Math.round(Math.max(window.innerHeight * share, LEAST_HEIGHT)));
    if (this.shownTheme !== theme) this.heatmap.setTheme(theme);
    this.shownTheme = theme;
    this.heatmap.setScale(scale);
    const key = JSON.stringify([state.query, state.grouped, state.open]);
    if (this.drawn !== loaded.series || this.drawnKey !== key) {
      this.heatmap.show(loaded.series, this.rows);
      [this.drawn, this.drawnKey] = [loaded.series, key];
    }
    // First what there is in all runs, then what is shown of it.
    const wanted = JSON.stringify([whole, steps]);
    if (this.shownSteps !== wanted) [whole, ...(steps ? [steps] : [])].forEach((range) => this.heatmap.setSteps(range));
    this.shownSteps = wanted;
    this.heatmap.setNewest(this.model.newest);
    this.heatmap.setMarks(this.marks());
  }

  makeHeatmap() {
    const { calls } = this;
    return new Heatmap(this.host, {
      onHover: (cell, pointer) => calls.onCell(this, cell, pointer),
      onPick: (cell) => calls.onPick(this, cell),
      onView: (view) => calls.onView(this, view),
      onRow: (row) => (row.group ? calls.onGroup(row.group) : calls.onPick(this, { layer: row.layers[0] })),
      onMark: (mark) => calls.onMark(this, this.model.loaded.run.diagnoses[mark.index]),
    });
  }

  /** Show some steps, because another picture does. */
  setSteps(steps) {
    this.heatmap?.setSteps(steps);
    this.shownSteps = null;
  }

  /** Return the diagnoses of the run as marks. */
  marks() {
    return this.model.loaded.run.diagnoses.map((diagnosis, index) => ({
      step: diagnosis.step,
      severity: diagnosis.muted ? "notice" : diagnosis.severity,
      label: symptomInWords(diagnosis.symptom),
      index,
    }));
  }

  showTable() {
    const { loaded, state } = this.model;
    const layers = this.rows.flatMap((row) => row.layers);
    showOnce(this.table, [loaded.about.version, loaded.about.name, state.query, JSON.stringify(state.sort)].join("\n"), () => [
      layerTable({
        run: loaded.run.name,
        series: loaded.series,
        layers,
        sort: state.sort,
        onSort: this.calls.onSort,
        onLayer: (layer) => this.calls.onPick(this, { layer }),
      }),
    ]);
  }

  /** Mark a cell: {layer, column}; null for none. */
  select(cell) {
    if (!this.heatmap || !this.drawn) return;
    const rowIndex = cell ? this.rows.findIndex((row) => row.layers.includes(cell.layer) && !(row.group && row.isOpen)) : -1;
    this.heatmap.select(rowIndex < 0 ? null : { ...cell, rowIndex });
  }

  /** Leave the page. */
  destroy() {
    this.heatmap?.destroy();
    this.root.remove();
  }
}

function endInWords(run, isLive) {
  if (run.ended?.error) return `ended by an error: ${run.ended.error}`;
  return run.ended || !isLive ? "" : "no end of training seen yet";
}

function stepsInWords(series) {
  return series.numColumns ? formatSteps(series.steps[0], newestStep(series)) : "no reading";
}
