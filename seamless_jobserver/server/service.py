"""The service: run, status, cancel, close. Owner of the slots, and of the ledger of jobs.

All of it runs on the event loop of the bridge, in one thread, so that no lock is needed: between
two ``await``s nothing else happens.

What happens to a job is written down in the `ledger`, which tells its callers of its end; here, and
for nested jobs in `hosting`, is decided what happens, and when. The work of a job is a task of its
own, since it can go on after the job has ended for its callers, or after they have all gone:

- A *canceled* job keeps its slot until the work ends by itself, and what comes out of it is thrown
  away; with `Policy.reclaim_canceled` its worker is ended instead.
- A job that nobody waits for any more is dropped after a while if it is queued. If it runs, it
  goes on, and its worker tells the database of the result, which is otherwise the caller's task.
- A small *result* is confirmed by the store while the slot of its job may have the next one.
- A job that *failed* by its own doing is remembered for a moment (`server.failures`).

A job that another job asks for gets a slot that is free at that moment, or is hosted (`hosting`).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from seamless_jobserver.errors import RecordModeMismatch, ShuttingDown, WorkersUnavailable
from seamless_jobserver.messages import CANCELED, Ending, Outcome, RunRequest, StoreCheck
from seamless_jobserver.server.attempt import attempt
from seamless_jobserver.server.errands import Errands
from seamless_jobserver.server.failures import RecentFailures
from seamless_jobserver.server.hosting import Hosting
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.joboutput import JobOutput
from seamless_jobserver.server.jobs import Job, State
from seamless_jobserver.server.ledger import Ledger
from seamless_jobserver.server.slot import Slot, SlotState
from seamless_jobserver.server.slots import Slots
from seamless_jobserver.server.workers import NotBegun, WorkerGone, WorkerLost

_log = logging.getLogger(__name__)

_NO_FAILURE: Final = frozenset({Ending.RESULT, Ending.REMOTE_JOB_WRITTEN, Ending.CANCELED})
"""Endings that nobody needs an explanation for; every other is told with what the job printed."""
FAILURE_MEMORY: Final = 3.0
"""Seconds; a client sends a job that has failed again at once, four times."""
ABANDONED_AFTER: Final = 60.0


@dataclass(frozen=True)
class Policy:
    """How jobs are treated; times in seconds.

    `job_timeout` is None for no limit; `failure_memory` is for how long a failure is remembered;
    `abandoned_after` for how long a queued job is kept that nobody waits for, `store_timeout` for
    how long a result is offered to a store, and one without a caller to a database, that does not
    take it.
    """

    record: bool
    input_timeout: float
    reclaim_canceled: bool = False
    job_timeout: float | None = None
    failure_memory: float = FAILURE_MEMORY
    abandoned_after: float = ABANDONED_AFTER
    store_timeout: float = 600.0


class Service:
    """Runs transformations in `slots`, which `start` sets to work."""

    def __init__(self, *, policy: Policy, output: JobOutput, activity: Activity) -> None:
        self._policy = policy
        self._failures = RecentFailures(policy.failure_memory)
        self._ledger = Ledger(self._failures)
        self.journal = self._ledger.journal
        self.hosting = Hosting(self._ledger)
        self.output = output
        self.workers_ended = 0
        self._activity = activity
        self._slots: Slots | None = None
        self._work: dict[asyncio.Task[None], Job] = {}
        self._places: dict[int, Slot] = {}
        self._abandoned: dict[int, asyncio.TimerHandle] = {}
        self._reclaiming: set[asyncio.Task[None]] = set()
        self._errands = Errands(activity, self._dispatch, policy.store_timeout)
        self._refusal: ShuttingDown | WorkersUnavailable | None = None

    async def start(
        self, make_slots: Callable[[Callable[[], None], Callable[[int, str | None], None]], Slots]
    ) -> None:
        """Make the slots and start them.

        `make_slots` is given what they call when one is free, and when a worker has ended, with
        the verdict that ended it, if one did.
        """
        self._slots = make_slots(self._dispatch, self._note_buried)
        self._slots.start()

    async def run(self, request: RunRequest) -> Outcome:
        """Run a transformation, or join a run of it that is under way, and wait for its end.

        Raises a `RequestError` when it is refused.
        """
        if request.record != self._policy.record:
            raise RecordModeMismatch(asked=request.record, ours=self._policy.record)
        if self._refusal is not None:
            raise self._refusal
        failure = self._failures.of(request)
        if failure is not None:
            _log.info("asked for again: it has just failed", extra={"job": request.checksum})
            return failure
        return await self._run(request, nested=False)

    async def run_nested(self, request: RunRequest, host: int) -> Outcome | int:
        """Run a transformation that the job in the slot numbered `host` asks for.

        Returns, when that would mean to wait for a slot, the number of a job that the worker which
        asks is to run itself. Waiting for a run that is under way is fine, waiting for one that is
        queued is not: the slot that it needs may be the one that asks.
        """
        if self._ledger.table.running(request) is not None or self._begins_at_once():
            outcome = await self._run(request, nested=True)
            if outcome.ending is not Ending.NOT_BEGUN:
                return outcome
        if all(slot.number != host for slot in self._places.values()):
            # It would be under way until the next job of that slot ends.
            return Outcome(Ending.LOST, message="The job that asks for this one has ended.\n")
        return self.hosting.add(request, host)

    def _begins_at_once(self) -> bool:
        """Whether a job that comes now would have a slot, and keep it."""
        slot = None if self._slots is None else self._slots.idle()
        free = self._refusal is None and self._ledger.table.next_queued() is None
        # One that is not settled could hand it back, and it would wait in the queue after all.
        return free and slot is not None and slot.settled

    async def note_unheard(self, request: RunRequest, outcome: Outcome) -> None:
        """Note that a caller has gone without its answer, which it can therefore not record."""
        self._errands.note_unheard(request, outcome)
        self._dispatch()

    async def status(self, checksum: str) -> State | None:
        """Return where the transformation is, or how its last run here ended, or None."""
        return self._ledger.table.state_of(checksum)

    async def cancel(self, checksum: str) -> tuple[bool, State | None]:
        """End the transformation for its callers; return whether it was under way, and its state.

        The work itself is not stopped, only its outcome thrown away (seed.md), unless the policy
        says otherwise.
        """
        jobs = list(self._ledger.table.active(checksum))
        for job in jobs:
            self._cancel(job)
        return bool(jobs), self._ledger.table.state_of(checksum)

    async def refuse(self, refusal: ShuttingDown | WorkersUnavailable) -> None:
        """Answer every further request with `refusal`, and so those that are still queued."""
        self._refusal = refusal
        for job in list(self._ledger.table.active()):
            if job.state is State.QUEUED:
                self._end(job, Outcome(Ending.LOST, message=f"{refusal}\n"))

    async def wait_for_end(self, checksum: str) -> None:
        """Return when no job of a transformation is under way any more."""
        while ends := {
            job: self._ledger.end_of(job) for job in self._ledger.table.active(checksum)
        }:
            try:
                await asyncio.wait(ends.values())
            finally:
                for job, end in ends.items():
                    self._ledger.withdraw(job, end)

    async def check_store(self) -> StoreCheck | None:
        """Have a worker that is idle use its store; None when none is idle now."""
        slot = None if self._slots is None else self._slots.idle()
        if slot is None:
            return None
        slot.reserve()
        try:
            return await slot.check_store()
        finally:
            slot.free()
            self._dispatch()

    @property
    def all_slots(self) -> tuple[Slot, ...]:
        """Every slot, by number."""
        return () if self._slots is None else self._slots.all

    def place_of(self, job: Job) -> Slot | None:
        """Return the slot that works for a job, or None; a hosted job has none of its own."""
        return self._places.get(job.number)

    def job_in(self, slot: Slot) -> Job | None:
        """Return the job that a slot works for, also when it has ended for its callers."""
        for job in self._work.values():
            if self._places.get(job.number) is slot:
                return job
        return None

    async def close(self, grace: float) -> None:
        """Let what runs go on for `grace` seconds, then end it, the slots and their workers."""
        deadline = asyncio.get_running_loop().time() + grace
        told = False
        # Again and again: one that goes back to the queue meanwhile is run by another worker.
        while wanted := [self._ledger.end_of(job) for job in self._ledger.table.active()]:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            if not told:
                _log.info("waiting up to %g s for %d running jobs", grace, len(wanted))
                told = True
            await asyncio.wait(wanted, timeout=left)
        await self._errands.finish(deadline - asyncio.get_running_loop().time())
        for timer in self._abandoned.values():
            timer.cancel()
        for job in list(self._ledger.table.active()):
            message = "The jobserver was shut down before this job ended. Run it again.\n"
            printed = self._printed(job, self.journal.under_way[job.number].output)
            self._end(job, Outcome(Ending.LOST, message=message), printed)
        for task in self._work:
            task.cancel()
        self._errands.cancel()
        if self._slots is not None:
            await self._slots.close(timeout=1.0)

    async def _run(self, request: RunRequest, *, nested: bool) -> Outcome:
        job, new = self._ledger.join_or_add(request, nested=nested)
        if new:
            self._dispatch()
        end = self._ledger.end_of(job, nested=nested)
        job.waiters += 1
        if not new:
            self.journal.joined(job)
        timer = self._abandoned.pop(job.number, None)
        if timer is not None:
            timer.cancel()
        try:
            return await end
        except asyncio.CancelledError:
            if job.outcome is not None and job.waiters == 1:
                # It has gone at the very moment at which it would have had its answer. (The job is
                # asked, since the future was canceled first if that came first.)
                self._errands.note_unheard(request, job.outcome)
                self._dispatch()
            raise
        finally:
            job.waiters -= 1
            self._ledger.withdraw(job, end)
            if not job.waiters and job.state.active:
                self._leave_alone(job)

    def _leave_alone(self, job: Job) -> None:
        """Deal with a job whose last caller has gone."""
        if job.host is not None:
            return  # the job around it waits for it
        if self._policy.reclaim_canceled and job.nested:
            # Who asks for a nested job goes away only by dying, or with its own job.
            self._cancel(job)
            return
        _log.info("nobody waits for it any more", extra={"job": job.checksum})
        if job.state is State.QUEUED:
            loop = asyncio.get_running_loop()
            after = self._policy.abandoned_after
            if job.number in self._abandoned:
                self._abandoned[job.number].cancel()
            self._abandoned[job.number] = loop.call_later(after, self._drop, job)

    def _drop(self, job: Job) -> None:
        self._abandoned.pop(job.number, None)
        if job.state is State.QUEUED and not job.waiters:
            message = "Dropped from the queue: all its callers had gone.\n"
            self._end(job, Outcome(Ending.LOST, message=message))

    def _note_buried(self, number: int, verdict: str | None) -> None:
        self.workers_ended += 1
        self.hosting.lose(number, verdict)

    def _cancel(self, job: Job) -> None:
        slot = self._places.get(job.number)
        self._end(job, CANCELED)
        if slot is not None and self._policy.reclaim_canceled:
            # At once, and not in a task: in the next turn of the loop the job may have ended, and
            # its worker have begun another.
            reclaiming = slot.reclaim("its job was canceled")
            if reclaiming is not None:
                self._reclaiming.add(reclaiming)  # the loop would not keep it from collection
                reclaiming.add_done_callback(self._reclaiming.discard)

    def _dispatch(self) -> None:
        """Give queued jobs to idle slots, oldest first, until one of the two runs out."""
        if self._slots is not None:
            self._errands.send_out(self._slots)
        while self._slots is not None:
            job = self._ledger.table.next_queued()
            slot = None if job is None else self._slots.idle(job.inputs)
            if job is None or slot is None:
                return
            path = self.output.new_path()
            patience = self._failures.patience(job.checksum, self._policy.input_timeout)
            slot.reserve()
            # First: the worker is at work while all else is written down.
            slot.hand_over(job.request, path, patience)
            self._ledger.start(job, slot.number, path)
            self._places[job.number] = slot
            task = asyncio.ensure_future(self._carry_out(job, slot, path))
            self._work[task] = job
            task.add_done_callback(self._work.pop)

    async def _carry_out(self, job: Job, slot: Slot, path: str) -> None:
        """See a job to its end, whatever goes wrong: its callers wait for that."""
        try:
            with self._activity.ongoing():
                outcome = await self._occupy(job, slot, path)
                if outcome.unconfirmed and job.state is State.RUNNING:
                    receipt = slot.receipt()
                    self._dispatch()
                    outcome = await receipt
                    self.journal.moved(outcome.traffic)
                    if job.state.active and not job.waiters:
                        await self.note_unheard(job.request, outcome)
        except Exception as error:  # noqa: BLE001 - or callers would wait for ever
            _log.exception("it could not be carried out", extra={"job": job.checksum})
            what = f"{type(error).__name__}: {error}"
            message = f"The jobserver has made a mistake, of which its log has more: {what}\n"
            outcome = Outcome(Ending.LOST, message=f"{message}Run the workflow again.\n")
        if job.state is State.RUNNING:
            printed = "" if outcome.ending in _NO_FAILURE else self._printed(job, path)
            outcome.runtime["retry_count"] = job.retries
            self._end(job, outcome, printed)
        elif job.state is not State.QUEUED:
            _log.info("its work has ended, and is thrown away", extra={"job": job.checksum})
        self._put_away(job, path)
        self._dispatch()

    def _put_away(self, job: Job, path: str) -> None:
        """Keep what a run has printed, as far as that counts."""
        try:
            if job.state is State.QUEUED:
                self.output.discard(path)
            else:
                self.output.keep(path)
        except OSError as error:
            # No file to be had, most likely. Its answer does not depend on that.
            _log.warning("what it printed is lost: %s", error, extra={"job": job.checksum})

    def _printed(self, job: Job, path: str | None) -> str:
        """Return the end of what a run has printed into `path`, as its callers are told it."""
        if path is None:
            return ""  # it has not run, or what it prints is that of the job around it
        try:
            return self.output.end_of(path)
        except OSError as error:
            _log.warning("what it printed cannot be read: %s", error, extra={"job": job.checksum})
            return ""

    async def _occupy(self, job: Job, slot: Slot, path: str) -> Outcome:
        """Wait for a job that was handed to a slot, and free the slot.

        The outcome is unconfirmed only for a job that somebody waits for.
        """
        retire, blocked = None, False
        try:
            timeout = self._policy.job_timeout
            outcome = await attempt(job, slot, path, self.output, job_timeout=timeout)
            retire = outcome.retire
            self.journal.moved(outcome.traffic)
            if outcome.remark is not None:
                _log.info("%s", outcome.remark, extra={"job": job.checksum})
            if outcome.unconfirmed and not job.waiters:
                outcome = await slot.receipt()
                self.journal.moved(outcome.traffic)
            if outcome.ending is Ending.RESULT and job.state.active and not job.waiters:
                await self._errands.record(slot, job.request, outcome)
        except (WorkerGone, WorkerLost, NotBegun) as loss:
            outcome = self._give_back(job, loss)
            if isinstance(loss, NotBegun):
                self.journal.moved(loss.traffic)
                # Another slot may have it sooner than this one, which can do nothing now.
                blocked = True
        finally:
            if slot.state is SlotState.BUSY:
                # Else its worker has ended, and `Hosting.lose` says why.
                self.hosting.lose_unreported(slot.number)
            self.journal.named(job, slot.job_name)
            del self._places[job.number]
            if blocked:
                self._errands.keep_until_settled(slot)
            else:
                slot.free(retire)
        return outcome

    def _give_back(self, job: Job, loss: WorkerGone | WorkerLost | NotBegun) -> Outcome:
        """Queue a job again whose worker ended, or handed it back, before the job's code began.

        One that has met that before is not tried a third time: it ends with what is returned. A job
        that asks for this one is not to wait in the queue: its worker runs it itself.
        """
        if isinstance(loss, WorkerLost):
            job.losses += 1
            if job.losses > 1:
                return Outcome(
                    Ending.LOST, message=f"{loss}It had been tried {job.losses} times.\n"
                )
        if job.state is State.RUNNING:
            at_once = self._begins_at_once()
            why = str(loss) if isinstance(loss, NotBegun) else "its worker had ended"
            sent_away = Outcome(
                Ending.NOT_BEGUN, message=f"Left to the job that asks for it: {why}.\n"
            )
            if job.nested and not at_once:
                return sent_away
            self._ledger.requeue(job, why)
            if not at_once:
                self._ledger.send_away(job, sent_away)
            if not job.waiters:
                self._leave_alone(job)
        return Outcome(Ending.LOST, message=str(loss))

    def _end(self, job: Job, outcome: Outcome, printed: str = "") -> None:
        slot = self._places.get(job.number)
        if slot is not None:
            # It may end for its callers before its work does.
            self.journal.named(job, slot.job_name)
        self._ledger.end(job, outcome, printed)
