"""Asking a running jobserver over HTTP, for the commands that look at one."""

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

_TIMEOUT: Final = 10.0


class Unreachable(Exception):
    """The server does not answer; the message says what was seen, and what to do."""


class Answer(NamedTuple):
    """Status code and text of an answer."""

    status: int
    text: str


class Server:
    """A jobserver at a URL, which may hold a user name and a password."""

    def __init__(self, url: str) -> None:
        """Raises ValueError when `url` is none."""
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a jobserver, such as http://127.0.0.1:5533")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or DEFAULT_PORT
        self._base = parts.path.rstrip("/")
        self._fields = {"User-Agent": "seamless-jobserver-command"}
        if parts.username is not None or parts.password is not None:
            words = f"{parts.username or ''}:{parts.password or ''}"
            plain = urllib.parse.unquote(words).encode()
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


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add what names a server to the arguments of a command."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"where it listens (default http://127.0.0.1:{DEFAULT_PORT}); may hold user:password@",
    )
    target.add_argument("--status-file", type=Path, metavar="PATH", help="or the file that says so")


def find_server(options: argparse.Namespace) -> Server:
    """Return the server that the arguments of `add_target` name. Raises ValueError."""
    if options.status_file is None:
        return Server(options.url or f"http://127.0.0.1:{DEFAULT_PORT}")
    try:
        status = json.loads(options.status_file.read_text())
        port = int(status["port"])
    except OSError as error:
        raise ValueError(f"{options.status_file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{options.status_file} names no port: the jobserver does not listen yet, or failed"
        ) from None
    return Server(f"http://127.0.0.1:{port}")
