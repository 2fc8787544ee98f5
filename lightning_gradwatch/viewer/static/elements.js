// Building the page. Text goes in as text, so that a layer named like a tag stays a name.

/**
 * Make an element. `attributes` may hold plain attributes, `on` (event -> listener), `text` and `className`;
 * null and false leave an attribute out.
 */
export function element(tag, attributes = {}, ...children) {
  return fillElement(document.createElement(tag), attributes, children);
}

/** Make an SVG element, likewise. */
export function drawing(tag, attributes = {}, ...children) {
  return fillElement(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fillElement(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (name === "on") Object.entries(value).forEach(([event, listener]) => made.addEventListener(event, listener));
    else if (name === "text") made.textContent = value;
    else if (name === "className") made.setAttribute("class", value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** Make a button. `look` is one of "quiet", "outlined" and "icon". */
export function button(text, look, onClick, attributes = {}) {
  return element("button", { type: "button", className: `gw-button gw-${look}`, text, on: { click: onClick }, ...attributes });
}

/** Put other content into an element where what it shows has changed; `key` stands for what it shows. */
export function showOnce(host, key, build) {
  if (host.shownKey === key) return;
  host.shownKey = key;
  const focused = host.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  host.replaceChildren(...build());
  if (focused) [...host.querySelectorAll("[data-key]")].find((child) => child.dataset.key === focused)?.focus();
}

/** Make a button that copies a text and says so. */
export function copyButton(label, text) {
  const made = button(label, "outlined", async () => {
    made.textContent = (await copyText(text)) ? "Copied" : "Could not copy: select the text";
    setTimeout(() => (made.textContent = label), 2000);
  });
  return made;
}

/** Put a text on the clipboard; false where the browser refuses. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

// A frame without the clipboard permission, as in a notebook, may still copy what is selected.
function copyBySelection(text) {
  const area = element("textarea", { className: "gw-unseen", "aria-hidden": "true" });
  area.value = text;
  const before = document.activeElement;
  document.body.append(area);
  area.select();
  let done = false;
  try {
    done = document.execCommand("copy");
  } catch {
    done = false;
  }
  area.remove();
  before?.focus?.();
  return done;
}

const SIGNS = {
  warning: "M8 1.2 15.4 14.4H.6Z M7.2 5.8v4.4h1.6V5.8Z M7.2 11.4v1.6h1.6v-1.6Z",
  notice: "M8 .8a7.2 7.2 0 1 1 0 14.4A7.2 7.2 0 0 1 8 .8Z M7.2 7v5h1.6V7Z M7.2 4v1.6h1.6V4Z",
  well: "M8 .8a7.2 7.2 0 1 1 0 14.4A7.2 7.2 0 0 1 8 .8Z M6.9 11.6 3.6 8.3l1.2-1.2 2.1 2.1 4.3-4.3 1.2 1.2Z",
  over: "M8 .8a7.2 7.2 0 1 1 0 14.4A7.2 7.2 0 0 1 8 .8Z M4.4 7.2v1.6h7.2V7.2Z",
  muted: "M8 .8a7.2 7.2 0 1 1 0 14.4A7.2 7.2 0 0 1 8 .8Z M4 5.2 10.8 12l1.2-1.2L5.2 4Z",
};

/** Draw the sign of a severity; its shape says it too, for who does not see the color. */
export function sign(kind) {
  const path = drawing("path", { d: SIGNS[kind] || SIGNS.notice, "fill-rule": "evenodd" });
  return drawing("svg", { viewBox: "0 0 16 16", className: `gw-sign gw-sign-${kind}`, "aria-hidden": "true" }, path);
}
