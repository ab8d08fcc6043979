"""The two addresses of ``localhost``: who listens at one keeps others from the other.

A browser that is given ``localhost`` tries both, each time anew. Somebody who had the other one
could give it a page, go away, and have that page read from us under the very name that it came by
(DNS rebinding without any DNS).
"""

import errno
import ipaddress
import socket
from typing import Final

_OTHER: Final = {4: (socket.AF_INET6, "::1"), 6: (socket.AF_INET, "127.0.0.1")}


def hold_other(address: str, port: int) -> socket.socket | None:
    """Take `port` of the other loopback address, without listening there, so that it refuses.

    `address` is what the server listens at. Returns None where there is nothing to hold: neither is
    listened at, or both are, or there is no other. Raises OSError when somebody has it.
    """
    ours = ipaddress.ip_address(address)
    reached = ours.is_loopback or (ours.version == 4 and ours.is_unspecified)
    if not reached:
        return None
    family, other = _OTHER[ours.version]
    try:
        # Without SO_REUSEADDR: it is not to be shared with who sets that.
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            held.bind((other, port))
        except BaseException:
            held.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise
        return None
    return held
