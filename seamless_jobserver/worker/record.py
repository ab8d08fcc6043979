"""Record mode: what the client needs from us for a full execution record of a run.

The client assembles and stores the record (protocol.md); the worker contributes what only the
process that ran the job can know: which probes of this machine and environment the run refers to,
and whether the process was as those probes describe it. All of it is Seamless's own work; we ask
its public functions, and look over the shoulder of some others (`hook_in`). A record probe is the
run that makes such a probe, and has none.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from seamless_transformer import compiler, run
from seamless_transformer.probe_index import ensure_record_bucket_preconditions, is_record_probe
from seamless_transformer.transformation_cache import (
    build_compilation_context_checksum,
    collect_compilation_runtime_metadata,
    collect_job_validation,
)

from seamless_jobserver.messages import RunRequest
from seamless_jobserver.transport.aiohttp_standin import ClientError
from seamless_jobserver.worker.staging import Staging
from seamless_jobserver.worker.unserved import StoreUnavailable

_STORE: Final = "The hashserver or the database"


def probe_context(request: RunRequest, staging: Staging, limit: float) -> dict[str, Any] | None:
    """Return the probes that a run refers to; None outside record mode and for a probe itself.

    `limit` is in seconds. Raises seamless_transformer's `RecordBucketError` when they are missing
    or stale: the code must not run then. Raises `StoreUnavailable` when the database does not tell.
    """
    if not _applies(request):
        return None
    looking = ensure_record_bucket_preconditions(request.transformation, request.dunder)
    context: dict[str, Any] | None = _ask(staging, looking, limit, "The database")
    return context


@contextmanager
def probes_known(request: RunRequest) -> Iterator[None]:
    """Have Seamless run `request` in the block without asking for its probes again.

    It would ask a database that may have gone meanwhile, without a limit, and call what comes of it
    a failure of the job.
    """
    token = _known.set([request] if _applies(request) else [])
    try:
        yield
    finally:
        _known.reset(token)


def is_compiled(request: RunRequest) -> bool:
    """Whether the job is one of compiled code."""
    return bool(request.transformation.get("__compiled__") or request.dunder.get("__compiled__"))


def compilation_runtime(request: RunRequest, staging: Staging, limit: float) -> dict[str, Any]:
    """Return what ``record_runtime`` says of a compiled job, in either mode; else nothing.

    `limit` is in seconds. Raises `StoreUnavailable`.
    """
    if not is_compiled(request):
        return {}
    runtime: dict[str, Any] = _ask(staging, _compilation_runtime(request), limit, _STORE)
    return runtime


async def _compilation_runtime(request: RunRequest) -> dict[str, Any]:
    digests: list[str] = []
    _digests.set(digests)
    runtime = dict(
        await collect_compilation_runtime_metadata(request.transformation, request.dunder)
    )
    if digests:
        runtime["compiled_module_digest"] = digests[-1]
    return runtime


def _noting_digests(get_info: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Have the digest of each module that is looked up noted for whoever asks in this context.

    Seamless's own function for the metadata looks the module up, and keeps its digest to itself.
    """

    def noting(*arguments: Any, **named: Any) -> dict[str, Any]:
        with _building:
            info = get_info(*arguments, **named)
        digests = _digests.get()
        if digests is not None and isinstance(info.get("digest"), str):
            digests.append(info["digest"])
        return info

    return noting


def _unless_known(ensure: Callable[..., Any]) -> Callable[..., Any]:
    def ensuring(*arguments: Any, **named: Any) -> Any:
        known = _known.get()
        if known:
            known.clear()  # what the job itself runs here has probes of its own
            return None
        return ensure(*arguments, **named)

    return ensuring


def _one_at_a_time(call: Callable[..., Any]) -> Callable[..., Any]:
    def calling(*arguments: Any, **named: Any) -> Any:
        with _running:
            return call(*arguments, **named)

    return calling


# Two threads of nested jobs would build the same module into the same file, which the first of them
# has loaded by then, and the process dies of that.
_building: Final = threading.RLock()
_digests: ContextVar[list[str] | None] = ContextVar("compiled modules", default=None)
# What compiled code keeps in static memory it has once in a process (all variables of Fortran), and
# two threads of nested jobs that ran it would calculate with each other's.
_running: Final = threading.RLock()
_known: ContextVar[list[RunRequest] | None] = ContextVar("known probes", default=None)
_HOOKS: Final[tuple[tuple[Any, str, Callable[[Any], Any]], ...]] = (
    (compiler, "get_compiled_module_info", _noting_digests),
    (run, "call_compiled_transform", _one_at_a_time),
    (run, "ensure_record_bucket_preconditions_sync", _unless_known),
)
"""Functions of Seamless's own, and what they are wrapped in."""


def hook_in() -> None:
    """Have Seamless call us where it builds a module, calls compiled code, and looks for probes.

    Private, hence the guard: what a later Seamless does not have any more is left alone. Then
    compiled jobs have no digest and no compilation time, nested ones may run at the same time, and
    probes are asked for twice.
    """
    for module, name, wrap in _HOOKS:
        function = getattr(module, name, None)
        if function is not None and getattr(function, "__module__", None) != __name__:
            setattr(module, name, wrap(function))


def answer_fields(
    request: RunRequest, probes: dict[str, Any] | None, staging: Staging, limit: float
) -> dict[str, Any]:
    """Return the fields that an answer has in record mode beyond the others.

    `limit` is in seconds. Raises `StoreUnavailable`.
    """
    if not request.record:
        return {}
    fields: dict[str, Any] = _ask(staging, _answer_fields(request, probes), limit, _STORE)
    return fields


def fields_without_answer(request: RunRequest, probes: dict[str, Any] | None) -> dict[str, Any]:
    """Return what can be said of `answer_fields` without asking anybody."""
    if not request.record:
        return {}
    return {"probe_context": probes, "compilation_context": None, "job_validation": None}


async def _answer_fields(request: RunRequest, probes: dict[str, Any] | None) -> dict[str, Any]:
    fields = fields_without_answer(request, probes)
    if _applies(request):
        context = await build_compilation_context_checksum(request.transformation, request.dunder)
        fields["compilation_context"] = context
        fields["job_validation"] = await collect_job_validation(
            request.transformation,
            request.dunder,
            compilation_context=context,
            probe_context=probes,
        )
    return fields


def _ask(staging: Staging, work: Coroutine[Any, Any, Any], limit: float, whom: str) -> Any:
    """Have Seamless ask `whom`, and not wait five times twenty minutes, as it would."""
    try:
        return staging.call(asyncio.wait_for(work, limit))
    except asyncio.TimeoutError:
        raise StoreUnavailable(
            f"{whom} has not answered for {limit:g} s, and is needed for the execution record. Run "
            "the workflow again when it does.\n"
        ) from None
    except Exception as error:
        fault = _fault_of_server(error)
        if fault is None:
            raise
        raise StoreUnavailable(
            f"{whom} is needed for the execution record, and is away, or refuses this jobserver: "
            f"{type(fault).__name__}: {fault}\nRun the workflow again when it is back.\n"
        ) from error


def _fault_of_server(error: Exception) -> BaseException | None:
    """Return what a server did not do, where that is what an error comes from, else None.

    seamless-remote asks each server first whether it is there, and packs what it meets then into
    one or two RuntimeErrors, or says a bad status in words.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ClientError, asyncio.TimeoutError)):
            return cause
        cause = cause.__cause__
    return error if str(error).startswith("Healthcheck failed") else None


def _applies(request: RunRequest) -> bool:
    return request.record and not is_record_probe(request.transformation, request.dunder)
