// The lanes of the workers, with their jobs as blocks. However many jobs there are, blocks that
// would be too narrow to be told apart are drawn as one, so that the drawing stays small.

import { draw, renew, say, set } from "./dom.js";
import { clock, duration, nameOf, stateWords } from "./format.js";

const LANE = 34;
const HEIGHT = 22;
const LEFT = 76;
const AXIS = 22;
const NARROW = 3;
const LABEL = 46;
const BAD = ["failed", "crashed", "lost"];

/** Draw `jobs`, ended or running, in the lanes of `workers`; `span` and `now` are in seconds. */
export function drawTimeline(place, workers, jobs, span, now) {
  const width = Math.max(280, place.clientWidth);
  const height = workers.length * LANE + AXIS;
  const drawing = place.firstElementChild ?? begin(place);
  set(drawing, "viewBox", `0 0 ${width} ${height}`);
  set(drawing, "height", height);
  const at = (time) => LEFT + ((time - (now - span)) / span) * (width - LEFT);
  const [tracks, ticks, blocks] = drawing.children;
  drawTracks(tracks, workers, width);
  drawTicks(ticks, span, now, at, height);
  const lanes = new Map(workers.map((worker, index) => [worker.number, index]));
  const drawn = blocksOf(jobs, lanes, at, now);
  renew(blocks, drawn, (block) => block.key, createBlock, updateBlock);
  keepOneInTabOrder(blocks);
}

function begin(place) {
  const drawing = draw("svg", { role: "group", "aria-label": "Jobs of the last minutes by worker; arrow keys move" });
  drawing.append(draw("g"), draw("g", { "aria-hidden": "true" }), draw("g"));
  drawing.addEventListener("keydown", move);
  place.append(drawing);
  return drawing;
}

function drawTracks(group, workers, width) {
  renew(
    group, workers, (worker) => worker.number,
    () => draw("g", {}, draw("rect", { class: "track", x: LEFT }), draw("text", { class: "lane", x: 0 })),
    (element, worker) => {
      const index = workers.indexOf(worker);
      const [track, label] = element.children;
      set(track, "y", index * LANE + (LANE - HEIGHT) / 2);
      set(track, "width", width - LEFT);
      set(track, "height", HEIGHT);
      set(label, "y", index * LANE + LANE / 2 + 4);
      say(label, `${worker.number} ${worker.state}`);
    },
  );
}

function drawTicks(group, span, now, at, height) {
  const step = [10, 30, 60, 120, 300, 600].find((seconds) => span / seconds <= 6) ?? 600;
  const times = [];
  for (let time = Math.ceil((now - span) / step) * step; time < now - step / 3; time += step) times.push(time);
  renew(
    group, times, (time) => time,
    () => draw("g", {}, draw("line", { class: "tick", y1: 0 }), draw("text", { "text-anchor": "middle" })),
    (element, time) => {
      const [line, label] = element.children;
      for (const name of ["x1", "x2"]) set(line, name, at(time));
      set(line, "y2", height - AXIS);
      set(label, "x", Math.max(LEFT + 24, at(time)));
      set(label, "y", height - 5);
      say(label, clock(time));
    },
  );
}

/** Put jobs that lie too close together into one block; a block of one job leads to that job. */
function blocksOf(jobs, lanes, at, now) {
  const last = new Map();
  const found = [];
  const shown = jobs
    .filter((job) => job.started !== null && lanes.has(job.worker) && at(job.ended ?? now) > LEFT)
    .sort((one, other) => one.started - other.started);
  for (const job of shown) {
    const lane = `${job.worker}${job.hosted ? "h" : ""}`;
    const start = Math.max(LEFT, at(job.started));
    const end = at(job.ended ?? now);
    const before = last.get(lane);
    if (before && end - start < NARROW && start - before.end < 1 && (before.narrow || before.end >= end)) {
      before.end = Math.max(before.end, end);
      before.jobs.push(job);
      continue;
    }
    const block = {
      key: `${job.number}`, start, end, jobs: [job], narrow: end - start < NARROW,
      top: lanes.get(job.worker) * LANE + (LANE - HEIGHT) / 2, thin: job.hosted,
    };
    last.set(lane, block);
    found.push(block);
  }
  return found;
}

function createBlock() {
  return draw("a", { tabindex: -1 }, draw("title"), draw("rect", { rx: 2 }), draw("text", { class: "inside" }));
}

function updateBlock(element, block) {
  const [title, rect, label] = element.children;
  const worst = block.jobs.find((job) => BAD.includes(job.state)) ?? block.jobs[0];
  // Failures stand out of their lane, so that they are not told by colour alone.
  const out = BAD.includes(worst.state) ? 5 : 0;
  const height = (block.thin ? 7 : HEIGHT - 4) + 2 * out;
  const top = (block.thin ? block.top + HEIGHT - 9 : block.top + 2) - out;
  const width = Math.max(1.5, block.end - block.start);
  set(element, "class", `block ${worst.state}`);
  set(element, "href", `#/jobs/${worst.checksum}`);
  set(element, "aria-label", words(block.jobs, worst));
  say(title, words(block.jobs, worst));
  for (const [name, value] of [["x", block.start], ["y", top], ["width", width], ["height", height]]) {
    set(rect, name, value.toFixed(1));
  }
  set(label, "x", (block.start + 5).toFixed(1));
  set(label, "y", block.top + HEIGHT / 2 + 4);
  const room = Math.floor((width - 8) / 7);
  say(label, block.thin || width < LABEL ? "" : nameOf(worst).slice(0, room));
}

function words(jobs, worst) {
  const took = worst.ended === null ? "" : ` after ${duration(worst.ended - worst.started)}`;
  const one = `${nameOf(worst)}: ${stateWords(worst.state)}${took}`;
  return jobs.length === 1 ? one : `${jobs.length} jobs, among them ${one}`;
}

/** Hundreds of blocks must not stand between the keyboard and the rest of the page. */
function keepOneInTabOrder(blocks) {
  const focused = blocks.contains(document.activeElement) ? document.activeElement : blocks.lastElementChild;
  for (const block of blocks.children) set(block, "tabindex", block === focused ? 0 : -1);
}

function move(event) {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  const all = [...event.currentTarget.querySelectorAll(".block")];
  const next = step && all[all.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
  keepOneInTabOrder(next.parentElement);
}
