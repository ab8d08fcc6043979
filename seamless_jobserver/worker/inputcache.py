"""Input buffers that are kept from job to job, bounded by bytes, least recently used first to go.

Buffers are named by the checksum of their content, so a kept one is never stale. Only the bytes are
kept: each job parses them for itself and gets values of its own. Text and bytes are nothing that
Python's collector looks into; it only passes over them, hence the bound on their number.

Results are not kept, since most of them are never asked for here. Nor is an input that would fill
the whole cache by itself.
"""

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

import seamless

_OVERHEAD: Final = 400
"""Bytes that a kept buffer costs beyond its content: objects, dict entries, hexadecimal digits."""
LARGE: Final = 2**20
"""Bytes from which on it is worth it to run a job where its input is kept."""
MOST: Final = 10_000
"""Buffers, however small. The collector runs after each job, and passes over these in 0.2 ms."""


class _Kept(NamedTuple):
    """A buffer's content, and in which of our jobs it came."""

    content: bytes
    job: int


class InputCache:
    """Keeps buffers by checksum, of at most `limit` bytes in all; 0 keeps none.

    Safe to use from several threads: nested transformations fetch in threads of their own.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()  # over the fields below
        self._contents: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0
        self._job = 0
        self._earlier = 0
        self._large: set[str] = set()
        self._large_told: set[str] | None = None

    @property
    def size(self) -> int:
        """Bytes that are kept now, with what keeping them costs."""
        return self._size

    @property
    def earlier(self) -> int:
        """Bytes, counted in the same way, of what was kept at `begin_job`, and still is."""
        return self._earlier

    def begin_job(self) -> None:
        """Count all that is kept now as `earlier`."""
        with self._lock:
            self._job += 1
            self._earlier = self._size

    def get(self, checksum: str) -> seamless.Buffer | None:
        """Return the buffer with this checksum (lower-case hexadecimal), or None."""
        with self._lock:
            kept = self._contents.get(checksum)
            if kept is None:
                return None
            self._contents.move_to_end(checksum)
        # Named, so that it is not hashed again; Seamless enters it in its weak cache.
        return seamless.Buffer(kept.content, checksum=seamless.Checksum(checksum))

    def keep(self, checksum: str, buffer: seamless.Buffer) -> None:
        """Keep a buffer, whose content must have been found to have this checksum."""
        content = buffer.content
        if len(content) + _OVERHEAD > self._limit:
            return
        with self._lock:
            if checksum in self._contents:
                self._contents.move_to_end(checksum)
                return
            self._contents[checksum] = _Kept(content, self._job)
            self._size += len(content) + _OVERHEAD
            if len(content) >= LARGE:
                self._large.add(checksum)
            while self._size > self._limit or len(self._contents) > MOST:
                oldest = next(iter(self._contents))
                self._drop(oldest)

    def forget(self, checksum: str) -> None:
        """Let go of a buffer, if it is kept: a job may have written over its content."""
        with self._lock:
            if checksum in self._contents:
                self._drop(checksum)

    def news_of_large(self) -> list[str] | None:
        """Return the checksums of the large buffers that are kept, or None if that is no news."""
        with self._lock:
            if self._large == self._large_told:
                return None
            self._large_told = set(self._large)
            return sorted(self._large)

    def _drop(self, checksum: str) -> None:
        kept = self._contents.pop(checksum)
        size = len(kept.content) + _OVERHEAD
        self._size -= size
        if kept.job < self._job:
            self._earlier -= size
        self._large.discard(checksum)
