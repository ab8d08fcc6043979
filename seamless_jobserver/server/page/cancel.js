/* The button that cancels a job: it says what will happen, asks once, and tells what came of it. */

import { make, setText, whenChanged } from "./dom.js";
import { count, isActive, short } from "./format.js";
import { jobAddress } from "./jobcells.js";
import { request } from "./poller.js";

/** The control for the job with `checksum`; `changed` is called after an answer. */
export class CancelControl {
  constructor(checksum, changed) {
    this._checksum = checksum;
    this._changed = changed;
    this._what = make("p", {});
    this._ask = button("Cancel this job", () => this._show(true), "danger");
    this._yes = button("Yes, cancel it", () => this._post(), "danger");
    this._no = button("No, let it go on", () => this._show(false));
    this._question = make("div", {
      class: "confirm",
      role: "group",
      "aria-label": "Cancel this job?",
      hidden: true,
    });
    this._question.append(this._what, this._yes, this._no);
    this._answer = make("p", { role: "status", class: "answer", tabindex: "-1" });
    this._controls = make("div", { hidden: true }, this._ask, this._question);
    this._hosted = make("p", { class: "aside" });
    this.element = make("div", { class: "cancel" }, this._controls, this._hosted, this._answer);
  }

  /** Offer to cancel `job` while that is possible, in the words that fit `server`. */
  update(job, server) {
    const hadFocus = this._controls.contains(document.activeElement);
    if (job.number !== this._number) this._begin(job.number);
    this._controls.hidden = !isActive(job) || job.hosted;
    whenChanged(this._hosted, isActive(job) && job.hosted && job.within, (within) =>
      within ? insteadOfCancel(within) : [],
    );
    setText(this._what, consequences(job, server));
    if (hadFocus && this._controls.hidden) {
      if (!this._answer.textContent)
        setText(this._answer, "It has ended: there is nothing to cancel any more.");
      this._answer.focus();
    }
  }

  /** Forget what was asked and answered of an earlier run. */
  _begin(number) {
    this._number = number;
    this._question.hidden = true;
    this._ask.hidden = false;
    setText(this._answer, "");
  }

  _show(isAsking) {
    this._question.hidden = !isAsking;
    this._ask.hidden = isAsking;
    setText(this._answer, "");
    (isAsking ? this._no : this._ask).focus();
  }

  async _post() {
    this._yes.disabled = true;
    try {
      const signal = AbortSignal.timeout(20000);
      const answer = await request(`cancel-transformation/${this._checksum}`, { method: "POST", signal });
      const { canceled, status } = await answer.json();
      setText(
        this._answer,
        canceled ? "It is canceled; its callers have been told." : `It was not canceled: it is ${status}.`,
      );
    } catch (error) {
      setText(this._answer, `It was not canceled, as far as this page knows. The server: ${error.message}.`);
    }
    this._yes.disabled = false;
    this._question.hidden = true;
    this._ask.hidden = false;
    this._answer.focus();
    this._changed();
  }
}

function button(text, action, kind = null) {
  const element = make("button", { type: "button", class: kind }, text);
  element.addEventListener("click", action);
  return element;
}

/** What runs inside another job gives its result to that one, whoever is told otherwise. */
function insteadOfCancel(within) {
  return [
    "It runs inside the job that asked for it, as a part of that job, and cannot be stopped by itself. To stop it, cancel ",
    make("a", { href: jobAddress(within) }, "that job ", make("code", {}, short(within))),
    ".",
  ];
}

function consequences({ state, waiters }, server) {
  const told =
    waiters === 1 ? "Its caller is told at once." : `Its ${count(waiters, "caller")} are told at once.`;
  if (state === "queued") return `${told} It has not begun, so no work is lost.`;
  const process = server?.reclaims
    ? "the process that runs it is ended, with all that it has started."
    : "the process runs on until the job ends, and its worker is busy until then.";
  return `${told} The work done so far is thrown away; ${process}`;
}
