"""Watching a real server with real jobs: status, lists, logs, metrics, and the commands on them."""

import contextlib
import http.client
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import unittest
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from unittest import mock

from prometheus_client.parser import text_string_to_metric_families

from seamless_jobserver import top
from seamless_jobserver.asking import Server
from seamless_jobserver.display import _cut, fair_shares
from seamless_jobserver.server import watching
from seamless_jobserver.server.joboutput import KEPT
from seamless_jobserver.server.overview import MOST_LISTED, MOST_WAITING, Overview
from seamless_jobserver.server.watching import Watching
from seamless_jobserver.top import Looks
from tests.constants import constants
from tests.stack import PATIENCE, ROOT, Jobserver, Store, temporary_directory, wait_until
from tests.test_running import OnAStore

PRINTING = "def printing(n):\n    print('line', n)\n    return n\n"
FAILING = "def failing(n):\n    print('about to fail')\n    raise ValueError('no such luck')\n"
CRASHING = "def crashing(n):\n    import os\n    os._exit(3)\n"
WAITING = (
    "def waiting(gate):\n    import os, time\n    print('it waits', flush=True)\n"
    "    while not os.path.exists(gate): time.sleep(0.01)\n    print('it goes on')\n    return 1\n"
)
OUTER = (
    "def outer(gate):\n    from seamless.transformer import direct\n"
    "    def inner(gate):\n        import os, time\n        print('inside it', flush=True)\n"
    "        while not os.path.exists(gate): time.sleep(0.01)\n        return 1\n"
    "    return direct(inner)(gate)\n"
)
HOSTILE = "def f(n):\n    print('<script>alert(1)</script>\\x1b[2J')\n    return n\n"


class Watched(OnAStore):
    """A server with one worker for each test, and a gate that holds up a job."""

    shares_store = True

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.place = self.stack.enter_context(temporary_directory())
        # A look at it is a fresh one: tests wait for what they have brought about.
        self.fresh = constants(self.place, {"server.overview.FRESH": 0.05})
        self.server = self.start()
        self.gate = self.place / "gate"
        self.callers = self.stack.enter_context(ThreadPoolExecutor(8))
        self.stack.callback(self.gate.touch)

    def start(self, *flags, name="jobserver", **parameters):
        parameters = {**self.store.parameters(), **parameters}
        server = Jobserver(self.place / name, parameters, flags=flags, env=self.fresh)
        self.stack.callback(server.stop)
        return server

    def get(self, path, **fields):
        return self.server.request("GET", path, **fields)

    def status(self, after=0):
        return self.get(f"/status?after={after}").json

    def run_job(self, code, **inputs):
        request = self.store.request(code, **inputs)
        return request["tf_checksum"], self.callers.submit(self.server.run, request)

    def hold(self):
        """Have a job run that waits for the gate; return its checksum and the future answer."""
        checksum, answer = self.run_job(WAITING, gate=str(self.gate))
        wait_until(
            lambda: (
                [(job["name"], job["phase"]) for job in self.status()["running"]]
                == [("waiting", "running")]
            ),
            "it runs, and has told its name",
        )
        return checksum, answer

    def job(self, checksum):
        return self.get(f"/jobs/{checksum}", Accept="application/json").json

    def log(self, checksum, start):
        """Return what there is from a byte on, the byte that it begins at, and the run."""
        answer = self.get(f"/jobs/{checksum}/log?from={start}")
        return answer.text, int(answer.headers["output-start"]), answer.headers["output-run"]

    def metric(self, name):
        return int(
            re.search(rf"^seamless_jobserver_{name} (\S+)$", self.get("/metrics").text, re.M)[1]
        )


class Status(Watched):
    def test_it_tells_what_runs_waits_and_has_ended_and_how(self):
        endings = {}
        for code, state in ((PRINTING, "done"), (FAILING, "failed"), (CRASHING, "crashed")):
            checksum, answer = self.run_job(code, n=1)
            answer.result(PATIENCE)
            endings[checksum] = state
        held, _ = self.hold()
        queued, answer = self.run_job(PRINTING, n=2)
        wait_until(lambda: self.status()["waiting_count"] == 1, "it waits")
        status = self.status()
        self.assertEqual(status["version"], 1)
        self.assertEqual([job["checksum"] for job in status["running"]], [held])
        self.assertEqual([job["checksum"] for job in status["waiting"]], [queued])
        self.assertEqual(status["waiting"][0]["name"], "printing", "its code has run before")
        self.assertEqual({job["checksum"]: job["state"] for job in status["ended"]}, endings)
        (worker,) = status["workers"]
        self.assertEqual((worker["state"], worker["job"]), ("busy", held))
        self.assertEqual(worker["phase"], "running")
        self.assertGreater(worker["memory"], 10e6)
        self.assertEqual(status["totals"]["received"], 5)
        self.assertEqual(sum(status["series"]["ended"]), 3)
        self.assertEqual(sum(status["series"]["failed"]), 2)
        self.server.cancel(queued)
        self.assertIn("canceled", answer.result(PATIENCE).text)
        self.assertEqual(self.job(queued)["state"], "canceled")

    def test_a_job_that_waits_is_named_as_soon_as_its_code_has_run(self):
        self.hold()
        code = WAITING.replace("def waiting", "def later")
        gates = [self.place / "second", self.place / "third"]
        for gate in gates:
            self.stack.callback(gate.touch)
            self.run_job(code, gate=str(gate))
        wait_until(lambda: self.status()["waiting_count"] == 2, "they wait")
        self.assertEqual([job["name"] for job in self.status()["waiting"]], [None, None])
        self.gate.touch()
        wait_until(
            lambda: [job["name"] for job in self.status()["waiting"]] == ["later"],
            "the other one has run",
        )

    def test_who_cannot_be_told_for_want_of_a_descriptor_is_told_that(self):
        # A worker that is still being started would want some too.
        wait_until(lambda: self.status()["workers"][0]["state"] == "idle", "it is ready")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        with contextlib.closing(connection):

            def look():
                connection.request("GET", "/status?after=0")
                answer = connection.getresponse()
                return answer.status, answer.read().decode()

            self.assertEqual(look()[0], 200)
            pid = self.server.process.pid
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                # The look before is good enough for a moment.
                status, text = wait_until(lambda: (found := look())[0] != 200 and found, "it fails")
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            self.assertEqual(status, 503)
            self.assertIn("Too many open files", text)
            self.assertEqual(look()[0], 200)

    def test_only_news_is_told_to_who_has_asked_before(self):
        first, answer = self.run_job(PRINTING, n=1)
        answer.result(PATIENCE)
        latest = self.status()["latest"]
        second, answer = self.run_job(PRINTING, n=2)
        answer.result(PATIENCE)
        self.assertEqual([job["checksum"] for job in self.status(latest)["ended"]], [second])
        self.assertEqual(self.status(10**6)["ended"], [])
        listed = self.get(f"/jobs?before={latest + 1}&limit=1").json
        self.assertEqual([job["checksum"] for job in listed["jobs"]], [first])

    def test_one_job_is_told_with_pins_metadata_message_and_size_of_its_output(self):
        checksum, answer = self.run_job(FAILING, n=1)
        answer.result(PATIENCE)
        job = self.job(checksum)
        self.assertEqual([pin["name"] for pin in job["pins"]], ["code", "n"])
        self.assertIn("no such luck", job["message"])
        self.assertEqual(job["output"], len("about to fail\n"))
        self.assertEqual(job["name"], "failing")
        self.assertGreater(job["wall"], 0)
        self.assertIn("hostname", job["runtime"])

    def test_requests_that_make_no_sense_are_refused(self):
        for path, status in (
            ("/status?after=x", 400),
            ("/jobs?limit=-1", 400),
            ("/jobs?state=happy", 400),
            ("/jobs/xyz", 400),
            ("/jobs/<script>alert(1)</script>", 400),
            ("/jobs/%3Cscript%3E", 400),
            ("/jobs/" + "ab" * 32, 404),
            ("/jobs/" + "ab" * 32 + "/log", 404),
            ("/jobs/" + "ab" * 32 + "/other", 404),
            ("/page/../watching.py", 404),
            ("/page/", 404),
        ):
            with self.subTest(path):
                answer = self.get(path, Accept="text/html" if "script" in path else "*/*")
                self.assertEqual(answer.status, status)
                self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(self.server.request("POST", "/status").status, 405)
        self.assertEqual(self.server.request("GET", "/check-store").status, 405)

    def test_programs_keep_their_answer_and_browsers_get_a_page_that_loads_nothing_else(self):
        self.assertEqual(self.get("/").text, "Seamless jobserver is running")
        self.assertEqual(self.get("/", Accept="*/*").text, "Seamless jobserver is running")
        page = self.get("/", Accept="text/html,*/*;q=0.8")
        self.assertIn("<!doctype html>", page.text.lower())
        self.assertIn("default-src 'none'", page.headers["content-security-policy"])
        names = set(re.findall(r'(?:href|src)="([^"#]+)"', page.text))
        self.assertTrue(names)
        for name in names:
            self.assertNotIn("//", name)
            self.assertEqual(self.get(f"/{name}").status, 200)
        moved = self.get("/jobs/" + "ab" * 32, Accept="text/html")
        self.assertEqual((moved.status, moved.headers["location"]), (303, f"../#/jobs/{'ab' * 32}"))

    def test_looking_does_not_keep_an_unused_server_alive(self):
        server = self.start("--timeout", "2", name="short")
        began = time.monotonic()
        left = []
        while server.process.poll() is None:
            self.assertLess(time.monotonic() - began, 20, "it is kept alive")
            with contextlib.suppress(OSError, http.client.HTTPException):
                left.append(server.request("GET", "/status").json["server"]["idle_left"])
        self.assertGreater(len(left), 2)
        self.assertLessEqual(max(left), 2)
        self.assertEqual(left, sorted(left, reverse=True), "it counts down")
        self.assertLess(left[-1], left[0])
        self.assertEqual(server.process.wait(PATIENCE), 0)

    def test_nothing_is_counted_down_while_a_job_runs_or_is_canceled_and_runs_on(self):
        self.server = self.start("--timeout", "3600", name="used")
        wait_until(lambda: self.status()["server"]["idle_left"], "it is unused")
        checksum, answer = self.hold()
        self.assertIsNone(self.status()["server"]["idle_left"])
        self.server.cancel(checksum)
        answer.result(PATIENCE)
        wait_until(lambda: not self.status()["running"], "it has ended for its caller")
        self.assertIsNone(self.status()["server"]["idle_left"])
        self.gate.touch()
        wait_until(lambda: self.status()["server"]["idle_left"], "its work has ended too")

    def test_fields_and_metrics_are_those_that_are_documented_and_no_others(self):
        text = (ROOT / "docs" / "watching.rst").read_text()
        _, _, text = text.partition("\n``GET /status``\n")
        of_status, _, text = text.partition("\n``GET /metrics``\n")
        of_metrics, _, _ = text.partition("\nThe server's own log\n")
        checksum, answer = self.run_job(PRINTING, n=1)
        answer.result(PATIENCE)
        status = self.status()
        parts = [status, *(status[name] for name in ("server", "machine", "totals", "series"))]
        parts += [status["workers"][0], status["ended"][0]]
        parts += [self.job(checksum), self.get("/jobs").json]
        # What is asked with, and a value.
        others = {"after", "limit", "caller"}
        self.assertEqual(_named(of_status) - others, set().union(*parts))
        told = re.findall(r"(?m)^# TYPE seamless_jobserver_(\w+) ", self.get("/metrics").text)
        self.assertEqual(_named(of_metrics) - {"seamless_jobserver_"}, set(told))


class Logs(Watched):
    def test_output_can_be_read_while_a_job_runs_and_after_it(self):
        checksum, answer = self.hold()
        path = f"/jobs/{checksum}/log"
        wait_until(lambda: self.get(path).text == "it waits\n", "it has printed")
        self.gate.touch()
        answer.result(PATIENCE)
        self.assertEqual(self.get(path).text, "it waits\nit goes on\n")
        self.assertEqual(self.get(path).headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(self.get(path).headers["x-content-type-options"], "nosniff")

    @contextlib.contextmanager
    def following(self):
        """Follow the output of the job that is held; yield the connection and the answer."""
        (job,) = self.status()["running"]
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", f"/jobs/{job['checksum']}/log?follow")
            response = connection.getresponse()
            self.assertEqual(response.read(9), b"it waits\n")
            yield connection, response

    def test_output_can_be_followed_to_the_end_of_the_job(self):
        _, answer = self.hold()
        with self.following() as (connection, response):
            self.gate.touch()
            self.assertEqual(response.read(), b"it goes on\n")
            connection.request("GET", "/healthcheck")
            self.assertEqual(connection.getresponse().read(), b"OK", "the connection goes on")
        answer.result(PATIENCE)

    def test_it_can_be_followed_through_the_grace_of_a_server_that_ends(self):
        self.hold()
        with self.following() as (_, response):
            self.server.process.terminate()
            wait_until(lambda: "waiting up to" in self.server.log, "it is ending")
            self.gate.touch()
            self.assertEqual(response.read(), b"it goes on\n")

    def test_a_follower_that_goes_away_is_let_go(self):
        checksum, _ = self.hold()
        # That of the job's caller, and that which asks; those of other tests may still be ending.
        before = 2
        wait_until(lambda: self.connections() == before, "the others have ended")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        connection.request("GET", f"/jobs/{checksum}/log?follow")
        self.assertEqual(connection.getresponse().read(9), b"it waits\n")
        wait_until(lambda: self.connections() == before + 1, "it is counted")
        connection.close()
        wait_until(lambda: self.connections() == before, "its thread has ended")

    def connections(self):
        return self.metric("connections")

    def test_output_is_read_on_from_the_byte_that_was_reached(self):
        checksum, answer = self.hold()
        wait_until(lambda: self.log(checksum, 0)[0] == "it waits\n", "it has printed")
        run = self.log(checksum, 0)[2]
        self.assertEqual(self.log(checksum, 3), ("waits\n", 3, run))
        self.assertEqual(self.log(checksum, 9), ("", 9, run))
        self.gate.touch()
        answer.result(PATIENCE)
        self.assertEqual(self.log(checksum, 9), ("it goes on\n", 9, run))
        self.assertEqual(self.get(f"/jobs/{checksum}/log?from=x").status, 400)

    def test_a_job_that_is_queued_again_is_followed_into_its_next_run(self):
        content = b"promised"
        request = self.store.request("def f(a):\n    print('begun')\n    return 1\n", a=content)
        promised = request["transformation_dict"]["a"][2]
        for path in self.store.buffers.rglob(promised):
            path.unlink()
        self.store.promise(promised)
        answer = self.callers.submit(self.server.run, request)
        log = lambda: self.server.log  # noqa: E731
        wait_until(lambda: "waiting for input" in log(), "it waits for its input")
        first = self.log(request["tf_checksum"], 0)[2]
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", f"/jobs/{request['tf_checksum']}/log?follow")
            response = connection.getresponse()
            os.kill(self.status()["workers"][0]["pid"], signal.SIGKILL)
            wait_until(lambda: "goes back to the queue" in log(), "it is queued again")
            self.store.put(content)
            self.assertEqual(response.read(), b"begun\n")
        answer.result(PATIENCE)
        self.assertNotEqual(self.log(request["tf_checksum"], 0)[2], first)

    def test_hostile_output_stays_text(self):
        checksum, answer = self.run_job(HOSTILE, n=1)
        answer.result(PATIENCE)
        log = self.get(f"/jobs/{checksum}/log", Accept="text/html")
        self.assertIn("<script>", log.text)
        self.assertEqual(log.headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(log.headers["x-content-type-options"], "nosniff")

    def test_of_much_output_the_last_megabyte_is_given_and_it_is_said_where_that_begins(self):
        code = "def f(n):\n    for i in range(n): print('line %9d' % i)\n    return n\n"
        checksum, answer = self.run_job(code, n=100_000)
        answer.result(PATIENCE)
        last, total = f"line {99_999:9d}\n", 15 * 100_000
        missing = total - 2**20
        whole = self.get(f"/jobs/{checksum}/log").text
        self.assertTrue(whole.startswith(f"[… {missing} bytes left out …]\n"), whole[:100])
        self.assertTrue(whole.endswith(last))
        text, start, run = self.log(checksum, 0)
        self.assertEqual((start, len(text)), (missing, 2**20))
        self.assertTrue(whole.endswith(text), "without a line of the server's own")
        self.assertEqual(self.log(checksum, total - 15), (last, total - 15, run))
        job = self.job(checksum)
        self.assertEqual((job["output"], job["dropped"]), (total, missing))


class CanceledButRunning(Watched):
    def test_it_is_told_for_as_long_as_its_work_holds_the_worker(self):
        checksum, answer = self.hold()
        wait_until(lambda: self.log(checksum, 0)[0] == "it waits\n", "it has printed")
        self.server.cancel(checksum)
        self.assertIn("canceled", answer.result(PATIENCE).text)
        wait_until(lambda: self.status()["canceled_running"], "it is told")
        status = self.status()
        (job,) = status["canceled_running"]
        self.assertEqual((job["checksum"], job["name"]), (checksum, "waiting"))
        self.assertEqual((job["state"], job["worker"]), ("canceled", 1))
        self.assertEqual(status["running"], [])
        self.assertTrue(status["workers"][0]["canceled"])
        self.assertTrue(self.job(checksum)["working"])
        self.assertEqual(self.metric("jobs_canceled_running"), 1)
        self.gate.touch()
        wait_until(lambda: not self.status()["canceled_running"], "its work has ended")
        self.assertEqual(self.metric("jobs_canceled_running"), 0)
        self.assertFalse(self.status()["workers"][0]["canceled"])
        self.assertFalse(self.job(checksum)["working"])
        self.assertEqual(self.log(checksum, 9)[0], "it goes on\n", "what it printed after it")


class Hosted(Watched):
    def test_it_tells_which_job_it_runs_in_and_that_its_output_is_there(self):
        outer, answer = self.run_job(OUTER, gate=str(self.gate))
        running = wait_until(
            lambda: len(self.status()["running"]) == 2 and self.status()["running"], "both run"
        )
        (inner,) = (job for job in running if job["hosted"])
        self.assertEqual(inner["within"], outer)
        wait_until(lambda: "inside it" in self.log(outer, 0)[0], "the outer job's output has it")
        self.assertIn(f"job {outer}", self.get(f"/jobs/{inner['checksum']}/log").text)
        self.gate.touch()
        answer.result(PATIENCE)
        self.assertEqual(self.job(inner["checksum"])["within"], outer)
        self.assertIsNone(self.job(outer)["within"])

    def test_canceling_it_tells_others_who_wait_and_the_job_around_it_uses_the_result(self):
        outer, answer = self.run_job(OUTER, gate=str(self.gate))
        running = wait_until(
            lambda: len(self.status()["running"]) == 2 and self.status()["running"], "both run"
        )
        (inner,) = (job for job in running if job["hosted"])
        pins = {pin.pop("name"): list(pin.values()) for pin in self.job(inner["checksum"])["pins"]}
        request = {
            "transformation_dict": {"__output__": ["result", "mixed", None], **pins},
            "tf_checksum": inner["checksum"],
            "scratch": True,  # which any run serves
        }
        other = self.callers.submit(self.server.run, request)
        wait_until(lambda: "joined by a caller" in self.server.log, "it is joined")
        canceled = self.server.cancel(inner["checksum"])
        self.assertEqual(canceled, {"canceled": True, "status": "canceled"})
        self.assertEqual(other.result(PATIENCE).text, "Transformation was canceled")
        self.assertEqual(self.job(outer)["state"], "running")
        self.gate.touch()
        ended = answer.result(PATIENCE)
        self.assertEqual(ended.status, 200, ended.text)
        self.assertEqual(self.store.get(ended.json["result_checksum"]), b"1\n")
        self.assertEqual(self.job(inner["checksum"])["state"], "canceled")


class Metrics(Watched):
    def test_prometheus_reads_them_and_they_are_true(self):
        for code in (PRINTING, FAILING, CRASHING):
            self.run_job(code, n=1)[1].result(PATIENCE)
        wait_until(lambda: self.status()["workers"][0]["state"] == "idle", "a new worker is there")
        self.hold()
        text = self.get("/metrics").text
        found = {}
        for family in text_string_to_metric_families(text):
            self.assertTrue(family.documentation, family.name)
            self.assertNotEqual(family.type, "unknown", family.name)
            for sample in family.samples:
                name = sample.name.removeprefix("seamless_jobserver_")
                found[(name, *sample.labels.values())] = sample.value
        self.assertEqual(found["jobs_total", "done"], 1)
        self.assertEqual(found["jobs_total", "failed"], 1)
        self.assertEqual(found["jobs_total", "crashed"], 1)
        self.assertEqual(found["jobs_running",], 1)
        self.assertEqual(found["slots", "busy"], 1)
        self.assertEqual(found["queue_length",], 0)
        self.assertEqual(found["worker_restarts_total",], 1)
        self.assertEqual(found["run_seconds_count",], 3)
        self.assertEqual(found["queue_seconds_bucket", "+Inf"], 4)
        self.assertGreater(found["staged_bytes_total",], 0)
        self.assertGreater(found["stored_bytes_total",], 0)
        self.assertGreater(found["cache_misses_total",], 0)
        self.assertGreater(found["connections_total",], 4)
        self.assertEqual(found["refused_total",], 0)
        self.get("/", Origin="http://elsewhere.example")
        self.assertIn("seamless_jobserver_refused_total 1\n", self.get("/metrics").text)


class ServersLog(Watched):
    def test_a_line_has_time_level_short_checksum_and_what_happened(self):
        checksum, answer = self.run_job(PRINTING, n=1)
        answer.result(PATIENCE)
        line = rf"(?m)^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d INFO job {checksum[:12]}: done in "
        wait_until(lambda: re.search(line, self.server.log), "it is told")
        self.assertNotIn(checksum, self.server.log)
        self.assertIn("Welcome to the Seamless jobserver on 127.0.0.1:", self.server.log)

    def test_as_json_each_line_is_an_object(self):
        self.server = self.start("--log-format", "json", name="json")
        checksum, answer = self.run_job(PRINTING, n=1)
        answer.result(PATIENCE)
        wait_until(lambda: "done in" in self.server.log, "it is told")
        welcome, *lines = self.server.log.splitlines()
        events = [json.loads(line) for line in lines]
        self.assertIn("Welcome", welcome)
        (done,) = (event for event in events if event["message"].startswith("done in"))
        self.assertEqual((done["job"], done["level"]), (checksum, "info"))

    def test_what_the_locale_cannot_write_is_escaped(self):
        self.fresh = {**self.fresh, "PYTHONIOENCODING": "latin-1"}
        self.server = self.start(name="latin")
        self.run_job("def größe_計(n):\n    return n\n", n=1)[1].result(PATIENCE)
        wait_until(lambda: "done in" in self.server.log, "it is told")
        log = self.server.log_file.read_text(encoding="latin-1")
        self.assertRegex(log, r"done in \S+ s \(größe_\\u8a08\)")
        self.assertNotIn("Traceback", log)

    def test_a_higher_level_leaves_out_what_is_usual(self):
        self.server = self.start("--log-level", "error", name="quiet")
        self.run_job(PRINTING, n=1)[1].result(PATIENCE)
        self.assertEqual(len(self.server.log.splitlines()), 1, self.server.log)


class Display(unittest.TestCase):
    def test_nobody_gets_more_than_another_who_lacks_some(self):
        for wanted, room, shares in (
            ((100, 2, 50, 5), 20, [7, 2, 6, 5]),
            ((3, 3), 100, [3, 3]),
            ((5, 5), 0, [0, 0]),
            ((5, 5, 5), 2, [1, 1, 0]),
            ((), 5, []),
        ):
            with self.subTest(wanted):
                self.assertEqual(fair_shares(wanted, room), shares)

    def test_a_line_is_cut_to_the_columns_that_it_takes(self):
        for text, width, shown in (
            ("abcdef", 4, "abcd"),
            ("計算する", 4, "計算"),
            ("計算する", 5, "計算"),
            ("a\u0301b\u0301c", 2, "a\u0301b\u0301"),
            ("é", 10, "é"),
        ):
            with self.subTest(text):
                self.assertEqual(_cut(text, width), shown)


class MemoryOfWorkers(unittest.TestCase):
    def test_what_we_may_not_see_is_told_as_unknown(self):
        overview = Overview(*[mock.Mock()] * 5)
        with mock.patch(
            "seamless_jobserver.server.overview.tree_memory", side_effect=PermissionError
        ):
            self.assertIsNone(overview._memory_of(os.getpid(), "idle")[1])
        self.assertGreater(overview._memory_of(os.getpid(), "starting")[1], 0)


class Watchers(unittest.TestCase):
    """However many there are, and however much they ask for."""

    def setUp(self):
        self.service = mock.Mock(all_slots=[])
        self.overview = Overview(mock.Mock(), self.service, *[mock.Mock()] * 3)
        patch = mock.patch.object(self.overview, "_ask", lambda look: look())
        patch.start()
        self.addCleanup(patch.stop)

    def test_what_all_of_them_see_is_put_together_once_in_a_while(self):
        journal = self.service.journal
        journal.since.return_value, journal.latest = [b"{}"], 7
        with mock.patch.object(self.overview, "_look", side_effect=[{"n": 1}, {"n": 2}]) as look:
            for after in (0, 5, 5):
                told = json.loads(self.overview.status(after))
                self.assertEqual(told, {"n": 1, "latest": 7, "ended": [{}]})
            look.assert_called_once_with()
            self.overview._until = 0.0
            self.assertEqual(json.loads(self.overview.status(5))["n"], 2)

    def test_of_long_lists_the_first_are_told(self):
        waiting = [mock.Mock(received=0.0) for _ in range(MOST_WAITING + 5)]
        journal = self.service.journal
        journal.waiting, journal.under_way, journal.totals = waiting, {}, Counter()
        with mock.patch.object(self.overview, "_describe", lambda entry: entry):
            told = self.overview._look_on_the_loop()
        self.assertEqual(told["waiting"], waiting[:MOST_WAITING])
        self.assertEqual(told["waiting_count"], len(waiting))
        journal.before.return_value = [b"{}"], True
        for asked, given in ((3, 3), (10**9, MOST_LISTED)):
            self.overview.jobs(None, asked, [])
            journal.before.assert_called_with(None, given, [])

    def test_who_follows_much_output_gets_the_last_of_it_and_then_the_end(self):
        ended = Future()
        bridge = mock.Mock(submit=mock.Mock(return_value=ended))
        with (
            temporary_directory() as directory,
            mock.patch.object(watching, "_FOLLOW_INTERVAL", 0.0),
            open(directory / "output", "wb", buffering=0) as output,
        ):
            self.service.output.open = lambda path: open(path, "rb")  # noqa: SIM115 - it is closed there
            watched = Watching(self.overview, self.service, bridge)
            run = watching._Run("1-0", str(directory / "output"), None)
            with mock.patch.object(watched, "_run_of", return_value=run):
                output.write(b"first")
                parts = watched._follow("ab" * 32)
                self.assertEqual([next(parts), next(parts)], [b"first", b""])
                output.write(b"a" * KEPT + b"b" * KEPT)
                self.assertEqual([next(parts), next(parts)], [b"b" * KEPT, b""])
                output.write(b"last")
                ended.set_result(None)
                self.assertEqual(list(parts), [b"last"])

    def test_who_goes_away_waits_for_no_job_any_more(self):
        ended = Future()
        bridge = mock.Mock(submit=mock.Mock(return_value=ended))
        watched = Watching(self.overview, self.service, bridge)
        with mock.patch.object(watched, "_run_of", return_value=None):
            parts = watched._follow("ab" * 32)
            self.assertEqual(next(parts), b"")
            parts.close()
        self.assertTrue(ended.cancelled())


class LooksOfTop(unittest.TestCase):
    def test_jobs_are_listed_again_where_what_is_new_is_not_all_that_is_missing(self):
        # The second look: when its server was started, how many have ended, how many it tells of.
        for started, latest, told, listed in (
            (1.0, 10, 0, False),
            (1.0, 12, 2, False),
            (1.0, 12, 1, True),
            (2.0, 10, 0, True),
            (2.0, 12, 2, True),
            (2.0, 3, 0, True),
        ):
            server = mock.Mock()
            looks = Looks(server)
            for status in (
                {"server": {"started": 1.0}, "latest": 10, "ended": []},
                {
                    "server": {"started": started},
                    "latest": latest,
                    "ended": told * [{"state": "done"}],
                },
            ):
                asked = []

                def answer(path, status=status, asked=asked):
                    asked.append(path)
                    return status if path.startswith("/status") else {"jobs": []}

                server.ask_json = answer
                with mock.patch.object(top, "render", return_value=[]):
                    looks.lines(80)
            with self.subTest((started, latest, told)):
                self.assertEqual(any(path.startswith("/jobs") for path in asked), listed)

    def test_it_ends_when_its_terminal_is_gone(self):
        with (
            mock.patch.object(top, "sys") as system,
            mock.patch.object(top.select, "select", lambda ready, *_: (ready, [], [])),
            mock.patch.object(top.os, "read", side_effect=[b"x", b""]),
        ):
            top._watch(mock.Mock(lines=lambda *_: []), 1.0)
        self.assertEqual(system.stdout.write.call_count, 2)


class Commands(Watched):
    def command(self, *arguments, **variables):
        return subprocess.run(
            [sys.executable, "-m", "seamless_jobserver", *arguments],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def test_top_prints_what_runs_waits_and_has_ended_and_nothing_a_terminal_would_obey(self):
        self.run_job(HOSTILE.replace("def f", "# \x1b[2J\ndef evil"), n=1)[1].result(PATIENCE)
        self.hold()
        shown = self.command("top", "--status-file", str(self.server.status_file))
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertIn("1 running, 0 waiting", shown.stdout)
        for name in ("waiting", "evil"):
            self.assertRegex(shown.stdout, rf"(?m) {name}$")
        self.assertNotIn("\x1b", shown.stdout)

    def test_commands_print_in_any_encoding(self):
        self.run_job("def 計(n):\n    return n\n", n=1)[1].result(PATIENCE)
        for command in ("top", "check"):
            with self.subTest(command):
                shown = self.command(
                    command, f"127.0.0.1:{self.server.port}", PYTHONIOENCODING="ascii"
                )
                self.assertEqual((shown.returncode, shown.stderr), (0, ""))
                if command == "top":
                    self.assertIn("\\u8a08", shown.stdout)

    def test_a_command_that_is_interrupted_ends_without_a_traceback(self):
        self.hold()
        # Where it is ignored, as it is for what a shell runs in the background, so it would be there.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        checking = subprocess.Popen(
            [sys.executable, "-m", "seamless_jobserver", "check", f"127.0.0.1:{self.server.port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with checking:
            said = next((line for line in checking.stdout if "waiting up to" in line), None)
            self.assertIsNotNone(said)
            checking.send_signal(signal.SIGINT)
            _, complaint = checking.communicate(timeout=PATIENCE)
        self.assertEqual((checking.returncode, complaint), (130, ""))

    def test_top_tells_why_jobs_failed_and_of_canceled_ones_that_go_on(self):
        self.run_job(FAILING, n=1)[1].result(PATIENCE)
        checksum, answer = self.hold()
        self.server.cancel(checksum)
        answer.result(PATIENCE)
        wait_until(lambda: self.status()["canceled_running"], "it is told")
        shown = self.command("top", f"127.0.0.1:{self.server.port}").stdout
        self.assertRegex(
            shown, r"(?m)^LATEST FAILURES\n\S+ +failed +failing: ValueError: no such luck$"
        )
        self.assertRegex(
            shown, rf"(?m)^{checksum[:12]} +canceled, still at work +\S+ s +1  waiting$"
        )
        self.assertIn("0 running, 0 waiting, 1 canceled, still at work;", shown)
        self.assertIn("ended in the last minute", shown)
        self.assertIn("0 lost", shown)

    def test_commands_end_quietly_when_nobody_reads_what_they_print(self):
        for command in ("top", "check"):
            with self.subTest(command):
                reading, writing = os.pipe()
                os.close(reading)
                with open(writing, "wb") as nowhere:
                    ended = subprocess.run(
                        [
                            sys.executable,
                            "-m",
                            "seamless_jobserver",
                            command,
                            f"127.0.0.1:{self.server.port}",
                        ],
                        stdout=nowhere,
                        stderr=subprocess.PIPE,
                        timeout=PATIENCE,
                        check=False,
                    )
                self.assertEqual((ended.returncode, ended.stderr), (0, b""))

    def test_the_status_file_leads_to_the_address_that_the_launcher_names(self):
        for host in ("127.0.0.2", "::1"):
            for named in (
                {"command": f"seamless-jobserver --host {host}"},
                {"network_interface": host},
            ):
                with self.subTest((host, named)):
                    server = Jobserver(
                        self.place / f"at-{host}-{len(named)}-{next(iter(named))}",
                        self.store.parameters(),
                        flags=("--host", host),
                        wait=False,
                    )
                    self.stack.callback(server.stop)
                    port = server.wait_running()
                    status = {**json.loads(server.status_file.read_text()), **named}
                    server.status_file.write_text(json.dumps(status))
                    shown = self.command("top", "--status-file", str(server.status_file))
                    self.assertIn(str(port), shown.stdout, shown.stderr)
                    server.stop()

    def test_top_fills_a_terminal_until_it_is_ended_and_gives_it_back(self):
        self.hold()
        for ending, code in ((lambda terminal, _: terminal.write(b"q"), 0), (_terminate, 143)):
            with self.subTest(code):
                self.check_terminal(ending, code)

    def check_terminal(self, end, code, *shell):
        """Show it in a terminal, if need be by way of a `shell`, until `end` has ended it."""
        ours, theirs = pty.openpty()
        before = termios.tcgetattr(theirs)
        with open(ours, "r+b", buffering=0) as terminal, open(theirs, "r+b", buffering=0) as side:
            command = [sys.executable, "-m", "seamless_jobserver", "top", "--interval", "0.1"]
            shown = subprocess.Popen(
                [*shell, *command, f"http://127.0.0.1:{self.server.port}"],
                stdin=side,
                stdout=side,
                env={**os.environ, "TERM": "xterm"},
            )
            printed = b""
            while b"1 running, 0 waiting" not in printed:
                self.assertTrue(select.select([terminal], [], [], PATIENCE)[0], printed)
                printed += terminal.read(4096)
            end(terminal, shown)
            closing, until = b"\x1b[?25h\x1b[?1049l", time.monotonic() + PATIENCE
            while shown.poll() is None or not printed.endswith(closing):
                self.assertLess(time.monotonic(), until, printed[-50:])
                if select.select([terminal], [], [], 0.05)[0]:
                    printed += terminal.read(4096)
            self.assertEqual(shown.poll(), code)
            self.assertEqual(termios.tcgetattr(side), before)

    def test_top_shows_of_everything_some_where_there_is_little_room(self):
        self.run_job(FAILING, n=1)[1].result(PATIENCE)
        held, _ = self.hold()
        shown = Looks(Server(f"127.0.0.1:{self.server.port}"))
        whole = shown.lines(80)
        (worker,) = (line for line in whole if re.match(r"1 +busy", line))
        with mock.patch.object(Server, "ask_json", self.with_many_workers):
            lines = Looks(Server(f"127.0.0.1:{self.server.port}")).lines(80, 24)
        self.assertLessEqual(len(lines), 24)
        text = "\n".join(lines)
        self.assertIn(worker, lines)
        self.assertRegex(text, r"… and \d+ more")
        self.assertIn(held[:12], text)
        self.assertIn("no such luck", text)

    def with_many_workers(self, path):
        found = self.get(path).json
        if "workers" in found:
            found["workers"] *= 64
        return found

    def test_top_asks_only_for_what_has_ended_since(self):
        for n in range(3):
            self.run_job(PRINTING, n=n)[1].result(PATIENCE)
        looks = Looks(Server(f"127.0.0.1:{self.server.port}"))
        asked = []

        def ask(path):
            asked.append(path)
            return self.get(path).json

        with mock.patch.object(looks._server, "ask_json", ask):
            looks.lines(80)
            self.run_job(FAILING, n=1)[1].result(PATIENCE)
            text = "\n".join(looks.lines(80))
        self.assertEqual(text.count("printing"), 3)
        self.assertIn("no such luck", text)
        self.assertEqual(asked[-1], "/status?after=3")
        self.assertEqual(len(asked), 4)

    def test_check_finds_all_well(self):
        checked = self.command("check", f"http://127.0.0.1:{self.server.port}")
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        self.assertEqual(checked.stdout.count("ok    "), 6, checked.stdout)
        self.assertIn("a trivial job: it ran", checked.stdout)

    def test_check_says_at_once_that_all_workers_are_busy_and_calls_that_no_failure(self):
        self.hold()
        checked = self.command("check", f"127.0.0.1:{self.server.port}", "--wait", "0.2")
        self.assertEqual(checked.returncode, 0, checked.stdout)
        self.assertIn("its workers: 1 busy; waiting up to 0.2 s", checked.stdout)
        self.assertRegex(checked.stdout, r"(?m)^later  its store: not tried")
        self.assertNotIn("FAILED", checked.stdout)

    def test_check_of_record_mode_leaves_the_job_to_a_client_that_makes_the_probes(self):
        server = self.start(name="in-record-mode", record=True)
        checked = self.command("check", f"127.0.0.1:{server.port}")
        self.assertEqual(checked.returncode, 0, checked.stdout)
        self.assertRegex(checked.stdout, r"(?m)^later  a trivial job: not tried: in record mode")

    def test_check_waits_for_a_worker_that_is_busy_at_first(self):
        _, answer = self.hold()
        checking = self.callers.submit(
            self.command, "check", f"127.0.0.1:{self.server.port}", "--wait", "50"
        )
        self.gate.touch()
        answer.result(PATIENCE)
        self.assertIn("a trivial job: it ran", checking.result(PATIENCE).stdout)

    def test_check_tells_which_part_of_the_store_is_down(self):
        store = Store(self.place / "store")
        self.stack.callback(store.stop)
        server = Jobserver(self.place / "on-it", store.parameters())
        self.stack.callback(server.stop)
        url = f"127.0.0.1:{server.port}"
        store.kill_database()
        checked = self.command("check", url)
        self.assertEqual(checked.returncode, 1)
        self.assertRegex(checked.stdout, r"(?m)^ok     its hashserver: reached")
        self.assertRegex(checked.stdout, r"(?m)^FAILED its database: not usable.*\n +\S")
        store.kill_hashserver()
        checked = self.command("check", url)
        self.assertEqual(checked.returncode, 1)
        self.assertRegex(checked.stdout, r"(?m)^FAILED its hashserver: not usable.*\n +\S")
        self.assertNotIn("Traceback", checked.stdout + checked.stderr)

    def test_json_of_another_form_is_one_clear_line(self):
        for answer in (b"[]", b"{}", b'{"workers": 3}', b'{"server": {}, "workers": []}', b"7"):
            with self.subTest(answer):
                port = self.stack.enter_context(
                    _listener(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer)
                    )
                )
                shown = self.command("top", f"127.0.0.1:{port}")
                self.assertEqual(shown.returncode, 1)
                self.assertEqual(len(shown.stderr.splitlines()), 1, shown.stderr)
                self.assertIn("in a form that this command does not know", shown.stderr)

    def test_check_says_what_fails_and_what_to_do(self):
        storeless = Jobserver(self.place / "storeless", {})
        self.stack.callback(storeless.stop)
        secret = self.place / "password"
        secret.touch(0o600)
        secret.write_text("open sesame")
        guarded = self.start("--password-file", str(secret), "--access", "any", name="guarded")
        silent = self.stack.enter_context(_listener())
        for url, expected in (
            (f"http://127.0.0.1:{storeless.port}", "names no writable one"),
            (f"http://127.0.0.1:{guarded.port}", "put it into the URL"),
            (f"http://x:open%20sesame@127.0.0.1:{guarded.port}", "a trivial job: it ran"),
            ("http://127.0.0.1:1", "nothing listens at"),
            ("http://no-such-host.invalid:5533", "is no known name"),
            ("http://login..cluster:5533", "login..cluster is no address"),
            (f"http://127.0.0.1:{self.store.hashserver_port}", "Something else listens there"),
            (f"http://127.0.0.1:{silent}", "does not speak HTTP"),
            (f"https://127.0.0.1:{self.server.port}", "does not speak TLS"),
        ):
            with self.subTest(url):
                checked = self.command("check", url)
                well = "ran" in expected
                self.assertEqual(checked.returncode, 0 if well else 1, checked.stdout)
                self.assertIn(expected, checked.stdout)
                self.assertNotIn("Traceback", checked.stdout + checked.stderr)
                self.assertNotIn("sesame", checked.stdout + checked.stderr)

    def test_a_target_that_makes_no_sense_is_one_line(self):
        for arguments, message in (
            (("check", "ftp://x"), "is no URL of a jobserver"),
            (("top", "--status-file", "/nonexistent"), "cannot be read"),
            (("top", "--interval", "0"), "use 0.1 to 3600 seconds"),
        ):
            with self.subTest(arguments):
                result = self.command(*arguments)
                self.assertEqual(result.returncode, 2)
                self.assertIn(message, result.stderr)

    def test_top_ends_at_its_keys_alone_and_ctrl_z_does_not_stop_it(self):
        self.hold()
        # A shell with a terminal of its own, which it lends to what it runs, as a person's does.
        shell = ("setsid", "--ctty", "sh", "-mc", '"$@"; exit $?', "sh")
        # Where it is ignored, as for what a shell runs in the background, so it would be there.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for key in (b"Q", b"\x03", b"\x04"):
            with self.subTest(key):
                self.check_terminal(
                    lambda terminal, _, key=key: self.press(terminal, key), 0, *shell
                )

    def press(self, terminal, key):
        """Press Ctrl-Z and a key that means nothing; then, once it has gone on looking, `key`."""
        terminal.write(b"\x1ax")
        looks = b""
        # More than a terminal holds of what was shown before.
        while looks.count(b"\x1b[H") < 10:
            self.assertTrue(select.select([terminal], [], [], PATIENCE)[0], looks)
            looks += terminal.read(4096)
        terminal.write(key)

    def test_top_prints_once_and_in_plain_text_on_a_terminal_that_is_dumb(self):
        self.hold()
        ours, theirs = pty.openpty()
        with open(ours, "r+b", buffering=0) as terminal, open(theirs, "r+b", buffering=0) as side:
            shown = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "seamless_jobserver",
                    "top",
                    f"127.0.0.1:{self.server.port}",
                ],
                stdin=side,
                stdout=side,
                env={**os.environ, "TERM": "dumb"},
            )
            self.addCleanup(shown.wait, PATIENCE)
            self.addCleanup(shown.kill)
            printed = b""
            while b"1 running, 0 waiting" not in printed:
                self.assertTrue(select.select([terminal], [], [], PATIENCE)[0], printed)
                printed += terminal.read(4096)
            self.assertNotIn(b"\x1b", printed)
            self.assertEqual(shown.wait(PATIENCE), 0)

    def test_top_asks_for_failures_among_more_jobs_than_it_was_told_of(self):
        few = self.place / "few-told"
        few.mkdir()
        self.fresh = constants(
            few, {"server.overview.FRESH": 0.05, "server.overview.MOST_ENDED": 1}
        )
        self.server = self.start(name="few")
        looks = Looks(Server(f"127.0.0.1:{self.server.port}"))
        self.run_job(PRINTING, n=1)[1].result(PATIENCE)
        looks.lines(80)
        for code, n in ((FAILING, 2), (PRINTING, 3), (PRINTING, 4)):
            self.run_job(code, n=n)[1].result(PATIENCE)
        text = "\n".join(looks.lines(80))
        self.assertIn("no such luck", text)
        self.assertEqual(text.count("printing"), 3)


def _named(text):
    """Return the names that a text in reStructuredText shows as such."""
    return set(re.findall(r"``([a-z_]+)``", text))


def _terminate(terminal, process):
    process.terminate()


@contextlib.contextmanager
def _listener(answer=b"220 mail.example ESMTP\r\n"):
    """Yield the port of something that answers so, by default with what is not HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


del Watched  # it is no test itself
