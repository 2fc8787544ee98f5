/** Which color each cell gets: the colors of `report/palette.py`, and others for a dark page. */

const PALETTE_LEVELS = 250;

/** Codes of what is not on the ramp; `CODE_OUTSIDE` is where a run has no step at all. */
export const CODE_BELOW = 250;
export const CODE_ABOVE = 251;
export const CODE_ZERO = 252;
export const CODE_INF = 253;
export const CODE_NAN = 254;
export const CODE_ABSENT = 255;
export const CODE_OUTSIDE = 256;

// Blue to red stays apart in every common color blindness. On paper the middle is beige; on a dark page it is dark, or
// all that is usual would glare, and what is beyond the ends is one step lighter, not darker: further from the middle.
const PALETTE_THEMES = {
  light: {
    ramp: [
      [0.0, 33, 80, 170],
      [0.2, 104, 150, 210],
      [0.35, 172, 196, 218],
      [0.5, 226, 218, 200],
      [0.65, 234, 200, 160],
      [0.8, 228, 142, 98],
      [1.0, 196, 36, 32],
    ],
    special: [[8, 24, 92], [122, 16, 26], [128, 128, 128], [255, 214, 0], [0, 0, 0], [255, 255, 255]],
    nanHatch: [255, 214, 0],
    absentHatch: [190, 190, 190],
    text: {
      ink: "#22252a", faint: "#686d76", paper: "#ffffff", line: "#c9ccd2",
      warning: "#c81018", notice: "#a86400", accent: "#1a56c4",
    },
  },
  dark: {
    ramp: [
      [0.0, 96, 160, 250],
      [0.2, 62, 110, 190],
      [0.35, 54, 78, 118],
      [0.5, 66, 63, 60],
      [0.65, 116, 80, 54],
      [0.8, 186, 96, 54],
      [1.0, 246, 92, 72],
    ],
    special: [[160, 203, 255], [255, 172, 156], [136, 136, 136], [255, 222, 40], [0, 0, 0], [28, 29, 32]],
    nanHatch: [255, 222, 40],
    absentHatch: [70, 72, 78],
    text: {
      ink: "#e4e6ea", faint: "#9ba1ab", paper: "#1c1d20", line: "#4a4d55",
      warning: "#ff6b6b", notice: "#f2b13c", accent: "#7fb2ff",
    },
  },
};

function paletteWord([red, green, blue]) {
  // As ImageData has it on a little-endian machine, which is every one that runs a browser.
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function rampColor(ramp, place) {
  let upper = 1;
  while (upper < ramp.length - 1 && ramp[upper][0] < place) upper += 1;
  const [from, ...first] = ramp[upper - 1];
  const [to, ...second] = ramp[upper];
  const part = (place - from) / (to - from);
  return first.map((channel, index) => Math.round(channel + part * (second[index] - channel)));
}

/**
 * Return the colors of a theme.
 *
 * @param {"light" | "dark"} theme The page's.
 * @returns {{rgb: number[][], words: Uint32Array, nanHatch: number, absentHatch: number}} `rgb` and `words` by code: 250
 *     levels of the ramp, below, above, zero, infinity, NaN, absent; a word is a pixel of an ImageData.
 */
export function scaleColors(theme) {
  const colors = PALETTE_THEMES[theme === "dark" ? "dark" : "light"];
  const rgb = [];
  for (let level = 0; level < PALETTE_LEVELS; level += 1) rgb.push(rampColor(colors.ramp, level / (PALETTE_LEVELS - 1)));
  rgb.push(...colors.special);
  return {
    rgb,
    words: Uint32Array.from([...rgb.map(paletteWord), 0]),
    nanHatch: paletteWord(colors.nanHatch),
    absentHatch: paletteWord(colors.absentHatch),
  };
}

/**
 * Return the colors of text and lines, as CSS has them.
 *
 * @param {"light" | "dark"} theme The page's.
 * @returns {{ink: string, faint: string, paper: string, line: string, warning: string, notice: string, accent: string}}
 */
export function themeColors(theme) {
  return PALETTE_THEMES[theme === "dark" ? "dark" : "light"].text;
}

/**
 * Return the code of a log10 on a scale.
 *
 * @param {number} log A finite log10, or a difference of two.
 * @param {number} low The end of the blue side.
 * @param {number} high The end of the red side.
 * @returns {number} 0 to 249, `CODE_BELOW` or `CODE_ABOVE`.
 */
export function colorCode(log, low, high) {
  if (log < low) return CODE_BELOW;
  if (log > high) return CODE_ABOVE;
  return Math.round(((log - low) / (high - low)) * (PALETTE_LEVELS - 1));
}

/**
 * Return a color as CSS has it.
 *
 * @param {number[]} rgb Red, green, blue.
 * @returns {string} Such as `rgb(1, 2, 3)`.
 */
export function cssColor(rgb) {
  return `rgb(${rgb.join(", ")})`;
}

/**
 * Whether the hatch of a special state covers a pixel; the same stripes as in `report/palette.py`, in CSS pixels.
 *
 * @param {number} code `CODE_NAN` or `CODE_ABSENT`.
 * @param {number} x In CSS pixels.
 * @param {number} y In CSS pixels.
 * @returns {boolean}
 */
export function isHatched(code, x, y) {
  if (code === CODE_NAN) return (x + y) % 6 < 2;
  return (((x - y) % 8) + 8) % 8 < 1;
}
