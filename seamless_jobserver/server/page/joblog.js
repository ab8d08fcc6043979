/* What a job prints: live while it runs, and never more than a megabyte of it on the page. */

import { make, setText } from "./dom.js";
import { isActive, size } from "./format.js";
import { refusal } from "./poller.js";

const MOST_TEXT = 1_000_000;
const PIECE = 50_000;
const FLUSH_AFTER = 200;
/** Colours and cursor movements; the last alternative is one that the next chunk goes on with. */
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
    this.element = make("section", { class: "card" }, this._head, this._pre);
    this._abort = null;
    this._number = null;
    this._reset();
  }

  /** Fetch or follow the output of `job` unless that has been done, or has to wait. */
  update(job) {
    if (job.number !== this._number || (this._isBroken && !this._abort)) {
      this.close();
      this._number = job.number;
      this._isRead = false;
      this._reset();
    }
    this._dropped = job.dropped;
    if (job.state === "queued") this._tell("It has not begun.");
    else if (!this._abort && !this._isRead) this._read(isActive(job));
    else this._describe();
  }

  /** Stop following. */
  close() {
    this._abort?.abort();
    this._abort = null;
    clearTimeout(this._timer);
  }

  _reset() {
    this._pre.replaceChildren();
    this._pre.hidden = true;
    this._pending = "";
    this._rest = "";
    this._length = 0;
    this._isCut = false;
    this._isBroken = false;
    this._timer = null;
  }

  async _read(isLive) {
    const abort = new AbortController();
    this._abort = abort;
    try {
      const address = `jobs/${this._checksum}/log${isLive ? "?follow" : ""}`;
      const answer = await fetch(address, { signal: abort.signal, cache: "no-store" });
      if (!answer.ok) throw await refusal(answer);
      await this._take(answer.body.pipeThrough(new TextDecoderStream()).getReader());
      this._isRead = true;
    } catch (error) {
      if (this._abort !== abort) return;
      this._isBroken = true;
      this._flush();
      this._tell(`The output broke off: ${error.message}.`);
    }
    if (this._abort === abort) this._abort = null;
    if (this._isRead) this._flush();
  }

  async _take(reader) {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this._pending += value;
      if (this._pending.length > MOST_TEXT) this._flush();
      else this._timer ??= setTimeout(() => this._flush(), FLUSH_AFTER);
    }
  }

  /** Move what has arrived onto the page, all at once, since each change costs a layout. */
  _flush() {
    clearTimeout(this._timer);
    this._timer = null;
    const isAtEnd = this._pre.scrollTop + this._pre.clientHeight >= this._pre.scrollHeight - 4;
    this._append(this._clean());
    while (this._length > MOST_TEXT && this._pre.childNodes.length > 1) {
      this._length -= this._pre.firstChild.length;
      this._pre.firstChild.remove();
      this._isCut = true;
    }
    if (isAtEnd) this._pre.scrollTop = this._pre.scrollHeight;
    this._describe();
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

  _clean() {
    const text = (this._rest + this._pending).replace(ESCAPES, "");
    this._pending = "";
    this._rest = this._abort ? (UNFINISHED.exec(text)?.[0] ?? "") : "";
    return text.slice(0, text.length - this._rest.length).replace(/\r\n?/g, "\n");
  }

  _describe() {
    if (this._isBroken) return;
    const left = this._dropped ? `, after ${size(this._dropped)} that are not kept` : "";
    const cut = this._isCut ? `, the last ${size(MOST_TEXT)} of it` : "";
    if (this._length) this._tell(`${this._abort ? "live" : "all it printed"}${cut}${left}`);
    else this._tell(this._abort ? "It has printed nothing yet." : "It printed nothing.");
  }

  _tell(text) {
    setText(this._note, text);
  }
}
