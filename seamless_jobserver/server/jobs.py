"""Jobs and their states, as data: no I/O, no clock, no threads.

A job is one execution of a transformation, for one or more callers. Its states and legal moves:

    queued ── start ──> running ── succeed ──> done
      │  ^                │ │ └──── fail ────> failed
      │  └──── requeue ───┘ └────── crash ───> crashed
      └─ cancel ──> canceled <── cancel ── running
      └─ lose ────> lost <────── lose ──── running

The five states on the right are terminal for the callers. What becomes of the worker is another
matter: the work of a canceled job runs on to its end, and its slot is busy until then.

The table finds the job that a request can join. Two requests for one transformation share one
execution when their results are interchangeable: a job that stores its result serves a caller
that only wants the checksum (``scratch``), not the other way round. A request that insists on its
envelope (``strict_dunder``) is refused when a job with another envelope is under way, which is
the rule of Seamless's own client.

A job that another job asks for is *hosted* when it runs inside the process that asked. It never is
in the queue, and others can join it only once it runs: its host may be busy with something that
waits for just those others. Who asks from inside a job joins only what runs: a job in the queue may
wait for the slot of the one that asks. So one transformation can have a job that runs and one that
is queued; the one that runs is joined.
"""

import enum
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from seamless_jobserver.errors import EnvelopeConflict
from seamless_jobserver.messages import Outcome, RunRequest
from seamless_jobserver.server.transitions import move

HISTORY: Final = 1000
"""Finished transformations whose end is remembered, for callers that ask how it went."""


class State(enum.Enum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CRASHED = "crashed"
    CANCELED = "canceled"
    LOST = "lost"

    @property
    def active(self) -> bool:
        """Whether callers still wait for the job to end."""
        return self in (State.QUEUED, State.RUNNING)


class Event(enum.Enum):
    """What happens to a job."""

    START = "start"
    REQUEUE = "requeue"
    SUCCEED = "succeed"
    FAIL = "fail"
    CRASH = "crash"
    CANCEL = "cancel"
    LOSE = "lose"


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.QUEUED, Event.START): State.RUNNING,
    (State.QUEUED, Event.CANCEL): State.CANCELED,
    (State.QUEUED, Event.LOSE): State.LOST,
    (State.RUNNING, Event.REQUEUE): State.QUEUED,
    (State.RUNNING, Event.SUCCEED): State.DONE,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.CRASH): State.CRASHED,
    (State.RUNNING, Event.CANCEL): State.CANCELED,
    (State.RUNNING, Event.LOSE): State.LOST,
}


@dataclass(eq=False)
class Job:
    """One execution. `number` counts from 1 and is never used again; `outcome` comes at the end.

    `retries` counts how often it went back to the queue, and `losses` how often because its worker
    had ended under it; `waiters` the callers that wait for it now. `envelopes` are those of all who
    have asked for it, its own first. `nested` says that only other jobs have asked for it, and
    `host` is the number of the slot in whose process it is hosted, if it is.
    """

    number: int
    request: RunRequest
    envelope: str
    nested: bool = False
    host: int | None = None
    state: State = State.QUEUED
    retries: int = 0
    losses: int = 0
    waiters: int = 0
    envelopes: list[str] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def checksum(self) -> str:
        """The checksum of the transformation."""
        return self.request.checksum

    def may_take_from(self, other: "Job") -> bool:
        """Whether this one, still queued, can do with the outcome of another run of the same."""
        return self.state is State.QUEUED and self.host is None and self.envelope == other.envelope

    @property
    def inputs(self) -> frozenset[str]:
        """The checksums of its pins."""
        pins = self.request.transformation.items()
        return frozenset(pin[2] for name, pin in pins if not name.startswith("__"))


class JobTable:
    """All jobs that callers wait for, the order of the queue, and how the last ones ended."""

    def __init__(self) -> None:
        self._count = 0
        self._active: dict[str, list[Job]] = {}
        self._queue: OrderedDict[int, Job] = OrderedDict()
        self._hosted: dict[int, Job] = {}
        self._ended: OrderedDict[str, State] = OrderedDict()

    def join_or_add(self, request: RunRequest, *, nested: bool = False) -> tuple[Job, bool]:
        """Return the job for `request` and whether it is new, and then at the end of the queue.

        `nested` says that a job asks for it. Raises `EnvelopeConflict`.
        """
        own = envelope(request)
        running = self.running(request)
        for job in self._serving(request) if running is None else [running]:
            # Who asks for a nested job has a slot, and the one that is queued may need just that.
            if job.state is State.QUEUED and (nested or job.host is not None):
                continue
            job.nested = job.nested and nested
            if own not in job.envelopes:
                job.envelopes.append(own)
            return job, False
        job = self._add(Job(0, request, own, nested=nested))
        self._queue[job.number] = job
        return job, True

    def add_hosted(self, request: RunRequest, host: int) -> Job:
        """Return a new job that will run in the process of the slot numbered `host`."""
        job = self._add(Job(0, request, envelope(request), nested=True, host=host))
        self._hosted[job.number] = job
        return job

    def hosted(self, host: int) -> list[Job]:
        """Return the jobs that are under way in the process of the slot numbered `host`."""
        return [job for job in self._hosted.values() if job.host == host]

    def hosted_job(self, number: int) -> Job | None:
        """Return the hosted job with a number while it is under way, else None."""
        return self._hosted.get(number)

    def running(self, request: RunRequest) -> Job | None:
        """Return a job that runs and serves `request` too, or None. Raises `EnvelopeConflict`."""
        return next((job for job in self._serving(request) if job.state is State.RUNNING), None)

    def next_queued(self) -> Job | None:
        """Return the job that has waited longest, or None; it stays queued until it is started."""
        return next(iter(self._queue.values()), None)

    def apply(self, job: Job, event: Event, outcome: Outcome | None = None) -> None:
        """Move `job` on; a move that ends it takes its `outcome`. Raises `IllegalMove`."""
        job.state = state = move(TRANSITIONS, job.state, event, f"job {job.number}")
        if state is State.QUEUED:
            job.retries += 1
            # It has been at the head of the queue before, and has lost nothing by it.
            self._queue[job.number] = job
            self._queue.move_to_end(job.number, last=False)
            return
        self._queue.pop(job.number, None)
        if not state.active:
            job.outcome = outcome
            self._forget(job)

    def active(self, checksum: str | None = None) -> Iterator[Job]:
        """Yield the jobs that callers wait for: all, or those of one transformation."""
        groups = self._active.values() if checksum is None else [self._active.get(checksum, [])]
        for group in groups:
            yield from group

    def state_of(self, checksum: str) -> State | None:
        """Return the state of the transformation's job, or how its last one ended, or None."""
        for job in self._active.get(checksum, ()):
            return job.state
        return self._ended.get(checksum)

    def _serving(self, request: RunRequest) -> list[Job]:
        """Return the jobs whose result would serve `request` too. Raises `EnvelopeConflict`."""
        active = self._active.get(request.checksum, [])
        if request.strict_dunder:
            own = envelope(request)
            alike = [job for job in active if job.envelope == own]
            if active and not alike:
                raise EnvelopeConflict(request.checksum)
            active = alike
        return [job for job in active if request.scratch or not job.request.scratch]

    def _add(self, job: Job) -> Job:
        self._count += 1
        job.number = self._count
        job.envelopes.append(job.envelope)
        self._active.setdefault(job.checksum, []).append(job)
        return job

    def _forget(self, job: Job) -> None:
        group = self._active[job.checksum]
        group.remove(job)
        self._hosted.pop(job.number, None)
        if not group:
            del self._active[job.checksum]
        self._ended[job.checksum] = job.state
        self._ended.move_to_end(job.checksum)
        while len(self._ended) > HISTORY:
            self._ended.popitem(last=False)


def envelope(request: RunRequest) -> str:
    """Return what `strict_dunder` compares: the dunder and ``scratch``, in one canonical form."""
    return json.dumps([request.dunder, request.scratch], sort_keys=True)
