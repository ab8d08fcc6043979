"""Slots: places where one job runs at a time (`slot`), each with a worker process of its own.

One dead process breaks a whole `ProcessPoolExecutor` for good, and with it jobs that have done
nothing wrong. So each slot has an executor of exactly one spawned process, and what happens to
that process touches the job in that slot alone. Each has a keeper, a task that supplies it with one
worker after another:

- The worker's end is noticed whether or not a job runs, and whatever processes it leaves behind.
- A slot whose worker cannot be started tries again after a growing pause, while others go on.
  When no slot has a worker and every one of them has failed often enough, `exhausted` is called
  with the cause: nobody is left to run anything.
- Everything here runs on the event loop. Only the executor's own threads and the worker do not.
"""

import asyncio
import dataclasses
import gc
import logging
import os
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Final

from seamless_jobserver.messages import WorkerProgram, WorkerSettings
from seamless_jobserver.processtree import ProcessId, children, kill_tree, reap, tree_memory
from seamless_jobserver.server.guardian import Guardian
from seamless_jobserver.server.slot import Slot, SlotEvent, SlotState
from seamless_jobserver.server.workers import Worker, WorkerStartFailed

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_LATER_ATTEMPTS: Final = 3
"""Failed starts of every slot, in a row, that end a server whose workers have worked before."""
_VACATION_LIMIT: Final = 30.0
"""Seconds for who had a slot to leave it when its worker has ended: three times what it may take.
Who leaves it later would free it for others while the next one has it."""
_MEMORY_INTERVAL: Final = 0.2
_REAP_LIMIT: Final = 2.0
"""Seconds for a killed process to end: one of another user, or one that hangs in the kernel while
a network disk is away, does not, and must not keep a slot."""

_log = logging.getLogger(__name__)


class Slots:
    """The set of slots: keeps each supplied with a worker, and says which are free."""

    def __init__(
        self,
        count: int,
        program: WorkerProgram,
        settings: WorkerSettings,
        guardian: Guardian,
        *,
        memory_limit: int | None,
        new_directory: Callable[[], str],
        freed: Callable[[], None],
        buried: Callable[[int, str | None], None],
        exhausted: Callable[[str], None],
    ) -> None:
        """Nothing starts before `start`.

        `memory_limit` is in bytes, for the whole process tree of a worker. `new_directory` returns
        a path for a new private directory, or raises OSError. `freed` is called when a slot may
        have become idle, `buried` with the number of a slot whose worker has ended and the verdict
        that ended it, if one did, and `exhausted` as described above.
        """
        self._slots = [Slot(number) for number in range(1, count + 1)]
        self._program = program
        self._settings = settings
        self._guardian = guardian
        self._memory_limit = memory_limit
        self._new_directory = new_directory
        self._ours = children(os.getpid())
        self._freed = freed
        self._buried = buried
        self._exhausted = exhausted
        self._keepers: list[asyncio.Task[None]] = []
        self._ever_ready = False

    def start(self) -> None:
        """Start a worker in every slot, all at the same time."""
        self._keepers = [asyncio.ensure_future(self._keep(slot)) for slot in self._slots]
        if self._memory_limit is not None:
            self._keepers.append(asyncio.ensure_future(self._watch_memory(self._memory_limit)))

    @property
    def all(self) -> tuple[Slot, ...]:
        """Every slot, by number."""
        return tuple(self._slots)

    def idle(self, inputs: frozenset[str] = frozenset()) -> Slot | None:
        """Return a slot that can take a job now, or None.

        Of several, one that owes no receipt, and of those that which holds most of the large ones
        among the job's `inputs`, by checksum.
        """
        idle = [slot for slot in self._slots if slot.state is SlotState.IDLE]
        return max(idle, key=lambda slot: (slot.settled, len(slot.holdings & inputs)), default=None)

    async def close(self, timeout: float) -> None:
        """End every worker: those that are idle by themselves within `timeout` seconds."""
        # Looked at before anything is waited for: who is canceled then frees the slot that it has.
        idle = [slot for slot in self._slots if slot.state is SlotState.IDLE]
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        endings = []
        for slot in self._slots:
            worker, slot.worker = slot.worker, None
            if worker is not None:
                endings.append(worker.close(timeout if slot in idle else 0.0))
                worker.forget()
            slot.apply(SlotEvent.GONE)
        await asyncio.gather(*endings)
        try:
            await self._sweep()
        except (OSError, RuntimeError) as error:
            _log.warning("what workers have left behind could not be looked for: %s", error)

    async def _keep(self, slot: Slot) -> None:
        """Keep `slot` supplied with a worker until it is canceled."""
        # Starting a process holds up the loop: whoever begins to keep many slots need not wait.
        await asyncio.sleep(0)
        pause = _FIRST_PAUSE
        while True:
            slot.apply(SlotEvent.START)
            try:
                ended = await self._supply(slot)
                slot.failed_starts = 0
                slot.problem = None
                pause = _FIRST_PAUSE
                self._ever_ready = True
                slot.apply(SlotEvent.READY)
                self._freed()
                await asyncio.wait({ended})
                slot.apply(SlotEvent.GONE)
                await self._bury(slot)
                # Who had it is to be told how it ended, before others can have it.
                await slot.vacated(_VACATION_LIMIT)
                continue
            except WorkerStartFailed as failure:
                cause = str(failure)
            except Exception as error:  # noqa: BLE001 - it becomes the slot's problem
                # Out of files, threads or processes, most likely. A keeper that ended of it would
                # take its slot along, and nobody would hear of it.
                _log.exception("worker %d could not be looked after", slot.number)
                cause = f"{type(error).__name__}: {error}"
                self._abandon(slot)
            self._note_failed_start(slot, cause)
            await asyncio.sleep(pause)
            await slot.vacated(_VACATION_LIMIT)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _note_failed_start(self, slot: Slot, cause: str) -> None:
        slot.apply(SlotEvent.GONE)
        slot.failed_starts += 1
        slot.problem = cause
        _log.error("worker %d could not be started: %s", slot.number, cause)
        if self._none_left():
            self._exhausted(cause)

    def _abandon(self, slot: Slot) -> None:
        """End what there is of a worker, without what can fail for want of anything."""
        worker, slot.worker = slot.worker, None
        slot.holdings = frozenset()
        if worker is not None:
            worker.kill()
            worker.forget()
            self._buried(slot.number, worker.verdict)

    async def _supply(self, slot: Slot) -> "asyncio.Future[None]":
        """Give `slot` a worker that is ready, and return what is done at its end."""
        settings = dataclasses.replace(self._settings, slot=slot.number)
        try:
            directory = self._new_directory()
            # A child of ours, started with the first worker, and again if somebody has ended it.
            resource_tracker.ensure_running()
        except OSError as error:
            raise WorkerStartFailed(str(error)) from error
        self._ours.add(_pid_of_resource_tracker())
        worker = slot.worker = Worker(self._program, settings, directory)
        self._ours.add(worker.pid)
        if worker.identity is not None:
            self._guardian.watch(worker.identity)
        try:
            await worker.ready()
        except WorkerStartFailed:
            await self._bury(slot)
            raise
        ended = worker.watch()
        _log.info("worker %d is ready (pid %d)", slot.number, worker.pid)
        return ended

    async def _bury(self, slot: Slot) -> None:
        worker = slot.worker
        slot.holdings = frozenset()
        if worker is None:
            return
        worker.kill()
        how = await worker.describe_end()
        worker.give_up_results(how)
        if worker.verdict is not None:
            _log.warning(
                "worker %d (pid %d) was ended: %s", slot.number, worker.pid, worker.verdict
            )
        elif not worker.retired:
            _log.warning("worker %d (pid %d) ended by %s", slot.number, worker.pid, how)
        worker.forget()
        # Not before: if something above fails, `_abandon` has to find it.
        slot.worker = None
        self._buried(slot.number, worker.verdict)
        self._ours.discard(worker.pid)
        await self._sweep()
        # The pipes of its executor hang in cycles of objects, which may otherwise last for long.
        await asyncio.get_running_loop().run_in_executor(None, gc.collect)
        if worker.identity is not None:
            self._guardian.forget(worker.identity)

    async def _sweep(self) -> None:
        """Kill what a dead worker has left behind.

        The server is a subreaper, so that the processes that a worker's death orphans become
        its children. Whatever is a child now and was not started here is such a process.
        """
        strays = [ProcessId.of(pid) for pid in children(os.getpid()) - self._ours]
        known = [stray for stray in strays if stray is not None]
        for stray in known:
            kill_tree(stray)
        loop = asyncio.get_running_loop()
        for stray in known:
            if not await loop.run_in_executor(None, reap, stray.pid, _REAP_LIMIT):
                _log.warning("process %d was left behind by a job, and does not end", stray.pid)
                self._ours.add(stray.pid)  # once is enough

    async def _watch_memory(self, limit: int) -> None:
        """Condemn every worker that, with all below it, takes more than `limit` bytes."""
        while True:
            await asyncio.sleep(_MEMORY_INTERVAL)
            for slot in self._slots:
                if slot.state is SlotState.BUSY and slot.worker is not None:
                    try:
                        await self._limit_memory(slot, slot.worker, limit)
                    except (OSError, RuntimeError) as error:
                        # No file or thread to be had at the moment: there may be, the next time.
                        _log.warning("the memory of worker %d is unknown: %s", slot.number, error)

    async def _limit_memory(self, slot: Slot, worker: Worker, limit: int) -> None:
        ticket = slot.ticket()
        loop = asyncio.get_running_loop()
        used = await loop.run_in_executor(None, tree_memory, worker.pid)
        # By now it may be another job's turn, which is innocent.
        if used > limit and slot.ticket() == ticket:
            slot.condemn(
                "The job was ended because its worker, with all that it has started, "
                f"used {used / 1e6:.0f} MB of memory, more than the "
                f"{limit / 1e6:.0f} MB that --memory-limit of the jobserver allows."
            )

    def _none_left(self) -> bool:
        attempts = _LATER_ATTEMPTS if self._ever_ready else 1
        return all(
            slot.state is SlotState.DOWN and slot.failed_starts >= attempts for slot in self._slots
        )


def _pid_of_resource_tracker() -> int:
    """Return the process id, or 0 if that is not known.

    Private, hence the guards: without it, one that had to be started anew is taken for what a job
    has left behind, and ended with the next worker, each time.
    """
    tracker = getattr(resource_tracker, "_resource_tracker", None)
    return int(getattr(tracker, "_pid", None) or 0)
