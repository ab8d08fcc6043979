"""Asking a running jobserver over HTTP, for the commands that look at one.

What answers may be any program, and what it says may hold what a terminal would obey: the commands
show it through `printable`.
"""

import argparse
import base64
import http.client
import json
import socket
import ssl
import urllib.parse
from pathlib import Path
from typing import Any, Final, NamedTuple

from seamless_jobserver.options import DEFAULT_PORT
from seamless_jobserver.passwordfile import read_password_file

_TIMEOUT: Final = 10.0


class Unreachable(Exception):
    """The server does not answer; the message says what was seen, and what to do."""


class Answer(NamedTuple):
    """Status code and text of an answer."""

    status: int
    text: str


class Server:
    """A jobserver at a URL, which may hold a user name and a password."""

    def __init__(self, url: str, password: bytes | None = None) -> None:
        """Raises ValueError when `url` is none; `password` is used instead of one that it holds."""
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a jobserver, such as http://127.0.0.1:5533")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or DEFAULT_PORT
        self._base = parts.path.rstrip("/")
        self._fields = {"User-Agent": "seamless-jobserver-command"}
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
        """Send a request, with `body` as JSON, and return the answer. Raises `Unreachable`."""
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=timeout)
            if self._tls
            else http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        )
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, self._base + path, content, self._fields)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("utf-8", errors="replace"))
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(self._explain(error, timeout)) from error
        finally:
            connection.close()

    def _explain(self, error: Exception, timeout: float) -> str:
        if isinstance(error, ConnectionRefusedError):
            return (
                f"nothing listens at {self.address}. Does the jobserver run, and at this port? Its "
                "status file says where it listens, its log why it ended."
            )
        if isinstance(error, socket.gaierror):
            return f"{self._host!r} is no known name: {error.strerror}. Is it spelled right?"
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


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` with a mark for what a terminal would obey; with `lines`, line ends stay."""
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text)


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
    if options.status_file is None:
        return Server(options.url or f"http://127.0.0.1:{DEFAULT_PORT}", password)
    try:
        status = json.loads(options.status_file.read_text())
        port = int(status["port"])
    except OSError as error:
        raise ValueError(f"{options.status_file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{options.status_file} names no port: the jobserver does not listen yet, or failed"
        ) from None
    return Server(f"http://127.0.0.1:{port}", password)
