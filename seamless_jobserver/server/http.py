"""The HTTP side: connections in, requests framed, answers out.

A `ThreadingHTTPServer` accepts in one thread and serves each connection in a thread of its own,
which reads a request, waits for its answer however long the job takes, writes it, and goes on with
the next request. The framing is `seamless_jobserver.http1`; nothing of `http.server`'s own
request handling is used, because it takes what RFC 9112 forbids.

What keeps a connection honest:

- A body is read whole before its request is answered, so that what follows on the connection is
  a request and not the rest of a body. Where that is not possible the connection is closed.
- A request has `REQUEST_LIMIT` seconds to arrive in all, however it trickles; an idle connection
  is closed after `IDLE_LIMIT`.
- While a job runs, clients that are known to skip interim responses get ``102 Processing`` now and
  then (RFC 2518 §10.1): it resets their read timeout, which a long job would run into.
- So many connections are served at a time; further ones wait in the backlog to be accepted.
- A head and its body leave in one ``send``, with Nagle's algorithm off.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from seamless_jobserver import http1
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.routes import Response, text_response

REQUEST_LIMIT: Final = 30.0
"""Seconds from the first byte of a request to its last."""
IDLE_LIMIT: Final = 75.0
"""Seconds that a connection may stay open between requests; clients ask again after 30."""
WRITE_LIMIT: Final = 60.0
"""Seconds without progress in writing an answer."""
PROCESSING_INTERVAL: Final = 20.0
"""Seconds between interim responses; far below any read timeout that makes sense."""
BACKLOG: Final = 1024
"""Connections that the kernel holds for us; the default of 5 resets clients in small bursts."""
_ROOM_INTERVAL: Final = 0.1
_LINGER: Final = 1.0
_CHUNK: Final = 256 * 1024

_log = logging.getLogger(__name__)

Answerer = Callable[[http1.RequestHead, bytes, Callable[[], float]], Response]
"""Given a request's head, its body, and what to call while it waits; see `Routes.answer`."""


class ClientGone(Exception):
    """The client has closed the connection, or does not take its answer."""


class JobHTTPServer(ThreadingHTTPServer):
    """Listens, and owns one thread for each connection."""

    daemon_threads = True
    block_on_close = False  # the base class would wait without a bound; `close` does it with one
    request_queue_size = BACKLOG

    def __init__(
        self,
        family: int,
        address: tuple[Any, ...],
        answer: Answerer,
        activity: Activity,
        *,
        max_connections: int,
        max_body: int,
    ) -> None:
        """Bind and listen. Raises OSError when the address cannot be had.

        `max_body` is in bytes. It can be small: a transformation names its buffers and does not
        hold them.
        """
        self.max_body = max_body
        self._room = threading.BoundedSemaphore(max_connections)
        self.address_family = socket.AddressFamily(family)
        self._answer = answer
        self._activity = activity
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._closing = False
        self._acceptor: threading.Thread | None = None
        super().__init__(address, _Connection)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind without asking the resolver for our own name, as the base class would."""
        TCPServer.server_bind(self)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.socket.getsockname()[1])

    @property
    def closing(self) -> bool:
        """Whether connections should end after their present request."""
        return self._closing

    def start(self) -> None:
        """Accept connections from now on, in a thread."""
        self._acceptor = threading.Thread(
            target=self.serve_forever, args=(0.1,), name="jobserver-accept", daemon=True
        )
        self._acceptor.start()

    def stop_accepting(self) -> None:
        """Close the listening socket; connections that are open go on."""
        self._closing = True
        if self._acceptor is not None:
            self.shutdown()
            self._acceptor.join()
        self.server_close()

    def close(self, timeout: float) -> int:
        """Let the connections write what they are at for `timeout` seconds, then cut them off.

        Returns how many threads are left after that.
        """
        deadline = time.monotonic() + timeout
        for connection in self._snapshot().values():
            # Wakes a thread that waits for a request, and lets one that writes go on.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self._join(deadline)
        for connection in self._snapshot().values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._join(time.monotonic() + 1.0)
        return len(self._snapshot())

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection once there is room for it (socketserver.BaseServer).

        Refusing would be worse: clients repeat what is refused, at once. What is not accepted
        waits in the backlog. Raises OSError, which the base class takes for "none this time".
        """
        if not self._room.acquire(timeout=_ROOM_INTERVAL):
            raise OSError("no room for another connection")
        try:
            return super().get_request()
        except BaseException:
            self._room.release()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection in a thread of its own (socketserver.BaseServer)."""
        thread = threading.Thread(
            target=self._serve_connection,
            args=(request,),
            name=f"jobserver-connection-{client_address[1]}",
            daemon=True,
        )
        with self._lock:
            self._connections[thread] = request
        try:
            thread.start()
        except RuntimeError:
            _log.error("no thread could be started for a connection: is a process limit reached?")
            with self._lock:
                del self._connections[thread]
            self.shutdown_request(request)
            self._room.release()

    def _serve_connection(self, connection: socket.socket) -> None:
        try:
            _Connection(connection, self).serve(self._answer, self._activity)
        except (OSError, ClientGone) as error:
            _log.debug("connection lost: %s", error)
        except Exception:  # noqa: BLE001 - one bad connection must not go unreported, or end us
            _log.exception("a connection ended by an error of ours")
        finally:
            self.shutdown_request(connection)
            with self._lock:
                self._connections.pop(threading.current_thread(), None)
            self._room.release()

    def _snapshot(self) -> dict[threading.Thread, socket.socket]:
        with self._lock:
            return dict(self._connections)

    def _join(self, deadline: float) -> None:
        for thread in self._snapshot():
            thread.join(max(0.0, deadline - time.monotonic()))


class _Connection:
    """One connection, for the whole of its life in one thread."""

    def __init__(self, connection: socket.socket, server: JobHTTPServer) -> None:
        self._socket = connection
        self._server = server
        self._buffer = bytearray()
        self._processing = b""
        self._next_processing = 0.0

    def serve(self, answer: Answerer, activity: Activity) -> None:
        """Serve requests until either side has had enough. Raises OSError or `ClientGone`."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self._await_request():
            with activity.ongoing():
                try:
                    head, body = self._read_request()
                except http1.MalformedMessage as fault:
                    refusal = text_response(fault.status, f"{fault.status}: {fault}")
                    self._write(refusal, keep_alive=False, head_only=False)
                    self._linger()
                    return
                self._prepare_to_wait(head)
                response = answer(head, body, self._wait)
                keep_alive = head.keep_alive and not self._server.closing
                self._write(response, keep_alive, head_only=head.method == "HEAD")
            if not keep_alive:
                return

    def _await_request(self) -> bool:
        """Wait for the first byte of a request; False when none will come."""
        if not self._buffer and not self._server.closing:
            self._socket.settimeout(IDLE_LIMIT)
            try:
                self._buffer += self._socket.recv(_CHUNK)
            except TimeoutError:
                return False
        return bool(self._buffer)

    def _read_request(self) -> tuple[http1.RequestHead, bytes]:
        deadline = time.monotonic() + REQUEST_LIMIT
        head = http1.parse_request_head(self._read_head(deadline))
        length = http1.request_body_length(head.fields)
        if length > self._server.max_body:
            raise http1.MalformedMessage(
                f"a body of over {self._server.max_body} bytes", status=413
            )
        expectations = head.fields.tokens("Expect")
        if expectations - {"100-continue"}:
            raise http1.MalformedMessage("an expectation that is not 100-continue", status=417)
        if expectations and head.version >= (1, 1) and len(self._buffer) < length:
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._buffer) < length:
            self._receive(deadline)
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return head, body

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
            searched = len(self._buffer)
            if searched > http1.MAX_HEAD:
                raise http1.MalformedMessage("a head without an end", status=431)
            if b"\n" in self._buffer and b"\r\n" not in self._buffer:
                raise http1.MalformedMessage("a line that does not end in CR LF")
            self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise http1.MalformedMessage("the request took too long to arrive", status=408)
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(_CHUNK)
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
                self._socket.settimeout(WRITE_LIMIT)
                self._socket.sendall(self._processing)
            self._next_processing = now + PROCESSING_INTERVAL
        if _hung_up(self._socket) and not self._server.closing:
            raise ClientGone("it closed the connection before its job had ended")
        return min(1.0, self._next_processing - now)

    def _write(self, response: Response, keep_alive: bool, head_only: bool) -> None:
        fields = {**response.fields, "Date": formatdate(usegmt=True)}
        fields["Connection"] = "keep-alive" if keep_alive else "close"
        reason = HTTPStatus(response.status).phrase
        message = http1.render_response(
            response.status, reason, fields, response.body, head_only=head_only
        )
        self._socket.settimeout(WRITE_LIMIT)
        self._socket.sendall(message)

    def _linger(self) -> None:
        """Take in what the client is still sending, for a moment.

        Closing a socket with unread bytes resets the connection, and the reset can overtake the
        answer that says what was wrong (RFC 9112 §9.6).
        """
        self._socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                if not self._socket.recv(_CHUNK):
                    return
            except TimeoutError:
                return


def _hung_up(connection: socket.socket) -> bool:
    """Whether the peer has closed its side, without taking any byte that it has sent."""
    # Not select(), which knows no descriptors above 1023.
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
