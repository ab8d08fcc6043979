"""What callers send and get, on the wire (protocol.md): over ours, and over upstream's where equal."""

import contextlib
import http.client
import json
import socket
import threading
import unittest

from tests.stack import UPSTREAM, Jobserver, Store, run_request, temporary_directory, wait_until

UNKNOWN = "12" * 32


class ProtocolSuite:
    """The answers that upstream's jobserver and ours have in common."""

    command = None

    @classmethod
    def setUpClass(cls):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(temporary_directory())
            cls.store = Store(directory / "store")
            stack.callback(cls.store.stop)
            cls.server = Jobserver(
                directory / "jobserver", cls.store.parameters(), workers=2, command=cls.command
            )
            stack.callback(cls.server.stop)
            cls.addClassCleanup(stack.pop_all().close)

    def test_the_fixed_answers_are_exact(self):
        for path, text in (("/", "Seamless jobserver is running"), ("/healthcheck", "OK")):
            answer = self.server.request("GET", path)
            self.assertEqual((answer.status, answer.text), (200, text))
            self.assertTrue(answer.headers["content-type"].startswith("text/plain"))

    def test_a_success_is_json_with_the_checksum_and_what_the_run_took(self):
        request = self.store.request("def f(a, b):\n    return a + b\n", a=3, b=4)
        answer = self.server.run(request)
        self.assertEqual(answer.status, 200, answer.text)
        checksum = answer.json["result_checksum"]
        self.assertEqual(json.loads(self.store.get(checksum)), 7)
        runtime = answer.json["record_runtime"]
        self.assertLessEqual(
            {
                "started_at",
                "finished_at",
                "wall_time_seconds",
                "cpu_user_seconds",
                "cpu_system_seconds",
                "memory_peak_bytes",
                "gpu_memory_peak_bytes",
            },
            runtime.keys(),
        )
        self.assertRegex(runtime["started_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")

    def test_only_dict_and_checksum_are_required(self):
        request = self.store.request("def f(a):\n    return a\n", a="minimal")
        small = {key: request[key] for key in ("transformation_dict", "tf_checksum")}
        answer = self.server.run(small)
        self.assertEqual(answer.status, 200, answer.text)

    def test_a_failure_is_the_traceback_of_the_users_code_then_the_output(self):
        code = (
            "def f(a):\n    import sys\n    print('printed')\n    print('warned', file=sys.stderr)\n"
            "    raise ValueError('it is ' + str(a))\n"
        )
        answer = self.server.run(self.store.request(code, a=5))
        self.assertEqual(answer.status, 500)
        self.assertTrue(answer.headers["content-type"].startswith("text/plain"))
        lines = answer.text.splitlines()
        self.assertEqual(lines[0], "Traceback (most recent call last):")
        self.assertIn('"transformer-in-process-', lines[1])
        self.assertIn("ValueError: it is 5", lines)
        self.assertGreater(lines.index("printed"), lines.index("ValueError: it is 5"))
        self.assertIn("warned", lines)
        self.assertNotIn("run_transformation_dict", answer.text)

    def test_bad_json_and_bad_payloads_are_told_apart(self):
        self.check(self.server.request("GET", "/run-transformation", b"{"), 400, "Invalid JSON: ")
        for body in (
            [],
            {},
            {"transformation_dict": {}, "tf_checksum": "zz"},
            {"transformation_dict": {}},
        ):
            answer = self.server.request("GET", "/run-transformation", body)
            self.check(answer, 400, "Invalid payload: ")

    def test_another_record_mode_is_a_conflict(self):
        request = self.store.request("def f(a):\n    return a\n", a=1)
        answer = self.server.run({**request, "record": True})
        self.check(answer, 409, "Jobserver record mode mismatch")

    def test_status_and_cancel_of_an_unknown_transformation(self):
        status = self.server.request("GET", f"/transformation-status/{UNKNOWN}")
        self.assertEqual((status.status, status.json), (200, {"status": "not-running"}))
        cancel = self.server.request("POST", f"/cancel-transformation/{UNKNOWN}")
        self.assertEqual(cancel.json, {"canceled": False, "status": "not-running"})

    def test_bad_checksums_in_a_path_are_refused(self):
        for checksum in ("zz", "12", "g" * 64, "12" * 33):
            for method, route in (
                ("GET", "transformation-status"),
                ("POST", "cancel-transformation"),
            ):
                with self.subTest(checksum, route=route):
                    answer = self.server.request(method, f"/{route}/{checksum}")
                    self.check(answer, 400, "Invalid checksum: ")

    def test_unknown_paths_and_methods_are_refused(self):
        self.assertEqual(self.server.request("GET", "/nothing").status, 404)
        for method, path, allowed in (
            ("POST", "/run-transformation", "GET"),
            ("PUT", "/healthcheck", "GET"),
            ("GET", f"/cancel-transformation/{UNKNOWN}", "POST"),
            ("POST", f"/transformation-status/{UNKNOWN}", "GET"),
        ):
            with self.subTest(method, path=path):
                answer = self.server.request(method, path, b"body")
                self.assertEqual(answer.status, 405)
                self.assertIn(allowed, answer.headers["allow"])

    def test_a_running_job_is_running_and_its_caller_is_told_when_it_is_canceled(self):
        request = self.waiting_job("cancel")
        checksum = request["tf_checksum"]
        with self.in_background(request) as answer:
            wait_until(lambda: self.server.job_status(checksum) == "running", "it runs")
            self.assertTrue(self.server.cancel(checksum)["canceled"])
            self.open_gate("cancel")
        self.assertEqual(answer[0].text, "Transformation was canceled")
        self.assertIn(answer[0].status, (200, 409))
        self.assertNotEqual(self.server.job_status(checksum), "running")

    def test_a_connection_serves_request_after_request(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(connection):
            request = self.store.request("def f(a):\n    return a\n", a="kept")
            bodies = (("/healthcheck", None), ("/nothing", b"body"), ("/run-transformation", b"{"))
            for path, body in (*bodies, ("/run-transformation", json.dumps(request)), bodies[0]):
                connection.request("GET", path, body=body)
                response = connection.getresponse()
                response.read()
                self.assertIsNotNone(connection.sock, f"{path} closed the connection")

    def check(self, answer, status, start):
        self.assertEqual(answer.status, status, answer.text)
        self.assertTrue(answer.text.startswith(start), answer.text)

    @contextlib.contextmanager
    def in_background(self, request):
        """Run `request` meanwhile; the list holds its answer after the block."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.server.run(request)))
        thread.start()
        try:
            yield answers
        finally:
            thread.join(60)
        self.assertTrue(answers, "the caller got no answer")

    def waiting_job(self, name):
        """Return a request for a job that waits until the gate of this name is opened."""
        path = self.server.directory / name
        code = (
            "def f(path):\n    import os, time\n"
            "    while not os.path.exists(path): time.sleep(0.01)\n    return 1\n"
        )
        return self.store.request(code, path=str(path))

    def open_gate(self, name):
        (self.server.directory / name).touch()


class Ours(ProtocolSuite, unittest.TestCase):
    """The suite over the jobserver under test, and what it does beyond upstream's."""

    def test_answers_are_not_held_back_by_nagles_algorithm(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as peer:
            for _ in range(3):
                peer.sendall(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n")
                # One segment: head and body came in one piece.
                self.assertTrue(peer.recv(65536).endswith(b"\r\n\r\nOK"))

    def test_pipelined_requests_are_answered_in_order(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as peer:
            peer.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
                b"GET /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
                b"HEAD /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            received = b""
            while chunk := peer.recv(65536):
                received += chunk
        self.assertEqual(received.count(b"HTTP/1.1 200 OK"), 2)
        self.assertEqual(received.count(b"HTTP/1.1 404"), 1)
        self.assertTrue(received.endswith(b"\r\n\r\n"), "an answer to HEAD has no body")

    def test_a_canceled_caller_does_not_wait_for_the_work_to_end(self):
        request = self.waiting_job("at-once")
        checksum = request["tf_checksum"]
        with self.in_background(request) as answer:
            wait_until(lambda: self.server.job_status(checksum) == "running", "it runs")
            self.assertEqual(self.server.cancel(checksum), {"canceled": True, "status": "canceled"})
        self.assertEqual((answer[0].status, answer[0].text), (200, "Transformation was canceled"))
        self.assertEqual(self.server.job_status(checksum), "canceled")
        self.open_gate("at-once")

    def test_malformed_fields_are_named_on_the_wire(self):
        request = run_request({"__output__": ["r", "plain", None], "code": ["python", None, "x"]})
        answer = self.server.run(request)
        self.check(answer, 400, "Invalid payload: transformation_dict.code: ")

    def test_http_1_0_and_close_are_respected(self):
        for head in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as peer:
                peer.sendall(head)
                received = b""
                while chunk := peer.recv(65536):
                    received += chunk
            self.assertIn(b"Connection: close", received)
            self.assertTrue(received.endswith(b"Seamless jobserver is running"))

    def test_a_client_that_asks_before_it_sends_is_told_to_go_on(self):
        body = json.dumps(self.store.request("def f(a):\n    return a\n", a="asks")).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as peer:
            peer.sendall(
                b"GET /run-transformation HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            self.assertEqual(peer.recv(65536), b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.sendall(body)
            self.assertIn(b" 200 OK", peer.recv(65536))

    def test_a_refused_body_does_not_become_the_next_request(self):
        smuggled = (
            b"POST /cancel-transformation/" + UNKNOWN.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        for fields in (
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Length: 3\r\nContent-Length: 4\r\n",
            b"Content-Length: 999999999999\r\n",
        ):
            with (
                self.subTest(fields),
                socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as peer,
            ):
                peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + smuggled)
                received = b""
                while chunk := peer.recv(65536):
                    received += chunk
                self.assertEqual(received.count(b"HTTP/1.1 "), 1, received)
                self.assertRegex(received[:13].decode(), "HTTP/1.1 (400|413|501)")

    def test_the_end_of_a_job_can_still_be_asked_for(self):
        good = self.store.request("def f(a):\n    return a\n", a="asked later")
        bad = self.store.request("def f(a):\n    return 1 / a\n", a=0)
        self.server.run(good)
        self.server.run(bad)
        self.assertEqual(self.server.job_status(good["tf_checksum"]), "done")
        self.assertEqual(self.server.job_status(bad["tf_checksum"].upper()), "failed")
        cancel = self.server.cancel(good["tf_checksum"])
        self.assertEqual(cancel, {"canceled": False, "status": "done"})


if UPSTREAM:

    class Upstream(ProtocolSuite, unittest.TestCase):
        """The suite over upstream's jobserver, which shows that it asks for the right things."""

        command = UPSTREAM
