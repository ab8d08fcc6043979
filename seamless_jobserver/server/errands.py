"""What workers that are idle are asked for besides jobs, and slots that are kept from jobs.

A result whose callers have all gone is told to the database by a worker, which would otherwise be
the caller's task. That takes a moment, and comes before the next job: whoever asks for the result
meanwhile would have it computed again. A slot that has handed back a job is kept until the store
has taken the result that it owes (`seamless_jobserver.receipts`).

All of it runs on the event loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.slot import Slot
from seamless_jobserver.server.slots import Slots

_log = logging.getLogger(__name__)

_UNHEARD: Final = 1000
"""Results without a caller that are kept in mind until a worker is free to record them."""


class Errands:
    """Owner of their tasks; `done` is called when one has freed its slot."""

    def __init__(self, activity: Activity, done: Callable[[], None]) -> None:
        self._activity = activity
        self._done = done
        self._unheard: deque[tuple[RunRequest, Outcome]] = deque(maxlen=_UNHEARD)
        self._tasks: set[asyncio.Task[None]] = set()

    def note_unheard(self, request: RunRequest, outcome: Outcome) -> None:
        """Note that nobody is there to record how a job has ended."""
        if outcome.ending is Ending.RESULT and not request.scratch:
            self._unheard.append((request, outcome))

    def send_out(self, slots: Slots) -> None:
        """Have idle slots record what nobody has heard, until one of the two runs out."""
        while self._unheard and (slot := slots.idle()) is not None:
            slot.reserve()
            self._send(slot, self.record(slot, *self._unheard.popleft()))

    def keep_until_settled(self, slot: Slot) -> None:
        """Keep a reserved slot from jobs until the store has taken the result that it owes."""
        self._send(slot, slot.settle())

    async def record(self, slot: Slot, request: RunRequest, outcome: Outcome) -> None:
        """Have the worker of a reserved slot tell the database of a result."""
        if request.scratch or outcome.result_checksum is None:
            return
        problem = await slot.record(request, outcome.result_checksum)
        about = {"job": request.checksum}
        if problem is None:
            _log.info("nobody waits: its result is in the database", extra=about)
        else:
            _log.warning("its result is not in the database: %s", problem, extra=about)

    def cancel(self) -> None:
        """Cancel all that is under way."""
        for task in self._tasks:
            task.cancel()

    def _send(self, slot: Slot, work: Coroutine[Any, Any, None]) -> None:
        async def do() -> None:
            try:
                with self._activity.ongoing():
                    await work
            finally:
                slot.free()
                self._done()

        task = asyncio.ensure_future(do())
        self._tasks.add(task)  # the loop would not keep it from collection
        task.add_done_callback(self._tasks.discard)
