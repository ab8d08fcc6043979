"""Hosting: jobs that a worker runs itself, inside the job that asks for them.

A job that another one asks for never waits for a slot, so that jobs that wait for each other cannot
fill all slots. When none is free, the worker that asks is given the number of a job to run in its
own process, whose job is only waiting for it, and reports when it begins and how it ends. Those
reports may be lost; then the job ends with the one around it, or with the worker.
"""

import logging

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.server.jobs import Job, State
from seamless_jobserver.server.journal import Entry
from seamless_jobserver.server.ledger import Ledger

_log = logging.getLogger(__name__)


class Hosting:
    """The hosted jobs of a server; on the event loop, like all that writes to `ledger`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(self, request: RunRequest, host: int) -> int:
        """Return the number of a new job that the worker of the slot `host` is to run itself."""
        return self._ledger.add_hosted(request, host).number

    async def started(self, number: int, name: str) -> None:
        """Note that the worker which asked for a job runs it now; others may join it."""
        job = self._ledger.table.hosted_job(number)
        if job is not None and job.state is State.QUEUED:
            _log.info("run by the worker whose job asks for it", extra={"job": job.checksum})
            self._ledger.start(job, job.host or 0, None)
            self._ledger.journal.named(job, name)

    async def ended(self, number: int, outcome: Outcome) -> None:
        """Note how a job ended that the worker which asked for it has run."""
        job = self._ledger.table.hosted_job(number)
        if job is not None:
            # That it began is said only once, and may not have been heard.
            await self.started(number, "")
            entry = self._ledger.journal.under_way[job.number]
            self._ledger.end(job, outcome)
            if outcome.ending is Ending.RESULT:
                self._serve_queued(job, entry, outcome)

    def lose(self, host: int, verdict: str | None) -> None:
        """End the jobs that ran inside the worker of a slot, which has ended.

        Without a `verdict` one of them may be what ended it. Else they have nothing to do with it,
        and their callers may ask again at once.
        """
        for job in self._ledger.table.hosted(host):
            message = "The worker process that ran this job, as a part of another, has ended.\n"
            if job.state is State.RUNNING and verdict is None:
                self._ledger.end(job, Outcome(Ending.CRASHED, message=message))
            else:
                message += "" if verdict is None else f"The reason lies with the other: {verdict}\n"
                self._ledger.end(job, Outcome(Ending.LOST, message=message))

    def lose_unreported(self, host: int) -> None:
        """End what ran inside the job of a slot, which has ended: how is not known."""
        for job in self._ledger.table.hosted(host):
            message = (
                "The job that this one was a part of has ended, and did not say how this did.\n"
            )
            self._ledger.end(job, Outcome(Ending.LOST, message=message))

    def _serve_queued(self, hosted: Job, entry: Entry, outcome: Outcome) -> None:
        """End those who have waited in the queue for the very thing that a hosted job has run."""
        waiting = self._ledger.table.active(hosted.checksum)
        for job in [one for one in waiting if one.may_take_from(hosted)]:
            _log.info("a job has run it for itself meanwhile", extra={"job": job.checksum})
            self._ledger.serve(job, entry)
            self._ledger.end(job, outcome)
