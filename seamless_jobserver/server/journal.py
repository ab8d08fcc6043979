"""What has happened to jobs, for people who watch: bounded, and cheap to show.

The journal is written on the event loop at each event of a job, mostly by the ledger. Watchers may
ask for the history again and again, and there are long ones, so a job that has ended is kept as the
JSON that it is served as, and looking costs no more than joining texts. Three things are bounded:

- `HISTORY` jobs that have ended are kept, then the oldest are forgotten;
- what only the page of one job shows (pins, messages, metadata) is kept as long as it fits into
  `DETAILS` bytes in all, so that transformations with thousands of pins do not fill the memory;
- the course of the last half hour is kept in steps of `STEP` seconds.

Writing a job up takes longer than all else that its end costs the loop, and its callers would wait
for that. So it is noted, and written up when the loop has a moment (`write_up`), or when
somebody looks.

A job is named as its worker names it. The name goes by the checksum of its code, so that a job
which is still queued can be named too, when its code has run here before.
"""

import json
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from seamless_jobserver.errors import shorten
from seamless_jobserver.messages import Ending, Outcome, Traffic
from seamless_jobserver.server.jobs import Job
from seamless_jobserver.server.metrics import Histogram

HISTORY: Final = 10_000
DETAILS: Final = 8 * 2**20
STEP: Final = 10
_STEPS: Final = 180
_NAMES: Final = 2000
_PROBLEM: Final = 300
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_MESSAGE: Final = 64 * 1024
"""Characters of a failure's message that are kept, at its end, where its cause stands."""


@dataclass(eq=False)
class Entry:
    """A job that is under way, with times in seconds since 1970.

    `output` is the path of what it prints, once it has been given to a worker; `slot` the number
    of the slot that it runs in. A hosted job runs inside another one, which is `within`.
    """

    job: Job
    received: float
    started: float | None = None
    slot: int | None = None
    output: str | None = None
    waiters: int = 1
    name: str = ""
    within: str | None = None


class Ended(NamedTuple):
    """A job that has ended: its line as JSON, and what its page shows besides, if that is kept.

    `detail` is compressed (zlib): it is rarely looked at, and half as large then.
    """

    seq: int
    state: str
    line: bytes
    detail: bytes | None
    output: str | None


class _Unwritten(NamedTuple):
    """A job that has ended, and will be written up."""

    seq: int
    entry: Entry
    ended: float
    outcome: Outcome


class _Step(NamedTuple):
    number: int
    ended: int
    failed: int
    waiting: int


class Journal:
    """Written on the loop, mostly by the ledger; `now` tells seconds since 1970."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.under_way: dict[int, Entry] = {}
        self._unwritten: deque[_Unwritten] = deque()
        self._history: OrderedDict[int, tuple[str, Ended]] = OrderedDict()
        self._newest: dict[str, int] = {}
        self._details: deque[int] = deque()
        self._detail_bytes = 0
        self._names: OrderedDict[str, str] = OrderedDict()
        self._newest_in_slot: dict[int, Entry] = {}
        self._steps: deque[_Step] = deque(maxlen=_STEPS)
        self._waiting = self._waiting_before = 0
        self.latest = 0
        self.totals: Counter[str] = Counter()
        self.traffic = Traffic()
        self.run_times = Histogram()
        self.queue_times = Histogram()
        self.jobs_of_slot: Counter[int] = Counter()

    def received(self, job: Job) -> None:
        """A job is new."""
        around = None if job.host is None else self._newest_in_slot.get(job.host)
        within = None if around is None else around.job.checksum
        name = self.known_name(job)
        self.under_way[job.number] = Entry(job, self._now(), name=name, within=within)
        self.totals["received"] += 1
        self._waiting += 1
        self._note()

    def joined(self, job: Job) -> None:
        """Another caller waits for a job."""
        self.totals["joined"] += 1
        entry = self.under_way[job.number]
        entry.waiters = max(entry.waiters, _waiters(job))

    def started(self, job: Job, slot: int, output: str | None) -> None:
        """A job has been given to the worker of a slot, and prints into `output`."""
        entry = self.under_way[job.number]
        entry.started, entry.slot, entry.output = self._now(), slot, output
        if job.host is None:
            self._newest_in_slot[slot] = entry
        self._observe_start(job, entry)
        self.jobs_of_slot[slot] += 1

    def served(self, job: Job, by: Entry) -> None:
        """A job has waited for what another, `by`, has run meanwhile inside a third."""
        entry = self.under_way[job.number]
        entry.started, entry.slot, entry.within = self._now(), by.slot, by.within
        self._observe_start(job, entry)

    def _observe_start(self, job: Job, entry: Entry) -> None:
        assert entry.started is not None
        if not job.retries:
            self.queue_times.observe(max(0.0, entry.started - entry.received))
        self._waiting -= 1
        self._note()

    def requeued(self, job: Job) -> None:
        """A job is queued again; nothing of its first try counts."""
        entry = self.under_way[job.number]
        if entry.slot is not None:
            self.jobs_of_slot[entry.slot] -= 1
        entry.started = entry.slot = entry.output = None
        self._waiting += 1
        self._note()

    def named(self, job: Job, name: str) -> None:
        """A worker has said what a job is called."""
        code = _code_checksum(job)
        if not name or code is None:
            return
        self._names[code] = name
        self._names.move_to_end(code)
        while len(self._names) > _NAMES:
            self._names.popitem(last=False)
        entry = self.under_way.get(job.number)
        if entry is not None:
            entry.name = name

    def moved(self, traffic: Traffic) -> None:
        """The work of a job has ended, and has moved so much."""
        self.traffic = Traffic(*map(sum, zip(self.traffic, traffic, strict=True)))

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended for its callers."""
        entry = self.under_way.pop(job.number)
        now = self._now()
        self.latest += 1
        self.totals[job.state.value] += 1
        if entry.started is not None:
            self.run_times.observe(max(0.0, now - entry.started))
        else:
            self._waiting -= 1
        entry.waiters = max(entry.waiters, _waiters(job))  # they go as soon as they are answered
        self._unwritten.append(_Unwritten(self.latest, entry, now, outcome))
        self._note(ended=1, failed=job.state.value not in ("done", "canceled"))

    def write_up(self) -> None:
        """Write up the jobs that have ended."""
        while self._unwritten:
            seq, entry, at, outcome = self._unwritten.popleft()
            job = entry.job
            told = {"seq": seq, **describe(entry, phase=None, ended=at, outcome=outcome)}
            line, detail = _compact(told), _detail(job, outcome)
            ended = Ended(seq, job.state.value, line, detail, entry.output)
            self._history[seq] = job.checksum, ended
            self._newest[job.checksum] = seq
            self._details.append(seq)
            self._detail_bytes += len(detail)
            self._forget()

    def in_slot(self, slot: int) -> Entry | None:
        """Return the job that a slot was given last, also when that has ended; no hosted one."""
        return self._newest_in_slot.get(slot)

    def of(self, checksum: str) -> Entry | Ended | None:
        """Return the newest run of a transformation, under way or ended, or None."""
        self.write_up()
        for entry in reversed(self.under_way.values()):
            if entry.job.checksum == checksum:
                return entry
        seq = self._newest.get(checksum)
        return None if seq is None else self._history[seq][1]

    def since(self, seq: int, most: int) -> list[bytes]:
        """Return the lines of the jobs that ended after `seq`, oldest first: the newest `most`."""
        self.write_up()
        wanted = max(0, min(most, self.latest - seq, len(self._history)))
        newest = [ended.line for _, ended in islice(reversed(self._history.values()), wanted)]
        return newest[::-1]

    def before(self, seq: int | None, most: int, states: Iterable[str]) -> tuple[list[bytes], bool]:
        """Return the lines of jobs that ended before `seq`, newest first, and if there are more.

        With `states`, only of jobs that ended so.
        """
        self.write_up()
        chosen = frozenset(states)
        found: list[bytes] = []
        for _, ended in reversed(self._history.values()):
            if (seq is None or ended.seq < seq) and (not chosen or ended.state in chosen):
                if len(found) == most:
                    return found, True
                found.append(ended.line)
        return found, False

    def course(self) -> dict[str, Any]:
        """Return what happened in each step of the last half hour, the present one last."""
        self._note()
        newest = self._steps[-1].number
        known = {step.number: step for step in self._steps}
        steps = [
            known.get(number, _Step(number, 0, 0, 0))
            for number in range(newest - _STEPS + 1, newest + 1)
        ]
        return {
            "step": STEP,
            "start": steps[0].number * STEP,
            "ended": [step.ended for step in steps],
            "failed": [step.failed for step in steps],
            "waiting": [step.waiting for step in steps],
        }

    @property
    def waiting(self) -> list[Entry]:
        """The jobs that no worker has been given yet, oldest first."""
        return [entry for entry in self.under_way.values() if entry.started is None]

    def known_name(self, job: Job) -> str:
        """Return how a worker has called a job with the code of this one, or nothing."""
        code = _code_checksum(job)
        return "" if code is None else self._names.get(code, "")

    def _note(self, ended: int = 0, failed: int = 0) -> None:
        number = int(self._now()) // STEP
        if self._steps and number < self._steps[-1].number - 1:
            self._steps.clear()  # the clock has been set back
        last = self._steps[-1] if self._steps else None
        if last is None or last.number < number:
            # A queue in which nothing happened is as long as it was.
            first = number if last is None else max(last.number + 1, number - _STEPS + 1)
            before = self._waiting_before
            self._steps.extend(_Step(quiet, 0, 0, before) for quiet in range(first, number))
            last = _Step(number, 0, 0, before)
            self._steps.append(last)
        self._steps[-1] = last._replace(
            ended=last.ended + ended,
            failed=last.failed + failed,
            waiting=max(last.waiting, self._waiting),
        )
        self._waiting_before = self._waiting

    def _forget(self) -> None:
        while self._detail_bytes > DETAILS:
            seq = self._details.popleft()
            checksum, ended = self._history[seq]
            self._detail_bytes -= len(ended.detail or b"")
            self._history[seq] = checksum, ended._replace(detail=None)
        while len(self._history) > HISTORY:
            seq, (checksum, ended) = self._history.popitem(last=False)
            if self._newest[checksum] == seq:
                del self._newest[checksum]
            if self._details and self._details[0] == seq:
                self._details.popleft()
                self._detail_bytes -= len(ended.detail or b"")


def describe(
    entry: Entry, *, phase: str | None, ended: float | None, outcome: Outcome | None
) -> dict[str, Any]:
    """Return a job as watchers see it (docs/watching.rst)."""
    job = entry.job
    runtime = {} if outcome is None else outcome.runtime
    user, system = runtime.get("cpu_user_seconds"), runtime.get("cpu_system_seconds")
    return {
        "number": job.number,
        "checksum": job.checksum,
        "name": entry.name or None,
        "language": shorten(str(job.request.transformation.get("__language__") or "python")),
        "state": job.state.value,
        "phase": phase,
        "received": round(entry.received, 3),
        "started": None if entry.started is None else round(entry.started, 3),
        "ended": None if ended is None else round(ended, 3),
        "worker": entry.slot,
        "by": "job" if job.nested else "caller",
        "hosted": job.host is not None,
        "within": entry.within,
        "waiters": max(entry.waiters, _waiters(job)),
        "retries": job.retries,
        "wall": runtime.get("wall_time_seconds"),
        "cpu": None if user is None or system is None else round(user + system, 6),
        "memory": runtime.get("memory_peak_bytes"),
        "result": None if outcome is None else outcome.result_checksum,
        "problem": None if outcome is None else problem_of(outcome),
        "scratch": job.request.scratch,
    }


def pins(job: Job) -> list[dict[str, Any]]:
    """Return name, celltype, subcelltype and checksum of each pin of a job."""
    return [
        dict(zip(("name", "celltype", "subcelltype", "checksum"), (name, *pin), strict=False))
        for name, pin in job.request.transformation.items()
        if not name.startswith("__") and isinstance(pin, list)
    ]


def problem_of(outcome: Outcome) -> str | None:
    """Return the line of a failure's message that says most."""
    lines = [line for line in outcome.message.splitlines() if line.strip()]
    if not lines or outcome.ending is Ending.CANCELED:
        return None
    # A traceback ends with it; our own messages begin with it.
    return lines[-1 if outcome.ending is Ending.FAILED else 0].strip()[:_PROBLEM]


def _detail(job: Job, outcome: Outcome) -> bytes:
    message = outcome.message[-_MESSAGE:] or None
    told = {"pins": pins(job), "message": message, "runtime": outcome.runtime}
    return zlib.compress(_compact(told), 1)


def _compact(value: dict[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode()


def _waiters(job: Job) -> int:
    """Return how many wait for a job, the job that runs it inside itself included."""
    return job.waiters + (job.host is not None)


def _code_checksum(job: Job) -> str | None:
    code = job.request.transformation.get("code")
    return str(code[2]) if isinstance(code, list) and len(code) > 2 else None
