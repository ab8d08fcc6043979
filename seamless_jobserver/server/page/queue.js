/* The jobs that are under way: those that run, and those that wait. */

import { make, scrollingTable, setText, syncChildren } from "./dom.js";
import { STILL_AT_WORK, count, size } from "./format.js";
import { jobLink, runningClock } from "./jobcells.js";

const NO_JOB_YET =
  "No job yet. Jobs come from the seamless-remote client: run a workflow whose seamless-config names this jobserver.";
const NOTHING_RUNS = "Nothing runs at the moment.";
const NOTHING_WAITS = "Nothing waits: a job that comes now starts at once if a worker is free.";

/** Two tables, of the running and of the waiting jobs. */
export class Queue {
  constructor({ running, waiting, runningCount, waitingCount }) {
    this._running = new Listing(running, "Running jobs", runningColumns);
    this._waiting = new Listing(waiting, "Waiting jobs", waitingColumns);
    this._counts = { running: runningCount, waiting: waitingCount };
  }

  /** Show what `model` knows. */
  update(model) {
    const { running, canceled_running: left, waiting, waiting_count: waitingCount, totals } = model.status;
    const memory = new Map(model.status.workers.map((worker) => [worker.number, worker.memory]));
    const rows = running.concat(left).map((job) => ({ ...job, used: memory.get(job.worker) }));
    const now = model.now();
    this._running.show(rows, totals.received ? NOTHING_RUNS : NO_JOB_YET, now);
    this._waiting.show(waiting, NOTHING_WAITS, now);
    setText(this._counts.running, `${running.length}${left.length ? `, and ${left.length} ${STILL_AT_WORK}` : ""}`);
    const isCut = waitingCount > waiting.length;
    setText(
      this._counts.waiting,
      isCut ? `${waitingCount}, the oldest ${waiting.length} shown` : String(waitingCount),
    );
  }
}

class Listing {
  constructor(element, label, columns) {
    this._columns = columns;
    this._body = make("tbody");
    this._empty = make("p", { class: "empty" });
    this._table = scrollingTable(
      label,
      columns.map(({ name, kind }) => [name, kind]),
      this._body,
    );
    this._table.classList.add("bounded");
    element.append(this._empty, this._table);
  }

  show(jobs, whenEmpty, now) {
    setText(this._empty, jobs.length ? "" : whenEmpty);
    this._empty.hidden = jobs.length > 0;
    this._table.hidden = jobs.length === 0;
    syncChildren(this._body, jobs, {
      // What is not `text` is made once. Numbers begin anew with a server, and a name can come late.
      key: (job) => `${job.number} ${job.retries} ${job.received} ${job.checksum} ${job.name ?? ""}`,
      create: (job) => make("tr", {}, ...this._columns.map((column) => this._cell(column, job, now))),
      update: (row, job) =>
        this._columns.forEach(({ text }, index) => text && setText(row.children[index], text(job))),
    });
  }

  _cell({ kind, make: content, text }, job, now) {
    return make("td", { class: kind ?? null }, content ? content(job, now) : text(job));
  }
}

const runningColumns = [
  { name: "Job", kind: "wide", make: jobLink },
  { name: "For", kind: "number", make: (job, now) => runningClock(job.started ?? job.received, now) },
  { name: "Worker", kind: "number", text: (job) => (job.worker === null ? "" : String(job.worker)) },
  { name: "Phase", text: phase },
  { name: "Asked by", text: askedBy },
  { name: "Memory of the worker", kind: "number", text: (job) => size(job.used) },
];

const waitingColumns = [
  { name: "Job", kind: "wide", make: jobLink },
  { name: "For", kind: "number", make: (job, now) => runningClock(job.received, now) },
  { name: "Asked by", text: askedBy },
  { name: "Retries", kind: "number", text: (job) => String(job.retries) },
];

function phase({ state, phase: words }) {
  return state === "canceled" ? STILL_AT_WORK : (words ?? "running");
}

function askedBy({ by, waiters, hosted }) {
  const who = by === "job" ? "a job" : count(waiters, "caller");
  return hosted ? `${who}, in its worker` : who;
}
