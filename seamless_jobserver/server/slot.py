"""One slot: a place where one job runs at a time, by whichever worker it has at the moment.

A slot outlives its workers, which `slots` supplies:

    starting ── ready ──> idle ── take ──> busy ── free ──> idle
       ^ │                  │                │
       │ └────── gone ──────┴──── gone ──────┴──> down ── start ──> starting

It is free for the next job as soon as its worker is, which may be before the store has confirmed
the result of the last one (`receipts`):

- A worker that is to end for the next job's sake has first to get that receipt.
- A job that has to wait for it too long is handed back: `NotBegun`.

A worker that is to end (a limit, a cancellation that reclaims) gets no other job, even when its
present one ends by itself before it does. One that dies before its job's own code began has done
nothing of the job: `WorkerLost`. One that dies later may have died of the job, which is then never
run again.

What the service asks of a slot is little (take an immutable request, say how it ended, end), so
that another engine can stand here. Everything here runs on the event loop.
"""

import asyncio
import enum
import logging
from concurrent.futures import BrokenExecutor, Future
from typing import Final

from seamless_jobserver.messages import Ending, Outcome, RunRequest, StoreCheck
from seamless_jobserver.progress import Phase
from seamless_jobserver.server.transitions import move
from seamless_jobserver.server.workers import NotBegun, Worker, WorkerGone, WorkerLost

_log = logging.getLogger(__name__)


class SlotState(enum.Enum):
    """Where a slot is."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DOWN = "down"


class SlotEvent(enum.Enum):
    """What happens to a slot."""

    START = "start"
    READY = "ready"
    TAKE = "take"
    FREE = "free"
    GONE = "gone"
    """Its worker has ended, or is about to, or could not be started."""


TRANSITIONS: Final[dict[tuple[SlotState, SlotEvent], SlotState]] = {
    (SlotState.STARTING, SlotEvent.START): SlotState.STARTING,  # as every slot begins
    (SlotState.STARTING, SlotEvent.READY): SlotState.IDLE,
    (SlotState.STARTING, SlotEvent.GONE): SlotState.DOWN,
    (SlotState.IDLE, SlotEvent.TAKE): SlotState.BUSY,
    (SlotState.IDLE, SlotEvent.GONE): SlotState.DOWN,
    (SlotState.BUSY, SlotEvent.FREE): SlotState.IDLE,
    (SlotState.BUSY, SlotEvent.GONE): SlotState.DOWN,
    (SlotState.DOWN, SlotEvent.START): SlotState.STARTING,
    (SlotState.DOWN, SlotEvent.GONE): SlotState.DOWN,  # noticed by the job and by the keeper
}


class Slot:
    """One place for one job at a time. `Slots` keeps it for as long as the server lives.

    `problem` says why no worker could be started here, the last time that this was tried.
    `holdings` are the checksums of the large inputs that its worker keeps from earlier jobs.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = SlotState.STARTING
        self.failed_starts = 0
        self.problem: str | None = None
        self.holdings: frozenset[str] = frozenset()
        self.worker: Worker | None = None
        self._last_name = ""
        self._turn = 0
        self._handed: tuple[Worker, Future[Outcome]] | None = None
        self._owed: asyncio.Future[Outcome] | None = None
        self._vacant = asyncio.Event()
        self._vacant.set()

    def apply(self, event: SlotEvent) -> None:
        """Move this slot on. Raises `IllegalMove`."""
        self.state = move(TRANSITIONS, self.state, event, f"slot {self.number}")

    def reserve(self) -> None:
        """Take this slot, which must be idle, for what it is given to do next."""
        self.apply(SlotEvent.TAKE)
        self._last_name = ""
        self._turn += 1
        self._vacant.clear()

    def _lose(self, worker: Worker) -> None:
        """Note that `worker` is gone, unless this slot has another by now: that is none the worse.

        The keeper is about to notice, and until then the slot is not to look idle.
        """
        if worker is self.worker:
            self.apply(SlotEvent.GONE)

    def hand_over(self, request: RunRequest, output_path: str, input_timeout: float) -> None:
        """Give a job to the worker of this slot, which is reserved for it; `outcome` is to follow.

        What it prints goes to a new file; it waits for its inputs for some seconds.
        """
        assert self.worker is not None
        try:
            question = self.worker.submit(request, output_path, input_timeout)
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of this job, and no other's
            question = Future()
            question.set_exception(error)
        self._handed = self.worker, question

    async def outcome(self) -> Outcome:
        """Return how the job ends that was handed over; the slot stays reserved until `free`.

        To be called once for each job. Of an unconfirmed outcome `receipt` has the rest.

        Raises `WorkerGone` when the worker ended before the job was handed to it, `WorkerLost` when
        it ended before the job's own code began, and `NotBegun`.
        """
        assert self._handed is not None
        worker, question = self._handed
        self._handed = None  # or what a worker that ends had open would stay open
        try:
            outcome = await worker.answered(question)
            if outcome.holdings is not None:
                self.holdings = frozenset(outcome.holdings)
            if outcome.unconfirmed:
                self._owed = worker.receipt(outcome)
            if outcome.ending is Ending.NOT_BEGUN:
                raise NotBegun(outcome.traffic)
            return outcome
        except NotBegun:
            raise
        except WorkerGone:
            self._lose(worker)
            raise
        except BrokenExecutor:
            self._lose(worker)
            began = worker.phase >= Phase.RUNNING
            if worker.verdict is not None:
                return Outcome(Ending.CRASHED, message=f"{worker.verdict}\n")
            how = await worker.describe_end()
            message = f"The worker process that ran this job ended by {how}.\n"
            if not began:
                raise WorkerLost(message) from None
            return Outcome(Ending.CRASHED, message=message)
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of the job
            # What runs a job never raises; a job that has meddled with that is not trusted again,
            # nor is it run again.
            _log.exception("worker %d failed in an unforeseen way", self.number)
            self._lose(worker)
            ending = Ending.CRASHED if worker.phase >= Phase.RUNNING else Ending.LOST
            worker.kill()
            what = f"{type(error).__name__}: {error}"
            return Outcome(ending, message=f"The worker failed in an unforeseen way: {what}\n")
        finally:
            self._last_name = worker.job_name

    def receipt(self) -> "asyncio.Future[Outcome]":
        """Return what will be the confirmed outcome of the job that was run here last."""
        assert self._owed is not None
        return self._owed

    @property
    def settled(self) -> bool:
        """Whether no result of the worker of this slot is unconfirmed."""
        return self._owed is None or self._owed.done()

    async def settle(self) -> None:
        """Return when this slot is settled."""
        if self._owed is not None:
            await asyncio.wait({self._owed})

    async def record(self, request: RunRequest, result: str) -> str | None:
        """Have the worker of this slot, which is reserved, tell the database of a result.

        Returns None, or why that failed.
        """
        worker = self.worker
        if self.state is not SlotState.BUSY or worker is None:
            return "the worker has ended"
        try:
            return await worker.answered(worker.record(request, result))
        except (WorkerGone, BrokenExecutor):
            self._lose(worker)
            return "the worker has ended"

    def free(self, retire: str | None = None) -> None:
        """Let other jobs have this slot; with a new worker, if `retire` says why it needs one.

        A slot whose worker has ended meanwhile is left to its keeper.
        """
        self._vacant.set()
        if self.state is not SlotState.BUSY:
            return
        if self.worker is not None and retire is None and self.worker.verdict is None:
            self.apply(SlotEvent.FREE)
            return
        self.apply(SlotEvent.GONE)
        if self.worker is None:
            return
        if self.worker.verdict is None:
            _log.info("worker %d is replaced: %s", self.number, retire)
            self.worker.retired = True
        self._kill_when_settled(self.worker)

    async def vacated(self, timeout: float) -> None:
        """Return when nobody has this slot, or after `timeout` seconds."""
        # Not wait_for: before Python 3.12 it can swallow the cancellation that ends the keeper.
        vacant = asyncio.ensure_future(self._vacant.wait())
        try:
            await asyncio.wait({vacant}, timeout=timeout)
        finally:
            vacant.cancel()

    def ticket(self) -> object:
        """Return what is equal to a later ticket as long as the same job has this slot."""
        return self.worker, self._turn, self.state is SlotState.BUSY

    @property
    def phase(self) -> Phase:
        """How far the worker is with its job, of which there must be one."""
        return Phase.HANDED_OVER if self.worker is None else self.worker.phase

    @property
    def job_name(self) -> str:
        """What the worker calls its job, or the one that it died of; empty if nobody knows."""
        # A new worker may be here already when its predecessor's end is told.
        return self._last_name or ("" if self.worker is None else self.worker.job_name)

    async def check_store(self) -> StoreCheck | None:
        """Have the worker of this slot, which is reserved, use its store; None if it has ended."""
        worker = self.worker
        if self.state is not SlotState.BUSY or worker is None:
            return None
        try:
            return await worker.answered(worker.check_store())
        except (WorkerGone, BrokenExecutor):
            self._lose(worker)
            return None

    def condemn(self, verdict: str) -> None:
        """Kill the worker with its job, which ends with `verdict` as its message."""
        worker = self.worker
        if worker is None:
            return
        worker.doom(verdict)
        self._kill_when_settled(worker)

    def _kill_when_settled(self, worker: Worker) -> None:
        """Kill a worker, but let the job before have its receipt: it has nothing to do with it."""
        if self._owed is None or self._owed.done():
            worker.kill()
        else:
            self._owed.add_done_callback(lambda _: worker.kill())

    def reclaim(self, verdict: str) -> "asyncio.Task[None] | None":
        """Begin to end the worker with its job; `verdict` says why. It gets no other job.

        Returns what does it, to be kept until it is done, or None when there is no worker.
        """
        if self.worker is None:
            return None
        self.worker.doom(verdict)
        return asyncio.ensure_future(self._terminate(self.worker))

    async def _terminate(self, worker: Worker) -> None:
        await self.settle()
        await worker.terminate()
