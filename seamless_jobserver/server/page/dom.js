// Making and renewing elements. Text goes in as text only: names and output may be hostile markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element with attributes, and children that are elements or text. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for a part of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Write text into an element, if it is not there yet: what is not touched keeps a selection. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Give an attribute a value, if it has another. */
export function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/**
 * Make the children of `parent` those of `items`, and keep the elements of items that stay, with
 * their focus. `create` makes the element of an item, `update` renews it.
 */
export function renew(parent, items, keyOf, create, update) {
  const before = parent.kept ?? new Map();
  const kept = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const element = before.get(key) ?? create(item);
    before.delete(key);
    kept.set(key, element);
    update(element, item);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  for (const element of before.values()) element.remove();
  parent.kept = kept;
}

/** Show names and values in a list of definitions. */
export function define(list, pairs) {
  renew(
    list, pairs, ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd")),
    (element, [, value]) => say(element.lastChild, String(value)),
  );
}

/** Buttons of which one is pressed; `chosen` is called with the value of the one that was clicked. */
export function choices(parent, values, present, chosen) {
  for (const [value, words] of values) {
    const button = make("button", { type: "button", "aria-pressed": value === present }, words);
    button.addEventListener("click", () => {
      for (const other of parent.children) set(other, "aria-pressed", other === button);
      chosen(value);
    });
    parent.append(button);
  }
}
