/* Turns numbers, times and jobs into the words that the page shows. */

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** What stands for a figure that is not known. */
export const NOTHING = "–";

/** The word and the sign of each state; the sign stands in for the word where there is no room. */
export const STATES = {
  queued: { word: "waiting", sign: "…" },
  running: { word: "running", sign: "►" },
  done: { word: "done", sign: "✓" },
  failed: { word: "failed", sign: "✕" },
  crashed: { word: "crashed", sign: "!" },
  canceled: { word: "canceled", sign: "⊘" },
  lost: { word: "lost", sign: "?" },
};

/** The states in which a job has ended. */
export const OUTCOMES = ["done", "failed", "crashed", "canceled", "lost"];

/** The word for a canceled job whose work goes on. */
export const STILL_AT_WORK = "canceled, still at work";

/** Whether `job` waits or runs. */
export function isActive(job) {
  return job.state === "queued" || job.state === "running";
}

/** A duration as precise as it is of use: "420 ms", "3.2 s", "3 min 07 s", "2 h 14 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 0.001) return "<1 ms";
  if (seconds < 1) return `${Math.floor(seconds * 1000)} ms`;
  if (seconds < 10) return `${(Math.floor(seconds * 10) / 10).toFixed(1)} s`;
  return elapsed(seconds).replace(/ 00 (?:s|min)$/, "");
}

/** A duration that is still growing, in whole seconds. */
export function elapsed(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < MINUTE) return `${whole} s`;
  if (whole < HOUR) return `${Math.floor(whole / MINUTE)} min ${two(whole % MINUTE)} s`;
  if (whole < DAY) return `${Math.floor(whole / HOUR)} h ${two(Math.floor((whole % HOUR) / MINUTE))} min`;
  return `${Math.floor(whole / DAY)} d ${Math.floor((whole % DAY) / HOUR)} h`;
}

/** For how long `job`, which has ended, ran: by its own measure, or by the clock; null if it did not. */
export function timeRun({ wall, started, ended }) {
  if (wall !== null) return wall;
  return started === null || ended === null ? null : ended - started;
}

/** A size with three digits: "87.0 MB". */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return NOTHING;
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** The time of day of a moment, with its date if that is not the date of `now`. */
export function clock(time, now) {
  const date = new Date(time * 1000);
  const hours = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (date.toDateString() === new Date(now * 1000).toDateString()) return hours;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${hours}`;
}

/** Hours and minutes of a moment, for an axis. */
export function hoursAndMinutes(time) {
  const date = new Date(time * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** The beginning of a checksum, enough to tell jobs apart by eye. */
export function short(checksum) {
  return checksum.slice(0, 8);
}

/** What a person calls `job`. */
export function jobName(job) {
  const name = printable(job.name ?? "").trim();
  if (!name) return `unnamed ${job.language} job`;
  return name.length > 160 ? `${name.slice(0, 159)}…` : name;
}

/** "1 job", "2 jobs". */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en-GB")} ${number === 1 ? one : many}`;
}

/** `text` in which no character is invisible, or turns the direction of what follows it. */
export function printable(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "\ufffd");
}

/** `text` of many lines in which no character turns the direction of what follows it. */
export function undirected(text) {
  return text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}

function two(number) {
  return String(number).padStart(2, "0");
}
