"""The worst days: workers die, stores are away, inputs do not come, callers go, limits are met.

On real processes, with the server, its workers, the store and the database as they are.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp

from seamless_jobserver.processtree import ProcessId
from seamless_jobserver.server.workers import TERMINATION_LIMIT
from tests.constants import constants
from tests.machine import may_mount, stretched
from tests.scripted_server import ScriptedServer
from tests.stack import (
    JOBSERVER,
    PATIENCE,
    Jobserver,
    Store,
    transformation_buffer,
    wait_until,
)
from tests.test_running import ADD, OnAStore

TRACE = "    open({path!r}, 'a').write('x')\n"
"""Leaves a mark for each run of a job."""
UNTIL = (
    "    import os, time\n"
    "    print('begun', flush=True)\n"
    "    while not os.path.exists({gate!r}): time.sleep(0.01)\n"
)

# How a job takes its worker down: the code, and what its caller must read.
WAYS_TO_DIE = {
    "killed": (
        "import signal; os.kill(os.getpid(), signal.SIGKILL)",
        ("signal 9 SIGKILL", "somebody killed it"),
    ),
    "segmentation fault": (
        "import ctypes; ctypes.string_at(0)",
        ("signal 11 SIGSEGV", "compiled code"),
    ),
    "abort": ("os.abort()", ("signal 6 SIGABRT", "compiled code")),
    "exit": ("os._exit(7)", ("exit code 7", "os._exit")),
    "exit, with a forked child that goes on": (
        "child = os.fork()\n    if not child: time.sleep(600)\n    os._exit(7)",
        ("exit code 7", "os._exit"),
    ),
    "killed, with a pool of processes": (
        "import multiprocessing, signal; pool = multiprocessing.get_context('fork').Pool(3); "
        "os.kill(os.getpid(), signal.SIGKILL)",
        ("signal 9 SIGKILL", "somebody killed it"),
    ),
    "terminated": (
        "import signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
        ("signal 15 SIGTERM", "somebody ended it"),
    ),
    "too much processor time": (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (0, 9))\n    while True: pass",
        ("signal 24 SIGXCPU", "ulimit -t"),
    ),
    "too large a file": (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); "
        "open('large', 'wb').write(bytes(2**21))",
        ("signal 25 SIGXFSZ", "ulimit -f"),
    ),
}
# What sounds like a death and is none: the job fails, its worker goes on.
SURVIVED = {
    "sys.exit": ("python", "def f(a):\n    import sys\n    sys.exit(3)\n", "SystemExit"),
    "a killed grandchild": ("bash", "bash -c 'kill -9 $$'\n", "Killed"),
    "memory refused": ("python", "def f(a):\n    return bytes(2**60)\n", "MemoryError"),
}


class LastingServer(Jobserver):
    """One for many tests; its log begins where the present one has begun."""

    begin = 0

    @property
    def log(self):
        return super().log[self.begin :]

    def begin_log(self):
        self.begin += len(self.log)


_lasting = {}


class Faults(OnAStore):
    """What the tests below share: servers, marks, gates and workers' pids."""

    shares_store = True

    def setUp(self):
        self.home = self.directory / self.id().rpartition(".")[2]
        self.home.mkdir()
        self.gate = self.home / "gate"
        self.trace = self.home / "trace"
        self.addCleanup(self.gate.touch)

    def lasting(self, *flags, workers=1):
        """Return an idle server, which other tests of the module have used and will use."""
        key = (self.store, workers, *flags)
        if key not in _lasting:
            place = self.store.buffers.parent / f"lasting-{len(_lasting)}"
            place.mkdir()
            _lasting[key] = LastingServer(
                place,
                self.store.parameters(),
                flags=flags,
                workers=workers,
                # Each look at it waits for a fresh one.
                # And what is remembered for a moment is so however slow the machine is.
                env=constants(
                    place,
                    {"server.overview.FRESH": 0.05, "server.lifecycle.FAILURE_MEMORY": 60.0},
                ),
            )
            unittest.addModuleCleanup(_lasting[key].stop)
            unittest.addModuleCleanup(_lasting.pop, key)
        server = _lasting[key]
        wait_until(lambda: self.workers_states(server) == workers * ["idle"], "all are idle")
        server.begin_log()
        return server

    def runs(self):
        return len(self.trace.read_text()) if self.trace.exists() else 0

    def traced(self, rest, **inputs):
        code = "def f(a):\n    import os, time\n" + TRACE.format(path=str(self.trace)) + rest
        return self.store.request(code, **{"a": self.id(), **inputs})

    def gated(self, **inputs):
        rest = UNTIL.format(gate=str(self.gate)) + "    return 1\n"
        return self.traced(rest, **inputs)

    def workers_states(self, server):
        return [worker["state"] for worker in self.status(server)["workers"]]

    def worker_pids(self, server):
        return [worker["pid"] for worker in self.status(server)["workers"]]

    def await_workers(self, server, count):
        wait_until(lambda: len(_ready(server.log)) == count, "so many workers have been ready")

    def await_run(self, count=1):
        wait_until(lambda: self.runs() >= count, "the job's own code runs")

    def status(self, server):
        """Return what ``/status`` says of this moment: what it says can be a little older."""
        asked = time.time()

        def look():
            status = server.request("GET", "/status").json
            return status if status["time"] > asked else None

        return wait_until(look, "the status is fresh")

    def await_phase(self, server, request, phase):
        """Wait until ``/status`` says that a job is in a phase."""

        def reached():
            jobs = server.request("GET", "/status").json["running"]
            return (request["tf_checksum"], phase) in [(j["checksum"], j["phase"]) for j in jobs]

        wait_until(reached, f"the job is {phase}")

    def still_waits(self, answer, seconds):
        """Check that no answer comes within a time in which it should not."""
        with self.assertRaises(concurrent.futures.TimeoutError):
            answer.result(seconds)


def unanswering(peer):
    """Take a request and do nothing, until the client gives up."""
    peer.read_head()
    peer.read_head()


def _ready(log):
    return [line for line in log.splitlines() if " is ready (pid " in line]


class DyingWorkers(Faults):
    def test_each_way_to_die_is_explained_and_costs_its_own_job_alone(self):
        server = self.lasting(workers=2)
        for number, (name, (code, expected)) in enumerate(WAYS_TO_DIE.items()):
            with self.subTest(name):
                gate = self.home / f"gate{number}"
                innocent = self.store.request(
                    "def f(a):\n" + UNTIL.format(gate=str(gate)) + "    return a\n", a=number
                )
                before = self.runs()
                dying = self.traced(f"    print('last words', flush=True)\n    {code}\n", a=name)
                log = f"/jobs/{innocent['tf_checksum']}/log"
                with ThreadPoolExecutor(1) as caller:
                    other = caller.submit(server.run, innocent)
                    try:
                        wait_until(
                            lambda log=log: server.request("GET", log).text == "begun\n",
                            "the other job has begun",
                        )
                        answer = server.run(dying)
                        # The client sends it again at once, four times.
                        again = [server.run(dying).text for _ in range(4)]
                    finally:
                        gate.touch()
                    self.assertEqual(self.value(other.result(PATIENCE)), number)
                self.assertEqual(answer.status, 500, answer.text)
                for part in (*expected, "last words\n"):
                    self.assertIn(part, answer.text)
                self.assertNotIn("Traceback", answer.text)
                self.assertEqual(again, 4 * [answer.text])
                self.assertEqual(self.runs(), before + 1)
        self.await_workers(server, len(WAYS_TO_DIE))
        below = server.everything_below()
        self.assertLessEqual(len(below), 4, "two workers, the guardian and the resource tracker")

    def test_a_job_that_only_sounds_deadly_leaves_its_worker_alone(self):
        server = self.lasting()
        before = self.worker_pids(server)
        for name, (language, code, expected) in SURVIVED.items():
            with self.subTest(name):
                answer = server.run(self.store.request(code, language=language, output="text", a=1))
                self.assertEqual(answer.status, 500)
                self.assertIn(expected, answer.text)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=2))), 3)
        self.assertEqual(self.worker_pids(server), before)

    def test_want_of_memory_is_named_as_the_kernel_tells_it(self):
        group = _MemoryGroup(200 * 2**20)
        self.addCleanup(group.remove)
        server = self.lasting()
        code = (
            f"def f(a):\n    import os\n    group = {str(group.path / 'cgroup.procs')!r}\n"
            "    open(group, 'w').write(str(os.getpid()))\n    return len(bytearray(2**30))\n"
        )
        answer = server.run(self.store.request(code, a=1))
        self.assertEqual(answer.status, 500)
        self.assertIn("signal 9 SIGKILL (likely cause: out of memory", answer.text)
        # Another death by the same signal, a little later, is not blamed on it.
        code = "def f(a):\n    import os, time\n    time.sleep(1.2)\n    os.kill(os.getpid(), 9)\n"
        self.assertNotIn("out of memory", server.run(self.store.request(code, a=1)).text)

    def test_a_worker_killed_before_the_jobs_code_began_costs_one_retry(self):
        server = self.lasting()
        content = b"promised"
        request = self.traced("    return 1\n", a=content)
        checksum = request["transformation_dict"]["a"][2]
        self.forget(checksum)
        self.store.promise(checksum)
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            wait_until(lambda: "waiting for input" in server.log, "it waits for its input")
            os.kill(self.worker_pids(server)[0], signal.SIGKILL)
            wait_until(lambda: "goes back to the queue" in server.log, "it is queued again")
            self.store.put(content)
            self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(answer.result().json["record_runtime"]["retry_count"], 1)
        self.assertEqual(self.runs(), 1)

    def test_a_job_whose_workers_are_killed_twice_before_it_began_is_given_up(self):
        server = self.lasting()
        request = self.traced("    return 1\n", a=b"never")
        checksum = request["transformation_dict"]["a"][2]
        self.forget(checksum)
        self.store.promise(checksum)
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            for times in (1, 2):
                wait_until(
                    lambda times=times: server.log.count("waiting for input") == times, "it waits"
                )
                os.kill(self.worker_pids(server)[0], signal.SIGKILL)
            self.assertEqual(answer.result(PATIENCE).status, 503)
        self.assertIn("tried 2 times", answer.result().text)
        # Which says nothing about the job, and is not remembered.
        self.store.put(b"never")
        self.assertEqual(self.value(server.run(request)), 1)

    def forget(self, checksum):
        for path in self.store.buffers.rglob(checksum):
            path.unlink()


class _MemoryGroup:
    """A control group with a memory limit; version 1 or 2, whichever the machine has."""

    def __init__(self, limit):
        old = Path("/sys/fs/cgroup/memory")
        self.path = (old if old.exists() else Path("/sys/fs/cgroup")) / f"jobserver-{os.getpid()}"
        name = "memory.limit_in_bytes" if old.exists() else "memory.max"
        try:
            self.path.mkdir()
            (self.path / name).write_text(str(limit))
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise unittest.SkipTest(f"no control group can be made here: {error}") from error

    def remove(self):
        def removed():
            try:
                self.path.rmdir()
            except OSError:
                return False  # the kernel is still clearing up after the last process
            return True

        wait_until(removed, "the group is empty")


class Failures(Faults):
    def test_a_failure_is_remembered_for_a_moment_and_then_tried_again(self):
        server = self.lasting()
        request = self.traced("    1 / 0\n")
        first = server.run(request)
        self.assertIn("ZeroDivisionError", first.text)
        self.assertEqual([server.run(request).text for _ in range(4)], 4 * [first.text])
        self.assertEqual(self.runs(), 1)
        server = self.start(env=constants(self.home, {"server.lifecycle.FAILURE_MEMORY": 0.5}))
        server.run(request)
        wait_until(
            lambda: server.run(request).status == 500 and self.runs() == 3, "it is forgotten"
        )

    def test_a_buffer_that_the_jobs_code_misses_is_its_failure_and_the_code_is_run_once(self):
        server = self.start()
        input_checksum = self.store.put(json.dumps(self.id()).encode() + b"\n")
        for number, (checksum, expected) in enumerate(
            (("de" * 32, "CacheMissError"), (input_checksum, f"  a: {input_checksum}\n")), 1
        ):
            with self.subTest(expected):
                request = self.traced(
                    "    from seamless import CacheMissError, Checksum\n"
                    f"    raise CacheMissError(Checksum({checksum!r}))\n"
                )
                answers = [server.run(request) for _ in range(5)]
                self.assertEqual({answer.status for answer in answers}, {500})
                self.assertEqual({answer.text for answer in answers}, {answers[0].text})
                self.assertIn(expected, answers[0].text)
                self.assertIn(checksum, answers[0].text)
                self.assertEqual(self.runs(), number)

    def test_another_envelope_is_not_answered_with_a_remembered_failure(self):
        server = self.lasting()
        request = self.traced("    1 / 0\n")
        server.run(request)
        server.run({**request, "tf_dunder": {"__meta__": {"local": True}}})
        self.assertEqual(self.runs(), 2)

    def test_a_failure_of_the_store_is_not_remembered(self):
        server = self.start("--input-timeout", "3")
        request = self.traced("    return 5\n")
        self.store.kill_hashserver()
        try:
            answer = server.run(request)
        finally:
            self.store.restart_hashserver()
        self.assertEqual(answer.status, 500)
        self.assertIn("hashserver is away", answer.text)
        self.assertNotIn("Traceback", answer.text)
        self.assertEqual(self.value(server.run(request)), 5)


class LostCallers(Faults):
    def call_and_leave(self, server, request, when):
        """Send a request, and close the connection once `when` returns something."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/run-transformation", json.dumps(request))
            wait_until(when, "the job is where it should be")

    def test_a_running_job_ends_and_its_result_is_stored_and_recorded(self):
        server = self.lasting()
        request = self.gated()
        self.call_and_leave(server, request, self.runs)
        wait_until(lambda: "nobody waits for it any more" in server.log, "the caller is missed")
        self.gate.touch()
        checksum = request["tf_checksum"]
        result = wait_until(lambda: self.store.result_of(checksum), "the database knows")
        self.assertEqual(self.store.get(result), b"1\n")
        self.assertEqual(self.runs(), 1)

    def test_a_caller_that_comes_back_gets_the_same_run(self):
        server = self.lasting()
        request = self.gated()
        self.call_and_leave(server, request, self.runs)
        wait_until(lambda: "nobody waits for it any more" in server.log, "the caller is missed")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            wait_until(lambda: " joined by a caller" in server.log, "it is joined")
            self.gate.touch()
            self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(self.runs(), 1)
        self.assertIsNone(self.store.result_of(request["tf_checksum"]), "that is for the caller")

    def test_a_job_that_nobody_waits_for_keeps_the_server_from_being_idle(self):
        request = self.gated()
        server = self.start("--timeout", "5", "--grace", "0")
        self.call_and_leave(server, request, self.runs)
        wait_until(lambda: "nobody waits for it any more" in server.log, "the caller is missed")
        with self.assertRaises(subprocess.TimeoutExpired):
            server.process.wait(6.5)
        self.gate.touch()
        wait_until(lambda: self.store.result_of(request["tf_checksum"]), "the database knows")
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.assertIn("no activity for 5 s", server.log)

    def test_a_database_that_comes_back_is_told_then(self):
        server = self.lasting()
        request = self.gated()
        self.call_and_leave(server, request, self.runs)
        wait_until(lambda: "nobody waits for it any more" in server.log, "the caller is missed")
        self.store.kill_database()
        try:
            self.gate.touch()
            wait_until(lambda: "its result is not in the database" in server.log, "it is tried")
        finally:
            self.store.restart_database()
        wait_until(lambda: self.store.result_of(request["tf_checksum"]), "the database knows")
        self.assertEqual(self.runs(), 1)

    def test_a_queued_job_that_nobody_waits_for_is_dropped_after_a_while(self):
        env = constants(self.home, {"server.lifecycle.ABANDONED_AFTER": 0.5})
        server = self.start(env=env)
        queued = self.traced("    return 2\n", a="queued")
        about = f"job {queued['tf_checksum'][:12]}: "
        with ThreadPoolExecutor(1) as caller:
            blocking = caller.submit(server.run, self.gated())
            self.await_run()
            self.call_and_leave(server, queued, lambda: f"{about}received" in server.log)
            wait_until(lambda: f"{about}lost" in server.log, "it is dropped")
            self.assertIn("all its callers had gone", server.log)
            self.gate.touch()
            self.assertEqual(self.value(blocking.result(PATIENCE)), 1)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=21, b=4))), 25)
        self.assertEqual(self.runs(), 1)

    def test_a_database_that_is_away_or_hangs_costs_the_record_and_neither_result_nor_slot(self):
        hanging = ScriptedServer(unanswering)
        self.addCleanup(hanging.close)
        env = constants(self.home, {"worker.entry._RECORD_LIMIT": 1.0})
        for name, port, problem in (
            ("is away", 9, ""),
            ("hangs", hanging.port, "the database does not answer within 1 s"),
        ):
            with self.subTest(name):
                parameters = self.store.parameters()
                url = f"http://127.0.0.1:{port}"
                parameters["database"] = [{"readonly": False, "url": url, "remote_url": url}]
                server = self.start(parameters=parameters, env=env)
                request = self.gated(a=name)
                before = self.runs()
                self.gate.unlink(missing_ok=True)
                self.call_and_leave(server, request, lambda b=before: self.runs() > b)
                wait_until(lambda s=server: "nobody waits for it any more" in s.log, "it is missed")
                self.gate.touch()
                self.assertEqual(self.value(server.run(self.store.request(ADD, a=2, b=4))), 6)
                self.assertIn(f"its result is not in the database: {problem}", server.log)
                ended = {job["checksum"]: job["result"] for job in self.status(server)["ended"]}
                self.assertEqual(self.store.get(ended[request["tf_checksum"]]), b"1\n")


class LongJobs(Faults):
    def test_aiohttp_waits_beyond_its_read_timeout_for_a_job_that_goes_on(self):
        env = constants(self.home, {"server.connection.PROCESSING_INTERVAL": 0.1})
        server = self.start(env=env)
        request = self.gated()
        limit = 3.0

        async def run():
            timeout = aiohttp.ClientTimeout(sock_read=limit)
            url = f"http://127.0.0.1:{server.port}/run-transformation"
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(url, json=request) as answer,
            ):
                return answer.status, await answer.json()

        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(asyncio.run, run())
            self.await_run()
            self.still_waits(answer, limit + 1.0)
            self.gate.touch()
            status, result = answer.result(PATIENCE)
        self.assertEqual(status, 200)
        self.assertEqual(self.store.get(result["result_checksum"]), b"1\n")


class SharedRuns(Faults):
    def test_a_strict_request_with_another_envelope_is_refused_at_once(self):
        server = self.lasting()
        request = self.gated()
        other = {**request, "tf_dunder": {"__meta__": {"local": True}}}
        joined = f"{request['tf_checksum'][:12]}: joined by a caller"
        with ThreadPoolExecutor(3) as callers:
            answers = [callers.submit(server.run, request)]
            self.await_run()
            refused = server.run({**other, "strict_dunder": True})
            self.assertEqual(refused.status, 409)
            self.assertIn("already running with a different dunder envelope", refused.text)
            # Clients take that for the end of their job.
            self.assertNotIn("canceled", refused.text)
            # Neither the same envelope is refused nor one that does not insist.
            answers.append(callers.submit(server.run, {**request, "strict_dunder": True}))
            answers.append(callers.submit(server.run, other))
            wait_until(lambda: server.log.count(joined) == 2, "both have joined")
            self.gate.touch()
            values = [self.value(answer.result(PATIENCE)) for answer in answers]
        self.assertEqual(values, [1, 1, 1])
        self.assertEqual(self.runs(), 1)

    def test_a_scratch_run_does_not_serve_who_wants_the_result_stored(self):
        server = self.lasting(workers=2)
        request = self.gated()
        with ThreadPoolExecutor(2) as callers:
            scratch = callers.submit(server.run, {**request, "scratch": True})
            self.await_run()
            stored = callers.submit(server.run, request)
            self.await_run(2)
            self.gate.touch()
            self.assertEqual(scratch.result(PATIENCE).status, 200)
            self.assertEqual(self.value(stored.result(PATIENCE)), 1)
        self.assertEqual(self.runs(), 2)


class Reclaiming(Faults):
    def test_a_canceled_job_is_ended_with_all_that_it_has_started(self):
        server = self.lasting("--reclaim-canceled", workers=2)
        pids = self.home / "pids"
        rest = (
            "    import subprocess\n"
            "    child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
            f"    open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} ')\n"
            "    time.sleep(600)\n"
        )
        request = self.traced(rest)
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            wait_until(lambda: pids.exists() and pids.read_text().endswith(" "), "it runs")
            processes = [ProcessId.of(int(pid)) for pid in pids.read_text().split()]
            self.assertTrue(server.cancel(request["tf_checksum"])["canceled"])
            self.assertIn("canceled", answer.result(PATIENCE).text)
        wait_until(lambda: not any(process.alive for process in processes), "all of it is gone")
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=3, b=4))), 7)

    def test_a_canceled_job_and_what_it_has_started_are_asked_to_end_first(self):
        server = self.lasting("--reclaim-canceled", workers=2)
        child = (
            "import os, signal, sys, time\n"
            "def end(*_): os.close(os.open(sys.argv[1] + '.child', os.O_CREAT)); os._exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(600)\n"
        )
        rest = (
            "    import signal, subprocess, sys\n"
            f"    asked = {str(self.home / 'asked')!r}\n"
            "    signal.signal(signal.SIGTERM, lambda *_: open(asked, 'w').close())\n"
            f"    child = subprocess.Popen([sys.executable, '-c', {child!r}, asked],\n"
            "        stdout=subprocess.PIPE, start_new_session=True)\n"
            "    child.stdout.readline()\n"
        )
        request = self.traced(rest + TRACE.format(path=str(self.trace)) + "    time.sleep(600)\n")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run(2)
            server.cancel(request["tf_checksum"])
            self.assertIn("canceled", answer.result(PATIENCE).text)
        for name in ("asked", "asked.child"):
            wait_until((self.home / name).exists, f"{name} is there")

    def test_a_job_that_ignores_the_request_to_end_is_killed(self):
        server = self.lasting("--reclaim-canceled", workers=2)
        rest = "    import signal\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        request = self.traced(rest + TRACE.format(path=str(self.trace)) + "    time.sleep(600)\n")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run(2)
            server.cancel(request["tf_checksum"])
            answer.result(PATIENCE)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=5, b=4))), 9)

    def test_a_job_that_ends_by_itself_when_it_is_asked_to_does_not_take_the_next_along(self):
        server = self.start("--reclaim-canceled")
        rest = "    import signal\n    signal.signal(signal.SIGTERM, lambda *_: None)\n"
        rest += TRACE.format(path=str(self.trace))
        rest += (
            f"    while not os.path.exists({str(self.gate)!r}): time.sleep(0.01)\n    return a\n"
        )
        request = self.traced(rest)
        # It goes on for longer than a worker is given between SIGTERM and SIGKILL.
        lasting = (
            f"def f(a):\n    import time\n    time.sleep({TERMINATION_LIMIT + 1})\n    return a\n"
        )
        following = self.store.request(lasting, a=15)
        with ThreadPoolExecutor(2) as callers:
            canceled = callers.submit(server.run, request)
            self.await_run(2)
            other = callers.submit(server.run, following)
            wait_until(lambda: server.log.count("received from a caller") == 2, "it is queued")
            server.cancel(request["tf_checksum"])
            self.gate.touch()
            self.assertIn("canceled", canceled.result(PATIENCE).text)
            self.assertEqual(self.value(other.result(PATIENCE)), 15)

    def test_nested_jobs_end_with_the_job_that_asked_for_them(self):
        server = self.lasting("--reclaim-canceled", workers=2)
        pids = self.home / "pids"
        inner = (
            "def inner(a):\n"
            "        import os, time\n"
            f"        open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\n"
            "        time.sleep(600)\n"
        )
        rest = (
            f"    open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\n"
            f"    from seamless.transformer import direct\n    {inner}"
            "    return direct(inner)(1)\n"
        )
        request = self.traced(rest)
        wait_until(lambda: self.workers_states(server) == ["idle"] * 2, "both workers are free")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "both run")
            first, second = (ProcessId.of(int(pid)) for pid in pids.read_text().split())
            printed = server.request("GET", f"/jobs/{request['tf_checksum']}/log").text
            self.assertNotEqual(first.pid, second.pid, f"{printed}\n{server.log}")
            server.cancel(request["tf_checksum"])
            answer.result(PATIENCE)
        wait_until(lambda: not first.alive and not second.alive, "both are gone")

    def test_without_it_the_work_goes_on_unheard(self):
        server = self.lasting()
        before = self.worker_pids(server)
        request = self.gated()
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run()
            server.cancel(request["tf_checksum"])
            self.assertIn("canceled", answer.result(PATIENCE).text)
        self.gate.touch()
        wait_until(lambda: "its work has ended, and is thrown away" in server.log, "it ended")
        self.assertEqual(self.worker_pids(server), before)
        self.assertIsNone(self.store.result_of(request["tf_checksum"]))

    def test_without_it_the_slot_is_busy_until_the_work_has_ended(self):
        server = self.lasting()
        request, second = self.gated(), self.store.request(ADD, a=4, b=4)
        with ThreadPoolExecutor(2) as callers:
            answer = callers.submit(server.run, request)
            self.await_run()
            server.cancel(request["tf_checksum"])
            answer.result(PATIENCE)
            other = callers.submit(server.run, second)
            received = f"{second['tf_checksum'][:12]}: received"
            wait_until(lambda: received in server.log, "another job is there")
            # Where a slot is free a job gets it as soon as it is received, and never waits.
            wait_until(lambda: self.status(server)["waiting_count"] == 1, "the job waits")
            self.assertEqual(self.status(server)["running"], [])
            self.assertEqual(self.workers_states(server), ["busy"])
            self.gate.touch()
            self.assertEqual(self.value(other.result(PATIENCE)), 8)


class StoreFront(ThreadingHTTPServer):
    """Stands before the hashserver, and does to requests what a test tells it to.

    `refusals` are the statuses with which methods are answered, `hung` those that get no answer;
    `seen` counts both. `passed` are the methods and paths of the others. `meetings` are barriers by
    path, which a request passes with all the others of its barrier.
    """

    daemon_threads = True

    def __init__(self, port):
        self.refusals = {}
        self.hung = set()
        self.seen = 0
        self.passed = []
        self.meetings = {}
        self.closed = threading.Event()
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path in front.meetings:
                    front.meetings[self.path].wait(PATIENCE)
                if self.command in front.hung:
                    front.seen += 1
                    self.close_connection = True
                    return front.closed.wait(PATIENCE)
                if self.command in front.refusals:
                    front.seen += 1
                    return self.reply(front.refusals[self.command], b"No, for some reason")
                behind = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
                with contextlib.closing(behind):
                    behind.request(self.command, self.path, body)
                    answer = behind.getresponse()
                    front.passed.append((self.command, self.path))
                    return self.reply(answer.status, answer.read())

            do_PUT = do_GET  # noqa: N815 - the name is http.server's

            def reply(self, status, body):
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()

    def handle_error(self, *_):
        pass  # a client that gives up closes its connection

    def close(self):
        self.closed.set()
        self.shutdown()
        self.server_close()


class StoreOnASmallDisk(Store):
    """One whose hashserver keeps its buffers on a disk of 4 MB that nobody else sees."""

    def _hashserver_command(self):
        mount = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'
        within = ["unshare", "--mount", "sh", "-c", mount, str(self.buffers)]
        return [*within, *super()._hashserver_command()]

    def fill(self):
        """Use up the disk to its last byte; return the file that does."""
        root = Path(f"/proc/{self._hashserver.process.pid}/root")
        filler = root / str(self.buffers)[1:] / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        return filler


@unittest.skipUnless(may_mount(), "no disk can be mounted here")
class FullDisk(Faults):
    def test_a_result_waits_until_the_stores_disk_has_room_and_is_whole(self):
        self.store = StoreOnASmallDisk(self.home / "store")
        self.addCleanup(self.store.stop)
        server = self.start()
        rest = UNTIL.format(gate=str(self.gate)) + "    return 'x' * 1_000_000\n"
        request = self.traced(rest)
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run()
            filler = self.store.fill()
            self.gate.touch()
            # More than one attempt of ours: seamless-remote repeats each five times by itself.
            wait_until(lambda: self.store.log().count(" 500") > 6, "the store has refused it")
            self.assertFalse(answer.done())
            filler.unlink()
            self.assertEqual(self.value(answer.result(PATIENCE)), "x" * 1_000_000)
        self.assertEqual(self.runs(), 1)


class StoreAway(Faults):
    def front(self):
        """Return something before the hashserver, and the parameters to go through it."""
        front = StoreFront(self.store.hashserver_port)
        self.addCleanup(front.close)
        parameters = self.store.parameters()
        url = f"http://127.0.0.1:{front.server_port}"
        parameters["buffer"] = [{"readonly": False, "url": url, "remote_url": url}]
        return front, parameters

    def begin(self, *flags, parameters=None, env=None):
        server = self.start(
            *flags,
            parameters=parameters,
            env={"XDG_STATE_HOME": str(self.home / "state"), **(env or {})},
        )
        request = self.gated()
        caller = ThreadPoolExecutor(1)
        self.addCleanup(caller.shutdown)
        answer = caller.submit(server.run, request)
        self.await_run()
        return server, request, answer

    @contextlib.contextmanager
    def hanging_store(self, server, request):
        """Let the job behind the gate end, and its result meet a store that hangs in the block."""
        self.store.signal_hashserver(signal.SIGSTOP)
        try:
            self.gate.touch()
            self.await_phase(server, request, "storing the result")
            yield
        finally:
            self.store.signal_hashserver(signal.SIGCONT)

    def test_a_result_waits_for_a_store_that_is_restarted(self):
        _, _, answer = self.begin()
        self.store.kill_hashserver()
        self.gate.touch()
        self.store.restart_hashserver()
        self.assertEqual(self.value(answer.result(PATIENCE)), 1)

    def test_a_result_waits_for_a_store_that_hangs(self):
        server, request, answer = self.begin()
        with self.hanging_store(server, request):
            self.still_waits(answer, 0.5)
        self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(self.runs(), 1)

    def test_that_is_what_a_large_one_is_said_to_do_meanwhile(self):
        server = self.start()
        request = self.traced(UNTIL.format(gate=str(self.gate)) + "    return 'x' * 2_000_000\n")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run()
            with self.hanging_store(server, request):
                self.still_waits(answer, 0.5)
                self.await_phase(server, request, "storing the result")
            self.assertEqual(len(self.value(answer.result(PATIENCE))), 2_000_000)

    def test_the_next_job_is_begun_only_when_the_store_has_taken_the_result_before(self):
        server, request, answer = self.begin()
        following = self.traced("    return a + 10\n", a=1)
        with ThreadPoolExecutor(1) as other:
            with self.hanging_store(server, request):
                begun = time.monotonic()
                later = other.submit(server.run, following)
                wait_until(lambda: "has not taken the result of" in server.log, "it is handed back")
                wait_until(lambda: self.status(server)["waiting_count"], "it waits again")
                self.still_waits(answer, 2.0)
                self.assertEqual(self.runs(), 1)
            hung = time.monotonic() - begun
            self.assertEqual(self.value(answer.result(PATIENCE)), 1)
            outcome = later.result(PATIENCE)
        self.assertEqual(self.value(outcome), 11)
        runtime = outcome.json["record_runtime"]
        self.assertEqual(runtime["worker_execution_index"], 2)
        self.assertLess(runtime["wall_time_seconds"], hung)
        self.assertEqual(self.runs(), 2)

    def test_the_inputs_of_the_next_job_come_while_the_store_takes_the_result_before(self):
        front, parameters = self.front()
        env = constants(self.home, {"worker.storing._ATTEMPT": 0.2})
        server, _, answer = self.begin(parameters=parameters, env=env)
        following = self.traced("    return a + 10\n", a=1)
        front.hung = {"PUT"}
        self.gate.touch()
        wait_until(lambda: front.seen, "the store takes the result")
        with ThreadPoolExecutor(1) as other:
            later = other.submit(server.run, following)
            code = following["transformation_dict"]["code"][2]
            wait_until(lambda: ("GET", f"/{code}") in front.passed, "its inputs come")
            self.assertFalse(answer.done())
            self.assertEqual(self.runs(), 1)
            front.hung = set()
            self.assertEqual(self.value(answer.result(PATIENCE)), 1)
            self.assertEqual(self.value(later.result(PATIENCE)), 11)

    def test_a_worker_that_is_killed_before_the_store_has_taken_its_result_says_so(self):
        server, request, answer = self.begin()
        with self.hanging_store(server, request):
            (worker,) = self.worker_pids(server)
            os.kill(worker, signal.SIGKILL)
            lost = answer.result(PATIENCE)
        self.assertEqual(lost.status, 500)
        self.assertIn("signal 9 SIGKILL", lost.text)
        self.assertEqual(self.runs(), 1)

    def test_a_result_is_offered_again_to_a_store_that_goes_on_hanging(self):
        front, parameters = self.front()
        env = constants(self.home, {"worker.storing._ATTEMPT": 0.2})
        _, _, answer = self.begin(parameters=parameters, env=env)
        front.hung = {"PUT"}
        self.gate.touch()
        # The result and the transformation itself, each more than once.
        wait_until(lambda: front.seen > 4, "it has been tried again")
        self.assertFalse(answer.done())
        front.hung = set()
        self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(self.runs(), 1)

    def test_a_result_waits_for_a_store_whose_disk_is_full(self):
        self.check_refused(507)

    def test_a_result_waits_for_a_store_that_answers_500(self):
        self.check_refused(500)

    def check_refused(self, status):
        front, parameters = self.front()
        _, _, answer = self.begin(parameters=parameters)
        front.refusals = {"PUT": status}
        self.gate.touch()
        # More than one attempt of ours: seamless-remote repeats each five times by itself.
        wait_until(lambda: front.seen > 12, "it has been tried")
        front.refusals = {}
        self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(self.runs(), 1)

    def kept(self):
        """Run a job whose result no store takes; return server, request and spooled entry."""
        server, request, answer = self.begin("--store-timeout", "3")
        self.store.kill_hashserver()
        self.gate.touch()
        try:
            text = answer.result(PATIENCE).text
        finally:
            self.store.restart_hashserver()
        self.assertEqual(answer.result().status, 500)
        self.assertNotIn("Traceback", text)
        (entry,) = (self.home / "state" / "seamless-jobserver" / "spool").iterdir()
        self.assertIn(f"seamless-jobserver upload {entry}\n", text)
        for path in (entry, *entry.iterdir()):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        return server, request, entry

    def test_a_result_that_no_store_takes_is_kept_and_uploaded_by_the_command_it_names(self):
        _, request, entry = self.kept()
        done = subprocess.run(
            [str(JOBSERVER), "upload", str(entry)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.store.get(self.store.result_of(request["tf_checksum"])), b"1\n")
        self.assertFalse(entry.exists())

    def test_a_kept_result_is_not_computed_again(self):
        server, request, entry = self.kept()
        self.assertEqual(self.value(server.run(request)), 1)
        self.assertEqual(self.runs(), 1)
        self.assertFalse(entry.exists())

    def test_uploading_to_a_store_that_is_away_says_so_and_keeps_the_result(self):
        _, _, entry = self.kept()
        done = subprocess.run(
            [str(JOBSERVER), "upload", str(entry), "--store", "http://127.0.0.1:9"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("http://127.0.0.1:9 cannot be reached", done.stderr)
        self.assertIn("say where with --store", done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertTrue(entry.exists())
        entry.parent.chmod(0o770)
        for which in ((), (str(entry),)):
            done = subprocess.run(
                [str(JOBSERVER), "upload", *which],
                env={**os.environ, "SEAMLESS_JOBSERVER_SPOOL": str(entry.parent)},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn(f"chmod go-w {entry.parent}", done.stderr)

    def test_inputs_wait_for_a_store_that_is_restarted(self):
        server = self.lasting()
        request = self.traced("    return 6\n")
        self.store.kill_hashserver()
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            try:
                wait_until(lambda: "waiting for input" in server.log, "it waits for its input")
            finally:
                self.store.restart_hashserver()
            self.assertEqual(self.value(answer.result(PATIENCE)), 6)

    def test_inputs_wait_for_a_store_that_answers_500_for_a_while(self):
        front, parameters = self.front()
        server = self.start(parameters=parameters)
        request = self.traced("    return 6\n")
        front.refusals = {"GET": 500}
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            # One input and the code, and each attempt of ours is five of seamless-remote's.
            wait_until(lambda: front.seen > 10, "they have been asked for again")
            self.assertFalse(answer.done())
            front.refusals = {}
            self.assertEqual(self.value(answer.result(PATIENCE)), 6)

    def test_a_store_that_goes_on_answering_faults_is_given_up_and_named(self):
        front, parameters = self.front()
        # As many attempts as there are in a minute otherwise.
        env = constants(self.home, {"worker.fetching.LONGEST_PAUSE": 0.1})
        server = self.start("--input-timeout", "1", parameters=parameters, env=env)
        for number, status in enumerate((500, 400, None)):
            front.refusals = {"GET": status}  # None: it closes the connection
            with self.subTest(status):
                answer = server.run(self.traced("    return 6\n", b=number))
                self.assertEqual(answer.status, 500)
                self.assertRegex(answer.text, r"Input (a|b|code) \([0-9a-f]{64}\) could not be")
                self.assertIn("hashserver is away, or refuses", answer.text)
                self.assertNotIn("Traceback", answer.text)
        self.assertEqual(self.runs(), 0)

    def test_a_store_that_hangs_is_given_up_and_named(self):
        env = constants(self.home, {"worker.fetching._QUESTION_LIMIT": 0.5})
        server = self.start("--input-timeout", "0.5", env=env)
        request = self.traced("    return 6\n")
        self.store.signal_hashserver(signal.SIGSTOP)
        try:
            answer = server.run(request)
        finally:
            self.store.signal_hashserver(signal.SIGCONT)
        self.assertEqual(answer.status, 500)
        self.assertIn("the hashserver has not answered", answer.text)

    def test_a_database_that_is_away_does_not_matter_to_a_job(self):
        parameters = self.store.parameters()
        url = "http://127.0.0.1:9"
        parameters["database"] = [{"readonly": False, "url": url, "remote_url": url}]
        server = self.start(parameters=parameters)
        self.assertEqual(self.value(server.run(self.traced("    return 8\n"))), 8)

    def test_nor_to_the_jobs_that_a_job_asks_for(self):
        parameters = self.store.parameters()
        url = "http://127.0.0.1:9"
        parameters["database"] = [{"readonly": False, "url": url, "remote_url": url}]
        server = self.start(parameters=parameters, workers=2)
        self.await_workers(server, 2)
        code = (
            "def f(a):\n    from seamless.transformer import direct\n"
            "    def inner(a):\n        return a + 1\n"
            "    return direct(inner)(a) + direct(inner)(a + 1)\n"
        )
        answer = server.run(self.store.request(code, a=1))
        self.assertEqual(self.value(answer), 5)
        self.assertEqual(server.log.count("received from another job"), 2)
        text = server.request(
            "GET", f"/jobs/{self.store.request(code, a=1)['tf_checksum']}/log"
        ).text
        self.assertEqual(text.count("the database could not be asked"), 1)

    def test_in_record_mode_a_database_that_does_not_tell_the_probes_is_named(self):
        front = ScriptedServer(unanswering)
        self.addCleanup(front.close)
        for name, port, expected in (
            ("hangs", front.port, "The database has not answered for 1 s"),
            ("is away", 9, "is away, or refuses this jobserver: ClientConnectorError"),
        ):
            with self.subTest(name):
                parameters = self.store.parameters(record=True)
                url = f"http://127.0.0.1:{port}"
                parameters["database"] = [{"readonly": False, "url": url, "remote_url": url}]
                server = self.start("--input-timeout", "1", parameters=parameters)
                request = {**self.traced("    return 8\n"), "record": True}
                answers = [server.run(request) for _ in range(2)]
                self.assertEqual([answer.status for answer in answers], [500, 500])
                self.assertIn(expected, answers[0].text)
                self.assertNotIn("Traceback", answers[0].text)
                self.assertEqual(self.runs(), 0)
                checksum = request["tf_checksum"][:12]
                # A failure of ours, which is not remembered.
                self.assertEqual(server.log.count(f"job {checksum}: failed"), 2)

    def test_all_inputs_of_a_job_are_asked_for_at_the_same_time(self):
        front, parameters = self.front()
        server = self.start(parameters=parameters)
        leaves = {f"{n}.txt": self.store.put(f"{self.id()} leaf {n}".encode()) for n in range(6)}
        texts = {f"p{n}": f"{self.id()} {n}" for n in range(6)}
        code = f"def f({', '.join(texts)}, tree):\n    return [len(tree), p5]\n"
        request = self.store.request(code, output="plain", tree=leaves, **texts)
        pins = request["transformation_dict"]
        pins["tree"][0] = "folder"
        wanted = [pin[2] for name, pin in pins.items() if not name.startswith("__")]
        # None is answered before all that can be known by then have been asked for.
        for checksums in (wanted, list(leaves.values())):
            meeting = threading.Barrier(len(checksums))
            front.meetings.update({f"/{checksum}": meeting for checksum in checksums})
        self.assertEqual(self.value(server.run(request)), [6, texts["p5"]])


class PromisedInputs(Faults):
    def promised(self):
        request = self.traced("    return 1\n", a=self.id().encode())
        checksum = request["transformation_dict"]["a"][2]
        for path in self.store.buffers.rglob(checksum):
            path.unlink()
        self.store.promise(checksum)
        return request, checksum

    def test_one_that_does_not_come_is_named_with_what_to_do(self):
        server = self.start("--input-timeout", "3")
        request, checksum = self.promised()
        answer = server.run(request)
        self.assertEqual(answer.status, 500)
        for part in (f"a: {checksum}", "promised", "not sent", "Run the workflow again"):
            self.assertIn(part, answer.text)
        # A moment later it has come.
        self.store.put(self.id().encode())
        self.assertEqual(self.value(server.run(request)), 1)

    def test_the_transformation_itself_may_be_promised_and_never_come(self):
        server = self.lasting(workers=2)
        request = self.gated()
        checksum = request["tf_checksum"]
        for path in self.store.buffers.rglob(checksum):
            path.unlink()
        self.store.promise(checksum)
        self.gate.touch()
        self.assertEqual(self.value(server.run(request)), 1)
        self.assertNotIn(f"GET /{checksum}", self.store.log())

    def test_a_job_that_waits_for_one_is_seen_to_on_its_slot_alone_and_can_be_canceled(self):
        server = self.lasting(workers=2)
        request, _ = self.promised()
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_phase(server, request, "waiting for input")
            wait_until(lambda: "waiting for input" in server.log, "the log says so")
            self.assertEqual(self.value(server.run(self.store.request(ADD, a=6, b=4))), 10)
            self.assertFalse(answer.done())
            self.assertTrue(server.cancel(request["tf_checksum"])["canceled"])
            self.assertIn("canceled", answer.result(PATIENCE).text)


class Provenance(Faults):
    def test_the_transformation_itself_is_stored_with_its_result(self):
        server = self.lasting()
        request = self.traced("    return 1\n")
        self.assertFalse(self.store.holds(request["tf_checksum"]))
        self.value(server.run(request))
        self.assertEqual(
            self.store.get(request["tf_checksum"]),
            transformation_buffer(request["transformation_dict"]),
        )

    def test_what_does_not_count_for_its_checksum_is_no_part_of_it(self):
        server = self.lasting()
        request = self.traced("    return 1\n")
        buffer = transformation_buffer(request["transformation_dict"])
        request["transformation_dict"]["__meta__"] = {"by": "somebody"}
        self.value(server.run(request))
        self.assertEqual(self.store.get(request["tf_checksum"]), buffer)

    def test_the_transformation_itself_is_stored_when_its_result_is_scratch(self):
        server = self.start()
        # A result of no other test: they share the store.
        request = {**self.traced("    return ['scratch', a]\n"), "scratch": True}
        answer = server.run(request)
        self.assertEqual(answer.status, 200, answer.text)
        self.assertFalse(self.store.holds(answer.json["result_checksum"]))
        self.assertEqual(
            self.store.get(request["tf_checksum"]),
            transformation_buffer(request["transformation_dict"]),
        )

    def test_a_scratch_job_whose_transformation_no_store_takes_ends_well_and_the_log_says_so(self):
        server = self.start("--store-timeout", "0.5")
        request = {**self.gated(), "scratch": True}
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run()
            self.store.kill_hashserver()
            try:
                self.gate.touch()
                self.assertEqual(answer.result(PATIENCE).status, 200)
            finally:
                self.store.restart_hashserver()
        told = "did not take the transformation itself"
        wait_until(lambda: told in server.log, "it is told")
        self.assertFalse(self.store.holds(request["tf_checksum"]))

    def test_a_dict_that_is_not_its_checksum_runs_and_the_log_says_so(self):
        server = self.lasting()
        request = {**self.traced("    return 1\n"), "tf_checksum": "ab" * 32}
        self.assertEqual(self.value(server.run(request)), 1)
        wait_until(lambda: "does not hash to its checksum" in server.log, "it is told")
        self.assertFalse(self.store.holds("ab" * 32))


class Descriptors(Faults):
    def start_with_few(self):
        """Start a server that may not have more files open than it has."""
        command = self.home / "limited"
        command.write_text(f'#!/bin/sh\nulimit -n 900\nexec {JOBSERVER} "$@"\n')
        command.chmod(0o700)
        return self.start(command=str(command))

    def test_a_job_that_uses_up_all_its_files_ends_as_its_code_says_and_its_worker_is_replaced(
        self,
    ):
        server = self.start_with_few()
        rest = (
            "    import subprocess, sys\n"
            "    child = subprocess.Popen(['sleep', '1'])\n"  # which the sampler looks at
            "    seamless.Buffer(a, 'mixed')\n"  # imports what making the result needs
            "    sys.files = []\n"
            "    try:\n        while True: sys.files.append(open('/dev/null'))\n"
            "    except OSError:\n        child.wait()\n        {}\n"
            "    return len(sys.files)\n"
        )
        for number, (then, status) in enumerate((("raise", 500), ("pass", 200)), 1):
            with self.subTest(then):
                request = self.traced("    import seamless\n" + rest.format(then))
                answer = server.run(request)
                self.assertEqual(answer.status, status, answer.text)
                if status == 200:
                    self.assertGreater(self.value(answer), 700)
                    self.assertGreater(answer.json["record_runtime"]["memory_peak_bytes"], 10**6)
                else:
                    self.assertIn("OSError: [Errno 24] Too many open files", answer.text)
                    self.assertNotIn("output file", answer.text)
                    self.assertNotIn("jobserver-sampler", answer.text)
                wait_until(
                    lambda n=number: server.log.count("is replaced: jobs left over") == n,
                    "the worker is replaced",
                )
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=9, b=4))), 13)

    def test_a_job_that_leaves_no_file_to_open_at_all_ends_as_its_code_says(self):
        server = self.start()
        code = (
            "def f(a):\n    from seamless_jobserver.worker import limits\n"
            "    import resource\n"
            "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
            "    limits.resource.setrlimit = lambda *_: None  # as for who is not root\n"
            "    raise KeyError('mine')\n"
        )
        answer = server.run(self.store.request(code, a=1))
        self.assertEqual(answer.status, 500, answer.text)
        self.assertIn("KeyError: 'mine'", answer.text)
        wait_until(lambda: "is replaced: " in server.log, "the worker is replaced")
        self.assertIn("Too many open files", server.log)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=8, b=8))), 16)

    def test_an_output_file_that_cannot_be_made_is_named(self):
        server = self.start(env={"TMPDIR": str(self.home)})
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=7, b=8))), 15)
        (private,) = self.home.glob("seamless-jobserver-*")
        private.rename(self.home / "gone")
        answer = server.run(self.traced("    return 1\n"))
        self.assertEqual(answer.status, 503)
        self.assertIn(f"output file {private}", answer.text)
        self.assertEqual(self.runs(), 0)


class Limits(Faults):
    def test_a_job_over_the_memory_limit_is_ended_with_its_children(self):
        server = self.start("--memory-limit", "400M")
        grow = "import time; block = b'x' * 700_000_000; time.sleep(600)"
        for name, rest in {
            "itself": f"    {grow}\n",
            "a child": f"    import subprocess, sys\n    subprocess.run([sys.executable, '-c', {grow!r}])\n",
        }.items():
            with self.subTest(name):
                answer = server.run(self.traced(rest, a=name))
                self.assertEqual(answer.status, 500)
                self.assertRegex(answer.text, r"used \d{3,4} MB of memory, more than the 419 MB")
                self.assertIn("--memory-limit", answer.text)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=7, b=4))), 11)

    def test_a_job_over_the_time_limit_is_ended(self):
        server = self.start("--job-timeout", "3")
        answer = server.run(self.traced("    time.sleep(600)\n"))
        self.assertEqual(answer.status, 500)
        self.assertIn("longer than the 3 s that --job-timeout", answer.text)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=8, b=4))), 12)


class Shutdown(Faults):
    def test_what_is_lost_is_told_to_each_waiter_and_to_the_log(self):
        server = self.start("--grace", "0.2")
        told = "    print('so far, so good', flush=True)\n"
        running = self.traced(told + UNTIL.format(gate=str(self.gate)))
        queued = self.gated(a="queued")
        with ThreadPoolExecutor(2) as callers:
            first = callers.submit(server.run, running)
            self.await_run()
            second = callers.submit(server.run, queued)
            wait_until(lambda: queued["tf_checksum"][:12] in server.log, "it is queued")
            begun = time.monotonic()
            server.process.terminate()
            for answer in (first, second):
                self.assertEqual(answer.result(PATIENCE).status, 503)
                self.assertIn("shut", answer.result().text)
            self.assertIn("so far, so good\n", first.result().text)
            server.process.wait(PATIENCE)
            # The grace, and 5 s for all the rest.
            self.assertLess(time.monotonic() - begun, stretched(5.2, 20))
        for request in (running, queued):
            self.assertIn(f"job {request['tf_checksum'][:12]}: lost", server.log)

    def test_a_running_job_may_end_within_the_grace_and_nobody_gets_the_port_before(self):
        self.check_grace()

    def test_nor_one_that_was_not_chosen_by_number(self):
        self.check_grace("--port", "0")

    def check_grace(self, *flags):
        server = self.start("--grace", "50", *flags)
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, self.gated())
            self.await_run()
            server.process.terminate()
            wait_until(lambda: "waiting up to 50 s" in server.log, "it waits")
            with self.assertRaises(ConnectionRefusedError):
                server.request("GET", "/healthcheck")
            with self.assertRaises(OSError) as caught:
                self.take(server.port)  # and be asked by the workers for what their jobs want
            self.assertEqual(caught.exception.errno, errno.EADDRINUSE)
            self.gate.touch()
            self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.take(server.port)

    def take(self, port):
        """Do what another user could to get the port of the server."""
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()

    def test_a_ctrl_c_is_for_the_server_alone(self):
        command = self.home / "leading"
        command.write_text(f'#!/bin/sh\nexec setsid {JOBSERVER} "$@"\n')
        command.chmod(0o700)
        server = self.start("--grace", "600", command=str(command))
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, self.gated())
            self.await_run()
            os.killpg(server.process.pid, signal.SIGINT)
            wait_until(lambda: "waiting up to 600 s" in server.log, "it waits")
            self.gate.touch()
            self.assertEqual(self.value(answer.result(PATIENCE)), 1)
        self.assertEqual(server.process.wait(PATIENCE), 0)

    def test_a_second_signal_ends_it_now(self):
        server = self.start("--grace", "1e99")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, self.gated())
            self.await_run()
            server.process.terminate()
            wait_until(lambda: "waiting up to" in server.log, "it waits")
            server.process.terminate()
            self.assertEqual(answer.result(PATIENCE).status, 503)
        server.process.wait(PATIENCE)
