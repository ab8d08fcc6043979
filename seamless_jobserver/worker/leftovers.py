"""What jobs leave behind in their process, and what nobody can put back: a reason for a new worker.

Processes, threads, open files and memory. What a job has started may only need a moment to end;
files and memory that it has forgotten are added up over all jobs of the process.
"""

import _thread
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

from seamless_jobserver.processtree import children, has_children, read_memory

GROWTH_LIMIT: Final = 512 * 1024 * 1024
"""Bytes by which a worker may have grown for good; past that, a new one is cheaper."""
DESCRIPTOR_LIMIT: Final = 200
"""Open files that jobs may have forgotten to close, all together."""
PATIENCE: Final = 0.2
"""Seconds for threads and processes that a job has started to end by themselves: who has read all
that a process says (``os.popen``) has not waited for its end."""

_OUR_THREADS: Final = ("jobserver-", "Seamless")
"""Threads of ours, and those that seamless-core and seamless-remote keep in the background."""


class Leftovers:
    """How much there is between jobs, noted when this is made, in the thread that runs them."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._threads = set(threading.enumerate())
        self._unknown_threads = _count_unknown_threads()
        self._descriptors = len(os.listdir("/proc/self/fd"))
        self._grown_from = _own_memory()

    def check_children(self) -> str | None:
        """Look for processes; return what is left of them, in words, or None."""
        if not has_children():
            return None
        server = sys.modules.get("multiprocessing.forkserver")
        if server is not None:
            # It has the job's environment, and would start the processes of other jobs. Private.
            if server._forkserver._forkserver_pid is not None:
                os.kill(server._forkserver._forkserver_pid, signal.SIGKILL)  # `_stop` waits for it
            server._forkserver._stop()
        deadline = time.monotonic() + PATIENCE
        pause = threading.Event()  # never set: it is waited for, with a limit
        while left := [pid for pid in children(os.getpid()) if not _is_harmless(pid)]:
            if time.monotonic() >= deadline:
                return f"a job left {len(left)} processes behind"
            pause.wait(0.005)
        return None

    def check_threads(self) -> str | None:
        """Look for threads; return what is left of them, in words, or None."""
        deadline = time.monotonic() + PATIENCE
        left = []
        for thread in set(threading.enumerate()) - self._threads:
            # One that Python has not started is known by a dummy, which stays when it has ended.
            dummy = isinstance(thread, threading._DummyThread)
            if not dummy and not thread.name.startswith(_OUR_THREADS):
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    left.append(thread.name)
        if left:
            return f"a job left threads behind: {', '.join(sorted(left))}"
        pause = threading.Event()  # never set: it is waited for, with a limit
        while (unknown := _count_unknown_threads() - self._unknown_threads) > 0:
            if time.monotonic() >= deadline:
                return f"a job left {unknown} threads behind that were started without threading"
            pause.wait(0.005)
        return None

    def check_growth(self, kept: int) -> str | None:
        """Look at files and memory, of which `kept` bytes are kept on purpose; as above."""
        if len(os.listdir("/proc/self/fd")) > self._descriptors + DESCRIPTOR_LIMIT:
            return f"jobs left over {DESCRIPTOR_LIMIT} files open"
        if _own_memory() - self._grown_from - kept > GROWTH_LIMIT:
            self._libc.malloc_trim(0)  # what is free may only not have been given back
            grown = _own_memory() - self._grown_from - kept
            if grown > GROWTH_LIMIT:
                return f"it has grown by {grown // 2**20} MB"
        return None


def _count_unknown_threads() -> int:
    """Return how many threads run that were started by ``_thread``, behind the back of threading.

    Private, hence the guard: without it they are not noticed.
    """
    count = getattr(_thread, "_count", None)
    started = sum(
        not isinstance(one, threading._DummyThread) and one is not threading.main_thread()
        for one in threading.enumerate()
    )
    return 0 if count is None else max(0, count() - started)


def _own_memory() -> int:
    """Return the bytes of memory that are this process's own.

    Libraries are files, which the next worker would map again.
    """
    memory = read_memory()
    return memory.resident - memory.files


def _is_harmless(pid: int) -> bool:
    """Whether a child may stay; one that has ended is collected, so that no zombie stays either.

    multiprocessing's resource tracker stays for the life of a process that has once used
    multiprocessing, and does nothing on its own account.
    """
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return True
    except ChildProcessError:
        return True  # somebody else has collected it meanwhile
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return True
