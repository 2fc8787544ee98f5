/** What is written at the edges of the picture: names of rows that fit, and which of them. */

import { blocksOf } from "./rows.js";

// Text of 11 pixels needs so much room not to touch its neighbor.
const LABEL_GAP = 12;
const ELLIPSIS = "\u2026";

/**
 * Return what all names begin with, up to a dot, and never a number: the number tells which block it is.
 *
 * @param {string[]} names Labels of rows.
 * @returns {string} Such as `encoder.block.`, or empty.
 */
export function commonPrefix(names) {
  if (names.length < 2) return "";
  let shared = names[0].split(".").slice(0, -1);
  for (const name of names) {
    const parts = name.split(".").slice(0, -1);
    let same = 0;
    while (same < shared.length && shared[same] === parts[same]) same += 1;
    shared = shared.slice(0, same);
  }
  const numbered = shared.findIndex((part) => /\d/.test(part));
  if (numbered >= 0) shared = shared.slice(0, numbered);
  return shared.length ? `${shared.join(".")}.` : "";
}

/**
 * Shorten a dotted name: first words between its last number and its end, then words in front; numbers stay.
 *
 * @param {string} name The name.
 * @param {(text: string) => boolean} fits Whether a text fits.
 * @returns {string}
 */
export function elideName(name, fits) {
  const parts = name.split(".");
  const numbered = parts.map((part, index) => (index < parts.length - 1 && /\d/.test(part) ? index : -1)).filter((index) => index >= 0);
  const center = numbered.length ? numbered[numbered.length - 1] : 0;
  const inside = parts.map((_, index) => index).slice(center + 1, -1);
  const before = parts.map((_, index) => index).slice(0, center);
  const dropped = new Set();
  let text = name;
  for (const index of [...inside, ...before].filter((place) => !numbered.includes(place))) {
    if (fits(text)) return text;
    dropped.add(index);
    const kept = parts.map((part, place) => (dropped.has(place) ? "\0" : part)).join(".");
    text = kept.replace(/\.?(\0\.?)+/g, ELLIPSIS);
  }
  return elideLetters(text, fits);
}

/**
 * Shorten any text from the middle.
 *
 * @param {string} text The text.
 * @param {(text: string) => boolean} fits Whether a text fits.
 * @returns {string}
 */
export function elideLetters(text, fits) {
  if (fits(text)) return text;
  const letters = [...text];
  const end = (keep) => letters.slice(letters.length - Math.floor(keep / 2)).join("");
  const without = (keep) => `${letters.slice(0, Math.ceil(keep / 2)).join("")}${ELLIPSIS}${end(keep)}`;
  let low = 0;
  let high = letters.length - 1;
  while (low < high) {
    const keep = (low + high + 1) >> 1;
    if (fits(without(keep))) low = keep;
    else high = keep - 1;
  }
  return without(low);
}

/**
 * Return what each row is called beside the picture.
 *
 * @param {object[]} rows Of `layerRows`.
 * @returns {{prefix: string, names: string[]}} A layer below an open heading goes without the heading's name.
 */
export function rowNames(rows) {
  const prefix = commonPrefix(rows.map((row) => row.label));
  const names = rows.map(({ label, parent }) => {
    if (parent !== null && parent !== undefined && label.startsWith(`${parent}.`)) return label.slice(parent.length + 1);
    return label.slice(prefix.length);
  });
  return { prefix, names };
}

/**
 * Choose which rows get a label, and which: all where there is room, else the blocks, else every few rows.
 *
 * @param {object[]} rows Of `layerRows`.
 * @param {{prefix: string, names: string[]}} called Of `rowNames`.
 * @param {number} rowHeight In CSS pixels.
 * @returns {{index: number, last: number, text: string, isBlock: boolean}[]} `last`: the last row that the label speaks of.
 */
export function chooseLabels(rows, called, rowHeight) {
  if (rowHeight >= LABEL_GAP) return rows.map((_, index) => ({ index, last: index, text: called.names[index], isBlock: false }));
  const singles = rows.map((_, index) => ({ index, last: index, text: called.names[index], isBlock: false }));
  const isGrouped = rows.some((row) => row.group !== null);
  const first = isGrouped ? singles.filter(({ index }) => rows[index].group !== null) : blockLabels(rows, called.prefix);
  if (first.length < 2) return thinned(singles, rowHeight);
  // What stands alone, such as a head, gets its name where the blocks leave room.
  const covered = new Set(first.flatMap(({ index, last }) => Array.from({ length: last - index + 1 }, (_, more) => index + more)));
  const chosen = thinned(first, rowHeight);
  for (const label of singles.filter(({ index }) => !covered.has(index))) {
    if (chosen.every((other) => Math.abs(labelCenter(other) - labelCenter(label)) * rowHeight >= LABEL_GAP)) chosen.push(label);
  }
  return chosen.sort((a, b) => a.index - b.index);
}

function labelCenter({ index, last }) {
  return (index + last + 1) / 2;
}

// Every second or tenth label looks tidy where rows are alike; the check against the last one is for where they are not.
function thinned(labels, rowHeight) {
  const gaps = labels.slice(1).map((label, place) => (labelCenter(label) - labelCenter(labels[place])) * rowHeight);
  const typical = gaps.sort((a, b) => a - b)[gaps.length >> 1] ?? LABEL_GAP;
  const least = Math.ceil(LABEL_GAP / typical - 1e-9);
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((stride) => stride >= least) ?? least;
  // Block 10 reads better than block 9.
  const round = labels.findIndex(({ text }) => Number(/\d+$/.exec(text)?.[0] ?? NaN) % every === 0);
  const chosen = [];
  for (let place = Math.max(round, 0) % every; place < labels.length; place += every) {
    const before = chosen[chosen.length - 1];
    if (!before || (labelCenter(labels[place]) - labelCenter(before)) * rowHeight >= LABEL_GAP) chosen.push(labels[place]);
  }
  return chosen;
}

// Only where most rows belong to one: else their names would say less than those of the rows.
function blockLabels(rows, prefix) {
  const blocks = blocksOf(rows.map((row) => row.label));
  const labels = [];
  rows.forEach((_, index) => {
    const before = labels[labels.length - 1];
    if (before && before.block === blocks[index] && before.last === index - 1) before.last = index;
    else if (blocks[index] !== "") {
      labels.push({ index, last: index, block: blocks[index], text: blocks[index].slice(prefix.length), isBlock: true });
    }
  });
  const inside = labels.reduce((sum, { index, last }) => sum + last - index + 1, 0);
  return labels.length * 2 <= rows.length && inside * 2 >= rows.length ? labels : [];
}
