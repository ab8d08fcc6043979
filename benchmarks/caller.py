"""Callers: requests to a jobserver on raw sockets, so that the client costs next to nothing.

All connections of a burst are served by one thread and one selector, for the same reason. The
requests say what a real client says, and interim answers (``102 Processing``) are skipped as a
real client skips them.
"""

import contextlib
import json
import selectors
import socket
import time
from dataclasses import dataclass
from typing import Any, Final

_LIMIT: Final = 300.0
"""Seconds for any one answer, whatever comes in between."""
_STALLED: Final = 60.0
"""Seconds without any answer to any of many callers after which a jobserver counts as stuck."""
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What came back, and when: seconds since its request, or since the beginning of a burst."""

    status: int
    body: bytes
    seconds: float

    @property
    def good(self) -> bool:
        """Whether it names a result."""
        return self.status == 200 and self.body.startswith(b'{"result_checksum"')


class BenchmarkFailed(Exception):
    """A figure cannot be had; the message says why."""


def encode(run_request: dict[str, Any]) -> bytes:
    """Return a run request as the bytes that a client sends."""
    body = json.dumps(run_request).encode()
    return _HEAD % len(body) + body


_HEAD: Final = (
    b"GET /run-transformation HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nUser-Agent: Python/3.11 aiohttp/3.14\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


class Caller:
    """One kept-alive connection, on which one request after the other is answered."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_LIMIT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, request: bytes) -> Answer:
        """Send a request and wait for its answer. Raises `BenchmarkFailed`."""
        begun = time.perf_counter()
        self._socket.sendall(request)
        received = bytearray()
        while True:
            self._socket.settimeout(max(0.001, begun + _LIMIT - time.perf_counter()))
            try:
                data = self._socket.recv(_CHUNK)
            except TimeoutError:
                raise BenchmarkFailed(f"no answer within {_LIMIT:.0f} s") from None
            if not data:
                raise BenchmarkFailed("the jobserver closed a connection")
            received += data
            answer = _parse(received, begun)
            if answer is not None:
                return answer

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def burst(port: int, requests: list[bytes], connections: int) -> list[Answer | None]:
    """Send `requests` over so many connections at once; return the answers, None for a broken one.

    The connections are opened within the measured time.
    """
    waiting = list(enumerate(requests))[::-1]
    answers: list[Answer | None] = [None] * len(requests)
    begun = time.perf_counter()
    with Held(port) as held:
        for _ in range(min(connections, len(requests))):
            number, request = waiting.pop()
            held.open(number, request)
        stalled = time.perf_counter() + _STALLED
        while held.open_count:
            for lane, broken in held.ready(stalled - time.perf_counter()):
                answer = None if broken else _parse(lane.received, begun)
                if answer is None and not broken:
                    continue
                stalled = time.perf_counter() + _STALLED
                answers[lane.number] = answer
                if broken or not waiting:
                    held.close(lane)
                if waiting:
                    number, request = waiting.pop()
                    if broken:
                        held.open(number, request)
                    else:
                        held.send(lane, number, request)
    return answers


@dataclass(eq=False)
class _Lane:
    socket: socket.socket
    number: int
    unsent: bytes
    received: bytearray


class Held:
    """Connections that are open at the same time, each with one request under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self.open_count = 0

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            self.close(key.data)
        self._selector.close()

    def open(self, number: int, request: bytes) -> None:
        """Open a connection and send `request` on it as soon as it is there."""
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            connection.connect(("127.0.0.1", self._port))
        lane = _Lane(connection, number, request, bytearray())
        self._selector.register(connection, selectors.EVENT_WRITE, lane)
        self.open_count += 1

    def send(self, lane: _Lane, number: int, request: bytes) -> None:
        """Send the next request on a connection that has had its answer."""
        lane.number, lane.unsent, lane.received = number, request, bytearray()
        self._selector.modify(lane.socket, selectors.EVENT_WRITE, lane)

    def ready(self, timeout: float) -> list[tuple[_Lane, bool]]:
        """Wait for something to come in; return the connections, and whether they broke.

        Raises `BenchmarkFailed` when nothing does within `timeout` seconds.
        """
        events = self._selector.select(timeout) if timeout > 0 else []
        if not events:
            raise BenchmarkFailed("no answer for too long: the jobserver is stuck")
        news = []
        for key, event in events:
            lane: _Lane = key.data
            try:
                if event & selectors.EVENT_WRITE:
                    sent = lane.socket.send(lane.unsent)
                    lane.unsent = lane.unsent[sent:]
                    if not lane.unsent:
                        self._selector.modify(lane.socket, selectors.EVENT_READ, lane)
                    continue
                data = lane.socket.recv(_CHUNK)
            except OSError:
                data = b""
            lane.received += data
            news.append((lane, not data))
        return news

    def settle(self, seconds: float) -> None:
        """Send what is to be sent, for so long. Raises `BenchmarkFailed` when anything is answered.

        An interim answer is none.
        """
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            news: list[tuple[_Lane, bool]] = []
            with contextlib.suppress(BenchmarkFailed):
                news = self.ready(left)
            for lane, broken in news:
                if broken:
                    raise BenchmarkFailed("a connection broke whose caller should wait")
                answer = _parse(lane.received, deadline)
                if answer is not None:
                    said = answer.body[:500]
                    raise BenchmarkFailed(
                        f"a caller that should wait was answered: {answer.status}: {said!r}"
                    )

    def first_answer(self) -> Answer:
        """Return the first answer on any connection. Raises `BenchmarkFailed` for want of one."""
        begun = time.perf_counter()
        while True:
            for lane, broken in self.ready(begun + _STALLED - time.perf_counter()):
                answer = None if broken else _parse(lane.received, begun)
                if broken:
                    raise BenchmarkFailed("the jobserver closed a connection")
                if answer is not None:
                    return answer

    def close(self, lane: _Lane) -> None:
        """Close one connection."""
        self._selector.unregister(lane.socket)
        lane.socket.close()
        self.open_count -= 1


def _parse(received: bytearray, begun: float) -> Answer | None:
    """Return the final answer when all of it has come; interim ones are taken off the front."""
    while True:
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(received[:end]).lower()
        status = int(head.split(None, 2)[1])
        if status >= 200:
            break
        del received[: end + 4]
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
    if len(received) < end + 4 + length:
        return None
    return Answer(status, bytes(received[end + 4 :]), time.perf_counter() - begun)
