"""What ten open status pages cost: jobs a second with them and without, and the time of one poll.

``python benchmarks/watching.py [ROUNDS]``, on a machine that does nothing else. On one server,
rounds with pages and rounds without take turns, each pair in the other order than the one before,
so that what drifts meanwhile meets both alike. The pages are open, and know all so far, before a
round begins. They are in a process of their own, which does little with what it gets: what a
browser makes of it takes the time of somebody's desk, not of this machine.

What ten pages cost is less than what one round differs from the next. So a hundred are opened, and
the server looks around ten times as often for them as it does; a tenth of what that costs is told.

What counts is the ratio within each pair: the verdict is on the median of those, with the range in
which it lies by the order of the ratios (95 %, the interval of the sign test). The exit code is 1
when the cost is shown to be over 1 %.
"""

import contextlib
import http.client
import json
import math
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from seamless_jobserver.server.overview import FRESH, MEMORY_FRESH
from tests.constants import constants
from tests.stack import Jobserver, Store, temporary_directory

PAGES = 10
TIMES = 10
"""So many times the pages, and so many times the looks, are measured."""
INTERVAL = 3.0
"""Seconds between the polls of a page (``page/poller.js``)."""
CALLERS = 4
JOBS = 1000
ROUNDS = 20
ALLOWED = 0.01
"""The share of the throughput that the pages may cost."""
POLLS = 1000
LATEST = re.compile(rb'"latest": ([0-9]+)')
LENGTH = re.compile(rb"content-length: *([0-9]+)", re.I)
CHUNK = 2**20
CODE = "def f(a):\n    return a + 1\n"


def watch(port: int) -> None:
    """Poll as so many open pages do, on connections that are kept, until standard input ends.

    A line on standard output says that each of them knows all there is.
    """
    pages = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(PAGES * TIMES)]
    latest = [poll(page, 0) for page in pages]
    print("open", flush=True)
    turn = 0
    due = time.monotonic()
    while True:
        due += INTERVAL / len(pages)
        if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            return
        latest[turn] = poll(pages[turn], latest[turn])
        turn = (turn + 1) % len(pages)


def poll(page: socket.socket, latest: int) -> int:
    """Ask for news once, and return up to where they go.

    On a bare socket, since what a client costs is not to be measured.
    """
    page.sendall(b"GET /status?after=%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % latest)
    answer = piece = page.recv(CHUNK)
    while b"\r\n\r\n" not in answer:
        assert piece, "the server has closed a connection"
        piece = page.recv(CHUNK)
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    found = LENGTH.search(head)
    assert found is not None, head
    parts, left = [body], int(found[1]) - len(body)
    while left:
        parts.append(page.recv(CHUNK))
        left -= len(parts[-1])
        assert parts[-1], "the server has closed a connection"
    news = LATEST.search(b"".join(parts))
    assert news is not None, head
    return int(news[1])


def jobs_a_second(server: Jobserver, requests: list[bytes]) -> float:
    """Have `requests` run, and return how many of them a second."""

    def call(some: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for request in some:
            connection.request("GET", "/run-transformation", request)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
        connection.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, [requests[number::CALLERS] for number in range(CALLERS)]))
    return len(requests) / (time.perf_counter() - begun)


def processor_seconds(pid: int) -> float:
    """Return what a process has used of a processor (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return between which of the ratios their true median lies, at 95 % (sign test)."""
    count = len(ratios)
    ordered = sorted(ratios)
    rank, tail = 0, 0.0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if 2 * tail > 0.05:
            break
        rank += 1
    first = max(0, rank - 1)
    return ordered[first], ordered[count - 1 - first]


def measure(server: Jobserver, requests: list[bytes], *, watched: bool) -> float:
    """Return the jobs a second, while pages are open or while none is."""
    if not watched:
        return jobs_a_second(server, requests)
    with subprocess.Popen(
        [sys.executable, __file__, "watch", str(server.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as pages:
        assert pages.stdin is not None
        assert pages.stdout is not None
        assert pages.stdout.readline() == b"open\n", "the pages could not be opened"
        found = jobs_a_second(server, requests)
        assert pages.poll() is None, "the pages have ended meanwhile"
        pages.stdin.close()
    assert pages.returncode == 0, "the pages have failed"
    return found


def main(rounds: int) -> int:
    """Measure and print; return the exit code."""
    with temporary_directory() as directory:
        looks = {
            "server.overview.FRESH": FRESH / TIMES,
            "server.overview.MEMORY_FRESH": MEMORY_FRESH / TIMES,
        }
        with contextlib.ExitStack() as stack:
            store = Store(directory / "store")
            stack.callback(store.stop)
            server = Jobserver(
                directory / "jobserver",
                store.parameters(read_folder=True),
                workers=2,
                env=constants(directory, looks),
            )
            stack.callback(server.stop)
            requests = [json.dumps(store.request(CODE, a=a)).encode() for a in range(JOBS)]
            jobs_a_second(server, requests)
            ratios, alone = [], []
            for number in range(rounds):
                order = (False, True) if number % 2 == 0 else (True, False)
                found = {watched: measure(server, requests, watched=watched) for watched in order}
                alone.append(found[False])
                ratios.append(1 - (1 - found[True] / found[False]) / TIMES)
            with socket.create_connection(("127.0.0.1", server.port), 60) as page:
                latest = poll(page, 0)
                before = processor_seconds(server.process.pid)
                for _ in range(POLLS):
                    latest = poll(page, latest)
            each = (processor_seconds(server.process.pid) - before) / POLLS
    low, high = interval(ratios)
    cost = 1 - statistics.median(ratios)
    print(
        f"{PAGES} pages, {rounds} pairs of rounds of {JOBS} jobs, "
        f"{statistics.median(alone):.1f} jobs a second alone"
    )
    print(
        f"cost in throughput: {100 * cost:.2f} % (95 %: {100 * (1 - high):.2f} to "
        f"{100 * (1 - low):.2f} %)"
    )
    share = each * PAGES / INTERVAL
    print(f"a poll: {1000 * each:.2f} ms of a processor; {PAGES} pages: {100 * share:.2f} % of one")
    if 1 - low <= ALLOWED:
        verdict = f"under {100 * ALLOWED:g} %"
    elif 1 - high > ALLOWED:
        verdict = f"over {100 * ALLOWED:g} %"
    else:
        verdict = (
            f"not decided whether under {100 * ALLOWED:g} %: more rounds, or a quieter machine"
        )
    print(f"verdict: {verdict}")
    return 1 if 1 - high > ALLOWED else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        watch(int(sys.argv[2]))
    else:
        # With fewer pairs than six there is no interval of 95 %.
        raise SystemExit(main(max(6, int(sys.argv[1])) if len(sys.argv) > 1 else ROUNDS))
