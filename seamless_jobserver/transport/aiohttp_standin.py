"""A stand-in for the part of ``aiohttp`` that seamless-remote uses: its client.

The same names, the same exception tree, and the same exception at the same fault: seamless-remote
decides by the exception's type whether it tries again, so a fault that is called something else
here would lose jobs there. Connections are kept alive and used again; a request on a kept
connection that the server has dropped meanwhile is sent once more on a fresh one, but only when
not one byte of an answer came, and only when the method may be repeated (RFC 9110 §9.2.2).

A session belongs to the event loop that it was made on, like aiohttp's. seamless-remote keeps one
for each thread and loop, and reads ``_loop`` and ``_connector`` of it. When it resets a client it
closes the sessions of all threads, and waits for the loops of the others; two threads that do so
at once, or one whose loop waits for the other, would wait for ever. Hence to other threads a
session has no ``_loop``: it is then closed through ``_connector._close``, which never waits.

`observe_answers` and `observe_progress` have no counterpart in aiohttp. The first tells what the
servers answered, which seamless-remote keeps to itself. A write that was answered 202 is not stored
(protocol.md). The second tells that a large transfer gets on.
"""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple

from seamless_jobserver import http1
from seamless_jobserver.transport.connection import Connection, Disconnected, TimedOut, progress
from seamless_jobserver.transport.connector import Connector
from seamless_jobserver.transport.exceptions import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientPayloadError,
    ClientResponseError,
    ConnectionTimeoutError,
    InvalidURL,
    ServerConnectionError,
    ServerDisconnectedError,
    ServerTimeoutError,
    SocketTimeoutError,
)
from seamless_jobserver.transport.request import (
    Origin,
    Target,
    body_and_fields,
    decode,
    parse_url,
)

__all__ = [
    "Answer",
    "ClientConnectionError",
    "ClientConnectorError",
    "ClientError",
    "ClientOSError",
    "ClientPayloadError",
    "ClientResponse",
    "ClientResponseError",
    "ClientSession",
    "ClientTimeout",
    "ConnectionTimeoutError",
    "InvalidURL",
    "ServerConnectionError",
    "ServerDisconnectedError",
    "ServerTimeoutError",
    "SocketTimeoutError",
    "observe_answers",
    "observe_progress",
]

CONNECTION_LIMIT: Final = 100
"""Requests under way at a time in one session, as in aiohttp."""

_REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


@dataclass(frozen=True)
class ClientTimeout:
    """Limits in seconds, None for no limit (aiohttp.ClientTimeout).

    `total` bounds a request with its answer, `connect` getting a connection, `sock_connect` the
    TCP connection itself, and `sock_read` the time without a byte from the server.
    """

    total: float | None = None
    connect: float | None = None
    sock_connect: float | None = None
    sock_read: float | None = None

    @property
    def connecting(self) -> float | None:
        """The tighter of the two limits on getting a connection."""
        limits = [limit for limit in (self.connect, self.sock_connect) if limit is not None]
        return min(limits) if limits else None


class Answer(NamedTuple):
    """What a server answered to one request."""

    method: str
    url: str
    status: int


_observed: ContextVar[list[Answer] | None] = ContextVar("observed answers", default=None)


@contextmanager
def observe_answers() -> Iterator[list[Answer]]:
    """Collect the answers to the requests made inside, in the order in which they come.

    It follows the context, so the tasks started inside count and other tasks do not.
    """
    answers: list[Answer] = []
    token = _observed.set(answers)
    try:
        yield answers
    finally:
        _observed.reset(token)


@contextmanager
def observe_progress(note: Callable[[], None]) -> Iterator[None]:
    """Have `note` called with each piece of the requests made inside, or of their answers.

    It follows the context, as `observe_answers` does.
    """
    token = progress.set(note)
    try:
        yield
    finally:
        progress.reset(token)


class ClientResponse:
    """An answer whose head has arrived; the body is read on demand."""

    def __init__(
        self,
        session: "ClientSession",
        connection: Connection,
        origin: Origin,
        head: http1.ResponseHead,
        framing: http1.BodyFraming,
        patience: float | None,
    ) -> None:
        self.status = head.status
        self.reason = head.reason
        self.headers = head.fields
        self._session = session
        self._connection: Connection | None = connection
        self._origin = origin
        self._framing = framing
        self._patience = patience
        self._body: bytes | None = None
        if framing.length == 0:
            self._body = b""
            self._give_back()

    async def read(self) -> bytes:
        """Return the body. Raises ClientPayloadError when it is cut short."""
        if self._body is None:
            connection = self._connection
            if connection is None:
                raise ClientConnectionError("Connection closed")
            try:
                body = await connection.read_body(self._framing, self._patience)
            except TimedOut:
                raise SocketTimeoutError(f"Timeout on reading data from {self._origin}") from None
            except (Disconnected, http1.MalformedMessage) as fault:
                raise ClientPayloadError(f"Response payload is not completed: {fault}") from fault
            self._give_back()
            self._body = decode(body, self.headers.get("Content-Encoding"))
        return self._body

    async def text(self) -> str:
        """Return the body as UTF-8 text."""
        return (await self.read()).decode("utf-8")

    def close(self) -> None:
        """Drop the connection when a long body was not read.

        A short one is passed over: seamless-remote reads few of them, and a server may send it some
        moments after the head.
        """
        if self._connection is not None:
            if not self._connection.skip_body(self._framing):
                self._connection.close()
            self._give_back()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._session._release(self._origin, connection)


class _Pending:
    """What ``session.get()`` returns: entered with ``async with``, it sends the request."""

    def __init__(
        self, session: "ClientSession", send: Callable[[], Any], total: float | None
    ) -> None:
        self._session = session
        self._send = send
        self._total = total
        self._response: ClientResponse | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expired = False
        self._cancellations = 0

    async def __aenter__(self) -> ClientResponse:
        if self._total is not None:
            task = asyncio.current_task()
            if task is not None and hasattr(task, "cancelling"):
                self._cancellations = task.cancelling()
            self._expiry = self._session._own_loop.call_later(self._total, self._expire, task)
        try:
            self._response = await self._send()
        except asyncio.CancelledError:
            self._end_of_time()
            raise
        except BaseException:
            self._disarm()
            raise
        return self._response

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._disarm()
        if self._response is not None:
            self._response.close()
        if kind is asyncio.CancelledError:
            self._end_of_time()

    def _expire(self, task: "asyncio.Task[Any] | None") -> None:
        self._expired = True
        if task is not None:
            task.cancel()

    def _disarm(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()

    def _end_of_time(self) -> None:
        """Turn our own cancellation into the timeout that it is; leave others alone."""
        self._disarm()
        if self._expired:
            task = asyncio.current_task()
            canceled = task.uncancel() if task is not None and hasattr(task, "uncancel") else 0
            if canceled <= self._cancellations:  # else somebody else has canceled it too
                raise asyncio.TimeoutError from None


class ClientSession:
    """Requests over kept-alive connections (aiohttp.ClientSession). Make it on a running loop."""

    def __init__(self, *, timeout: ClientTimeout | None = None) -> None:
        self._own_loop = asyncio.get_running_loop()
        self._own_thread = threading.get_ident()
        self._connector: Connector | None = Connector(self._own_loop)
        self._timeout = timeout or ClientTimeout(total=300, sock_connect=30)
        self._turns = asyncio.Semaphore(CONNECTION_LIMIT)
        self._tls: ssl.SSLContext | None = None

    @property
    def _loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of the session, for the thread that made it; None for others."""
        return self._own_loop if threading.get_ident() == self._own_thread else None

    @property
    def closed(self) -> bool:
        """Whether the session takes no more requests."""
        return self._connector is None

    async def close(self) -> None:
        """Close every kept connection. Further calls do nothing."""
        if self._connector is not None:
            self._connector.drop_all()
        self.detach()

    def detach(self) -> None:
        """Let go of the connections without closing them."""
        self._connector = None

    def get(
        self, url: str, *, json: Any = None, data: bytes | None = None, timeout: Any = None
    ) -> _Pending:
        """Send a GET request; it may have a body (RFC 9110 §9.3.1 leaves that to both ends)."""
        return self._request("GET", url, json, data, timeout)

    def put(
        self, url: str, *, json: Any = None, data: bytes | None = None, timeout: Any = None
    ) -> _Pending:
        """Send a PUT request."""
        return self._request("PUT", url, json, data, timeout)

    def post(
        self, url: str, *, json: Any = None, data: bytes | None = None, timeout: Any = None
    ) -> _Pending:
        """Send a POST request."""
        return self._request("POST", url, json, data, timeout)

    def _request(
        self, method: str, url: str, json: Any, data: bytes | None, timeout: ClientTimeout | None
    ) -> _Pending:
        limits = timeout or self._timeout

        async def send() -> ClientResponse:
            target = parse_url(url)
            body, fields = body_and_fields(method, target, json, data)
            async with self._turns:
                response = await self._send(method, target, fields, body, limits)
            observed = _observed.get()
            if observed is not None:
                observed.append(Answer(method, url, response.status))
            return response

        return _Pending(self, send, limits.total)

    async def _send(
        self,
        method: str,
        target: Target,
        fields: dict[str, str],
        body: bytes,
        limits: ClientTimeout,
    ) -> ClientResponse:
        head = http1.render_request(method, target.path, fields)
        origin = target.origin
        connector = self._connector
        if connector is None:
            raise RuntimeError("Session is closed")
        kept = connector.take(origin, self._own_loop.time())
        while True:
            connection = kept or await self._connect(origin, limits)
            try:
                answer = await connection.exchange(
                    head, body, expect="Expect" in fields, patience=limits.sock_read
                )
                framing = http1.response_body_framing(method, answer)
            except Disconnected as fault:
                connection.close()
                if kept is not None and connection.received == 0 and method in _REPEATABLE:
                    # The server had dropped the kept connection: it never saw this request.
                    kept = None
                    continue
                if fault.error is not None:
                    raise ClientOSError(fault.error.errno, fault.error.strerror) from fault
                raise ServerDisconnectedError("Server disconnected") from None
            except TimedOut:
                connection.close()
                raise SocketTimeoutError(f"Timeout on reading data from {origin}") from None
            except http1.MalformedMessage as fault:
                connection.close()
                raise ClientResponseError(f"{origin} answered with bad HTTP: {fault}") from fault
            except BaseException:
                connection.close()
                raise
            return ClientResponse(self, connection, origin, answer, framing, limits.sock_read)

    async def _connect(self, origin: Origin, limits: ClientTimeout) -> Connection:
        if origin.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        tls = self._tls if origin.secure else None
        opening = asyncio.ensure_future(
            self._own_loop.create_connection(Connection, origin.host, origin.port, ssl=tls)
        )
        try:
            # Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes in the
            # turn of the loop in which the connection is made.
            await asyncio.wait({opening}, timeout=limits.connecting)
        except BaseException:
            _abandon(opening)
            raise
        if not opening.done():
            _abandon(opening)
            raise ConnectionTimeoutError(f"Connection timeout to host {origin}")
        try:
            return opening.result()[1]
        except OSError as error:
            raise ClientConnectorError(str(origin), error) from error

    def _release(self, origin: Origin, connection: Connection) -> None:
        connector = self._connector  # another thread can take it away: see `detach`
        if connector is not None and connection.usable:
            connector.keep(origin, connection, self._own_loop.time())
        else:
            connection.close()


def _abandon(opening: "asyncio.Future[tuple[asyncio.Transport, Connection]]") -> None:
    """Have nothing left of a connection that nobody waits for any more."""

    def close(opened: "asyncio.Future[tuple[asyncio.Transport, Connection]]") -> None:
        if not opened.cancelled() and opened.exception() is None:
            opened.result()[1].close()

    opening.cancel()
    opening.add_done_callback(close)
