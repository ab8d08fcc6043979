"""One HTTP/1.1 client connection on asyncio, and the body that comes out of it.

All of it runs on one event loop. The loop's selector delivers bytes through the
`asyncio.BufferedProtocol` calls, coroutines wait for them:

- While a body of known length is expected, the kernel's bytes go straight into the buffer that
  will hold it, so that a large buffer is copied once (into the ``bytes`` that Seamless demands).
- Everything else (heads, chunk lines) passes through a small landing buffer into `_pending`.
- A connection carries one request at a time. `reusable` says whether it may carry another: not
  after an answer that came before its request was sent whole, not with bytes left over, and
  not when either side said ``Connection: close``.

Faults surface as the exceptions of this module's callers' choosing: here they are plain
`Disconnected`, `TimedOut` and `http1.MalformedMessage`, and the session gives them the names that
aiohttp has for them.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, cast

from seamless_jobserver import http1

_LANDING: Final = 64 * 1024
_SLICE: Final = 256 * 1024
"""Bytes handed to the transport at a time; what a socket does not take at once is copied."""
CONTINUE_PATIENCE: Final = 2.0
"""Seconds to wait for ``100 Continue`` before sending the body all the same (RFC 9110 §10.1.1)."""


progress: ContextVar[Callable[[], None] | None] = ContextVar("progress", default=None)
"""What is called when a piece of a request or of its answer has got across."""


class Disconnected(Exception):
    """The peer is gone; `error` is the OSError that said so, or None after a clean end."""

    def __init__(self, error: OSError | None) -> None:
        super().__init__(str(error) if error else "the server closed the connection")
        self.error = error


class TimedOut(Exception):
    """No byte came, or none could be sent, for as long as was allowed."""


class Connection(asyncio.BufferedProtocol):
    """A connection to one server; made by `open_connection`."""

    def __init__(self) -> None:
        self.received = 0
        """Bytes that have arrived for the current request; none means it can be repeated."""
        self.reusable = True
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._landing = bytearray(_LANDING)
        self._pending = bytearray()
        self._body: bytearray | None = None
        self._filled = 0
        self._unwanted = 0
        self._closed = False
        self._error: OSError | None = None
        self._news: asyncio.Future[bool] | None = None
        self._room: asyncio.Future[bool] | None = None  # while there is none

    # --- called by the event loop -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio.BaseProtocol)."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Note the end and wake whoever waits (asyncio.BaseProtocol)."""
        self._closed = True
        self._error = error if isinstance(error, OSError) else None
        self.resume_writing()
        self._announce()

    def eof_received(self) -> bool:
        """Close our side too (asyncio.BufferedProtocol): HTTP has no use for a half connection."""
        self._closed = True
        self._announce()
        return False

    def pause_writing(self) -> None:
        """Hold back the sender (asyncio.BaseProtocol)."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Let the sender go on (asyncio.BaseProtocol)."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(True)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        """Say where the next bytes go (asyncio.BufferedProtocol)."""
        if self._body is not None and self._filled < len(self._body):
            return memoryview(self._body)[self._filled :]
        return memoryview(self._landing)

    def buffer_updated(self, nbytes: int) -> None:
        """Account for bytes that have arrived (asyncio.BufferedProtocol)."""
        self.received += nbytes
        if self._body is not None and self._filled < len(self._body):
            self._filled += nbytes
        else:
            unwanted = min(self._unwanted, nbytes)
            self._unwanted -= unwanted
            self._pending += memoryview(self._landing)[unwanted:nbytes]
        self._announce()

    # --- called by the session, on the same loop ----------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether another request may be sent here."""
        return self.reusable and not self._closed and not self._pending

    @property
    def idle(self) -> bool:
        """Whether the whole of the last answer has come."""
        return not self._unwanted

    def close(self) -> None:
        """Drop the connection at once. Further calls do nothing."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    async def exchange(
        self, head: bytes, body: bytes, *, expect: bool, patience: float | None
    ) -> http1.ResponseHead:
        """Send one request and return the head of its final response.

        Interim responses are skipped, and each one starts the clock anew. With `expect`, `head`
        carries ``Expect: 100-continue`` and the body is kept back until the server wants it.
        `patience` bounds each wait for the peer, in seconds.

        Raises `Disconnected`, `TimedOut` or `http1.MalformedMessage`.
        """
        self.received = 0
        if not expect and len(body) <= _LANDING:
            # In one piece, for which the server wakes up once.
            head, body = head + body, b""
        await self._send(head, patience)
        if expect:
            limit = CONTINUE_PATIENCE if patience is None else min(patience, CONTINUE_PATIENCE)
            try:
                answer = await self._read_head(limit)
            except TimedOut:
                answer = None
            if answer is not None and not answer.interim:
                # The server did not want the body. It may still be waiting for it, so the
                # connection has no agreed state any more.
                self.reusable = False
                return self._note_persistence(answer)
        if not await self._send(body, patience):
            self.reusable = False
        while True:
            answer = await self._read_head(patience)
            if not answer.interim:
                return self._note_persistence(answer)

    async def read_body(self, framing: http1.BodyFraming, patience: float | None) -> bytes:
        """Return the whole body of the response whose head was just read.

        Raises `Disconnected` when it is cut short, `TimedOut`, or `http1.MalformedMessage`.
        """
        if framing.chunked:
            return await self._read_chunks(patience)
        if framing.length is None:
            self.reusable = False
            while not self._closed:
                await self._wait(patience)
            if self._error is not None:
                raise Disconnected(self._error)
            return self._take(len(self._pending))
        return await self._read_exactly(framing.length, patience)

    def skip_body(self, framing: http1.BodyFraming) -> bool:
        """Pass over the body of the response whose head was just read, if it is a short one.

        What has not come yet is passed over when it does; until then, the connection is not `idle`.
        """
        if framing.chunked or framing.length is None or framing.length > _LANDING:
            return False
        here = min(framing.length, len(self._pending))
        del self._pending[:here]
        self._unwanted = framing.length - here
        return True

    def _note_persistence(self, head: http1.ResponseHead) -> http1.ResponseHead:
        if not head.keep_alive:
            self.reusable = False
        return head

    async def _send(self, data: bytes, patience: float | None) -> bool:
        """Send `data`; return False when an answer arrived before all of it was sent."""
        if self._transport is None:
            raise Disconnected(self._error)
        view = memoryview(data)
        for start in range(0, len(view), _SLICE):
            if start and (self._closed or self._is_answered()):
                return False
            if self._closed:
                raise Disconnected(self._error)
            self._transport.write(view[start : start + _SLICE])
            if self._room is not None:
                await _within(patience, self._room)
                if not self._closed:
                    _note_progress()
        return True

    def _is_answered(self) -> bool:
        """Whether the final answer is there; interim ones are dropped.

        A server that is slow to want the body may say so when it is on its way already.
        """
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            if not http1.parse_response_head(bytes(self._pending[:end])).interim:
                return True
            del self._pending[: end + 4]
        return False

    async def _read_head(self, patience: float | None) -> http1.ResponseHead:
        searched = 0
        while True:
            end = self._pending.find(b"\r\n\r\n", max(0, searched - 3))
            if end >= 0:
                block = self._take(end)
                del self._pending[:4]
                return http1.parse_response_head(block)
            searched = len(self._pending)
            if searched > http1.MAX_HEAD:
                raise http1.MalformedMessage("a response head without an end")
            if self._closed:
                raise Disconnected(self._error)
            await self._wait(patience)

    async def _read_exactly(self, length: int, patience: float | None) -> bytes:
        if length <= _LANDING:
            while len(self._pending) < length:
                if self._closed:
                    raise Disconnected(self._error)
                await self._wait(patience)
            return self._take(length)
        body = bytearray(length)
        early = self._take(min(length, len(self._pending)))
        body[: len(early)] = early
        self._body, self._filled = body, len(early)
        try:
            while self._filled < length:
                if self._closed:
                    raise Disconnected(self._error)
                await self._wait(patience)
        finally:
            self._body = None
        return bytes(body)

    async def _read_chunks(self, patience: float | None) -> bytes:
        parts: list[bytes] = []
        while True:
            size = http1.parse_chunk_size(await self._read_line(patience))
            if size == 0:
                while await self._read_line(patience):
                    continue
                return b"".join(parts)
            parts.append(await self._read_exactly(size, patience))
            if await self._read_line(patience):
                raise http1.MalformedMessage("a chunk that does not end where it said")

    async def _read_line(self, patience: float | None) -> bytes:
        while True:
            end = self._pending.find(b"\r\n")
            if end >= 0:
                line = self._take(end)
                del self._pending[:2]
                return line
            if len(self._pending) > http1.MAX_START_LINE:
                raise http1.MalformedMessage("a chunk line without an end")
            if self._closed:
                raise Disconnected(self._error)
            await self._wait(patience)

    def _take(self, length: int) -> bytes:
        data = bytes(memoryview(self._pending)[:length])
        del self._pending[:length]
        return data

    async def _wait(self, patience: float | None) -> None:
        self._news = asyncio.get_running_loop().create_future()
        before = self.received
        try:
            await _within(patience, self._news)
            if self.received > before:  # and not only the connection's end
                _note_progress()
        finally:
            self._news = None

    def _announce(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(True)


def _note_progress() -> None:
    note = progress.get()
    if note is not None:
        note()


async def _within(patience: float | None, event: "asyncio.Future[bool]") -> None:
    """Wait for `event`, which is set to True, for `patience` seconds at most.

    Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes in the same turn
    of the loop as the event, and with it a limit on the whole request. Raises `TimedOut`.
    """

    def give_up() -> None:
        if not event.done():
            event.set_result(False)

    timer = None if patience is None else event.get_loop().call_later(patience, give_up)
    try:
        if not await event:
            raise TimedOut
    finally:
        if timer is not None:
            timer.cancel()
