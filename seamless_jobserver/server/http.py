"""The listening side: connections in, each served in a thread of its own (`server.connection`).

A `ThreadingHTTPServer` accepts in one thread. So many connections are served at a time; further
ones wait in the backlog to be accepted.
"""

import contextlib
import logging
import resource
import socket
import ssl
import threading
import time
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from seamless_jobserver.server.access import Gate
from seamless_jobserver.server.connection import Answerer, ClientGone, Connection, Terms
from seamless_jobserver.server.idle import Activity

BACKLOG: Final = 1024
"""Connections that the kernel holds for us; the default of 5 resets clients in small bursts."""
_ROOM_INTERVAL: Final = 0.1
_DESCRIPTORS: Final = 256
"""Open files that the server needs beside those for its connections and its workers."""
_PER_WORKER: Final = 12
"""Open files for each worker: pipes and semaphores of its executor, and what it has printed."""

_log = logging.getLogger(__name__)


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
        gate: Gate,
        tls: ssl.SSLContext | None,
        max_connections: int,
        max_body: int,
    ) -> None:
        """Bind and listen. Raises OSError when the address cannot be had; see `Terms`."""
        self._terms = Terms(gate, tls, max_body, lambda: self._closing, self._count_refusal)
        self._room = threading.BoundedSemaphore(max_connections)
        self.address_family = socket.AddressFamily(family)
        self._answer = answer
        self._activity = activity
        self._lock = threading.Lock()  # over the three below
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._accepted = 0
        self._refused = 0
        self._closing = False
        self._acceptor: threading.Thread | None = None
        super().__init__(address, Connection)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind without asking the resolver for our own name, as the base class would."""
        TCPServer.server_bind(self)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.socket.getsockname()[1])

    @property
    def local_address(self) -> str:
        """Address and port at which processes of this machine reach it."""
        address = str(self.socket.getsockname()[0])
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many connections there are now, and have been, and how often one was refused."""
        with self._lock:
            return len(self._connections), self._accepted, self._refused

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
            self._accepted += 1
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
            served = Connection(connection, self._terms)
            if served.enter():
                connection = served.socket
                with self._lock:
                    self._connections[threading.current_thread()] = connection
                served.serve(self._answer, self._activity)
        except (OSError, ClientGone) as error:
            _log.debug("connection lost: %s", error)
        except Exception:  # noqa: BLE001 - one bad connection must not go unreported, or end us
            _log.exception("a connection ended by an error of ours")
        finally:
            self.shutdown_request(connection)
            with self._lock:
                self._connections.pop(threading.current_thread(), None)
            self._room.release()

    def _count_refusal(self) -> None:
        with self._lock:
            self._refused += 1

    def _snapshot(self) -> dict[threading.Thread, socket.socket]:
        with self._lock:
            return dict(self._connections)

    def _join(self, deadline: float) -> None:
        for thread in self._snapshot():
            thread.join(max(0.0, deadline - time.monotonic()))


def allow_connections(count: int, workers: int) -> int:
    """Raise the limit on open files for `count` connections and the workers.

    Returns what it was before.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _DESCRIPTORS + _PER_WORKER * workers
    wanted = count + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            _log.warning(
                "only %d files may be open here (ulimit -Hn), too few for %d connections: choose "
                "--max-connections %d",
                allowed,
                count,
                max(1, allowed - others),
            )
    return soft
