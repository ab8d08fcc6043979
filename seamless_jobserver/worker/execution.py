"""Running one transformation: stage, run, store, measure; and an outcome, whatever happens.

The result is written to the store and confirmed before the outcome is returned, so no result is
ever reported that a crash a moment later could lose. `run_transformation_dict` is therefore asked
to keep the result's buffer to itself (``scratch=True``) instead of handing it to Seamless's
background writer. Storing takes longer than anything else in a small job: it is begun here, and
while the store works the worker puts in order what the job has changed.
"""

from collections.abc import Callable
from typing import Any, Final

from seamless import Buffer, CacheMissError, Checksum
from seamless.caching.buffer_cache import get_buffer_cache
from seamless.checksum.calculate_checksum import TRIVIAL_CHECKSUMS
from seamless_remote import buffer_remote
from seamless_transformer.probe_index import RecordBucketError
from seamless_transformer.remote_job import parse_remote_job_written
from seamless_transformer.run import run_transformation_dict
from seamless_transformer.transformation_utils import is_deep_celltype, tf_get_buffer

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.progress import Phase
from seamless_jobserver.worker import failure, record
from seamless_jobserver.worker.measure import Measurement, Meter
from seamless_jobserver.worker.memory import let_go
from seamless_jobserver.worker.naming import name_of
from seamless_jobserver.worker.nested import ThreadMeasurement, end_loops
from seamless_jobserver.worker.pins import needs, pins_with
from seamless_jobserver.worker.record import is_compiled
from seamless_jobserver.worker.safekeeping import Safekeeping
from seamless_jobserver.worker.staging import (
    NO_STORE,
    InputMissing,
    InputUndelivered,
    Staging,
    StoreUnavailable,
    held_leaves,
)

Ended = Callable[[], Outcome]
"""Waits until the result is safe, and says how the job ended. Does not raise; call it once."""

_ENDINGS: Final = {
    InputMissing: Ending.INPUT_MISSING,
    InputUndelivered: Ending.INPUT_UNDELIVERED,
    StoreUnavailable: Ending.STORE_FAILED,
}
_UNKNOWN_DICT = "its dict does not hash to its checksum: the transformation itself is not stored"


class Execution:
    """Runs transformations in this process, with inputs and results moved by `staging`."""

    def __init__(self, staging: Staging, safekeeping: Safekeeping) -> None:
        self._staging = staging
        self._safekeeping = safekeeping

    def execute(
        self,
        request: RunRequest,
        input_timeout: float,
        meter: Meter,
        enter: Callable[[Phase], None],
        call: Callable[[str], None],
    ) -> Ended:
        """Run the transformation of `request` and begin to store its result. Never raises.

        `input_timeout` is in seconds; `enter` is called as each phase of the job begins, `call`
        with what a person would call the job, as soon as that is known.
        """
        measurement = meter.start(self._staging.kept)
        try:
            stored = self._run(request, input_timeout, measurement, enter, call)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            ending, message = _explain(error, request)
            failed = Outcome(ending, message=message, runtime=measurement.finish())
            return lambda: failed
        finally:
            end_loops()
            let_go()

        def wait() -> Outcome:
            try:
                return stored()
            except Exception as error:  # noqa: BLE001 - it becomes the outcome
                ending, message = _explain(error, request)
                return Outcome(ending, message=message, runtime=measurement.finish())

        return wait

    def run_and_store(
        self,
        request: RunRequest,
        input_timeout: float,
        measurement: ThreadMeasurement,
    ) -> Outcome:
        """Run a transformation, store its result, and return the outcome of a success.

        Raises whatever the job's code raises, and `InputMissing`, `InputUndelivered`,
        `StoreUnavailable` and Seamless's own errors.
        """
        return self._run(request, input_timeout, measurement)()

    def _run(
        self,
        request: RunRequest,
        input_timeout: float,
        measurement: Measurement | ThreadMeasurement,
        enter: Callable[[Phase], None] = lambda _phase: None,
        call: Callable[[str], None] = lambda _name: None,
    ) -> Ended:
        """Run a transformation and begin to store its result; raises as `run_and_store` does."""
        if not request.scratch and not buffer_remote.has_write_server():
            # Found out before the work, not after it.
            raise StoreUnavailable(NO_STORE)
        kept = None if request.scratch else self._safekeeping.find(request)
        if kept is not None:
            enter(Phase.STORING)
            measurement.finish()  # for its threads; what counts is what was measured then
            delivered = self._safekeeping.deliver(kept, self._staging)
            return lambda: delivered
        enter(Phase.FETCHING)
        inputs = self._staging.fetch(
            needs(request.transformation, request.dunder),
            input_timeout,
            lambda: enter(Phase.WAITING_FOR_INPUT),
        )
        call(name_of(request.transformation))
        probes = record.probe_context(request, self._staging)
        enter(Phase.RUNNING)
        result = run_transformation_dict(
            request.transformation,
            Checksum(request.checksum),
            request.dunder,
            scratch=True,
            require_value=not request.scratch,
        )
        runtime = measurement.finish()
        if is_compiled(request):
            # Compiled code is given pointers, and can write where Python could not.
            self._staging.forget(inputs)
        if parse_remote_job_written(result) is not None:
            written = Outcome(Ending.REMOTE_JOB_WRITTEN, marker=str(result), runtime=runtime)
            return lambda: written
        checksum = Checksum(result)
        del inputs  # their memory is free for the result's way out
        enter(Phase.STORING)
        itself = _own_buffer(request)
        remark = _UNKNOWN_DICT if itself is None else None
        outcome = Outcome(
            Ending.RESULT,
            result_checksum=checksum.hex(),
            runtime={**runtime, **record.compilation_runtime(request, self._staging)},
            extra=record.answer_fields(request, probes, self._staging),
            remark=remark,
        )
        if request.scratch:
            return lambda: outcome
        # Last: nothing may come between the beginning of it and the wait for its end.
        stored = self._begin_to_store(request, checksum, itself, runtime)

        def wait() -> Outcome:
            stored()
            return outcome

        return wait

    def _begin_to_store(
        self, request: RunRequest, result: Checksum, itself: Buffer | None, runtime: dict[str, Any]
    ) -> Callable[[], None]:
        """Begin to store a result with all that belongs to it.

        Returns what waits until that is confirmed, or keeps it safe and raises StoreUnavailable.
        The transformation's own buffer comes along (`itself`): its client can lose it, and then
        nobody could say what the result is the result of.
        """
        buffer = get_buffer_cache().get(result)
        if buffer is None and result.hex() not in TRIVIAL_CHECKSUMS:
            raise StoreUnavailable(f"The result {result} was lost before it could be stored.\n")
        parts: list[Buffer] = []
        wholes = [one for one in (itself, buffer) if one is not None]
        if buffer is not None and is_deep_celltype(request.transformation["__output__"][1]):
            parts = held_leaves(buffer.get_value("plain"))

        def keep_safe(error: StoreUnavailable) -> StoreUnavailable:
            advice = self._safekeeping.keep(request, result, [*parts, *wholes], runtime)
            return StoreUnavailable(f"{error}{advice}")

        try:
            # Leaves first: whoever finds the structure finds what it names.
            self._staging.store(parts)
            begun = self._staging.begin_to_store(wholes)
        except StoreUnavailable as error:
            raise keep_safe(error) from error

        def wait() -> None:
            try:
                begun()
            except StoreUnavailable as error:
                raise keep_safe(error) from error

        return wait


def _explain(error: BaseException, request: RunRequest) -> tuple[Ending, str]:
    """Return what an exception means for a job, and what its callers are told."""
    if isinstance(error, CacheMissError):
        return Ending.INPUT_MISSING, _describe_cache_miss(error, request)
    for kind, ending in _ENDINGS.items():
        if isinstance(error, kind):
            return ending, str(error)
    if isinstance(error, RecordBucketError):
        return Ending.FAILED, f"{error}\n"
    return Ending.FAILED, failure.describe(error, _language(request))


def _own_buffer(request: RunRequest) -> Buffer | None:
    """Return the buffer that the transformation's checksum names, if its dict is that buffer."""
    try:
        buffer = tf_get_buffer(request.transformation)
    except ValueError:
        return None  # a key that this Seamless does not know, and may not leave out
    return buffer if buffer.get_checksum().hex() == request.checksum else None


def _describe_cache_miss(error: CacheMissError, request: RunRequest) -> str:
    """Name the pins, when what Seamless missed is an input; else show where the job asked."""
    for word in str(error).replace("'", " ").replace(":", " ").split():
        if len(word) == 64:
            names = pins_with(word.lower(), request.transformation, request.dunder)
            if names:
                return (
                    f"Input not found (pin: checksum):\n  {', '.join(names)}: {word}\n"
                    + failure.describe(error, _language(request))
                )
    return failure.describe(error, _language(request))


def _language(request: RunRequest) -> str:
    return str(request.transformation.get("__language__", "python"))
