// The scale of the colors, whose ends a person can write, and what the special colors mean.

import { element, button } from "./elements.js";
import {
  CODE_ABOVE,
  CODE_ABSENT,
  CODE_BELOW,
  CODE_INF,
  CODE_NAN,
  CODE_ZERO,
  cssColor,
  isHatched,
  scaleColors,
} from "./palette.js";
import { formatLog, parseEnd, faultOfEnds } from "./numbers.js";

const SWATCH_SIZE = 14;
// Pixels of the bar that show what lies beyond its ends.
const BEYOND = 8;
const SPECIAL_COLORS = [
  [CODE_ZERO, "exactly zero"],
  [CODE_NAN, "NaN"],
  [CODE_INF, "+infinity"],
  [CODE_ABSENT, "no value (frozen, unused, \u2026)"],
];

/** The legend of all pictures: they share one scale. */
export class ScaleLegend {
  /** `onEnds([low, high] | null)`: the person has written ends, or wants those of the start. */
  constructor(onEnds) {
    this.onEnds = onEnds;
    this.low = this.endField("Lower end of the colors");
    this.high = this.endField("Upper end of the colors");
    this.bar = element("canvas", { className: "gw-scale", width: 256, height: 1, "aria-hidden": "true" });
    this.unit = element("span", { className: "gw-scale-words" });
    this.fault = element("p", { className: "gw-fault", role: "alert", hidden: true });
    this.initial = button("Standard ends", "quiet", () => onEnds(null), { hidden: true });
    this.special = element("ul", { className: "gw-special", "aria-label": "Other colors" });
    [this.small, this.large] = [0, 1].map(() => element("span", { className: "gw-scale-words", "aria-hidden": "true" }));
    const row = element("div", { className: "gw-scale-row" }, this.small, this.low, this.bar, this.high, this.large, this.unit, this.initial);
    this.root = element("div", { className: "gw-legend" }, row, this.special, this.fault);
  }

  endField(label) {
    const field = element("input", {
      type: "text",
      className: "gw-field gw-end",
      "aria-label": label,
      spellcheck: "false",
      autocomplete: "off",
      title: `${label}; write it like 1e-8`,
    });
    field.addEventListener("change", () => this.take());
    return field;
  }

  take() {
    if (this.low.value === this.shown[0] && this.high.value === this.shown[1]) return this.tell(null, null);
    const [low, high] = [this.low, this.high].map((field) => parseEnd(field.value));
    const together = low.error || high.error ? null : faultOfEnds(low.log, high.log);
    this.tell(low.error || together, high.error || together);
    if (low.error || high.error || together) return undefined;
    return this.onEnds([low.log, high.log]);
  }

  tell(low, high) {
    this.fault.textContent = [...new Set([low, high].filter(Boolean))].join(" ");
    this.fault.hidden = !this.fault.textContent;
    this.low.setAttribute("aria-invalid", String(Boolean(low)));
    this.high.setAttribute("aria-invalid", String(Boolean(high)));
  }

  /** Show a scale: {low, high, relative, own, theme}; `own`: the ends are the person's. */
  show({ low, high, relative, own, theme }) {
    const shown = [formatLog(low, 3), formatLog(high, 3)];
    if (this.shown?.join() !== shown.join()) {
      [this.low.value, this.high.value] = shown;
      this.tell(null, null);
    }
    this.shown = shown;
    this.initial.hidden = !own;
    [this.small.textContent, this.large.textContent] = relative ? ["smaller", "larger"] : ["vanishing", "exploding"];
    this.unit.textContent = relative ? "times the layer\u2019s own median" : "";
    if (this.theme === theme) return;
    this.theme = theme;
    paintScale(this.bar, scaleColors(theme).rgb);
    this.special.replaceChildren(...SPECIAL_COLORS.map(([code, words]) => element("li", {}, swatchOf(code, theme), words)));
  }
}

function paintScale(canvas, rgb) {
  const pen = canvas.getContext("2d");
  const inner = canvas.width - 2 * BEYOND;
  for (let x = 0; x < canvas.width; x += 1) {
    const place = Math.round(((x - BEYOND) / (inner - 1)) * (CODE_BELOW - 1));
    const code = x < BEYOND ? CODE_BELOW : place >= CODE_BELOW ? CODE_ABOVE : place;
    pen.fillStyle = cssColor(rgb[code]);
    pen.fillRect(x, 0, 1, 1);
  }
}

function swatchOf(code, theme) {
  const { rgb, nanHatch, absentHatch } = scaleColors(theme);
  const canvas = element("canvas", { className: "gw-swatch", width: SWATCH_SIZE, height: SWATCH_SIZE, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  pen.fillStyle = cssColor(rgb[code]);
  pen.fillRect(0, 0, SWATCH_SIZE, SWATCH_SIZE);
  const word = { [CODE_NAN]: nanHatch, [CODE_ABSENT]: absentHatch }[code];
  if (word === undefined) return canvas;
  pen.fillStyle = cssColor([word & 255, (word >> 8) & 255, (word >> 16) & 255]);
  for (let x = 0; x < SWATCH_SIZE; x += 1) {
    for (let y = 0; y < SWATCH_SIZE; y += 1) if (isHatched(code, x, y)) pen.fillRect(x, y, 1, 1);
  }
  return canvas;
}
