"""The end of a server that nobody uses.

Activity is a request being answered or a job that runs; the clock starts when the last of either
has ended. It is monotonic: a changed system time does not end a server, and neither does a
machine that was suspended, since the clock stands still meanwhile.

A `threading.Timer` looks when the timeout could have passed at the earliest, and again when that
turns out to be later. So a request costs no timer, and one that arrives as the timer fires counts.
(A timer that cannot be had for want of threads is replaced by waiting in the one that has fired.)
Before a request has been read nobody knows whether it only watches, so what is under way when the
timer fires does not put the end off by a whole timeout.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_UNCERTAIN: Final = 1.0
"""Seconds until another look when something is under way: it can turn out to be only a look."""


class Mark:
    """Whether something counts as activity: a page that is left open in a browser does not.

    As long as it does not, it is not even under way.
    """

    def __init__(self, change: Callable[[int], None]) -> None:
        self._change = change
        self._counts = True

    @property
    def counts(self) -> bool:
        """Whether it counts; may be set more than once, while it is under way."""
        return self._counts

    @counts.setter
    def counts(self, counts: bool) -> None:
        if self._counts != counts:
            self._counts = counts
            self._change(1 if counts else -1)


class Activity:
    """How much is going on. Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way = 0
        self._last = clock()

    @contextmanager
    def ongoing(self) -> Iterator["Mark"]:
        """Count as activity for as long as the block runs, or until it says that it only watches.

        The clock starts anew at its end, unless it only watched.
        """
        mark = Mark(self._change)
        self._change(1)
        try:
            yield mark
        finally:
            if mark.counts:
                with self._lock:
                    self._under_way -= 1
                    self._last = self._clock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave the request that is being answered out of account for as long as the block runs.

        It is for who is inside `ongoing`, and has no mark at hand.
        """
        self._change(-1)
        try:
            yield
        finally:
            self._change(1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._under_way += by

    def idle_seconds(self) -> float:
        """Return for how long nothing has been going on; 0.0 while something is."""
        with self._lock:
            return 0.0 if self._under_way else self._clock() - self._last


class IdleTimer:
    """Calls `expired` once when `activity` has been idle for `timeout` seconds."""

    def __init__(self, timeout: float, activity: Activity, expired: Callable[[], None]) -> None:
        self._timeout = timeout
        self._activity = activity
        self._expired = expired
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start to watch. Raises RuntimeError when there is no thread to be had."""
        self._set(self._timeout)

    def close(self) -> None:
        """Stop watching; `expired` is not called any more once this has returned."""
        with self._lock:
            self._closed = True
            timer, self._timer = self._timer, None
        self._stopped.set()
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join(1.0)

    def _set(self, seconds: float) -> None:
        with self._lock:
            if self._closed:
                return
            timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._look)
            timer.name = "jobserver-idle"
            timer.daemon = True
            timer.start()
            self._timer = timer

    def _look(self) -> None:
        while True:
            idle = self._activity.idle_seconds()
            left = self._timeout - idle
            if left <= 0:
                with self._lock:
                    if self._closed:
                        return
                    self._closed = True
                self._expired()
                return
            seconds = left if idle else min(left, _UNCERTAIN)
            try:
                self._set(seconds)
                return
            except RuntimeError:
                if self._stopped.wait(min(seconds, threading.TIMEOUT_MAX)):
                    return
