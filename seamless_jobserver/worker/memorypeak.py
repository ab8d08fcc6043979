"""The most memory that a job has had at a time, in its worker and in the worker's children.

- The kernel's high-water mark of a process only rises. It is set back to the present size before
  each job (proc(5): writing 5 to ``/proc/self/clear_refs``).
- Of the children the kernel remembers only the largest that ever was, so they are looked at while
  they live, every `_INTERVAL` seconds, by a thread that sleeps between jobs. Each child's own
  high-water mark is read, so that nothing is lost between two looks but what a child gained in
  its last moments. A child that came and went in between is found in the kernel's count, when it
  was larger than all before it.
- What several of them share counts once. (After a fork, for one, they share all that none has
  written to.)
- Left out are the files of the program (shared libraries and the like) that are in memory before
  the job begins: they are shared with every other worker and belong to no job.
- Left out, too, are the inputs that are kept from earlier jobs, for as long as they are kept: a
  job's own inputs can drive them out, and its memory then takes their place. When that has
  happened, the peak up to then is noted, and the high-water mark set back once more.
"""

import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from seamless_jobserver.processtree import (
    counted_elsewhere,
    has_children,
    memory_by_process,
    read_memory,
)

_INTERVAL: Final = 0.02


class MemoryPeak:
    """The peak since `start`; make one in each worker process.

    Its thread, "jobserver-sampler", lives as long as the process. `cpu_seconds` is the user and
    system time that it has used so far.
    """

    def __init__(self) -> None:
        self.cpu_seconds = (0.0, 0.0)
        self._wanted = threading.Event()
        self._pause = threading.Event()  # never set: it is waited for, with a limit
        self._lock = threading.Lock()  # over the fields below
        self._kept: Callable[[], int] = lambda: 0
        self._files = 0
        self._earlier = 0
        self._noted = 0
        self._sampled = 0
        self._largest_child = 0
        threading.Thread(target=self._serve, name="jobserver-sampler", daemon=True).start()

    def start(self, kept: Callable[[], int]) -> None:
        """Begin anew; `kept` returns how many bytes are kept from earlier jobs, ever fewer."""
        with self._lock:
            _reset_high_water()
            self._kept = kept
            self._earlier = kept()
            self._files = read_memory().files
            self._noted = self._sampled = 0
            self._largest_child = _largest_child()
        self._wanted.set()

    def note_driven_out(self) -> None:
        """Take into account that less may be kept from earlier jobs than before."""
        with self._lock:
            left = self._kept()
            if left >= self._earlier:
                return
            # A job that has used up its files makes this impossible: its peak is then found to be
            # higher than it was, by what has been driven out.
            with suppress(OSError):
                self._noted = self._peak(self._earlier)
                _reset_high_water()
            self._earlier = left

    def so_far(self) -> int:
        """Return the peak up to now, in bytes."""
        try:
            self._sample()
            with self._lock:
                return self._peak(min(self._earlier, self._kept()))
        except OSError:
            # A job has left no file to open. The peak of the process's life is too much rather
            # than too little, and costs no file.
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def stop(self) -> None:
        """Look no more, but when asked to."""
        self._wanted.clear()

    def _peak(self, earlier: int) -> int:
        own = read_memory().peak
        unsampled = _largest_child()
        if unsampled <= max(self._largest_child, own):
            # Not the job's, or only the copy of this process that a child is before it becomes
            # something else.
            unsampled = 0
        return max(self._noted, own - self._files - earlier, self._sampled, unsampled)

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
        if not has_children():
            return
        memory = memory_by_process(os.getpid())
        own = memory[os.getpid()]
        below = {pid: one for pid, one in memory.items() if pid != os.getpid()}
        if not below:
            return
        with self._lock:
            together = max(0, own.resident - self._files - self._earlier)
            most = together + sum(max(0, one.peak - one.files) for one in below.values())
            if most <= self._sampled:
                return  # without a look at what they share, which could only make it less
            elsewhere = counted_elsewhere(memory)
            for pid, one in below.items():
                # The high-water mark of a process that shares memory may be of what it has shared.
                had = one.resident - elsewhere[pid] if elsewhere[pid] else one.peak
                together += max(0, had - one.files)
            self._sampled = max(self._sampled, together - elsewhere[os.getpid()])


def _largest_child() -> int:
    """Return the most memory that any one child has had over the life of this process."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _reset_high_water() -> None:
    # A kernel without the file, or a mount that is read-only, leaves the peak of the process's
    # life: too much rather than too little.
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")
    except OSError:
        return
