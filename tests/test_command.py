"""The command: its flags and variables, what it refuses, and how it starts and ends."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import time
import unittest
from unittest import mock

from seamless_jobserver import __version__, upload
from seamless_jobserver.cli import OPTIONS, _parse
from seamless_jobserver.options import ENVIRONMENT
from seamless_jobserver.processtree import ProcessId
from tests.stack import (
    JOBSERVER,
    JOBSERVER_PYTHON,
    PATIENCE,
    ROOT,
    Jobserver,
    free_port,
    read_json,
    temporary_directory,
    wait_until,
)

BAD_VALUES = [
    (["--port", "http"], "--port: 'http' is not a port"),
    (["--certfile", "~nobody-at-all/x"], "--certfile: '~nobody-at-all/x': whose home is that?"),
    (["--port", "70000"], "--port: '70000' is not a port"),
    (["--port", "65536"], "--port: '65536' is not a port"),
    (["--port", "-1"], "--port"),
    (["--port", "٥٥"], "--port: '٥٥' is not a port"),
    (["--port-range", "40000", "30000"], "40000 to 30000 is no range"),
    (["--port-range", "0", "100"], "--port-range: 0 to 100 is no range of ports"),
    (["--port-range", "1", "99999"], "--port-range: '99999' is not a port"),
    (["--port-range", "30000"], "--port-range"),
    (["--port", "30000", "--port-range", "1", "2"], "not allowed with"),
    (["--timeout", "0"], "--timeout: '0' is not a number of seconds"),
    (["--timeout", "-3"], "--timeout"),
    (["--timeout", "nan"], "--timeout: 'nan'"),
    (["--timeout", "soon"], "--timeout: 'soon'"),
    (["--workers", "0"], "--workers: '0' is not a number of workers"),
    (["--workers", "-2"], "--workers"),
    (["--workers", "two"], "--workers: 'two'"),
    (["--workers", "1.5"], "--workers: '1.5'"),
    (["--host", "no-such-host.invalid"], "--host: 'no-such-host.invalid'"),
    (["--host", ""], "--host"),
    (["--host", "1.2.3.4.5"], "--host: '1.2.3.4.5'"),
    (["--input-timeout", "0"], "--input-timeout: '0' is not a number of seconds"),
    (["--store-timeout", "inf"], "--store-timeout: 'inf'"),
    (["--job-timeout", "1h"], "--job-timeout: '1h'"),
    (["--memory-limit", "lots"], "--memory-limit: 'lots' is not a size"),
    (["--memory-limit", "0"], "--memory-limit: '0'"),
    (["--memory-limit", "1.5G"], "--memory-limit: '1.5G'"),
    (["--max-body", "G"], "--max-body: 'G'"),
    (["--max-connections", "0"], "--max-connections: '0'"),
    (["--grace", "-1"], "--grace: '-1'"),
    (["--allow", "10.1"], "--allow: '10.1' is no address or network"),
    (["--no-such-flag"], "--no-such-flag"),
    (["stray"], "stray"),
]

BAD_ENVIRONMENT = [
    ({"SEAMLESS_JOBSERVER_STATUS_FILE": "~nobody-at-all/x"}, "whose home is that?"),
    ({"SEAMLESS_JOBSERVER_PORT": "x"}, "SEAMLESS_JOBSERVER_PORT: 'x' is not a port"),
    (
        {"SEAMLESS_JOBSERVER_HOST": "nonsense.invalid"},
        "SEAMLESS_JOBSERVER_HOST: 'nonsense.invalid'",
    ),
    ({"SEAMLESS_JOBSERVER_PORT_RANGE": "9 1"}, "SEAMLESS_JOBSERVER_PORT_RANGE: 9 to 1 is no"),
    ({"SEAMLESS_JOBSERVER_PORT_RANGE": "5"}, "SEAMLESS_JOBSERVER_PORT_RANGE: '5' is not START END"),
    ({"SEAMLESS_JOBSERVER_RECLAIM_CANCELED": "maybe"}, "'maybe' is neither yes nor no"),
    ({"SEAMLESS_JOBSERVER_WORKERS": "0"}, "SEAMLESS_JOBSERVER_WORKERS: '0'"),
    ({"SEAMLESS_JOBSERVER_TIMEOUT": "-1"}, "SEAMLESS_JOBSERVER_TIMEOUT: '-1'"),
    (
        {"SEAMLESS_JOBSERVER_PORT": "5", "SEAMLESS_JOBSERVER_PORT_RANGE": "5 6"},
        "a port or a port range, not both",
    ),
]


def command(*arguments, env=None, timeout=PATIENCE):
    return subprocess.run(
        [str(JOBSERVER), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def neighbouring_ports():
    """Take two ports next to each other, and yield the lower one."""
    for port in range(43000, 60000, 2):
        with contextlib.ExitStack() as taken:
            try:
                for number in (port, port + 1):
                    taken.enter_context(socket.create_server(("127.0.0.1", number)))
            except OSError:
                continue
            yield port
            return


class WithDirectory(unittest.TestCase):
    """A directory for each test, and servers that are gone when it ends."""

    def setUp(self):
        context = temporary_directory()
        self.directory = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def start(self, *flags, env=None, wait=True, parameters=None, workers=1):
        server = Jobserver(
            self.directory / "jobserver",
            parameters or {},
            flags=flags,
            env=env,
            wait=wait,
            workers=workers,
        )
        self.addCleanup(server.stop)
        return server


class Values(unittest.TestCase):
    def test_values_that_make_no_sense_get_one_line_and_exit_code_2(self):
        for arguments, message in BAD_VALUES:
            with self.subTest(arguments):
                result = command(*arguments)
                self.check_refusal(result, message)

    def test_variables_that_make_no_sense_are_named(self):
        for variables, message in BAD_ENVIRONMENT:
            with self.subTest(variables):
                self.check_refusal(command(env=variables), message)

    def test_sizes_have_the_units_that_they_say(self):
        for text, size in (
            ("7", 7),
            ("2k", 2 * 2**10),
            ("500M", 500 * 2**20),
            ("16g", 16 * 2**30),
            ("3T", 3 * 2**40),
        ):
            with self.subTest(text):
                self.assertEqual(_parse(["--max-body", text])["max_body"], size)

    def test_a_path_cannot_be_found_from_a_directory_that_is_gone(self):
        gone = FileNotFoundError(2, "No such file or directory")
        with (
            mock.patch.object(os, "getcwd", side_effect=gone),
            contextlib.redirect_stderr(io.StringIO()) as told,
            self.assertRaises(SystemExit) as end,
        ):
            _parse(["--status-file", "status.json"])
        self.assertEqual(end.exception.code, 2)
        self.assertIn(
            "--status-file: 'status.json': the working directory is gone", told.getvalue()
        )

    def test_an_upload_wants_the_urls_of_servers(self):
        for option in ("--store", "--database"):
            for url in ("localhost:61100", "http://h:x", "http://a..b", "ftp://h", "http://:5"):
                with (
                    self.subTest((option, url)),
                    contextlib.redirect_stderr(io.StringIO()) as told,
                    self.assertRaises(SystemExit) as end,
                ):
                    upload.main([option, url])
                self.assertEqual(end.exception.code, 2)
                self.assertIn(f"{option}: {url!r} is no URL of a server", told.getvalue())

    def test_of_a_name_with_several_addresses_the_one_of_the_launcher_is_taken(self):
        answers = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ]
        for found, address in (
            (answers, (socket.AF_INET, "127.0.0.1")),
            (answers[:1], (socket.AF_INET6, "::1")),
        ):
            numeric = socket.gaierror(socket.EAI_NONAME, "no number")
            with mock.patch.object(socket, "getaddrinfo", side_effect=[numeric, found]):
                self.assertEqual(_parse(["--host", "name"])["address"], address)

    def test_a_flag_for_the_port_wins_over_the_other_variable_whatever_that_holds(self):
        variables = {
            f"{ENVIRONMENT}PORT": "x",
            f"{ENVIRONMENT}PORT_RANGE": "9 1",
        }
        for arguments, ports in (
            (["--port", "7000"], range(7000, 7001)),
            (["--port-range", "7000", "7001"], range(7000, 7002)),
        ):
            with self.subTest(arguments), mock.patch.dict(os.environ, variables):
                self.assertEqual(_parse(arguments)["ports"], ports)

    def check_refusal(self, result, message):
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("seamless-jobserver: error: "), result.stderr)
        self.assertIn(message, result.stderr)

    def test_version_and_help_are_for_a_person(self):
        self.assertEqual(command("--version").stdout, f"seamless-jobserver {__version__}\n")
        text = command("--help").stdout
        for word in ("--port-range START END", "--status-file PATH", "SEAMLESS_JOBSERVER_WORKERS"):
            self.assertIn(word, text)

    def test_the_readme_lists_every_option_with_its_variable_and_default(self):
        readme = (ROOT / "README.rst").read_text()
        for option in OPTIONS:
            with self.subTest(option.name):
                row = next(
                    line
                    for line in readme.splitlines()
                    if line.startswith((f"``--{option.name} ", f"``--{option.name}``"))
                )
                self.assertIn(f"``{option.variable}``", row)
                if option.default is not None:
                    self.assertIn(f" {option.default} ", row)

    def test_the_module_runs_like_the_command(self):
        result = subprocess.run(
            [str(JOBSERVER_PYTHON), "-m", "seamless_jobserver", "--version"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        self.assertIn(__version__, result.stdout)


class Listening(WithDirectory):
    def test_it_welcomes_and_reports_the_port_that_it_was_given(self):
        port = free_port()
        server = self.start("--port", str(port))
        self.assertEqual(server.port, port)
        self.assertEqual(server.status["status"], "running")
        self.assertEqual(
            server.log.splitlines()[0], f"Welcome to the Seamless jobserver on 127.0.0.1:{port}"
        )

    def test_a_body_may_be_as_large_as_it_is_told(self):
        server = self.start("--max-body", "1M")
        for size, status in ((2**20, 400), (2**20 + 1, 413)):
            answer = server.request("GET", "/run-transformation", size * b"x")
            self.assertEqual(answer.status, status, answer.text)

    def test_a_port_is_chosen_from_the_range(self):
        port = free_port()
        server = self.start("--port-range", str(port), str(port))
        self.assertEqual(server.port, port)

    def test_variables_set_what_flags_leave_open_and_flags_win(self):
        port, other = free_port(), free_port()
        env = {"SEAMLESS_JOBSERVER_PORT": str(other), "SEAMLESS_JOBSERVER_TIMEOUT": "0.3"}
        server = self.start("--port", str(port), env=env, wait=False)
        self.assertEqual(server.process.wait(PATIENCE), 0, "the timeout came from the variable")
        self.assertEqual(server.status["port"], port)
        self.assertIn("no activity for 0.3 s", server.log)

    def test_a_range_flag_wins_over_a_port_variable(self):
        port = free_port()
        env = {"SEAMLESS_JOBSERVER_PORT": "1"}
        self.assertEqual(self.start("--port-range", str(port), str(port), env=env).port, port)

    def test_names_and_both_families_of_addresses_are_listened_on(self):
        for host in ("localhost", "127.0.0.1", "::1"):
            with self.subTest(host):
                server = self.start("--host", host)
                address = "::1" if host == "::1" else "127.0.0.1"
                with socket.create_connection((address, server.port), timeout=PATIENCE) as peer:
                    peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    self.assertIn(b"200 OK", peer.recv(65536))
                server.stop()

    def test_a_taken_port_ends_it_with_a_line_that_names_the_port(self):
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = str(holder.getsockname()[1])
            for flags, message in (
                (("--port", port), f"cannot listen on port {port}"),
                (("--port-range", port, port), f"port {port} of 127.0.0.1"),
            ):
                with self.subTest(flags):
                    server = self.start(*flags, wait=False)
                    self.assertEqual(server.process.wait(PATIENCE), 1)
                    self.assertEqual(server.log.count("\n"), 1, server.log)
                    self.assertIn(message, server.log)
                    self.assertEqual(server.status["status"], "failed")
                    self.assertNotIn("port", server.status)
                    server.log_file.unlink()

    def test_an_address_that_is_not_here_is_named(self):
        server = self.start("--host", "192.0.2.1", "--port", "0", wait=False)
        self.assertEqual(server.process.wait(PATIENCE), 1)
        self.assertIn("192.0.2.1", server.log)
        self.assertIn("no address of this machine", server.log)

    def test_a_spool_that_others_can_write_to_is_told_of_before_it_is_needed(self):
        spool = self.directory / "spool"
        spool.mkdir()
        spool.chmod(0o770)
        server = self.start(env={"SEAMLESS_JOBSERVER_SPOOL": str(spool)})
        told = f"{spool} is not used for results"
        wait_until(lambda: told in server.log, "it is told")
        self.assertIn(f"chmod go-w {spool}", server.log)

    def test_an_exhausted_range_is_named(self):
        with neighbouring_ports() as port:
            server = self.start("--port-range", str(port), str(port + 1), wait=False)
            self.assertEqual(server.process.wait(PATIENCE), 1)
            self.assertIn(f"no free port from {port} to {port + 1}", server.log)
            self.assertEqual(server.status["status"], "failed")

    def test_without_a_status_file_it_serves_too(self):
        port = free_port()
        process = subprocess.Popen(
            [str(JOBSERVER), "--port", str(port), "--host", "127.0.0.1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertIn(f"127.0.0.1:{port}", process.stdout.readline())
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)


class StatusFiles(WithDirectory):
    def test_a_file_that_is_no_status_file_ends_it_with_one_line(self):
        path = self.directory / "status.json"
        for content in (b"{", b"[]"):
            path.write_bytes(content)
            with self.subTest(content):
                result = command("--status-file", str(path), "--port", "0")
                self.assertEqual(result.returncode, 1)
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                self.assertIn(str(path), result.stderr)
                self.assertEqual(path.read_bytes(), content)

    def test_the_file_may_appear_after_the_start(self):
        path = self.directory / "late.json"
        process = subprocess.Popen(
            [str(JOBSERVER), "--status-file", str(path), "--port", "0", "--host", "127.0.0.1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        written = self.directory / "written.json"
        written.write_text('{"pid": 1, "status": "starting"}')
        written.rename(path)
        self.assertIn("Welcome", process.stdout.readline())
        wait_until(lambda: read_json(path).get("status") == "running", "the file says so")
        self.assertEqual(read_json(path)["pid"], 1)
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_a_signal_while_it_waits_for_the_file_ends_it(self):
        path = self.directory / "never.json"
        process = subprocess.Popen([str(JOBSERVER), "--status-file", str(path)])
        self.addCleanup(process.kill)
        # Its handlers are installed before it begins to wait, and an early signal ends it as well.
        wait_until(lambda: handles(process.pid, signal.SIGTERM), "it handles signals")
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)


def handles(pid, number):
    """Whether the process has installed a handler for the signal (proc_pid_status(5), SigCgt)."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


class Workers(WithDirectory):
    def test_a_missing_package_is_reported_before_it_listens(self):
        code = (
            "import sys, importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda n, *a: None if n == 'seamless_transformer' else find(n, *a)\n"
            "from seamless_jobserver.cli import main; raise SystemExit(main())\n"
        )
        result = self.start_and_fail(code)
        self.assertEqual(result.stdout, "")
        self.assertIn("missing on this machine: seamless-transformer", result.stderr)

    def start_and_fail(self, code):
        """Run the command as a program does that meddles with it; return what came of it."""
        path = self.directory / "status.json"
        path.write_text("{}")
        python = [JOBSERVER_PYTHON, "-W", "always::ResourceWarning", "-c", code]
        result = subprocess.run(
            [*python, "--status-file", path, "--port", "0"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(result.returncode, 1)
        self.assertEqual(read_json(path)["status"], "failed")
        return result

    def test_want_of_threads_is_one_line_and_in_the_status_file(self):
        code = (
            "import sys, threading\n"
            "from seamless_jobserver import cli\n"
            'def start(thread): raise RuntimeError("can\'t start new thread")\n'
            "threading.Thread.start = start\n"
            "sys.exit(cli.main())\n"
        )
        result = self.start_and_fail(code)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertIn("can't start new thread. Is a limit on processes reached", result.stderr)

    def test_workers_that_cannot_start_end_it_with_the_cause_everywhere(self):
        # The address of a database is missing, which only a worker finds out.
        server = self.start(parameters={"database": [{"readonly": True}]}, workers=2, wait=False)
        self.assertEqual(server.process.wait(PATIENCE), 1)
        self.assertIn("Database client entry requires 'url'", server.log)
        self.assertNotIn("Traceback", server.log)
        self.assertEqual(server.status["status"], "failed")

    def test_jobs_that_wait_for_workers_are_told_when_none_can_start(self):
        broken = self.directory / "broken"
        (broken / "seamless_remote").mkdir(parents=True)
        gate = self.directory / "gate"
        os.mkfifo(gate)
        (broken / "seamless_remote" / "__init__.py").write_text(
            f"open({str(gate)!r}).read()\nraise ImportError('its disk is gone')\n"
        )
        server = self.start(env={"PYTHONPATH": str(broken)})
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as caller:
            body = json.dumps(
                {
                    "transformation_dict": {
                        "__output__": ["result", "plain", None],
                        "code": ["python", None, "ab" * 32],
                    },
                    "tf_checksum": "cd" * 32,
                }
            ).encode()
            head = f"GET /run-transformation HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            caller.sendall(head.encode() + b"\r\n\r\n" + body)
            wait_until(lambda: "received" in server.log, "the job waits for a worker")
            self.assertEqual(server.request("GET", "/healthcheck").text, "OK")
            gate.write_text("")  # and the import goes on, and fails
            answer = b""
            while chunk := caller.recv(65536):
                answer += chunk
        self.assertIn(b" 503 ", answer)
        self.assertIn(b"its disk is gone", answer)
        self.assertEqual(server.process.wait(PATIENCE), 1)
        self.assertEqual(server.status["status"], "failed")


class Ending(WithDirectory):
    def check_gone(self, everything):
        wait_until(lambda: not [one for one in everything if one.alive], "nobody is left")

    def test_each_signal_ends_it_in_order_and_leaves_nobody_behind(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(number.name):
                # Whoever runs the tests may ignore a hangup, and the server would then too.
                before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
                try:
                    server = self.start(workers=2)
                finally:
                    signal.signal(signal.SIGHUP, before)
                wait_until(lambda s=server: s.log.count("is ready") == 2, "its workers are ready")
                everything = server.everything_below()
                self.assertGreaterEqual(len(everything), 3, "two workers and the guardian")
                began = time.monotonic()
                server.process.send_signal(number)
                self.assertEqual(server.process.wait(PATIENCE), 0)
                self.assertLess(time.monotonic() - began, 10)
                self.assertIn(f"received {number.name}", server.log)
                self.assertNotIn("Traceback", server.log)
                self.check_gone(everything)
                server.log_file.unlink()

    def test_a_worker_that_cannot_be_killed_does_not_keep_it(self):
        # Such as one that waits for a disk which does not answer. Here nobody tries to kill it.
        program = self.directory / "program.py"
        program.write_text(
            "import sys\n"
            "from seamless_jobserver import cli\n"
            "from seamless_jobserver.server import guardian, slots, workers\n"
            "if __name__ == '__main__':\n"
            "    slots.kill_tree = workers.kill_tree = lambda root: set()\n"
            "    guardian.Guardian.watch = lambda self, process: None\n"
            "    sys.exit(cli.main())\n"
        )
        arguments = ("--port", "0", "--host", "127.0.0.1", "--workers", "1", "--grace", "0.1")
        server = subprocess.Popen(
            [str(JOBSERVER_PYTHON), str(program), *arguments], stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait, PATIENCE)
        self.addCleanup(server.kill)
        ready = next(line for line in server.stdout if "is ready (pid" in line)
        worker = int(ready.rpartition(" ")[2].rstrip(")\n"))
        os.kill(worker, signal.SIGSTOP)
        self.addCleanup(os.kill, worker, signal.SIGKILL)
        server.terminate()
        self.assertEqual(server.wait(PATIENCE), 0)
        self.assertTrue(os.path.exists(f"/proc/{worker}"))

    def test_a_signal_during_the_start_ends_it_too(self):
        server = self.start(wait=False)
        wait_until(lambda: handles(server.process.pid, signal.SIGTERM), "it handles signals")
        server.process.terminate()
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.assertNotIn("Traceback", server.log)

    def test_a_hangup_is_ignored_under_nohup(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            server = self.start()
        finally:
            signal.signal(signal.SIGHUP, before)
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(server.request("GET", "/healthcheck").text, "OK")
        server.process.terminate()
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.assertNotIn("SIGHUP", server.log)

    def test_when_it_is_killed_its_workers_helpers_and_files_go_too(self):
        temporary = self.directory / "tmp"
        temporary.mkdir()
        server = self.start(workers=2, env={"TMPDIR": str(temporary)})
        wait_until(lambda: server.log.count("is ready") == 2, "its workers are ready")
        everything = server.everything_below()
        server.kill()
        self.check_gone(everything)
        wait_until(lambda: not list(temporary.iterdir()), "its files are gone")

    def test_without_requests_it_ends_after_the_timeout_and_requests_put_that_off(self):
        server = self.start("--timeout", "3")
        until = time.monotonic() + 4.5
        while (asked := time.monotonic()) < until:
            self.assertEqual(server.request("GET", "/healthcheck").status, 200)
            last = asked
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.assertGreaterEqual(time.monotonic() - last, 3)
        self.assertIn("no activity for 3 s", server.log)

    def test_its_temporary_directory_goes_away_with_it(self):
        temporary = self.directory / "tmp"
        temporary.mkdir()
        server = self.start(env={"TMPDIR": str(temporary)})
        wait_until(lambda: "is ready" in server.log, "its worker is ready")
        self.assertEqual(len(list(temporary.iterdir())), 1)
        server.process.terminate()
        self.assertEqual(server.process.wait(PATIENCE), 0)
        self.assertEqual(list(temporary.iterdir()), [])

    def test_identities_are_those_of_running_processes(self):
        server = self.start()
        self.assertTrue(ProcessId.of(server.process.pid).alive)
