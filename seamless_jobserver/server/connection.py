"""One connection: requests framed, answers out, in a thread of its own.

It reads a request, waits for its answer however long the job takes, writes it, and goes on with
the next request. The framing is `seamless_jobserver.http1`; nothing of `http.server`'s own
request handling is used, because it takes what RFC 9112 forbids.

What keeps a connection honest:

- A body is read whole before its request is answered, so that what follows on the connection is
  a request and not the rest of a body. Where that is not possible the connection is closed. The
  body of a request that is refused (`server.access`) is not read: strangers get no memory of ours.
- A request has `REQUEST_LIMIT` seconds to arrive in all, however it trickles; an idle connection
  is closed after `IDLE_LIMIT`.
- While a job runs, clients that are known to skip interim responses get ``102 Processing`` now and
  then (RFC 2518 §10.1): it resets their read timeout, which a long job would run into.
- Who connects is checked before a byte of theirs is read, and each request when its head is there.
- With a certificate, a connection that begins like TLS is TLS. One in the clear is then served only
  to the owner, as the kernel tells: the launcher, launched clients and our own workers are that.
- A head and its body leave in one ``send``, with Nagle's algorithm off.
"""

import contextlib
import logging
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from seamless_jobserver import http1
from seamless_jobserver.server.access import Gate, Refused, Standing
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.response import Response, text_response

REQUEST_LIMIT: Final = 30.0
"""Seconds from the first byte of a request to its last."""
IDLE_LIMIT: Final = 75.0
"""Seconds that a connection may stay open between requests; clients ask again after 30."""
WRITE_LIMIT: Final = 60.0
"""Seconds without progress in writing an answer."""
PROCESSING_INTERVAL: Final = 20.0
"""Seconds between interim responses; far below any read timeout that makes sense."""
_HANDSHAKE_LIMIT: Final = 10.0
_REFUSED_LIMIT: Final = 5.0
"""Seconds for a client that is not let in to say something, and hear so."""
_TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of a TLS connection (RFC 8446 §5.1)."""
_LINGER: Final = 1.0
_CHUNK: Final = 256 * 1024

_log = logging.getLogger(__name__)

Answerer = Callable[[http1.RequestHead, bytes, Callable[[], float]], Response]
"""Given a request's head, its body, and what to call while it waits; see `Routes.answer`."""


class ClientGone(Exception):
    """The client has closed the connection, or does not take its answer."""


@dataclass(frozen=True)
class Terms:
    """What holds for every connection of a server.

    `max_body` is in bytes. It can be small: a transformation names its buffers and does not hold
    them. `closing` says whether connections should end after their present request;
    `count_refusal` is called for each that the gate does not let in.
    """

    gate: Gate
    tls: ssl.SSLContext | None
    max_body: int
    closing: Callable[[], bool]
    count_refusal: Callable[[], None]


class Connection:
    """One connection, for the whole of its life in one thread."""

    def __init__(self, connection: socket.socket, terms: Terms) -> None:
        self.socket = connection
        self._terms = terms
        self._standing = Standing.ADMITTED
        self._buffer = bytearray()
        self._processing = b""
        self._next_processing = 0.0

    def enter(self) -> bool:
        """Find out who connects, and put TLS on where it is wanted; False when it ends here.

        Raises OSError.
        """
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._standing = self._terms.gate.admit(self.socket)
            if self._terms.tls is not None:
                self._secure(self._terms.tls)
        except Refused as refusal:
            _log.info("a connection was refused: %s", refusal)
            self._terms.count_refusal()
            self.socket.settimeout(_REFUSED_LIMIT)
            # A client hears an answer only once it has asked.
            if self.socket.recv(_CHUNK):
                self._refuse(refusal, head_only=False)
            return False
        return True

    def _secure(self, context: ssl.SSLContext) -> None:
        self.socket.settimeout(IDLE_LIMIT)
        if self.socket.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
            self.socket.settimeout(_HANDSHAKE_LIMIT)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        elif self._standing is not Standing.OWNER:
            raise Refused("426: This jobserver wants TLS: use https.", 426, Upgrade="TLS/1.2")

    def serve(self, answer: Answerer, activity: Activity) -> None:
        """Serve requests until either side has had enough. Raises OSError or `ClientGone`."""
        while self._await_request():
            with activity.ongoing() as mark:
                mark.counts = False  # until it is known that it is let in
                try:
                    deadline = time.monotonic() + REQUEST_LIMIT
                    head = http1.parse_request_head(self._read_head(deadline))
                    self._terms.gate.check(head, self._standing)
                    body = self._read_body(head, deadline)
                except http1.MalformedMessage as fault:
                    refusal = text_response(fault.status, f"{fault.status}: {fault}")
                    self._write(refusal, keep_alive=False, head_only=False)
                    self._linger()
                    return
                except Refused as refusal:
                    _log.info("a request was refused: %s", refusal)
                    self._terms.count_refusal()
                    self._refuse(refusal, head_only=head.method == "HEAD")
                    return
                mark.counts = True
                self._prepare_to_wait(head)
                response = answer(head, body, self._wait)
                mark.counts = not response.watching
                keep_alive = head.keep_alive and not self._terms.closing()
                if response.unheard is not None:
                    self._deliver(response, response.unheard, keep_alive, head.method == "HEAD")
                elif response.stream is None or head.method == "HEAD":
                    self._write(response, keep_alive, head_only=head.method == "HEAD")
                else:
                    chunked = head.version >= (1, 1)
                    keep_alive = keep_alive and chunked
                    with contextlib.closing(response.stream) as parts:
                        self._stream(response, parts, keep_alive, chunked)
            if not keep_alive:
                return

    def _refuse(self, refusal: Refused, *, head_only: bool) -> None:
        response = text_response(refusal.status, str(refusal), **refusal.fields)
        self._write(response, keep_alive=False, head_only=head_only)
        self._linger()

    def _await_request(self) -> bool:
        """Wait for the first byte of a request; False when none will come."""
        if not self._buffer and not self._terms.closing():
            self.socket.settimeout(IDLE_LIMIT)
            try:
                self._buffer += self.socket.recv(_CHUNK)
            except TimeoutError:
                return False
        return bool(self._buffer)

    def _read_body(self, head: http1.RequestHead, deadline: float) -> bytes:
        length = http1.request_body_length(head.fields)
        if length > self._terms.max_body:
            raise http1.MalformedMessage(f"a body of over {self._terms.max_body} bytes", status=413)
        expectations = head.fields.tokens("Expect")
        if expectations - {"100-continue"}:
            raise http1.MalformedMessage("an expectation that is not 100-continue", status=417)
        if expectations and head.version >= (1, 1) and len(self._buffer) < length:
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._buffer) < length:
            self._receive(deadline)
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return body

    def _read_head(self, deadline: float) -> bytes:
        searched = 0
        while True:
            if not searched:
                # A robust server ignores empty lines before a request (RFC 9112 §2.2).
                while self._buffer.startswith(b"\r\n"):
                    del self._buffer[:2]
            end = self._buffer.find(b"\r\n\r\n", max(0, searched - 3))
            if end >= 0:
                block = bytes(memoryview(self._buffer)[:end])
                del self._buffer[: end + 4]
                return block
            http1.check_beginning(self._buffer, searched)
            searched = len(self._buffer)
            if searched > http1.MAX_HEAD:
                raise http1.MalformedMessage("a head without an end", status=431)
            self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise http1.MalformedMessage("the request took too long to arrive", status=408)
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(_CHUNK)
        except TimeoutError:
            raise http1.MalformedMessage(
                "the request took too long to arrive", status=408
            ) from None
        if not data:
            raise ClientGone("it closed the connection in the middle of a request")
        self._buffer += data

    def _prepare_to_wait(self, head: http1.RequestHead) -> None:
        agent = (head.fields.get("User-Agent") or "").lower()
        skips = "aiohttp" in agent or agent.startswith("seamless-jobserver/")
        # http.client of the standard library takes an interim response for the answer.
        self._processing = (
            b"HTTP/1.1 102 Processing\r\n\r\n" if skips and head.version >= (1, 1) else b""
        )
        self._next_processing = time.monotonic() + PROCESSING_INTERVAL

    def _wait(self) -> float:
        """Show the client that its job goes on, and look whether it is still there."""
        now = time.monotonic()
        if now >= self._next_processing:
            if self._processing:
                self.socket.settimeout(WRITE_LIMIT)
                self.socket.sendall(self._processing)
            self._next_processing = now + PROCESSING_INTERVAL
        if self._client_gone() and not self._terms.closing():
            raise ClientGone("it closed the connection before its job had ended")
        return min(1.0, self._next_processing - now)

    def _write(self, response: Response, keep_alive: bool, head_only: bool) -> None:
        fields = {**response.fields, "Date": formatdate(usegmt=True)}
        fields["Connection"] = "keep-alive" if keep_alive else "close"
        reason = HTTPStatus(response.status).phrase
        message = http1.render_response(
            response.status, reason, fields, response.body, head_only=head_only
        )
        self.socket.settimeout(WRITE_LIMIT)
        self.socket.sendall(message)

    def _deliver(
        self, response: Response, unheard: Callable[[], object], keep_alive: bool, head_only: bool
    ) -> None:
        """Write an answer that matters to others too if this client is not there to hear it."""
        try:
            # It is looked for once a second only, and may have gone since.
            if self._client_gone():
                raise ClientGone("it closed the connection just before its job had ended")
            self._write(response, keep_alive, head_only)
        except (OSError, ClientGone):
            unheard()
            raise

    def _stream(
        self, response: Response, parts: Iterator[bytes], keep_alive: bool, chunked: bool
    ) -> None:
        """Write an answer whose length is not known yet, in chunks (RFC 9112 §7.1).

        To a client of HTTP/1.0 it ends with the connection. An empty part only asks whether the
        client is still there.
        """
        fields = {**response.fields, "Date": formatdate(usegmt=True)}
        fields["Connection"] = "keep-alive" if keep_alive else "close"
        if chunked:
            fields["Transfer-Encoding"] = "chunked"
        reason = HTTPStatus(response.status).phrase
        self.socket.settimeout(WRITE_LIMIT)
        self.socket.sendall(http1.render_head(response.status, reason, fields))
        for part in parts:
            if self._terms.closing() or self._client_gone():
                raise ClientGone("the end of a stream was not waited for")
            if part:
                self.socket.settimeout(WRITE_LIMIT)
                framed = b"%x\r\n%s\r\n" % (len(part), part) if chunked else part
                self.socket.sendall(framed)
        if chunked:
            self.socket.sendall(b"0\r\n\r\n")

    def _linger(self) -> None:
        """Take in what the client is still sending, for a moment.

        Closing a socket with unread bytes resets the connection, and the reset can overtake the
        answer that says what was wrong (RFC 9112 §9.6).
        """
        self.socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(_CHUNK):
                    return
            except TimeoutError:
                return

    def _client_gone(self) -> bool:
        if not isinstance(self.socket, ssl.SSLSocket):
            return _hung_up(self.socket)
        # TLS says goodbye inside the stream, so that what has come must be taken to be seen.
        if len(self._buffer) >= _CHUNK:
            return False
        self.socket.settimeout(0.0)
        try:
            data = self.socket.recv(_CHUNK)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        self._buffer += data
        return not data


def _hung_up(connection: socket.socket) -> bool:
    """Whether the peer has closed its side, without taking any byte that it has sent."""
    # Not select(), which knows no descriptors above 1023. And POLLRDHUP (poll(2), Linux) beside
    # POLLIN: a client may have sent more before it went.
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLRDHUP)
    events = dict(poll.poll(0)).get(connection.fileno(), 0)
    if events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
        return True
    if not events:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
