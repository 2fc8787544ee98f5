// The top of the page: the verdict, what is being looked at, and what went wrong with the page itself.

import { element, button, copyButton, showOnce, sign } from "./elements.js";
import { verdictOn } from "./runs.js";

/** The verdict on the shown runs, as sentences. */
export class Head {
  constructor() {
    this.verdicts = element("div", { className: "gw-verdicts" });
    this.pulse = element("span", { className: "gw-pulse" });
    this.trouble = element("p", { className: "gw-trouble", role: "alert", hidden: true });
    this.root = element("header", { className: "gw-head" }, this.verdicts, this.pulse, this.trouble);
  }

  /** Show the verdicts on runs. */
  show(shown) {
    const rank = { warning: 0, notice: 1, well: 2 };
    const verdicts = shown.map((run) => ({ name: run.name, ...verdictOn(run) })).sort((a, b) => rank[a.kind] - rank[b.kind]);
    showOnce(this.verdicts, JSON.stringify(verdicts), () =>
      verdicts.map(({ name, kind, head, text }, index) =>
        element(
          index ? "p" : "h1",
          { className: `gw-verdict gw-verdict-${kind}` },
          sign(kind),
          element(
            "span",
            {},
            element("b", { text: `${head}. ` }),
            text,
            element("span", { className: "gw-verdict-run", text: name }),
          ),
        ),
      ),
    );
  }

  /** Say when the page last looked; empty where it does not look by itself. */
  looked(text) {
    this.pulse.textContent = text;
    this.pulse.hidden = !text;
  }

  /** Say what is wrong with the page's source; empty where nothing is. */
  tell(text) {
    this.trouble.hidden = !text;
    if (this.trouble.textContent !== text) this.trouble.textContent = text;
  }
}

/** What stands in place of pictures where there is no run: how to get one. */
export function emptyPage(live, onLook) {
  const lines = ["from lightning_gradwatch import GradWatch", "trainer = Trainer(callbacks=[GradWatch()])"];
  const words = live
    ? "No gradients have been recorded in this log directory yet. Add GradWatch() to the Trainer and start training; this page looks again every 5 s."
    : "This file holds no run with gradients. Add GradWatch() to the Trainer, train, and write the report again.";
  return element(
    "div",
    { className: "gw-empty" },
    element("h1", { text: "No data yet" }),
    element("p", { text: words }),
    element(
      "div",
      { className: "gw-code" },
      element("pre", { tabindex: "0" }, element("code", { text: lines.join("\n") })),
      copyButton("Copy", lines.join("\n")),
    ),
    live ? button("Look again now", "outlined", onLook) : null,
  );
}
