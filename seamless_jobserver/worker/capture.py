"""What a job printed: everything that reaches file descriptors 1 and 2 while it runs.

Capturing at the level of the descriptors catches what Python, C libraries and subprocesses write.
For the time of a job both descriptors point at a file of that job alone, opened for appending:
standard output and standard error keep the order in which they came, a process that a job left
behind goes on writing to *its* file, and the server can read the file when the worker is dead.

Making a file takes a disk longer than a small job takes. So the next job's file is made while the
store takes the result of the last one, by a thread of its own, and later only gets its name.

Three buffers lie between a job and the descriptors: Python's own, which is flushed here; that of
the C library, flushed through ``fflush(NULL)``; and those of subprocesses, which are theirs.

A job can make anything of the streams that it finds: wrap them, detach them, open their descriptors
once more. What it has made closes what is below it when it goes. So each job gets streams of its
own, and both descriptors are pointed anew after what it has made of the last ones has gone.
"""

import ctypes
import io
import os
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, TextIO

_STDOUT: Final = 1
_STDERR: Final = 2
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class OutputCapture:
    """Points the process's standard output and error at one job's file at a time.

    Make one in each worker process, from the thread that runs the jobs.
    """

    def __init__(self, directory: str) -> None:
        """In `directory`, which is the worker's, the files of the jobs to come are made."""
        self._blank = os.path.join(directory, "output")
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="jobserver-capture")
        self._made: Future[None] | None = None
        self.make_next()
        self._libc = ctypes.CDLL(None)
        self._file: int | None = None
        # What was imported in a job may keep the streams that it found, and write to them later.
        self._streams: weakref.WeakSet[TextIO] = weakref.WeakSet()
        self._install()

    @contextmanager
    def to_file(self, path: str) -> Iterator[None]:
        """Send all output to a new file at `path` until the block ends.

        Raises OSError when the file cannot be created; the output then goes nowhere new.
        """
        _open_standard()  # or the file would get the number of one that is closed
        with ExitStack() as opened:

            def held(descriptor: int) -> int:
                opened.callback(os.close, descriptor)
                return descriptor

            file = held(self._take(path))
            before = held(os.dup(_STDOUT)), held(os.dup(_STDERR))
            try:
                self._flush()
                self._file = file
                _point(file, file)
                yield
            finally:
                self._file = None
                self._flush()
                _point(*before)

    def make_next(self) -> None:
        """Begin to make the next job's file, if there is none."""
        if self._made is None:
            self._made = self._maker.submit(_make, self._blank)

    def _take(self, path: str) -> int:
        """Return the descriptor of a new file at `path`, which nobody else writes to."""
        made, self._made = self._made, None
        if made is not None:
            with suppress(OSError):
                made.result()
                os.rename(self._blank, path)
                return os.open(path, _APPEND | os.O_NOFOLLOW)
        return os.open(path, _APPEND | os.O_CREAT | os.O_EXCL, 0o600)

    def mend(self) -> None:
        """Point both descriptors at the present job's file again, with new streams on them.

        To be called when the job's code has ended, before anything else is opened: a connection
        that got the number of a closed descriptor would be closed in its place, or close it later.
        """
        if self._file is not None:
            _point(self._file, self._file)
            # What the job has made of its streams can close them as it is flushed, and as it goes.
            self._flush()
            _point(self._file, self._file)
            self._install()
            _point(self._file, self._file)
        _open_standard()

    def _install(self) -> None:
        """Put new streams in place of whatever a job has made of the last ones."""
        self._stdout = _stream(_STDOUT)
        self._stderr = _stream(_STDERR)
        self._streams.update((self._stdout, self._stderr))
        sys.stdout = sys.__stdout__ = self._stdout  # type: ignore[misc,assignment]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc,assignment]

    def _flush(self) -> None:
        # A job can have put anything there, or taken it away.
        for stream in (sys.__dict__.get("stdout"), sys.__dict__.get("stderr")):
            if stream is not self._stdout and stream is not self._stderr:
                _flush_quietly(stream)
        for own in self._streams:
            if _is_whole(own):
                _flush_quietly(own)
        self._libc.fflush(None)


def _make(path: str) -> None:
    # It is closed again: a job may close whatever is open, and open something else in its place.
    os.close(os.open(path, _APPEND | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))


def _point(stdout: int, stderr: int) -> None:
    os.dup2(stdout, _STDOUT)
    os.dup2(stderr, _STDERR)


def _open_standard() -> None:
    """Let none of the three standard descriptors be free for a file or a connection to get."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened == number:
                os.set_inheritable(opened, True)
            else:
                os.close(opened)  # another thread has just got it


def _is_whole(stream: TextIO) -> bool:
    """Whether a stream has neither been closed nor been taken apart (``detach``)."""
    try:
        return not stream.closed
    except ValueError:
        return False


def _flush_quietly(stream: Any) -> None:
    """Flush `stream`, if it is one, and note in the output when that fails.

    A full disk must not fail a job, nor may what a job has left in place of a stream, whose methods
    are the job's own code and can raise anything.
    """
    if stream is None:
        return
    try:
        if not getattr(stream, "closed", False):
            stream.flush()
    except BaseException as error:  # noqa: BLE001 - see above
        # Not its text: to make that may call the job's own code, too.
        number = error.errno if isinstance(error, OSError) else None
        what = os.strerror(number) if type(number) is int else type(error).__name__
        # The file that cannot be written to may be that of standard error, too.
        with suppress(OSError):
            os.write(_STDERR, f"[worker {os.getpid()}] output was lost: {what}\n".encode())


def _stream(descriptor: int) -> TextIO:
    """Return a text stream on `descriptor` that a job can close without closing the descriptor.

    UTF-8 whatever the locale, and never an error for what cannot be encoded: printing is not
    worth a failed job. Line by line, so that the two streams mix in the order of writing.
    """
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
