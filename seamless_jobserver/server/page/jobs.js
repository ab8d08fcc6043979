// The tables of jobs: what runs and waits now, and what has ended.

import { byId, choices, make, renew, say, set } from "./dom.js";
import { clock, duration, nameOf, short, size, stateWords } from "./format.js";

const SHOWN = 100;
const OUTCOMES = [
  ["", "All"], ["done", "Done"], ["failed", "Failed"], ["crashed", "Crashed"], ["canceled", "Canceled"],
  ["lost", "Lost"],
];

/** Show running and waiting jobs. */
export function showNow(status, now) {
  const jobs = [...status.running, ...status.waiting.slice(0, SHOWN)];
  renew(
    byId("now"), jobs, (job) => job.number,
    () => row(["state", "name", "number", "number", "number", ""]),
    (element, job) => {
      const began = job.started ?? job.received;
      const doing = job.phase ?? (job.hosted ? "inside the job that asked for it" : "waits for a worker");
      cells(element, job, [duration(now - began), job.worker ?? "–", job.waiters, doing]);
    },
  );
  byId("now-empty").hidden = jobs.length > 0;
  const more = status.waiting_count - Math.min(status.waiting.length, SHOWN);
  byId("now-more").hidden = more <= 0;
  say(byId("now-more"), `${more} more wait.`);
}

/** The table of jobs that have ended: the newest, or older ones page by page. */
export class Ended {
  constructor(feed) {
    this.feed = feed;
    this.outcome = "";
    this.page = null;
    choices(byId("filters"), OUTCOMES, "", (outcome) => {
      this.outcome = outcome;
      this.showNewest();
    });
    byId("search").addEventListener("input", () => this.show());
    byId("newest").addEventListener("click", () => this.showNewest());
    byId("older").addEventListener("click", () => this.showOlder());
  }

  showNewest() {
    this.page = null;
    this.show();
  }

  async showOlder() {
    const oldest = this.shown.at(-1)?.seq ?? this.feed.status.latest + 1;
    const state = this.outcome && `&state=${this.outcome}`;
    try {
      const answer = await fetch(`jobs?before=${oldest}&limit=${SHOWN}${state}`);
      this.page = await answer.json();
      this.show();
    } catch {
      say(byId("recent-empty"), "The server does not answer. Try again in a moment.");
      byId("recent-empty").hidden = false;
    }
  }

  show() {
    const words = byId("search").value.trim().toLowerCase();
    const wanted = (job) => (!this.outcome || job.state === this.outcome)
      && (!words || job.checksum.startsWith(words) || (job.name ?? "").toLowerCase().includes(words));
    const source = this.page ? this.page.jobs : this.feed.ended.toReversed();
    this.shown = source.filter(wanted).slice(0, SHOWN);
    renew(
      byId("recent"), this.shown, (job) => job.seq,
      () => row(["state", "name", "number", "number", "number", "number", "number", "number"]),
      (element, job) => cells(element, job, [
        clock(job.ended), duration(job.wall), duration(job.cpu), size(job.memory), job.waiters, job.worker ?? "–",
      ]),
    );
    byId("newest").hidden = this.page === null;
    byId("older").hidden = words !== "" || !(this.page ? this.page.more : this.mayHaveOlder());
    byId("recent-empty").hidden = this.shown.length > 0;
    say(byId("recent-empty"), this.emptyWords(words));
  }

  mayHaveOlder() {
    return this.feed.status !== null && (this.shown.at(-1)?.seq ?? this.feed.status.latest + 1) > 1
      && this.shown.length < this.feed.status.latest;
  }

  emptyWords(words) {
    if (this.feed.status?.latest === 0) {
      return "No job has ended yet. Jobs come from workflows whose remote target is this jobserver.";
    }
    return words ? "Nothing of what is loaded here matches." : "None of the newest jobs ended so.";
  }
}

function row(kinds) {
  const name = make("td", { class: "name" }, make("a"), make("span", { class: "short" }));
  return make("tr", {}, ...kinds.map((kind) => (kind === "name" ? name : make("td", kind ? { class: kind } : {}))));
}

function cells(element, job, rest) {
  const [state, name, ...others] = element.children;
  say(state, stateWords(job.state));
  set(state, "class", `state ${job.state}`);
  say(name.firstChild, nameOf(job));
  set(name.firstChild, "href", `#/jobs/${job.checksum}`);
  say(name.lastChild, short(job.checksum));
  others.forEach((cell, index) => say(cell, String(rest[index])));
}
