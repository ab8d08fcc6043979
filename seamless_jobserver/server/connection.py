"""One connection: requests in, answers out, in a thread of its own.

It reads a request (`server.requestreader`), waits for its answer however long the job takes, writes
it, and goes on with the next request. Nothing of `http.server`'s own request handling is used,
because it takes what RFC 9112 forbids.

What keeps a connection honest:

- A body is read whole before its request is answered, so that what follows on the connection is
  a request and not the rest of a body. Where that is not possible the connection is closed. The
  body of a request that is refused (`server.access`) is not read: strangers get no memory of ours.
- A request has `REQUEST_LIMIT` seconds to arrive in all, however it trickles; an idle connection
  is closed after `IDLE_LIMIT`, or earlier to make room for others (`server.places`).
- Who has yet to show who they are, by a password or in TLS, have `STRANGER_LIMIT` seconds for that,
  one of the few places for strangers, and no part in keeping an unused server alive.
- While a job runs, clients that are known to skip interim responses get ``102 Processing`` now and
  then (RFC 2518 §10.1): it resets their read timeout, which a long job would run into.
- Who connects is checked before there is a `Connection` (`server.http`), and each request when its
  head is there.
- With a certificate, a connection that begins like TLS is TLS. One in the clear is then served only
  to the owner, as the kernel tells, and to our workers; the launcher and launched clients are that.
- A head and its body leave in one ``send``, with Nagle's algorithm off.
"""

import concurrent.futures
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from seamless_jobserver import http1
from seamless_jobserver.server.access import Gate, Refused, Standing
from seamless_jobserver.server.hangups import Hangups
from seamless_jobserver.server.idle import Activity, Mark
from seamless_jobserver.server.places import Places
from seamless_jobserver.server.requestreader import CHUNK, ClientGone, RequestReader
from seamless_jobserver.server.response import (
    Response,
    render,
    render_stream_head,
    text_response,
)

REQUEST_LIMIT: Final = 30.0
"""Seconds from the first byte of a request to its last."""
IDLE_LIMIT: Final = 75.0
"""Seconds that a connection may stay open between requests; clients ask again after 30."""
STRANGER_LIMIT: Final = 5.0
"""Seconds for a connection to begin TLS and give the password, where they are asked for."""
WRITE_LIMIT: Final = 60.0
"""Seconds without progress in writing an answer: for the client to take `_SLICE` bytes of it."""
PROCESSING_INTERVAL: Final = 20.0
"""Seconds between interim responses; far below any read timeout that makes sense."""
_HANDSHAKE_LIMIT: Final = 10.0
_TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of a TLS connection (RFC 8446 §5.1)."""
_LINGER: Final = 1.0
_SLICE: Final = 64 * 1024
_ROOM_INTERVAL: Final = 0.1

_AT_ONCE: Final = 0.05
"""Seconds within which most answers come."""

Answerer = Callable[
    [http1.RequestHead, bytes, Callable[["concurrent.futures.Future[Any]"], None]], Response
]
"""Given a request's head, its body, and what waits for a future; see `Routes.answer`."""


@dataclass(frozen=True)
class Terms:
    """What holds for every connection of a server.

    `max_body` is in bytes. It can be small: a transformation names its buffers and does not hold
    them. `closing` says whether connections should end after their present request;
    `note_refusal` is given the kind of each request that the gate does not let in. `places` are
    those of connections whose client is known, `strangers` those of the others. `hangups` tells
    of clients that have gone.
    """

    gate: Gate
    tls: ssl.SSLContext | None
    max_body: int
    closing: Callable[[], bool]
    note_refusal: Callable[[str], None]
    places: Places
    strangers: Places
    hangups: Hangups


class Connection:
    """One connection that the gate has let in, served by a thread of its own.

    The acceptor calls `take_place`, and `leave_place` when no thread can be had for it; whoever
    cuts it off shuts its `socket` down.
    """

    def __init__(self, connection: socket.socket, terms: Terms, standing: Standing) -> None:
        self.socket = connection
        self._terms = terms
        self._standing = standing
        self._known = standing is Standing.OWNER or (
            terms.tls is None and terms.gate.knows(standing)
        )
        self._room = terms.places if self._known else terms.strangers
        self._stranger_until = time.monotonic() + STRANGER_LIMIT
        self._stays = True
        self._clear = False
        self._reader = RequestReader(terms.max_body)
        self._processing = b""
        self._next_processing = 0.0

    def take_place(self, timeout: float) -> bool:
        """Take the place that it is to be served in; False when there is none in time."""
        if not self._room.take(timeout):
            return False
        if not self._known:
            self._room.rest(self)  # until it is known; also before its thread has begun
        return True

    def leave_place(self) -> None:
        """Give its place to others, when its socket is closed."""
        self._room.give_back(self)

    def serve(self, answer: Answerer, activity: Activity) -> None:
        """Serve requests until either side has had enough.

        Raises OSError or `ClientGone`, and `Unanswered` in the middle of an answer.
        """
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._terms.tls is not None:
            self._secure(self._terms.tls)
        while self._await_request():
            with contextlib.ExitStack() as request:
                mark = _begin(request, activity) if self._known else None
                try:
                    deadline = self._deadline(REQUEST_LIMIT)
                    head = http1.parse_request_head(self._reader.head(self.socket, deadline))
                    self._terms.gate.check(head, self._standing, lacks_tls=self._clear)
                    if mark is None:
                        self._settle()
                        mark = _begin(request, activity)
                        deadline = self._deadline(REQUEST_LIMIT)
                    body = self._reader.body(self.socket, head, deadline)
                except http1.MalformedMessage as fault:
                    self._refuse(text_response(fault.status, f"{fault.status}: {fault}"))
                    return
                except Refused as refusal:
                    self._terms.note_refusal(refusal.kind)
                    response = text_response(refusal.status, str(refusal), **refusal.fields)
                    self._refuse(response, head_only=head.method == "HEAD")
                    return
                mark.counts = True
                self._prepare_to_wait(head)
                response = answer(head, body, self._wait_for)
                mark.counts = not response.watching
                keep_alive = head.keep_alive and self._stays and not self._terms.closing()
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

    def _deadline(self, seconds: float) -> float:
        """Return when something has to be over that may take so long."""
        deadline = time.monotonic() + seconds
        return deadline if self._known else min(deadline, self._stranger_until)

    def _await(self, flags: int = 0) -> bytes:
        """Return what the client sends next, or nothing when that does not come in time."""
        left = self._deadline(IDLE_LIMIT) - time.monotonic()
        if left <= 0:
            return b""
        self.socket.settimeout(left)
        if self._known:
            self._room.rest(self)
        try:
            return self.socket.recv(CHUNK, flags)
        except TimeoutError:
            return b""
        finally:
            if self._known:
                self._stays = self._room.wake(self)

    def _secure(self, context: ssl.SSLContext) -> None:
        """Put TLS on, if the client begins it. Raises OSError or `ClientGone`."""
        beginning = self._await(socket.MSG_PEEK)
        if not beginning:
            raise ClientGone("it has sent nothing")
        if not beginning.startswith(_TLS_HANDSHAKE):
            self._clear = True
            return
        self.socket = context.wrap_socket(
            self.socket,
            server_side=True,
            # It comes when the new socket is in the place of the old, so that it can be cut off.
            do_handshake_on_connect=False,
        )
        if self._room.is_leaving(self):
            # Between the two sockets there was none to shut down.
            raise ClientGone("it has made room for another")
        self.socket.settimeout(max(0.001, self._deadline(_HANDSHAKE_LIMIT) - time.monotonic()))
        self.socket.do_handshake()
        if not self._known and self._terms.gate.knows(self._standing):
            self._settle()

    def _settle(self) -> None:
        """Take a place among those who are known, once there is one. Raises `ClientGone`."""
        self._known = True
        if not self._terms.strangers.wake(self):  # it must not be pushed out any more
            raise ClientGone("it has made room for another")
        while not self._terms.places.take(_ROOM_INTERVAL):
            if self._terms.closing() or self._client_gone():
                raise ClientGone("it did not wait for a place")
        self._room, strangers = self._terms.places, self._room
        strangers.give_back(self)

    def _refuse(self, response: Response, *, head_only: bool = False) -> None:
        self._write(response, keep_alive=False, head_only=head_only)
        self._linger()

    def _await_request(self) -> bool:
        """Wait for the first byte of a request; False when none will come."""
        if not self._reader.pending and self._stays and not self._terms.closing():
            self._reader.add(self._await())
        return bool(self._reader.pending)

    def _prepare_to_wait(self, head: http1.RequestHead) -> None:
        agent = (head.fields.get("User-Agent") or "").lower()
        skips = "aiohttp" in agent or agent.startswith("seamless-jobserver/")
        # http.client of the standard library takes an interim response for the answer.
        self._processing = (
            b"HTTP/1.1 102 Processing\r\n\r\n" if skips and head.version >= (1, 1) else b""
        )
        self._next_processing = time.monotonic() + PROCESSING_INTERVAL

    def _wait_for(self, answer: "concurrent.futures.Future[Any]") -> None:
        """Wait until `answer` is there, and see that the client is too. Raises `ClientGone`."""
        with contextlib.suppress(concurrent.futures.TimeoutError):
            # Most answers come at once, and need no watching.
            answer.exception(_AT_ONCE)
            return
        news = threading.Event()
        answer.add_done_callback(lambda _: news.set())
        with self._terms.hangups.watching(self.socket, news.set):
            while not answer.done():
                self._show_progress()
                news.wait(max(0.0, self._next_processing - time.monotonic()))
                news.clear()

    def _show_progress(self) -> None:
        now = time.monotonic()
        if now >= self._next_processing:
            if self._processing:
                self._send(self._processing)
            self._next_processing = now + PROCESSING_INTERVAL
        if self._client_gone():
            raise ClientGone("it closed the connection before its job had ended")

    def _write(self, response: Response, keep_alive: bool, head_only: bool) -> None:
        self._send(render(response, keep_alive=keep_alive, head_only=head_only))

    def _send(self, message: bytes) -> None:
        view = memoryview(message)
        for start in range(0, len(view), _SLICE):
            self.socket.settimeout(WRITE_LIMIT)
            # It bounds the whole of a `sendall`, however well that gets on.
            self.socket.sendall(view[start : start + _SLICE])

    def _deliver(
        self, response: Response, unheard: Callable[[], object], keep_alive: bool, head_only: bool
    ) -> None:
        """Write an answer that matters to others too if this client is not there to hear it."""
        try:
            # It may have gone since it was looked for.
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
        self._send(render_stream_head(response, keep_alive=keep_alive, chunked=chunked))
        for part in parts:
            if self._client_gone():
                raise ClientGone("the end of a stream was not waited for")
            if part:
                self._send(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked:
            self._send(b"0\r\n\r\n")

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
                if not self.socket.recv(CHUNK):
                    return
            except TimeoutError:
                return

    def _client_gone(self) -> bool:
        if not self._stays or self._terms.closing():
            # Our reading side is shut down, or may be at any moment, which would look the same.
            return False
        if not isinstance(self.socket, ssl.SSLSocket):
            return _hung_up(self.socket)
        # TLS says goodbye inside the stream, so that what has come must be taken to be seen.
        if self._reader.pending >= CHUNK:
            return False
        self.socket.settimeout(0.0)
        try:
            data = self.socket.recv(CHUNK)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        self._reader.add(data)
        return not data


def _begin(request: contextlib.ExitStack, activity: Activity) -> Mark:
    """Note that a request has begun, which does not count until it is known to be a good one."""
    mark = request.enter_context(activity.ongoing())
    mark.counts = False
    return mark


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
