"""Input buffers that are kept from job to job, bounded by bytes, least recently used first to go.

Buffers are named by the checksum of their content, so a kept one is never stale. Only the bytes are
kept: each job parses them for itself and gets values of its own.

Results are not kept, since most of them are never asked for here. Nor is an input that would fill
the whole cache by itself.
"""

import threading
from collections import OrderedDict
from typing import Final

import seamless

DEFAULT_SIZE: Final = 256 * 1024 * 1024
"""Bytes for each worker."""
_OVERHEAD: Final = 1024
"""Bytes that a kept buffer costs beyond its content: objects, dict entries, hexadecimal digits."""


class InputCache:
    """Keeps buffers by checksum, of at most `limit` bytes in all; 0 keeps none.

    Safe to use from several threads: nested transformations fetch in threads of their own.
    """

    def __init__(self, limit: int = DEFAULT_SIZE) -> None:
        self._limit = limit
        self._lock = threading.Lock()  # over both fields below
        self._buffers: OrderedDict[str, seamless.Buffer] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that are kept now, with what keeping them costs."""
        return self._size

    def get(self, checksum: str) -> seamless.Buffer | None:
        """Return the buffer with this checksum (lower-case hexadecimal), or None."""
        with self._lock:
            buffer = self._buffers.get(checksum)
            if buffer is not None:
                self._buffers.move_to_end(checksum)
            return buffer

    def keep(self, checksum: str, buffer: seamless.Buffer) -> None:
        """Keep a buffer, whose content must have been found to have this checksum."""
        cost = _cost(buffer)
        if cost > self._limit:
            return
        with self._lock:
            if checksum in self._buffers:
                self._buffers.move_to_end(checksum)
                return
            self._buffers[checksum] = buffer
            self._size += cost
            while self._size > self._limit:
                self._size -= _cost(self._buffers.popitem(last=False)[1])

    def forget(self, checksum: str) -> None:
        """Let go of a buffer, if it is kept: a job may have written over its content."""
        with self._lock:
            buffer = self._buffers.pop(checksum, None)
            if buffer is not None:
                self._size -= _cost(buffer)

    def holdings(self, least: int) -> frozenset[str]:
        """Return the checksums of the kept buffers that have at least so many bytes."""
        with self._lock:
            return frozenset(name for name, one in self._buffers.items() if len(one) >= least)


def _cost(buffer: seamless.Buffer) -> int:
    return len(buffer.content) + _OVERHEAD
