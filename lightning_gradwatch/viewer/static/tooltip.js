// What stands beside the pointer.

import { element } from "./elements.js";
import { formatSteps } from "./numbers.js";
import { readingInWords } from "./words.js";

const TIP_GAP = 14;

/** Shows a cell's layer, steps and value beside the pointer. Screen readers hear the live region instead. */
export class Tooltip {
  constructor(root) {
    this.root = element("div", { className: "gw-tip", "aria-hidden": "true", hidden: true });
    root.append(this.root);
  }

  /** Show a cell of a series at a point of the window; null hides. `marks`: diagnoses of that column. */
  show(cell, series, point, marks = []) {
    this.root.hidden = !cell;
    if (!cell) return;
    const { value, lines } = readingInWords(cell, series.quantity);
    const layers = cell.row?.layers?.length ?? 1;
    const name = series.layers[cell.layer];
    const inside =
      layers > 1 ? [element("div", { className: "gw-tip-line", text: `the most unusual of ${layers} layers in this row` })] : [];
    const kind = series.kinds?.[cell.layer];
    this.root.replaceChildren(
      element("div", { className: "gw-tip-name" }, name, kind ? element("span", { className: "gw-tip-kind", text: kind }) : null),
      element("div", { className: "gw-tip-value" }, element("b", { text: value }), ` ${series.title}`),
      element("div", { className: "gw-tip-line", text: formatSteps(cell.step, cell.lastStep) }),
      ...inside,
      ...lines.map((line) => element("div", { className: "gw-tip-line", text: line })),
      ...marks.map((mark) => element("div", { className: `gw-tip-mark gw-is-${mark.severity}`, text: mark.label })),
    );
    this.place(point);
  }

  place({ x, y }) {
    const { offsetWidth: width, offsetHeight: height } = this.root;
    const left = x + TIP_GAP + width > document.documentElement.clientWidth ? x - TIP_GAP - width : x + TIP_GAP;
    const top = y + TIP_GAP + height > window.innerHeight ? y - TIP_GAP - height : y + TIP_GAP;
    this.root.style.transform = `translate(${Math.max(4, Math.round(left))}px, ${Math.max(4, Math.round(top))}px)`;
  }
}
