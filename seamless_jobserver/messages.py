"""What crosses between the server and its worker processes: plain data, pickled by the executor.

A `RunRequest` goes to a worker and an `Outcome` comes back. Their fields are strings, numbers and
JSON values only, so that nothing of a job's own types is ever unpickled in the server.

An outcome says how the job ended and whose doing that was. It becomes an HTTP answer in one place
(``server.routes``); ``server.failures`` finds in it whether a repetition is worth anything.
"""

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple


@dataclass(frozen=True)
class RunRequest:
    """One validated request to run a transformation (protocol.md, "Request body of a run").

    `checksum` is 64 lower-case hexadecimal digits. `transformation` and `dunder` are JSON values
    as they arrived: pins are lists ``[celltype, subcelltype, checksum]``.
    """

    checksum: str
    transformation: dict[str, Any]
    dunder: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False
    strict_dunder: bool = False
    record: bool = False


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process needs to become an ordinary Seamless process.

    `clients` is the ``parameters`` object of the status file: the store and the database. `server`
    is the URL at which the server hears its workers, with the password that shows that they are
    its own; `workers` is how many there are, and `slot` the number of this one. `input_timeout` is
    for how many seconds a job waits for inputs that a client has promised, or for a store that is
    away; `store_timeout` for how many a computed result is offered to a store that does not take
    it. `cache_size` is how many bytes of inputs are kept from job to job. `open_files` is the soft
    limit on open files that the server was started with, for the jobs to find.
    """

    clients: dict[str, Any]
    record: bool
    server: str
    workers: int
    input_timeout: float
    store_timeout: float
    open_files: int
    cache_size: int
    slot: int = 0


NESTED_PATH: Final = "/nested-transformation"
"""Where a worker asks the server to run a transformation that its job wants.

It sends ``GET /SLOT`` below this path, with the number of its own slot. The answer is that of a
run, or 202 with ``{"host": NUMBER}``: no slot is free, run it yourself. It then reports, by
``POST``, ``/NUMBER/started`` when it does, and ``/NUMBER/ended`` with the outcome as JSON.
"""


class Traffic(NamedTuple):
    """What a job moved: bytes staged and stored, and inputs that were at hand or were not."""

    staged: int = 0
    stored: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


NO_TRAFFIC: Final = Traffic()


class Ending(enum.Enum):
    """How a job ended."""

    RESULT = "result"
    REMOTE_JOB_WRITTEN = "remote job written"
    FAILED = "failed"
    """The code of the job raised, or asked for what cannot be."""
    INPUT_MISSING = "input missing"
    INPUT_UNDELIVERED = "input undelivered"
    """A client promised an input and did not send it."""
    STORE_FAILED = "store failed"
    """The store did not give an input, or did not take the result."""
    CRASHED = "crashed"
    """The worker process died under the job."""
    CANCELED = "canceled"
    LOST = "lost"
    """It was given up without a fault of its own: the server ended, all its callers had gone, no
    worker could be had or two were lost before its code began, or the server made a mistake."""
    NOT_BEGUN = "not begun"
    """Handed back: its worker's store has not taken the result of the job before yet."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, as plain data.

    `result_checksum` comes with `Ending.RESULT`, `marker` with `Ending.REMOTE_JOB_WRITTEN`;
    `message` is what the caller is told in every other case. `runtime` is the ``record_runtime``
    of protocol.md, and `extra` the further fields of an answer in record mode. `remark` is for the
    server's log. `retire` says why the worker should not run another job, when it should not.
    `traffic` counts what the job moved. `holdings` names the large inputs that the worker now keeps
    for further jobs, when that has changed. `unconfirmed` says that the store has not confirmed the
    result yet: nobody is to be told before the receipt is here (``receipts``).
    """

    ending: Ending
    result_checksum: str | None = None
    marker: str | None = None
    message: str = ""
    runtime: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    remark: str | None = None
    retire: str | None = None
    traffic: Traffic = NO_TRAFFIC
    holdings: list[str] | None = None
    unconfirmed: bool = False

    def with_output(self, printed: str) -> "Outcome":
        """Return the same outcome with what the job printed, if anything, below its message."""
        if not printed:
            return self
        bar = "*" * 49
        end = "" if printed.endswith("\n") else "\n"
        output = f"{bar}\n* Output (stdout and stderr)\n{bar}\n{printed}{end}{bar}\n"
        return dataclasses.replace(self, message=f"{self.message}\n{output}")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` makes an equal outcome of."""
        return {**vars(self), "ending": self.ending.value, "traffic": list(self.traffic)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Outcome":
        """Return the outcome of which `fields` is the JSON."""
        ending, traffic = Ending(fields["ending"]), Traffic(*fields["traffic"])
        return cls(**{**fields, "ending": ending, "traffic": traffic})


@dataclass(frozen=True)
class StoreCheck:
    """What a worker found when it used its store: None, or what is wrong and what to do.

    `trial` is a trivial transformation whose code and input it has stored.
    """

    hashserver: str | None
    database: str | None
    trial: dict[str, Any]


@dataclass(frozen=True)
class WorkerProgram:
    """What a worker process runs: module-level functions, pickled by name.

    `warm_up` is called once, with a directory of the worker's own, and returns None, or why the
    process cannot be a worker. `run_job` is called for each job, with a path at which it
    creates a file for what the job prints, and the seconds that it may wait for its inputs.
    `record_result` is called with a transformation's checksum and its result's when nobody is left
    who would tell the database, and returns None, or why that failed. `check_store` finds out
    whether the worker reaches its store. None of them raises.
    """

    warm_up: Callable[[WorkerSettings, str], str | None]
    run_job: Callable[[RunRequest, str, float], Outcome]
    record_result: Callable[[str, str], str | None]
    check_store: Callable[[], StoreCheck]


CANCELED = Outcome(Ending.CANCELED, message="Transformation was canceled")
"""The text is the one that clients look for (protocol.md, "Answers of a run")."""
