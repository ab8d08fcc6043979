"""The ledger: which jobs there are, who waits for each of them, and how they end.

A job is moved on here alone: in the table, and with it in the journal. Every caller of a job waits
for a future of its own, so that one which gives up leaves the others alone; they are resolved
together, when the job ends for its callers, before the end is told to the log and written up.

What is to happen, to which job and when, is decided elsewhere (`service`, `hosting`). All of it
runs on the event loop.
"""

import asyncio
import logging
from typing import Final

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.server.failures import RecentFailures
from seamless_jobserver.server.jobs import Event, Job, JobTable
from seamless_jobserver.server.journal import Entry, Journal, problem_of

_log = logging.getLogger(__name__)

_EVENTS: Final[dict[Ending, Event]] = {
    Ending.RESULT: Event.SUCCEED,
    Ending.REMOTE_JOB_WRITTEN: Event.SUCCEED,
    Ending.FAILED: Event.FAIL,
    Ending.INPUT_MISSING: Event.FAIL,
    Ending.INPUT_UNDELIVERED: Event.FAIL,
    Ending.STORE_FAILED: Event.FAIL,
    Ending.CRASHED: Event.CRASH,
    Ending.CANCELED: Event.CANCEL,
    Ending.LOST: Event.LOSE,
    Ending.NOT_BEGUN: Event.LOSE,
}
"""What the outcome means for a job."""
_MOMENT: Final = 0.002
"""Seconds from the end of a job until the journal writes it up: enough for its answer to go out."""


class Ledger:
    """Make one for a server. `table` is for looking things up; what moves jobs on is here."""

    def __init__(self, failures: RecentFailures) -> None:
        """`failures` are told of every end."""
        self.table = JobTable()
        self.journal = Journal()
        self._failures = failures
        self._ends: dict[int, set[asyncio.Future[Outcome]]] = {}
        self._nested: set[asyncio.Future[Outcome]] = set()  # of those, whoever asks inside a job

    def join_or_add(self, request: RunRequest, *, nested: bool) -> tuple[Job, bool]:
        """Do what `JobTable.join_or_add` does."""
        job, new = self.table.join_or_add(request, nested=nested)
        asked_by = "another job" if nested else "a caller"
        if new:
            self._enter(job)
        _log.info("%s %s", "received from" if new else "joined by", asked_by, extra=_of(job))
        return job, new

    def add_hosted(self, request: RunRequest, host: int) -> Job:
        """Do what `JobTable.add_hosted` does."""
        job = self.table.add_hosted(request, host)
        self._enter(job)
        return job

    def _enter(self, job: Job) -> None:
        self._ends[job.number] = set()
        self.journal.received(job)

    def start(self, job: Job, slot: int, path: str | None) -> None:
        """Note that a queued job runs in a slot; what it prints goes to `path`, if it is known."""
        self.table.apply(job, Event.START)
        self.journal.started(job, slot, path)

    def serve(self, job: Job, entry: Entry) -> None:
        """Note that a queued job gets what the one of `entry` has brought."""
        self.table.apply(job, Event.START)
        self.journal.served(job, entry)

    def requeue(self, job: Job, why: str) -> None:
        """Note that a job which ran is queued again."""
        _log.warning("goes back to the queue: %s", why, extra=_of(job))
        self.table.apply(job, Event.REQUEUE)
        self.journal.requeued(job)

    def end(self, job: Job, outcome: Outcome, printed: str = "") -> None:
        """End a job that is under way, for all its callers, who are told what it has printed."""
        told = outcome.with_output(printed)
        self.table.apply(job, _EVENTS[outcome.ending], told)
        self._failures.note(job, told)
        name = self.journal.under_way[job.number].name
        self.journal.ended(job, outcome)
        for end in self._ends.pop(job.number):
            if not end.done():
                end.set_result(told)
        self._log_end(job, name, outcome)
        asyncio.get_running_loop().call_later(_MOMENT, self.journal.write_up)

    def end_of(self, job: Job, *, nested: bool = False) -> "asyncio.Future[Outcome]":
        """Return a new future of how a job that is under way ends for its callers.

        `nested` says that another job asks: see `send_away`.
        """
        end = asyncio.get_running_loop().create_future()
        self._ends[job.number].add(end)
        if nested:
            self._nested.add(end)
            end.add_done_callback(self._nested.discard)
        return end

    def send_away(self, job: Job, outcome: Outcome) -> None:
        """Give `outcome` to those who ask from inside a job; for all others `job` goes on."""
        for end in self._ends[job.number] & self._nested:
            if not end.done():
                end.set_result(outcome)

    def withdraw(self, job: Job, end: "asyncio.Future[Outcome]") -> None:
        """Let go of a future that `end_of` has returned."""
        if job.state.active:
            self._ends[job.number].discard(end)

    def _log_end(self, job: Job, name: str, outcome: Outcome) -> None:
        wall = outcome.runtime.get("wall_time_seconds")
        took = f" in {wall} s" if wall else ""
        problem = problem_of(outcome)
        level = logging.INFO if problem is None else logging.WARNING
        called = f" ({name})" if name else ""
        why = "" if problem is None else f": {problem}"
        _log.log(level, "%s", f"{job.state.value}{took}{called}{why}", extra=_of(job))


def _of(job: Job) -> dict[str, str]:
    return {"job": job.checksum}
