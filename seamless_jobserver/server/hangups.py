"""Noticing clients that hang up while they wait: one thread for all of them.

A thread that waits for a job's end cannot see what becomes of its connection. If each looked now
and then, a thousand waiting callers would cost a twentieth of a processor, and a client that has
gone would be noticed late. Here one thread, "jobserver-hangups", waits for the kernel to tell of
any (epoll(7), EPOLLRDHUP), and wakes the thread whose client it is.

A wake-up only says "look": when a descriptor is closed and used again at the same moment, it can
reach the thread that has the number now.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

_ANY: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT
_LOOK: Final = 60.0
"""Seconds after which the thread looks around at the latest."""


class Hangups:
    """Watches connections for threads that wait. Any thread may call it."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._end, select.EPOLLIN)
        self._lock = threading.Lock()  # over the next two
        self._wake: dict[int, Callable[[], None]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="jobserver-hangups", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, connection: socket.socket, wake: Callable[[], None]) -> Iterator[None]:
        """Have `wake` called, which must not block, when the peer hangs up during the block.

        It is called at once if that has happened already.
        """
        descriptor = connection.fileno()
        with self._lock:
            watched = not self._closed and descriptor >= 0
            if watched:
                self._wake[descriptor] = wake
                self._poll.register(descriptor, _ANY)
        try:
            yield
        finally:
            with self._lock:
                if watched and self._wake.get(descriptor) is wake:
                    del self._wake[descriptor]
                    # Closed meanwhile, by the end of the server: the kernel has forgotten it.
                    with contextlib.suppress(OSError):
                        self._poll.unregister(descriptor)

    def close(self, timeout: float) -> None:
        """Watch nothing more, and end the thread within `timeout` seconds. Once is enough."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake.clear()
        os.eventfd_write(self._end, 1)
        self._thread.join(timeout)

    def _serve(self) -> None:
        with self._poll:
            while not self._closed:
                for descriptor, _ in self._poll.poll(_LOOK):
                    with self._lock:
                        wake = self._wake.get(descriptor)
                    if wake is not None:
                        wake()
        os.close(self._end)
