"""Who owns the other end of a TCP connection from this machine. The kernel knows; it is asked.

`SO_PEERCRED` works for unix sockets only. For TCP the owner of a socket is asked for by its exact
pair of addresses (sock_diag(7)), a lookup in the kernel's hash table, whatever its size; where that
is not to be had, the table in ``/proc/net/tcp`` and ``tcp6`` is read (proc_pid_net(5)).

What makes the answer trustworthy (the rules of this module):

- It counts only for a socket that has a file (its inode is not 0). Kernels report user 0 for one
  that has none: not accepted yet, closed already, or waiting out its TIME_WAIT.
- It counts only in a state in which the other end of *our* connection can be. A connection attempt
  that happens to use the same pair of addresses is in another.
- It counts only if our own end is still connected *after* the lookup. While it is, nobody else can
  have that pair of addresses. Once it is reset, the port of the client that has gone is free, and
  another user's new connection could be taken for the old one, of which bytes may still be unread.
- A user that the kernel cannot name (another user namespace) appears as the overflow user. So a
  server that runs as that user cannot tell anybody apart.
- A socket in another network namespace is not found, although its address may be local.

An IPv4 client of a dual-stack listener appears with an IPv4-mapped address, and its socket is an
IPv4 one; a client may also have an IPv6 socket with a mapped address. The kernel finds either by
the IPv4 pair.
"""

import enum
import errno
import functools
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_NOCOOKIE: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI")
_ADDRESSES: Final = struct.Struct("!HH16s16s")
_SCOPE_AND_COOKIE: Final = struct.Struct("=III")
_ANSWER: Final = struct.Struct("=BBxx")
_OWNER: Final = struct.Struct("=IIIII")
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system says when it has no more descriptors or memory for sockets at the moment."""
_LIMIT: Final = 1.0
"""Seconds for the kernel to answer, which it does before the question's system call returns."""

_ESTABLISHED: Final = 1
_CONNECTED_PEER: Final = frozenset({_ESTABLISHED, 4, 5})
"""ESTABLISHED, FIN_WAIT1, FIN_WAIT2 (include/net/tcp_states.h): it may have stopped sending."""
_CONNECTED_OURS: Final = frozenset({_ESTABLISHED, 8})
"""ESTABLISHED, CLOSE_WAIT."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unknown(Exception):
    """The kernel does not tell who owns a socket; the message says why, for a person."""


class Endpoint(NamedTuple):
    """One end of a connection. `scope` is the interface of a link-local address, else 0."""

    address: Address
    port: int
    scope: int = 0

    @classmethod
    def of(cls, name: tuple[Any, ...]) -> "Endpoint":
        """Return the endpoint that ``getpeername`` or ``getsockname`` calls `name`."""
        return cls(_address(name[0]), int(name[1]), int(name[3]) if len(name) > 3 else 0)


@functools.lru_cache(256)
def _address(text: str) -> Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


class _Socket(NamedTuple):
    """What the kernel says of a socket."""

    state: int
    user: int
    inode: int


class Source(enum.Enum):
    """Where the kernel is asked."""

    NETLINK = "sock_diag"
    PROC = "/proc/net/tcp"


def owner(connection: socket.socket, source: Source) -> int:
    """Return the user id of the process at the other end of `connection`, from this machine.

    Raises `Unknown`, and then nothing is known; OSError for `SHORTAGE`.
    """
    try:
        peer, ours = Endpoint.of(connection.getpeername()), Endpoint.of(connection.getsockname())
    except OSError as error:
        raise Unknown(f"the connection has ended ({error.strerror})") from None
    found = (_ask_kernel if source is Source.NETLINK else _read_table)(peer, ours)
    if found is None:
        raise Unknown("its socket is not in this network namespace, or has been closed")
    if not found.inode:
        raise Unknown("its socket has been closed")
    if found.state not in _CONNECTED_PEER:
        raise Unknown("its socket is not the other end of this connection")
    if _state(connection) not in _CONNECTED_OURS:
        raise Unknown("the connection has ended meanwhile")
    return found.user


def find_source() -> Source:
    """Return where this machine tells owners of sockets, tried on a connection to ourselves.

    Raises `Unknown` when it tells nowhere, or could not tell other users from ours.
    """
    if os.geteuid() == _overflow_user():
        raise Unknown(
            f"this process runs as user {os.geteuid()}, as which the kernel shows everybody whom "
            "it cannot name"
        )
    reasons = []
    for source in Source:
        try:
            seen = _own_user_seen(source)
        except (Unknown, OSError) as error:
            reasons.append(f"{source.value}: {error}")
            continue
        if seen == os.geteuid():
            return source
        reasons.append(f"{source.value}: it says {seen} for user {os.geteuid()}")
    raise Unknown("; ".join(reasons))


def is_local(address: Address, scope: int = 0) -> bool:
    """Whether `address` belongs to this machine: a socket can be bound to it.

    Where the system binds to foreign addresses too (``ip_nonlocal_bind``) all count as local, and
    are then looked for and not found, which is the safe mistake. Raises `Unknown` when it cannot be
    found out: the kernel is not asked about whoever is taken for foreign, so that no other failure,
    such as a lack of descriptors, may look like that. Raises OSError for `SHORTAGE`.
    """
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    name: tuple[Any, ...] = (
        (str(address), 0) if address.version == 4 else (str(address), 0, 0, scope)
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(name)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return False
        if error.errno in SHORTAGE:
            raise
        raise Unknown(f"no socket can be bound to its address ({error.strerror})") from None
    return True


def _own_user_seen(source: Source) -> int:
    """Return whom `source` takes the owner of a socket of ours for."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        listener.settimeout(_LIMIT)
        with socket.create_connection(listener.getsockname(), timeout=_LIMIT):
            accepted, _ = listener.accept()
            with accepted:
                return owner(accepted, source)


def _overflow_user() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


def _state(connection: socket.socket) -> int:
    """Return the TCP state of a socket of ours: the first byte of TCP_INFO (tcp(7))."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _ask_kernel(one: Endpoint, other: Endpoint) -> _Socket | None:
    """Return the socket at `one` that is connected to `other`, by sock_diag(7), or None."""
    family = socket.AF_INET if one.address.version == 4 else socket.AF_INET6
    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
        + _ADDRESSES.pack(one.port, other.port, _packed(one.address), _packed(other.address))
        + _SCOPE_AND_COOKIE.pack(one.scope, _NOCOOKIE, _NOCOOKIE)
    )
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_LIMIT)
            netlink.sendto(head + body, (0, 0))
            answer = netlink.recv(4096)
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        raise Unknown(f"the kernel does not answer ({error.strerror or error})") from None
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        if -number == errno.ENOENT:  # there is no such socket
            return None
        raise Unknown(f"the kernel refuses to answer ({os.strerror(-number)})")
    offset = _HEADER.size
    found, state = _ANSWER.unpack_from(answer, offset)
    offset += _ANSWER.size
    port, other_port, address, other_address = _ADDRESSES.unpack_from(answer, offset)
    offset += _ADDRESSES.size + _SCOPE_AND_COOKIE.size
    _, _, _, user, inode = _OWNER.unpack_from(answer, offset)
    ends = _unpacked(found, address), port, _unpacked(found, other_address), other_port
    if ends != (one.address, one.port, other.address, other.port):
        # The lookup falls back to a socket that listens at the address.
        return None
    return _Socket(state, user, inode)


def _packed(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _unpacked(family: int, packed: bytes) -> Address:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(packed[:4])
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address


def _read_table(one: Endpoint, other: Endpoint) -> _Socket | None:
    """Return the same as `_ask_kernel`, by reading the table of all connections."""
    readable = False
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as table:
                next(table, None)
                for line in table:
                    found = _row(line)
                    if found is not None and found[:2] == (one[:2], other[:2]):
                        return found[2]
                readable = True
        except OSError:
            continue
    if not readable:
        raise Unknown("/proc/net/tcp cannot be read")
    return None


def _row(line: str) -> tuple[tuple[Address, int], tuple[Address, int], _Socket] | None:
    words = line.split()
    if len(words) < 10:
        return None
    socket_ = _Socket(int(words[3], 16), int(words[7]), int(words[9]))
    return _table_end(words[1]), _table_end(words[2]), socket_


def _table_end(text: str) -> tuple[Address, int]:
    digits, _, port = text.partition(":")
    # Each 32-bit word of the address is printed as a number of this machine's byte order.
    words = [int(digits[index : index + 8], 16) for index in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return _unpacked(family, packed), int(port, 16)
