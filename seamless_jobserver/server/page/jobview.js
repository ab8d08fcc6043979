/* The page of one job: facts, error, output, pins and metadata, and the means to cancel it. */

import { CancelControl } from "./cancel.js";
import { make, scrollingTable, setText, terms, whenChanged } from "./dom.js";
import { STATES, clock, duration, elapsed, isActive, jobName, printable, size } from "./format.js";
import { runningClock, stateBadge } from "./jobcells.js";
import { JobLog } from "./joblog.js";
import { getJson } from "./poller.js";

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
    this._abort = null;
    this.job = null;
  }

  /** Show the job with `checksum`, from scratch. */
  open(checksum) {
    this.close();
    this._abort = new AbortController();
    this._checksum = checksum;
    this._build(checksum);
    this.update();
  }

  /** Stop all that goes on for the view. */
  close() {
    this._abort?.abort();
    this._abort = null;
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
    const abort = this._abort;
    if (!abort || this._isAsking || !this._mayHaveChanged()) return;
    this._isAsking = true;
    try {
      const job = await getJson(`jobs/${this._checksum}`, abort.signal);
      if (this._abort === abort) this._show(job);
    } catch (error) {
      if (this._abort === abort) this._showError(error);
    } finally {
      this._isAsking = false;
      if (this._abort && this._abort !== abort) this.update();
    }
  }

  _mayHaveChanged() {
    if (this.job === null ? !this._isGone : isActive(this.job)) return true;
    const { status, ended } = this._model;
    const newest = this.job?.number ?? -1;
    const isThis = (job) => job.checksum === this._checksum && job.number > newest;
    return [status.running, status.waiting, ended].some((jobs) => jobs.some(isThis));
  }

  _build(checksum) {
    this._heading = make("h1", { tabindex: "-1" }, "Asking for the job");
    this._badge = make("span", { class: "badge" });
    this._meaning = make("p", { class: "lead" });
    this._code = make("code", { class: "checksum" }, checksum);
    this._copied = make("span", { role: "status", class: "aside" });
    this._facts = make("dl", { class: "facts" });
    this._body = make("div", { hidden: true });
    this._message = make("div");
    this._pins = make("div");
    this._runtime = make("div");
    this._log = new JobLog(checksum);
    this._cancel = new CancelControl(checksum, () => this.update());
    const copy = make("button", { type: "button" }, "Copy checksum");
    copy.addEventListener("click", () => this._copy());
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
      make("p", { class: "identity" }, this._code, copy, this._copied),
      this._body,
    );
  }

  _show(job) {
    this.job = job;
    this._isGone = false;
    this._body.hidden = false;
    setText(this._heading, jobName(job));
    whenChanged(this._badge, job.state, () => [stateBadge(job.state)]);
    setText(this._meaning, meaning(job));
    this._showFacts(job);
    whenChanged(this._message, job.message, () => messageCard(job.message));
    whenChanged(this._pins, job.pins, () => [card("Pins", ...pins(job.pins))]);
    whenChanged(this._runtime, job.runtime, () => runtimeCard(job.runtime));
    this._cancel.update(job, this._model.status?.server);
    this._log.update(job);
    this.onShow?.();
  }

  _showFacts(job) {
    const now = this._model.now();
    whenChanged(this._facts, { ...job, pins: null, message: null, output: null }, () =>
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
        [
          "Worker",
          job.worker === null
            ? null
            : `${job.worker}${job.hosted ? ", inside the job that asked for it" : ""}`,
        ],
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
      this._body.hidden = true;
      this._badge.replaceChildren();
      setText(this._heading, "Unknown job");
      setText(this._meaning, GONE);
      this.job = null;
      this.onShow?.();
    } else if (this.job === null) {
      setText(this._heading, "The job could not be fetched");
      setText(this._meaning, `The server does not tell about it: ${error.message}.`);
    }
  }

  async _copy() {
    try {
      await copyText(this._code);
      setText(this._copied, "Copied.");
    } catch {
      setText(this._copied, "It is selected: copy it with Ctrl+C.");
    }
  }
}

function meaning({ state, worker, phase }) {
  return state === "running" ? `It is with worker ${worker}: ${phase ?? "running"}.` : MEANINGS[state];
}

function wallTime({ started, ended, wall }, now) {
  if (started !== null && ended === null) return runningClock(started, now);
  return wall === null ? null : duration(wall);
}

function resultOf({ result, scratch, state }) {
  if (result) return make("code", { class: "checksum" }, result);
  if (state !== "done") return null;
  return scratch ? "not stored: it was asked for as scratch" : "none";
}

/** Copy the text of `element`, selecting it; the clipboard is closed to pages without TLS. */
async function copyText(element) {
  getSelection().selectAllChildren(element);
  if (navigator.clipboard) await navigator.clipboard.writeText(element.textContent);
  else if (!document.execCommand("copy")) throw new Error("no clipboard");
}

function card(title, ...content) {
  return make(
    "section",
    { class: "card" },
    make("div", { class: "card-head" }, make("h2", {}, title)),
    ...content,
  );
}

function messageCard(message) {
  if (!message) return [];
  return [
    card(
      "Error",
      make(
        "pre",
        { class: "message", tabindex: "0", role: "region", "aria-label": "Error message" },
        message,
      ),
    ),
  ];
}

function pins(list) {
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

function runtimeCard(runtime) {
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
