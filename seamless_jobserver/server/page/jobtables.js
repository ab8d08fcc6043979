/* The longer parts of the page of one job: its error, its pins, the metadata of its run. */

import { make, scrollingTable } from "./dom.js";
import { elapsed, printable, size, undirected } from "./format.js";

/** A section of the page with a title. */
export function card(title, ...content) {
  return make(
    "section",
    { class: "card" },
    make("div", { class: "card-head" }, make("h2", {}, title)),
    ...content,
  );
}

/** What went wrong, in the words of the message that the callers got. */
export function messageCard(message) {
  if (!message) return [];
  return [
    card(
      "Error",
      make(
        "pre",
        { class: "message", tabindex: "0", role: "region", "aria-label": "Error message" },
        undirected(message),
      ),
    ),
  ];
}

/** A table of pins, or what is to be said instead. */
export function pins(list) {
  if (list === null) return [make("p", { class: "empty" }, "Its pins are not known any more.")];
  if (!list.length) return [make("p", { class: "empty" }, "It has no pins.")];
  const rows = list.map(({ name, celltype, subcelltype, checksum }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("bdi", {}, printable(name))),
      make("td", {}, [celltype, subcelltype].filter(Boolean).join(" / ")),
      make("td", {}, make("code", {}, checksum ?? "")),
    ),
  );
  return [
    bounded(scrollingTable("Pins", [["Pin"], ["Cell type"], ["Checksum"]], make("tbody", {}, ...rows))),
  ];
}

/** A table of the metadata of a run. */
export function runtimeCard(runtime) {
  const entries = Object.entries(runtime ?? {});
  if (!entries.length) return [];
  const rows = entries.map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row" }, printable(name)), make("td", {}, measured(name, value))),
  );
  return [
    card("Metadata", bounded(scrollingTable("Metadata", [["Name"], ["Value"]], make("tbody", {}, ...rows)))),
  ];
}

function bounded(table) {
  table.classList.add("bounded");
  return table;
}

function measured(name, value) {
  if (typeof value !== "number") return printable(typeof value === "string" ? value : JSON.stringify(value));
  if (name.endsWith("_bytes") && value >= 1000) return `${size(value)} (${value})`;
  if (name.endsWith("_seconds") && value >= 60) return `${elapsed(value)} (${value})`;
  return String(value);
}
