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
/** The server gives no more at a time. */
const HISTORY_PAGE = 500;

/** The overview, with the list of the jobs that ended badly. */
const FAILED = "#/failed";

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
let areFailedWanted = false;

async function ask(signal) {
  const status = await getJson(`status?after=${model.latest}`, signal);
  if (!model.accept(status)) {
    await ask(signal);
    return;
  }
  show();
  await fetchMissing(signal);
  await failures.fetchMissing(signal);
  if (!openJob) failures.update();
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
  showHeadline();
}

function show() {
  showConnection();
  if (openJob) jobView.update();
  else showOverview();
  showTitle();
}

function showOverview() {
  showHeadline();
  summary.showNotices(byId("notices"), model.status);
  summary.showTiles(byId("tiles"), model);
  summary.showServer(byId("server"), model);
  timeline.update();
  queue.update(model);
  charts.update(model);
  failures.update();
  recent.update();
  if (areFailedWanted) {
    areFailedWanted = false;
    recent.showOnly(summary.ENDED_BADLY);
  }
}

function showHeadline() {
  if (model.status) setText(byId("overview-heading"), summary.headline(model));
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
  const what = openJob ? jobView.title : model.status && summary.headline(model);
  const title = [model.failure ? "No answer" : what, where].filter(Boolean).join(" – ");
  if (document.title !== title) document.title = title;
}

function route(event) {
  if (location.hash === FAILED) {
    areFailedWanted = true;
    // So that the same link leads here again.
    history.replaceState(null, "", "#/");
  }
  const checksum = JOB_ADDRESS.exec(location.hash)?.[1] ?? null;
  const isChange = checksum !== openJob;
  openJob = checksum;
  byId("overview").hidden = checksum !== null;
  byId("job").hidden = checksum === null;
  byId("skip-to-recent").hidden = checksum !== null;
  if (!isChange) {
    if (model.status && !openJob) showOverview();
    return;
  }
  jobView.close();
  if (checksum) jobView.open(checksum);
  else if (model.status) showOverview();
  showTitle();
  // A page that has just been opened begins where the browser begins.
  if (!event) return;
  scrollTo(0, 0);
  (checksum ? jobView.heading : byId("overview-heading")).focus({ preventScroll: true });
}

function second() {
  if (document.visibilityState !== "visible" || !model.status) return;
  summary.showBar(bar, model);
  if (!openJob) timeline.slide();
  tick(document.body, model.now());
}

function skip(event) {
  const target = byId(event.currentTarget.hash.slice(1));
  event.preventDefault();
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

for (const link of document.querySelectorAll(".skip a")) link.addEventListener("click", skip);
jobView.onShow = showTitle;
addEventListener("hashchange", route);
route();
poller.start();
setInterval(second, 1000);
