"""What a client has sent: taken off its connection in pieces, and given out as heads and bodies.

The framing is `seamless_jobserver.http1`. What comes after a request is kept for the next, since
clients may send several before the first answer (RFC 9112 §9.3.2). The socket is given each time:
a connection that begins TLS goes on with another.
"""

import socket
import time
from typing import Final

from seamless_jobserver import http1

CHUNK: Final = 256 * 1024
"""Bytes that are taken off a connection at a time, at the most."""


class ClientGone(Exception):
    """The client has closed the connection, or does not take its answer."""


class RequestReader:
    """The requests of one connection, whose bodies have at most `max_body` bytes.

    Deadlines are on the clock of `time.monotonic`.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes have come that are not taken yet."""
        return len(self._buffer)

    def add(self, data: bytes) -> None:
        """Take in what has come another way."""
        self._buffer += data

    def head(self, connection: socket.socket, deadline: float) -> bytes:
        """Return the next request's head, without the empty line at its end.

        Raises `MalformedMessage`, `ClientGone` or OSError.
        """
        searched = 0
        while True:
            # A robust server ignores empty lines before a request (RFC 9112 §2.2).
            while self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]
                searched = 0
            end = self._buffer.find(b"\r\n\r\n", max(0, searched - 3))
            if end >= 0:
                block = bytes(memoryview(self._buffer)[:end])
                del self._buffer[: end + 4]
                return block
            http1.check_beginning(self._buffer, searched)
            searched = len(self._buffer)
            if searched > http1.MAX_HEAD:
                raise http1.MalformedMessage("a head without an end", status=431)
            self._receive(connection, deadline)

    def body(self, connection: socket.socket, head: http1.RequestHead, deadline: float) -> bytes:
        """Return the body that follows `head`; a client that waits to be asked for it is asked.

        Raises as `head` does.
        """
        length = http1.request_body_length(head.fields)
        if length > self._max_body:
            raise http1.MalformedMessage(
                f"a body of {length} bytes, more than the {self._max_body} that --max-body "
                "of the jobserver allows",
                status=413,
            )
        expectations = head.fields.tokens("Expect")
        if expectations - {"100-continue"}:
            raise http1.MalformedMessage("an expectation that is not 100-continue", status=417)
        if expectations and head.version >= (1, 1) and len(self._buffer) < length:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._buffer) < length:
            self._receive(connection, deadline)
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return body

    def _receive(self, connection: socket.socket, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise http1.MalformedMessage("the request took too long to arrive", status=408)
        connection.settimeout(left)
        try:
            data = connection.recv(CHUNK)
        except TimeoutError:
            raise http1.MalformedMessage(
                "the request took too long to arrive", status=408
            ) from None
        if not data:
            raise ClientGone("it closed the connection in the middle of a request")
        self._buffer += data
