"""What crosses between the server and its worker processes: plain data, pickled by the executor.

A `RunRequest` goes to a worker and an `Outcome` comes back. Their fields are strings, numbers and
JSON values only, so that nothing of a job's own types is ever unpickled in the server.

An outcome says how the job ended and whose doing that was. It becomes an HTTP answer in one place
(``server.routes``), and decides there whether a repetition is worth anything.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final


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
    its own; `workers` is how many there are.
    """

    clients: dict[str, Any]
    record: bool
    server: str
    workers: int


NESTED_PATH: Final = "/nested-transformation"
"""Where a worker asks the server to run a transformation in another slot; 204: none is free."""


class Ending(enum.Enum):
    """How a job ended."""

    RESULT = "result"
    REMOTE_JOB_WRITTEN = "remote job written"
    FAILED = "failed"
    """The code of the job raised, or asked for what cannot be."""
    INPUT_MISSING = "input missing"
    STORE_FAILED = "store failed"
    """The result was computed, but the store did not take it."""
    CRASHED = "crashed"
    """The worker process died under the job."""
    CANCELED = "canceled"
    LOST = "lost"
    """The server ended, or could not start a worker, before the job did."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, as plain data.

    `result_checksum` comes with `Ending.RESULT`, `marker` with `Ending.REMOTE_JOB_WRITTEN`;
    `message` is what the caller is told in every other case. `runtime` is the ``record_runtime``
    of protocol.md, and `extra` the further fields of an answer in record mode. `retire` says why
    the worker should not run another job, when it should not.
    """

    ending: Ending
    result_checksum: str | None = None
    marker: str | None = None
    message: str = ""
    runtime: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    retire: str | None = None


@dataclass(frozen=True)
class WorkerProgram:
    """What a worker process runs: two module-level functions, pickled by name.

    `warm_up` is called once and returns None, or why the process cannot be a worker; `run_job`
    is called for each job, with a path at which it creates a file for what the job prints.
    Neither raises.
    """

    warm_up: Callable[[WorkerSettings], str | None]
    run_job: Callable[[RunRequest, str], Outcome]


CANCELED = Outcome(Ending.CANCELED, message="Transformation was canceled")
"""The text is the one that clients look for (protocol.md, "Answers of a run")."""
