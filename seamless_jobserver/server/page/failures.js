/* What failed lately, and why. */

import { make, setText, syncChildren } from "./dom.js";
import { clock, duration, printable, timeRun } from "./format.js";
import { jobLink, stateBadge } from "./jobcells.js";
import { getJson } from "./poller.js";

/** Ends that tell something about a job come before those that only tell that it did not run. */
const RANKS = [["failed", "crashed"], ["lost"]];
const MOST = 4;
const NONE = "No job has failed.";

/** The newest jobs that came to a bad end. */
export class Failures {
  constructor(element, model) {
    this._model = model;
    this._list = make("ul", { class: "failures" });
    this._empty = make("p", { class: "empty" }, NONE);
    element.append(this._empty, this._list);
    this._forget();
  }

  /** Show what the model knows. */
  update() {
    this._note();
    const found = this._newest();
    this._empty.hidden = found.length > 0;
    this._list.hidden = found.length === 0;
    const bad = this._model.total(RANKS.flat());
    setText(this._empty, bad ? `${bad} failed; they are not remembered here any more.` : NONE);
    syncChildren(this._list, found, {
      key: (job) => `${this._model.generation} ${job.number}`,
      create: (job) => this._item(job),
    });
  }

  /** Ask for those that ended before the jobs which are loaded, once for each kind that lacks some. */
  async fetchMissing(signal) {
    this._note();
    for (const states of RANKS) {
      const wanted = Math.min(MOST, this._model.total(states));
      if (this._known(states).length < wanted && !this._asked.has(states)) {
        const query = new URLSearchParams([["limit", MOST], ...states.map((state) => ["state", state])]);
        const { jobs } = await getJson(`jobs?${query}`, signal);
        this._asked.add(states);
        this._older.push(...jobs);
      }
      if (wanted === MOST) break;
    }
  }

  /** Remember the newest ones: the model drops jobs when there are many. */
  _note() {
    const { generation, gaps } = this._model;
    if (this._generation !== generation || this._gaps !== gaps) this._forget();
    this._older = RANKS.flatMap((states) => this._known(states));
  }

  _forget() {
    this._generation = this._model.generation;
    this._gaps = this._model.gaps;
    this._older = [];
    this._asked = new Set();
  }

  _newest() {
    return RANKS.flatMap((states) => this._known(states)).slice(0, MOST);
  }

  /** The newest jobs in one of `states`, of those that are loaded and of those that were asked for. */
  _known(states) {
    const { ended } = this._model;
    const found = [];
    for (let index = ended.length - 1; index >= 0 && found.length < MOST; index -= 1) {
      if (states.includes(ended[index].state)) found.push(ended[index]);
    }
    const oldest = ended[0]?.seq ?? Infinity;
    const older = this._older.filter((job) => states.includes(job.state) && job.seq < oldest);
    return found.concat(older.sort((one, other) => other.seq - one.seq)).slice(0, MOST);
  }

  _item(job) {
    const reason = make("p", { class: "reason" }, printable(job.problem ?? ""));
    const took = timeRun(job);
    const after = took === null ? "it never began" : `after ${duration(took)}`;
    return make(
      "li",
      {},
      make("p", { class: "failure-head" }, stateBadge(job.state), jobLink(job)),
      reason,
      make("p", { class: "faint" }, `${clock(job.ended, this._model.now())}, ${after}`),
    );
  }
}
