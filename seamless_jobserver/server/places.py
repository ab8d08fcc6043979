"""How many connections are served at a time, and which of them make room for new ones.

A connection that waits for a request of its client, for longer than a moment, is there for the
client's convenience only (RFC 9112 §9.3). When all places are taken, the one that has waited
longest is asked to end, by shutting down its reading side: its thread sees the end of the
connection. A request that had arrived by then is still read and answered, and none is lost.

Those who have yet to show who they are have places of their own, few and for seconds only. A new
one pushes out the oldest, whatever that has sent: many of them are in each other's way, and in
nobody else's.
"""

import contextlib
import select
import socket
import threading
import time
from typing import Final, Protocol

LEAST_IDLE: Final = 0.5
"""Seconds without a request after which a connection makes room: longer than a client that is in
the middle of something lets pass between two requests, shorter than a healthcheck may wait."""
STRANGERS: Final = 64
"""Connections that have yet to show who they are."""


class Holder(Protocol):
    """A connection; its socket can change when TLS begins."""

    socket: socket.socket


class Places:
    """So many places for connections. Any thread may call it."""

    def __init__(self, most: int, *, least_idle: float = LEAST_IDLE, spare: bool = True) -> None:
        """`spare` says whether one is spared that has sent something which was not read yet."""
        self._least_idle = least_idle
        self._spare = spare
        self._changed = threading.Condition()  # over the four below
        self._free = most
        self._wanted = 0
        self._idle: dict[Holder, float] = {}  # since when; the longest first
        self._leaving: set[Holder] = set()

    def take(self, timeout: float) -> bool:
        """Take a place; False when there is none within `timeout` seconds."""
        with self._changed:
            self._wanted += 1
            try:
                self._make_room()
                if not self._changed.wait_for(lambda: self._free > 0, timeout):
                    return False
                self._free -= 1
                return True
            finally:
                self._wanted -= 1

    def give_back(self, holder: Holder) -> None:
        """Give back the place of a connection that has ended."""
        with self._changed:
            self._idle.pop(holder, None)
            self._leaving.discard(holder)
            self._free += 1
            self._changed.notify()

    def rest(self, holder: Holder) -> None:
        """Note that a connection waits for its client from now on, and can make room."""
        with self._changed:
            self._idle[holder] = time.monotonic()

    def wake(self, holder: Holder) -> bool:
        """Note that a connection has something to do; False when it is to end after that."""
        with self._changed:
            self._idle.pop(holder, None)
            leaving = holder in self._leaving
            self._leaving.discard(holder)
            return not leaving

    def is_leaving(self, holder: Holder) -> bool:
        """Whether a connection has been asked to end."""
        with self._changed:
            return holder in self._leaving

    def _make_room(self) -> None:
        """Ask as many connections to end as there are places wanted, if there are such."""
        while self._wanted > self._free + len(self._leaving):
            holder = self._choose()
            if holder is None:
                return
            del self._idle[holder]
            self._leaving.add(holder)
            with contextlib.suppress(OSError):  # it has ended by itself
                # Not SSLSocket's own, which would have its thread go on in the clear.
                how = socket.SHUT_RD if self._spare else socket.SHUT_RDWR
                socket.socket.shutdown(holder.socket, how)

    def _choose(self) -> Holder | None:
        latest = time.monotonic() - self._least_idle
        old = [holder for holder, since in self._idle.items() if since <= latest]
        silent = next((holder for holder in old if not _has_sent(holder.socket)), None)
        if silent is not None or self._spare:
            return silent
        return next(iter(old), None)


def _has_sent(connection: socket.socket) -> bool:
    """Whether there is something to read, or the connection ends by itself."""
    descriptor = connection.fileno()
    if descriptor < 0:  # closed at this moment, or being replaced by one with TLS
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
