/* The pieces by which a job is shown wherever it appears: its link, its state, its running clock. */

import { make } from "./dom.js";
import { STATES, elapsed, jobName, short } from "./format.js";

/** The address of a job on this page. */
export function jobAddress(checksum) {
  return `#/jobs/${checksum}`;
}

/** A link to a job, by its name and short checksum. */
export function jobLink(job) {
  return make(
    "a",
    { class: "job-link", href: jobAddress(job.checksum) },
    make("bdi", { class: "job-name" }, jobName(job)),
    " ",
    make("code", {}, short(job.checksum)),
  );
}

/** The state of a job as sign, word and colour. */
export function stateBadge(state) {
  const { word, sign } = STATES[state];
  return make(
    "span",
    { class: "state", "data-state": state },
    make("span", { class: "sign", "aria-hidden": "true" }, sign),
    word,
  );
}

/** A clock that counts from `since`; `tick` moves it. */
export function runningClock(since, now) {
  return make("span", { class: "clock", "data-since": since }, elapsed(now - since));
}

/** Bring all clocks inside `root` up to `now`. */
export function tick(root, now) {
  for (const element of root.querySelectorAll("[data-since]")) {
    const text = elapsed(now - Number(element.dataset.since));
    if (element.textContent !== text) element.textContent = text;
  }
}
