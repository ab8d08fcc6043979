// News from the server: asked for while the page can be seen, with growing pauses when no answer comes.

const INTERVAL = 2000;
const LONGEST = 10000;
const REMEMBERED = 3000;
const LIMIT = 15000;

/** Asks `status` again and again, and hands each answer on. */
export class Feed {
  /** `news` is called after each answer, `silence` with the time of the last one when there is none. */
  constructor(news, silence) {
    this.status = null;
    this.ended = [];
    this.news = news;
    this.silence = silence;
    this.pause = INTERVAL;
    this.asking = false;
    document.addEventListener("visibilitychange", () => this.ask());
    this.ask();
  }

  /** The present time of the server, in seconds, which may go by another clock than this machine. */
  now() {
    return Date.now() / 1000 + (this.ahead ?? 0);
  }

  async ask() {
    clearTimeout(this.timer);
    if (document.visibilityState !== "visible" || this.asking) return;
    this.asking = true;
    try {
      const answer = await fetch(`status?after=${this.status?.latest ?? 0}`, { signal: AbortSignal.timeout(LIMIT) });
      if (!answer.ok) throw new Error(`answer ${answer.status}`);
      this.take(await answer.json());
      this.pause = INTERVAL;
      this.news();
    } catch {
      this.pause = Math.min(LONGEST, this.pause * 1.5);
      this.silence(this.heard);
    } finally {
      this.asking = false;
      this.timer = setTimeout(() => this.ask(), this.pause);
    }
  }

  take(status) {
    const another = this.status !== null
      && (status.server.started !== this.status.server.started || status.latest < this.status.latest);
    if (another) {
      // What it has told is counted from its own beginning, so it is asked for all of it.
      this.status = null;
      this.ended = [];
      this.pause = 200;
      throw new Error("it is another server");
    }
    this.ended = this.ended.concat(status.ended).slice(-REMEMBERED);
    this.status = status;
    this.heard = Date.now();
    this.ahead = status.time - this.heard / 1000;
  }
}
