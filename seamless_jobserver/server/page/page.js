// The status page: one feed of news, an overview, and a view of one job, chosen by the fragment.

import { drawChart } from "./charts.js";
import { byId, choices, define, make, renew, say, set } from "./dom.js";
import { Feed } from "./feed.js";
import { clock, duration, size, stateWords } from "./format.js";
import { Ended, showNow } from "./jobs.js";
import { JobView } from "./jobview.js";
import { drawTimeline } from "./timeline.js";

const SPANS = [[120, "2 min"], [600, "10 min"], [1800, "30 min"]];
let span = 600;

const feed = new Feed(show, showSilence);
const ended = new Ended(feed);
const view = new JobView(feed);

choices(byId("spans"), SPANS, span, (seconds) => {
  span = seconds;
  showTimeline();
});
for (const state of ["running", "done", "failed", "canceled"]) {
  byId("legend").append(make("li", { class: state }, `■ ${stateWords(state)}`));
}
addEventListener("hashchange", route);
addEventListener("resize", () => feed.status && showDrawings());
setInterval(() => feed.status && !document.hidden && showTimes(), 1000);
route();

function route() {
  const checksum = /^#\/jobs\/([0-9a-fA-F]{64})$/.exec(location.hash)?.[1].toLowerCase();
  byId("overview").hidden = Boolean(checksum);
  byId("job").hidden = !checksum;
  if (checksum) view.open(checksum);
  else {
    view.close();
    if (feed.status) show();
  }
}

function show() {
  const { server } = feed.status;
  say(byId("title"), `jobserver on ${server.hostname}`);
  say(byId("connection"), server.ending ? "ending" : "up");
  set(byId("connection"), "class", server.ending ? "pill bad" : "pill");
  say(byId("access"), server.access);
  set(byId("access"), "class", server.exposed ? "access exposed" : "access");
  showTimes();
  if (byId("overview").hidden) return;
  const { running, waiting_count: waiting } = feed.status;
  document.title = `${running.length} running, ${waiting} waiting – jobserver on ${server.hostname}`;
  showTiles(feed.status);
  ended.show();
  showWorkers(feed.status.workers);
  showDrawings();
}

function showSilence(heard) {
  const since = heard ? ` since ${clock(heard / 1000)}` : "";
  say(byId("connection"), `no answer${since}`);
  set(byId("connection"), "class", "pill bad");
}

/** What changes with the time alone, also between two answers. */
function showTimes() {
  const { server } = feed.status;
  const now = feed.now();
  define(byId("facts"), [
    ["Listens at", server.listening],
    ["User", server.user],
    ["Up for", duration(now - server.started)],
    ["Ends if unused", server.idle_left === null ? "never" : `in ${duration(server.idle_left)}`],
    ["Records", server.record ? "yes" : "no"],
    ["Version", server.version],
    ["Python", server.python],
    ...Object.entries(server.packages),
  ]);
  if (!byId("overview").hidden) showNow(feed.status, now);
}

function showTiles(status) {
  const { totals, machine } = status;
  const failures = totals.failed + totals.crashed + totals.lost;
  const waits = status.oldest_waiting === null ? "nothing waits" : `oldest for ${duration(status.oldest_waiting)}`;
  const tiles = [
    ["Running", status.running.length, `on ${status.workers.length} workers`],
    ["Waiting", status.waiting_count, waits],
    ["Done", totals.done, `of ${totals.received} received`],
    ["Failed", failures, `${totals.crashed} of them crashed`, failures > 0],
    ["Canceled", totals.canceled, `${totals.joined} requests joined others`],
    ["Load", machine.load[0].toFixed(1), `on ${machine.processors} processors`, machine.load[0] > 1.5 * machine.processors],
    ["Memory free", size(machine.available), `of ${size(machine.memory)}`, machine.available < machine.memory / 20],
  ];
  renew(
    byId("tiles"), tiles, ([name]) => name,
    ([name]) => make("li", {}, make("span", {}, name), make("strong"), make("small")),
    (element, [, value, words, alarm]) => {
      set(element, "class", alarm ? "alarm" : "");
      say(element.children[1], String(value));
      say(element.children[2], words);
    },
  );
}

function showWorkers(workers) {
  renew(
    byId("workers"), workers, (worker) => worker.number,
    () => make("tr", {}, ...["number", "", "number", "number", "number", "name"].map((kind) => make("td", { class: kind }))),
    (element, worker) => {
      const doing = worker.problem ?? worker.phase ?? "";
      [worker.number, worker.state, worker.pid ?? "–", size(worker.memory), worker.jobs, doing]
        .forEach((text, index) => say(element.children[index], String(text)));
    },
  );
}

function showDrawings() {
  if (byId("overview").hidden) return;
  showTimeline();
  const { series } = feed.status;
  const perMinute = (values) => values.map((value) => (value * 60) / series.step);
  drawChart(byId("throughput"), [
    { name: "ended", values: perMinute(series.ended) },
    { name: "failed", values: perMinute(series.failed), bad: true },
  ], series.start, series.step);
  drawChart(byId("queue"), [{ name: "waiting", values: series.waiting }], series.start, series.step);
}

function showTimeline() {
  const jobs = [...feed.ended, ...feed.status.running];
  drawTimeline(byId("timeline"), feed.status.workers, jobs, span, feed.now());
}
