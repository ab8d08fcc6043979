"""One attempt at a job: its run in the slot that is reserved for it, and what is done meanwhile.

While the worker runs it, what it prints is kept within bounds, what it waits for is mentioned, and
the worker is condemned when the job takes longer than it may. All of that ends with the run: what
comes after it, such as storing a result, is not the job's.
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

_STORE_MARGIN: Final = 60.0
_LOOK_AFTER: Final = 1.0
"""Seconds between two looks at a job that runs: what it waits for, how much it has printed."""


async def attempt(
    job: Job,
    slot: Slot,
    path: str,
    output: JobOutput,
    *,
    input_timeout: float,
    job_timeout: float | None,
    store_timeout: float,
) -> Outcome:
    """Run a job in the slot that is reserved for it; what it prints goes to `path`.

    It waits for its inputs for `input_timeout` seconds, and is ended after `job_timeout`, if that
    is not None: when its result is being stored by then, not before that had `store_timeout`.
    Raises as `Slot.run` does.
    """
    timers = [asyncio.ensure_future(_look_after(job, slot, path, output))]
    if job_timeout is not None:
        limiting = _limit_time(slot, job_timeout, store_timeout + _STORE_MARGIN)
        timers.append(asyncio.ensure_future(limiting))
    try:
        return await slot.run(job.request, path, input_timeout)
    finally:
        for timer in timers:
            timer.cancel()


async def _limit_time(slot: Slot, limit: float, for_storing: float) -> None:
    await asyncio.sleep(limit)
    if slot.phase is Phase.STORING:
        # A result that is there may have cost hours, and storing it has a limit of its own. But
        # what the job's code leaves behind is put away in this phase too, and can hang.
        await asyncio.sleep(for_storing)
    slot.condemn(
        f"The job was ended because it took longer than the {limit:g} s that --job-timeout of the "
        "jobserver allows."
    )


async def _look_after(job: Job, slot: Slot, path: str, output: JobOutput) -> None:
    mentioned = False
    while True:
        await asyncio.sleep(_LOOK_AFTER)
        output.limit(path)
        if not mentioned and slot.phase is Phase.WAITING_FOR_INPUT:
            mentioned = True
            _log.info("%s", slot.phase.words, extra={"job": job.checksum})
