/* Lays out jobs as blocks of a lane: which are drawn alone, and which are merged into one block. */

const SEVERITY = { queued: 0, running: 0, done: 1, canceled: 2, lost: 3, failed: 4, crashed: 5 };

/**
 * The blocks of `jobs`, in the order of their begin, at most `limit` of them. A job shorter than
 * `cell` seconds shares its block with its neighbours. Cells are fixed in time rather than on the
 * screen, so blocks do not change as they slide to the left.
 *
 * A block is {key, start, end, count, states, job}; `job` is the one that matters most in it.
 */
export function layOut(jobs, { from, now, cell, limit }) {
  let length = cell;
  let blocks = merge(jobs, from, now, length);
  while (blocks.length > limit && length < now - from) {
    length *= 2;
    blocks = merge(jobs, from, now, length);
  }
  return blocks.sort((one, other) => one.start - other.start);
}

function merge(jobs, from, now, length) {
  const blocks = [];
  const cells = new Map();
  for (const job of jobs) {
    const end = job.ended ?? now;
    if (end < from) continue;
    const block = alone(job, Math.max(job.started, from), end);
    if (job.ended === null || end - job.started >= length) {
      blocks.push(block);
      continue;
    }
    const cell = Math.floor(end / length);
    const shared = cells.get(cell);
    if (shared) join(shared, block, `${length}:${cell}`);
    else cells.set(cell, block);
  }
  return blocks.concat(...cells.values());
}

function alone(job, start, end) {
  return { key: `job ${job.number}`, start, end, count: 1, states: { [job.state]: 1 }, job };
}

function join(block, other, key) {
  block.key = key;
  block.start = Math.min(block.start, other.start);
  block.end = Math.max(block.end, other.end);
  block.count += 1;
  const state = other.job.state;
  block.states[state] = (block.states[state] ?? 0) + 1;
  if (SEVERITY[state] >= SEVERITY[block.job.state]) block.job = other.job;
}
