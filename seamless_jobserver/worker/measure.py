"""What one job used, measured in the process that ran it, children included.

A worker runs one job at a time, so the difference between two readings of the process's clocks is
the job's. Left out is what the thread that stores results has used, which may still be at work for
the job before, and the time for which a job waits for that alone. Peak memory is not a difference:
`memorypeak` says how it is found.

A nested transformation that runs inside the process of its job, in a thread of its own, is measured
by that thread's clock. The children that it waits for are counted with it for as long as no other
such transformation runs beside it: the kernel keeps one account of them for the whole process. Its
memory is that of the job around it so far.
"""

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seamless_transformer.transformation_cache import (
    start_gpu_memory_sampler,
    stop_gpu_memory_sampler,
)

from seamless_jobserver.processtree import ProcessId
from seamless_jobserver.worker.memorypeak import MemoryPeak


class Meter:
    """Measures the jobs of this process, one at a time; make one in each worker."""

    def __init__(self, storing_seconds: Callable[[], float] = lambda: 0.0) -> None:
        """`storing_seconds` returns what storing results has taken of a processor so far."""
        self._executions = 0
        self._counting = threading.Lock()
        self._storing_seconds = storing_seconds
        self._process = {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "process_started_at": _utc(datetime.now(timezone.utc)),
            "process_create_time_epoch": _create_time(),
        }
        # Looked for once: a failing import in every job would cost more than a small job does.
        self._has_gpu_library = find_spec("pynvml") is not None
        self._memory = MemoryPeak()
        self._account = _ChildrenAccount()

    def start(self, kept: Callable[[], int]) -> "Measurement":
        """Begin to measure the next job.

        `kept` returns how many bytes are kept from earlier jobs, which may become fewer.
        """
        facts = {**self._process, "worker_execution_index": self._count(1)}
        gpu = start_gpu_memory_sampler() if self._has_gpu_library else None
        self._memory.start(kept)
        stop_gpu = partial(stop_gpu_memory_sampler, gpu)
        return Measurement(facts, self._memory, stop_gpu, self._storing_seconds)

    def take_back(self) -> None:
        """Do not count the job that was started last: its code has not begun."""
        self._count(-1)

    def _count(self, more: int) -> int:
        with self._counting:
            self._executions += more
            return self._executions

    @contextmanager
    def measure_thread(self) -> "Iterator[ThreadMeasurement]":
        """Measure what this thread does in the block, for a run inside the present job."""
        facts = {**self._process, "worker_execution_index": self._count(1), "retry_count": 0}
        measurement = ThreadMeasurement(facts, self._account, self._memory)
        with self._account.open(measurement):
            yield measurement


class Measurement:
    """One job; `finish` returns the ``record_runtime`` of protocol.md, the first time and after."""

    def __init__(
        self,
        facts: dict[str, Any],
        memory: MemoryPeak,
        stop_gpu: Callable[[], int | None],
        storing_seconds: Callable[[], float],
    ) -> None:
        self._facts = facts
        self._memory = memory
        self._stop_gpu = stop_gpu
        self._storing_seconds = storing_seconds
        self._result: dict[str, Any] | None = None
        self._started_at = datetime.now(timezone.utc)
        self._cpu = self._cpu_seconds()
        self._wall = time.perf_counter()

    def leave_out(self, wait: Callable[[], None]) -> None:
        """Call `wait`, and do not count the time that it takes."""
        begun = time.perf_counter()
        wait()
        self._wall += time.perf_counter() - begun

    def finish(self) -> dict[str, Any]:
        """Return times in seconds, memory in bytes, moments in UTC to the second."""
        if self._result is None:
            wall = time.perf_counter() - self._wall
            user, system = (
                now - then for now, then in zip(self._cpu_seconds(), self._cpu, strict=True)
            )
            self._memory.stop()
            # What storing has taken is known as a sum, and taken off here as far as it goes.
            rest = min(0.0, user)
            self._result = {
                "started_at": _utc(self._started_at),
                "finished_at": _utc(datetime.now(timezone.utc)),
                "wall_time_seconds": round(wall, 6),
                "cpu_user_seconds": round(user - rest, 6),
                "cpu_system_seconds": round(max(0.0, system + rest), 6),
                "memory_peak_bytes": self._memory.so_far(),
                "gpu_memory_peak_bytes": self._stop_gpu(),
                **self._facts,
            }
        return self._result

    def _cpu_seconds(self) -> tuple[float, float]:
        """Return user and system time of this process and of the children that it waited for.

        Without those of the sampler and of storing, which are ours and not the job's.
        """
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = self._memory.cpu_seconds
        user += self._storing_seconds()
        return own.ru_utime + children.ru_utime - user, own.ru_stime + children.ru_stime - system

    def inputs_fetched(self) -> None:
        """Take note that the job's inputs are there, and may have driven out those of others."""
        self._memory.note_driven_out()


class ThreadMeasurement:
    """One run in a thread of its own, inside a job; `finish` is to be called in that thread.

    `children` is the user and system time of children that is counted as its own, in seconds.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        account: "_ChildrenAccount",
        memory: MemoryPeak,
    ) -> None:
        self._facts = facts
        self._account = account
        self._memory = memory
        self.children = (0.0, 0.0)
        self._started_at = datetime.now(timezone.utc)
        self._wall = time.perf_counter()
        self._usage = resource.getrusage(resource.RUSAGE_THREAD)

    def finish(self) -> dict[str, Any]:
        """Return what `Measurement.finish` does."""
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        self._account.settle()
        user, system = self.children
        return {
            "started_at": _utc(self._started_at),
            "finished_at": _utc(datetime.now(timezone.utc)),
            "wall_time_seconds": round(time.perf_counter() - self._wall, 6),
            "cpu_user_seconds": round(usage.ru_utime - self._usage.ru_utime + user, 6),
            "cpu_system_seconds": round(usage.ru_stime - self._usage.ru_stime + system, 6),
            "memory_peak_bytes": self._memory.so_far(),
            "gpu_memory_peak_bytes": None,
            **self._facts,
        }

    def inputs_fetched(self) -> None:
        """Do what `Measurement.inputs_fetched` does."""
        self._memory.note_driven_out()


class _ChildrenAccount:
    """Gives the time of children that were waited for to the one thread that is measured then.

    While several are, nobody can say whose a child was, and it is given to none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # over the fields below, and the `children` of the measured
        self._measured: list[ThreadMeasurement] = []
        self._so_far = (0.0, 0.0)

    @contextmanager
    def open(self, measurement: ThreadMeasurement) -> Iterator[None]:
        """Count `measurement` among those that run, in the block."""
        with self._lock:
            self._settle()
            self._measured.append(measurement)
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._measured.remove(measurement)

    def settle(self) -> None:
        """Bring the account up to now."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        before, self._so_far = self._so_far, (usage.ru_utime, usage.ru_stime)
        if len(self._measured) == 1:
            (alone,) = self._measured
            user, system = alone.children
            alone.children = (
                user + self._so_far[0] - before[0],
                system + self._so_far[1] - before[1],
            )


def _create_time() -> float | None:
    """Return when this process was created, in seconds since 1970, as psutil does."""
    identity = ProcessId.of(os.getpid())
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime ") and identity is not None:
            return int(line.split()[1]) + identity.start / os.sysconf("SC_CLK_TCK")
    return None


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
