"""Running one transformation: stage, run, store, measure; and an outcome, whatever happens.

No caller is told of a result before the store has confirmed it, so that none is reported which a
crash a moment later could lose. `run_transformation_dict` is therefore asked to keep the result's
buffer to itself (``scratch=True``) instead of handing it to Seamless's background writer. Storing
takes longer than anything else in a small job: it is begun here, and while the store works the
worker puts in order what the job has changed. A small result goes out as an unconfirmed outcome,
whose receipt the server awaits while the worker makes the next job ready
(`seamless_jobserver.receipts`); a larger one is confirmed before its outcome is returned.
"""

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

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
from seamless_jobserver.worker.confirmations import StoreBusy
from seamless_jobserver.worker.lane import give_way
from seamless_jobserver.worker.measure import Measurement, Meter, ThreadMeasurement
from seamless_jobserver.worker.memory import let_go
from seamless_jobserver.worker.naming import name_of
from seamless_jobserver.worker.nested import end_loops
from seamless_jobserver.worker.pins import needs, pins_with
from seamless_jobserver.worker.record import is_compiled
from seamless_jobserver.worker.safekeeping import Safekeeping
from seamless_jobserver.worker.staging import Staging, held_leaves
from seamless_jobserver.worker.unserved import NO_STORE, StoreUnavailable, Unserved


class Ended(NamedTuple):
    """How a job ended. `wait`, to be called once, waits until its result is safe, and says so.

    `soon` is what it will say if the store takes the result, when that is small and all that there
    is to wait for.
    """

    wait: Callable[[], Outcome]
    soon: Outcome | None = None


_UNKNOWN_DICT = "its dict does not hash to its checksum: the transformation itself is not stored"
_NOT_STORED: Final = "the store did not take the transformation itself, whose result is scratch"
_PATIENCE: Final = 10.0
"""Seconds for the store to take what no caller waits for."""
_SMALL: Final = 2**20
"""Bytes of a result that may be in memory while the next job is made ready, whose memory is not
measured so exactly then."""


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
        mend: Callable[[], None],
        settle: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run the transformation of `request` and begin to store its result. Never raises.

        `input_timeout` is in seconds; `enter` is called as each phase of the job begins, `call`
        with what a person would call the job, as soon as that is known, and `mend` when its code
        has ended, in whichever way, before anything else is done. `settle` waits for the result of
        the job before, and may raise `StoreBusy`.
        """
        self._staging.begin_job()
        measurement = meter.start(lambda: self._staging.kept_from_earlier)
        began, ran, last = False, False, Phase.HANDED_OVER

        def note(phase: Phase) -> None:
            nonlocal began, ran, last
            began, last = began or phase >= Phase.RUNNING, phase
            ran = ran or phase is Phase.RUNNING  # and not only a result that was kept delivered
            enter(phase)

        try:
            stored = self._run(
                request,
                input_timeout,
                measurement,
                note,
                call,
                mend,
                lambda: measurement.leave_out(settle),
            )
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            ending, message = _explain(error, request, began=began)
            failed = Outcome(ending, message=message, runtime=measurement.finish())
            return Ended(lambda: failed)
        finally:
            if began:
                enter(Phase.PUTTING_BACK)
            if not ran:
                meter.take_back()
            give_way()
            end_loops()
            give_way()
            let_go()
            give_way()
            enter(last)

        def wait() -> Outcome:
            try:
                return stored.wait()
            except Exception as error:  # noqa: BLE001 - it becomes the outcome
                ending, message = _explain(error, request, began=True)
                return Outcome(ending, message=message, runtime=measurement.finish())

        return Ended(wait, stored.soon)

    def run_and_store(
        self,
        request: RunRequest,
        input_timeout: float,
        measurement: ThreadMeasurement,
    ) -> Outcome:
        """Run a transformation, store its result, and return the outcome of a success.

        Raises whatever the job's code raises, `Unserved`, and Seamless's own errors.
        """
        return self._run(request, input_timeout, measurement).wait()

    def _run(
        self,
        request: RunRequest,
        input_timeout: float,
        measurement: Measurement | ThreadMeasurement,
        enter: Callable[[Phase], None] = lambda _phase: None,
        call: Callable[[str], None] = lambda _name: None,
        mend: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run a transformation and begin to store its result; raises as `run_and_store` does.

        `settle` is called before its code begins, and before anything of it is stored.
        """
        if not request.scratch and not buffer_remote.has_write_server():
            # Found out before the work, not after it.
            raise StoreUnavailable(NO_STORE)
        kept = None if request.scratch else self._safekeeping.find(request)
        if kept is not None:
            settle()
            enter(Phase.STORING)
            delivered = self._safekeeping.deliver(kept, self._staging)
            if delivered is not None:
                measurement.finish()  # for its threads; what counts is what was measured then
                return Ended(lambda: delivered)
        enter(Phase.FETCHING)
        inputs = self._staging.fetch(
            needs(request.transformation, request.dunder, self._staging.has_path),
            input_timeout,
            lambda: enter(Phase.WAITING_FOR_INPUT),
            settle,
        )
        measurement.inputs_fetched()
        call(name_of(request.transformation))
        settle()
        probes = record.probe_context(request, self._staging, input_timeout)
        enter(Phase.RUNNING)
        process = os.getpid()
        try:
            with record.probes_known(request):
                result = run_transformation_dict(
                    request.transformation,
                    Checksum(request.checksum),
                    request.dunder,
                    scratch=True,
                    require_value=not request.scratch,
                )
        finally:
            if os.getpid() != process:
                _end_fork(sys.exc_info()[1])
            mend()
            if is_compiled(request):
                # Compiled code is given pointers, and can write where Python could not.
                self._staging.forget(inputs)
        runtime = measurement.finish()
        if parse_remote_job_written(result) is not None:
            written = Outcome(Ending.REMOTE_JOB_WRITTEN, marker=str(result), runtime=runtime)
            return Ended(lambda: written)
        checksum = Checksum(result)
        del inputs  # their memory is free for the result's way out
        enter(Phase.STORING)
        outcome = Outcome(
            Ending.RESULT,
            result_checksum=checksum.hex(),
            runtime=runtime,
            extra=record.fields_without_answer(request, probes),
        )

        def complete() -> Outcome:
            compilation = record.compilation_runtime(request, self._staging, input_timeout)
            extra = record.answer_fields(request, probes, self._staging, input_timeout)
            return dataclasses.replace(outcome, runtime={**runtime, **compilation}, extra=extra)

        if request.scratch:
            return self._begin_to_store_itself(request, complete())
        # Last: what it returns has to be called, so nothing that may fail is to come after it.
        return self._begin_to_store(request, outcome, complete)

    def _begin_to_store_itself(self, request: RunRequest, outcome: Outcome) -> Ended:
        """Begin to store the buffer of a transformation whose result is not wanted in the store.

        Its client tells the database of the result all the same: it should be found out what it is
        the result of. That is not worth a failure.
        """
        itself = _own_buffer(request)
        if itself is None:
            outcome = dataclasses.replace(outcome, remark=_UNKNOWN_DICT)
        if itself is None or not buffer_remote.has_write_server():
            return Ended(lambda: outcome)
        begun = self._staging.begin_to_store([itself], _PATIENCE)

        def wait() -> Outcome:
            try:
                begun()
            except StoreUnavailable:
                return dataclasses.replace(outcome, remark=_NOT_STORED)
            return outcome

        return Ended(wait)

    def _begin_to_store(
        self,
        request: RunRequest,
        outcome: Outcome,
        complete: Callable[[], Outcome],
    ) -> Ended:
        """Begin to store a result with all that belongs to it, and `complete` its outcome.

        Returns what waits until that is confirmed, or keeps it safe and raises StoreUnavailable.
        The transformation's own buffer follows: its client can lose it, and then nobody could say
        what the result is the result of. It is made while the store takes the result.
        """
        result = Checksum(outcome.result_checksum)
        buffer = get_buffer_cache().get(result)
        if buffer is None and result.hex() not in TRIVIAL_CHECKSUMS:
            raise StoreUnavailable(f"The result {result} was lost before it could be stored.\n")
        parts: list[Buffer] = []
        wholes = [] if buffer is None else [buffer]
        if buffer is not None and is_deep_celltype(request.transformation["__output__"][1]):
            parts = held_leaves(buffer.get_value("plain"))

        completed = False

        def keep_safe(error: StoreUnavailable) -> StoreUnavailable:
            itself = _own_buffer(request)
            all_of_it = [*parts, *wholes, *([] if itself is None else [itself])]
            advice = self._safekeeping.keep(request, outcome, all_of_it, whole=completed)
            return StoreUnavailable(f"{error}{advice}")

        try:
            outcome = complete()
        except StoreUnavailable as error:
            raise keep_safe(error) from error
        completed = True
        try:
            # Leaves first: whoever finds the structure finds what it names.
            self._staging.store(parts)
            begun = [self._staging.begin_to_store(wholes)]
        except StoreUnavailable as error:
            raise keep_safe(error) from error
        except Exception as error:
            # Want of threads or memory, say. Whatever it is, the result may have cost hours.
            what = f"{type(error).__name__}: {error}"
            problem = StoreUnavailable(f"The result {result} could not be sent off: {what}\n")
            raise keep_safe(problem) from error
        itself = _own_buffer(request)
        if itself is None:
            outcome = dataclasses.replace(outcome, remark=_UNKNOWN_DICT)
        else:
            begun.append(self._staging.begin_to_store([itself]))

        def wait() -> Outcome:
            problem: StoreUnavailable | None = None
            for ended in begun:  # all of them, so that none is still under way
                try:
                    ended()
                except StoreUnavailable as error:
                    problem = problem or error
            try:
                if problem is not None:
                    raise keep_safe(problem) from problem
            finally:
                del problem  # its traceback refers to this frame, and that to the result
            return outcome

        small = sum(map(len, [*parts, *wholes])) <= _SMALL
        return Ended(wait, outcome if small else None)


def _end_fork(error: BaseException | None) -> NoReturn:
    """End a process that a job's code has forked and that has come to the end of that code.

    As a script would end there; here it would go on as a second worker, and answer for the first.
    """
    code = 0
    try:
        if isinstance(error, SystemExit):
            if isinstance(error.code, int):
                code = error.code & 0xFF
            elif error.code is not None:
                code = 1
                print(error.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        sys.stderr.flush()
        sys.stdout.flush()
    finally:
        os._exit(code)  # whatever the code has left in place of a stream


def _explain(error: BaseException, request: RunRequest, *, began: bool) -> tuple[Ending, str]:
    """Return what an exception means for a job, and what its callers are told.

    `began` says whether the job's code may have begun: what it misses then is its failure, since a
    job that has only not got its inputs is run again.
    """
    missing = Ending.FAILED if began else Ending.INPUT_MISSING
    if isinstance(error, CacheMissError):
        return missing, _describe_cache_miss(error, request)
    if isinstance(error, Unserved):
        return error.ending, str(error)
    if isinstance(error, StoreBusy):
        return Ending.NOT_BEGUN, str(error)
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
