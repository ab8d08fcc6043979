/* What failed lately, and why. */

import { make, syncChildren } from "./dom.js";
import { clock, duration, printable } from "./format.js";
import { jobLink, stateBadge } from "./jobcells.js";

const BAD = new Set(["failed", "crashed", "lost"]);
const MOST = 4;

/** The newest jobs that came to a bad end. */
export class Failures {
  constructor(element, model) {
    this._model = model;
    this._list = make("ul", { class: "failures" });
    this._empty = make("p", { class: "empty" }, "No job has failed in what is remembered here.");
    element.append(this._empty, this._list);
  }

  /** Show what the model knows. */
  update() {
    const found = this._newest();
    this._empty.hidden = found.length > 0;
    this._list.hidden = found.length === 0;
    syncChildren(this._list, found, {
      key: (job) => `${this._model.generation} ${job.number}`,
      create: (job) => this._item(job),
    });
  }

  _newest() {
    const { ended } = this._model;
    const found = [];
    for (let index = ended.length - 1; index >= 0 && found.length < MOST; index -= 1) {
      if (BAD.has(ended[index].state)) found.push(ended[index]);
    }
    return found;
  }

  _item(job) {
    const reason = make("p", { class: "reason" }, printable(job.problem ?? ""));
    const facts = `${clock(job.ended, this._model.now())}, after ${duration(job.wall ?? job.ended - (job.started ?? job.received))}`;
    return make(
      "li",
      {},
      make("p", { class: "failure-head" }, stateBadge(job.state), jobLink(job)),
      reason,
      make("p", { class: "faint" }, facts),
    );
  }
}
