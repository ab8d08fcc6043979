"""Ending and measuring whole process trees, and the guardian that acts when the server cannot.

A worker may start processes, and those may start more: a bash transformation runs in a session of
its own, so that killing the worker's process group does not reach it. Therefore:

- Every worker is a *child subreaper* (prctl(2), PR_SET_CHILD_SUBREAPER): whatever a job orphans
  becomes the worker's child instead of init's. So the worker's descendants in ``/proc`` are all
  that its jobs ever started and that still lives. The server is one too, and so inherits what
  the death of a worker orphans.
- `kill_tree` stops the root first (nothing new is started under our eyes), then walks, stops and
  walks again until a round finds nobody new, and kills all of them.
- A process is named by its pid *and* its start time, because pids are used again.

The *guardian* is for the one case in which nobody else can act: the server was killed with SIGKILL
while a worker was inside a call that never gives the interpreter back (a long regular expression
will do), so that the worker cannot notice. It is this file, run as a script by the server, in a
session of its own. It reads lines ``watch PID START`` and ``forget PID START`` on its standard
input; when that ends, which the kernel sees to however the server died, it kills the trees still
watched, removes the server's directory, and exits.
"""

import os
import signal
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple, TextIO

_PR_SET_CHILD_SUBREAPER: Final = 36
_SYS_PIDFD_OPEN: Final = 434
"""The same on all architectures that Python runs on (asm-generic/unistd.h)."""
_OUT_OF_SIGHT: Final = (FileNotFoundError, ProcessLookupError, PermissionError)
"""It has ended since it was listed, or ``/proc`` is mounted with hidepid=1 and it is not ours to
see (proc(5)), such as a set-uid program: we could not signal it either."""
_MAX_ROUNDS: Final = 50
"""A bound for the walk; only processes that fork faster than we stop them reach it."""


class ProcessId(NamedTuple):
    """A process, told apart from a later one with the same pid by its start time in clock ticks."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """Return the identity of the process that has `pid` now, or None when there is none."""
        stat = _read_stat(pid)
        return None if stat is None else cls(pid, stat.start)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        stat = _read_stat(self.pid)
        return stat is not None and stat.start == self.start and stat.state not in "ZX"


class _Stat(NamedTuple):
    state: str
    parent: int
    start: int
    stack: int


def become_subreaper() -> None:
    """Adopt the orphans of this process's descendants from now on (prctl(2), Linux 3.4).

    Raises OSError when the kernel refuses.
    """
    import ctypes  # here, because the guardian runs this file too and does without it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def open_process(pid: int) -> int:
    """Return a descriptor that becomes readable when a child has ended (pidfd_open(2), Linux 5.3).

    Its end is told whatever holds its pipes open. Raises OSError.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    import ctypes  # here, because the guardian runs this file too and does without it

    # Interpreters that were built for older systems, such as conda's, do not have it.
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.syscall(_SYS_PIDFD_OPEN, pid, 0))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"pidfd_open: {os.strerror(number)}")
    return descriptor


def descendants(pid: int) -> set[int]:
    """Return the pids of all living processes below `pid`, from one look at ``/proc``."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        new = children(pending.pop()) - found
        found |= new
        pending.extend(new)
    return found


def children(pid: int) -> set[int]:
    """Return the pids of the processes whose parent is `pid`; zombies count."""
    listed = _listed_children(pid)
    return _scanned_children(pid) if listed is None else listed


def has_children() -> bool:
    """Whether this process has any children, zombies included: one system call, no look around."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap(pid: int, limit: float) -> bool:
    """Collect the exit status of a child that was killed, when it ends within `limit` seconds.

    Returns whether it is gone. One that is no child is left alone, and counts as gone.
    """
    # Here, because the guardian runs this file too and does without them.
    import threading
    import time

    deadline = time.monotonic() + limit
    pause = threading.Event()  # never set: it is waited for, with a limit
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() >= deadline:
            return False
        pause.wait(0.005)


def kill_tree(root: ProcessId, *, spare_root: bool = False) -> set[int]:
    """Kill `root` and every process below it; return the pids that we were not allowed to kill.

    With `spare_root` only what is below it dies: a worker that ends itself uses this, and must
    not stop itself half-way. A root that is gone already leaves nothing to do.
    """
    if not root.alive:
        return set()
    refused: set[int] = set()
    if not spare_root:
        _signal([root.pid], signal.SIGSTOP, refused)
    seen: set[int] = set()
    for _ in range(_MAX_ROUNDS):
        new = descendants(root.pid) - seen
        if not new:
            break
        _signal(new, signal.SIGSTOP, refused)
        seen |= new
    _signal(seen, signal.SIGKILL, refused)
    if not spare_root:
        _signal([root.pid], signal.SIGKILL, refused)
    return refused


def terminate_tree(root: ProcessId) -> None:
    """Ask `root` and every process below it to end (SIGTERM)."""
    if root.alive:
        _signal([*descendants(root.pid), root.pid], signal.SIGTERM, set())


class Memory(NamedTuple):
    """What a process has in memory, in bytes: now, and at most so far.

    How much of what it has now is `files`, and how much is memory that was made to be `shared`.
    """

    resident: int
    peak: int
    files: int
    shared: int


def read_memory(pid: int | str = "self") -> Memory:
    """Return the memory of a process (proc_pid_status(5)); zeros when it is gone, or hidden."""
    try:
        status = _read(f"/proc/{pid}/status")
    except _OUT_OF_SIGHT:
        return Memory(0, 0, 0, 0)
    names = b"\nVmRSS:", b"\nVmHWM:", b"\nRssFile:", b"\nRssShmem:"
    return Memory(*(_amount(status, name) for name in names))


def tree_memory(pid: int) -> int:
    """Return the bytes that a process and all below it have in memory, without mapped files.

    What several of them share counts once.
    """
    memory = memory_by_process(pid)
    elsewhere = counted_elsewhere(memory)
    return sum(max(0, one.resident - one.files - elsewhere[pid]) for pid, one in memory.items())


def memory_by_process(root: int) -> dict[int, Memory]:
    """Return the memory of `root` and of every process below it.

    Left out is a child that has no memory of its own yet: between vfork(2), by which most programs
    start others, and execve(2), it is in that of its parent.
    """
    found: dict[int, Memory] = {}
    pending = [(root, 0)]
    while pending:
        pid, parent = pending.pop()
        memory = read_memory(pid)
        if parent and memory == read_memory(parent) and _stack(pid) == _stack(parent):
            continue
        found[pid] = memory
        pending.extend((child, pid) for child in children(pid) - found.keys())
    return found


def counted_elsewhere(memory: dict[int, Memory]) -> dict[int, int]:
    """Return for each process how many bytes of its memory others account for, files left out.

    A page that n processes share belongs to each by 1/n, so that the rest of them all together is
    what they have in memory (proc_pid_smaps(5): Pss). They share memory that was made for it, and
    after a fork(2) all that neither of the two has written to since. That is told by their stack,
    whose place is random in each new program: the kernel takes a millisecond for each 100 MB that
    it counts pages in. It is 0 where it does not tell (before Linux 5.3), or must not.
    """
    stacks = {pid: _stack(pid) for pid in memory}
    families: dict[int, int] = {}
    for stack in stacks.values():
        families[stack] = families.get(stack, 0) + 1
    return {
        pid: _counted_elsewhere(pid, one) if one.shared or families[stacks[pid]] > 1 else 0
        for pid, one in memory.items()
    }


def _counted_elsewhere(pid: int, memory: Memory) -> int:
    try:
        rollup = _read(f"/proc/{pid}/smaps_rollup")
    except _OUT_OF_SIGHT:
        return 0
    if b"\nPss_Anon:" not in rollup:
        return 0
    alone = _amount(rollup, b"\nAnonymous:") - _amount(rollup, b"\nPss_Anon:")
    return max(0, alone) + max(0, memory.shared - _amount(rollup, b"\nPss_Shmem:"))


def _stack(pid: int) -> int:
    stat = _read_stat(pid)
    return 0 if stat is None else stat.stack


def guard(commands: TextIO, directory: str) -> None:
    """Run the guardian: keep the watch list that `commands` describes, and act at its end.

    Whatever is still watched is killed then, and `directory` removed with all that is in it.
    """
    watched: set[ProcessId] = set()
    for line in commands:
        verb, pid, start = line.split()
        process = ProcessId(int(pid), int(start))
        if verb == "watch":
            watched.add(process)
        else:
            watched.discard(process)
    for process in watched:
        try:
            kill_tree(process)
        except OSError:
            # What is below it cannot be found. The others are to go all the same.
            _kill_alone(process)
    import shutil  # only now: it would double the memory of the guardian

    shutil.rmtree(directory, ignore_errors=True)


def _kill_alone(process: ProcessId) -> None:
    try:
        _signal([process.pid] if process.alive else [], signal.SIGKILL, set())
    except OSError:
        return  # it cannot even be told from a later process with its pid


def _signal(pids: Iterable[int], number: signal.Signals, refused: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            # A set-uid program belongs to somebody else; who asked is told.
            refused.add(pid)


def _listed_children(pid: int) -> set[int] | None:
    """Return the children that the kernel lists for each thread, or None where it keeps no list.

    proc_pid_task(5): present with CONFIG_PROC_CHILDREN, and exact for a stopped process.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except _OUT_OF_SIGHT:
        return set()
    found: set[int] = set()
    for thread in threads:
        try:
            text = _read(f"/proc/{pid}/task/{thread}/children")
        except FileNotFoundError:
            if os.path.isdir(f"/proc/{pid}/task/{thread}"):
                return None
            continue
        except (ProcessLookupError, PermissionError):
            continue
        found.update(int(child) for child in text.split())
    return found


def _scanned_children(pid: int) -> set[int]:
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = _read_stat(int(name))
            if stat is not None and stat.parent == pid:
                found.add(int(name))
    return found


def _amount(status: bytes, name: bytes) -> int:
    # Not line by line: there are sixty of them.
    start = status.find(name)
    return int(status[start + len(name) :].split(None, 1)[0]) * 1024 if start >= 0 else 0


def _read(path: str) -> bytes:
    # Not pathlib: it would double the memory of the guardian.
    with open(path, "rb") as file:
        return file.read()


def _read_stat(pid: int) -> _Stat | None:
    """Read state, parent, start time and stack (proc_pid_stat(5): fields 3, 4, 22 and 28)."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except _OUT_OF_SIGHT:
        return None
    # The command's name stands in parentheses and may hold spaces and parentheses itself.
    rest = text.rpartition(b")")[2].split()
    return _Stat(rest[0].decode(), int(rest[1]), int(rest[19]), int(rest[25]))


if __name__ == "__main__":
    guard(sys.stdin, sys.argv[1])
