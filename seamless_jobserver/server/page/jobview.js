/* The page of one job: facts, error, output, pins and metadata, and the means to cancel it. */

import { CancelControl } from "./cancel.js";
import { copyable, make, setText, terms, whenChanged } from "./dom.js";
import { STATES, STILL_AT_WORK, clock, duration, isActive, jobName, short, size, timeRun } from "./format.js";
import { jobAddress, runningClock, stateBadge } from "./jobcells.js";
import { JobLog } from "./joblog.js";
import { card, messageCard, pins, runtimeCard } from "./jobtables.js";
import { getJson } from "./poller.js";

const PATIENCE = 10_000;
const MEANINGS = {
  queued: "It waits for a worker.",
  done: "Its result is stored.",
  failed: "Its code, or what it needs, gave an error.",
  crashed: "The process that ran it died, was ended for a limit, or ended with the jobserver.",
  canceled: "Somebody canceled it; its callers were told.",
  lost: "The jobserver could not run it; that says nothing about its code.",
};
const GONE =
  "The jobserver does not know this job. It forgets its jobs when it is started again, and remembers " +
  "only the newest 10,000 that have ended. The result, if there is one, is in the store all the same.";

/** Shows one job for as long as it is open. */
export class JobView {
  constructor(element, model) {
    this._element = element;
    this._model = model;
    this._isOpen = false;
    this._asking = null;
    this.job = null;
  }

  /** Show the job with `checksum`, from scratch. */
  open(checksum) {
    this.close();
    this._isOpen = true;
    this._checksum = checksum;
    this._build(checksum);
    this.update();
  }

  /** Stop all that goes on for the view. */
  close() {
    this._isOpen = false;
    this._asking?.abort();
    this._asking = null;
    this._log?.close();
    this.job = null;
    this._isGone = false;
  }

  /** The heading, which takes the focus when the view opens. */
  get heading() {
    return this._heading;
  }

  /** What is seen, for the title of the window. */
  get title() {
    const name = this._heading.textContent;
    return this.job ? `${name}, ${STATES[this.job.state].word}` : name;
  }

  /** Ask for the job again if it may have changed. */
  async update() {
    if (!this._isOpen || this._asking) return;
    if (!this._mayHaveChanged()) {
      if (this.job) this._log.update(this.job);
      return;
    }
    const asking = new AbortController();
    this._asking = asking;
    const patience = setTimeout(() => asking.abort(new Error("it takes too long")), PATIENCE);
    try {
      const job = await getJson(`jobs/${this._checksum}`, asking.signal);
      if (this._asking === asking) this._show(job);
    } catch (error) {
      if (this._asking === asking) this._showError(error);
    } finally {
      clearTimeout(patience);
      if (this._asking === asking) this._asking = null;
    }
  }

  _mayHaveChanged() {
    if (this.job === null ? !this._isGone : isActive(this.job) || this.job.working) return true;
    const { status, ended } = this._model;
    if (status.server.started !== this._server) return true;
    const newest = this.job?.number ?? -1;
    const isThis = (job) => job.checksum === this._checksum && job.number > newest;
    return [status.running, status.waiting, ended].some((jobs) => jobs.some(isThis));
  }

  _build(checksum) {
    this._heading = make("h1", { tabindex: "-1" }, "Asking for the job");
    this._badge = make("span", { class: "badge" });
    this._meaning = make("p", { class: "lead" });
    this._facts = make("dl", { class: "facts" });
    this._body = make("div", { hidden: true });
    this._message = make("div");
    this._pins = make("div");
    this._runtime = make("div");
    this._log = new JobLog(checksum);
    this._cancel = new CancelControl(checksum, () => this.update());
    this._body.append(
      this._cancel.element,
      card("Facts", this._facts),
      this._message,
      this._log.element,
      this._pins,
      this._runtime,
    );
    this._element.replaceChildren(
      make("p", { class: "back" }, make("a", { href: "#/" }, "← All jobs")),
      make("div", { class: "heading" }, this._heading, this._badge),
      this._meaning,
      make("p", { class: "identity" }, copyable(checksum, "the checksum")),
      this._body,
    );
  }

  _show(job) {
    this.job = job;
    this._server = this._model.status?.server.started;
    this._isGone = false;
    this._body.hidden = false;
    setText(this._heading, jobName(job));
    whenChanged(this._badge, job.state, () => [stateBadge(job.state)]);
    setText(this._meaning, meaning(job));
    this._showFacts(job);
    // That a job was canceled is no error, and said above.
    const message = job.state === "canceled" ? null : job.message;
    whenChanged(this._message, message, () => messageCard(message));
    whenChanged(this._pins, job.pins, () => [card("Pins", ...pins(job.pins))]);
    whenChanged(this._runtime, job.runtime, () => runtimeCard(job.runtime));
    this._cancel.update(job, this._model.status?.server);
    this._log.update(job);
    this.onShow?.();
  }

  _showFacts(job) {
    const now = this._model.now();
    whenChanged(this._facts, { ...job, pins: null, message: null, output: null, dropped: null }, () =>
      terms([
        ["Language", job.language],
        ["Received", clock(job.received, now)],
        ["Started", job.started === null ? null : clock(job.started, now)],
        ["Ended", job.ended === null ? null : clock(job.ended, now)],
        [
          "Waited",
          job.started || job.ended
            ? duration((job.started ?? job.ended) - job.received)
            : runningClock(job.received, now),
        ],
        ["Wall time", wallTime(job, now)],
        ["CPU time", job.cpu === null ? null : duration(job.cpu)],
        ["Peak memory", job.memory === null ? null : size(job.memory)],
        ["Worker", ...workerOf(job)],
        ["Phase", job.phase],
        ["Asked by", job.by === "job" ? "another job" : "a caller"],
        ["Waiters", String(job.waiters)],
        ["Retries", String(job.retries)],
        ["Run", `number ${job.number} of this server, the newest with this checksum`],
        ["Result", resultOf(job)],
      ]),
    );
  }

  _showError(error) {
    if (error.status === 404) {
      this._isGone = true;
      this._server = this._model.status?.server.started;
      this._body.hidden = true;
      this._badge.replaceChildren();
      setText(this._heading, "Unknown job");
      setText(this._meaning, GONE);
      this.job = null;
      this.onShow?.();
    } else if (this.job === null) {
      setText(this._heading, "The job could not be fetched");
      setText(this._meaning, `The server does not tell about it: ${error.message}. The page keeps asking.`);
      this.onShow?.();
    }
  }
}

function meaning({ state, worker, phase, working }) {
  if (state === "running") return `It is with worker ${worker}: ${phase ?? "running"}.`;
  if (state === "canceled" && working)
    return `${MEANINGS.canceled} Its work goes on, unheard, and still holds worker ${worker}.`;
  return MEANINGS[state];
}

function wallTime(job, now) {
  if (job.started !== null && (job.ended === null || job.working)) return runningClock(job.started, now);
  const took = timeRun(job);
  return took === null ? null : duration(took);
}

function workerOf({ worker, within, working, ended }) {
  if (worker === null) return [null];
  const words = `${worker}${working && ended !== null ? `: ${STILL_AT_WORK}` : ""}`;
  if (!within) return [words];
  return [`${words}, inside the job `, make("a", { href: jobAddress(within) }, make("code", {}, short(within)))];
}

function resultOf({ result, scratch, state }) {
  if (result) return make("code", { class: "checksum" }, result);
  if (state !== "done") return null;
  return scratch ? "not stored: it was asked for as scratch" : "none";
}
