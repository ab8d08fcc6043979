"""An exception of a job as the text that its user reads: what they wrote, not what ran it."""

import os
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from seamless_transformer import SeamlessStreamTransformationError

_LONGEST: Final = 2**20
"""Characters of a message: it goes to each of many callers, and is kept for some seconds."""
_PLUMBING: Final = ("seamless", "seamless_transformer", "seamless_remote", "seamless_jobserver")


def describe(error: BaseException, language: str) -> str:
    """Return the traceback of `error`, pruned to the user's code, ending in a newline.

    The frames that led to the user's code are ours and Seamless's, and are left out, also in the
    exceptions that `error` was raised from. An error that never reached the user's code has no
    frames left, and shows its message alone. What ``sys.exit`` was given is spelled out, since
    a bare number says little. In a transformation that is not Python (`language`), frames of
    Python mean nothing to its author, and only the error itself is shown.
    """
    if isinstance(error, SeamlessStreamTransformationError):
        return _shortened(str(error).strip("\n")) + "\n"  # a report that is complete as it is
    if language != "python":
        return _shortened("".join(traceback.format_exception_only(error)))
    report = traceback.TracebackException.from_exception(error)
    for part in _chain(report):
        part.stack = traceback.StackSummary.from_list(_prune(list(part.stack)))
    text = "".join(_without_empty_tracebacks(report))
    if isinstance(error, SystemExit):
        text += f"The job ended by sys.exit({_shown(error.code)}): return a result instead.\n"
    return _shortened(text)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - it is the job's own, and may do anything
        return f"<{type(value).__name__}, which cannot be shown>"


def _shortened(text: str) -> str:
    """Return `text`, without its middle where it is too long for anybody to read."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _chain(report: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    pending = [report]
    while pending:
        part = pending.pop()
        yield part
        further = [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
        pending.extend(other for other in further if other is not None)


def _prune(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    start = 0
    while start < len(frames) and _is_plumbing(frames[start].filename):
        start += 1
    return frames[start:]


def _without_empty_tracebacks(report: traceback.TracebackException) -> Iterator[str]:
    """Yield the report's lines, less the heading of a traceback that has no frames left."""
    lines = list(report.format())
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("Traceback (most recent call last)") and not following.startswith("  "):
            continue
        yield line


def _package_directories() -> tuple[str, ...]:
    directories = []
    for name in _PLUMBING:
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            directories.append(os.path.join(place, ""))
    return tuple(directories)


_directories = _package_directories()


def _is_plumbing(filename: str) -> bool:
    return filename.startswith(_directories)
