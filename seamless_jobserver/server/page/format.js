// How times, sizes, states and names are written.

const SIGNS = {
  queued: "◷ waiting", running: "▶ running", done: "✓ done", failed: "✕ failed", crashed: "✕ crashed",
  canceled: "⊘ canceled", lost: "✕ lost",
};
const UNITS = [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];

/** A state as a sign and a word, so that it is never told by colour alone. */
export const stateWords = (state) => SIGNS[state] ?? state;

/** Seconds as a short duration. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, seconds);
  if (s < 0.0995) return `${(s * 1000).toFixed(0)} ms`;
  if (s < 9.95) return `${s.toFixed(2)} s`;
  if (s < 59.5) return `${s.toFixed(0)} s`;
  const whole = Math.round(s);
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)}:${two(Math.floor((whole % 3600) / 60))} h`;
  return `${Math.floor(whole / 86400)} days`;
}

/** Bytes with a decimal unit. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  for (const [unit, one] of UNITS) if (bytes >= one) return `${(bytes / one).toFixed(1)} ${unit}`;
  return `${bytes} B`;
}

/** A moment, in seconds since 1970, as the clock of the day shows it. */
export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const moment = new Date(seconds * 1000);
  const time = moment.toLocaleTimeString([], { hour12: false });
  return moment.toDateString() === new Date().toDateString() ? time : `${moment.toLocaleDateString()} ${time}`;
}

/** What a person would call a job. */
export const nameOf = (job) => job.name || `${job.language} code`;

/** As many digits of a checksum as tell it from others in view. */
export const short = (checksum) => checksum.slice(0, 8);
