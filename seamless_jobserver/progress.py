"""How far a worker is with its job, and what a person would call the job.

One byte, and a short text behind it, in a file that both sides map into memory: telling costs the
worker a store, and the server learns it without asking, also when the worker is stuck, or dead. The
server owns the file: it makes one for each worker, sets it back before it hands over a job, and
removes it with the worker.
"""

import enum
import mmap
import os
from typing import Final


class Phase(enum.IntEnum):
    """What a worker does for its present job, in this order; the last two can take turns."""

    HANDED_OVER = 0
    FETCHING = 1
    WAITING_FOR_INPUT = 2
    """Inputs take their time: one is promised, or large, or the store is away."""
    RUNNING = 3
    """The job's own code may have begun: from here on a job is never run a second time."""
    STORING = 4
    PUTTING_BACK = 5
    """What the job has left is put away, by code of its own too (finalizers), before or while its
    result is stored."""

    @property
    def words(self) -> str:
        """The phase as a person reads it."""
        return _WORDS[self]


_WORDS: Final = {
    Phase.HANDED_OVER: "handed to a worker",
    Phase.FETCHING: "fetching inputs",
    Phase.WAITING_FOR_INPUT: "waiting for input",
    Phase.RUNNING: "running",
    Phase.STORING: "storing the result",
    Phase.PUTTING_BACK: "putting the worker back",
}


_NAME: Final = 160
"""Bytes that a name may have; a NUL ends it."""


class Progress:
    """One side's view of the file."""

    def __init__(self, directory: str, *, create: bool = False) -> None:
        """Map the file in a worker's directory, which the server creates. Raises OSError."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        descriptor = os.open(os.path.join(directory, "progress"), flags, 0o600)
        try:
            if create:
                # Not a hole: with the disk full, its first use would be a bus error (mmap(2)).
                os.write(descriptor, bytes(1 + _NAME))
            self._map = mmap.mmap(descriptor, 1 + _NAME)
        finally:
            os.close(descriptor)
        self._last = Phase.HANDED_OVER
        self._last_name = ""

    @property
    def phase(self) -> Phase:
        """The phase that was entered last, also after `close`."""
        if self._map.closed:
            return self._last
        number = self._map[0]
        # Compiled code that writes where it should not can reach it, too.
        return Phase(number) if number in _WORDS else Phase.RUNNING

    @property
    def name(self) -> str:
        """What the present job was called last, also after `close`; empty when nobody has said."""
        if self._map.closed:
            return self._last_name
        return self._map[1:].partition(b"\0")[0].decode("utf-8", errors="ignore")

    def enter(self, phase: Phase) -> None:
        """Say that `phase` begins."""
        self._map[0] = phase

    def call(self, name: str) -> None:
        """Say what the present job is called; a long name is cut."""
        encoded = name.encode("utf-8", errors="ignore").replace(b"\0", b"")[:_NAME]
        self._map[1:] = encoded.ljust(_NAME, b"\0")

    def close(self) -> None:
        """Give the mapping back."""
        self._last, self._last_name = self.phase, self.name
        self._map.close()
