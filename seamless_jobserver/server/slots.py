"""Slots: places where one job runs at a time, each with a worker process of its own.

One dead process breaks a whole `ProcessPoolExecutor` for good, and with it jobs that have done
nothing wrong. So each slot has an executor of exactly one spawned process, and what happens to
that process touches the job in that slot alone. A slot outlives its workers:

    starting ── ready ──> idle ── take ──> busy ── done ──> idle
        ^                   │                │
        │                   └───── gone ─────┴──> down ── (pause) ──> starting

- The worker's end is noticed through its sentinel, whether or not a job runs.
- A slot whose worker cannot be started tries again after a growing pause, while others go on.
  When no slot has a worker and every one of them has failed often enough, `exhausted` is called
  with the cause: nobody is left to run anything.
- Everything here runs on the event loop. Only the executor's own threads and the worker do not.

What the service asks of a slot is little (take an immutable request, run it, end), so that another
engine can stand here.
"""

import asyncio
import enum
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Final

from seamless_jobserver.messages import (
    Ending,
    Outcome,
    RunRequest,
    WorkerProgram,
    WorkerSettings,
)
from seamless_jobserver.processtree import ProcessId, children, kill_tree, reap
from seamless_jobserver.server.guardian import Guardian

START_LIMIT: Final = 180.0
"""Seconds for a worker to import its packages, which takes long from a busy network disk."""
END_LIMIT: Final = 5.0
"""Seconds to wait for the exit code of a worker whose end was noticed."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_LATER_ATTEMPTS: Final = 3
"""Failed starts of every slot, in a row, that end a server whose workers have worked before."""

_log = logging.getLogger(__name__)


class WorkerGone(Exception):
    """The worker ended before it took the job; another slot can run it."""


class WorkerStartFailed(Exception):
    """A worker could not be started; the message is the cause, for a person."""


class SlotState(enum.Enum):
    """Where a slot is."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DOWN = "down"


class Worker:
    """One worker process and the executor in front of it."""

    def __init__(self, program: WorkerProgram, settings: WorkerSettings) -> None:
        self._program = program
        self._executor = ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn")
        )
        before = set(multiprocessing.active_children())
        try:
            # Submitting is what starts the process, in this thread, before it returns.
            self._warm_up: Future[str | None] = self._executor.submit(program.warm_up, settings)
            (self._process,) = set(multiprocessing.active_children()) - before
        except (OSError, ValueError) as error:
            self._executor.shutdown(wait=False)
            raise WorkerStartFailed(f"no process could be started: {error}") from error
        self._identity = ProcessId.of(self.pid)
        self.retired = False
        """Whether it was ended because it could not be put back after a job."""

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._process.pid or 0

    @property
    def process(self) -> BaseProcess:
        """The worker's process, of which `sentinel` becomes readable at its end."""
        return self._process

    @property
    def identity(self) -> ProcessId | None:
        """Pid and start time, or None when the process had already ended."""
        return self._identity

    async def ready(self) -> None:
        """Return when the worker can take jobs. Raises `WorkerStartFailed` with the cause."""
        try:
            cause = await asyncio.wait_for(asyncio.wrap_future(self._warm_up), START_LIMIT)
        except asyncio.TimeoutError:
            raise WorkerStartFailed(
                f"it was not ready within {START_LIMIT:.0f} s: is the disk with its packages slow?"
            ) from None
        except BrokenExecutor:
            raise WorkerStartFailed(f"it ended by {await self.describe_end()}") from None
        if cause is not None:
            raise WorkerStartFailed(cause)

    def submit(self, request: RunRequest, output_path: str) -> "Future[Outcome]":
        """Hand a job to the worker. Raises `WorkerGone` when it has ended."""
        try:
            return self._executor.submit(self._program.run_job, request, output_path)
        except (BrokenExecutor, RuntimeError) as error:
            raise WorkerGone from error

    async def describe_end(self) -> str:
        """Return how the process ended: the signal or the exit code, in words."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._process.join, END_LIMIT)
        code = self._process.exitcode
        if code is None:
            return "an unknown cause (its exit code did not arrive)"
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"signal {-code}"

    def kill(self) -> None:
        """Kill the process and everything below it. Further calls do nothing."""
        if self._identity is not None:
            refused = kill_tree(self._identity)
            if refused:
                _log.warning("processes of another user were left alone: %s", sorted(refused))
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def close(self, timeout: float) -> None:
        """Let an idle process end by itself within `timeout` seconds, then kill what is left."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._process.join, timeout)
        self.kill()


class Slot:
    """One place for one job at a time. `keep` runs it for as long as the server lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = SlotState.STARTING
        self.failed_starts = 0
        self.worker: Worker | None = None

    def reserve(self) -> None:
        """Take this slot, which must be idle, for a job that `run` gets next."""
        self.state = SlotState.BUSY

    async def run(self, request: RunRequest, output_path: str) -> Outcome:
        """Run a job in this slot, which is reserved for it and free again when this returns.

        Raises `WorkerGone` when the worker ended before the job was handed to it.
        """
        worker = self.worker
        if self.state is not SlotState.BUSY or worker is None:
            raise WorkerGone
        try:
            outcome = await asyncio.wrap_future(worker.submit(request, output_path))
            if outcome.retire is not None:
                _log.info("worker %d is replaced: %s", self.number, outcome.retire)
                self.state = SlotState.DOWN
                worker.retired = True
                worker.kill()
            return outcome
        except WorkerGone:
            self.state = SlotState.DOWN  # not idle: its keeper is about to notice
            raise
        except BrokenExecutor:
            self.state = SlotState.DOWN
            return Outcome(
                Ending.CRASHED,
                message=f"The worker process that ran this job ended by "
                f"{await worker.describe_end()}.\n",
            )
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of the job
            # What runs a job never raises; a job that has meddled with that is not trusted again.
            _log.exception("worker %d failed in an unforeseen way", self.number)
            self.state = SlotState.DOWN
            worker.kill()
            what = f"{type(error).__name__}: {error}"
            return Outcome(Ending.LOST, message=f"The worker failed in an unforeseen way: {what}\n")
        finally:
            if self.state is SlotState.BUSY and self.worker is worker:
                self.state = SlotState.IDLE


class Slots:
    """The set of slots: keeps each supplied with a worker, and says which are free."""

    def __init__(
        self,
        count: int,
        program: WorkerProgram,
        settings: WorkerSettings,
        guardian: Guardian,
        *,
        freed: Callable[[], None],
        exhausted: Callable[[str], None],
    ) -> None:
        """`freed` is called when a slot may have become idle, `exhausted` as described above."""
        self._slots = [Slot(number) for number in range(1, count + 1)]
        self._program = program
        self._settings = settings
        self._guardian = guardian
        self._ours = children(os.getpid())
        self._freed = freed
        self._exhausted = exhausted
        self._keepers: list[asyncio.Task[None]] = []
        self._ever_ready = False

    def start(self) -> None:
        """Start a worker in every slot, all at the same time."""
        self._keepers = [asyncio.ensure_future(self._keep(slot)) for slot in self._slots]

    def idle(self) -> Slot | None:
        """Return a slot that can take a job now, or None."""
        for slot in self._slots:
            if slot.state is SlotState.IDLE:
                return slot
        return None

    async def close(self, timeout: float) -> None:
        """End every worker: those that are idle by themselves within `timeout` seconds."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        endings = []
        for slot in self._slots:
            worker, slot.worker = slot.worker, None
            if worker is not None:
                endings.append(worker.close(timeout if slot.state is SlotState.IDLE else 0.0))
            slot.state = SlotState.DOWN
        await asyncio.gather(*endings)

    async def _keep(self, slot: Slot) -> None:
        """Keep `slot` supplied with a worker until it is canceled."""
        pause = _FIRST_PAUSE
        while True:
            slot.state = SlotState.STARTING
            try:
                ended = await self._supply(slot)
            except WorkerStartFailed as failure:
                slot.state = SlotState.DOWN
                slot.failed_starts += 1
                _log.error("worker %d could not be started: %s", slot.number, failure)
                if self._none_left():
                    self._exhausted(str(failure))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            slot.failed_starts = 0
            pause = _FIRST_PAUSE
            self._ever_ready = True
            slot.state = SlotState.IDLE
            self._freed()
            await ended.wait()
            slot.state = SlotState.DOWN
            await self._bury(slot)

    async def _supply(self, slot: Slot) -> asyncio.Event:
        """Give `slot` a worker that is ready, and return an event that is set at its end."""
        before = children(os.getpid())
        worker = slot.worker = Worker(self._program, self._settings)
        self._ours |= children(os.getpid()) - before
        if worker.identity is not None:
            self._guardian.watch(worker.identity)
        try:
            await worker.ready()
        except WorkerStartFailed:
            await self._bury(slot)
            raise
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        sentinel = worker.process.sentinel

        def notice() -> None:
            loop.remove_reader(sentinel)
            ended.set()

        loop.add_reader(sentinel, notice)
        _log.info("worker %d is ready (pid %d)", slot.number, worker.pid)
        return ended

    async def _bury(self, slot: Slot) -> None:
        worker, slot.worker = slot.worker, None
        if worker is None:
            return
        worker.kill()
        how = await worker.describe_end()
        if not worker.retired:
            _log.warning("worker %d (pid %d) ended by %s", slot.number, worker.pid, how)
        self._ours.discard(worker.pid)
        await self._sweep()
        if worker.identity is not None:
            self._guardian.forget(worker.identity)

    async def _sweep(self) -> None:
        """Kill what a dead worker has left behind.

        The server is a subreaper, so that the processes that a worker's death orphans become
        its children. Whatever is a child now and was not started here is such a process.
        """
        for pid in children(os.getpid()) - self._ours:
            stray = ProcessId.of(pid)
            if stray is not None:
                kill_tree(stray)
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, reap, pid)

    def _none_left(self) -> bool:
        attempts = _LATER_ATTEMPTS if self._ever_ready else 1
        return all(
            slot.state is SlotState.DOWN and slot.failed_starts >= attempts for slot in self._slots
        )
