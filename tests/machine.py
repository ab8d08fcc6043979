"""What the machine can do at this moment, for tests that name a figure or need much of it.

A figure is meant for a machine that has time. On one that is loaded it is stretched by what the
machine needs, then and there, for work that is none of ours: to start an interpreter.
"""

import resource
import shutil
import subprocess
import time
import unittest
from collections.abc import Callable
from pathlib import Path

from tests.stack import JOBSERVER_PYTHON, PATIENCE

ATTEMPTS = 3
"""One that is in time shows what the program can do; the others may be the machine's fault."""
WORKERS_IMPORTS = (
    "from seamless_jobserver.transport import import_seamless_remote\n"
    "import_seamless_remote()\n"
    "import seamless_jobserver.worker.execution\n"
)


def fresh_interpreter(code: str = "pass") -> float:
    """Return the seconds that a new interpreter takes now to run `code`."""
    started = time.monotonic()
    subprocess.run([str(JOBSERVER_PYTHON), "-c", code], check=True)
    return time.monotonic() - started


def stretched(figure: float, times: float, code: str = "pass") -> float:
    """Return `figure`, or so many times what a new interpreter takes now, if that is more."""
    return max(figure, times * fresh_interpreter(code))


def assert_prompt(
    case: unittest.TestCase,
    measure: Callable[[], dict[str, float]],
    bounds: dict[str, Callable[[], float]],
) -> None:
    """Measure up to `ATTEMPTS` times, until all that `measure` returns is within its bound."""
    seen = []
    for _ in range(ATTEMPTS):
        took = measure()
        allowed = {name: bound() for name, bound in bounds.items()}
        if all(took[name] <= allowed[name] for name in bounds):
            return
        seen.append(f"took {took}, allowed {allowed}")
    case.fail("\n".join(seen))


def may_mount() -> bool:
    """Return whether a disk can be mounted here, where nobody else sees it (mount_namespaces(7))."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False)
    return tried.returncode == 0


def processor_time(pid: int) -> float:
    """Return the seconds of processor time of a process, all its threads (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_of(pid: int) -> int:
    """Return the bytes that a process has in memory, with its share of what it shares (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def allow_open_files(case: unittest.TestCase, count: int) -> None:
    """Let this process have so many files open, as far as it may, until the test has ended."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        case.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
