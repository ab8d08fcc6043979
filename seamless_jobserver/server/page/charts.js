// The last half hour as a curve: one value for each step.

import { draw, say, set } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 120;
const LEFT = 34;
const BOTTOM = 20;
const TOP = 8;

/** Draw `series`, a list of { name, values, bad }, over `steps` of `step` seconds from `start` on. */
export function drawChart(place, series, start, step) {
  const width = Math.max(240, place.clientWidth);
  const drawing = place.firstElementChild ?? begin(place);
  set(drawing, "viewBox", `0 0 ${width} ${HEIGHT}`);
  set(drawing, "height", HEIGHT);
  const most = Math.max(1, ...series.flatMap((one) => one.values));
  const count = series[0].values.length;
  const x = (index) => LEFT + (index / (count - 1)) * (width - LEFT - 2);
  const y = (value) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);
  const parts = [
    draw("line", { class: "tick", x1: LEFT, x2: width, y1: y(0), y2: y(0) }),
    draw("line", { class: "tick", x1: LEFT, x2: width, y1: y(most), y2: y(most) }),
    draw("text", { x: LEFT - 6, y: y(0) + 4, "text-anchor": "end" }, "0"),
    draw("text", { x: LEFT - 6, y: y(most) + 6, "text-anchor": "end" }, round(most)),
    draw("text", { x: LEFT, y: HEIGHT - 4 }, clock(start)),
    draw("text", { x: width - 2, y: HEIGHT - 4, "text-anchor": "end" }, clock(start + count * step)),
  ];
  for (const one of series) {
    const points = one.values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    if (!one.bad) {
      parts.push(draw("polygon", { class: "area", points: `${LEFT},${y(0)} ${points} ${x(count - 1)},${y(0)}` }));
    }
    if (!one.bad || one.values.some(Boolean)) {
      parts.push(draw("polyline", { class: one.bad ? "line bad" : "line", points }));
    }
  }
  drawing.lastElementChild.replaceChildren(...parts);
  const told = series.map((one) => `${one.name}: now ${round(one.values.at(-1))}, at most ${round(Math.max(...one.values))}`);
  set(drawing, "aria-label", `The last half hour. ${told.join("; ")}`);
  say(drawing.firstElementChild, told.join("; "));
}

function begin(place) {
  const drawing = draw("svg", { role: "img" }, draw("title"), draw("g"));
  place.append(drawing);
  return drawing;
}

function round(value) {
  return value < 10 ? Math.round(value * 10) / 10 : Math.round(value);
}
