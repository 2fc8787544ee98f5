// The numbers as a table: the picture for who cannot see it, and for who wants to sort.

import { element } from "./elements.js";
import { logOf, NOTHING16, STATE_PRESENT } from "./blob.js";
import { formatLog, medianOf } from "./numbers.js";
import { stateInWords } from "./words.js";

const TABLE_COLUMNS = [
  ["place", "Layer", "Layers in forward order, the input layer first"],
  ["last", "Last value", "In the newest column that has one"],
  ["median", "Median", "Over the run"],
  ["least", "Least", "Over the run"],
  ["largest", "Largest", "Over the run"],
  ["words", "State", "What was not finite, or missing, at least once"],
];

/** Return a row of numbers (log10) for each layer: {place, name, last, median, least, largest, words, isAbsent}. */
export function tableRows(series, layers) {
  return layers.map((layer) => {
    const part = (table) => table.subarray(layer * series.numColumns, (layer + 1) * series.numColumns);
    const [median, low, high] = [series.median, series.low16, series.high16].map((table) =>
      part(table).filter((code) => code !== NOTHING16),
    );
    const state = part(series.state).reduce((bits, some) => bits | some, 0);
    return {
      place: layer,
      name: series.layers[layer],
      last: median.length ? logOf(median[median.length - 1]) : NaN,
      median: middleOf(median),
      least: low.length ? logOf(low.reduce((a, b) => Math.min(a, b))) : NaN,
      largest: high.length ? logOf(high.reduce((a, b) => Math.max(a, b))) : NaN,
      words: series.numColumns ? stateInWords(state, series.quantity) : "",
      isAbsent: !(state & STATE_PRESENT),
    };
  });
}

// Codes sort as their numbers do, zero first, and as integers a hundred times as fast.
function middleOf(codes) {
  if (!codes.length) return NaN;
  const sorted = codes.slice().sort();
  return medianOf([sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]].map(logOf));
}

/** Sort rows by a column; what has no number comes last either way. */
export function sortedRows(rows, { column, down }) {
  const sign = down ? -1 : 1;
  const compare = (a, b) => {
    if (column === "words") return sign * a.words.localeCompare(b.words) || a.place - b.place;
    const [first, second] = [a[column], b[column]];
    if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second) || a.place - b.place;
    return (first === second ? 0 : first < second ? -sign : sign) || a.place - b.place;
  };
  return [...rows].sort(compare);
}

/** Build the table of a run. `onSort(sort)`, `onLayer(layer)`. */
export function layerTable({ run, series, layers, sort, onSort, onLayer }) {
  const head = TABLE_COLUMNS.map(([column, name, hint]) => {
    const title = column === "place" && series.quantity === "time" ? "Time step" : name;
    const isSorted = sort.column === column;
    const arrow = isSorted ? (sort.down ? "\u2193" : "\u2191") : "";
    const toggle = () => onSort({ column, down: isSorted ? !sort.down : false });
    const press = element(
      "button",
      { type: "button", title: `${hint}. Click to sort.`, "data-key": `sort ${run} ${column}`, on: { click: toggle } },
      title,
      element("span", { className: "gw-arrow", "aria-hidden": "true", text: arrow }),
    );
    return element(
      "th",
      {
        scope: "col",
        "aria-sort": isSorted ? (sort.down ? "descending" : "ascending") : "none",
        className: column === "place" || column === "words" ? "" : "gw-number",
      },
      press,
    );
  });
  const rows = sortedRows(tableRows(series, layers), sort).map((row) => bodyRow(row, run, onLayer));
  return element(
    "div",
    { className: "gw-table-frame", tabindex: "0", role: "region", "aria-label": `Table of ${run}` },
    element(
      "table",
      { className: "gw-table" },
      element("caption", { text: `${series.title}: ${series.explanation}` }),
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...rows),
    ),
  );
}

// Below each other, 4.0e-12 and 2.4e-12 are compared faster than 4e-12 and 2.4e-12.
function alignedLog(log) {
  return formatLog(log).replace(/^(\d)e/, "$1.0e");
}

function bodyRow(row, run, onLayer) {
  const number = (log) => element("td", { className: "gw-number", text: alignedLog(log) });
  const name = element("button", {
    type: "button",
    className: "gw-link",
    title: "Show its curve",
    "data-key": `row ${run} ${row.name}`,
    text: row.name,
    on: { click: () => onLayer(row.place) },
  });
  const numbers = [row.last, row.median, row.least, row.largest].map(number);
  return element(
    "tr",
    { className: row.isAbsent ? "gw-absent" : "" },
    element("th", { scope: "row" }, name),
    ...numbers,
    element("td", { text: row.words || "finite" }),
  );
}
