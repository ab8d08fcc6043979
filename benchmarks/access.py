"""What the check of the user costs: connections and kept-alive requests with it and without.

``python benchmarks/access.py``; prints medians in milliseconds: of the check alone, and of servers
that take turns.
"""

import contextlib
import http.client
import socket
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from seamless_jobserver.server.access import AccessRules, Gate
from tests.stack import Jobserver, temporary_directory

ROUNDS = 3000


def connect(port: int) -> float:
    """Return the seconds that a request on a new connection takes."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/healthcheck")
    connection.getresponse().read()
    connection.close()
    return time.perf_counter() - begun


def again(connection: http.client.HTTPConnection) -> float:
    """Return the seconds that a further request on a connection takes."""
    begun = time.perf_counter()
    connection.request("GET", "/healthcheck")
    connection.getresponse().read()
    return time.perf_counter() - begun


def check() -> list[float]:
    """Return the seconds that the gate takes for each of many connections of the owner."""
    gate = Gate(AccessRules())
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(ROUNDS):
            with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
                begun = time.perf_counter()
                gate.admit(accepted)
                taken.append(time.perf_counter() - begun)
    return taken


def main() -> None:
    """Measure and print."""
    print(f"the check alone: {1000 * statistics.median(check()):.3f} ms")
    with temporary_directory() as directory, contextlib.ExitStack() as stack:
        servers = {}
        for access in ("owner", "any"):
            servers[access] = Jobserver(directory / access, {}, flags=("--access", access))
            stack.callback(servers[access].stop)
        kept = {
            access: http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            for access, server in servers.items()
        }
        new: dict[str, list[float]] = {access: [] for access in servers}
        further: dict[str, list[float]] = {access: [] for access in servers}
        for _ in range(ROUNDS):
            for access, server in servers.items():
                new[access].append(connect(server.port))
                further[access].append(again(kept[access]))
        for name, figures in (("new connection", new), ("kept-alive request", further)):
            owner, anybody = (1000 * statistics.median(figures[a]) for a in ("owner", "any"))
            print(
                f"{name}: checked {owner:.3f} ms, unchecked {anybody:.3f} ms, "
                f"added {owner - anybody:.3f} ms"
            )


if __name__ == "__main__":
    main()
