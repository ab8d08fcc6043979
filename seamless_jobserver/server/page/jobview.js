// The page of one job. Its output is followed while it runs.

import { byId, define, make, renew, say, set } from "./dom.js";
import { clock, duration, nameOf, size, stateWords } from "./format.js";

const INTERVAL = 2000;
const MOST = 1_000_000;
const UNKNOWN = "The server does not know this job. It keeps the last 10,000 that have ended, and forgets all when "
  + "it ends itself.";

/** Shows one job at a time, until it is closed. */
export class JobView {
  constructor(feed) {
    this.feed = feed;
    byId("copy").addEventListener("click", () => this.copy());
    byId("cancel").addEventListener("click", () => this.ask(true));
    byId("cancel-no").addEventListener("click", () => this.ask(false));
    byId("cancel-yes").addEventListener("click", () => this.cancel());
  }

  open(checksum) {
    this.close();
    this.checksum = checksum;
    this.number = null;
    this.over = false;
    this.leaving = new AbortController();
    say(byId("job-title"), "Job");
    say(byId("job-checksum"), checksum);
    say(byId("job-news"), "");
    byId("job-output").replaceChildren();
    this.ask(false);
    byId("job-title").focus();
    this.load(this.leaving.signal);
  }

  close() {
    this.leaving?.abort();
    clearTimeout(this.timer);
    this.checksum = null;
  }

  async load(signal) {
    clearTimeout(this.timer);
    try {
      const answer = await fetch(`jobs/${this.checksum}`, { signal, headers: { Accept: "application/json" } });
      byId("job-body").hidden = answer.status === 404;
      if (answer.status === 404) say(byId("job-news"), UNKNOWN);
      else this.show(await answer.json(), signal);
    } catch {
      if (signal.aborted) return;
      say(byId("job-news"), "The server does not answer. It is asked again.");
    }
    if (!signal.aborted && !this.over) this.timer = setTimeout(() => this.load(signal), INTERVAL);
  }

  show(job, signal) {
    const active = job.state === "queued" || job.state === "running";
    this.over = !active;
    say(byId("job-title"), nameOf(job));
    document.title = `${nameOf(job)}: ${job.state} – jobserver`;
    say(byId("job-state"), stateWords(job.state));
    set(byId("job-state"), "class", `state ${job.state}`);
    byId("cancel-area").hidden = !active;
    define(byId("job-facts"), this.facts(job));
    byId("job-error").hidden = !job.message;
    say(byId("job-message"), job.message ?? "");
    this.showPins(job.pins);
    const runtime = Object.entries(job.runtime).filter(([, value]) => value !== null && typeof value !== "object");
    define(byId("runtime"), runtime);
    byId("runtime-empty").hidden = runtime.length > 0;
    if (job.number !== this.number) {
      // Not before: another run of the same transformation has another log.
      this.number = job.number;
      this.follow(signal, active);
    }
  }

  facts(job) {
    const now = this.feed.now();
    const facts = [
      ["Language", job.language],
      ["Received", clock(job.received)],
      ["Waited", duration((job.started ?? job.ended ?? now) - job.received)],
    ];
    if (job.started !== null) {
      facts.push(["Started", clock(job.started)], ["Took", duration((job.ended ?? now) - job.started)]);
      facts.push(["Worker", job.hosted ? `${job.worker}, inside the job that asked for it` : job.worker]);
    }
    if (job.phase) facts.push(["Doing", job.phase]);
    if (job.ended !== null) facts.push(["Ended", clock(job.ended)]);
    if (job.wall !== null) facts.push(["Wall", duration(job.wall)]);
    if (job.cpu !== null) facts.push(["CPU", duration(job.cpu)]);
    if (job.memory !== null) facts.push(["Peak memory", size(job.memory)]);
    facts.push(["Asked for by", job.by === "job" ? "another job" : "a caller"], ["Waiters", job.waiters]);
    if (job.retries) facts.push(["Retries", job.retries]);
    if (job.scratch) facts.push(["Result", "not stored (scratch)"]);
    if (job.result) facts.push(["Result", job.result]);
    return facts;
  }

  showPins(pins) {
    renew(
      byId("pins"), pins ?? [], (pin) => pin.name,
      () => make("tr", {}, make("td"), make("td"), make("td", { class: "sum" })),
      (element, pin) => {
        const celltype = pin.subcelltype ? `${pin.celltype}, ${pin.subcelltype}` : pin.celltype;
        [pin.name, celltype, pin.checksum].forEach((text, index) => say(element.children[index], String(text)));
      },
    );
    byId("pins-empty").hidden = Boolean(pins?.length);
    say(byId("pins-empty"), pins ? "It has no pins." : "They are kept of the newest jobs only.");
  }

  async follow(signal, active) {
    const place = byId("job-output");
    place.replaceChildren();
    byId("output-empty").hidden = true;
    try {
      const answer = await fetch(`jobs/${this.checksum}/log${active ? "?follow" : ""}`, { signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) this.print(place, part.value);
      byId("output-empty").hidden = place.textContent !== "";
      if (active) this.load(signal);
    } catch {
      if (!signal.aborted) say(byId("job-news"), "The output could not be read to its end.");
    }
  }

  /** Append output; the beginning of very much of it goes, and a reader who has scrolled up stays there. */
  print(place, text) {
    const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
    place.append(text);
    if (place.textContent.length > 2 * MOST) place.textContent = place.textContent.slice(-MOST);
    if (atEnd) place.scrollTop = place.scrollHeight;
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.checksum);
      say(byId("job-news"), "Copied.");
    } catch {
      // Plain HTTP on another name than localhost has no clipboard; selecting is half of it.
      getSelection().selectAllChildren(byId("job-checksum"));
      say(byId("job-news"), "Selected: copy it with Ctrl+C.");
    }
  }

  ask(sure) {
    byId("cancel").hidden = sure;
    byId("cancel-sure").hidden = !sure;
    const goesOn = this.feed.status?.server.reclaims
      ? "its process is ended."
      : "its process runs on to the end of the work, and keeps its worker busy until then.";
    say(byId("cancel-means"), `Its callers are told at once, what it yields is thrown away, and ${goesOn}`);
    if (sure) byId("cancel-yes").focus();
  }

  async cancel() {
    this.ask(false);
    try {
      const answer = await fetch(`cancel-transformation/${this.checksum}`, { method: "POST" });
      const { canceled } = await answer.json();
      say(byId("job-news"), canceled ? "It is canceled." : "It had ended before.");
      this.load(this.leaving.signal);
    } catch {
      say(byId("job-news"), "It could not be canceled: the server does not answer as it should.");
    }
  }
}
