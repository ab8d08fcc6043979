/* The timeline: a lane for each worker, sliding with the time, with arrow keys between the jobs. */

import { make, setAttribute, setText, syncChildren } from "./dom.js";
import { OUTCOMES, STATES, hoursAndMinutes } from "./format.js";
import { drawBlocks, laneBlocks, makeLane, stretch, updateHead } from "./lane.js";

const WINDOWS = [2, 10, 30];
const TICK_MINUTES = { 2: 0.5, 10: 2, 30: 5 };
const MOST_PER_LANE = 400;
const MOST_BLOCKS = 6000;
const NARROWEST_BLOCK = 2;
/** Pixels that the words of a tick take. */
const ROOM_FOR_TIME = 42;
/** With more workers than this the lanes are lower, and scroll. */
const DENSE = 8;
/** After so many seconds, blocks of running jobs may have got wide enough for a name. */
const GROWTH = 10;
const HINT = "Point at a block for its job. By keyboard: arrow keys go from job to job, Enter opens one.";

/** The lanes of all workers over the last minutes. */
export class Timeline {
  constructor(element, choices, model) {
    this._model = model;
    this._minutes = 10;
    this._width = 600;
    this._current = null;
    this._build(element);
    this._buildChoices(choices);
    new ResizeObserver(() => this._measure()).observe(this._axis);
  }

  _build(element) {
    this._axisTrack = make("div", { class: "track" });
    this._axis = make("div", { class: "axis", "aria-hidden": "true" }, this._axisTrack);
    this._lanes = make("div", { class: "lanes", role: "group", "aria-label": "Timeline of the workers" });
    this._readout = make("p", { class: "readout", "aria-hidden": "true" }, HINT);
    const legend = make("ul", { class: "legend", "aria-label": "How blocks look" });
    for (const state of ["running", ...OUTCOMES]) {
      const swatch = make(
        "span",
        { class: "swatch", "data-state": state, "aria-hidden": "true" },
        STATES[state].sign,
      );
      legend.append(make("li", {}, swatch, STATES[state].word));
    }
    element.append(this._axis, this._lanes, make("div", { class: "timeline-foot" }, this._readout, legend));
    this._lanes.addEventListener("keydown", (event) => this._key(event));
    this._lanes.addEventListener("focusin", (event) => this._choose(event.target.closest(".block")));
    for (const type of ["focusin", "pointerover"]) {
      this._lanes.addEventListener(type, (event) => this._tell(event.target.closest(".block")));
    }
  }

  _buildChoices(choices) {
    for (const minutes of WINDOWS) {
      const button = make(
        "button",
        { type: "button", "aria-pressed": String(minutes === this._minutes) },
        `${minutes} min`,
      );
      button.addEventListener("click", () => {
        this._minutes = minutes;
        for (const other of choices.children) setAttribute(other, "aria-pressed", String(other === button));
        this._redraw();
      });
      choices.append(button);
    }
  }

  /** Show what the model knows; blocks are laid out again only when jobs have changed. */
  update() {
    const { workers } = this._model.status;
    const isDense = workers.length > DENSE;
    this._lanes.classList.toggle("dense", isDense);
    setAttribute(this._lanes, "tabindex", isDense ? "0" : null);
    syncChildren(this._lanes, workers, {
      key: (worker) => worker.number,
      create: (worker) => makeLane(worker.number),
      update: (lane, worker) => updateHead(lane, worker, this._leftIn(worker), this._model.now()),
    });
    const state = this._stateOfJobs();
    if (state !== this._drawn) {
      this._drawn = state;
      this._draw();
    }
    this.slide();
  }

  /** The canceled job that `worker` is still at, or undefined. */
  _leftIn({ number }) {
    return this._model.status.canceled_running.find((job) => job.worker === number);
  }

  /** Move everything to where it belongs now. */
  slide() {
    if (!this._scale) return;
    const now = this._model.now();
    if (now - this._origin > this._minutes * 60) this._draw();
    this._scale.now = now;
    const shift = `translateX(${-this._scale.at(now - this._minutes * 60)}%)`;
    this._axisTrack.style.transform = shift;
    for (const lane of this._lanes.children) {
      lane.lastElementChild.firstElementChild.style.transform = shift;
      stretch(lane, this._scale);
    }
    this._drawTicks(now);
  }

  _measure() {
    const width = this._axis.clientWidth;
    if (width && Math.abs(width - this._width) > 1) {
      this._width = width;
      this._redraw();
    }
  }

  _redraw() {
    if (!this._model.status) return;
    this._draw();
    this.slide();
  }

  _stateOfJobs() {
    const { workers, running, canceled_running: left } = this._model.status;
    const { generation, version } = this._model;
    const growth = (running.length || left.length) && Math.floor(this._model.now() / GROWTH);
    return JSON.stringify([
      generation,
      version,
      workers.length,
      growth,
      running.map((job) => [job.number, job.started, job.worker]),
      left.map((job) => job.number),
    ]);
  }

  _draw() {
    const now = this._model.now();
    const seconds = this._minutes * 60;
    const origin = now - seconds;
    this._origin = now;
    this._scale = { now, percent: this._width / 100, at: (time) => ((time - origin) / seconds) * 100 };
    const lanes = [...this._lanes.children];
    const options = {
      from: origin,
      now,
      cell: (NARROWEST_BLOCK * seconds) / this._width,
      limit: Math.min(MOST_PER_LANE, Math.max(40, Math.floor(MOST_BLOCKS / (lanes.length || 1)))),
    };
    const jobs = this._jobsByWorker(origin);
    const focused = this._focused();
    this._model.status.workers.forEach(({ number }, index) => {
      drawBlocks(lanes[index], laneBlocks(jobs.get(number) ?? [], options), this._scale);
    });
    if (focused && !focused.element.isConnected) nearest(focused)?.focus({ preventScroll: true });
    this._choose(this._current?.isConnected ? this._current : this._lanes.querySelector(".block:last-child"));
  }

  /** The block that has the focus, with its lane and its middle, or null. */
  _focused() {
    const element = document.activeElement?.closest(".block");
    if (!element || !this._lanes.contains(element)) return null;
    return { element, lane: element.closest(".lane"), time: middle(element) };
  }

  _jobsByWorker(from) {
    const byWorker = new Map();
    const { ended, status } = this._model;
    const left = status.canceled_running.map((job) => ({ ...job, ended: null, canceled: true }));
    const isLeft = new Set(left.map(({ number }) => number));
    for (const jobs of [ended, status.running, left]) {
      for (const job of jobs) {
        if (jobs === ended && isLeft.has(job.number)) continue;
        if (job.worker === null || job.started === null || (job.ended ?? Infinity) < from) continue;
        if (!byWorker.has(job.worker)) byWorker.set(job.worker, []);
        byWorker.get(job.worker).push(job);
      }
    }
    return byWorker;
  }

  _drawTicks(now) {
    const step = TICK_MINUTES[this._minutes] * 60;
    const first = Math.ceil((now - this._minutes * 60) / step);
    const ticks = [];
    for (let tick = first; tick * step <= now; tick += 1) ticks.push(tick * step);
    syncChildren(this._axisTrack, ticks, {
      key: (time) => `${step} ${time}`,
      create: (time) => make("span", { class: "tick" }, step < 60 && time % 60 ? "" : hoursAndMinutes(time)),
      update: (element, time) => {
        element.style.left = `${this._scale.at(time)}%`;
        const room = ((now - time) / (this._minutes * 60)) * this._width;
        element.classList.toggle("bare", room < ROOM_FOR_TIME);
      },
    });
  }

  _choose(block) {
    if (!block || (block === this._current && block.tabIndex === 0)) return;
    if (this._current) this._current.tabIndex = -1;
    block.tabIndex = 0;
    this._current = block;
  }

  _tell(block) {
    setText(this._readout, block?.getAttribute("aria-label") ?? HINT);
  }

  _key(event) {
    const block = event.target.closest(".block");
    const next =
      block && !event.ctrlKey && !event.altKey && !event.metaKey && this._neighbour(block, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus({ preventScroll: true });
    next.closest(".lane").scrollIntoView({ block: "nearest" });
  }

  _neighbour(block, key) {
    const blocks = [...block.parentElement.children];
    const index = blocks.indexOf(block);
    if (key === "ArrowLeft") return blocks[index - 1];
    if (key === "ArrowRight") return blocks[index + 1];
    if (key === "Home") return blocks[0];
    if (key === "End") return blocks.at(-1);
    if (key === "ArrowUp") return this._inOtherLane(block, "previousElementSibling");
    if (key === "ArrowDown") return this._inOtherLane(block, "nextElementSibling");
    return null;
  }

  _inOtherLane(block, direction) {
    let lane = block.closest(".lane")[direction];
    while (lane && !lane.querySelector(".block")) lane = lane[direction];
    if (!lane) return null;
    const left = Number(block.dataset.left);
    const distance = (other) => Math.abs(Number(other.dataset.left) - left);
    return [...lane.querySelectorAll(".block")].reduce((best, other) =>
      distance(other) < distance(best) ? other : best,
    );
  }
}

function middle({ dataset: { start, end } }) {
  return (Number(start) + Number(end)) / 2;
}

/** The block of a lane that is nearest to a time: a job that has ended may be part of a wider one. */
function nearest({ lane, time }) {
  const distance = (block) => Math.abs(middle(block) - time);
  return [...lane.querySelectorAll(".block")].reduce(
    (best, block) => (best && distance(best) <= distance(block) ? best : block),
    null,
  );
}
