"""What ten open status pages cost: jobs a second with them and without, and the time of one poll.

``python benchmarks/watching.py``; prints medians of rounds that take turns on one server.
"""

import http.client
import json
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.stack import Jobserver, Store, temporary_directory

PAGES = 10
INTERVAL = 2.0
"""Seconds between the polls of a page (``page/feed.js``)."""
CALLERS = 4
JOBS = 400
ROUNDS = 10
POLLS = 1000
CODE = "def f(a):\n    return a + 1\n"


class Page(threading.Thread):
    """Polls as the page in a browser does, on a connection that is kept."""

    def __init__(self, port: int, over: threading.Event, delay: float) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._over = over
        self._delay = delay

    def run(self) -> None:
        """Poll until it is over."""
        latest = 0
        self._over.wait(self._delay)
        while not self._over.is_set():
            latest = poll(self._connection, latest)
            self._over.wait(INTERVAL)
        self._connection.close()


def poll(connection: http.client.HTTPConnection, latest: int) -> int:
    """Ask for news once."""
    connection.request("GET", f"/status?after={latest}")
    return int(json.loads(connection.getresponse().read())["latest"])


def jobs_a_second(server: Jobserver, requests: list[bytes]) -> float:
    """Have `requests` run, and return how many of them a second."""

    def call(some: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for request in some:
            connection.request("GET", "/run-transformation", request)
            connection.getresponse().read()
        connection.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, [requests[number::CALLERS] for number in range(CALLERS)]))
    return len(requests) / (time.perf_counter() - begun)


def processor_seconds(pid: int) -> float:
    """Return what a process has used of a processor (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    """Measure and print."""
    with temporary_directory() as directory:
        store = Store(directory / "store")
        server = Jobserver(directory / "jobserver", store.parameters(read_folder=True), workers=2)
        try:
            requests = [json.dumps(store.request(CODE, a=a)).encode() for a in range(JOBS)]
            jobs_a_second(server, requests)
            found: dict[bool, list[float]] = {False: [], True: []}
            for number in range(2 * ROUNDS):
                watched = number % 2 == 1
                over = threading.Event()
                pages = [
                    Page(server.port, over, INTERVAL * page / PAGES)
                    for page in range(PAGES if watched else 0)
                ]
                for page in pages:
                    page.start()
                found[watched].append(jobs_a_second(server, requests))
                over.set()
                for page in pages:
                    page.join()
            alone, watched_by_ten = (statistics.median(found[one]) for one in (False, True))
            print(
                f"jobs a second: alone {alone:.1f}, with {PAGES} pages {watched_by_ten:.1f}, "
                f"ratio {watched_by_ten / alone:.3f}"
            )
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            latest = poll(connection, 0)
            before = processor_seconds(server.process.pid)
            for _ in range(POLLS):
                latest = poll(connection, latest)
            each = (processor_seconds(server.process.pid) - before) / POLLS
            share = 100 * each * PAGES / INTERVAL
            print(
                f"a poll: {1000 * each:.2f} ms of a processor; {PAGES} pages: {share:.2f} % of one"
            )
        finally:
            server.stop()
            store.stop()


if __name__ == "__main__":
    main()
