"""What a worker process may use, while a job runs and between jobs: limits, priority, processors.

A job may have so many files open. The process itself may have some more, so that the end of a job
that has used up its own can be dealt with; where the system allows no more, it is the job that has
less. What a job has lowered is put back as soon as its code has ended, before all that needs files,
such as storing its result, which is not to be slow for the job's sake either.
"""

import os
import resource
from typing import Final

_OWN_FILES: Final = 64
"""Open files beyond those of a job: enough to measure it and to store its result."""
_LIMITS: Final = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


class Limits:
    """How they are between jobs, noted when this is made; `open_files` is for a job."""

    def __init__(self, open_files: int) -> None:
        self._limits = {which: resource.getrlimit(which) for which in _LIMITS}
        most = self._limits[resource.RLIMIT_NOFILE][1]
        own = _least(_more(open_files, _OWN_FILES), most)
        self._limits[resource.RLIMIT_NOFILE] = own, most
        self._job_files = _least(open_files, _more(own, -_OWN_FILES)), most
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._affinity = os.sched_getaffinity(0)
        self._policy = _get_policy()
        self.restore()

    def limit_files(self) -> None:
        """Allow no more open files than a job may have, until `restore`."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._job_files)

    def restore(self) -> str | None:
        """Put back limits, priority and processors; return why that is not possible, or None."""
        problem: Exception | None = None
        for which, limits in self._limits.items():
            try:
                if resource.getrlimit(which) != limits:
                    resource.setrlimit(which, limits)
            except (OSError, ValueError) as error:
                problem = error  # the others matter all the same
        try:
            if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
                os.setpriority(os.PRIO_PROCESS, 0, self._priority)
            if os.sched_getaffinity(0) != self._affinity:
                os.sched_setaffinity(0, self._affinity)
            if _get_policy() != self._policy:
                policy, level = self._policy
                os.sched_setscheduler(0, policy, os.sched_param(level))
        except OSError as error:
            problem = error
        if problem is None:
            return None
        return f"a job has lowered its limits or its priority: {problem}"


def _get_policy() -> tuple[int, int]:
    """Return how this thread is scheduled: the policy, and its level in that (sched(7))."""
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority


def _least(*limits: int) -> int:
    """Return the least of some limits, of which some may be infinite."""
    finite = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min(finite, default=resource.RLIM_INFINITY)


def _more(limit: int, by: int) -> int:
    return limit if limit == resource.RLIM_INFINITY else limit + by
