"""What strangers can do who are not let in: to a server that is short of something, or in numbers.

Most of it needs root, since there must be another user who is refused.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import http.client
import ipaddress
import json
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

from seamless_jobserver import peer
from seamless_jobserver.server import connection, loopback, places, workingdirectory
from seamless_jobserver.server.access import AccessRules, Gate, Refused, Standing, make_tls
from seamless_jobserver.server.http import JobHTTPServer
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.response import text_response
from tests.stack import PATIENCE, free_port, temporary_directory, wait_until
from tests.test_access import (
    AS_ROOT,
    STRANGER,
    Served,
    as_user,
    ask,
    basic,
    dual_listener,
    head,
    make_certificate,
)
from tests.test_running import OnAStore
from tests.test_sharing_a_process import THREE_LEVELS


def status_of(address, port):
    """Return the status of an answer, or 0 where there is none."""
    try:
        return ask(address, port)[0]
    except OSError:
        return 0


class Shortage(unittest.TestCase):
    def test_only_an_address_that_is_not_here_is_foreign(self):
        gate = Gate(AccessRules())
        client = mock.Mock(getpeername=lambda: ("203.0.113.1", 4000))
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES):
            failing = mock.Mock(side_effect=OSError(number, os.strerror(number)))
            with self.subTest(errno.errorcode[number]):
                # Nobody is admitted, and what may pass is asked again (`JobHTTPServer`).
                short = number in peer.SHORTAGE
                with (
                    mock.patch("socket.socket", failing),
                    self.assertRaisesRegex(
                        *((OSError, str(number)) if short else (Refused, "cannot be found out"))
                    ),
                ):
                    gate.admit(client)
                bound = mock.Mock(side_effect=OSError(number, os.strerror(number)))
                with (
                    mock.patch("socket.socket.bind", bound),
                    self.assertRaises(OSError if short else peer.Unknown),
                ):
                    peer.is_local(ipaddress.ip_address("203.0.113.1"))
        self.assertIs(gate.admit(client), Standing.ADMITTED)


@AS_ROOT
@unittest.skipUnless(shutil.which("ip"), "there is no ip(8)")
class Exhaustion(Served):
    def test_no_stranger_gets_in_however_few_descriptors_are_left(self):
        # An address of this machine that is no loopback address: it has to be recognized.
        address = f"198.18.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        for change in ("del", "add"):
            subprocess.run(
                ["ip", "addr", change, f"{address}/32", "dev", "lo"],
                check=change == "add",
                capture_output=True,
                timeout=PATIENCE,
            )
        self.addCleanup(
            subprocess.run, ["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True
        )
        server = self.start("--host", "0.0.0.0")
        wait_until(lambda: "is ready" in server.log, "no worker is being started any more")
        pid = server.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        self.assertEqual(ask(address, server.port), (200, "OK"))
        heard = set()
        for left in range(8):
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            free = [number for number in range(10_000) if number not in used]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[left], before[1]))
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    # Those of the owner take some more of them.
                    held = stack.enter_context(socket.socket())
                    held.connect((address, server.port))
                    heard.add(
                        as_user(STRANGER, functools.partial(short, status_of, address, server.port))
                    )
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        self.assertLessEqual(heard, {0, 403})
        self.assertIn(403, heard)
        self.assertEqual(ask(address, server.port), (200, "OK"), "it has recovered")


def short(function, *arguments):
    """Call `function`, which is not to wait longer than a moment for anything."""
    with mock.patch("tests.test_access.PATIENCE", 1.0):
        return function(*arguments)


def connections_of(user, target, count):
    """Return sockets that a process of `user` has made and connected: they stay that user's."""
    found = []
    while len(found) < count:
        ours, theirs = socket.socketpair()
        part = min(200, count - len(found))  # as many as one message can carry
        with ours, theirs:

            def make(theirs=theirs, part=part):
                made = [socket.create_connection(target, PATIENCE).detach() for _ in range(part)]
                socket.send_fds(theirs, [b"x"], made)

            as_user(user, make)
            _, descriptors, _, _ = socket.recv_fds(ours, 1, part)
            found += [socket.socket(fileno=descriptor) for descriptor in descriptors]
    return found


@AS_ROOT
class Numbers(Served):
    def test_strangers_take_no_place_and_no_thread_of_the_owners(self):
        server = self.start("--max-connections", "2")
        wait_until(lambda: "is ready" in server.log, "its threads are there")
        self.assertEqual(ask("127.0.0.1", server.port), (200, "OK"))
        threads = f"/proc/{server.process.pid}/task"
        wait_until(lambda: ask("127.0.0.1", server.port) and True, "it is well")
        before = len(os.listdir(threads))
        with contextlib.ExitStack() as stack:
            for one in connections_of(STRANGER, ("127.0.0.1", server.port), 600):
                stack.enter_context(one)
            begun = time.monotonic()
            for _ in range(50):
                self.assertEqual(ask("127.0.0.1", server.port), (200, "OK"))
            self.assertLess(time.monotonic() - begun, 10.0, "well before strangers are hung up on")
            wait_until(lambda: len(os.listdir(threads)) <= before + 1, "there is no thread more")
            self.assertLess(len(os.listdir(f"/proc/{server.process.pid}/fd")), 100)
        self.assertEqual(server.request("GET", "/status").status, 200)

    def test_the_log_tells_how_many_were_refused_and_not_who(self):
        server = self.start()
        for _ in range(5):
            as_user(STRANGER, functools.partial(ask, "127.0.0.1", server.port))
        lines = [line for line in server.log.splitlines() if "refused" in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("1 times another user of this machine", lines[0])
        for name in (str(STRANGER), "127.0.0.1"):
            self.assertNotIn(name, lines[0])
        self.assertIn("refused_total 5\n", server.request("GET", "/metrics").text)


class WorkersOfOurs(OnAStore):
    """A worker asks for a nested job in the clear, as a user about whom nobody may be asked."""

    def test_nested_jobs_run_whatever_is_asked_of_others(self):
        certificate, key = make_certificate(self.directory)
        password = self.directory / "password"
        password.write_text("sesame\n")
        password.chmod(0o600)
        tls = ("--certfile", str(certificate), "--keyfile", str(key))
        secret = ("--password-file", str(password))
        context = ssl.create_default_context(cafile=str(certificate))
        for number, flags in enumerate(
            (
                tls,
                (*tls, "--access", "any"),
                (*secret, "--access", "any"),
                (*tls, *secret, "--access", "any"),
            )
        ):
            server = self.start(*flags, workers=2)
            wait_until(lambda s=server: s.log.count("is ready") == 2, "both workers are ready")
            with self.subTest(flags):
                made = (
                    http.client.HTTPSConnection("localhost", server.port, context=context)
                    if "--certfile" in flags
                    else http.client.HTTPConnection("localhost", server.port)
                )
                with contextlib.closing(made):
                    body = json.dumps(self.store.request(THREE_LEVELS, a=number))
                    headers = {"Authorization": basic("me:sesame")}
                    made.request("GET", "/run-transformation", body, headers)
                    answer = made.getresponse()
                    text = answer.read().decode()
                self.assertEqual(answer.status, 200, text)
                found = json.loads(self.store.get(json.loads(text)["result_checksum"]))
                self.assertEqual(found, (number + 1) * 10 + 0.5)
                self.assertIn("from another job", server.log, "the server was asked for it")
                self.assertIn("refused_total 0\n", self.metrics(made, headers))
            server.stop()

    def metrics(self, made, headers):
        with contextlib.closing(made):
            made.request("GET", "/metrics", headers=headers)
            return made.getresponse().read().decode()


class Localhost(OnAStore):
    """A browser that is given that name tries two addresses, of which one is not listened at."""

    shares_store = True

    def take(self, port, address="::1"):
        other = socket.socket(socket.AF_INET6)
        self.addCleanup(other.close)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address == "::":
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind((address, port))
        other.listen()

    def ask(self, server):
        return server.request("GET", "/", Host=f"localhost:{server.port}", Accept_Language="en")

    def test_nobody_else_gets_the_other_address_while_the_server_is_there(self):
        server = self.start()
        with self.assertRaises(OSError) as caught:
            self.take(server.port)
        self.assertEqual(caught.exception.errno, errno.EADDRINUSE)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("::1", server.port), PATIENCE)
        self.assertEqual(self.ask(server).status, 200)
        server.stop()
        self.take(server.port)

    def test_who_has_all_of_one_kind_leaves_nobody_the_other_kind(self):
        server = self.start("--host", "0.0.0.0")
        for other in ("::1", "::"):
            with self.subTest(other), self.assertRaises(OSError) as caught:
                self.take(server.port, other)
            self.assertEqual(caught.exception.errno, errno.EADDRINUSE)
        server.stop()
        self.take(server.port, "::")

    def test_where_somebody_has_another_of_that_kind_localhost_is_held_at_least(self):
        hold = loopback._hold

        def hold_but_all(other, port):
            if other == "::":
                raise OSError(errno.EADDRINUSE, "Address already in use")
            return hold(other, port)

        with (
            mock.patch.object(loopback, "_hold", hold_but_all),
            contextlib.closing(loopback.hold_other("0.0.0.0", free_port())) as held,
        ):
            self.assertEqual(held.getsockname()[0], "::1")

    def test_where_somebody_has_it_browsers_are_not_answered_by_that_name(self):
        port = free_port()
        self.take(port)
        server = self.start("--port", str(port))
        self.assertEqual(self.ask(server).status, 403)
        own = server.request("GET", "/", Host=f"127.0.0.1:{port}", Accept_Language="en")
        self.assertEqual(own.status, 200)
        self.assertIn("not at localhost", server.log)

    def test_there_is_nothing_to_hold_where_neither_or_both_are_listened_at(self):
        for address, holds in (
            ("127.0.0.1", "::1"),
            ("127.0.0.5", "::1"),  # a browser knows it as localhost no less
            ("::1", "127.0.0.1"),
            ("0.0.0.0", "::"),
            ("::", None),
            ("10.0.0.1", None),
        ):
            with self.subTest(address), contextlib.ExitStack() as stack:
                port = free_port()
                if address != "10.0.0.1":
                    port = stack.enter_context(dual_listener(address)).getsockname()[1]
                held = loopback.hold_other(address, port)
                if held is not None:
                    stack.enter_context(held)
                self.assertEqual(held and held.getsockname()[0], holds)

    def test_nor_where_this_machine_has_no_other(self):
        for number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            missing = OSError(number, os.strerror(number))
            with mock.patch.object(socket, "socket", side_effect=missing):
                self.assertIsNone(loopback.hold_other("127.0.0.1", 1))


class SharedDirectory(OnAStore):
    """The launcher starts servers in ``/tmp``, where anybody can put a module."""

    CODE = """
def f(a):
    import multiprocessing, os, subprocess, sys
    multiprocessing.get_context("spawn").Process(target=print).run()
    subprocess.run([sys.executable, "-c", "import multiprocessing"], check=True)
    return os.getcwd()
"""

    def test_nothing_is_imported_from_the_directory_that_it_is_started_in(self):
        mark = self.directory / "mark"
        shared = self.directory / "shared"
        shared.mkdir()
        shared.chmod(0o1777)
        for name in ("multiprocessing", "json", "seamless"):
            (shared / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').close()\n")
        (shared / "relative").mkdir()
        (shared / "relative").chmod(0o777)
        spool = {"SEAMLESS_JOBSERVER_SPOOL": "relative"}
        server = self.start("--grace", "1", name="shared", env=spool)
        work = self.value(server.run(self.store.request(self.CODE, a=1)))
        self.assertFalse(mark.exists())
        self.assertNotEqual(work, str(shared))
        self.assertIn(f"{shared}/relative", server.log)  # others can write there: it is told
        facts = os.stat(work)
        self.assertEqual((facts.st_uid, facts.st_mode & 0o777), (os.geteuid(), 0o700))
        server.stop()
        self.assertFalse(os.path.exists(work))

    def test_nor_because_the_path_of_modules_says_so(self):
        mark = self.directory / "mark-of-path"
        shared = self.directory / "on-path"
        shared.mkdir()
        shared.chmod(0o1777)
        # The server looks for it, and only the workers import it.
        (shared / "seamless.py").write_text(f"open({str(mark)!r}, 'a').close()\n")
        path = ":" + os.environ.get("PYTHONPATH", "")
        server = self.start(name="on-path", env={"PYTHONPATH": path})
        self.result(server.run(self.store.request(self.CODE, a=3)))
        self.assertFalse(mark.exists())
        self.assertIn(f"nothing is imported from {shared}", server.log)

    def test_the_path_keeps_only_where_the_package_itself_is(self):
        shared = str(self.directory)
        for package, kept in ((f"{shared}/venv/lib", False), (shared, True)):
            file = f"{package}/seamless_jobserver/server/workingdirectory.py"
            with (
                self.subTest(package),
                mock.patch.object(workingdirectory, "__file__", file),
                mock.patch.object(sys, "path", ["/usr/lib", shared]),
            ):
                workingdirectory._forget_path(shared)
                self.assertEqual(shared in sys.path, kept)

    def test_a_job_that_removes_its_directory_costs_nobody_else_anything(self):
        shared = self.directory / "removed"
        shared.mkdir()
        shared.chmod(0o1777)
        server = self.start(name="removed", workers=2)
        remove = "def f(a):\n    import os, shutil\n    shutil.rmtree(os.getcwd())\n    return a\n"
        for a in range(2):
            self.assertEqual(self.value(server.run(self.store.request(remove, a=a))), a)
        for a in range(4, 7):
            self.result(server.run(self.store.request(self.CODE, a=a)))

    def test_one_of_our_own_is_where_jobs_run(self):
        server = self.start(name="own")
        work = self.value(server.run(self.store.request(self.CODE, a=2)))
        self.assertEqual(work, str(self.directory / "own"))


class InProcess(unittest.TestCase):
    """A server in this process, which asks everybody for a password."""

    RULES = AccessRules(any_user=True, password=b"sesame")
    MOST = 20
    MAX_BODY = 1000
    tls = None

    def setUp(self):
        self.answer = lambda head, body, waiting: text_response(200, f"{head.target} {len(body)}")
        self.activity = Activity()
        self.server = JobHTTPServer(
            socket.AF_INET,
            ("127.0.0.1", 0),
            lambda *args: self.answer(*args),
            self.activity,
            gate=Gate(self.RULES),
            tls=self.tls,
            max_connections=self.MOST,
            max_body=self.MAX_BODY,
        )
        self.server.start()
        self.addCleanup(self.close)

    def close(self):
        self.server.stop_accepting()
        self.assertEqual(self.server.close(5.0), 0)

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)
        self.addCleanup(client.close)
        return client

    def asked_at_the_end(self, client, arrived, release):
        """End the server while it is at a request; return what the client hears.

        `arrived` is set when the request is there; the answer waits for `release`, which comes
        when our reading side is shut down.
        """
        client.sendall(request())
        self.assertTrue(arrived.wait(20))
        self.server.stop_accepting()
        shut_down = self.server._shut_down
        self.server._shut_down = lambda how: (shut_down(how), release.set())
        self.assertEqual(self.server.close(20.0), 0)
        return client.recv(65536)

    def converse(self, data):
        """Send `data` and return all that comes back until the server closes."""
        client = self.connect()
        client.sendall(data)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return received


def request(*lines, method="GET", target="/x"):
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: x", *lines, "", "")).encode()


class Copying:
    """Passes on what two ends of a connection send each other, and keeps what the server sends."""

    def __init__(self, server):
        self.client, ours = socket.socketpair()
        self.client.settimeout(PATIENCE)
        self.seen = b""
        threading.Thread(target=self.copy, args=(ours, server), daemon=True).start()
        self.thread = threading.Thread(target=self.copy, args=(server, ours, True), daemon=True)
        self.thread.start()

    def copy(self, source, target, keep=False):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if keep:
                stack.enter_context(target)
            while data := source.recv(65536):
                if keep:
                    self.seen += data
                target.sendall(data)


class InProcessWithTls(InProcess):
    def setUp(self):
        context = temporary_directory()
        self.directory = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        certificate, key = make_certificate(self.directory)
        self.tls = make_tls(certificate, key)
        self.context = ssl.create_default_context(cafile=str(certificate))
        super().setUp()


class WithTls(InProcessWithTls):
    RULES = AccessRules(any_user=True)

    def test_an_answer_that_is_due_at_the_end_does_not_go_out_in_the_clear(self):
        # To shut down a socket of ssl's takes its TLS away, and what is written then is plain.
        arrived, release = threading.Event(), threading.Event()
        self.answer = lambda *_: (arrived.set(), release.wait(20), text_response(200, "last"))[-1]
        copy = Copying(self.connect())
        with self.context.wrap_socket(copy.client, server_hostname="localhost") as client:
            self.assertTrue(self.asked_at_the_end(client, arrived, release).endswith(b"last"))
        copy.thread.join(PATIENCE)
        self.assertNotIn(b"HTTP/1.1", copy.seen)

    def test_who_does_not_end_the_handshake_has_a_few_seconds_and_can_be_pushed_out(self):
        with mock.patch.object(connection, "STRANGER_LIMIT", 0.3):
            half = self.connect()
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
            self.assertEqual(half.recv(1), b"")
        halves = [self.connect() for _ in range(places.STRANGERS + 5)]
        for half in halves:
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
        begun = time.monotonic()
        self.assertEqual(halves[0].recv(1), b"")
        self.assertLess(time.monotonic() - begun, 4.0, "before its time is over")

    def test_in_the_clear_it_is_said_that_tls_is_wanted(self):
        self.assertTrue(self.converse(request()).startswith(b"HTTP/1.1 426 "))

    def test_one_that_makes_room_while_it_begins_tls_is_closed(self):
        wrap, strangers = self.tls.wrap_socket, self.server._terms.strangers

        def make_room(plain, **settings):
            wrapped = wrap(plain, **settings)
            # Of its two sockets the old one is closed, and the new one is not in its place yet.
            with mock.patch.object(strangers, "_free", 0):
                self.assertFalse(strangers.take(0.0))
            return wrapped

        with (
            mock.patch.multiple(connection, STRANGER_LIMIT=600.0, _HANDSHAKE_LIMIT=600.0),
            mock.patch.object(self.tls, "wrap_socket", make_room),
        ):
            half = self.connect()
            half.settimeout(20)
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
            self.assertEqual(half.recv(1), b"")

    def test_a_client_that_hangs_up_while_it_waits_is_noticed(self):
        noticed = threading.Event()

        def answer(_head, _body, wait_for):
            try:
                wait_for(concurrent.futures.Future())
            except connection.ClientGone:
                noticed.set()
                raise

        self.answer = answer
        with self.context.wrap_socket(self.connect(), server_hostname="localhost") as client:
            client.sendall(request())
        self.assertTrue(noticed.wait(20))

    def test_what_it_sends_while_it_waits_is_its_next_request(self):
        end, arrived = concurrent.futures.Future(), threading.Event()
        add = connection.RequestReader.add

        def note(reader, data):
            add(reader, data)
            if b"/second" in data:
                arrived.set()

        def answer(head, _body, wait_for):
            if head.target == "/first":
                wait_for(end)
            return text_response(200, head.target)

        self.answer = answer
        with (
            mock.patch.object(connection, "PROCESSING_INTERVAL", 0.05),
            mock.patch.object(connection.RequestReader, "add", note),
            self.context.wrap_socket(self.connect(), server_hostname="localhost") as client,
        ):
            client.sendall(request(target="/first"))
            client.sendall(request("Connection: close", target="/second"))
            self.assertTrue(arrived.wait(20), "its client has been looked for")
            end.set_result(None)
            received = b""
            while piece := client.recv(65536):
                received += piece
        self.assertEqual(received.count(b"HTTP/1.1 200 "), 2)
        self.assertTrue(received.endswith(b"/second"), received)

    def test_of_what_a_client_sends_while_it_waits_little_is_taken(self):
        ours = connection.Connection(mock.Mock(), self.server._terms, Standing.OWNER)
        ours.socket = mock.Mock(spec=ssl.SSLSocket)
        ours.socket.recv.side_effect = lambda most: most * b"x"
        for _ in range(10):
            self.assertFalse(ours._client_gone())
        self.assertLess(ours._reader.pending, 3 * connection.CHUNK)


class OfTheOwner(InProcessWithTls):
    RULES = AccessRules()
    MOST = 1

    def test_one_with_tls_takes_one_place(self):
        for _ in range(3):
            with self.context.wrap_socket(self.connect(), server_hostname="localhost") as client:
                for _ in range(2):
                    client.sendall(request())
                    self.assertIn(b" 200 ", client.recv(65536))

    def test_one_in_the_clear_is_served_too(self):
        self.assertIn(b" 200 ", self.converse(request("Connection: close")))


class AskedToEnd(InProcess):
    """When our side of a connection stops reading, it must not look as if the client had gone."""

    RULES = AccessRules(any_user=True)

    def test_a_request_that_arrives_as_its_connection_makes_room_is_answered(self):
        def answer(_head, _body, wait_for):
            (served,) = self.server._snapshot().values()
            served._stays = False
            socket.socket.shutdown(served.socket, socket.SHUT_RD)
            end = concurrent.futures.Future()
            # Later than what comes at once, so that the client is looked for.
            threading.Timer(0.2, end.set_result, (None,)).start()
            wait_for(end)
            return text_response(200, "x")

        self.answer = answer
        received = self.converse(request())
        self.assertIn(b"Connection: close\r\n", received)
        self.assertTrue(received.endswith(b"x"), received)

    def test_an_answer_that_is_due_at_the_end_of_the_server_is_heard(self):
        arrived, release, unheard = (threading.Event() for _ in range(3))
        response = dataclasses.replace(text_response(503, "ended"), unheard=unheard.set)
        self.answer = lambda *_: (arrived.set(), release.wait(20), response)[-1]
        received = self.asked_at_the_end(self.connect(), arrived, release)
        self.assertTrue(received.endswith(b"ended"))
        self.assertIn(b"Connection: close\r\n", received, "nothing more can be asked here")
        self.assertFalse(unheard.is_set())


class MakingRoom(InProcess):
    RULES = AccessRules(any_user=True)
    MOST = 1

    def test_a_request_that_arrives_as_its_connection_is_asked_to_end_is_answered(self):
        places_ = self.server._terms.places
        self.answer = lambda *_: text_response(200, "before")
        client = self.connect()
        client.sendall(request())
        self.assertTrue(client.recv(65536).endswith(b"before"))
        wait_until(lambda: places_._idle, "it is idle")

        def answer(_head, _body, wait_for):
            end = concurrent.futures.Future()
            # Later than what comes at once, so that the client is looked for.
            threading.Timer(0.2, end.set_result, (None,)).start()
            wait_for(end)
            return text_response(200, "after")

        def send_first(_):
            client.sendall(request())
            return False

        self.answer = answer
        with (
            mock.patch.object(places_, "_least_idle", 0.0),
            mock.patch.object(places, "_has_sent", send_first),
        ):
            other = self.connect()
            received = client.recv(65536)
        self.assertIn(b"Connection: close\r\n", received)
        self.assertTrue(received.endswith(b"after"), received)
        other.sendall(request())
        self.assertTrue(other.recv(65536).endswith(b"after"), "it has the place then")


class WithoutThePassword(InProcess):
    MOST = 2

    def test_many_of_them_take_no_place_and_are_pushed_out_by_each_other(self):
        patch = mock.patch.object(connection, "STRANGER_LIMIT", 60.0)
        patch.start()
        self.addCleanup(patch.stop)
        before = threading.active_count()
        silent = [self.connect() for _ in range(300)]
        begun = time.monotonic()
        for _ in range(10):
            answer = self.converse(request(PASSWORD, "Connection: close"))
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
        self.assertLess(time.monotonic() - begun, 40.0, "well before the silent are hung up on")
        self.assertLessEqual(threading.active_count(), before + places.STRANGERS + self.MOST + 1)
        self.assertEqual(silent[0].recv(1), b"")

    def test_each_has_a_few_seconds_however_it_trickles(self):
        with mock.patch.object(connection, "STRANGER_LIMIT", 1.0):
            self.assertEqual(self.connect().recv(1), b"")
            self.assertIn(b" 408 ", self.converse(b"GET / HT"))
        with mock.patch.object(connection, "STRANGER_LIMIT", 1.0):
            self.answer = lambda head, body, _: text_response(200, str(len(body)))
            client = self.connect()
            client.sendall(request(PASSWORD, "Content-Length: 5", "Connection: close"))
            self.pause(1.5)
            client.sendall(b"hello")
            self.assertTrue(client.recv(65536).endswith(b"5"), "one that is known has longer")

    def pause(self, seconds):
        threading.Event().wait(seconds)

    def test_they_do_not_keep_an_unused_server_alive(self):
        client = self.connect()
        client.sendall(b"GET / HT")
        wait_until(lambda: self.server.counts[0], "it is being read")
        self.assertGreater(self.activity.idle_seconds(), 0)

    def test_who_has_given_the_password_leaves_its_place_to_the_next_stranger(self):
        strangers = self.server._terms.strangers
        with mock.patch.object(strangers, "_free", 2):
            for _ in range(4):
                answer = self.converse(request(PASSWORD, "Connection: close"))
                self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
            wait_until(lambda: strangers._free == 2, "all are free again")

    def test_who_waits_for_a_place_and_goes_away_is_let_go(self):
        release = threading.Event()
        self.addCleanup(release.set)
        self.answer = lambda *_: release.wait(PATIENCE) and text_response(200, "x")
        clients = [self.connect() for _ in range(self.MOST)]
        for client in clients:
            client.sendall(request(PASSWORD))
        places_ = self.server._terms.places
        wait_until(lambda: places_._free == 0, "all places are taken")
        late = self.connect()
        late.sendall(request(PASSWORD))
        wait_until(lambda: places_._wanted, "it waits for one")
        late.close()
        wait_until(lambda: self.server.counts[0] == self.MOST, "it is forgotten")

    def test_with_the_password_a_connection_waits_for_a_place_like_any_other(self):
        release = threading.Event()
        self.answer = lambda *_: release.wait(20) and text_response(200, "x")
        clients = [self.connect() for _ in range(4)]
        for client in clients:
            client.sendall(request(PASSWORD))
        under_way = functools.partial(vars(self.activity).get, "_under_way")
        wait_until(lambda: under_way() == 2, "two are being answered")
        strangers = [self.connect() for _ in range(places.STRANGERS + 10)]
        self.assertEqual(under_way(), 2)
        release.set()
        for client in clients:
            self.assertIn(b"200", client.recv(65536), "and none of them was pushed out")
        del strangers


PASSWORD = f"Authorization: {basic('me:sesame')}"


class AtTheGate(InProcess):
    def test_the_paths_of_our_workers_tell_others_nothing(self):
        gate = Gate(self.RULES, "Basic d29ya2VyOng=")
        ours, wrong = {"Authorization": "Basic d29ya2VyOng="}, {"Authorization": "Basic d29ya2Vy"}
        gate.check(head("/nested-transformation/1", **ours), Standing.ADMITTED)
        gate.check(head("/nested-transformation/1", **ours), Standing.ADMITTED, lacks_tls=True)
        refused = set()
        for target, fields in (
            ("/nested-transformation/1", {}),
            ("/nested-transformation/1/started", wrong),
            ("/nested-transformation", {"Authorization": basic("me:wrong")}),
            ("/status", ours),
            ("/nowhere", {}),
        ):
            with self.subTest(target), self.assertRaises(Refused) as caught:
                gate.check(head(target, **fields), Standing.ADMITTED)
            refused.add((caught.exception.status, str(caught.exception)))
        self.assertEqual(len(refused), 1)
        answers = {self.answer_to(target) for target in ("/nested-transformation/1", "/status")}
        self.assertEqual(len(answers), 1)

    def answer_to(self, target):
        return re.sub(rb"Date: [^\r]*", b"", self.converse(request(target=target)))

    def test_a_refusal_does_not_wait_for_the_body_nor_ask_for_it(self):
        for line in ("Content-Length: 900", "Content-Length: 900\r\nExpect: 100-continue"):
            answer = self.converse(request(line))
            self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
            self.assertIn(b"Connection: close\r\n", answer)

    def test_only_who_is_let_in_is_told_what_is_wrong_with_a_body(self):
        for line, status in (
            ("Content-Length: 5000", b"413"),
            ("Content-Length: 1, 2", b"400"),
            ("Transfer-Encoding: chunked", b"501"),
        ):
            stranger, friend = self.converse(request(line)), self.converse(request(line, PASSWORD))
            self.assertEqual(stranger.split()[1], b"401")
            self.assertNotIn(b"1000", stranger)
            self.assertEqual(friend.split()[1], status)

    def test_the_body_of_a_refused_request_is_not_taken_for_a_request(self):
        inner = request(PASSWORD, target="/smuggled")
        asked = []
        self.answer = lambda head, *_: asked.append(head.target) or text_response(200, "x")
        answer = self.converse(request(f"Content-Length: {len(inner)}") + inner)
        self.assertEqual(answer.count(b"HTTP/1.1 "), 1)
        self.assertEqual(asked, [])

    def test_what_is_refused_or_malformed_does_not_keep_an_unused_server_alive(self):
        before = self.activity._last
        for data in (request(), request("Content-Length: x", PASSWORD), b"GET /\r\n\r\n"):
            self.converse(data)
            wait_until(lambda: self.activity.idle_seconds() > 0, "it is over")
            self.assertEqual(self.activity._last, before)
        self.converse(request(PASSWORD, "Connection: close"))
        wait_until(lambda: self.activity._last > before, "what is answered does")


del Served, InProcess, InProcessWithTls, OnAStore  # they are no tests themselves
