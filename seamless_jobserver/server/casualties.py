"""How a worker died, in words that help its user: what was seen, and what it usually means."""

import signal
import time
from typing import Final

_FRESH: Final = 1.0
"""Seconds for which a count is good enough."""

_LIKELY: Final[dict[int, str]] = {
    signal.SIGKILL: "somebody killed it, or a limit of the machine or of the batch system did",
    signal.SIGSEGV: "compiled code that the job uses has crashed",
    signal.SIGBUS: "compiled code that the job uses has crashed, or a mapped file has shrunk",
    signal.SIGFPE: "compiled code that the job uses has divided by zero",
    signal.SIGILL: "compiled code that the job uses was built for another processor",
    signal.SIGABRT: "compiled code that the job uses gave up (abort), or an assertion failed",
    signal.SIGXCPU: "the limit on processor time was reached (ulimit -t)",
    signal.SIGXFSZ: "the limit on file size was reached (ulimit -f)",
    signal.SIGTERM: "somebody ended it, or the batch system did",
    signal.SIGHUP: "the session that it belonged to was closed",
    signal.SIGINT: "somebody interrupted it",
    signal.SIGPIPE: "it wrote to a program that had ended",
    signal.SIGSYS: "it made a system call that is forbidden here",
}
_OUT_OF_MEMORY: Final = (
    "out of memory: the kernel has ended a process for want of memory at that time. Give the job "
    "more memory, or run fewer at a time"
)


def describe_exit(code: int | None, *, out_of_memory: bool) -> str:
    """Return how a process ended: its signal or exit code, and the likely cause.

    `code` is `multiprocessing.Process.exitcode`: negative for a signal, None when it is unknown.
    """
    if code is None:
        return "an unknown cause (its exit code did not arrive)"
    if code >= 0:
        return (
            f"exit code {code} (likely cause: the job called os._exit, or a library that it uses)"
        )
    try:
        name = f" {signal.Signals(-code).name}"
    except ValueError:
        name = ""
    likely = _OUT_OF_MEMORY if out_of_memory else _LIKELY.get(-code)
    cause = f" (likely cause: {likely})" if likely else ""
    return f"signal {-code}{name}{cause}"


class OutOfMemoryKills:
    """Whether the kernel has ended any process for want of memory during a job.

    proc_vmstat(5), ``oom_kill`` (Linux 4.13): all of the machine, control groups included. So it
    makes a cause likely, and does not prove it.
    """

    def __init__(self, path: str = "/proc/vmstat") -> None:
        self._path = path
        self._before = 0
        self._counted_at = -_FRESH

    def begin(self) -> None:
        """Note that a job begins. A count of a moment ago will do: small jobs come by hundreds."""
        now = time.monotonic()
        if now - self._counted_at >= _FRESH:
            self._before = self._count()
            self._counted_at = now

    @property
    def happened(self) -> bool:
        """Whether there was such an end since the job began."""
        return self._count() > self._before

    def _count(self) -> int:
        try:
            with open(self._path) as counters:
                for line in counters:
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        except OSError:
            return 0  # a machine that does not tell
        return 0
