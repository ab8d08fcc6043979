/* The first glance: the headline, what to worry about, and the figures of the moment. */

import { copyable, make, setAttribute, setText, syncChildren, terms, whenChanged } from "./dom.js";
import { NOTHING, STILL_AT_WORK, clock, count, duration, elapsed, jobName, size } from "./format.js";
import { runningClock } from "./jobcells.js";

/** The states of jobs that ended badly. */
export const ENDED_BADLY = ["failed", "crashed", "lost"];

const ANYWHERE = new Set(["0.0.0.0", "[::]"]);
const ON_ITSELF = { "0.0.0.0": "127.0.0.1", "[::]": "[::1]" };

/** What goes on, in a few words. */
export function headline({ status, failure }) {
  if (failure) return "The jobserver does not answer";
  const { server, running, waiting_count: waiting, canceled_running: left } = status;
  if (server.ending) return "The jobserver is ending";
  if (!running.length && !waiting && !left.length) return "Idle";
  return `${running.length} running, ${waiting} waiting${left.length ? `; ${left.length} ${STILL_AT_WORK}` : ""}`;
}

/** Fill the bar at the top of the page. */
export function showBar({ where, life, pill }, model) {
  const { server } = model.status;
  const { host, port } = address(server);
  setText(where, `${server.hostname} · ${ANYWHERE.has(host) ? `port ${port}` : server.listening}`);
  const up = `up ${elapsed(model.now() - server.started)}`;
  setText(life, model.failure ? "" : `${up}${idleWords(model)}`);
  if (model.failure) showPill(pill, "bad", "✕ No answer");
  else if (server.ending) showPill(pill, "warn", "… Ending");
  else showPill(pill, "good", "✓ Up");
}

/** Say in the pill of the bar, in a colour that goes with it, how the server is. */
export function showPill(pill, tone, text) {
  setAttribute(pill, "data-tone", tone);
  setText(pill, text);
}

/** Say that the server does not answer; `retry` is called by the button that asks again. */
export function showConnection(element, model, retry) {
  const { failure, status } = model;
  whenChanged(element, failure, () => {
    if (!failure) return [];
    const known = status ? ` What is shown is from ${clock(status.time, failure.since)}.` : "";
    const button = make("button", { type: "button" }, "Ask now");
    button.addEventListener("click", retry);
    const since = make("strong", {}, `No answer since ${clock(failure.since, Date.now() / 1000)}`);
    return [make("p", {}, since, `: ${failure.reason}.${known} The page keeps asking.`), button];
  });
}

/** Show what needs somebody's attention. */
export function showNotices(element, status) {
  syncChildren(element, notices(status), {
    key: (notice) => JSON.stringify(notice),
    create: ({ tone, title, text }) =>
      make("p", { class: "notice", "data-tone": tone }, make("strong", {}, `${title}:`), ` ${text}`),
  });
}

function notices({ server, workers }) {
  const found = [];
  if (server.exposed) found.push({ tone: "bad", title: "Others can get in without a password", text: server.access });
  if (server.ending)
    found.push({
      tone: "warn",
      title: "It is ending",
      text: "it takes no new jobs; those that run have a moment left.",
    });
  for (const { number, state, problem } of workers) {
    if (state === "down" || problem) {
      found.push({
        tone: "bad",
        title: `Worker ${number} is ${state}`,
        text: problem ?? "it is being started again.",
      });
    }
  }
  return found;
}

/** Show the figures of the moment. */
export function showTiles(element, model) {
  const {
    running,
    canceled_running: left,
    waiting_count: waiting,
    oldest_waiting: oldest,
    workers,
    totals,
    machine,
    time,
  } = model.status;
  const longest = running.reduce((one, job) => (one && one.started <= job.started ? one : job), null);
  const busy = workers.filter((worker) => worker.state === "busy").length;
  const bad = ENDED_BADLY.reduce((sum, state) => sum + totals[state], 0);
  const tiles = [
    tile(
      "Running",
      running.length,
      [
        `${busy} of ${count(workers.length, "worker")} busy${left.length ? `, ${left.length} with a canceled job` : ""}`,
      ],
      busy / workers.length,
    ),
    tile("Longest running", longest ? runningClock(longest.started, model.now()) : NOTHING, [
      longest ? jobName(longest) : "nothing runs",
    ]),
    tile(
      "Waiting",
      waiting,
      oldest === null ? ["nothing waits"] : ["oldest for ", runningClock(time - oldest, model.now())],
    ),
    tile(
      "Failed",
      bad ? make("a", { href: "#/failed" }, bad.toLocaleString("en-GB")) : "0",
      [`with ${totals.crashed} crashed, ${totals.lost} lost`],
      null,
      bad ? "bad" : null,
    ),
    tile("Done", totals.done.toLocaleString("en-GB"), [
      `${totals.canceled} canceled, ${totals.joined} joined`,
    ]),
    tile(
      "Load",
      machine.load[0].toFixed(2),
      [`on ${count(machine.processors, "processor")}`],
      machine.load[0] / machine.processors,
    ),
    tile(
      "Memory used",
      size(machine.memory - machine.available),
      [`of ${size(machine.memory)}`],
      1 - machine.available / machine.memory,
    ),
  ];
  syncChildren(element, tiles, { key: ({ name }) => name, create: makeTile, update: updateTile });
}

function tile(name, value, note, share = null, tone = null) {
  return { name, value: value instanceof Node ? value : String(value), note, share, tone };
}

function makeTile({ name, share }) {
  const element = make("div", { class: "tile" });
  const note = make("dd", { class: "note" }, make("span", { class: "words" }));
  if (share !== null) note.append(make("span", { class: "gauge", "aria-hidden": "true" }, make("span")));
  element.append(make("dt", {}, name), make("dd", { class: "value" }), note);
  return element;
}

function updateTile(element, { value, note, share, tone }) {
  const [, figure, below] = element.children;
  const [words, gauge] = below.children;
  setAttribute(element, "data-tone", tone);
  show(figure, [value]);
  show(words, note);
  if (gauge) gauge.firstElementChild.style.width = `${Math.min(1, Math.max(0, share || 0)) * 100}%`;
}

/** Put `parts` into an element unless they are there already, as a link that has the focus may be. */
function show(element, parts) {
  const made = make("span", {}, ...parts);
  if (element.innerHTML !== made.innerHTML) element.replaceChildren(...made.childNodes);
}

/** Show where the server listens, who may use it, and how it is set up. */
export function showServer(element, model) {
  const { server, time } = model.status;
  // By itself: it changes whenever use begins or ends, and what has the focus is to stay.
  const rule = (element._rule ||= make("span", {}));
  setText(rule, idleRule(server, time));
  whenChanged(element, { ...server, idle_left: null }, () =>
    terms([
      ["Listens on", make("code", {}, server.listening), ANYWHERE.has(address(server).host) ? ", every address" : ""],
      ["Open it on its machine", copyable(localUrl(server), "the address")],
      ["From elsewhere: a tunnel, then the same address", copyable(tunnel(server), "the command")],
      ["Who may use it", server.access],
      ["Runs as", `${server.user} on ${server.hostname}, process ${server.pid}`],
      ["Started", `${clock(server.started, time)}, `, runningClock(server.started, time), " ago"],
      ["Versions", versions(server)],
      ["When idle", rule],
      ["Execution records", server.record ? "written" : "not written"],
      [
        "A canceled job",
        server.reclaims
          ? "is stopped: its process is ended"
          : "runs on unheard; its worker is busy until it has ended",
      ],
    ]),
  );
}

function isLocal(host) {
  return ANYWHERE.has(host) || Object.values(ON_ITSELF).includes(host) || host === "localhost";
}

/** The host and the port of "HOST:PORT". */
function address({ listening }) {
  const colon = listening.lastIndexOf(":");
  return { host: listening.slice(0, colon), port: listening.slice(colon + 1) };
}

function localUrl(server) {
  const { host, port } = address(server);
  // A certificate is for a name. Without one no name: it may stand for two addresses.
  if (location.protocol === "https:") return `https://${isLocal(host) ? "localhost" : host}:${port}/`;
  return `http://${ON_ITSELF[host] ?? host}:${port}/`;
}

function tunnel(server) {
  const { host, port } = address(server);
  // No name: it may stand for an address that this server left free, where somebody else can listen.
  const at = ON_ITSELF[host] ?? host;
  return `ssh -N -L ${port}:${at}:${port} ${server.user}@${server.hostname}`;
}

function versions({ name, version, python, packages }) {
  const all = [[name, version], ["Python", python], ...Object.entries(packages)];
  return all.map((one) => one.join(" ")).join(", ");
}

function idleRule({ idle_timeout: timeout, idle_left: left }, time) {
  if (timeout === null) return "It stays up, however long nobody uses it.";
  const rule = `It ends after ${duration(timeout)} without a request or a running job.`;
  return left === null ? `${rule} Now it is in use.` : `${rule} That is at ${clock(time + left, time)}.`;
}

function idleWords(model) {
  const { server, time } = model.status;
  if (model.failure || server.idle_timeout === null) return "";
  if (server.idle_left === null) return " · in use";
  return ` · ends in ${elapsed(server.idle_left - (model.now() - time))} if unused`;
}
