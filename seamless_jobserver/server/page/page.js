/* The entry of the status page: asks the server, and shows the overview or one job. */

import { Charts } from "./charts.js";
import { setText } from "./dom.js";
import { Failures } from "./failures.js";
import { tick } from "./jobcells.js";
import { JobView } from "./jobview.js";
import { Model } from "./model.js";
import { Poller, getJson } from "./poller.js";
import { Queue } from "./queue.js";
import { Recent } from "./recent.js";
import * as summary from "./summary.js";
import { Timeline } from "./timeline.js";

const JOB_ADDRESS = /^#\/jobs\/([0-9a-f]{64})$/;
const HISTORY_PAGE = 1000;

const byId = (id) => document.getElementById(id);
const model = new Model();
const timeline = new Timeline(byId("timeline"), byId("windows"), model);
const queue = new Queue({
  running: byId("running"),
  waiting: byId("waiting"),
  runningCount: byId("running-count"),
  waitingCount: byId("waiting-count"),
});
const charts = new Charts({
  throughput: byId("throughput"),
  throughputNow: byId("throughput-now"),
  queue: byId("queue"),
  queueNow: byId("queue-now"),
});
const failures = new Failures(byId("failures"), model);
const recent = new Recent(
  { element: byId("recent"), aside: byId("recent-aside"), heading: byId("recent-heading") },
  model,
);
const jobView = new JobView(byId("job"), model);
const bar = { where: byId("where"), life: byId("life"), pill: byId("pill") };
const poller = new Poller(ask, noAnswer);
let openJob = null;

async function ask(signal) {
  const status = await getJson(`status?after=${model.latest}`, signal);
  if (!model.accept(status)) {
    await ask(signal);
    return;
  }
  show();
  await fetchMissing(signal);
}

/** Fetch one page of the history that the timeline lacks; the next one follows with the next poll. */
async function fetchMissing(signal) {
  const before = model.missingBefore();
  if (before === null) return;
  try {
    model.prepend(await getJson(`jobs?before=${before}&limit=${HISTORY_PAGE}`, signal), before);
  } catch (error) {
    if (!error.status) throw error;
    model.goWithoutOlder();
  }
  show();
}

function noAnswer(reason) {
  model.fail(reason);
  showConnection();
}

function show() {
  showConnection();
  if (openJob) jobView.update();
  else showOverview();
  showTitle();
}

function showOverview() {
  setText(byId("overview-heading"), summary.headline(model.status));
  summary.showNotices(byId("notices"), model.status);
  summary.showTiles(byId("tiles"), model);
  summary.showServer(byId("server"), model);
  timeline.update();
  queue.update(model);
  charts.update(model);
  failures.update();
  recent.update();
}

function showConnection() {
  document.body.classList.toggle("stale", model.failure !== null);
  summary.showConnection(byId("connection"), model, () => poller.now());
  if (model.status) summary.showBar(bar, model);
  else summary.showPill(bar.pill, "bad", "✕ No answer");
  showTitle();
}

function showTitle() {
  const where = model.status ? `jobserver on ${model.status.server.hostname}` : "jobserver";
  const what = openJob ? jobView.title : model.status && summary.headline(model.status);
  const title = [model.failure ? "No answer" : what, where].filter(Boolean).join(" – ");
  if (document.title !== title) document.title = title;
}

function route() {
  const checksum = JOB_ADDRESS.exec(location.hash)?.[1] ?? null;
  const isChange = checksum !== openJob;
  openJob = checksum;
  byId("overview").hidden = checksum !== null;
  byId("job").hidden = checksum === null;
  if (!isChange) return;
  jobView.close();
  if (checksum) jobView.open(checksum);
  else if (model.status) showOverview();
  scrollTo(0, 0);
  (checksum ? jobView.heading : byId("overview-heading")).focus({ preventScroll: true });
  showTitle();
}

function second() {
  if (document.visibilityState !== "visible" || !model.status) return;
  summary.showBar(bar, model);
  if (!openJob) timeline.slide();
  tick(document.body, model.now());
}

jobView.onShow = showTitle;
addEventListener("hashchange", route);
route();
poller.start();
setInterval(second, 1000);
