"""The figures that are promised: defaults as they are, and times as this machine allows."""

import contextlib
import dataclasses
import os
import signal
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from seamless_jobserver import cli
from seamless_jobserver.processtree import ProcessId
from seamless_jobserver.server import connection
from seamless_jobserver.server.service import Policy
from tests.machine import WORKERS_IMPORTS, assert_prompt, stretched
from tests.stack import PATIENCE, wait_until
from tests.test_faults import Faults

# What the command sets when it is told nothing.
OPTIONS = {
    "max_body": 64 * 2**20,
    "max_connections": 1024,
    "input_timeout": 60.0,
    "store_timeout": 600.0,
    "grace": 5.0,
    "memory_limit": None,
    "job_timeout": None,
    "reclaim_canceled": False,
}
POLICY = {"failure_memory": 3.0, "abandoned_after": 60.0}


class Defaults(unittest.TestCase):
    def test_they_are_what_is_promised(self):
        ours = [name for name in os.environ if name.startswith("SEAMLESS_JOBSERVER_")]
        with mock.patch.dict(os.environ):
            for name in ours:
                del os.environ[name]
            values = cli._parse([])
        for name, expected in OPTIONS.items():
            with self.subTest(name):
                self.assertEqual(values[name], expected)
        self.assertEqual(values["ports"], range(5533, 5534))
        self.assertEqual((values["workers"], values["timeout"]), (1, None))
        policy = {field.name: field.default for field in dataclasses.fields(Policy)}
        for name, expected in POLICY.items():
            with self.subTest(name):
                self.assertEqual(policy[name], expected)
        self.assertEqual(connection.REQUEST_LIMIT, 30.0)
        self.assertEqual(connection.IDLE_LIMIT, 75.0)
        self.assertEqual(connection.PROCESSING_INTERVAL, 20.0)


class Promptness(Faults):
    def test_a_death_is_told_within_a_second_and_the_slot_is_back_within_two(self):
        server = self.start()
        died = self.home / "died"
        code = (
            "def f(a):\n    import os, time\n"
            f"    with open({str(died)!r}, 'w') as file: print(time.monotonic(), file=file)\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        self.await_workers(server, 1)
        numbers = iter(range(100))

        def measure():
            number = next(numbers)
            request = self.store.request(code, a=number)
            answer = server.run(request)
            told = time.monotonic()
            self.assertIn("signal 9 SIGKILL", answer.text)
            self.await_workers(server, number + 2)
            back = time.monotonic()
            death = float(died.read_text())
            return {"told": told - death, "back": back - death}

        bounds = {
            "told": lambda: stretched(1.0, 20),
            # A new worker is an interpreter that imports what the old one had.
            "back": lambda: stretched(2.0, 4, WORKERS_IMPORTS),
        }
        assert_prompt(self, measure, bounds)

    def kill_guardian(self, server):
        """Kill the process that would end the workers, so that they do it by themselves."""
        for process in server.everything_below():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                if b"processtree.py" in command:
                    os.kill(process.pid, signal.SIGKILL)
                    return
        self.fail("there is no guardian")

    def test_workers_end_by_themselves_within_two_seconds_when_the_server_is_killed(self):
        def measure():
            # Nobody is left to remove what the server keeps there.
            server = self.start(workers=2, env={"TMPDIR": str(self.directory)})
            self.await_workers(server, 2)
            before = self.runs()
            with ThreadPoolExecutor(1) as caller:
                answer = caller.submit(server.run, self.gated())
                self.await_run(before + 1)
                workers = [ProcessId.of(pid) for pid in self.worker_pids(server)]
                self.kill_guardian(server)
                server.kill()
                killed = time.monotonic()
                wait_until(lambda: not any(worker.alive for worker in workers), "they are gone")
                ended = time.monotonic()
                self.assertIsInstance(answer.exception(PATIENCE), OSError)
            return {"gone": ended - killed}

        assert_prompt(self, measure, {"gone": lambda: stretched(2.0, 20)})


del Faults  # it is no test itself
