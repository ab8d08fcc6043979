/* The table of ended jobs: live at its newest end, and in pages of a hundred further back. */

import { make, scrollingTable, setAttribute, setText, syncChildren } from "./dom.js";
import { OUTCOMES, STATES, clock, count, duration, size, timeRun } from "./format.js";
import { jobLink, stateBadge } from "./jobcells.js";
import { getJson } from "./poller.js";

const PAGE = 100;
const COLUMNS = [
  ["Outcome"],
  ["Job", "wide"],
  ["Ended"],
  ["Wall", "number"],
  ["CPU", "number"],
  ["Peak memory", "number"],
  ["Waited", "number"],
  ["Worker", "number"],
  ["Waiters", "number"],
];

/** The recent jobs, with filters. */
export class Recent {
  constructor({ element, aside, heading }, model) {
    this._model = model;
    this._aside = aside;
    this._heading = heading;
    this._states = new Set();
    this._pages = [];
    this._drawn = null;
    this._body = make("tbody");
    this._empty = make("p", { class: "empty" });
    this._table = scrollingTable("Recent jobs", COLUMNS, this._body);
    this._announcement = make("p", { class: "unseen", role: "status" });
    element.append(this._announcement, this._makeFilters(), this._empty, this._table, this._makePager());
  }

  /** Show what the model knows, if that has changed. Older pages stay as they are. */
  update() {
    if (this._generation !== this._model.generation) {
      this._generation = this._model.generation;
      this._pages = [];
      this._drawn = null;
    }
    if (!this._pages.length && this._drawn !== this._model.version) this._draw();
  }

  _makeFilters() {
    this._buttons = new Map();
    const group = make("div", { class: "choices", role: "group", "aria-label": "Outcome" });
    for (const state of [null, ...OUTCOMES]) {
      const sign =
        state &&
        make("span", { class: "sign", "data-state": state, "aria-hidden": "true" }, STATES[state].sign);
      const button = make("button", { type: "button" }, ...(state ? [sign, STATES[state].word] : ["all"]));
      button.addEventListener("click", () => this._toggle(state));
      this._buttons.set(state, button);
      group.append(button);
    }
    this._press();
    this._search = make("input", {
      type: "search",
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "Name or checksum",
    });
    this._search.addEventListener("input", () => this._drawAloud());
    const label = make("label", { class: "search" }, make("span", {}, "Search"), this._search);
    return make("div", { class: "filters" }, group, label);
  }

  _makePager() {
    this._newest = pagerButton("Newest", () => this._go(() => []));
    this._newer = pagerButton("Show newer", () => this._go((pages) => pages.slice(0, -1)));
    this._older = pagerButton("Show older", () => this._showOlder());
    return make("div", { class: "pager" }, this._newest, this._newer, this._older);
  }

  _toggle(state) {
    if (state === null) this._states.clear();
    else if (!this._states.delete(state)) this._states.add(state);
    this._pages = [];
    this._press();
    this._drawAloud();
  }

  /** Show the jobs that ended in one of `states`, fetching some when none of them is loaded. */
  async showOnly(states) {
    this._states = new Set(states);
    this._pages = [];
    this._search.value = "";
    this._press();
    this._drawAloud();
    this._heading.scrollIntoView();
    this._heading.focus({ preventScroll: true });
    if (this._table.hidden && !this._older.hidden) await this._showOlder();
  }

  _press() {
    for (const [state, button] of this._buttons) {
      const isOn = state === null ? this._states.size === 0 : this._states.has(state);
      setAttribute(button, "aria-pressed", String(isOn));
    }
  }

  _go(change) {
    this._pages = change(this._pages);
    this._drawAloud();
    this._heading.focus();
  }

  async _showOlder() {
    const parameters = new URLSearchParams({ before: this._before, limit: PAGE });
    for (const state of this._states) parameters.append("state", state);
    setAttribute(this._older, "aria-busy", "true");
    try {
      const page = await getJson(`jobs?${parameters}`, AbortSignal.timeout(10000));
      this._go((pages) => [...pages, page]);
    } catch (error) {
      setText(this._aside, `Older jobs could not be fetched: ${error.message}.`);
      setText(this._announcement, this._aside.textContent);
    } finally {
      setAttribute(this._older, "aria-busy", null);
    }
  }

  /** Draw, and have screen readers told; what comes by itself every three seconds is not. */
  _drawAloud() {
    this._draw();
    setText(this._announcement, this._aside.textContent || this._empty.textContent);
  }

  _draw() {
    this._drawn = this._model.version;
    const page = this._pages.at(-1);
    const loaded = page ? page.jobs : this._model.ended.slice().reverse();
    const matching = loaded.filter(this._filter());
    const rows = matching.slice(0, PAGE);
    this._before = matching.length > PAGE ? rows.at(-1).seq : loaded.at(-1)?.seq;
    this._showRows(rows);
    this._showAside(rows, matching, loaded);
    this._newest.hidden = this._pages.length < 2;
    this._newer.hidden = !page;
    this._older.hidden = page ? !page.more : !loaded.length || this._before <= 1;
  }

  _filter() {
    const wanted = this._search.value.trim().toLowerCase();
    return (job) => {
      if (this._states.size && !this._states.has(job.state)) return false;
      return !wanted || (job.name ?? "").toLowerCase().includes(wanted) || job.checksum.includes(wanted);
    };
  }

  _showRows(jobs) {
    const now = this._model.now();
    this._table.hidden = jobs.length === 0;
    this._empty.hidden = jobs.length > 0;
    syncChildren(this._body, jobs, {
      key: (job) => `${this._model.generation} ${job.number}`,
      create: (job) => makeRow(job, now),
    });
  }

  _showAside(rows, matching, loaded) {
    const isFiltered = this._states.size > 0 || this._search.value.trim() !== "";
    setText(
      this._empty,
      isFiltered ? `None of the ${count(loaded.length, "job")} loaded matches.` : "No job has ended yet.",
    );
    const page = this._pages.length;
    const place = page ? `Older jobs, page ${page + 1}` : "The newest, live";
    const shown = isFiltered
      ? `${count(matching.length, "match", "matches")} in ${loaded.length} loaded`
      : `${rows.length} shown`;
    setText(this._aside, rows.length ? `${place}: ${shown}` : "");
  }
}

function pagerButton(text, action) {
  const button = make("button", { type: "button", hidden: true }, text);
  button.addEventListener("click", action);
  return button;
}

function makeRow(job, now) {
  const cells = [
    stateBadge(job.state),
    jobLink(job),
    clock(job.ended, now),
    duration(timeRun(job)),
    duration(job.cpu),
    size(job.memory),
    duration((job.started ?? job.ended) - job.received),
    job.worker === null ? "" : String(job.worker),
    String(job.waiters),
  ];
  return make(
    "tr",
    { "data-state": job.state },
    ...cells.map((cell, index) => make("td", { class: COLUMNS[index][1] ?? null }, cell)),
  );
}
