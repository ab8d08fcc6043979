"""Connections that are not let in, until they have been told.

A client hears an answer only once it has asked. So a refused connection stays for a few seconds:
until it has sent something, and then until it has taken the answer. They are few, and a new one
pushes out the oldest; the thread that accepts looks after all of them and never waits for one. So a
stranger costs neither a thread nor one of the places that the owner's connections need.
"""

import select
import socket
import time
from dataclasses import dataclass
from typing import Final

from seamless_jobserver.server.access import Refused
from seamless_jobserver.server.response import render, text_response

MOST: Final = 32
PATIENCE: Final = 5.0
"""Seconds for a client that is not let in to send something."""
LINGER: Final = 1.0
"""Seconds in which what it is still sending is taken in (RFC 9112 §9.6)."""
_CHUNK: Final = 64 * 1024
_CHUNKS: Final = 16
"""Of what one of them sends, in a row: then it is the turn of others."""
_TLS_HANDSHAKE: Final = b"\x16"
_ACCESS_DENIED: Final = bytes((21, 3, 3, 0, 2, 2, 49))
"""A fatal alert of TLS, ``access_denied`` (RFC 8446 §6.2), which is sent in the clear."""


@dataclass
class _Refused:
    connection: socket.socket
    refusal: Refused
    deadline: float
    told: bool = False


class Doorstep:
    """Where they stand. The acceptor calls it, or others while that is parked."""

    def __init__(self) -> None:
        self._here: dict[int, _Refused] = {}  # by descriptor; the oldest first
        self._poll = select.poll()

    def turn_away(self, connection: socket.socket, refusal: Refused) -> None:
        """Own `connection` from now on, and tell it `refusal` when it has sent something."""
        if len(self._here) >= MOST:
            self._drop(next(iter(self._here)))
        connection.setblocking(False)
        descriptor = connection.fileno()
        self._here[descriptor] = _Refused(connection, refusal, time.monotonic() + PATIENCE)
        self._poll.register(descriptor, select.POLLIN)
        # Most have sent their request by now, and need not wait for the next look.
        self._hear(descriptor)

    def attend(self) -> None:
        """Answer those that have sent something, and drop those whose time is over."""
        if not self._here:
            return
        for descriptor, _ in self._poll.poll(0):
            self._hear(descriptor)
        now = time.monotonic()
        for descriptor in [number for number, one in self._here.items() if one.deadline <= now]:
            self._drop(descriptor)

    def close(self) -> None:
        """Drop all of them."""
        for descriptor in list(self._here):
            self._drop(descriptor)

    def _hear(self, descriptor: int) -> None:
        one = self._here[descriptor]
        try:
            for _ in range(_CHUNKS):
                data = one.connection.recv(_CHUNK)
                if not data:
                    self._drop(descriptor)
                    return
                if not one.told:
                    # It fits into the empty buffer of the socket; what does not is not waited for.
                    one.connection.send(_answer(one.refusal, data))
                    one.connection.shutdown(socket.SHUT_WR)
                    one.told, one.deadline = True, time.monotonic() + LINGER
        except BlockingIOError:
            return
        except OSError:  # it has gone
            self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._here.pop(descriptor).connection.close()


def _answer(refusal: Refused, data: bytes) -> bytes:
    if data.startswith(_TLS_HANDSHAKE):
        return _ACCESS_DENIED
    response = text_response(refusal.status, str(refusal), **refusal.fields)
    return render(response, keep_alive=False, head_only=data.startswith(b"HEAD "))
