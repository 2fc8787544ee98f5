/** The elements that the heatmap lives on. */

const STAGE_LAYER = { position: "absolute", left: "0", top: "0", display: "block" };
const STAGE_UNSEEN = { position: "absolute", width: "1px", height: "1px", overflow: "hidden", clipPath: "inset(50%)" };

/**
 * Put two canvases above each other into a host: the picture, and what follows the pointer.
 *
 * @param {HTMLElement} host Where.
 * @returns {{stage: HTMLElement, picture: HTMLCanvasElement, overlay: HTMLCanvasElement, live: HTMLElement}} `live` is
 *     read out by screen readers when its text changes.
 */
export function makeStage(host) {
  const stage = document.createElement("div");
  const picture = document.createElement("canvas");
  const overlay = document.createElement("canvas");
  const live = document.createElement("div");
  Object.assign(stage.style, { position: "relative", width: "100%", overflow: "hidden" });
  Object.assign(picture.style, STAGE_LAYER);
  // A finger that moves up or down scrolls the page.
  Object.assign(overlay.style, STAGE_LAYER, { touchAction: "pan-y", userSelect: "none" });
  Object.assign(live.style, STAGE_UNSEEN);
  picture.setAttribute("aria-hidden", "true");
  overlay.tabIndex = 0;
  overlay.setAttribute("role", "application");
  overlay.setAttribute("aria-roledescription", "heatmap");
  live.setAttribute("aria-live", "polite");
  stage.append(picture, overlay, live);
  host.append(stage);
  return { stage, picture, overlay, live };
}

/**
 * Give a canvas its size on the screen, in as many pixels as the screen has.
 *
 * @param {HTMLCanvasElement} canvas The canvas.
 * @param {{width: number, height: number, density: number}} size In CSS pixels; device pixels in one of them.
 * @returns {CanvasRenderingContext2D} Scaled to CSS pixels.
 */
export function fitCanvas(canvas, { width, height, density }) {
  const [across, down] = [Math.round(width * density), Math.round(height * density)];
  // Setting a size throws away what is drawn, and takes its time.
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  return context;
}
