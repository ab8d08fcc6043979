"""Whole workflows: the real client, launched services, and Seamless's own commands on them."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import unittest
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from examples.local_cluster import LocalCluster
from seamless_jobserver.processtree import ProcessId
from tests.stack import (
    JOBSERVER,
    JOBSERVER_PYTHON,
    PATIENCE,
    ROOT,
    TESTS_BIN,
    read_json,
    temporary_directory,
    wait_until,
)

BEGIN = "import seamless.config\nseamless.config.init()\nfrom seamless.transformer import direct\n"
END = "import seamless\nseamless.close()\n"
TEN_JOBS = (
    BEGIN
    + """
@direct
def power(base, exponent):
    return base ** exponent

print([power(number, {exponent}) for number in range(10)])
"""
    + END
)
FAILING = (
    BEGIN
    + """
@direct
def divide(a, b):
    print("dividing", a, "by", b)
    return a / b

try:
    divide(1, 0)
except Exception as error:
    print("IT SAYS", error)
"""
    + END
)
ASKING = (
    BEGIN
    + """
@direct
def asked(path):
    import os, time
    while not os.path.exists(path): time.sleep(0.01)
    return 7

import os
with open({pid!r}, "w") as file: file.write(str(os.getpid()))
print("IT IS", asked({gate!r}))
"""
)
WAITING = (
    BEGIN
    + """
@direct
def wait(path):
    import os, time
    while not os.path.exists(path): time.sleep(0.01)

try:
    wait({gate!r})
except Exception as error:
    print("IT SAYS", error)
"""
    + END
)


def ten_jobs(exponent):
    return TEN_JOBS.format(exponent=exponent)


@contextlib.contextmanager
def a_cluster():
    """Yield a cluster and the directory that it is in; its services end with the block."""
    with temporary_directory() as directory:
        # Of the jobserver's environment its command alone: the clients and the other services
        # are those of the tests.
        programs = directory / "bin"
        programs.mkdir()
        (programs / "seamless-jobserver").symlink_to(JOBSERVER)
        cluster = LocalCluster(directory / "home", [programs, TESTS_BIN])
        cluster.environment["SEAMLESS_JOBSERVER_INPUT_TIMEOUT"] = "20"
        try:
            yield cluster, directory
        finally:
            cluster.stop()


def run_script(cluster, text, timeout=120):
    script = cluster.project / "script.py"
    script.write_text(text)
    return cluster.run_workflow(sys.executable, script.name, timeout=timeout)


class OnACluster(unittest.TestCase):
    """Each test on a cluster of its own."""

    def setUp(self):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.cluster, self.directory = stack.enter_context(a_cluster())

    def run_script(self, text):
        return run_script(self.cluster, text)

    def running_jobs(self):
        """Return the checksums of the jobs that run; none where there is no jobserver."""
        try:
            return [job["checksum"] for job in self.status()["running"]]
        except (ValueError, KeyError, OSError):
            return []

    def status(self):
        port = read_json(self.cluster.status_file("jobserver"))["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=PATIENCE) as answer:
            return json.load(answer)

    def jobserver(self):
        return ProcessId.of(read_json(self.cluster.status_file("jobserver"))["pid"])


class Workflows(OnACluster):
    """All on one cluster, each with jobs of its own."""

    @classmethod
    def setUpClass(cls):
        stack = contextlib.ExitStack()
        cls.addClassCleanup(stack.close)
        cls.cluster, cls.directory = stack.enter_context(a_cluster())

    def setUp(self):
        self.log_before = self.cluster.log("jobserver")

    def count(self, event):
        """Return how often the jobserver's log tells of an event, since the test began."""
        return self.cluster.log("jobserver").removeprefix(self.log_before).count(event)

    def test_functions_run_on_the_jobserver_and_return_their_values(self):
        result = self.run_script(ten_jobs(3))
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertIn(str([number**3 for number in range(10)]), result.stdout)
        self.assertEqual(self.count(" done in "), 10)

    def test_a_second_script_finds_results_and_servers_again(self):
        self.run_script(ten_jobs(4))
        first = self.jobserver()
        self.assertEqual(self.count(" done in "), 10)
        self.log_before = self.cluster.log("jobserver")
        result = self.run_script(ten_jobs(4))
        self.assertIn(str([number**4 for number in range(10)]), result.stdout)
        self.assertEqual(self.jobserver(), first)
        self.assertEqual(self.count("received"), 0)

    def test_a_failing_function_shows_its_traceback_and_output_to_the_client(self):
        text = self.run_script(FAILING).stdout
        self.assertIn("ZeroDivisionError: division by zero", text)
        self.assertIn("return a / b", text)
        self.assertIn("dividing 1 by 0", text)
        # The client has sent it five times.
        self.assertEqual(self.count(": failed"), 1)

    def test_what_ended_after_its_script_was_killed_is_there_when_that_is_run_again(self):
        gate, pid = self.directory / "asking-gate", self.directory / "pid"
        script = ASKING.format(gate=str(gate), pid=str(pid))
        with ThreadPoolExecutor(1) as caller:
            killed = caller.submit(self.run_script, script)
            try:
                wait_until(self.running_jobs, "its job runs")
                os.kill(int(pid.read_text()), signal.SIGKILL)
                self.assertEqual(killed.result(PATIENCE).returncode, -signal.SIGKILL)
                wait_until(lambda: self.count("nobody waits for it any more"), "it is missed")
            finally:
                gate.touch()
        wait_until(lambda: self.count("its result is in the database"), "it is recorded")
        self.assertIn("IT IS 7", self.run_script(script).stdout)
        self.assertEqual(self.count(" done in "), 1)

    def test_services_are_listed_and_stopped_by_seamless_own_commands(self):
        self.run_script(ten_jobs(5))
        listed = self.cluster.run("seamless-service-ps").stdout
        port = str(read_json(self.cluster.status_file("jobserver"))["port"])
        (line,) = (line for line in listed.splitlines() if line.startswith("jobserver"))
        self.assertIn(port, line)
        process = self.jobserver()
        self.assertTrue(process.alive)
        stopped = self.cluster.run("seamless-service-stop", "--service", "jobserver").stdout
        self.assertRegex(stopped, "jobserver-.*: (stopped|already gone)")
        wait_until(lambda: not process.alive, "the jobserver is gone")
        self.assertIn("ended", self.cluster.log("jobserver"))

    def test_a_running_transformation_is_canceled_by_checksum(self):
        gate = self.directory / "gate"
        outputs = []
        script = WAITING.format(gate=str(gate))
        caller = threading.Thread(target=lambda: outputs.append(self.run_script(script).stdout))
        caller.start()
        try:
            received = wait_until(
                self.running_jobs,
                "the job has arrived",
            )
            canceled = self.cluster.run("seamless-cancel", received[0]).stdout
            self.assertIn("jobserver: canceled", canceled)
            caller.join(PATIENCE)
            self.assertFalse(caller.is_alive(), "the caller was told before the work ended")
        finally:
            gate.touch()
            caller.join(PATIENCE)
        self.assertIn("IT SAYS", outputs[0])
        self.assertIn("Transformation was canceled", outputs[0])

    def test_variables_reach_a_launched_jobserver_and_its_flags_win(self):
        self.cluster.run("seamless-service-stop", "--service", "jobserver")
        self.addCleanup(self.cluster.run, "seamless-service-stop", "--service", "jobserver")
        variables = {"WORKERS": "none", "RECLAIM_CANCELED": "1"}
        named = {f"SEAMLESS_JOBSERVER_{name}": value for name, value in variables.items()}
        with mock.patch.dict(self.cluster.environment, named):
            result = self.run_script(ten_jobs(6))
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertTrue(self.status()["server"]["reclaims"])


class CommandLine(OnACluster):
    def test_commands_run_on_files_directories_and_compressed_files(self):
        project = self.cluster.project
        (project / "a.txt").write_text("one\n")
        (project / "b.txt").write_text("two\n")
        (project / "d" / "sub").mkdir(parents=True)
        (project / "d" / "x.txt").write_text("in a directory\n")
        (project / "d" / "sub" / "y.txt").write_text("below\n")
        checksum = hashlib.sha256(b"one\n").hexdigest()
        commands = {
            "files": (("cat", "a.txt", "b.txt"), "one\ntwo\n"),
            "a directory": (("-c", "cat d/x.txt d/sub/y.txt"), "in a directory\nbelow\n"),
            "a pipe": (("-c", "cat a.txt b.txt | wc -l"), "2\n"),
            "a compressed file": (("-c", "cat a.txt a.txt"), "one\none\n"),
        }
        for name, (command, expected) in commands.items():
            with self.subTest(name):
                if "compressed" in name:
                    (stored,) = self.cluster.directory.rglob(checksum)
                    stored.with_name(f"{checksum}.gz").write_bytes(gzip.compress(b"one\n"))
                    stored.unlink()
                printed = self.cluster.run_workflow("seamless-run", *command).stdout
                self.assertTrue(printed.endswith(expected), printed)
        self.assertEqual(self.cluster.log("jobserver").count(" done in "), len(commands))

    def test_several_result_files_come_back(self):
        (self.cluster.project / "a.txt").write_text("one\n")
        captures = ("-cp", "first", "-cp", "second")
        command = "cat a.txt > first; cat a.txt a.txt > second"
        result = self.cluster.run_workflow("seamless-run", *captures, "-c", command)
        printed = result.stdout
        self.assertEqual((self.cluster.project / "first").read_text(), "one\n", printed)
        self.assertEqual((self.cluster.project / "second").read_text(), "one\none\n")


class FreshServers(unittest.TestCase):
    def test_scripts_in_a_row_on_fresh_servers_all_end(self):
        # Twenty where the stand-ins do the work. Side by side, each script on servers of its own.
        each = 1 if Path(sys.executable) == JOBSERVER_PYTHON else 10

        def run_row(row):
            for _ in range(each):
                with a_cluster() as (cluster, _):
                    result = run_script(cluster, ten_jobs(3))
                    self.assertEqual(result.returncode, 0, (row, result.stdout))
                    self.assertIn(str([number**3 for number in range(10)]), result.stdout)
                    self.assertEqual(cluster.log("jobserver").count(" done in "), 10)

        with ThreadPoolExecutor(2) as rows:
            list(rows.map(run_row, range(2)))


class LostInputs(unittest.TestCase):
    def test_a_workflow_whose_client_has_lost_an_input_is_run_again_twice_at_most(self):
        script = "echo run >> runs; [ $(wc -l < runs) -gt {lost} ] || echo Input not delivered"
        for lost, runs, said in ((0, 1, ""), (1, 2, ""), (5, 3, "Input not delivered\n")):
            with self.subTest(lost=lost), temporary_directory() as directory:
                cluster = LocalCluster(directory / "home", [])
                with contextlib.redirect_stdout(io.StringIO()):
                    result = cluster.run_workflow("sh", "-c", script.format(lost=lost))
                self.assertEqual(result.stdout, said)
                self.assertEqual((cluster.project / "runs").read_text(), "run\n" * runs)


class Demonstration(unittest.TestCase):
    def test_the_demonstration_shows_results_and_record_and_leaves_nothing(self):
        with temporary_directory() as directory:
            result = subprocess.run(
                [sys.executable, str(ROOT / "examples" / "demo.py")],
                env={
                    **os.environ,
                    "TMPDIR": str(directory),
                    "SEAMLESS_JOBSERVER_INPUT_TIMEOUT": "20",
                },
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            for expected in ("add(20, 22) = 42", "sselmaes", '"remote_target": "jobserver"'):
                self.assertIn(expected, result.stdout)
            self.assertEqual(list(directory.iterdir()), [])
