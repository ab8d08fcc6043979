"""Running one transformation: stage, run, store, measure; and an outcome, whatever happens.

The result is written to the store and confirmed before the outcome is returned, so no result is
ever reported that a crash a moment later could lose. `run_transformation_dict` is therefore asked
to keep the result's buffer to itself (``scratch=True``) instead of handing it to Seamless's
background writer.
"""

from typing import Any

from seamless import CacheMissError, Checksum
from seamless.caching.buffer_cache import get_buffer_cache
from seamless.checksum.calculate_checksum import TRIVIAL_CHECKSUMS
from seamless_remote import buffer_remote
from seamless_transformer.probe_index import RecordBucketError
from seamless_transformer.remote_job import parse_remote_job_written
from seamless_transformer.run import run_transformation_dict
from seamless_transformer.transformation_utils import is_deep_celltype

from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.worker import failure, record
from seamless_jobserver.worker.measure import Measurement, Meter
from seamless_jobserver.worker.memory import let_go
from seamless_jobserver.worker.nested import ThreadMeasurement, end_loops
from seamless_jobserver.worker.pins import needs, pins_with
from seamless_jobserver.worker.staging import NO_STORE, InputMissing, Staging, StoreUnavailable


def execute(request: RunRequest, staging: Staging, meter: Meter) -> Outcome:
    """Run the transformation of `request` and return how it ended. Never raises."""
    measurement = meter.start()
    try:
        return run_and_store(staging, request, measurement)
    except InputMissing as error:
        return Outcome(Ending.INPUT_MISSING, message=str(error), runtime=measurement.finish())
    except StoreUnavailable as error:
        return Outcome(Ending.STORE_FAILED, message=str(error), runtime=measurement.finish())
    except RecordBucketError as error:
        return Outcome(Ending.FAILED, message=f"{error}\n", runtime=measurement.finish())
    except CacheMissError as error:
        return Outcome(
            Ending.INPUT_MISSING,
            message=_describe_cache_miss(error, request),
            runtime=measurement.finish(),
        )
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, also SystemExit
        message = failure.describe(error, _language(request))
        return Outcome(Ending.FAILED, message=message, runtime=measurement.finish())
    finally:
        end_loops()
        let_go()


def run_and_store(
    staging: Staging, request: RunRequest, measurement: Measurement | ThreadMeasurement
) -> Outcome:
    """Run a transformation, store its result, and return the outcome of a success.

    Raises whatever the job's code raises, and `InputMissing`, `StoreUnavailable` and Seamless's
    own errors.
    """
    if not request.scratch and not buffer_remote.has_write_server():
        # Found out before the work, not after it.
        raise StoreUnavailable(NO_STORE)
    inputs = staging.fetch(needs(request.transformation, request.dunder))
    probes = record.probe_context(request, staging)
    result = run_transformation_dict(
        request.transformation,
        Checksum(request.checksum),
        request.dunder,
        scratch=True,
        require_value=not request.scratch,
    )
    runtime = measurement.finish()
    if parse_remote_job_written(result) is not None:
        return Outcome(Ending.REMOTE_JOB_WRITTEN, marker=str(result), runtime=runtime)
    checksum = Checksum(result)
    del inputs  # their memory is free for the result's way out
    if not request.scratch:
        _store_result(checksum, request.transformation, staging)
    return Outcome(
        Ending.RESULT,
        result_checksum=checksum.hex(),
        runtime={**runtime, **record.compilation_runtime(request, staging)},
        extra=record.answer_fields(request, probes, staging),
    )


def _store_result(checksum: Checksum, transformation: dict[str, Any], staging: Staging) -> None:
    buffer = get_buffer_cache().get(checksum)
    if buffer is None:
        if checksum.hex() in TRIVIAL_CHECKSUMS:
            return  # an empty result, which Seamless knows by its checksum
        raise StoreUnavailable(f"The result {checksum} was lost before it could be stored.\n")
    if is_deep_celltype(transformation["__output__"][1]):
        # Leaves first: whoever finds the structure finds what it names.
        staging.store_leaves(buffer.get_value("plain"))
    staging.store(buffer)


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
