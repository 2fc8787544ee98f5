// What is around the page: TensorBoard, a notebook, a browser window.

/** Tell "light" or "dark", now and whenever it changes. TensorBoard does not say it, but its body has a class. */
export function watchTheme(onTheme) {
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  const body = bodyOfTensorBoard();
  const tell = () => {
    const dark = body ? body.classList.contains("dark-mode") : preference.matches;
    onTheme(dark ? "dark" : "light");
  };
  preference.addEventListener("change", tell);
  const observer = new MutationObserver(tell);
  if (body) observer.observe(body, { attributes: true, attributeFilter: ["class"] });
  tell();
  return () => {
    preference.removeEventListener("change", tell);
    observer.disconnect();
  };
}

// Only TensorBoard's own page is asked; another site's frame may not be looked into.
function bodyOfTensorBoard() {
  try {
    const inside = window.location.pathname.endsWith("plugin_entry.html") && window.parent !== window;
    return inside ? window.parent.document.body : null;
  } catch {
    return null;
  }
}

/**
 * Call back when the person presses TensorBoard's reload button. TensorBoard speaks JSON over a message channel:
 * each message is a request ({type, id, payload}) that wants an answer, or the answer to one.
 */
export function watchReload(onReload) {
  if (!bodyOfTensorBoard()) return;
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return;
    }
    if (message.isReply) return;
    channel.port1.postMessage(JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }));
    if (message.type === "experimental.DataReloaded") onReload();
  };
  window.parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
}

/** Call back when the page has another width or its window another height, as when a hidden tab is shown. */
export function watchSize(page, onSize) {
  const measure = () => `${page.clientWidth} ${window.innerHeight}`;
  let known = measure();
  const look = () => {
    const now = measure();
    if (now === known) return;
    known = now;
    onSize();
  };
  new ResizeObserver(look).observe(page);
  window.addEventListener("resize", look);
}

/** Tell whether a person can see the page; TensorBoard hides the frame of another tab by giving it no height. */
export function isShown() {
  return document.visibilityState === "visible" && document.documentElement.clientWidth > 0 && window.innerHeight > 0;
}

/** Keep a text in the browser; a private window or a file may refuse, and then nothing is kept. */
export function keepText(key, text) {
  try {
    window.localStorage.setItem(key, text);
  } catch {
    return;
  }
}

/** Return a kept text, null where there is none. */
export function keptText(key) {
  try {
    return window.localStorage.getItem(key);
  } catch {
    return null;
  }
}
