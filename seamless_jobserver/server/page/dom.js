/* Makes and updates elements. Text goes in as text nodes only: names and output may be markup. */

const SVG = "http://www.w3.org/2000/svg";
const shown = new WeakMap();

/** Make an element; attributes that are null or false are left out, children may be text. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Set the text of an element, if it is another one. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set an attribute, if it is another one; null takes it away. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Make the children of `parent` be those of `items`, in order. Children that stay are not touched
 * unless they move, so focus, selection and scroll position survive.
 */
export function syncChildren(parent, items, { key, create, update }) {
  const old = shown.get(parent) ?? new Map();
  const wanted = new Map(items.map((item) => [key(item), item]));
  for (const [name, element] of old) if (!wanted.has(name)) element.remove();
  const next = new Map();
  let place = parent.firstElementChild;
  for (const [name, item] of wanted) {
    const element = old.get(name) ?? create(item);
    update?.(element, item);
    next.set(name, element);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  shown.set(parent, next);
}

/** Run `build` for the content of `element` only when `value` is not what it was the last time. */
export function whenChanged(element, value, build) {
  const text = JSON.stringify(value) ?? "";
  if (shown.get(element) === text) return;
  shown.set(element, text);
  element.replaceChildren(...build(value));
}

/** A list of terms and what they are; entries without a value are left out. */
export function terms(entries) {
  return entries
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([term, ...value]) => make("div", {}, make("dt", {}, term), make("dd", {}, ...value)));
}

/** A table that scrolls on its own when there is no room for it, also by keyboard. */
export function scrollingTable(label, columns, body) {
  const heads = columns.map(([name, kind]) => make("th", { scope: "col", class: kind ?? null }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  const region = make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, table);
  const measure = () => region.classList.toggle("more", region.scrollWidth > region.clientWidth + 1);
  const observer = new ResizeObserver(measure);
  observer.observe(region);
  observer.observe(table);
  return region;
}

/** A text that is there to be copied, with the button that copies it. */
export function copyable(text, what) {
  const code = make("code", { class: "checksum" }, text);
  const told = make("span", { role: "status", class: "aside" });
  const button = make("button", { type: "button", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", async () => setText(told, await copy(code)));
  return make("span", { class: "copyable" }, code, button, told);
}

/** Copy the text of `element`, selecting it; the clipboard is closed to pages without TLS. */
async function copy(element) {
  getSelection().selectAllChildren(element);
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(element.textContent);
    else if (!document.execCommand("copy")) throw new Error("no clipboard");
    return "Copied.";
  } catch {
    return "It is selected: copy it with Ctrl+C.";
  }
}
