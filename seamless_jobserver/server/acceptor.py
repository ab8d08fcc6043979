"""The thread that accepts connections, and how it is halted.

It stays until the end, since there may be none to be had later. While it is halted it is parked,
and whoever has halted it may accept in its stead:

    halted ── start ──> accepting ── halt ──> halted
       └─────── end ────────┴──────> ended

A mode is what the thread is to do; `parked` says that it has come to a halt, or to its end. What it
waits for it gives up, by `over_within`, as soon as it is to accept no more.
"""

import enum
import logging
import select
import socket
import threading
from collections.abc import Callable
from typing import Final

_LOOK: Final = 0.1
"""Seconds between two calls of `attend`, when nobody connects."""
_AT_A_TIME: Final = 64
"""Connections that are accepted between two such calls, when a thousand come at one moment."""
_PARKED: Final = 3600.0
"""Seconds between two looks at whether it is to go on, if nobody wakes it."""
_HALT_LIMIT: Final = 60.0
"""Seconds for it to come to a halt, which takes a moment unless its log blocks."""

_log = logging.getLogger(__name__)


class _Mode(enum.Enum):
    """What the thread is to do."""

    ACCEPTING = enum.auto()
    HALTED = enum.auto()
    ENDED = enum.auto()


class Acceptor:
    """One thread, halted until it is started; its owner ends it."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        accept: Callable[[], bool],
        go_on: Callable[[], None],
        attend: Callable[[], None],
    ) -> None:
        """All of these are called in the thread, of which an error in one of them is the end.

        `accept` accepts one connection of `listener` and says whether there was one; `go_on` is
        called before the first, and again after each halt, `attend` now and then.
        """
        self._listener = listener
        self._accept = accept
        self._go_on = go_on
        self._attend = attend
        self._turned = threading.Condition()  # over the two below
        self._mode = _Mode.HALTED
        self._parked = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accept from now on.

        Raises RuntimeError when there is no thread to be had; after `halt` it is there.
        """
        self._turn(_Mode.ACCEPTING)
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="jobserver-accept", daemon=True)
            thread.start()
            self._thread = thread

    def halt(self) -> bool:
        """Accept no more until `start` is called again; False when the thread does not halt."""
        self._turn(_Mode.HALTED)
        if self._thread is None:
            return True
        with self._turned:
            parked = self._turned.wait_for(lambda: self._parked, _HALT_LIMIT)
        if not parked:
            _log.error("the thread that accepts does not halt")
        return parked

    def end(self) -> None:
        """Accept no more, and end the thread. Further calls do nothing."""
        self._turn(_Mode.ENDED)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_HALT_LIMIT)
            if thread.is_alive():
                _log.error("the thread that accepts does not end: is the log's disk full?")

    def over_within(self, seconds: float) -> bool:
        """Wait so long; return at once, with True, when nothing is to be accepted any more."""
        with self._turned:
            return self._turned.wait_for(lambda: self._mode is not _Mode.ACCEPTING, seconds)

    def _turn(self, mode: _Mode) -> None:
        with self._turned:
            self._mode = mode
            self._turned.notify_all()

    def _serve(self) -> None:
        arrivals = select.poll()
        arrivals.register(self._listener, select.POLLIN)
        try:
            while self._next_mode() is _Mode.ACCEPTING:
                self._go_on()
                # Not `serve_forever`: `shutdown` waits without a limit if that has not begun yet.
                while self._mode is _Mode.ACCEPTING:
                    arrivals.poll(1000 * _LOOK)
                    for _ in range(_AT_A_TIME):
                        if self._mode is not _Mode.ACCEPTING or not self._accept():
                            break
                    self._attend()
        finally:
            # Also after an error of ours: who waits for it is not to wait for ever.
            self._note_parked()

    def _next_mode(self) -> _Mode:
        """Park for as long as it is halted."""
        self._note_parked()
        with self._turned:
            while not self._turned.wait_for(lambda: self._mode is not _Mode.HALTED, _PARKED):
                continue
            self._parked = False
            return self._mode

    def _note_parked(self) -> None:
        with self._turned:
            self._parked = True
            self._turned.notify_all()
