"""What one job used, measured in the process that ran it, children included.

A worker runs one job at a time, so the difference between two readings of the process's clocks is
the job's. Peak memory is not a difference:

- The kernel's high-water mark of the process only rises, and is set back to the present size
  before each job (proc(5): writing 5 to ``/proc/self/clear_refs``).
- Of the children the kernel remembers only the largest that ever was, so they are looked at while
  they live, every `_INTERVAL` seconds, by a thread that sleeps between jobs. Each child's own
  high-water mark is read, so that nothing is lost between two looks but what a child gained in
  its last moments. A child that came and went in between is found in the kernel's count, when it
  was larger than all before it.
- Left out are the files of the program (shared libraries and the like) that are in memory before
  the job begins: they are shared with every other worker and belong to no job. So are the inputs
  that are kept from earlier jobs.

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
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from seamless_transformer.transformation_cache import (
    start_gpu_memory_sampler,
    stop_gpu_memory_sampler,
)

from seamless_jobserver.processtree import ProcessId, descendants, has_children, read_memory

_INTERVAL: Final = 0.02


class Meter:
    """Measures the jobs of this process, one at a time; make one in each worker.

    Its thread, "jobserver-sampler", lives as long as the process.
    """

    def __init__(self) -> None:
        self._executions = 0
        self._process = {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "process_started_at": _utc(datetime.now(timezone.utc)),
            "process_create_time_epoch": _create_time(),
        }
        # Looked for once: a failing import in every job would cost more than a small job does.
        self._has_gpu_library = find_spec("pynvml") is not None
        self._children = _ChildrenSampler()
        self._account = _ChildrenAccount()
        self._present: Measurement | None = None

    def start(self, kept: int) -> "Measurement":
        """Begin to measure the next job; `kept` bytes in memory are not its own."""
        self._executions += 1
        facts = {**self._process, "worker_execution_index": self._executions}
        gpu = start_gpu_memory_sampler() if self._has_gpu_library else None
        self._present = Measurement(
            facts, kept, self._children, lambda: stop_gpu_memory_sampler(gpu)
        )
        return self._present

    @contextmanager
    def measure_thread(self) -> "Iterator[ThreadMeasurement]":
        """Measure what this thread does in the block, for a run inside the present job."""
        facts = {**self._process, "worker_execution_index": self._executions, "retry_count": 0}
        measurement = ThreadMeasurement(facts, self._account, self._memory_so_far)
        with self._account.open(measurement):
            yield measurement

    def _memory_so_far(self) -> int | None:
        return None if self._present is None else self._present.memory_so_far()


class Measurement:
    """One job; `finish` returns the ``record_runtime`` of protocol.md, the first time and after."""

    def __init__(
        self,
        facts: dict[str, Any],
        kept: int,
        children: "_ChildrenSampler",
        stop_gpu: Callable[[], int | None],
    ) -> None:
        self._facts = facts
        self._children = children
        self._stop_gpu = stop_gpu
        self._result: dict[str, Any] | None = None
        _reset_memory_peak()
        self._shared = read_memory().files + kept
        self._largest_child = _largest_child()
        children.start(self._shared)
        self._started_at = datetime.now(timezone.utc)
        self._cpu = self._cpu_seconds()
        self._wall = time.perf_counter()

    def finish(self) -> dict[str, Any]:
        """Return times in seconds, memory in bytes, moments in UTC to the second."""
        if self._result is None:
            wall = time.perf_counter() - self._wall
            user, system = self._cpu_seconds()
            self._children.stop()
            self._result = {
                "started_at": _utc(self._started_at),
                "finished_at": _utc(datetime.now(timezone.utc)),
                "wall_time_seconds": round(wall, 6),
                "cpu_user_seconds": round(user - self._cpu[0], 6),
                "cpu_system_seconds": round(system - self._cpu[1], 6),
                "memory_peak_bytes": self.memory_so_far(),
                "gpu_memory_peak_bytes": self._stop_gpu(),
                **self._facts,
            }
        return self._result

    def _cpu_seconds(self) -> tuple[float, float]:
        """Return user and system time of this process and of the children that it waited for.

        Without those of the sampler, which is ours and not the job's.
        """
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = self._children.cpu_seconds
        return own.ru_utime + children.ru_utime - user, own.ru_stime + children.ru_stime - system

    def memory_so_far(self) -> int:
        """Return the peak of memory up to now, of this process and its children."""
        try:
            return self._read_memory_peak(self._children.look())
        except OSError:
            # A job has left no file to open. The peak of the process's life is too much rather
            # than too little, and costs no file.
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _read_memory_peak(self, sampled: int) -> int:
        own = read_memory().peak
        unsampled = _largest_child()
        if unsampled <= max(self._largest_child, own):
            # Not the job's, or only the copy of this process that a child is before it becomes
            # something else.
            unsampled = 0
        return max(own - self._shared, sampled, unsampled)


class ThreadMeasurement:
    """One run in a thread of its own, inside a job; `finish` is to be called in that thread.

    `children` is the user and system time of children that is counted as its own, in seconds.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        account: "_ChildrenAccount",
        memory_so_far: Callable[[], int | None],
    ) -> None:
        self._facts = facts
        self._account = account
        self._memory_so_far = memory_so_far
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
            "memory_peak_bytes": self._memory_so_far(),
            "gpu_memory_peak_bytes": None,
            **self._facts,
        }


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


class _ChildrenSampler:
    """Keeps the most that this process and its descendants have had together since `start`.

    `cpu_seconds` is the user and system time that its own thread has used so far.
    """

    def __init__(self) -> None:
        self.cpu_seconds = (0.0, 0.0)
        self._wanted = threading.Event()
        self._pause = threading.Event()  # never set: it is waited for, with a limit
        self._lock = threading.Lock()
        self._peak = 0
        self._shared = 0
        threading.Thread(target=self._serve, name="jobserver-sampler", daemon=True).start()

    def start(self, shared: int) -> None:
        """Begin anew; `shared` bytes of this process are not the job's."""
        with self._lock:
            self._peak = 0
            self._shared = shared
        self._wanted.set()

    def stop(self) -> None:
        """Look no more, but when asked to."""
        self._wanted.clear()

    def look(self) -> int:
        """Look now, and return the peak since `start` in bytes; 0 when there were no children."""
        self._sample()
        with self._lock:
            return self._peak

    def _serve(self) -> None:
        interval = _INTERVAL
        while True:
            self._wanted.wait()
            self._pause.wait(interval)
            if self._wanted.is_set():
                begun = time.thread_time()
                with suppress(OSError):  # the job may have used up its files for the moment
                    self._sample()
                # Many processes, or a slow kernel: it must not cost what it is to measure.
                interval = max(_INTERVAL, 50 * (time.thread_time() - begun))
                usage = resource.getrusage(resource.RUSAGE_THREAD)
                self.cpu_seconds = usage.ru_utime, usage.ru_stime

    def _sample(self) -> None:
        # Most jobs have none, and to find that out for every thread would take a tenth of a
        # millisecond. Orphans further down become our children, since we are a subreaper.
        below = descendants(os.getpid()) if has_children() else set()
        if not below:
            return
        together = 0
        for pid in below:
            memory = read_memory(pid)
            together += max(0, memory.peak - memory.files)
        with self._lock:
            together += max(0, read_memory().resident - self._shared)
            self._peak = max(self._peak, together)


def _largest_child() -> int:
    """Return the most memory that any one child has had over the life of this process."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _reset_memory_peak() -> None:
    # A kernel without the file, or a mount that is read-only, leaves the peak of the process's
    # life: too much rather than too little.
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")
    except OSError:
        return


def _create_time() -> float | None:
    """Return when this process was created, in seconds since 1970, as psutil does."""
    identity = ProcessId.of(os.getpid())
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime ") and identity is not None:
            return int(line.split()[1]) + identity.start / os.sysconf("SC_CLK_TCK")
    return None


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
