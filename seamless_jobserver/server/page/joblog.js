/* What a job prints: read on from where the page is each time that the job is asked for. */

import { make, setText, whenChanged } from "./dom.js";
import { isActive, short, size, undirected } from "./format.js";
import { jobAddress } from "./jobcells.js";
import { request } from "./poller.js";

const MOST_TEXT = 1_000_000;
const PIECE = 50_000;
const PATIENCE = 20_000;
/** Colours and cursor movements; the last alternative is one that the next piece goes on with. */
const ESCAPES =
  /\u001b\[[0-9;?]*[ -/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)|\u001b[()][A-Z0-9]|\u001b[=>78cDEHM]/g;
const UNFINISHED = /(?:\r|\u001b[^\n]{0,200})$/;

/** The output of the job with `checksum`. */
export class JobLog {
  constructor(checksum) {
    this._checksum = checksum;
    this._note = make("p", { class: "aside" });
    this._pre = make("pre", { class: "output", tabindex: "0", role: "region", "aria-label": "Output" });
    this._head = make("div", { class: "card-head" }, make("h2", {}, "Output"), this._note);
    this._elsewhere = make("p");
    this.element = make("section", { class: "card" }, this._head, this._elsewhere, this._pre);
    this._abort = null;
    this._run = null;
  }

  /** Read what `job` has printed since it was asked the last time. */
  update(job) {
    const run = `${job.number}-${job.retries}`;
    // Another server may give the same number.
    if (run !== this._run || job.received !== this._received) {
      this.close();
      this._run = run;
      this._received = job.received;
      this._reset();
    }
    this._job = job;
    whenChanged(this._elsewhere, job.within, (within) => (within ? outputElsewhere(within) : []));
    if (job.started !== null && !job.hosted && !this._abort && this._isBehind()) this._read();
    else this._describe();
  }

  /** Ask no more. */
  close() {
    this._abort?.abort();
    this._abort = null;
  }

  _reset() {
    this._pre.replaceChildren();
    this._pre.hidden = true;
    this._decoder = new TextDecoder();
    this._rest = "";
    this._offset = 0;
    this._length = 0;
    this._missing = 0;
    this._isCut = false;
    this._problem = null;
  }

  _isBehind() {
    return this._problem !== null || this._job.output > this._offset;
  }

  _isLive() {
    return isActive(this._job) || this._job.working;
  }

  async _read() {
    const abort = new AbortController();
    this._abort = abort;
    const patience = setTimeout(() => abort.abort(new Error("it takes too long")), PATIENCE);
    try {
      const address = `jobs/${this._checksum}/log?from=${this._offset}`;
      const answer = await request(address, { signal: abort.signal });
      const bytes = await answer.arrayBuffer();
      if (this._abort !== abort) return;
      // Another run prints into another file: its job has not been seen here yet.
      if (answer.headers.get("Output-Run") === this._run)
        this._take(bytes, Number(answer.headers.get("Output-Start")));
      this._problem = null;
    } catch (error) {
      if (this._abort !== abort) return;
      this._problem = error.message;
    } finally {
      clearTimeout(patience);
    }
    this._abort = null;
    this._describe();
  }

  /** Move what has arrived onto the page, all at once, since each change costs a layout. */
  _take(bytes, start) {
    if (start > this._offset) {
      this._reset();
      this._missing = start;
    }
    this._offset = start + bytes.byteLength;
    const isAtEnd = this._pre.scrollTop + this._pre.clientHeight >= this._pre.scrollHeight - 4;
    const isLast = !this._isLive() && this._offset >= this._job.output;
    this._append(this._clean(this._decoder.decode(bytes, { stream: !isLast }), isLast));
    while (this._length > MOST_TEXT && this._pre.childNodes.length > 1) {
      this._length -= this._pre.firstChild.length;
      this._pre.firstChild.remove();
      this._isCut = true;
    }
    if (isAtEnd) this._pre.scrollTop = this._pre.scrollHeight;
  }

  _append(text) {
    this._length += text.length;
    for (let start = 0; start < text.length; start += PIECE) {
      const piece = text.slice(start, start + PIECE);
      const last = this._pre.lastChild;
      if (last && last.length + piece.length <= PIECE) last.appendData(piece);
      else this._pre.append(piece);
    }
    this._pre.hidden = this._length === 0;
  }

  _clean(piece, isLast) {
    const text = (this._rest + piece).replace(ESCAPES, "");
    this._rest = isLast ? "" : (UNFINISHED.exec(text)?.[0] ?? "");
    return undirected(text.slice(0, text.length - this._rest.length).replace(/\r\n?/g, "\n"));
  }

  _describe() {
    setText(this._note, this._problem ? `The output broke off: ${this._problem}.` : this._words());
  }

  _words() {
    const { started, hosted, state, output, dropped } = this._job;
    if (hosted) return "";
    if (started === null) return state === "queued" ? "It has not begun." : "It never began.";
    if (this._length) {
      const left = this._missing ? `, after ${size(this._missing)} that are not kept` : "";
      const cut = this._isCut ? `, the last ${size(MOST_TEXT)} of it` : "";
      return `${this._isLive() ? "live" : "all it printed"}${cut}${left}`;
    }
    if (this._isLive()) return "It has printed nothing yet.";
    if (output > 0 && dropped >= output) return `What it printed is not kept any more (${size(output)}).`;
    return output > this._offset ? "Asking for it." : "It printed nothing.";
  }
}

function outputElsewhere(within) {
  return [
    "It runs in the process of the job that asked for it. What it prints is part of ",
    make("a", { href: jobAddress(within) }, "the output of that job ", make("code", {}, short(within))),
    ".",
  ];
}
