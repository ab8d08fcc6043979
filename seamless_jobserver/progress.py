"""How far a worker is with its job: one byte that it writes and the server reads.

The byte lives in a file that both map into memory, so that telling costs the worker a store, and
the server learns it without asking, also when the worker is stuck, or dead. The server owns the
file: it makes one for each worker, sets it back before it hands over a job, and removes it with
the worker.
"""

import enum
import mmap
import os
from typing import Final


class Phase(enum.IntEnum):
    """What a worker does for its present job, in this order."""

    HANDED_OVER = 0
    FETCHING = 1
    WAITING_FOR_INPUT = 2
    """An input has been promised and is not there yet, or the store is away."""
    RUNNING = 3
    """The job's own code may have begun: from here on a job is never run a second time."""
    STORING = 4

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
}


class Progress:
    """One side's view of the byte."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        """Map the file at `path`, which the server creates. Raises OSError."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, 1)
            self._map = mmap.mmap(descriptor, 1)
        finally:
            os.close(descriptor)

    @property
    def phase(self) -> Phase:
        """The phase that was entered last."""
        return Phase(self._map[0])

    def enter(self, phase: Phase) -> None:
        """Say that `phase` begins."""
        self._map[0] = phase

    def close(self) -> None:
        """Give the mapping back."""
        self._map.close()
