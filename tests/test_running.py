"""Jobs on a real store: results, failures, output, and what survives what."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seamless_jobserver.processtree import ProcessId
from tests.stack import (
    JOBSERVER_PYTHON,
    PATIENCE,
    ROOT,
    Jobserver,
    Store,
    temporary_directory,
    wait_until,
)

ADD = "def f(a, b):\n    return a + b\n"
IDENTITY = "def f(a):\n    return a\n"
MEGABYTE = 1024 * 1024


_stores = {}


def store_of_module(module):
    """Return the store that classes of a module have in common; it ends with the last of them."""
    if module not in _stores:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(temporary_directory())
            store = _stores[module] = Store(directory / "store")
            stack.callback(store.stop)
            stack.callback(_stores.pop, module)
            unittest.addModuleCleanup(stack.pop_all().close)
    return _stores[module]


class OnAStore(unittest.TestCase):
    """A store, a directory for the class, and as many jobservers as it likes for each test.

    The store is the class's own, unless it says that it can do with one for all of its module.
    """

    shares_store = False

    @classmethod
    def setUpClass(cls):
        with contextlib.ExitStack() as stack:
            cls.directory = stack.enter_context(temporary_directory())
            if cls.shares_store:
                cls.store = store_of_module(cls.__module__)
            else:
                cls.store = Store(cls.directory / "store")
                stack.callback(cls.store.stop)
            cls.addClassCleanup(stack.pop_all().close)

    def start(self, *flags, parameters=None, name=None, **settings):
        server = Jobserver(
            self.directory / (name or f"jobserver-{len(list(self.directory.iterdir()))}"),
            self.store.parameters() if parameters is None else parameters,
            flags=flags,
            **settings,
        )
        self.addCleanup(server.stop)
        return server

    def result(self, answer):
        self.assertEqual(answer.status, 200, answer.text)
        return self.store.get(answer.json["result_checksum"])

    def value(self, answer):
        return json.loads(self.result(answer))


class OnOneServer(OnAStore):
    """One server with two workers, for all tests of a class."""

    shares_store = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = Jobserver(cls.directory / "shared", cls.store.parameters(), workers=2)
        cls.addClassCleanup(cls.server.stop)


class ManyJobs(OnOneServer):
    def test_200_jobs_one_after_another(self):
        for number in range(200):
            answer = self.server.run(self.store.request(ADD, a=number, b=1000))
            self.assertEqual(self.value(answer), number + 1000)

    def test_200_jobs_from_16_threads(self):
        requests = [self.store.request(ADD, a=number, b=5000) for number in range(200)]
        with ThreadPoolExecutor(16) as callers:
            answers = list(callers.map(self.server.run, requests))
        self.assertEqual([self.value(answer) for answer in answers], list(range(5000, 5200)))

    def test_20_jobs_of_20_megabytes_in_and_out(self):
        codes = (IDENTITY, "def f(a):\n    return a.content[::-1]\n")
        for number in range(20):
            content = bytes([number, 7]) * (10 * MEGABYTE)
            request = self.store.request(codes[number % 2], output="bytes", a=content)
            expected = content if number % 2 == 0 else content[::-1]
            with self.subTest(number):
                received = self.result(self.server.run(request))
                self.assertEqual(
                    hashlib.sha256(received).digest(), hashlib.sha256(expected).digest()
                )


class Results(OnOneServer):
    def test_an_empty_result_is_a_result(self):
        request = self.store.request("def f(a):\n    return b''\n", output="bytes", a=1)
        answer = self.server.run(request)
        self.assertEqual(answer.json["result_checksum"], hashlib.sha256(b"").hexdigest())

    def test_a_deep_result_is_stored_with_its_leaves(self):
        code = "def f(a):\n    return {'x': [a, 1], 'y': {'z': 'text'}}\n"
        structure = self.value(self.server.run(self.store.request(code, output="deepcell", a=9)))
        self.assertEqual(structure.keys(), {"x", "y"})
        for leaf in (*structure["x"], structure["y"]["z"]):
            self.assertTrue(self.store.holds(leaf))

    def test_the_leaves_of_a_folder_are_fetched_with_it(self):
        leaves = {"a.txt": self.store.put(b"one"), "sub/b.txt": self.store.put(b"two")}
        request = self.store.request(
            "def f(a):\n    return sorted(leaf.decode() for leaf in a.values())\n",
            output="plain",
            a=leaves,
        )
        request["transformation_dict"]["a"][0] = "folder"
        self.assertEqual(self.value(self.server.run(request)), ["one", "two"])
        leaves["c.txt"] = "ee" * 32
        request = self.store.request("def f(a):\n    return len(a)\n", a=leaves)
        request["transformation_dict"]["a"][0] = "folder"
        self.assertIn("a: " + "ee" * 32, self.server.run(request).text)

    def test_a_scratch_result_is_not_stored(self):
        request = self.store.request("def f(a):\n    return 'scratched' * a\n", a=3)
        answer = self.server.run({**request, "scratch": True})
        self.assertEqual(answer.status, 200, answer.text)
        self.assertFalse(self.store.holds(answer.json["result_checksum"]))

    def test_concurrent_requests_for_one_transformation_share_one_run(self):
        trace, gate = self.directory / "trace", self.directory / "trace-gate"
        code = (
            "def f(path):\n    import os, time\n    open(path, 'a').write('x')\n"
            "    while not os.path.exists(path + '-gate'): time.sleep(0.01)\n    return 'once'\n"
        )
        request = self.store.request(code, path=str(trace))
        joined = f"{request['tf_checksum'][:12]}: joined by a caller"
        with ThreadPoolExecutor(5) as callers:
            answers = [callers.submit(self.server.run, request) for _ in range(5)]
            try:
                wait_until(lambda: self.server.log.count(joined) == 4, "all five are there")
            finally:
                gate.touch()
            results = {self.result(answer.result(PATIENCE)) for answer in answers}
        self.assertEqual(results, {b'"once"\n'})
        self.assertEqual(trace.read_text(), "x")

    def test_an_upload_by_somebody_else_that_breaks_off_costs_nothing(self):
        content = b"slow" * 1000
        checksum = hashlib.sha256(content).hexdigest()
        request = self.store.request("def f(a):\n    return b'slow' * a\n", output="bytes", a=1000)
        with socket.create_connection(("127.0.0.1", self.store.hashserver_port)) as other:
            other.sendall(
                f"PUT /{checksum} HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n".encode()
                + content[:100]
            )
            wait_until(lambda: self.store.has_now(checksum), "the upload has begun")
            answers = []
            caller = threading.Thread(target=lambda: answers.append(self.server.run(request)))
            caller.start()
            wait_until(
                lambda: f'PUT /{checksum} HTTP/1.1" 202' in self.store.log(),
                "the worker was told that somebody else is sending it",
            )
            self.assertEqual(answers, [])
        caller.join(PATIENCE)
        self.assertEqual(self.result(answers[0]), content)
        self.assertTrue(self.store.holds(checksum))

    def test_a_result_that_is_there_is_not_sent_again(self):
        content = b"once" * MEGABYTE
        request = self.store.request(IDENTITY, output="bytes", a=content)
        self.result(self.server.run(request))
        checksum = hashlib.sha256(content).hexdigest()
        lines = [line for line in self.store.log().splitlines() if f"PUT /{checksum}" in line]
        self.assertEqual([line.rpartition('"')[2].split()[0] for line in lines], ["200", "201"])

    def test_what_lies_whole_in_the_stores_folder_is_not_sent_at_all(self):
        server = self.start(parameters=self.store.parameters(read_folder=True))
        for damage, sent in (("", False), ("damaged", True)):
            with self.subTest(damage):
                request = self.store.request(ADD, a="there ", b=damage)
                result = self.result(server.run(request))
                checksums = request["tf_checksum"], hashlib.sha256(result).hexdigest()
                for checksum in checksums:
                    path = self.store.buffers / checksum[:2] / checksum
                    path.write_bytes(damage.encode() or path.read_bytes())
                before = len(self.store.log())
                self.assertEqual(server.run(request).status, 200)
                log = self.store.log()[before:]
                self.assertEqual([f"PUT /{one}" in log for one in checksums], [sent, sent])

    def test_inputs_come_from_the_read_folder_where_there_is_one(self):
        server = self.start(parameters=self.store.parameters(read_folder=True))
        request = self.store.request(ADD, a=1234, b=4321)
        before = len(self.store.log())
        self.assertEqual(self.value(server.run(request)), 5555)
        log = self.store.log()[before:]
        self.assertIn('"GET /', log, "the result is fetched by this test")
        for _, _, checksum in (request["transformation_dict"][pin] for pin in ("a", "b", "code")):
            self.assertNotIn(f"GET /{checksum}", log)

    def test_a_jobs_own_import_of_aiohttp_finds_the_real_one_or_nothing(self):
        code = (
            "def f(a):\n    try:\n        import aiohttp\n    except ImportError:\n"
            "        return 'absent'\n    return aiohttp.__file__\n"
        )
        found = self.value(self.server.run(self.store.request(code, a=1)))
        probe = subprocess.run(
            [str(JOBSERVER_PYTHON), "-c", "import aiohttp; print(aiohttp.__file__)"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(found, probe.stdout.strip() or "absent")

    def test_workers_use_the_addresses_that_the_status_file_has_for_their_own_machine(self):
        readme = (ROOT / "README.rst").read_text()
        shown, _ = json.JSONDecoder().raw_decode(readme, readme.index('{"parameters": {'))
        by_hand = json.dumps(shown["parameters"])
        for example, real in (
            ("http://localhost:61100", f"http://127.0.0.1:{self.store.hashserver_port}"),
            ("http://localhost:61200", f"http://127.0.0.1:{self.store.database_port}"),
            ("/scratch/me/buffers", str(self.store.buffers)),
        ):
            self.assertIn(example, by_hand)
            by_hand = by_hand.replace(example, real)
        # What the client of a tunnel sees is good on its machine only.
        tunneled = self.store.parameters(read_folder=True)
        for client in (*tunneled["buffer"], *tunneled["database"]):
            client["url"] = "http://127.0.0.1:9"
        tunneled["buffer"][0]["directory"] = str(self.directory)
        for number, (name, parameters) in enumerate(
            {"by hand": json.loads(by_hand), "through a tunnel": tunneled}.items(), 1
        ):
            with self.subTest(name):
                server = self.start(parameters=parameters)
                request = self.store.request(ADD, a=number, b=70_000)
                before = len(self.store.log())
                self.assertEqual(self.value(server.run(request)), 70_000 + number)
                log = self.store.log()[before:]
                for pin in ("a", "b", "code"):
                    checksum = request["transformation_dict"][pin][2]
                    self.assertNotIn(f"GET /{checksum}", log, "it is in the folder")
                found = wait_until(
                    lambda s=server: (
                        (answer := s.request("POST", "/check-store")).status == 200 and answer
                    ),
                    "an idle worker has asked them",
                ).json
                self.assertEqual((found["hashserver"], found["database"]), (None, None))


class Failures(OnOneServer):
    def fails(self, code, *, output="mixed", language="python", **inputs):
        request = self.store.request(code, output=output, language=language, **inputs)
        answer = self.server.run(request)
        self.assertEqual(answer.status, 500, answer.text)
        return answer.text

    def test_a_missing_input_is_named_with_its_pin(self):
        request = self.store.request(ADD, a=1, b=2)
        missing = "de" * 32
        request["transformation_dict"]["b"][2] = missing
        begun = time.monotonic()
        answer = self.server.run(request)
        self.assertLess(time.monotonic() - begun, 30, "half of what a promised one is waited for")
        self.assertEqual(answer.status, 500)
        self.assertIn(f"  b: {missing}\n", answer.text)
        self.assertNotIn("Traceback", answer.text)
        waited = f"job {request['tf_checksum'][:12]}: waiting for input"
        self.assertNotIn(waited, self.server.log)

    def test_two_jobs_that_print_and_fail_at_once_each_show_their_own_output(self):
        code = (
            "def f(tag):\n    import os, sys\n"
            "    for n in range(20):\n"
            "        print(tag, 'python', n)\n"
            "        print(tag, 'stderr', n, file=sys.stderr)\n"
            "    os.write(1, (tag + ' descriptor\\n').encode())\n"
            "    os.system('echo ' + tag + ' subprocess')\n"
            "    raise RuntimeError(tag + ' failed')\n"
        )
        with ThreadPoolExecutor(2) as callers:
            for number in range(25):
                tags = [f"{name}{number}" for name in ("left", "right")]
                requests = [self.store.request(code, tag=tag) for tag in tags]
                texts = [answer.text for answer in callers.map(self.server.run, requests)]
                for tag, other, text in zip(tags, reversed(tags), texts, strict=True):
                    for what in ("python 19", "stderr 19", "descriptor", "subprocess", "failed"):
                        self.assertIn(f"{tag} {what}\n", text)
                    self.assertNotIn(other, text)

    def test_the_streams_mix_in_the_order_of_writing(self):
        code = (
            "def f(a):\n    import sys\n    for n in range(3):\n"
            "        print('out', n)\n        print('err', n, file=sys.stderr)\n    1 / 0\n"
        )
        self.assertIn("out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\n", self.fails(code, a=1))

    def test_a_job_that_meddles_with_its_streams_does_not_harm_the_next(self):
        for meddling in (
            "sys.stdout.close(); sys.stderr.close()",
            "os.close(1); os.close(2)",
            "sys.stdout = sys.stderr = sys.__stdout__ = None",
            "sys.stdout = open(os.devnull, 'w')",
            "print('not ended', end='')",
        ):
            code = f"def f(a):\n    import os, sys\n    {meddling}\n    return 1\n"
            for _ in range(2):  # one for each worker
                self.server.run(self.store.request(code + f"# {_}\n", a=1))
            after = "def f(a):\n    print('still here', a)\n    1 / 0\n"
            with self.subTest(meddling):
                text = self.fails(after + f"# {meddling}\n", a=2)
                self.assertIn("still here 2\n", text)
                self.assertNotIn("not ended", text)

    def test_a_job_ends_as_it_would_have_whatever_it_leaves_as_its_streams(self):
        raising = "sys.stdout = type('Tee', (), {{'flush': lambda self: {}}})()"
        for leaving in (
            "import dataclasses; Tee = dataclasses.make_dataclass('Tee', ['a']); sys.stdout = Tee(1)",
            "del sys.stdout, sys.stderr, sys.__stdout__",
            "sys.stdout = sys.stderr = 5",
            "sys.stderr = type('Odd', (), {'closed': property(lambda self: 1 // 0)})()",
            "sys.stdout = open('/dev/full', 'w'); sys.stdout.write('x')",
            "sys.stdout = sys.stderr = type('Odd', (), {'__getattr__': lambda *a: a[5]})()",
            raising.format("{}['no']"),
            raising.format("sys.exit(3)"),
            raising.format("exec('raise KeyboardInterrupt')"),
            raising.format("os.close(2) or 1 // 0"),
            "class Bad(Exception):\n        __str__ = lambda self: 1 // 0\n"
            "        errno = property(__str__)\n"
            "    def fail(self): raise Bad\n"
            "    sys.stdout = type('Tee', (), {'flush': fail})()",
        ):
            with self.subTest(leaving):
                code = f"def f(a):\n    import os, sys\n    print('said')\n    {leaving}\n"
                answer = self.server.run(self.store.request(code + "    return a\n", a=7))
                self.assertEqual(self.value(answer), 7)
                text = self.fails(code + "    raise KeyError('mine')\n", a=7)
                self.assertIn("KeyError: 'mine'", text)
                self.assertIn("said\n", text)
        self.assertNotIn("unforeseen", self.server.log)

    def test_output_that_is_no_text_or_has_no_end_is_shown_as_far_as_it_goes(self):
        text = self.fails(
            "def f(a):\n    import os\n    os.write(1, b'\\xff\\xfe!')\n    1 / 0\n", a=1
        )
        self.assertIn("\ufffd\ufffd!\n", text)
        text = self.fails("def f(a):\n    print('\\ud800 ünï')\n    1 / 0\n", a=1)
        self.assertIn("\\ud800 ünï\n", text)
        text = self.fails("def f(a):\n    print('x' * 1000000)\n    print('end')\n    1 / 0\n", a=1)
        self.assertLess(len(text), 300_000)
        self.assertRegex(text, r"\[… \d+ bytes left out …\]")
        self.assertIn("x\nend\n", text)

    def test_every_exception_of_a_job_is_its_own_failure(self):
        for raising, expected in (
            ("raise SystemExit(3)", "sys.exit(3)"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("import signal; signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
            ("raise BaseException('odd')", "BaseException: odd"),
            ("raise ValueError('a') from KeyError('b')", "KeyError: 'b'"),
            ("return None", "RuntimeError: Result is empty"),
            ("return object()", "TypeError"),
            ("f(a)", "RecursionError"),
            ("return undefined", "NameError"),
            ("this is no Python", "ValueError"),
        ):
            with self.subTest(raising):
                self.assertIn(expected, self.fails(f"def f(a):\n    {raising}\n", a=1))

    def test_a_chained_exception_shows_the_users_frames_only(self):
        code = (
            "def f(a):\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
            "        raise ValueError('second') from error\n"
        )
        text = self.fails(code, a=1)
        self.assertIn("ZeroDivisionError", text)
        self.assertIn("direct cause", text)
        self.assertNotIn("site-packages", text)

    def test_a_failing_bash_job_shows_its_command_and_its_output(self):
        text = self.fails("echo to stderr >&2\nfalse\n", language="bash", a="x")
        self.assertIn("Error: Return code 1", text)
        self.assertIn("to stderr\n", text)
        self.assertNotIn("Traceback", text)

    def test_bash_may_print_more_errors_than_a_pipe_holds(self):
        loop = "for i in $(seq 20000); do echo line $i >&2; done\n"
        request = self.store.request(
            loop + "echo 1 > RESULT\n", language="bash", output="text", a="x"
        )
        self.assertEqual(self.result(self.server.run(request)), b"1\n")
        self.assertIn("\nline 20000\n", self.fails(loop + "false\n", language="bash", a="x"))

    def test_a_store_that_takes_nothing_is_found_out_before_the_work(self):
        parameters = self.store.parameters()
        parameters["buffer"][0]["readonly"] = True
        server = self.start(parameters=parameters)
        trace = self.directory / "worked"
        code = "def f(path):\n    open(path, 'w').close()\n    return 1\n"
        answer = server.run(self.store.request(code, path=str(trace)))
        self.assertEqual(answer.status, 500)
        self.assertIn("no hashserver that takes results", answer.text)
        self.assertFalse(trace.exists())

    def test_a_job_that_breaks_the_worker_itself_ends_and_the_worker_is_replaced(self):
        server = self.start()
        code = (
            "def f(a):\n    from seamless_jobserver.worker import isolation\n"
            "    isolation.Surroundings.restore = None\n    return a\n"
        )
        answer = server.run(self.store.request(code, a=1))
        self.assertEqual(answer.status, 500)
        self.assertIn("unforeseen", answer.text)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=1))), 2)

    def test_a_worker_that_dies_takes_its_own_job_along_and_no_other(self):
        dying = self.store.request(
            "def f(a):\n    import os\n    print('last words')\n    os._exit(7)\n", a=1
        )
        gate = self.directory / "survivor"
        waiting = self.store.request(
            "def f(path):\n    import os, time\n    open(path + '-begun', 'w').close()\n"
            "    while not os.path.exists(path): time.sleep(0.01)\n    return 2\n",
            path=str(gate),
        )
        with ThreadPoolExecutor(1) as caller:
            done = caller.submit(self.server.run, waiting)
            try:
                wait_until((self.directory / "survivor-begun").exists, "the other one runs")
                crashed = self.server.run(dying)
            finally:
                gate.touch()
            self.assertEqual(self.value(done.result(PATIENCE)), 2)
        self.assertEqual(crashed.status, 500)
        self.assertIn("exit code 7", crashed.text)
        self.assertIn("last words\n", crashed.text)
        for number in range(4):  # both slots are there again
            self.assertEqual(
                self.value(self.server.run(self.store.request(ADD, a=number, b=99))), number + 99
            )


class Queue(OnAStore):
    shares_store = True

    def test_jobs_that_come_before_the_workers_are_ready_wait_for_them(self):
        server = self.start()
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=2))), 3)

    def test_of_free_workers_the_one_that_keeps_a_large_input_is_chosen(self):
        server = self.start(workers=2)
        wait_until(lambda: server.log.count("is ready") == 2, "both workers are ready")
        gate = self.directory / "first"
        held = self.store.request(
            "def f(path):\n    import os, time\n"
            "    while not os.path.exists(path): time.sleep(0.01)\n    return os.getpid()\n",
            path=str(gate),
        )
        where = "def f(data, tag):\n    import os\n    return os.getpid()\n"
        data = bytes(2 * MEGABYTE)

        def run_on_data(tag):
            return self.value(server.run(self.store.request(where, data=data, tag=tag)))

        with ThreadPoolExecutor(1) as caller:
            first = caller.submit(server.run, held)
            try:
                wait_until(
                    lambda: server.request("GET", "/status").json["running"], "a worker is busy"
                )
                other = run_on_data(0)
            finally:
                gate.touch()
            busy = self.value(first.result(PATIENCE))
        self.assertNotEqual(other, busy)
        self.assertEqual([run_on_data(tag) for tag in range(1, 5)], 4 * [other])
        small = self.store.request("def f(a):\n    import os\n    return os.getpid()\n", a=1)
        self.assertEqual(self.value(server.run(small)), busy, "which comes first otherwise")

    def test_a_canceled_job_that_waits_never_starts(self):
        server = self.start()
        gate, trace = self.directory / "gate", self.directory / "never"
        code = (
            "def f(path):\n    import os, time\n"
            "    while not os.path.exists(path): time.sleep(0.01)\n    return 1\n"
        )
        first = self.store.request(code, path=str(gate))
        second = self.store.request(
            "def f(path):\n    open(path, 'w').close()\n    return 1\n", path=str(trace)
        )
        third = self.store.request(ADD, a="th", b="ird")
        with ThreadPoolExecutor(3) as callers:
            answers = []
            for request in (first, second, third):
                answers.append(callers.submit(server.run, request))
                checksum = request["tf_checksum"]
                wait_until(lambda c=checksum: f"{c[:12]}: received" in server.log, "it has arrived")
            self.assertTrue(server.cancel(second["tf_checksum"])["canceled"])
            self.assertEqual(answers[1].result(PATIENCE).text, "Transformation was canceled")
            gate.touch()
            self.assertEqual(self.value(answers[2].result(PATIENCE)), "third")
        self.assertFalse(trace.exists())

    def test_a_transformation_that_was_canceled_can_be_run_again(self):
        server = self.start(workers=2)
        gate = self.directory / "again"
        code = (
            "def f(path):\n    import os, time\n    open(path + '.runs', 'a').write('x')\n"
            "    while not os.path.exists(path): time.sleep(0.01)\n    return 'ran'\n"
        )
        runs = Path(f"{gate}.runs")
        request = self.store.request(code, path=str(gate))
        with ThreadPoolExecutor(2) as callers:
            first = callers.submit(server.run, request)
            wait_until(lambda: runs.exists() and runs.read_text(), "its code runs")
            server.cancel(request["tf_checksum"])
            self.assertIn("canceled", first.result(PATIENCE).text)
            second = callers.submit(server.run, request)
            wait_until(lambda: server.job_status(request["tf_checksum"]) == "running", "again")
            gate.touch()
            self.assertEqual(self.value(second.result(PATIENCE)), "ran")
        self.assertEqual(runs.read_text(), "xx")


class Survival(OnAStore):
    shares_store = True

    def test_a_running_job_is_activity(self):
        gate = self.directory / "activity"
        code = (
            "def f(path):\n    import os, time\n"
            "    while not os.path.exists(path): time.sleep(0.01)\n    return 8\n"
        )
        request = self.store.request(code, path=str(gate))
        server = self.start("--timeout", "5", "--grace", "0")
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            try:
                wait_until(lambda: ": received" in server.log, "it has arrived")
                with self.assertRaises(subprocess.TimeoutExpired):
                    server.process.wait(6.5)
            finally:
                gate.touch()
            self.assertEqual(self.value(answer.result(PATIENCE)), 8)
        self.assertEqual(server.process.wait(PATIENCE), 0)

    def test_killing_everything_right_after_an_answer_loses_no_result(self):
        def attempt(number):
            # Nobody is left to remove what the server keeps there.
            place = {"TMPDIR": str(self.directory)}
            server = self.start(name=f"killed-{number}", env=place)
            request = self.store.request(ADD, a=f"unique {number} ", b="x" * 200_000)
            answer = server.run(request)
            server.kill_tree()
            self.assertEqual(answer.status, 200, answer.text)
            self.assertTrue(self.store.holds(answer.json["result_checksum"]), number)

        with ThreadPoolExecutor(4) as attempts:
            list(attempts.map(attempt, range(50)))

    def test_no_worker_and_no_grandchild_survives_the_server_however_it_ends(self):
        holding = (
            "re.match('(a+)+$', 'a' * 60 + 'b')"  # for years, and never lets go of the interpreter
        )
        for name, end, last in (
            ("killed", Jobserver.kill, "time.sleep(600)"),
            ("killed, with a worker that is stuck", Jobserver.kill, holding),
            ("terminated", Jobserver.stop, "time.sleep(600)"),
            ("terminated, with a worker that is stuck", Jobserver.stop, holding),
        ):
            with self.subTest(name):
                pids = self.directory / name
                code = (
                    "def f(path):\n    import os, re, subprocess, time\n"
                    "    child = subprocess.Popen('setsid sleep 600 & (setsid sleep 600 &) ; "
                    "sleep 600 & touch \"$GATE\"; wait', shell=True, env={**os.environ, 'GATE': path})\n"
                    f"    {last}\n"
                )
                server = self.start("--grace", "0.5")
                request = self.store.request(code, path=str(pids))
                caller = threading.Thread(target=self.run_quietly, args=(server, request))
                caller.start()
                wait_until(pids.exists, "the job has started its processes")
                everything = server.everything_below()
                # worker, shell, three sleeps, and the helpers of the server
                self.assertGreaterEqual(len(everything), 6)
                end(server)
                wait_until(lambda all_=everything: not [p for p in all_ if p.alive], "all are gone")
                caller.join(PATIENCE)

    def test_a_process_that_its_job_has_stopped_keeps_no_other_alive(self):
        # When the server dies, the kernel hangs up on groups that hold such a process.
        started = self.directory / "stopped"
        code = (
            "def f(path):\n    import os, signal, subprocess, time\n"
            "    stopped = subprocess.Popen(['sleep', '600'])\n"
            "    others = [subprocess.Popen(['setsid', 'sleep', '600']) for _ in range(20)]\n"
            "    os.kill(stopped.pid, signal.SIGSTOP)\n"
            "    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)\n"
            "    open(path, 'w').close()\n    time.sleep(600)\n"
        )
        server = self.start()
        request = self.store.request(code, path=str(started))
        caller = threading.Thread(target=self.run_quietly, args=(server, request))
        caller.start()
        wait_until(started.exists, "the job has started its processes")
        everything = server.everything_below()
        self.assertGreaterEqual(len(everything), 22)
        server.kill()
        wait_until(lambda: not [one for one in everything if one.alive], "all are gone")
        caller.join(PATIENCE)

    def run_quietly(self, server, request):
        with contextlib.suppress(OSError, ConnectionError):
            server.run(request)

    def test_what_a_dead_worker_leaves_behind_is_cleared_away(self):
        server = self.start()
        pid_file = self.directory / "left"
        code = (
            "def f(path):\n    import os, subprocess\n"
            "    child = subprocess.Popen(['setsid', 'sleep', '600'])\n"
            "    with open(path, 'w') as file: print(child.pid, file=file)\n    os._exit(1)\n"
        )
        answer = server.run(self.store.request(code, path=str(pid_file)))
        self.assertIn("exit code 1", answer.text)
        left = ProcessId.of(int(pid_file.read_text()))
        if left is not None:
            wait_until(lambda: not left.alive, "the left process is gone")
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=1))), 2)

    def test_a_worker_lets_go_of_a_jobs_data(self):
        server = self.start("--cache-size", "0")
        pid = self.value(
            server.run(
                self.store.request("def f(a):\n    import os\n    return os.getpid()\n", a=0)
            )
        )
        sizes = []
        for _ in range(4):
            request = self.store.request(IDENTITY, output="bytes", a=os.urandom(50 * MEGABYTE))
            self.assertEqual(server.run(request).status, 200)
            sizes.append(resident(pid))
        self.assertLess(max(sizes) - min(sizes), 20 * MEGABYTE, sizes)
        self.assertLess(max(sizes), 120 * MEGABYTE, sizes)

    def test_a_worker_keeps_no_more_inputs_than_it_may(self):
        server = self.start("--cache-size", "100M")
        code = "def f(a):\n    import os\n    return os.getpid()\n"
        sizes = []
        for _ in range(6):
            request = self.store.request(code, a=os.urandom(40 * MEGABYTE))
            sizes.append(resident(self.value(server.run(request))))
        self.assertLess(max(sizes) - sizes[1], 40 * MEGABYTE, sizes)

    def test_the_server_itself_holds_no_data(self):
        server = self.start()
        request = self.store.request(IDENTITY, output="bytes", a=os.urandom(50 * MEGABYTE))
        before = resident(server.process.pid)
        self.assertEqual(server.run(request).status, 200)
        self.assertLess(resident(server.process.pid) - before, 10 * MEGABYTE)


def resident(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
