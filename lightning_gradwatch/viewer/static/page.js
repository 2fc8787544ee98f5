// The skeleton of the page: which parts there are, and where each of them stands.

import { element } from "./elements.js";
import { Controls } from "./controls.js";
import { Diagnoses } from "./diagnoses.js";
import { Head } from "./head.js";
import { Inspector } from "./inspector.js";
import { ScaleLegend } from "./scale.js";
import { Tooltip } from "./tooltip.js";

/** Put the parts of the page into `root` and return them by name; `app` is told what a person does with them. */
export function buildPage(root, app) {
  const parts = {
    head: new Head(),
    controls: new Controls(
      (part) => app.change(part),
      () => app.resetZoom(),
    ),
    legend: new ScaleLegend((ends) => app.setEnds(ends)),
    diagnoses: new Diagnoses((run, diagnosis) => app.jump(run, diagnosis)),
    inspector: new Inspector(
      (cell) => app.selectCell(app.state.selected.run, cell),
      () => app.closeInspector(),
    ),
    subject: element("p", { className: "gw-subject" }),
    stack: element("div", { className: "gw-stack" }),
    said: element("p", { className: "gw-unseen gw-said", role: "status", "aria-live": "polite" }),
    blank: element("div", { className: "gw-blank", text: "Reading the runs \u2026" }),
  };
  const column = element("div", { className: "gw-column" }, parts.subject, parts.legend.root, parts.stack);
  const body = element("div", { className: "gw-body" }, column, parts.diagnoses.root);
  parts.main = element("main", { className: "gw-main", hidden: true }, parts.head.root, parts.controls.root, body);
  parts.page = element("div", { className: "gw-page" }, parts.main, parts.blank, parts.inspector.root, parts.said);
  root.replaceChildren(parts.page);
  parts.tooltip = new Tooltip(parts.page);
  return parts;
}
