"""What jobs print: files in a private directory that goes away with the server.

A worker creates a job's file and points its standard output and error at it; the server reads it,
while the job runs, after it, and when the worker is dead. Nobody else can look in: the directory
is the user's alone.

The disk that they take is bounded. Of a job that has ended the last `KEPT` bytes stay, until the
files of later jobs push them out (`TOTAL`, `MOST`); how much it was is remembered for longer. A job
that runs and prints without end loses the beginning of its file: the kernel is asked to give back
those blocks (fallocate(2), ``FALLOC_FL_PUNCH_HOLE``), since the job goes on writing at its end. On
a file system that cannot do that the file is cut down when the job has ended.
"""

import ctypes
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

SHOWN: Final = 256 * 1024
"""Bytes of a job's output that go into the answer for a failure; its end says most."""
KEPT: Final = 2**20
"""Bytes of a job's output that are kept, at its end."""
TOTAL: Final = 64 * 2**20
"""Bytes of output that are kept of all jobs that have ended."""
MOST: Final = 2000
"""Files of jobs that have ended that are kept, however small."""
_REMEMBERED: Final = 10_000
"""Files that were pushed out whose sizes are remembered."""
_WHILE_RUNNING: Final = 4 * KEPT
_PUNCH_HOLE_KEEP_SIZE: Final = 0x03
"""linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""
_BLOCK: Final = 4096
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.EBADF})
"""What opening a file says that is not there, or is a link, or when the directory has gone."""

_log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """A part of what a job has printed: the byte that it begins at, and how many there are in all.

    Both count from the first byte that the job printed, kept or not.
    """

    content: bytes
    start: int
    total: int


class JobOutput:
    """Owner of the directory. One thread calls it, but for what says that any thread may."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="seamless-jobserver-")).absolute()
        self._descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # What clears away old files leaves a directory alone that is locked (tmpfiles.d(5)).
        self._locked = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # not on every file system
            fcntl.flock(self._locked, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._count = 0
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()  # over the two below, and the files that they are about
        self._cut: dict[str, int] = {}
        self._pushed_out: OrderedDict[str, int] = OrderedDict()
        self._size = 0
        self._libc = ctypes.CDLL(None, use_errno=True)

    @property
    def directory(self) -> str:
        """The private directory."""
        return str(self._directory)

    def new_path(self) -> str:
        """Return a path for the output of one run of a job; nothing is there."""
        self._count += 1
        return str(self._directory / str(self._count))

    def new_directory(self) -> str:
        """Return a path for a worker's directory. Raises OSError when it would not be private.

        What clears ``/tmp`` of old files may have removed ours, and another user made one by its
        name, in which a worker would trust whatever is put before it.
        """
        named, ours = os.stat(self._directory), os.fstat(self._descriptor)
        if (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
            raise FileExistsError(
                f"{self._directory} is not the directory that this jobserver has made: it was "
                "removed, and made again by somebody else. Start the jobserver anew"
            )
        return self.new_path()

    def limit(self, path: str) -> None:
        """Give back the beginning of the file at `path` if its job has printed very much."""
        try:
            descriptor = self._open(path, os.O_RDWR)
        except OSError:
            return  # the job has not begun, or has ended
        try:
            facts = os.fstat(descriptor)
            if facts.st_blocks * 512 > _WHILE_RUNNING:
                self._give_back(descriptor, (facts.st_size - KEPT) // _BLOCK * _BLOCK)
        finally:
            os.close(descriptor)

    def keep(self, path: str) -> int:
        """Keep what a job that has ended printed into the file at `path`; return how much it was.

        An empty file is removed, and so are the oldest ones when there is too much, and one that is
        too long when the disk has no room to cut it down.
        """
        try:
            size = os.lstat(path).st_size
            if not size:
                os.unlink(path)
                return 0
            if size > KEPT and not self._cut_down(path, size):
                return size
        except FileNotFoundError:
            return 0  # a job that never began has no file
        self._kept[path] = min(size, KEPT)
        self._size += min(size, KEPT)
        while self._size > TOTAL or len(self._kept) > MOST:
            self._drop(next(iter(self._kept)))
        return size

    def discard(self, path: str) -> None:
        """Remove the file of a run that counts for nothing, if it is there."""
        Path(path).unlink(missing_ok=True)

    def end_of(self, path: str) -> str:
        """Return the end of what a job has printed, to be shown with its failure.

        Text in UTF-8, with what is not UTF-8 replaced. Of more than `SHOWN` bytes the end is
        returned, under a line that says so.
        """
        content, start = self.read(path, SHOWN)
        text = content.decode("utf-8", errors="replace")
        return f"[… {start} bytes left out …]\n{text}" if start else text

    def open(self, path: str) -> BinaryIO | None:
        """Open a file to follow it, also when it is cut down or removed; None if it is not there.

        Any thread may call it.
        """
        try:
            return open(path, "rb", opener=self._open)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise

    def piece(self, path: str, start: int | None, most: int) -> Piece:
        """Return what there is from the byte `start` on, of more than `most` bytes the last ones.

        Without `start` the last ones are returned. Any thread may call it.
        """
        with self._lock:
            cut = self._cut.get(path, 0)
            file = self.open(path)  # it is read outside the lock
            if file is None:
                total = self._pushed_out.get(path, 0)
                return Piece(b"", total, total)
        with file:
            size = os.fstat(file.fileno()).st_size
            wanted = 0 if start is None else min(start - cut, size)
            begin = max(0, wanted, size - most)
            file.seek(begin)
            return Piece(file.read(size - begin), cut + begin, cut + size)

    def extent(self, path: str) -> tuple[int, int]:
        """Return how many bytes of a job's output are not kept, at its beginning, and of how many.

        Any thread may call it.
        """
        total = self.piece(path, None, 0).total
        kept = os.path.exists(path)
        return max(0, total - KEPT) if kept else total, total

    def read(self, path: str, most: int) -> tuple[bytes, int]:
        """Return the last bytes of a file, at most so many, and how many come before them.

        Any thread may call it. A file that is not there any more is as good as empty.
        """
        file = self.open(path)
        if file is None:
            return b"", 0
        with file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - most)
            file.seek(start)
            return file.read(most), start

    def close(self) -> None:
        """Remove the directory with all that is in it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            os.close(self._locked)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _drop(self, path: str) -> None:
        size = self._kept.pop(path)
        self._size -= size
        with self._lock:
            self._push_out(path, size + self._cut.pop(path, 0))

    def _push_out(self, path: str, size: int) -> None:
        self._pushed_out[path] = size
        Path(path).unlink(missing_ok=True)
        while len(self._pushed_out) > _REMEMBERED:
            self._pushed_out.popitem(last=False)

    def _cut_down(self, path: str, size: int) -> bool:
        """Leave the last `KEPT` bytes of `size` in the file at `path`; return whether it is there.

        It is removed where that cannot be done: the job may have filled the disk with it.
        """
        temporary = f"{path}.end"
        with self._lock:
            try:
                content, _ = self.read(path, KEPT)
                with open(temporary, "wb", opener=_private) as file:
                    file.write(content)
                os.replace(temporary, path)
            except OSError as error:
                _log.warning("the output of a job is not kept: %s", error)
                Path(temporary).unlink(missing_ok=True)
                self._push_out(path, size)
                return False
            self._cut[path] = size - KEPT
            return True

    def _open(self, path: str, flags: int) -> int:
        # A job can put a link in the place of its file, and what the server reads, others may see.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(os.path.basename(path), flags, dir_fd=self._descriptor)

    def _give_back(self, descriptor: int, length: int) -> None:
        done = self._libc.fallocate(
            descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(length)
        )
        if done != 0:
            reason = os.strerror(ctypes.get_errno())
            _log.debug("the output of a running job cannot be cut down: %s", reason)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC, 0o600)
