/* Two charts of the last half hour: how many jobs ended, and how many waited. */

import { make, makeSvg, setAttribute, setText, whenChanged } from "./dom.js";
import { count, duration, hoursAndMinutes } from "./format.js";

const HEIGHT = 100;
const LABELS = 3;

/** A chart of steps; each entry of `parts` is the class of one path in it. */
class Chart {
  constructor(element, parts, legend) {
    this._paths = parts.map((part) => makeSvg("path", { class: part }));
    this._svg = makeSvg("svg", { role: "img", preserveAspectRatio: "none" }, ...this._paths);
    this._top = make("span", { class: "top" });
    this._axis = make("div", { class: "chart-axis", "aria-hidden": "true" });
    const scale = make(
      "div",
      { class: "chart-scale", "aria-hidden": "true" },
      this._top,
      make("span", {}, "0"),
    );
    const plot = make("div", { class: "plot" }, this._svg);
    element.append(make("div", { class: "chart" }, scale, plot, this._axis), ...legend);
  }

  /** Draw one list of numbers for each path, and say in `words` what is to be seen. */
  draw(lists, series, words) {
    const top = roundUp(Math.max(...lists.flat(), 0));
    const steps = lists[0].length;
    setAttribute(this._svg, "viewBox", `0 0 ${steps} ${HEIGHT}`);
    setAttribute(this._svg, "aria-label", words);
    lists.forEach((list, index) => setAttribute(this._paths[index], "d", outline(list, top)));
    setText(this._top, String(top));
    whenChanged(this._axis, [Math.floor(series.start / 60), series.step, steps], () =>
      Array.from({ length: LABELS + 1 }, (_, index) =>
        make("span", {}, hoursAndMinutes(series.start + (series.step * steps * index) / LABELS)),
      ),
    );
  }
}

/** The charts of the page. */
export class Charts {
  constructor({ throughput, throughputNow, queue, queueNow }) {
    this._throughput = new Chart(
      throughput,
      ["all", "bad"],
      [make("p", { class: "chart-legend" }, swatch("all"), "ended", swatch("bad"), "of them failed")],
    );
    this._queue = new Chart(
      queue,
      ["all"],
      [make("p", { class: "chart-legend" }, swatch("all"), "most that waited at a time")],
    );
    this._now = { throughput: throughputNow, queue: queueNow };
  }

  /** Show what `model` knows. */
  update({ status }) {
    const { series } = status;
    const window = duration(series.step * series.ended.length);
    const [ended, failed, longest] = [sum(series.ended), sum(series.failed), Math.max(0, ...series.waiting)];
    const steps = Math.max(1, Math.round(60 / series.step));
    const lastMinute = sum(series.ended.slice(-steps - 1, -1));
    setText(this._now.throughput, `${count(lastMinute, "job")} in the last minute`);
    setText(this._now.queue, `${status.waiting_count} now, at most ${longest}`);
    this._throughput.draw(
      [series.ended, series.failed],
      series,
      `Jobs ended per ${duration(series.step)} in the last ${window}: ${ended} in all, ${failed} of them failed, at most ${Math.max(0, ...series.ended)} at a time.`,
    );
    this._queue.draw(
      [series.waiting],
      series,
      `Jobs waiting in the last ${window}: ${status.waiting_count} now, at most ${longest}.`,
    );
  }
}

function swatch(part) {
  return make("span", { class: `swatch-${part}`, "aria-hidden": "true" });
}

function sum(list) {
  return list.reduce((one, other) => one + other, 0);
}

function outline(list, top) {
  let path = "";
  let level = 0;
  list.forEach((value, index) => {
    if (value === level) return;
    path += level ? `H${index}` : `M${index},${HEIGHT}`;
    path += value ? `V${(HEIGHT * (1 - value / top)).toFixed(2)}` : `V${HEIGHT}Z`;
    level = value;
  });
  return level ? `${path}H${list.length}V${HEIGHT}Z` : path;
}

function roundUp(value) {
  if (value <= 4) return 4;
  const magnitude = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].map((factor) => factor * magnitude).find((step) => step >= value);
}
