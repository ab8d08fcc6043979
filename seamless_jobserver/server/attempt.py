"""One attempt at a job: its run in the slot that it was given to, and what is done meanwhile.

While the worker runs it, what it prints is kept within bounds, what it waits for is mentioned, and
the worker is condemned when the job takes longer than it may. All of that ends with the run. A
small result is stored after it (`receipts`), a larger one within it, for which a job whose time is
over is given more.
"""

import asyncio
import logging
from typing import Final

from seamless_jobserver.messages import Outcome
from seamless_jobserver.progress import Phase
from seamless_jobserver.server.joboutput import JobOutput
from seamless_jobserver.server.jobs import Job
from seamless_jobserver.server.slot import Slot

_log = logging.getLogger(__name__)

_TO_STORE: Final = 24 * 3600.0
"""Seconds for a result to be stored when its job's time is over: whatever takes longer hangs."""
_TO_PUT_BACK: Final = 60.0
"""Seconds for a worker to put away what a job has left."""
_LOOK_AFTER: Final = 1.0
"""Seconds between two looks at a job that runs: what it waits for, how much it has printed."""


async def attempt(
    job: Job,
    slot: Slot,
    path: str,
    output: JobOutput,
    *,
    job_timeout: float | None,
) -> Outcome:
    """Return how a job ends that was handed to a slot; what it prints goes to `path`.

    It is ended after `job_timeout` seconds, if that is not None and its result is not being stored
    by then. Raises as `Slot.outcome` does.
    """
    looks = _Looks(job, slot, path, output)
    limit = None
    if job_timeout is not None:
        limit = asyncio.ensure_future(_limit_time(slot, job_timeout))
    try:
        return await slot.outcome()
    finally:
        looks.end()
        if limit is not None:
            limit.cancel()


async def _limit_time(slot: Slot, limit: float) -> None:
    await asyncio.sleep(limit)
    # A result that is there may have cost hours, and storing it has limits of its own, on each of
    # its leaves. What the job has left is put away meanwhile, which never takes long. Either can
    # hang: on a disk, on a lock, on a finalizer.
    patience = {Phase.STORING: _TO_STORE, Phase.PUTTING_BACK: _TO_PUT_BACK}
    while patience.get(phase := slot.phase, 0.0) > 0:
        patience[phase] -= _LOOK_AFTER
        await asyncio.sleep(_LOOK_AFTER)
    slot.condemn(
        f"The job was ended because it took longer than the {limit:g} s that --job-timeout of the "
        "jobserver allows."
    )


class _Looks:
    """Looks after a job that runs; no task, which most jobs would not need for long enough."""

    def __init__(self, job: Job, slot: Slot, path: str, output: JobOutput) -> None:
        self._job = job
        self._slot = slot
        self._path = path
        self._output = output
        self._mentioned = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_LOOK_AFTER, self._look)

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_AFTER, self._look)
        self._output.limit(self._path)
        phase = self._slot.phase
        if not self._mentioned and phase is Phase.WAITING_FOR_INPUT:
            self._mentioned = True
            _log.info("%s", phase.words, extra={"job": self._job.checksum})
