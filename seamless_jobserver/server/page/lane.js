/* One worker in the timeline: what it is doing, in words, and its jobs as blocks. */

import { layOut } from "./blocks.js";
import { make, setAttribute, setText, syncChildren, whenChanged } from "./dom.js";
import { STATES, STILL_AT_WORK, clock, count, duration, jobName, short, size } from "./format.js";
import { jobAddress, runningClock } from "./jobcells.js";

const WORKER_SIGNS = { starting: "…", idle: "○", busy: "►", down: "✕" };
const ROOM_FOR_SIGN = 16;
const ROOM_FOR_NAME = 52;

/** Make the element of a lane for worker `number`. */
export function makeLane(number) {
  const lane = make("div", { class: "lane", role: "group", "aria-label": `Worker ${number}` });
  lane.append(
    make(
      "div",
      { class: "lane-head" },
      make("span", { class: "lane-number" }, `Worker ${number}`),
      make("span", { class: "lane-state" }),
      make("span", { class: "lane-facts" }, make("span"), make("span", { class: "rest" })),
    ),
    make("div", { class: "lane-window" }, make("div", { class: "track" })),
  );
  return lane;
}

/** Say in the head of the lane how `worker` is; `left` is a canceled job that it is still at. */
export function updateHead(lane, worker, left, now) {
  const [, state, facts] = lane.firstElementChild.children;
  setAttribute(lane, "data-worker-state", worker.state);
  setAttribute(lane, "data-canceled", left ? "" : null);
  const words = left ? `${STATES.canceled.sign} ${STILL_AT_WORK}` : `${sign(worker)} ${worker.phase ?? worker.state}`;
  setText(state, words);
  const { memory, jobs, pid } = worker;
  const [used, rest] = facts.children;
  setText(used, memory === null ? "memory unknown" : size(memory));
  whenChanged(rest, [left?.number, jobs, pid], () =>
    left
      ? [" · for ", runningClock(left.started, now), ` · ${jobName(left)}`]
      : [` · ${count(jobs, "job")}${pid ? ` · pid ${pid}` : ""}`],
  );
}

function sign(worker) {
  return WORKER_SIGNS[worker.state] ?? "?";
}

/** The blocks of a lane: its own jobs above, and in a thinner row the jobs that those asked for. */
export function laneBlocks(jobs, options) {
  const own = jobs.filter((job) => !job.hosted);
  const hosted = jobs.filter((job) => job.hosted);
  const limit = hosted.length ? Math.ceil(options.limit * 0.65) : options.limit;
  const blocks = layOut(own, { ...options, limit });
  if (!hosted.length) return blocks;
  const thin = layOut(hosted, { ...options, limit: options.limit - limit });
  for (const block of thin) block.key = `hosted ${block.key}`;
  return blocks.concat(thin).sort((one, other) => one.start - other.start);
}

/** Draw `blocks`; `scale` says where a moment is (`at`, in percent) and how wide a percent is. */
export function drawBlocks(lane, blocks, scale) {
  const track = lane.lastElementChild.firstElementChild;
  syncChildren(track, blocks, {
    key: (block) => block.key,
    create: () => make("a", { class: "block", tabindex: "-1" }),
    update: (element, block) => drawBlock(element, block, scale),
  });
}

/** Let the blocks of running jobs reach up to now. */
export function stretch(lane, scale) {
  for (const element of lane.querySelectorAll('[data-open]')) {
    setWidth(element, scale.at(scale.now) - Number(element.dataset.left));
  }
}

function drawBlock(element, block, scale) {
  const left = scale.at(block.start);
  const width = scale.at(block.end) - left;
  element.style.left = `${left}%`;
  setWidth(element, width);
  element.dataset.left = left;
  element.dataset.start = block.start;
  element.dataset.end = block.end;
  setAttribute(element, "data-open", block.job.ended === null ? "" : null);
  element.classList.toggle("hosted", block.job.hosted);
  setAttribute(element, "data-state", block.job.state);
  setAttribute(element, "data-several", block.count > 1 ? "" : null);
  setAttribute(element, "href", jobAddress(block.job.checksum));
  setAttribute(element, "aria-label", describe(block, scale.now));
  setText(element, label(block, width * scale.percent));
}

/** A pixel is left free, so that neighbours can be told apart. */
function setWidth(element, percent) {
  element.style.width = `calc(${percent}% - 1px)`;
}

function label({ count: many, job }, room) {
  if (job.hosted || room < ROOM_FOR_SIGN) return "";
  const { sign } = STATES[job.state];
  return room < ROOM_FOR_NAME ? sign : `${sign} ${many > 1 ? `${many} jobs` : jobName(job)}`;
}

function describe({ count: many, states, start, end, job }, now) {
  const name = `${jobName(job)} ${short(job.checksum)}`;
  if (many > 1) {
    const parts = Object.entries(states).map(([state, number]) => `${number} ${STATES[state].word}`);
    const which = job.state === "done" ? "opens" : `opens the ${STATES[job.state].word} one,`;
    return `${many} short jobs, ${clock(start, now)} to ${clock(end, now)}: ${parts.join(", ")}; ${which} ${name}`;
  }
  const where = job.hosted ? ", inside the worker of the job that asked for it" : "";
  if (job.canceled) return `${name}: ${STILL_AT_WORK} since ${clock(job.started, now)}`;
  if (job.ended === null) return `${name}: running since ${clock(job.started, now)}${where}`;
  const took = duration(job.ended - job.started);
  return `${name}: ${STATES[job.state].word} at ${clock(job.ended, now)} after ${took}${where}`;
}
