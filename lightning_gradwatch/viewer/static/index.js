// What TensorBoard calls.

import { App } from "./app.js";
import { HttpSource } from "./source.js";

/** Draw the tab. The canvas reads the colors of the style sheet, so that is awaited. */
export async function render() {
  document.title = "GradWatch";
  document.documentElement.lang = "en";
  // Relative to the address that TensorBoard gives the frame as its base.
  await styled("./static/style.css");
  await new App(document.body, new HttpSource()).start();
}

function styled(address) {
  return new Promise((done) => {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = address;
    link.onload = done;
    link.onerror = done;
    document.head.append(link);
  });
}
