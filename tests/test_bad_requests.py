"""Bad requests, slow clients and many of them, on a running server.

Behind each bad request stands a second one. Either the connection ends with the answer to the
first, or the second is answered as the request that it is: nothing can be smuggled.
"""

import contextlib
import json
import os
import re
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.machine import (
    allow_open_files,
    assert_prompt,
    memory_of,
    processor_time,
    stretched,
)
from tests.stack import PATIENCE, wait_until
from tests.test_access import TRANSFORMATION, Served, ask
from tests.test_faults import Faults

SECOND = b"GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def get(*lines, target="/healthcheck", method="GET", body=b""):
    head = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: x", *lines, "", ""))
    return head.encode("latin-1") + body


def run(body):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return get(f"Content-Length: {len(body)}", target="/run-transformation", body=body)


GOOD = {"transformation_dict": TRANSFORMATION, "tf_checksum": "ab" * 32}

# The connection ends after these, with one of these statuses.
ENDING = {
    "conflicting lengths": (get("Content-Length: 1", "Content-Length: 2", body=b"x"), {400}),
    "a list of lengths": (get("Content-Length: 1, 2", body=b"x"), {400}),
    "a signed length": (get("Content-Length: +1", body=b"x"), {400}),
    "a negative length": (get("Content-Length: -1"), {400}),
    "a hexadecimal length": (get("Content-Length: 0x1", body=b"x"), {400}),
    "a length that is no number": (get("Content-Length: one", body=b"x"), {400}),
    "an empty length": (get("Content-Length:", body=b"x"), {400}),
    "a length in two words": (get("Content-Length: 1 1", body=b"x"), {400}),
    "an endless length": (get("Content-Length: " + 40 * "9"), {400, 413}),
    "a body that is too large": (get(f"Content-Length: {2**40}"), {413}),
    "chunks": (get("Transfer-Encoding: chunked", body=b"0\r\n\r\n"), {501}),
    "chunks, unknown": (get("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), {400, 501}),
    "chunks and a length": (
        get("Transfer-Encoding: chunked", "Content-Length: 3", body=b"0\r\n\r\n"),
        {400},
    ),
    "a long request line": (get(target="/" + 20_000 * "a"), {400, 414}),
    "a long header line": (get("X: " + 70_000 * "a"), {431}),
    "too many headers": (get(*(f"X-{n}: y" for n in range(101))), {431}),
    "a folded header": (get("X: a", " b"), {400}),
    "a space before the colon": (get("X : a"), {400}),
    "a header without a name": (get(": a"), {400}),
    "a header without a colon": (get("X"), {400}),
    "a NUL": (get("X: a\0b"), {400}),
    "a bare CR": (get("X: a\rb"), {400}),
    "a bare LF": (b"GET /healthcheck HTTP/1.1\nHost: x\n\n", {400}),
    "a bare LF inside": (get("X: a\nY: b"), {400}),
    "no host": (b"GET /healthcheck HTTP/1.1\r\n\r\n", {400}),
    "two hosts": (get("Host: y"), {400}),
    "HTTP/0.9": (b"GET /healthcheck\r\n\r\n", {400}),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "HTTP/3": (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", {505}),
    "a version that is none": (b"GET / HTTP/x\r\nHost: x\r\n\r\n", {400}),
    "a method that is none": (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "an empty target": (b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    "an expectation": (get("Expect: miracles"), {417}),
    "an answer": (b"HTTP/1.1 200 OK\r\nHost: x\r\n\r\n", {400}),
}
# These are answered, and so is the request behind them.
ANSWERED = {
    "an unknown path": (get(target="/nowhere"), 404),
    "a path that climbs": (get(target="/../../etc/passwd"), 404),
    "a path of workers": (get(target="/nested-transformation/1"), 404),
    "one with credentials": (get("Authorization: \xe9", target="/nested-transformation/1"), 404),
    "an encoded path": (get(target="/%2e%2e/%00"), 404),
    "a wrong method": (get(method="DELETE"), 405),
    "a wrong method with a body": (get("Content-Length: 3", method="PUT", body=b"abc"), 405),
    "a body where none is wanted": (get(f"Content-Length: {len(SECOND)}", body=SECOND), 200),
    "equal lengths": (get("Content-Length: 1", "Content-Length: 1", body=b"x"), 200),
    "a checksum that is none": (get(target="/transformation-status/" + "z" * 64), 400),
    "no body": (get(target="/run-transformation"), 400),
    "no JSON": (run(b"{"), 400),
    "no UTF-8": (run(b'{"a": "\xff"}'), 400),
    "a lone surrogate": (run({**GOOD, "tf_checksum": "\ud800" * 64}), 400),
    "no object": (run([GOOD]), 400),
    "not a number": (run(b'{"a": NaN}'), 400),
    "infinity": (run(b'{"a": 1, "b": [-Infinity]}'), 400),
    "many values": (run(b"[" + 1_000_001 * b"1," + b"1]"), 400),
    "deep JSON": (run(200_000 * b"["), 400),
    "deep objects": (run(100_000 * b'{"a":' + b"1" + 100_000 * b"}"), 400),
    "a huge number": (run(b'{"a": ' + 100_000 * b"9" + b"}"), 400),
    "half of the fields": (run({"tf_checksum": "ab" * 32}), 400),
    "a number for a checksum": (run({**GOOD, "tf_checksum": 7}), 400),
    "a word for a flag": (run({**GOOD, "scratch": "yes"}), 400),
    "a pin that is none": (run({**GOOD, "transformation_dict": {"code": "x"}}), 400),
    "another record mode": (run({**GOOD, "record": True}), 409),
}


class OneServer(Served):
    @classmethod
    def setUpClass(cls):
        case = cls("run_nothing")
        case.setUp()
        cls.server = case.start()
        cls.addClassCleanup(case.doCleanups)

    def run_nothing(self):
        pass

    def converse(self, data, *, end=False):
        """Send `data`, and return the statuses of all answers until the server closes."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE) as peer:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(data)
                if end:
                    peer.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := peer.recv(65536):
                    received += piece
        self.assertNotIn(b"Traceback", received)
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


class BadRequests(OneServer):
    def tearDown(self):
        self.assertNotIn("Traceback", self.server.log)

    def test_what_is_malformed_ends_the_connection_with_its_status(self):
        for name, (data, expected) in ENDING.items():
            with self.subTest(name):
                statuses = self.converse(data + SECOND)
                self.assertEqual(len(statuses), 1, statuses)
                self.assertIn(statuses[0], expected)

    def test_what_is_only_wrong_is_answered_and_so_is_what_follows(self):
        for name, (data, expected) in ANSWERED.items():
            with self.subTest(name):
                self.assertEqual(self.converse(data + SECOND), [expected, 200])

    def test_a_wrong_method_is_told_the_right_one(self):
        for method, target, allowed in (
            ("DELETE", "/healthcheck", "GET, HEAD"),
            ("POST", "/run-transformation", "GET, HEAD"),
            ("GET", "/cancel-transformation/" + "a" * 64, "POST"),
            ("PUT", "/transformation-status/" + "a" * 64, "GET, HEAD"),
            ("GET", "/check-store", "POST"),
            ("POST", "/status", "GET, HEAD"),
        ):
            answer = self.server.request(method, target)
            self.assertEqual((answer.status, answer.headers["allow"]), (405, allowed))

    def test_a_request_that_stops_half_way_gets_nothing(self):
        for name, data in {
            "in the line": b"GET /heal",
            "in a header": b"GET /healthcheck HTTP/1.1\r\nHo",
            "before the end of the head": b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n",
            "in the body": get("Content-Length: 10", body=b"abc"),
            "nothing at all": b"",
        }.items():
            with self.subTest(name):
                self.assertEqual(self.converse(data, end=True), [])

    def test_head_has_no_body_and_the_next_answer_stands_where_it_should(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE) as peer:
            peer.sendall(get(method="HEAD") + SECOND)
            received = b""
            while piece := peer.recv(65536):
                received += piece
        first, _, rest = received.partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: 2", first)
        self.assertTrue(rest.startswith(b"HTTP/1.1 200 OK\r\n"), rest)

    def test_fifty_requests_at_once_are_answered_in_order(self):
        targets = [f"/transformation-status/{number:064x}" for number in range(50)]
        data = b"".join(get(target=target) for target in targets)
        self.assertEqual(self.converse(data + SECOND), 50 * [200] + [200])


class ManyClients(Faults):
    def test_a_thousand_callers_wait_while_the_server_goes_on_answering(self):
        allow_open_files(self, 2000)
        server = self.start()
        gated = self.gated()
        bodies = 500 * [json.dumps(gated)]
        code = "def f(a):\n    return a\n"
        for number in range(500):
            request = self.store.request(code, a=number)
            bodies.append(json.dumps({**request, "scratch": True}))
        with contextlib.ExitStack() as stack:
            healthchecks = stack.enter_context(self.healthchecks(server))
            callers = {}
            for body in bodies:
                caller = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
                stack.enter_context(caller)
                caller.sendall(
                    f"GET /run-transformation HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                callers[caller.fileno()] = caller
            # At the cap of connections that there is by itself.
            wait_until(
                lambda: (
                    server.log.count("received from a caller") == 501
                    and server.log.count("joined by a caller") == 499
                ),
                "all are waiting",
            )
            assert_prompt(
                self,
                lambda: {"healthcheck": max(self.healthcheck(server) for _ in range(20))},
                {"healthcheck": lambda: stretched(1.0, 20)},
            )
            # They have come at one moment, and go at another.
            self.gate.touch()
            poll = select.poll()
            for descriptor in callers:
                poll.register(descriptor, select.POLLIN)
            good = 0
            while callers:
                ready = poll.poll(1000 * PATIENCE)
                self.assertTrue(ready, f"{len(callers)} callers hear nothing")
                for descriptor, _ in ready:
                    good += callers[descriptor].recv(12) == b"HTTP/1.1 200"
                    poll.unregister(descriptor)
                    del callers[descriptor]
            self.assertEqual(good, 1000)
            for took, worked, allowed in healthchecks:
                # How much of a processor the server gets is the doing of a loaded machine.
                self.assertLess(min(took, worked), allowed)
                self.assertLess(took, 10.0 if allowed > 1.0 else 2.0)
        self.assertEqual(self.runs(), 1)

    @contextlib.contextmanager
    def healthchecks(self, server):
        """Ask for the health again and again meanwhile.

        Yields, for each answer, the seconds that it took, the server's processor time in them, and
        the second that either may take: on a loaded machine, whose processors are slower too, more.
        """
        seen, over = [], threading.Event()

        def ask_again():
            while not over.wait(0.05):
                before = processor_time(server.process.pid)
                took = self.healthcheck(server)
                worked = processor_time(server.process.pid) - before
                seen.append((took, worked, 1.0 if took < 1.0 else stretched(1.0, 40)))

        with ThreadPoolExecutor(1) as asking:
            asked = asking.submit(ask_again)
            try:
                yield seen
            finally:
                over.set()
            asked.result(PATIENCE)

    def healthcheck(self, server):
        """Return how many seconds it takes to be answered."""
        asked = time.monotonic()
        self.assertEqual(ask("127.0.0.1", server.port), (200, "OK"))
        return time.monotonic() - asked

    def test_idle_connections_cost_a_bounded_amount_and_give_it_back(self):
        count = 500
        allow_open_files(self, count + 200)
        server = self.start()
        self.await_workers(server, 1)
        ask("127.0.0.1", server.port)
        process = Path(f"/proc/{server.process.pid}")

        def held():
            return [len(os.listdir(process / what)) for what in ("fd", "task")]

        before = held()
        memory = memory_of(server.process.pid)
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                self.get_ok(self.connect(server, stack))
            for name, now, then in zip(("descriptors", "threads"), held(), before, strict=True):
                self.assertLess(now - then, count + 20, name)
            grown = memory_of(server.process.pid) - memory
            self.assertLess(grown / count, 100e3, "bytes for a connection")
        wait_until(
            lambda: all(now <= then + 4 for now, then in zip(held(), before, strict=True)),
            "descriptors and threads are given back",
        )

    def test_beyond_the_cap_connections_wait_to_be_accepted(self):
        server = self.start("--max-connections", "4")
        gated = self.gated()
        with contextlib.ExitStack() as stack:
            held = [self.connect(server, stack) for _ in range(4)]
            for one in held:
                one.sendall(run(gated))
            wait_until(lambda: server.log.count("by a caller") == 3, "all are waiting")
            further = self.connect(server, stack)
            further.sendall(get())
            threads = f"/proc/{server.process.pid}/task"
            self.assertFalse(select.select([further], [], [], 1.5)[0], "it is not served")
            before = len(os.listdir(threads))
            held[0].close()
            self.assertTrue(further.recv(12).endswith(b"200"), "now it is")
            # A thread gives its room back a moment before it has ended.
            wait_until(lambda: len(os.listdir(threads)) <= before, "its thread is gone")
            self.gate.touch()
            for one in held[1:]:
                self.assertTrue(one.recv(12).endswith(b"200"))

    def test_at_the_cap_a_connection_that_is_idle_makes_room(self):
        # Which of several, `test_places` shows: here it is not known which thread came first.
        server = self.start("--max-connections", "4")
        gated = self.gated()
        with contextlib.ExitStack() as stack:
            busy, *idle = (self.connect(server, stack) for _ in range(4))
            busy.sendall(run(gated))
            for one in idle:
                self.get_ok(one)
            begun = time.monotonic()
            self.assertEqual(ask("127.0.0.1", server.port), (200, "OK"))
            self.assertLess(time.monotonic() - begun, 5.0, "long before the idle time is over")
            (gone,) = select.select([busy, *idle], [], [], PATIENCE)[0]
            self.assertIsNot(gone, busy)
            self.assertEqual(gone.recv(65536), b"")
            self.gate.touch()
            self.assertTrue(busy.recv(12).endswith(b"200"))
            for one in idle:
                if one is not gone:
                    self.get_ok(one)

    def connect(self, server, stack):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        return stack.enter_context(client)

    def get_ok(self, client):
        """Ask for the healthcheck, and read all of its answer."""
        client.sendall(get())
        received = b""
        while not received.endswith(b"\r\n\r\nOK"):
            piece = client.recv(65536)
            self.assertTrue(piece, "it is still open")
            received += piece


del Served, Faults  # they are no tests themselves
