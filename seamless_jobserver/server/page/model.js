/* What the page knows: the newest status, and the ended jobs that the timeline and table show. */

const MOST_ENDED = 3000;
const LONGEST_WINDOW = 30 * 60;
/** The server leaves out the older ones when more than this many ended since it was asked. */
const MOST_PER_ANSWER = 1000;

/** The state of the server as far as it has told. */
export class Model {
  constructor() {
    this.status = null;
    this.failure = null;
    /** How often jobs ended that it was not told of. */
    this.gaps = 0;
    this.forget();
  }

  /** Forget the ended jobs, as for a server that has just been started. */
  forget() {
    this.ended = [];
    this.latest = 0;
    this.version = 0;
    this.generation = (this.generation ?? 0) + 1;
    this._olderOnesExist = true;
  }

  /** Take an answer in. Returns false if it is a new server's, which is to be asked from the start. */
  accept(status) {
    const asked = this.latest;
    const isNew = this.status !== null && this.status.server.started !== status.server.started;
    this.status = status;
    this.failure = null;
    this._receivedAt = performance.now();
    if (asked > 0 && (isNew || status.latest < asked)) {
      this.forget();
      return false;
    }
    this._append(
      status.ended.filter((job) => job.seq > asked),
      asked,
    );
    this.latest = status.latest;
    return true;
  }

  _append(jobs, asked) {
    if (!jobs.length) return;
    const hasGap = asked > 0 && jobs.length >= MOST_PER_ANSWER;
    this.ended = hasGap ? jobs : this.ended.concat(jobs);
    if (hasGap) {
      this._olderOnesExist = true;
      this.gaps += 1;
    }
    if (this.ended.length > MOST_ENDED) this.ended = this.ended.slice(-MOST_ENDED);
    this.version += 1;
  }

  /** How many jobs came to an end that is one of `states`, whether they are known here or not. */
  total(states) {
    return states.reduce((sum, state) => sum + this.status.totals[state], 0);
  }

  /** Note that the server did not answer, for `reason`. */
  fail(reason) {
    this.failure = { since: this.failure?.since ?? Date.now() / 1000, reason };
  }

  /** The present time by the server's clock; it stands still while the server does not answer. */
  now() {
    if (this.status === null) return Date.now() / 1000;
    if (this.failure) return this.status.time;
    return this.status.time + (performance.now() - this._receivedAt) / 1000;
  }

  /** The `before` of the page of history that the timeline still lacks; null if it lacks none. */
  missingBefore() {
    const oldest = this.ended[0];
    const isEnough =
      !oldest ||
      oldest.seq <= 1 ||
      this.ended.length >= MOST_ENDED ||
      oldest.ended < this.now() - LONGEST_WINDOW;
    return this._olderOnesExist && !isEnough ? oldest.seq : null;
  }

  /** Ask no more for older jobs: the server refuses them, and the rest works without. */
  goWithoutOlder() {
    this._olderOnesExist = false;
  }

  /** Add a page of history, newest first, that was asked for with `before`. */
  prepend(page, before) {
    if (this.ended[0]?.seq !== before) return;
    this._olderOnesExist = page.more && page.jobs.length > 0;
    this.ended = page.jobs.slice().reverse().concat(this.ended).slice(-MOST_ENDED);
    this.version += 1;
  }
}
