"""Asking a running jobserver over HTTP, for the commands that look at one."""

import argparse
import base64
import contextlib
import http.client
import json
import os
import shlex
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from seamless_jobserver import peer
from seamless_jobserver.options import DEFAULT_PORT
from seamless_jobserver.passwordfile import read_password_file

_TIMEOUT: Final = 10.0
_WHOLE: Final = 60.0
"""Seconds for a whole answer to come, however it trickles in, beyond those for each piece of it."""
_CONNECT_TIMEOUT: Final = 3.0
"""Seconds for each of the addresses at which a server may listen."""
_ACCEPT_LIMIT: Final = 3.0
_ACCEPT_LOOK: Final = 0.01
"""Seconds for a server to accept a connection, and between two looks at whether it has."""
_MOST: Final = 64 * 2**20
"""Bytes of an answer that are read; a jobserver's are far smaller."""
_LOOPBACK: Final = ("127.0.0.1", "::1")
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})


class Unreachable(Exception):
    """The server does not answer; the message says what was seen, and what to do."""


class TooSlow(Unreachable):
    """It has not answered in time."""


class Answer(NamedTuple):
    """Status code and text of an answer."""

    status: int
    text: str


class Server:
    """A jobserver at a URL, which may hold a user name and a password."""

    def __init__(self, url: str, password: bytes | None = None, *, ours: bool = False) -> None:
        """Raises ValueError when `url` is none; `password` is used instead of one that it holds.

        A password for a server that is `ours` is kept from other users of this machine, who may
        have got its port when it ended.
        """
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a jobserver, such as http://127.0.0.1:5533")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or DEFAULT_PORT
        self._base = parts.path.rstrip("/")
        self._fields = {"User-Agent": "seamless-jobserver-command"}
        self._ours = ours
        if password is None and parts.password is not None:
            password = urllib.parse.unquote_to_bytes(parts.password)
        if password is not None or parts.username is not None:
            plain = urllib.parse.unquote_to_bytes(parts.username or "") + b":" + (password or b"")
            self._fields["Authorization"] = "Basic " + base64.b64encode(plain).decode()

    @property
    def address(self) -> str:
        """``HOST:PORT``, without any password."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def ask(self, method: str, path: str, body: Any = None, *, timeout: float = _TIMEOUT) -> Answer:
        """Send a request, with `body` as JSON, and return the answer. Raises `Unreachable`.

        `timeout` is for each piece of it, in seconds.
        """
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=timeout)
            if self._tls
            else http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        )
        content = None if body is None else json.dumps(body)
        try:
            connection.connect()
            if self._ours and "Authorization" in self._fields and not is_ours(connection.sock):
                raise Unreachable(
                    f"what listens at {self.address} is not yours, as far as the kernel tells, and "
                    "is not given the password. Has your jobserver ended, or does it run on "
                    "another machine? Then ask there, or name it by its URL."
                )
            with self._at_most(timeout + _WHOLE, connection.sock):
                connection.request(method, self._base + path, content, self._fields)
                response = connection.getresponse()
                text = response.read(_MOST + 1)
            if len(text) > _MOST:
                raise Unreachable(f"{self.address} answers without an end: it is no jobserver")
            return Answer(response.status, text.decode("utf-8", errors="replace"))
        except TimeoutError as error:
            raise TooSlow(self._explain(error, timeout)) from error
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise Unreachable(self._explain(error, timeout)) from error
        finally:
            connection.close()

    def ask_json(self, path: str) -> Any:
        """Return the JSON that a path answers with. Raises `Unreachable`."""
        answer = self.ask("GET", path)
        if answer.status != 200:
            raise Unreachable(f"{self.address} answers {answer.status}: {answer.text.strip()}")
        try:
            return json.loads(answer.text)
        except (ValueError, RecursionError):
            raise Unreachable(
                f"{self.address} is no jobserver that can be watched: something else may listen "
                "there, or another kind of jobserver"
            ) from None

    @contextlib.contextmanager
    def _at_most(self, seconds: float, connection: socket.socket) -> Iterator[None]:
        """Cut a connection off after so many seconds. Raises `TooSlow` then."""
        over = threading.Event()

        def cut_off() -> None:
            over.set()
            with contextlib.suppress(OSError):  # it has come to its end by itself
                # Of the connection itself, also where TLS is spoken over it.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

        timer = threading.Timer(seconds, cut_off)
        timer.daemon = True  # who interrupts the command as it starts does not wait for it
        timer.start()
        fault: Exception | None = None
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            if not over.is_set():
                raise
            fault = error
        finally:
            timer.cancel()
        if over.is_set():
            raise TooSlow(
                f"the answer of {self.address} comes in pieces, and has not come to its end within "
                f"{seconds:g} s. Is it a jobserver, and is the line to it very slow?"
            ) from fault

    def _explain(self, error: Exception, timeout: float) -> str:
        if isinstance(error, ConnectionRefusedError):
            return (
                f"nothing listens at {self.address}. Does the jobserver run, and at this port? Its "
                "status file says where it listens, its log why it ended."
            )
        if isinstance(error, socket.gaierror):
            return f"{self._host!r} is no known name: {error.strerror}. Is it spelled right?"
        if isinstance(error, UnicodeError):
            return f"{self._host}{self._base} is no address: {error}. Is it spelled right?"
        if isinstance(error, TimeoutError):
            return (
                f"{self.address} does not answer within {timeout:g} s. Is a firewall in between? "
                "A tunnel helps: ssh -L 5533:127.0.0.1:PORT LOGIN-NODE."
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {self.address} is not trusted here: {error.verify_message}. "
                "The environment variable SSL_CERT_FILE can name one that is."
            )
        if isinstance(error, (ssl.SSLError, http.client.BadStatusLine)):
            return f"{self.address} does not speak {'TLS' if self._tls else 'HTTP'}: {error}"
        return f"{self.address} cannot be asked: {type(error).__name__}: {error}"


Built = TypeVar("Built")


def understand(server: Server, build: Callable[[Any], Built], answer: Any) -> Built:
    """Return what `build` makes of an answer of `server`, in JSON.

    Raises `Unreachable` when that has another form than `build` expects.
    """
    try:
        return build(answer)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise Unreachable(
            f"{server.address} answers in a form that this command does not know "
            f"({type(error).__name__}: {error}). Is it a jobserver, and of this version?"
        ) from error


def nobody_reads() -> int:
    """Give up standard output, whose reader has gone; return the exit code of a command for that.

    The interpreter would complain when it flushes what is left at its end.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 0


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add what names a server to the arguments of a command."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"where it listens (default http://127.0.0.1:{DEFAULT_PORT}); a password in it would "
        "be seen by everybody who runs ps",
    )
    target.add_argument("--status-file", type=Path, metavar="PATH", help="or the file that says so")
    parser.add_argument(
        "--password-file",
        type=Path,
        metavar="PATH",
        help="file with its password, where it asks for one; only you may be able to read it",
    )


def find_server(options: argparse.Namespace) -> Server:
    """Return the server that the arguments of `add_target` name. Raises ValueError."""
    password = None
    if options.password_file is not None:
        try:
            password = read_password_file(options.password_file)
        except ValueError as error:
            raise ValueError(f"--password-file {error}") from None
    path = options.status_file
    if path is None:
        return Server(options.url or f"http://127.0.0.1:{DEFAULT_PORT}", password)
    try:
        # Without waiting: it may be a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError(f"{path} is no regular file: is it the right path?")
            if facts.st_uid not in (os.geteuid(), 0):
                raise ValueError(
                    f"{path} is not a file of yours: its owner is user {facts.st_uid}. It says "
                    "where to ask, and could name anything"
                )
            status = json.load(file)
        port = status["port"]
        if type(port) is not int:
            raise TypeError
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(
            f"{path} names no port: the jobserver does not listen yet, or failed"
        ) from None
    hosts = addresses(status)
    host = next((host for host in hosts if _listens(host, port)), hosts[0])
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Server(url, password, ours=True)


def addresses(status: dict[str, Any]) -> list[str]:
    """Return where a server may listen that has `status` as its status file, likeliest first.

    The launcher writes the command that it ran, and the network interface that it was to listen
    on. A server that somebody started by hand says nothing of the kind.
    """
    named = [_host_of_command(status.get("command")), status.get("network_interface")]
    hosts = [host.strip("[]") for host in named if isinstance(host, str)]
    hosts = [host for host in hosts if host not in _ANY_ADDRESS]
    return list(dict.fromkeys([*hosts, *_LOOPBACK, socket.gethostname()]))


def _host_of_command(command: Any) -> str | None:
    """Return the value of ``--host`` in a command line, or None."""
    if not isinstance(command, str):
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None  # it is not written for a shell
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--host":
            found = following
        elif word.startswith("--host="):
            found = word.partition("=")[2]
    return found


def is_ours(connection: socket.socket) -> bool:
    """Whether a connection is not with another user of this machine, nor with one it cannot tell.

    A server that has ended can be followed at its port by anybody. Raises `TooSlow` when it does
    not accept the connection.
    """
    other = peer.Endpoint.of(connection.getpeername())
    try:
        if not peer.is_local(other.address, other.scope):
            return True
    except peer.Unknown:
        return False
    deadline = time.monotonic() + _ACCEPT_LIMIT
    pause = threading.Event()  # never set: it is waited for, with a limit
    while True:
        try:
            return peer.owner(connection, peer.find_source()) == os.geteuid()
        except (peer.Unknown, OSError):
            # Most likely it has not been accepted yet, and has no owner so far.
            if time.monotonic() > deadline:
                raise TooSlow(
                    f"what listens at port {other.port} does not accept the connection, or the "
                    "kernel does not tell whose it is: it is not given the password. Is it busy?"
                ) from None
        pause.wait(_ACCEPT_LOOK)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True
