"""What workers that are idle are asked for besides jobs, and slots that are kept from jobs.

A result whose callers have all gone is told to the database by a worker, which would otherwise be
the caller's task. That takes a moment, and comes before the next job: whoever asks for the result
meanwhile would have it computed again. A database that is away is told later, for as long as a
result is offered to the store, and takes at most a tenth of the time of one slot meanwhile: one
that hangs takes long to be given up, and is not to hold up the jobs. A slot that has handed back a
job is kept until the store has taken the result that it owes (`seamless_jobserver.receipts`).

All of it runs on the event loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.slot import Slot
from seamless_jobserver.server.slots import Slots

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_FOR_JOBS: Final = 9
"""How many times as long as the last attempt took all slots are left to the jobs."""
_UNHEARD: Final = 1000
"""Results without a caller that are kept in mind until a worker is free to record them."""


class _Unheard(NamedTuple):
    """What the database is to be told, and until when that is tried."""

    request: RunRequest
    result: str
    until: float


class Errands:
    """Owner of their tasks."""

    def __init__(self, activity: Activity, done: Callable[[], None], patience: float) -> None:
        """`done` is called when one has freed its slot, and when the database may be asked again.

        The database is told of a result for `patience` seconds.
        """
        self._activity = activity
        self._done = done
        self._patience = patience
        self._unheard: deque[_Unheard] = deque()
        self._telling: list[_Unheard] = []
        # 0 for as long as the database takes what it is told.
        self._pause = 0.0
        self._paused = False
        self._asking = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def note_unheard(self, request: RunRequest, outcome: Outcome) -> None:
        """Note that nobody is there to record how a job has ended."""
        one = self._to_tell(request, outcome)
        if one is not None:
            self._keep_in_mind(one)

    def send_out(self, slots: Slots) -> None:
        """Have idle slots record what nobody has heard, until one of the two runs out."""
        while self._unheard and self._may_ask() and (slot := slots.idle()) is not None:
            slot.reserve()
            self._asking += 1
            self._send(slot, self._tell(slot, self._unheard.popleft()))

    def keep_until_settled(self, slot: Slot) -> None:
        """Keep a reserved slot from jobs until the store has taken the result that it owes."""
        self._send(slot, slot.settle())

    async def record(self, slot: Slot, request: RunRequest, outcome: Outcome) -> None:
        """Have the worker of a reserved slot tell the database of a result, now or later."""
        one = self._to_tell(request, outcome)
        if one is None:
            return
        if self._may_ask():
            self._asking += 1
            await self._tell(slot, one)
        else:
            self._keep_in_mind(one)

    def _keep_in_mind(self, one: _Unheard) -> None:
        """Have `one` told later; if there are too many, instead of what has waited longest."""
        self._unheard.append(one)
        if len(self._unheard) > _UNHEARD:
            _give_up(self._unheard.popleft(), "too many others wait for that")

    def _may_ask(self) -> bool:
        """Whether the database may be asked now: where it was away the last time, by one slot."""
        return not self._paused and not (self._pause and self._asking)

    async def finish(self, timeout: float) -> None:
        """Return when all is told, or after `timeout` seconds; the log says what is not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (self._unheard or self._asking) and self._tasks:
            left = deadline - loop.time()
            if left <= 0:
                break
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait(set(self._tasks), timeout=left, return_when=first)
        for one in [*self._telling, *self._unheard]:
            _give_up(one, "the jobserver ends")

    def cancel(self) -> None:
        """Cancel all that is under way."""
        for task in self._tasks:
            task.cancel()

    def _to_tell(self, request: RunRequest, outcome: Outcome) -> _Unheard | None:
        if outcome.ending is not Ending.RESULT or request.scratch:
            return None
        if request.record:
            # Its record is its caller's to make. A result without one would be found for ever.
            return None
        if outcome.result_checksum is None:
            return None
        until = asyncio.get_running_loop().time() + self._patience
        return _Unheard(request, outcome.result_checksum, until)

    async def _tell(self, slot: Slot, one: _Unheard) -> None:
        """Have a slot tell the database, once `_asking` counts it: not only when this runs."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._telling.append(one)
        try:
            problem = await slot.record(one.request, one.result)
        finally:
            self._telling.remove(one)
            self._asking -= 1
        about = {"job": one.request.checksum}
        if problem is None:
            self._pause = 0.0
            _log.info("nobody waits: its result is in the database", extra=about)
            return
        _log.warning("its result is not in the database: %s", problem, extra=about)
        took = loop.time() - begun
        if not self._paused:
            longer = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
            self._pause = max(longer, _FOR_JOBS * took)
            self._paused = True
            self._start(self._end_pause(self._pause))
        if loop.time() < one.until:
            self._keep_in_mind(one)

    async def _end_pause(self, after: float) -> None:
        await asyncio.sleep(after)
        self._paused = False
        self._done()

    def _send(self, slot: Slot, work: Coroutine[Any, Any, None]) -> None:
        async def do() -> None:
            try:
                with self._activity.ongoing():
                    await work
            finally:
                slot.free()
                self._done()

        self._start(do())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop would not keep it from collection
        task.add_done_callback(self._tasks.discard)


def _give_up(one: _Unheard, why: str) -> None:
    _log.warning(
        "it will be run again if it is asked for: "
        "%s, and nobody has told the database of its result",
        why,
        extra={"job": one.request.checksum},
    )
