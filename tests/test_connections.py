"""Connections: framing over a real socket, deadlines, interim answers, and their end."""

import concurrent.futures
import contextlib
import dataclasses
import os
import resource
import select
import socket
import threading
import time
import unittest
from unittest import mock

from seamless_jobserver.server import connection, http
from seamless_jobserver.server.access import AccessRules, Gate
from seamless_jobserver.server.connection import ClientGone
from seamless_jobserver.server.http import JobHTTPServer
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.response import text_response
from tests.machine import allow_open_files
from tests.stack import PATIENCE, wait_until

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"

# Sent first -> the status that it gets, or None for a connection that is closed in silence.
BAD_STARTS = {
    b"GET /\r\n\r\n": 400,
    b"GET /\r\n": 400,  # HTTP/0.9: nothing more will come
    b"GET / HTTP/1.1\nHost: x\n\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\n": 400,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": 400,  # the start of TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 505,
    b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n": 414,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 101 + b"\r\n": 431,
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000: 431,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n": 413,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 501,
    b"GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n": 417,
}


class HangingUp(unittest.TestCase):
    def test_it_is_noticed_on_descriptors_of_any_number(self):
        allow_open_files(self, 4096)
        with contextlib.ExitStack() as stack:
            for _ in range(1100):
                stack.enter_context(open(os.devnull))
            ours, theirs = socket.socketpair()
            with ours:
                self.assertGreater(ours.fileno(), 1024)
                self.assertFalse(connection._hung_up(ours))
                theirs.close()
                self.assertTrue(connection._hung_up(ours))

    def test_it_is_noticed_behind_bytes_that_nobody_has_read(self):
        for end in (socket.socket.close, lambda peer: peer.shutdown(socket.SHUT_WR)):
            ours, theirs = socket.socketpair()
            with self.subTest(end), ours, theirs:
                theirs.sendall(b"more")
                self.assertFalse(connection._hung_up(ours))
                end(theirs)
                self.assertTrue(connection._hung_up(ours))
                self.assertEqual(ours.recv(9), b"more", "what was sent is still to be read")


class OpenFiles(unittest.TestCase):
    def test_as_many_are_allowed_as_connections_and_workers_need_or_it_is_said(self):
        none = resource.RLIM_INFINITY
        # The limits that there are, the one that is set, and how many connections that is enough for.
        for soft, hard, allowed, enough_for in (
            (1024, none, 1304, None),
            (1024, 4096, 1304, None),
            (1024, 1200, 1200, 920),
            (4096, 4096, None, None),
            (none, none, None, None),
        ):
            with (
                self.subTest((soft, hard)),
                mock.patch.object(resource, "getrlimit", return_value=(soft, hard)),
                mock.patch.object(resource, "setrlimit") as limit,
                mock.patch.object(http._log, "warning") as warned,
            ):
                self.assertEqual(http.allow_connections(1024, 2), soft)
                calls = (
                    [] if allowed is None else [mock.call(resource.RLIMIT_NOFILE, (allowed, hard))]
                )
                self.assertEqual(limit.call_args_list, calls)
                told = [call.args[-1] for call in warned.call_args_list]
                self.assertEqual(told, [] if enough_for is None else [enough_for])


class Connections(unittest.TestCase):
    def setUp(self):
        self.answer = lambda head, body, waiting: text_response(
            200, f"{head.method} {head.target} {body}"
        )
        self.activity = Activity()
        before = set(threading.enumerate())
        self.server = JobHTTPServer(
            socket.AF_INET,
            ("127.0.0.1", 0),
            lambda *args: self.answer(*args),
            self.activity,
            gate=Gate(AccessRules(any_user=True)),
            tls=None,
            max_connections=20,
            max_body=64 * 2**20,
        )
        self.server.start()
        self.addCleanup(
            wait_until, lambda: not set(threading.enumerate()) - before, "its threads have ended"
        )
        self.addCleanup(self.close)

    def close(self):
        self.server.stop_accepting()
        self.assertEqual(self.server.close(5.0), 0)

    def connect(self):
        peer = socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
        self.addCleanup(peer.close)
        return peer

    def read_all(self, peer):
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := peer.recv(65536):
                received += chunk
        return received

    def test_bad_beginnings_get_their_status_and_the_connection_ends(self):
        for start, status in BAD_STARTS.items():
            with self.subTest(start[:40]):
                peer = self.connect()
                peer.sendall(start)
                received = self.read_all(peer)
                self.assertTrue(received.startswith(b"HTTP/1.1 %d " % status), received[:80])
                self.assertEqual(received.count(b"Content-Length: "), 1)
                self.assertIn(b"Connection: close\r\n", received)

    def test_what_a_client_is_still_sending_after_its_refusal_is_taken_in(self):
        with mock.patch.object(connection, "_LINGER", 60.0):
            peer = self.connect()
            peer.sendall(GET[:-2] + b"Content-Length: 99999999999\r\n\r\n")
            self.assertIn(b" 413 ", self.read_all(peer))
            for _ in range(100):
                peer.sendall(65536 * b"x")
            peer.close()

    def test_an_answer_that_finds_its_client_gone_is_reported(self):
        unheard, leave, left = threading.Event(), threading.Event(), threading.Event()

        def answer(_head, _body, _waiting):
            leave.set()
            left.wait(20)
            return dataclasses.replace(text_response(200, "done"), unheard=unheard.set)

        self.answer = answer
        peer = self.connect()
        peer.sendall(GET)
        self.assertTrue(leave.wait(20))
        peer.close()
        left.set()
        self.assertTrue(unheard.wait(20))

    def test_one_that_its_client_does_not_take_is_reported_too(self):
        unheard = threading.Event()
        content = bytes(16 * 2**20)  # far more than is buffered on its way
        self.answer = lambda *_: dataclasses.replace(
            text_response(200, ""), body=content, unheard=unheard.set
        )
        with mock.patch.object(connection, "WRITE_LIMIT", 0.1):
            self.connect().sendall(GET)
            self.assertTrue(unheard.wait(20))

    def test_a_stream_ends_as_the_version_of_the_client_knows_it(self):
        self.answer = lambda *_: dataclasses.replace(
            text_response(200, ""), stream=(part for part in (b"one", b"", b"two"))
        )
        last = b"GET /y HTTP/1.0\r\n\r\n"
        for request, answers in (
            # In chunks, and what follows on the connection is answered too.
            (GET, (b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n", b"onetwo")),
            # With the connection, whatever the client wishes.
            (b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", (b"onetwo",)),
            (GET.replace(b"GET", b"HEAD"), (b"", b"onetwo")),
        ):
            with self.subTest(request):
                peer = self.connect()
                peer.sendall(request + last)
                received = self.read_all(peer)
                heads, bodies = [], []
                for one in received.split(b"HTTP/1.1 200 OK\r\n")[1:]:
                    head, _, body = one.partition(b"\r\n\r\n")
                    heads.append(head)
                    bodies.append(body)
                self.assertEqual(tuple(bodies), answers)
                self.assertIn(b"Connection: close", heads[-1])

    def test_an_answer_that_is_taken_is_not_reported(self):
        unheard = threading.Event()
        self.answer = lambda *_: dataclasses.replace(text_response(200, "x"), unheard=unheard.set)
        peer = self.connect()
        peer.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertTrue(self.read_all(peer).endswith(b"x"))
        self.assertFalse(unheard.is_set())

    def test_a_body_is_read_in_however_many_pieces_it_comes(self):
        peer = self.connect()
        request = b"POST /p?q HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        for index in range(len(request)):
            peer.sendall(request[index : index + 1])
        self.assertTrue(peer.recv(65536).endswith(b"POST /p?q b'hello'"))

    def test_empty_lines_before_a_request_are_ignored(self):
        peer = self.connect()
        peer.sendall(b"\r\n\r\n" + GET)
        self.assertIn(b"200 OK", peer.recv(65536))

    def test_a_request_that_trickles_is_cut_off(self):
        with mock.patch.object(connection, "REQUEST_LIMIT", 0.3):
            for start in (b"GET / HT", GET[:-2] + b"Content-Length: 5\r\n\r\nhe"):
                peer = self.connect()
                peer.sendall(start)
                self.assertTrue(self.read_all(peer).startswith(b"HTTP/1.1 408 "))

    def test_a_request_of_which_something_goes_on_coming_is_cut_off_all_the_same(self):
        # Beginnings to which any number of these bytes may be added.
        head = GET[:-2] + b"X: "
        body = GET[:-2] + b"Content-Length: 1000000\r\n\r\n"
        with mock.patch.object(connection, "REQUEST_LIMIT", 1.5):
            for start in (head, body):
                with self.subTest(start):
                    peer = self.connect()
                    peer.sendall(start)
                    until = time.monotonic() + PATIENCE
                    sent = 0
                    while not select.select([peer], [], [], 0.02)[0]:
                        self.assertLess(time.monotonic(), until, "it is not cut off")
                        peer.sendall(b"x")
                        sent += 1
                    self.assertTrue(self.read_all(peer).startswith(b"HTTP/1.1 408 "))
                    self.assertGreater(sent, 1)

    def test_an_idle_connection_is_closed_after_a_while(self):
        with mock.patch.object(connection, "IDLE_LIMIT", 2.0):
            peer = self.connect()
            peer.sendall(GET)
            self.assertIn(b"200 OK", peer.recv(65536))
            self.assertEqual(self.read_all(peer), b"")

    def test_nagles_algorithm_is_off(self):
        peer = self.connect()
        peer.sendall(GET)
        peer.recv(65536)
        (ours,) = self.server._snapshot().values()
        self.assertTrue(ours.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_waiting_clients_that_skip_interim_answers_are_kept_awake(self):
        for agent, version, expected in (
            (b"Python/3.11 aiohttp/3.9", b"1.1", True),
            (b"seamless-jobserver/1.0 transport", b"1.1", True),
            (b"Python-urllib/3.11", b"1.1", False),
            (b"", b"1.1", False),
            (b"Python/3.11 aiohttp/3.9", b"1.0", False),  # which knows none (RFC 9110 §15.2)
        ):
            done = concurrent.futures.Future()

            def answer(head, body, wait_for, done=done):
                wait_for(done)
                return text_response(200, done.result())

            self.answer = answer
            with (
                self.subTest(agent, version=version),
                mock.patch.object(connection, "PROCESSING_INTERVAL", 0.05),
            ):
                peer = self.connect()
                request = GET[:-2] + b"User-Agent: " + agent + b"\r\n\r\n"
                peer.sendall(request.replace(b"HTTP/1.1", b"HTTP/" + version))
                if expected:
                    first = peer.recv(25)
                    self.assertEqual(first, b"HTTP/1.1 102 Processing\r\n")
                else:
                    peer.settimeout(0.3)
                    with self.assertRaises(TimeoutError):
                        peer.recv(1)
                    peer.settimeout(20)
                done.set_result("done")
                received = b""
                while not received.endswith(b"done"):
                    received += peer.recv(65536)

    def test_between_two_interim_answers_there_is_nothing(self):
        done = concurrent.futures.Future()

        def answer(head, body, wait_for):
            # The first is due at once, and the second long after the answer.
            connection.PROCESSING_INTERVAL = 3600.0
            wait_for(done)
            return text_response(200, "done")

        self.answer = answer
        with mock.patch.object(connection, "PROCESSING_INTERVAL", 0.0):
            peer = self.connect()
            peer.sendall(GET[:-2] + b"User-Agent: aiohttp\r\nConnection: close\r\n\r\n")
            received = peer.recv(25)
            done.set_result(None)
            received += self.read_all(peer)
        self.assertTrue(received.endswith(b"done"))
        self.assertEqual(received.count(b"HTTP/1.1 102 "), 1)

    def test_a_job_that_ends_while_its_client_is_looked_for_is_answered_at_once(self):
        def answer(head, body, wait_for):
            done = concurrent.futures.Future()
            with mock.patch.object(
                connection.Connection, "_show_progress", side_effect=lambda: done.set_result("done")
            ):
                wait_for(done)
            return text_response(200, done.result())

        self.answer = answer
        with mock.patch.object(connection, "PROCESSING_INTERVAL", 3600.0):
            peer = self.connect()
            peer.sendall(GET)
            self.assertIn(b"done", peer.recv(65536))

    def test_a_client_that_hangs_up_while_it_waits_is_noticed(self):
        noticed = threading.Event()

        def answer(head, body, wait_for):
            try:
                wait_for(concurrent.futures.Future())
            except ClientGone:
                noticed.set()
                raise

        self.answer = answer
        for waits in (False, True):
            noticed.clear()
            with (
                self.subTest(waits=waits),
                mock.patch.object(connection, "PROCESSING_INTERVAL", 3600.0),
            ):
                peer = self.connect()
                peer.sendall(GET)
                if waits:
                    wait_until(lambda: self.server._hangups._wake, "its thread waits")
                peer.close()
                self.assertTrue(noticed.wait(20))

    def test_a_request_is_activity_and_an_idle_connection_is_not(self):
        release = threading.Event()

        def answer(head, body, waiting):
            release.wait(20)
            return text_response(200, "done")

        self.answer = answer
        peer = self.connect()
        peer.sendall(GET)
        wait_until(lambda: self.activity.idle_seconds() == 0, "it is being answered")
        release.set()
        peer.recv(65536)
        wait_until(lambda: self.activity.idle_seconds() > 0, "it has been answered")

    def test_an_error_of_ours_ends_one_connection_and_is_logged(self):
        def answer(head, body, waiting):
            raise KeyError("a bug")

        self.answer = answer
        with self.assertLogs("seamless_jobserver.server.http", "ERROR") as logged:
            peer = self.connect()
            peer.sendall(GET)
            self.assertEqual(self.read_all(peer), b"")
        self.assertIn("a bug", logged.output[0])
        self.answer = lambda *args: text_response(200, "well again")
        peer = self.connect()
        peer.sendall(GET)
        self.assertIn(b"well again", peer.recv(65536))

    def test_a_long_answer_may_take_its_time_as_long_as_it_is_taken(self):
        content = bytes(range(256)) * 16 * 1024  # far more than is buffered on its way
        self.answer = lambda *args: dataclasses.replace(text_response(200, ""), body=content)
        peer = socket.socket()
        self.addCleanup(peer.close)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(20)
        limits, send_all = [], socket.socket.sendall

        def note(sock, data, *flags):
            limits.append((len(data), sock.gettimeout()))
            return send_all(sock, data, *flags)

        with mock.patch.object(socket.socket, "sendall", note):
            peer.connect(("127.0.0.1", self.server.port))
            peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            received = self.read_all(peer)
        self.assertTrue(received.endswith(content))
        self.assertEqual({limit for _, limit in limits}, {connection.WRITE_LIMIT})
        self.assertLessEqual(max(length for length, _ in limits), 65536)

    def test_a_thread_that_fails_to_start_for_any_reason_leaves_no_place_taken(self):
        start = threading.Thread.start
        failed = []

        def fail_once(thread):
            if thread.name.startswith("jobserver-connection") and not failed:
                failed.append(thread)
                raise MemoryError
            start(thread)

        with (
            mock.patch.object(threading.Thread, "start", fail_once),
            self.assertLogs("seamless_jobserver.server.http", "ERROR"),
        ):
            self.assertEqual(self.read_all(self.connect()), b"")
        free = self.server._terms.places._free
        self.assertEqual(free, 20)
        self.assertEqual(self.server._snapshot(), {})

    def test_who_does_not_take_an_answer_is_cut_off_at_the_end(self):
        content = bytes(16 * 2**20)  # far more than is buffered on its way
        self.answer = lambda *_: dataclasses.replace(text_response(200, ""), body=content)
        peer = self.connect()
        peer.sendall(GET)
        self.assertEqual(peer.recv(4), b"HTTP", "it is being written")
        self.server.stop_accepting()
        self.assertEqual(self.server.close(0.1), 0)

    def test_closing_lets_an_answer_out_and_ends_idle_connections(self):
        release = threading.Event()
        arrived = threading.Event()

        def answer(head, body, waiting):
            arrived.set()
            release.wait(20)
            return text_response(200, "the last answer")

        self.answer = answer
        idle, busy = self.connect(), self.connect()
        busy.sendall(GET)
        self.assertTrue(arrived.wait(20))
        self.server.stop_accepting()
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
        release.set()
        self.assertEqual(self.server.close(10.0), 0)
        self.assertIn(b"the last answer", self.read_all(busy))
        self.assertEqual(self.read_all(idle), b"")
