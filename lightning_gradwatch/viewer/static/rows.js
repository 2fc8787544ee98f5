/** Which layers share a row of the picture, and what the row is called. */

// A number that is followed by something names a block: `encoder.block.3` of `encoder.block.3.attention.query`.
function blockOf(name, skipped) {
  const parts = name.split(".");
  for (let index = skipped; index < parts.length - 1; index += 1) {
    if (/^\d+$/.test(parts[index])) return parts.slice(0, index + 1).join(".");
  }
  return parts.length > skipped + 1 ? parts.slice(0, -1).join(".") : "";
}

// Parts that all names begin with tell nothing apart; a model inside `net.0` is still to be cut into its blocks.
function sharedParts(names) {
  if (names.length < 2) return 0;
  const first = names[0].split(".");
  let count = first.length - 1;
  for (const name of names) {
    const parts = name.split(".");
    let same = 0;
    while (same < Math.min(count, parts.length - 1) && parts[same] === first[same]) same += 1;
    count = same;
  }
  return count;
}

/**
 * Return the block of each layer: the name up to its first number, else the module around it.
 *
 * @param {string[]} names Of all layers.
 * @returns {string[]} One a layer; empty for a layer that stands alone.
 */
export function blocksOf(names) {
  const skipped = sharedParts(names);
  const blocks = names.map((name) => blockOf(name, skipped));
  const sizes = new Map();
  for (const block of blocks) sizes.set(block, (sizes.get(block) ?? 0) + 1);
  return blocks.map((block) => (sizes.get(block) > 1 ? block : ""));
}

/**
 * Whether a name answers a search.
 *
 * @param {string} name Of a layer.
 * @param {string} query Words that must all occur, in any case; a word that begins with `^` must begin the name.
 * @returns {boolean}
 */
export function matchesQuery(name, query) {
  const lower = name.toLowerCase();
  const words = (query ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => (word.startsWith("^") ? lower.startsWith(word.slice(1)) : lower.includes(word)));
}

/**
 * Return the rows of the picture, the input layer first.
 *
 * @param {string[]} layers Names in forward order.
 * @param {object} [choice] `query`: a search; `grouped`: a row for each block; `open`: names of the blocks (a Set or a
 *     list) whose layers are drawn below their heading.
 * @returns {{label: string, layers: number[], group: string | null, parent: string | null, isOpen: boolean}[]} A heading
 *     has `group`; a layer below an open heading has `parent`.
 */
export function layerRows(layers, { query = "", grouped = false, open = [] } = {}) {
  const found = layers.map((_, index) => index).filter((index) => matchesQuery(layers[index], query));
  const single = (index, parent) => ({ label: layers[index], layers: [index], group: null, parent, isOpen: false });
  if (!grouped) return found.map((index) => single(index, null));
  const blocks = blocksOf(layers);
  const members = new Map();
  for (const index of found) members.set(blocks[index], [...(members.get(blocks[index]) ?? []), index]);
  const opened = new Set(open);
  const rows = [];
  for (const index of found) {
    const block = blocks[index];
    if (block === "") rows.push(single(index, null));
    if (block === "" || !members.has(block)) continue;
    const inside = members.get(block);
    members.delete(block);
    rows.push({ label: block, layers: inside, group: block, parent: null, isOpen: opened.has(block) });
    if (opened.has(block)) rows.push(...inside.map((member) => single(member, block)));
  }
  return rows;
}
