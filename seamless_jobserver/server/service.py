"""The service: run, status, cancel, close. Sole owner of the job table and the slots.

All of it runs on the event loop of the bridge, in one thread, so that no lock is needed: between
two ``await``s nothing else happens.

Each job has one future, which is resolved exactly once, when the job ends for its callers; every
caller waits for that future. The work of a job is a task of its own, since it can go on after the
job has ended for its callers: a canceled job keeps its slot until the work ends by itself, and
what comes out of it is thrown away.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from seamless_jobserver.errors import RecordModeMismatch, ShuttingDown, WorkersUnavailable
from seamless_jobserver.messages import CANCELED, Ending, Outcome, RunRequest
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.joboutput import JobOutput
from seamless_jobserver.server.jobs import Event, Job, JobTable, State
from seamless_jobserver.server.slots import Slot, Slots, WorkerGone

_log = logging.getLogger(__name__)

_EVENTS: Final[dict[Ending, Event]] = {
    Ending.RESULT: Event.SUCCEED,
    Ending.REMOTE_JOB_WRITTEN: Event.SUCCEED,
    Ending.FAILED: Event.FAIL,
    Ending.INPUT_MISSING: Event.FAIL,
    Ending.STORE_FAILED: Event.FAIL,
    Ending.CRASHED: Event.CRASH,
    Ending.LOST: Event.LOSE,
}
_WITH_OUTPUT: Final = frozenset({Ending.FAILED, Ending.CRASHED, Ending.STORE_FAILED})
"""Endings whose message is followed by what the job printed."""


class Service:
    """Runs transformations in `slots`, which `start` sets to work."""

    def __init__(self, *, record: bool, output: JobOutput, activity: Activity) -> None:
        self._record = record
        self._output = output
        self._activity = activity
        self._table = JobTable()
        self._slots: Slots | None = None
        self._ends: dict[int, asyncio.Future[Outcome]] = {}
        self._work: dict[asyncio.Task[None], Job] = {}
        self._refusal: ShuttingDown | WorkersUnavailable | None = None

    async def start(self, make_slots: Callable[[Callable[[], None]], Slots]) -> None:
        """Make the slots, giving `make_slots` what they call when one is free, and start them."""
        self._slots = make_slots(self._dispatch)
        self._slots.start()

    async def run(self, request: RunRequest) -> Outcome:
        """Run a transformation, or join a run of it that is under way, and wait for its end.

        Raises a `RequestError` when it is refused.
        """
        if request.record != self._record:
            raise RecordModeMismatch(asked=request.record, ours=self._record)
        if self._refusal is not None:
            raise self._refusal
        job, new = self._table.join_or_add(request)
        if new:
            self._ends[job.number] = asyncio.get_running_loop().create_future()
            _log.info("job %s received", job.checksum)
            self._dispatch()
        else:
            _log.info("job %s joined by another caller", job.checksum)
        # Shielded: one caller that gives up must not end the job for the others.
        return await asyncio.shield(self._ends[job.number])

    async def run_nested(self, request: RunRequest) -> Outcome | None:
        """Run a transformation that a job asks for, if that takes no waiting for a slot.

        Returns None when it would: the worker that asks then runs it itself. Waiting for a run
        that is under way is fine, waiting for one that is queued is not: the slot that it needs
        may be the one that asks.
        """
        assert self._slots is not None
        job = self._table.running(request)
        if job is None:
            busy = self._table.next_queued() is not None or self._slots.idle() is None
            if busy or self._refusal is not None:
                return None
            return await self.run(request)
        _log.info("job %s joined by another job", job.checksum)
        return await asyncio.shield(self._ends[job.number])

    async def status(self, checksum: str) -> State | None:
        """Return where the transformation is, or how its last run here ended, or None."""
        return self._table.state_of(checksum)

    async def cancel(self, checksum: str) -> tuple[bool, State | None]:
        """End the transformation for its callers; return whether it was under way, and its state.

        The work itself is not stopped, only its outcome thrown away (seed.md).
        """
        jobs = list(self._table.active(checksum))
        for job in jobs:
            self._end(job, Event.CANCEL, CANCELED)
        return bool(jobs), self._table.state_of(checksum)

    async def refuse(self, refusal: ShuttingDown | WorkersUnavailable) -> None:
        """Answer every further request with `refusal`, and so those that are still queued."""
        self._refusal = refusal
        for job in list(self._table.active()):
            if job.state is State.QUEUED:
                self._end(job, Event.LOSE, Outcome(Ending.LOST, message=f"{refusal}\n"))

    async def close(self, grace: float) -> None:
        """Let what runs go on for `grace` seconds, then end it, the slots and their workers."""
        wanted = [task for task, job in self._work.items() if job.state.active]
        if wanted and grace:
            _log.info("waiting up to %g s for %d running jobs", grace, len(wanted))
            await asyncio.wait(wanted, timeout=grace)
        for job in list(self._table.active()):
            message = "The jobserver was shut down before this job ended. Run it again.\n"
            self._end(job, Event.LOSE, Outcome(Ending.LOST, message=message))
        for task in self._work:
            task.cancel()
        if self._slots is not None:
            await self._slots.close(timeout=1.0)

    def _dispatch(self) -> None:
        """Give queued jobs to idle slots, oldest first, until one of the two runs out."""
        while self._slots is not None:
            job, slot = self._table.next_queued(), self._slots.idle()
            if job is None or slot is None:
                return
            self._table.apply(job, Event.START)
            slot.reserve()
            task = asyncio.ensure_future(self._carry_out(job, slot))
            self._work[task] = job
            task.add_done_callback(self._work.pop)

    async def _carry_out(self, job: Job, slot: Slot) -> None:
        path = self._output.new_path()
        with self._activity.ongoing():
            try:
                outcome = await slot.run(job.request, path)
            except WorkerGone:
                _log.warning("job %s goes back to the queue: its worker had ended", job.checksum)
                if job.state is State.RUNNING:
                    self._table.apply(job, Event.REQUEUE)
                self._dispatch()
                return
        printed = self._output.take(path, wanted=outcome.ending in _WITH_OUTPUT)
        if job.state is State.RUNNING:
            outcome.runtime["retry_count"] = job.retries
            self._end(job, _EVENTS[outcome.ending], _with_output(outcome, printed))
        else:
            _log.info("job %s: its work has ended, and is thrown away", job.checksum)
        self._dispatch()

    def _end(self, job: Job, event: Event, outcome: Outcome) -> None:
        self._table.apply(job, event, outcome)
        self._ends.pop(job.number).set_result(outcome)
        wall = outcome.runtime.get("wall_time_seconds")
        _log.info("job %s %s%s", job.checksum, job.state.value, f" in {wall} s" if wall else "")


def _with_output(outcome: Outcome, printed: str) -> Outcome:
    if not printed:
        return outcome
    bar = "*" * 49
    tail = "" if printed.endswith("\n") else "\n"
    message = (
        f"{outcome.message}\n{bar}\n* Output (stdout and stderr)\n{bar}\n{printed}{tail}{bar}\n"
    )
    return Outcome(outcome.ending, message=message, runtime=outcome.runtime)
