"""The two addresses of ``localhost``: who listens at one keeps others from the other.

A browser that is given ``localhost`` tries both, each time anew. Somebody who had the other one
could give it a page, go away, and have that page read from us under the very name that it came by
(DNS rebinding without any DNS). So it is with the machine's own name, where that has addresses of
both kinds and the server listens at all of one kind.
"""

import errno
import ipaddress
import socket
from typing import Final

_OTHERS: Final = {
    "127.0.0.1": ["::1"],
    "::1": ["127.0.0.1"],
    "0.0.0.0": ["::", "::1"],  # if somebody has one of the others, at least that of localhost
}


def hold_other(address: str, port: int) -> socket.socket | None:
    """Take `port` of the other loopback address, without listening there, so that it refuses.

    `address` is what the server listens at; with all of IPv4 all of IPv6 is held. Returns None
    where there is nothing to hold: neither is listened at, or both are, or there is no other.
    Raises OSError when somebody has it.
    """
    ours = ipaddress.ip_address(address)
    if ours.is_loopback:
        address = "127.0.0.1" if ours.version == 4 else "::1"
    *first, last = _OTHERS.get(address, [""])
    for other in first:
        try:
            return _hold(other, port)
        except OSError:
            continue
    return _hold(last, port) if last else None


def _hold(other: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    try:
        # Without SO_REUSEADDR: it is not to be shared with who sets that.
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind((other, port))
        except BaseException:
            held.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise
        return None
    return held
