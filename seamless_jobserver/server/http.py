"""The listening side: connections in, each served in a thread of its own (`server.connection`).

A `ThreadingHTTPServer` accepts in one thread (`server.acceptor`). That thread asks the gate about
each connection, which takes the kernel less than 0.1 ms, and so those who are not let in cost
neither a thread nor a place (`server.doorstep`). So many connections are served at a time; of
further ones that are let in, one waits for a place (`server.places`), and the others in the
backlog. What the acceptor waits for (a place, a thread, a descriptor) it gives up when it is
halted, and the connection is held until it goes on.
"""

import contextlib
import errno
import logging
import resource
import socket
import ssl
import threading
import time
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from seamless_jobserver.errors import Unanswered
from seamless_jobserver.peer import SHORTAGE
from seamless_jobserver.server.acceptor import Acceptor
from seamless_jobserver.server.access import Gate, Refused, Standing
from seamless_jobserver.server.connection import Answerer, Connection, Terms
from seamless_jobserver.server.doorstep import Doorstep
from seamless_jobserver.server.hangups import Hangups
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.places import STRANGERS, Places
from seamless_jobserver.server.refusals import Refusals
from seamless_jobserver.server.requestreader import ClientGone

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

    allow_reuse_port = False  # or two servers could share a port, and neither would know
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
        self._closing = threading.Event()
        self._refusals = Refusals()
        self._gate = gate
        self.address_family = socket.AddressFamily(family)
        # First: where many ports are tried, nothing is to be left of those that cannot be had.
        super().__init__(address, Connection)  # type: ignore[arg-type] # it makes none itself
        self.socket.setblocking(False)  # one that was there may be gone when it is to be accepted
        self._hangups = Hangups()
        self._terms = Terms(
            gate=gate,
            tls=tls,
            max_body=max_body,
            closing=self._closing.is_set,
            note_refusal=self._refusals.note,
            places=Places(max_connections),
            strangers=Places(STRANGERS, least_idle=0.0, spare=False),
            hangups=self._hangups,
        )
        self._doorstep = Doorstep()
        self._answer = answer
        self._activity = activity
        self._lock = threading.Lock()  # over the two below
        self._connections: dict[threading.Thread, Connection] = {}
        self._accepted = 0
        self._acceptor = Acceptor(
            self.socket,
            accept=self._accept_one,
            go_on=self._begin_held,
            attend=self.service_actions,
        )
        # By the acceptor, or by others while that is halted.
        self._held: list[tuple[Any, Any]] = []
        self._short = False

    def server_bind(self) -> None:
        """Bind without asking the resolver for our own name, as the base class would."""
        if self.address_family == socket.AF_INET6:
            # ``::`` takes both kinds of address, whatever net.ipv6.bindv6only says.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
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
            return len(self._connections), self._accepted, self._refusals.total

    @property
    def closing(self) -> bool:
        """Whether connections should end after their present request."""
        return self._closing.is_set()

    @property
    def holds(self) -> bool:
        """Whether, while `suspend`ed, a connection is there that cannot be served at the moment."""
        return bool(self._held) or self._short

    def start(self) -> None:
        """Accept connections from now on, in a thread, which stays until the end.

        Raises RuntimeError when there is no thread to be had; after `suspend` it is there.
        """
        self._acceptor.start()

    def suspend(self) -> None:
        """Accept what has come so far and nothing more, until `start` is called again."""
        if self._acceptor.halt():
            self.accept_waiting()

    def accept_waiting(self) -> int:
        """Accept the connections that wait in the backlog, while `suspend`ed; return how many."""
        before = self.counts[1]
        self._short = False
        for _ in range(BACKLOG):
            if not self._accept_one() or self.holds:
                break
        return self.counts[1] - before

    def stop_accepting(self) -> None:
        """Listen no more, but keep the port until `close`; connections that are open go on.

        Whoever got the port would be asked by our own workers, as long as they have jobs.
        """
        self._closing.set()
        self._acceptor.end()
        for request, _ in self._held:
            self.shutdown_request(request)
        self._doorstep.close()
        with contextlib.suppress(OSError):  # it has been called before
            address = self.socket.getsockname()
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            # Linux refuses callers from here on, and leaves the socket bound if its port was
            # chosen by number; else it has to be taken again.
            self.socket.shutdown(socket.SHUT_RD)
            try:
                self.socket.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                # Our own connections have it, which allow to share it.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(address)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)

    def close(self, timeout: float) -> int:
        """Let the connections write what they are at for `timeout` seconds, then cut them off.

        Returns how many threads are left after that.
        """
        deadline = time.monotonic() + timeout
        # Wakes a thread that waits for a request, and lets one that writes go on.
        self._shut_down(socket.SHUT_RD)
        self._join(deadline)
        self._shut_down(socket.SHUT_RDWR)
        self._join(time.monotonic() + 1.0)
        self._hangups.close(1.0)
        self.server_close()
        return len(self._snapshot())

    def _accept_one(self) -> bool:
        """Accept a connection; False when none is there that can be accepted at the moment."""
        try:
            request, client_address = self.get_request()
        except OSError as error:
            if error.errno in SHORTAGE:
                self._short = True
                # It is still in the backlog, so that the next try would come, and fail, at once.
                self._acceptor.over_within(_ROOM_INTERVAL)
            return False
        with self._lock:
            self._accepted += 1
        self._begin_safely(request, client_address)
        return True

    def _begin_held(self) -> None:
        held, self._held = self._held, []
        for request, client_address in held:
            self._begin_safely(request, client_address)

    def _begin_safely(self, request: Any, client_address: Any) -> None:
        try:
            self._begin(request, client_address)
        except Exception:  # noqa: BLE001 - one of them is not to cost the others
            self.handle_error(request, client_address)
            self.shutdown_request(request)

    def _begin(self, request: Any, client_address: Any) -> None:
        """Have a connection served, or hold it when that cannot be before the acceptor is halted.

        Else who waits for the acceptor would wait for as long as there is a shortage.
        """
        try:
            served = self._take_in(request, client_address[1])
        except Refused as refusal:
            self._refusals.note(refusal.kind)
            self._doorstep.turn_away(request, refusal)
        except OSError as error:
            _log.debug("connection lost: %s", error)
            self.shutdown_request(request)
        else:
            if not served:
                self._held.append((request, client_address))

    def _take_in(self, request: Any, port: int) -> bool:
        standing = self._admit(request)
        if standing is None:
            return False
        connection = Connection(request, self._terms, standing)
        return self._find_place(connection) and self._start_thread(connection, port)

    def _admit(self, request: Any) -> Standing | None:
        """Ask the gate, again while that is for want of descriptors: the owner is not refused."""
        while True:
            try:
                return self._gate.admit(request)
            except OSError as error:
                if error.errno not in SHORTAGE:
                    raise
            if self._acceptor.over_within(_ROOM_INTERVAL):
                return None
            self.service_actions()  # who stands at the door may have the descriptors

    def service_actions(self) -> None:
        """Do what has to be done now and then (socketserver.BaseServer)."""
        self._doorstep.attend()
        self._refusals.report()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - inherited
        """Report an error of ours in the thread that accepts (socketserver.BaseServer)."""
        _log.exception("a connection could not be served because of an error of ours")

    def _find_place(self, connection: Connection) -> bool:
        """Wait until there is a place; False when the acceptor is halted before.

        Refusing would be worse: clients repeat what is refused, at once.
        """
        while not connection.take_place(_ROOM_INTERVAL):
            if self._acceptor.over_within(0):
                return False
            self.service_actions()
        return True

    def _start_thread(self, connection: Connection, port: int) -> bool:
        name = f"jobserver-connection-{port}"
        thread = self._thread_for(connection, name)
        told = False
        while not self._started(thread, connection):
            if not told:
                _log.error("a connection waits for a thread: is a limit on processes reached?")
                told = True
            # Hanging up would be worse: clients repeat a request at once, four times.
            if self._acceptor.over_within(_ROOM_INTERVAL):
                connection.leave_place()
                return False
            self.service_actions()
            thread = self._thread_for(connection, name)  # one that has failed cannot be used again
        return True

    def _thread_for(self, connection: Connection, name: str) -> threading.Thread:
        return threading.Thread(
            target=self._serve_connection, args=(connection,), name=name, daemon=True
        )

    def _started(self, thread: threading.Thread, connection: Connection) -> bool:
        with self._lock:
            self._connections[thread] = connection
        try:
            thread.start()
        except RuntimeError:
            self._drop(thread)
            return False
        except BaseException:
            # Want of memory, say: who closes the connection knows nothing of its place.
            self._drop(thread)
            connection.leave_place()
            raise
        return True

    def _drop(self, thread: threading.Thread) -> None:
        with self._lock:
            del self._connections[thread]

    def _serve_connection(self, connection: Connection) -> None:
        try:
            connection.serve(self._answer, self._activity)
        except (OSError, ClientGone) as error:
            _log.debug("connection lost: %s", error)
        except Unanswered as error:
            _log.warning("a connection is closed in the middle of its answer: %s", error)
        except Exception:  # noqa: BLE001 - one bad connection must not go unreported, or end us
            _log.exception("a connection ended by an error of ours")
        finally:
            self._forget(threading.current_thread(), connection)

    def _forget(self, thread: threading.Thread, connection: Connection) -> None:
        # In this order: whoever gets the place may count on the descriptor too.
        self.shutdown_request(connection.socket)
        with self._lock:
            self._connections.pop(thread, None)
        connection.leave_place()

    def _shut_down(self, how: int) -> None:
        for connection in self._snapshot().values():
            with contextlib.suppress(OSError):
                # Not SSLSocket's own, which would have an answer go out in the clear.
                socket.socket.shutdown(connection.socket, how)

    def _snapshot(self) -> dict[threading.Thread, Connection]:
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
