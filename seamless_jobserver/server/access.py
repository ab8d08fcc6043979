"""Who may connect, and what they may ask: the gate in front of every request.

A jobserver runs whatever it is sent, as the user who started it. So, for each connection, once:

- From this machine: only processes of the same user, as the kernel tells (`peer`). SSH tunnels
  arrive as their user. Where the kernel cannot tell, nobody is let in.
- From elsewhere: whom ``--allow`` names; everybody, when it names nobody.

Then, for each request: whoever was not shown by the kernel to be the owner gives the password, if
there is one. A request of a browser must come from a page of ours: any page of the internet can
make a browser send requests to this port, and can give the port a name of its own (DNS rebinding).
Browsers are known by fields that they always send and programs do not; what a program sends as
``Host`` proves nothing, and a login node has more names than it knows.

A refusal says why and what the owner can do, and nothing about this server or its files.
"""

import base64
import contextlib
import enum
import hashlib
import hmac
import ipaddress
import logging
import os
import pwd
import socket
import ssl
import threading
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from seamless_jobserver import http1, peer
from seamless_jobserver.errors import StartupError
from seamless_jobserver.messages import NESTED_PATH
from seamless_jobserver.passwordfile import read_password_file

_BROWSER_FIELDS: Final = ("Origin", "Sec-Fetch-Site", "Accept-Language", "Referer")
_OWN_SITES: Final = frozenset({"same-origin", "none"})
_RESOLVER_LIMIT: Final = 2.0
"""Seconds for this machine's own name to be looked up before the start goes on without."""
_FOR_WORKERS: Final = (NESTED_PATH, "/healthcheck", "/cancel-transformation/")
"""What our workers ask for: seamless-remote's client cancels a nested job as any other."""
_FOREIGN_PAGE: Final = "a page of another site"

_log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Standing(enum.Enum):
    """What is known of the other end of a connection."""

    OWNER = "owner"
    """The kernel has shown that it is a process of our user."""
    ADMITTED = "admitted"


class Refused(Exception):
    """A connection or request that is not let in, with the answer that it gets.

    `kind` is what may be told of it to others: not who it was.
    """

    def __init__(self, kind: str, text: str, status: int = 403, **fields: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status
        self.fields = {name.replace("_", "-"): value for name, value in fields.items()}


@dataclass(frozen=True)
class AccessRules:
    """What the command line asks for.

    `any_user` switches the check of the user off; `allow` is empty for everybody; `hosts` are
    names by which browsers may call this server beside its machine's.
    """

    any_user: bool = False
    allow: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    password: bytes | None = None


class Gate:
    """Decides. Any thread may ask it."""

    def __init__(self, rules: AccessRules, worker_credentials: str | None = None) -> None:
        """Find out where the kernel tells who owns a socket; once, and say if it does not.

        `worker_credentials` is what our workers send as ``Authorization``, on paths of their own:
        the kernel is not asked about them when every user may connect.
        """
        self._rules = rules
        self._worker = None if worker_credentials is None else _digest(worker_credentials.encode())
        self._source: peer.Source | None = None
        self._user = os.geteuid()
        self._hosts = _own_names()
        self._hosts.update(name.lower().rstrip(".") for name in rules.hosts)
        self._password = None if rules.password is None else _digest(rules.password)
        if not rules.any_user:
            try:
                self._source = peer.find_source()
            except peer.Unknown as reason:
                _log.error(
                    "connections from this machine are refused, because it does not tell whose "
                    "they are (%s). --access any lets every user of this machine in",
                    reason,
                )

    def admit(self, connection: socket.socket) -> Standing:
        """Return what is known of a new connection. Raises `Refused`, or OSError."""
        end = peer.Endpoint.of(connection.getpeername())
        try:
            local = peer.is_local(end.address, end.scope)
        except peer.Unknown:
            raise Refused(
                "a connection of unknown origin",
                "403: It cannot be found out at the moment where this connection comes from, so "
                "it is refused. Ask again; if that does not help, the log of the jobserver says "
                "more.",
            ) from None
        if local:
            if self._rules.any_user:
                return Standing.ADMITTED
            self._check_user(connection)
            return Standing.OWNER
        if self._rules.allow and not any(end.address in network for network in self._rules.allow):
            raise Refused(
                "an address that --allow does not name",
                "403: This jobserver takes no connections from your address. Its owner can allow "
                "it with --allow.",
            )
        return Standing.ADMITTED

    def knows(self, standing: Standing) -> bool:
        """Whether nothing more is asked of a connection than its requests."""
        return self._password is None or standing is Standing.OWNER

    def check(
        self, head: http1.RequestHead, standing: Standing, *, lacks_tls: bool = False
    ) -> None:
        """Return when a request may be answered. Raises `Refused`.

        `lacks_tls` says that it came in the clear although there is a certificate.
        """
        self._check_browser(head)
        if standing is Standing.OWNER or self._is_worker(head):
            return
        if lacks_tls:
            raise Refused(
                "a connection without TLS",
                "426: This jobserver wants TLS: use https.",
                426,
                Upgrade="TLS/1.2",
            )
        if self._password is None:
            return
        if not hmac.compare_digest(_given_password(head), self._password):
            raise Refused(
                "no password or a wrong one",
                "401: This jobserver asks for a password: put it into the URL, as in "
                "http://user:password@host:port. The commands check and top take --password-file.",
                status=401,
                WWW_Authenticate='Basic realm="seamless-jobserver", charset="UTF-8"',
            )

    def _is_worker(self, head: http1.RequestHead) -> bool:
        if self._worker is None or not head.target.startswith(_FOR_WORKERS):
            return False
        given = (head.fields.get("Authorization") or "").encode()
        return hmac.compare_digest(_digest(given), self._worker)

    def describe(self, host: str, address: str, port: int) -> str:
        """Return one line on who can reach the server at an address, and as whom they act."""
        name = user_name(self._user)
        reach = ipaddress.ip_address(address.partition("%")[0])
        if self._rules.any_user:
            local = "every user of this machine"
            if self._password is not None:
                local += " who has the password"
        elif self._source is None:
            local = "nobody on this machine"
        else:
            local = f"processes of {name} on this machine"
        if reach.is_loopback:
            return f"port {port} of {host} is open to {local}"
        elsewhere = "everybody who can reach it from other machines"
        if self._rules.allow:
            elsewhere = " and ".join(map(str, self._rules.allow))
        if self._password is not None:
            elsewhere += " and has the password" if not self._rules.allow else ", with the password"
        return (
            f"port {port} of {host} is open to {local}, and to {elsewhere}: they can run code as "
            f"{name}. Narrow it with --host 127.0.0.1, --allow CIDR or --password-file"
        )

    def exposed(self, address: str) -> bool:
        """Whether anybody but the owner can get in without a password."""
        if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return self._rules.any_user and self._password is None
        return self._password is None

    def _check_user(self, connection: socket.socket) -> None:
        if self._source is None:
            raise Refused(
                "a local connection of unknown owner",
                "403: This machine does not tell whose connection this is, so nobody is let in. "
                "The owner of the jobserver can allow every user with --access any.",
            )
        try:
            user = peer.owner(connection, self._source)
        except peer.Unknown:
            raise Refused(
                "a local connection of unknown owner",
                "403: The kernel does not say whose connection this is, so it is refused. It may "
                "come from a container or another network namespace, or was closed too early; the "
                "owner of the jobserver can allow every user with --access any.",
            ) from None
        if user != self._user:
            raise Refused(
                "another user of this machine",
                f"403: This jobserver runs code as its owner, and serves the owner's processes "
                f"only; you are user {user}. Its owner can allow every user of this machine with "
                "--access any.",
            )

    def disown(self, name: str) -> None:
        """Count `name` no longer among the names that a browser may know this server by."""
        self._hosts.discard(name)

    def _check_browser(self, head: http1.RequestHead) -> None:
        """Refuse what a browser sends for a page that is not ours (Fetch Metadata, RFC 6454)."""
        fields = head.fields
        agent = (fields.get("User-Agent") or "").startswith("Mozilla/")
        if not agent and all(fields.get(name) is None for name in _BROWSER_FIELDS):
            return
        host = fields.get("Host")
        if host is None or not self._is_ours(host):
            raise Refused(
                "a browser, by a name that is not ours",
                "403: This jobserver is not known by that name. Use its address, such as "
                "127.0.0.1, or the name of its machine; its owner can add one with --allow-host.",
            )
        for site in fields.all("Sec-Fetch-Site"):
            if site.strip().lower() not in _OWN_SITES:
                raise Refused(
                    _FOREIGN_PAGE, "403: A page of another site may not use this jobserver."
                )
        told = fields.get("Origin"), fields.get("Sec-Fetch-Site")
        if head.method not in ("GET", "HEAD") and not any(told):
            # Every browser of today says where it comes from; one of before 2019 may not.
            raise Refused(
                _FOREIGN_PAGE, "403: This browser does not say which page sends this. Is it old?"
            )
        # Browsers send no Sec-Fetch-Site to an address without TLS, nor Origin with a link.
        for page in (*fields.all("Origin"), *fields.all("Referer")):
            if not _is_on(page.strip(), host):
                raise Refused(
                    _FOREIGN_PAGE, "403: A page of another site may not use this jobserver."
                )

    def _is_ours(self, host: str) -> bool:
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:  # such as "["
            return False
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return name.rstrip(".") in self._hosts
        return True


def _is_on(page: str, host: str) -> bool:
    """Whether an origin or the address of a page is on `host`, which includes the port."""
    try:
        parts = urllib.parse.urlsplit(page)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def read_password(path: Path) -> bytes:
    """Return the password in the file at `path`.

    Raises `StartupError` when there is none, or when somebody else could read or change it.
    """
    try:
        return read_password_file(path)
    except ValueError as error:
        raise StartupError(f"--password-file {error}") from None


def make_tls(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """Return the context for TLS, or None without a certificate. Raises `StartupError`."""
    if certfile is None:
        if keyfile is not None:
            raise StartupError("--keyfile needs --certfile beside it")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Never asks for a passphrase: nobody would be there to give it.
        context.load_cert_chain(certfile, keyfile, password=lambda: "")
    except (OSError, ValueError) as error:
        raise StartupError(
            f"--certfile {certfile} and --keyfile {keyfile or certfile} cannot be used: {error}"
        ) from None
    return context


def _own_names() -> set[str]:
    """Return the names of this machine; the one that the resolver knows may be added later.

    It is asked in a thread, since it can neither be interrupted nor given a limit.
    """
    name = socket.gethostname().lower()
    names = {"localhost", name, name.partition(".")[0]}

    def ask() -> None:
        with contextlib.suppress(OSError):  # nobody knows another name
            names.add(socket.getfqdn().lower())

    thread = threading.Thread(target=ask, name="jobserver-own-name", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread to be had: it is only one name fewer
        thread.start()
        thread.join(_RESOLVER_LIMIT)
    return names


def user_name(user: int) -> str:
    """Return the name of a user, or a number where none is known."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _given_password(head: http1.RequestHead) -> bytes:
    """Return the digest of the password that a request carries (RFC 7617), empty if none."""
    scheme, _, credentials = (head.fields.get("Authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        _, _, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except ValueError:
        return b""
    return _digest(_as_utf8(password))


def _as_utf8(password: bytes) -> bytes:
    """Return a password as its file has it: aiohttp sends Latin-1, and RFC 7617 allows either."""
    try:
        password.decode("utf-8")
    except UnicodeDecodeError:
        return password.decode("latin-1").encode("utf-8")
    return password


def _digest(password: bytes) -> bytes:
    """Return a value of fixed length to compare, so that the time tells nothing of the length."""
    return hashlib.sha256(password).digest()


def log_access(line: str, exposed: bool) -> None:
    """Say at start-up who can reach the server; loudly, when that is not the owner alone."""
    if exposed:
        _log.warning("OPEN: %s", line)
    else:
        _log.info("%s", line)
