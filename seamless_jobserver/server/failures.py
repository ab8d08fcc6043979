"""Failures of a moment ago, which a repetition would only meet again.

Clients repeat a failed request at once, four times. A failure that the job's own code raised, or
that took its worker down, is remembered for a few seconds, so that those get the same answer.
A job whose input did not come is run again, since the input may have come meanwhile, but waits for
it only briefly.
"""

import asyncio
from typing import Final

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.server.jobs import Job, envelope

_REMEMBERED: Final = frozenset({Ending.FAILED, Ending.CRASHED})
_SECOND_WAIT: Final = 5.0
"""Seconds to wait for an input that has just been waited for in vain."""


class RecentFailures:
    """Remembers for `seconds`; all of it runs on the event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures: dict[tuple[str, str], Outcome] = {}
        self._undelivered: set[str] = set()

    def note(self, job: Job, outcome: Outcome) -> None:
        """Remember how a job ended, if that is worth it."""
        loop = asyncio.get_running_loop()
        if outcome.ending in _REMEMBERED:
            # Whoever has joined the job repeats its own request, and not the first one.
            for key in [(job.checksum, asked) for asked in job.envelopes]:
                self._failures[key] = outcome
                loop.call_later(self._seconds, self._failures.pop, key, None)
        elif outcome.ending is Ending.INPUT_UNDELIVERED:
            self._undelivered.add(job.checksum)
            loop.call_later(self._seconds, self._undelivered.discard, job.checksum)

    def of(self, request: RunRequest) -> Outcome | None:
        """Return how the same request has just failed, or None."""
        if not self._failures:
            return None
        return self._failures.get((request.checksum, envelope(request)))

    def patience(self, checksum: str, seconds: float) -> float:
        """Return for how many of `seconds` a job should wait for its inputs."""
        return min(seconds, _SECOND_WAIT) if checksum in self._undelivered else seconds
