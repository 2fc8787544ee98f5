// What the standalone page runs: the tab of TensorBoard, with the numbers that are in the file.

import { App } from "./app.js";
import { EmbeddedSource } from "./source.js";

new App(document.getElementById("gradwatch"), new EmbeddedSource()).start();
