/* Asks the server again and again: every three seconds while somebody looks, less when it is away. */

const PAUSE = 3000;
const LONGEST_PAUSE = 10000;
const PATIENCE = 10000;

/** Calls `ask(signal)` while the page is visible; `failed(reason)` is told when that throws. */
export class Poller {
  constructor(ask, failed) {
    this._ask = ask;
    this._failed = failed;
    this._failures = 0;
    this._timer = null;
    this._abort = null;
  }

  /** Begin; from then on it follows the visibility of the page. */
  start() {
    document.addEventListener("visibilitychange", () => this._follow());
    this._follow();
  }

  /** Ask at once. */
  now() {
    this._stop();
    this._run();
  }

  _follow() {
    if (document.visibilityState === "visible") this.now();
    else this._stop();
  }

  _stop() {
    clearTimeout(this._timer);
    this._abort?.abort();
    this._abort = null;
  }

  async _run() {
    const abort = new AbortController();
    this._abort = abort;
    const patience = setTimeout(() => abort.abort(new Error("it takes too long")), PATIENCE);
    try {
      await this._ask(abort.signal);
      this._failures = 0;
    } catch (error) {
      if (this._abort !== abort) return;
      this._failures += 1;
      this._failed(error.message);
    } finally {
      clearTimeout(patience);
    }
    if (this._abort === abort) this._timer = setTimeout(() => this._run(), this._pause());
  }

  _pause() {
    return Math.min(LONGEST_PAUSE, PAUSE * 1.5 ** this._failures);
  }
}

/** Get JSON; throws as `request` does. */
export async function getJson(address, signal) {
  return (await request(address, { signal })).json();
}

/** Ask the server; throws an error that says, as of "it", what it answered if that is no success. */
export async function request(address, options) {
  const headers = { Accept: "application/json" };
  let answer;
  try {
    answer = await fetch(address, { headers, cache: "no-store", ...options });
  } catch (error) {
    // What browsers say of a network that fails differs, and helps nobody.
    throw error instanceof TypeError ? new Error("it cannot be reached") : error;
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** The error for an answer that is not a success; `status` is its number. */
async function refusal(answer) {
  const text = (await answer.text()).slice(0, 300).trim();
  const error = new Error(`it answers ${answer.status}${text ? `: ${text}` : ""}`);
  error.status = answer.status;
  return error;
}
