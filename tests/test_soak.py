"""Thousands of jobs, crashes and cancellations: what the server and its workers hold stays flat.

In CI a tenth; ``python -m tests.test_soak 1`` does all of it and prints a table for the docs.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seamless_jobserver.processtree import descendants
from seamless_jobserver.server.journal import HISTORY
from tests.constants import constants
from tests.machine import may_mount, memory_of
from tests.stack import (
    JOBSERVER,
    PATIENCE,
    Jobserver,
    Store,
    run_request,
    temporary_directory,
    wait_until,
)

SMALL, LARGE, CRASHES, CANCELS = 30_000, 500, 200, 200
"""How many jobs of each kind; `part` of them are run."""
WORKERS = 2
CODE = {
    "small": "def f(a):\n    return a\n",
    "large": "def f(a):\n    return a.content[::-1]\n",
    "crash": "def f(a):\n    import os\n    os._exit(1)\n",
    # It cannot end before it has been canceled: only then is the file made.
    "cancel": (
        "def f(a):\n    import os, time\n"
        "    while not os.path.exists(a): time.sleep(0.005)\n    return a\n"
    ),
}
# How much more there may be at the end than when the history was full; bytes and numbers.
GROWTH = {
    "server": 3e6,
    "workers": 30e6,
    "descriptors": 8,
    "threads": 4,
    "processes": 0,
    "files": 0,
    "shared memory": 0,
}
# A mount namespace in which shared memory is the server's alone; the process keeps its id.
ALONE = """#!/bin/sh
exec unshare -m sh -c 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"' {command} "$@"
"""
# What Python's multiprocessing makes there, for where it cannot be had alone.
OF_PYTHON = re.compile(r"(sem\.mp-|psm_)")


class Soak:
    """A server with everything that it needs, and jobs to keep it busy."""

    def __init__(self, directory, part):
        self.part = part
        self.store = Store(directory / "store")
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.gates = directory / "gates"
        self.gates.mkdir()
        self.alone = may_mount()
        # The status page's, which grows until it is full: no longer than in the whole of it.
        self.history = int(HISTORY * part)
        self.server = Jobserver(
            directory / "jobserver",
            self.store.parameters(read_folder=True),
            workers=WORKERS,
            flags=("--cache-size", "16M"),
            env={
                "TMPDIR": str(self.temporary),
                **constants(directory, {"server.journal.HISTORY": self.history}),
            },
            command=self.command(directory / "alone"),
        )
        self.codes = {
            kind: self.put(code.encode(), read_folder=False) for kind, code in CODE.items()
        }
        self.rows = []
        self.done = dict.fromkeys(CODE, 0)

    def command(self, script):
        """Return what starts the server, where possible with shared memory of its own."""
        if not self.alone:
            return None
        script.write_text(ALONE.format(command=JOBSERVER))
        script.chmod(0o755)
        return str(script)

    def stop(self):
        self.server.stop()
        self.store.stop()

    def put(self, content, *, read_folder=True):
        """Put a buffer where the workers find it: by hand, which is faster than a server."""
        if not read_folder:
            return self.store.put(content)
        checksum = hashlib.sha256(content).hexdigest()
        folder = self.store.buffers / checksum[:2]
        folder.mkdir(exist_ok=True)
        (folder / checksum).write_bytes(content)
        return checksum

    def gate(self, number):
        return self.gates / str(number)

    def request(self, kind, number):
        transformation = {
            "__language__": "python",
            "__output__": ["result", "bytes" if kind == "large" else "plain", None],
            "code": ["python", "transformer", self.codes[kind]],
        }
        if kind == "large":
            content = (str(number).encode() + b" ") * (5_000_000 // (len(str(number)) + 1))
            transformation["a"] = ["bytes", None, self.put(content)]
        else:
            value = str(self.gate(number)) if kind == "cancel" else number
            transformation["a"] = ["plain", None, self.put(f"{json.dumps(value)}\n".encode())]
        return run_request(transformation)

    def one(self, kind, number):
        """Run a job, on a connection of its own, and see that it ends as it should."""
        request = self.request(kind, number)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/run-transformation", json.dumps(request))
            if kind == "cancel":
                checksum = request["tf_checksum"]
                try:
                    wait_until(lambda: self.server.cancel(checksum)["canceled"], "it is canceled")
                finally:
                    self.gate(number).touch()
            try:
                answer = connection.getresponse()
            except TimeoutError:
                seen = self.server.request("GET", f"/jobs/{request['tf_checksum']}").text
                log = self.server.log[-5000:]
                raise AssertionError(f"{kind} {number} is stuck: {seen}\n{log}") from None
            text = answer.read().decode()
        expected = 500 if kind == "crash" else 200
        if answer.status != expected:
            raise AssertionError(f"{kind} {number}: {answer.status} {text}")
        if kind == "large":
            # The disk is not what is tried here.
            for checksum in (
                request["transformation_dict"]["a"][2],
                json.loads(text)["result_checksum"],
            ):
                for path in (self.store.buffers / checksum[:2]).glob(checksum):
                    path.unlink()

    def batch(self, start, end):
        """Run the jobs that lie between two parts of the whole, from 0 to 1, all kinds mixed."""
        jobs = []
        for kind, count in zip(CODE, (SMALL, LARGE, CRASHES, CANCELS), strict=True):
            total = int(count * self.part)
            for number in range(int(total * start), int(total * end)):
                # Spread over the batch: crashes at once would only be crashes in a row.
                jobs.append((number / total, kind, number))
                self.done[kind] += 1
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda job: self.one(*job[1:]), sorted(jobs)))
        self.settle()
        self.rows.append(self.look())

    def settle(self):
        """Wait until every worker is there and has nothing to do."""
        for number in range(2 * WORKERS):
            self.one("small", -1 - number - 100 * len(self.rows))
        wait_until(lambda: len(self.workers()) == WORKERS, "all workers are there")
        wait_until(lambda: self.states() == WORKERS * ["idle"], "all workers are ready")

    def states(self):
        # Without the jobs that have ended: what a long answer takes would be counted.
        status = self.server.request("GET", f"/status?after={10**6}").json
        return [worker["state"] for worker in status["workers"]]

    def workers(self):
        found = []
        for pid in descendants(self.server.process.pid):
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def look(self):
        pids = [self.server.process.pid, *self.workers()]
        below = descendants(self.server.process.pid)
        return {
            **self.done,
            "server": memory_of(pids[0]),
            "workers": sum(map(memory_of, pids[1:])),
            "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
            "processes": len(below),
            "files": len(list(self.temporary.rglob("*"))),
            "shared memory": self.shared_memory(),
        }

    def shared_memory(self):
        if self.alone:
            return len(os.listdir(f"/proc/{self.server.process.pid}/root/dev/shm"))
        return sum(map(bool, map(OF_PYTHON.match, os.listdir("/dev/shm"))))

    def run(self):
        """Run all of it in tenths, and return what was seen early and at the end.

        Early is when the history is as long as it becomes.
        """
        for tenth in range(10):
            self.batch(tenth / 10, (tenth + 1) / 10)
        full = (row for row in self.rows if sum(row[kind] for kind in CODE) >= self.history)
        return next(full), self.rows[-1]


def table(rows):
    """Return `rows` as a table for the docs."""
    names = list(rows[0])
    cells = [names] + [
        [
            f"{row[name] / 1e6:.1f} MB" if name in ("server", "workers") else str(row[name])
            for name in names
        ]
        for row in rows
    ]
    widths = [max(len(row[index]) for row in cells) for index in range(len(names))]
    bar = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join([bar, lines[0], bar, *lines[1:], bar])


class Flat(unittest.TestCase):
    def test_nothing_grows_with_the_number_of_jobs_crashes_and_cancellations(self):
        with temporary_directory() as directory:
            soak = Soak(directory, 0.1)
            try:
                first, last = soak.run()
            finally:
                soak.stop()
            for name, more in GROWTH.items():
                with self.subTest(name):
                    self.assertLessEqual(last[name], first[name] + more, table(soak.rows))


def main(part):
    """Run so much of it, print the table, and return an exit code."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(directory, part)
    try:
        first, last = soak.run()
    finally:
        soak.stop()
        print(table(soak.rows) if soak.rows else "nothing was run")
        shutil.rmtree(directory, ignore_errors=True)
    return int(any(last[name] > first[name] + more for name, more in GROWTH.items()))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
