"""Who is let in: the kernel's word on local connections, addresses, passwords, TLS and browsers.

Most of it needs root, since there must be another user who is refused.
"""

import base64
import contextlib
import ctypes
import functools
import http.client
import ipaddress
import json
import os
import pickle
import pty
import random
import re
import select
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import unittest
from collections import Counter
from pathlib import Path
from unittest import mock

from seamless_jobserver import http1, peer
from seamless_jobserver.errors import StartupError
from seamless_jobserver.server import access
from seamless_jobserver.server.access import AccessRules, Gate, Refused, Standing
from seamless_jobserver.server.response import render_stream_head, text_response
from tests.stack import JOBSERVER, PATIENCE, Jobserver, free_port, temporary_directory, wait_until

AS_ROOT = unittest.skipUnless(os.geteuid() == 0, "root alone can act as another user")
STRANGER = 54321
ROUTES = (
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/healthcheck"),
    ("HEAD", "/healthcheck"),
    ("GET", "/run-transformation"),
    ("GET", "/transformation-status/" + "a" * 64),
    ("POST", "/cancel-transformation/" + "a" * 64),
    ("GET", "/nested-transformation/1"),
    ("POST", "/nested-transformation/1/started"),
    ("GET", "/status"),
    ("HEAD", "/status"),
    ("GET", "/metrics"),
    ("GET", "/jobs"),
    ("GET", "/jobs/" + "a" * 64),
    ("GET", "/jobs/" + "a" * 64 + "/log?follow"),
    ("GET", "/page/page.js"),
    ("POST", "/check-store"),
    ("GET", "/nowhere"),
    ("BREW", "/"),
)
TRANSFORMATION = {
    "__language__": "python",
    "__output__": ["result", "mixed", None],
    "code": ["python", None, "cd" * 32],
}
TRIES = int(os.environ.get("SEAMLESS_JOBSERVER_TEST_RACES", "5000"))
# How much of a request a stranger sends, and what comes then.
WAYS = (
    (1.0, "close"),
    (1.0, "reset"),
    (0.0, "close"),
    (0.0, "reset"),
    (0.1, "close"),  # in the middle of the head
    (0.1, "reset"),
    (0.7, "close"),  # in the middle of the body
    (0.7, "reset"),
    (1.0, "stop sending"),
    (1.0, "stop hearing"),
    (1.0, "wait"),
)


def as_user(user, function):
    """Return what `function` returns, or raise what it raises, in a process of another user."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            result = True, function()
        except BaseException as error:  # noqa: BLE001 - it is raised on the other side
            result = False, repr(error)
        with open(writing, "wb") as file:
            file.write(pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    good, value = pickle.loads(data)
    if not good:
        raise AssertionError(value)
    return value


def socket_of(user, family=socket.AF_INET):
    """Return a socket that a process of `user` has made."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def make():
            with socket.socket(family) as made:
                socket.send_fds(theirs, [b"x"], [made.fileno()])

        as_user(user, make)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=descriptor)


def dual_listener(address):
    if address != "::":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, 0), family=family)
    return socket.create_server((address, 0), family=socket.AF_INET6, dualstack_ipv6=True)


def look_through(options):
    """Return what an unprivileged user finds with /proc mounted so, from each source.

    That is the owners of two connections, or why there are none. None where nothing can be mounted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    private = 0x40000 | 0x4000  # MS_PRIVATE | MS_REC
    if (
        libc.unshare(0x20000) != 0  # CLONE_NEWNS
        or libc.mount(None, b"/", None, private, None) != 0
        or libc.mount(b"proc", b"/proc", b"proc", 0, options.encode()) != 0
    ):
        return None
    clients = [socket.socket(), socket_of(STRANGER)]
    os.setuid(STRANGER + 1)
    found = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(dual_listener("127.0.0.1"))
        accepted = []
        for client in clients:
            stack.enter_context(client).connect(listener.getsockname())
            accepted.append(stack.enter_context(listener.accept()[0]))
        for source in peer.Source:
            try:
                found.append([peer.owner(one, source) for one in accepted])
            except peer.Unknown as reason:
                found.append(str(reason))
    return found


def ask(address, port, method="GET", path="/healthcheck", body=None, **headers):
    """Return status and text of an answer."""
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Served(unittest.TestCase):
    def setUp(self):
        context = temporary_directory()
        self.directory = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def start(self, *flags, env=None, wait=True):
        server = Jobserver(self.directory / "jobserver", {}, flags=flags, env=env, wait=wait)
        self.addCleanup(server.stop)
        return server


@AS_ROOT
class OtherUsers(Served):
    def test_another_user_is_refused_on_every_route_and_family_and_the_owner_is_served(self):
        # What the server listens on, and what is connected to.
        table = (
            ("127.0.0.1", ("127.0.0.1",)),
            ("::1", ("::1",)),
            ("::", ("127.0.0.1", "::1", "::ffff:127.0.0.1")),
            ("0.0.0.0", ("127.0.0.1", "127.0.0.5", socket.gethostbyname(socket.gethostname()))),
        )
        for host, addresses in table:
            server = self.start("--host", host)
            for address in addresses:
                for method, path in ROUTES:
                    with self.subTest(host=host, address=address, route=path):
                        status, text = as_user(
                            STRANGER, functools.partial(ask, address, server.port, method, path)
                        )
                        self.assertEqual(status, 403)
                        if method != "HEAD":
                            self.assertIn(f"you are user {STRANGER}", text)
                            self.assertIn("--access any", text)
                        for telling in ("seamless_jobserver", "/tmp", "Python", "Traceback"):
                            self.assertNotIn(telling, text)
                self.assertEqual(ask(address, server.port), (200, "OK"))
            self.assertNotIn("a" * 12, server.log, "nothing of a stranger's request is logged")
            server.stop()
            shutil.rmtree(server.directory)

    def test_a_thousand_connections_of_the_owner_are_served_while_another_user_is_refused(self):
        server = self.start("--host", "::", "--max-connections", "8")
        addresses = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        finished, finish = os.pipe()
        self.addCleanup(os.close, finished)
        heard = []

        def owner():
            try:
                for number in range(1000):
                    heard.append(ask(addresses[number % 3], server.port))
            finally:
                os.write(finish, b"x")
                os.close(finish)

        def stranger():
            statuses = Counter()
            while not statuses or not select.select([finished], [], [], 0)[0]:
                for address in addresses:
                    for method, path in ROUTES:
                        statuses[ask(address, server.port, method, path)[0]] += 1
            return statuses

        thread = threading.Thread(target=owner)
        thread.start()
        refused = as_user(STRANGER, stranger)
        thread.join(PATIENCE)
        self.assertEqual(Counter(heard), {(200, "OK"): 1000})
        self.assertEqual(set(refused), {403})
        self.assertGreaterEqual(refused[403], 3 * len(ROUTES))

    def test_access_any_lets_everybody_on_this_machine_in_and_says_so_loudly(self):
        server = self.start("--access", "any")
        self.assertEqual(as_user(STRANGER, lambda: ask("127.0.0.1", server.port)), (200, "OK"))
        loud = r"WARNING OPEN: port \d+ .* every user of this machine"
        wait_until(lambda: re.search(loud, server.log), "it is said")

    def test_a_stranger_who_only_connects_is_hung_up_on(self):
        server = self.start()

        def connect():
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
                return silent.recv(1)

        self.assertEqual(as_user(STRANGER, connect), b"")

    def test_a_socket_is_its_creators_whoever_uses_it(self):
        # As documented: a tunnel of ssh is its user's.
        server = self.start()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as ours:

            def use():
                ours.sendall(b"GET /healthcheck HTTP/1.0\r\n\r\n")
                return ours.recv(12)

            self.assertEqual(as_user(STRANGER, use), b"HTTP/1.1 200")


@AS_ROOT
class TheKernelsWord(unittest.TestCase):
    """`peer` on connections whose other end is in every state that it can be in."""

    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)

    def connect(self):
        client = socket.create_connection(self.listener.getsockname(), timeout=PATIENCE)
        self.addCleanup(client.close)
        accepted, _ = self.listener.accept()
        self.addCleanup(accepted.close)
        return client, accepted

    def test_both_sources_name_the_owner_in_every_family(self):
        # What is listened on, what the client's socket is, and what it connects to.
        for listening, family, address in (
            ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
            ("0.0.0.0", socket.AF_INET, "127.0.0.7"),
            ("::1", socket.AF_INET6, "::1"),
            ("::", socket.AF_INET6, "::1"),
            ("::", socket.AF_INET, "127.0.0.1"),
            ("::", socket.AF_INET6, "::ffff:127.0.0.1"),
            ("127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
        ):
            with dual_listener(listening) as listener:
                port = listener.getsockname()[1]
                for source in peer.Source:
                    for user in (0, STRANGER):
                        with (
                            self.subTest(listening, source=source, user=user, to=address),
                            self.socket_of(user, family) as client,
                        ):
                            client.connect((address, port))
                            accepted, _ = listener.accept()
                            with accepted:
                                self.assertEqual(peer.owner(accepted, source), user)

    def test_a_socket_that_waits_out_its_time_proves_nothing(self):
        client, accepted = self.connect()
        names = {"getpeername": client.getsockname(), "getsockname": client.getpeername()}
        client.shutdown(socket.SHUT_WR)  # the client ends it first, and so it waits
        self.assertEqual(accepted.recv(1), b"")
        accepted.close()
        self.assertEqual(client.recv(1), b"")
        client.close()
        ended = mock.Mock(**{f"{name}.return_value": value for name, value in names.items()})
        one, other = (peer.Endpoint.of(names[name]) for name in ("getpeername", "getsockname"))
        for source, look in (
            (peer.Source.NETLINK, peer._ask_kernel),
            (peer.Source.PROC, peer._read_table),
        ):
            with self.subTest(source):
                # User 0, and no file: that is why an inode is asked for.
                self.assertEqual(look(one, other), (6, 0, 0))
                with self.assertRaises(peer.Unknown):
                    peer.owner(ended, source)

    def test_where_proc_hides_other_users_the_tables_are_read_or_nobody_is_let_in(self):
        for options, expected in (
            ("hidepid=2", [0, STRANGER]),
            ("subset=pid", "/proc/net/tcp cannot be read"),
        ):
            with self.subTest(options):
                found = as_user(0, functools.partial(look_through, options))
                if found is None:
                    self.skipTest("no file system can be mounted here")
                netlink, proc = found
                self.assertEqual(netlink, [0, STRANGER])
                self.assertEqual(proc, expected)

    def socket_of(self, user, family=socket.AF_INET):
        """Return a socket that a process of `user` has made."""
        return socket_of(user, family)

    def test_ends_that_prove_nothing_are_unknown(self):
        def reset(client):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

        for source in peer.Source:
            for name, end in {"closed": socket.socket.close, "reset": reset}.items():
                with self.subTest(source=source, end=name):
                    client, accepted = self.connect()
                    end(client)
                    with self.assertRaises(peer.Unknown):
                        peer.owner(accepted, source)

    def test_an_end_that_only_stops_sending_is_still_known(self):
        for source in peer.Source:
            client, accepted = self.connect()
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(peer.owner(accepted, source), 0)

    def test_a_connection_that_was_not_accepted_yet_has_no_owner_here(self):
        # The other end of the client's socket is in the backlog: user 0 or none, but no file.
        client = socket.create_connection(self.listener.getsockname(), timeout=PATIENCE)
        self.addCleanup(client.close)
        for source in peer.Source:
            with self.assertRaises(peer.Unknown):
                peer.owner(client, source)

    def test_a_listening_socket_is_not_taken_for_a_client(self):
        one = peer.Endpoint.of(self.listener.getsockname())
        other = peer.Endpoint(ipaddress.ip_address("127.0.0.1"), 9)
        self.assertIsNone(peer._ask_kernel(one, other))
        self.assertIsNone(peer._read_table(one, other))

    def test_a_lookup_counts_only_while_our_own_end_is_connected(self):
        # What another user's new connection with the old addresses would look like.
        client, accepted = self.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        real = peer._ask_kernel

        def reset_meanwhile(one, other):
            found = real(one, other)
            client.close()
            wait_until(lambda: peer._state(accepted) == 7, "our end is reset")
            return found

        with (
            mock.patch.object(peer, "_ask_kernel", reset_meanwhile),
            self.assertRaisesRegex(peer.Unknown, "ended meanwhile"),
        ):
            peer.owner(accepted, peer.Source.NETLINK)

    def test_states_inodes_and_errors_of_the_kernel_are_judged_as_the_table_says(self):
        _, accepted = self.connect()
        table = {
            "established": (peer._Socket(1, 7, 5), 7),
            "has stopped sending": (peer._Socket(5, 7, 5), 7),
            "connecting": (peer._Socket(2, 7, 5), None),
            "listening": (peer._Socket(10, 7, 5), None),
            "waiting out": (peer._Socket(6, 0, 0), None),
            "without a file, user 0": (peer._Socket(1, 0, 0), None),
            "not there": (None, None),
        }
        for name, (found, user) in table.items():
            with self.subTest(name), mock.patch.object(peer, "_ask_kernel", return_value=found):
                if user is None:
                    with self.assertRaises(peer.Unknown):
                        peer.owner(accepted, peer.Source.NETLINK)
                else:
                    self.assertEqual(peer.owner(accepted, peer.Source.NETLINK), user)

    def test_the_table_is_read_where_the_kernel_does_not_answer(self):
        def refuse(*_):
            raise peer.Unknown("no sock_diag here")

        with mock.patch.object(peer, "_ask_kernel", refuse):
            self.assertIs(peer.find_source(), peer.Source.PROC)
            with (
                mock.patch.object(peer, "_read_table", refuse),
                self.assertRaisesRegex(peer.Unknown, "sock_diag: .*; /proc/net/tcp: "),
            ):
                peer.find_source()

    def test_a_source_that_does_not_know_ourselves_is_not_believed(self):
        ours = os.geteuid()
        for seen, found in (
            ([ours + 1, ours], peer.Source.PROC),
            ([ours, ours + 1], peer.Source.NETLINK),
            ([ours + 1, ours + 1], None),
        ):
            with (
                self.subTest(seen),
                mock.patch.object(peer, "_own_user_seen", side_effect=seen),
            ):
                if found is not None:
                    self.assertIs(peer.find_source(), found)
                else:
                    with self.assertRaisesRegex(peer.Unknown, f"it says {ours + 1} for user"):
                        peer.find_source()

    def test_the_overflow_user_can_tell_nobody_apart(self):
        def find():
            try:
                return peer.find_source().value
            except peer.Unknown as reason:
                return str(reason)

        self.assertIn("runs as user 65534", as_user(65534, find))
        self.assertEqual(as_user(STRANGER, find), "sock_diag")

    def test_a_user_namespace_that_knows_nobody_is_refused(self):
        def find():
            unshared = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)  # CLONE_NEWUSER
            assert unshared == 0, os.strerror(ctypes.get_errno())
            try:
                return peer.find_source().value
            except peer.Unknown as reason:
                return str(reason)

        self.assertIn("whom it cannot name", as_user(STRANGER, find))

    def test_which_addresses_are_of_this_machine(self):
        own = socket.gethostbyname(socket.gethostname())
        for text, local in {
            "127.0.0.1": True,
            "127.3.2.1": True,
            "::1": True,
            own: True,
            "192.0.2.1": False,
            "2001:db8::1": False,
        }.items():
            self.assertEqual(peer.is_local(ipaddress.ip_address(text)), local, text)

    def test_mapped_addresses_are_ipv4_ones(self):
        end = peer.Endpoint.of(("::ffff:10.1.2.3", 5, 0, 0))
        self.assertEqual(end, (ipaddress.ip_address("10.1.2.3"), 5, 0))


@AS_ROOT
class Races(Served):
    def test_a_stranger_never_gets_in_by_closing_or_by_using_the_owners_port(self):
        """Strangers send a request and go, in every way, while the owner uses the same ports."""
        server = self.start("--max-connections", "64")
        target = ("127.0.0.1", server.port)
        ports = [free_port() for _ in range(8)]
        stop = threading.Event()
        # One that leaves its mark in the log if it is let in, also when nobody hears the answer.
        body = json.dumps({"tf_checksum": "b" * 64, "transformation_dict": TRANSFORMATION})
        request = (
            f"GET /run-transformation HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            f"{body}"
        ).encode()

        def owner():
            while not stop.is_set():
                with contextlib.suppress(OSError), socket.socket() as ours:
                    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    ours.bind(("127.0.0.1", random.choice(ports)))
                    ours.settimeout(5)
                    ours.connect(target)

        def strangers():
            entered = connected = number = 0
            while connected < TRIES and number < 5 * TRIES:
                number += 1
                sent, end = WAYS[number % len(WAYS)]
                with contextlib.suppress(OSError), socket.socket() as theirs:
                    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    # One that only comes and goes would leave its port in TIME_WAIT for a minute.
                    if number % 4 and (sent or end != "close"):
                        theirs.bind(("127.0.0.1", random.choice(ports)))
                    theirs.settimeout(5)
                    theirs.connect(target)
                    connected += 1
                    theirs.sendall(request[: int(sent * len(request))])
                    if end == "close":
                        continue
                    if end in ("stop sending", "stop hearing"):
                        theirs.shutdown(socket.SHUT_WR if end == "stop sending" else socket.SHUT_RD)
                    if end != "reset":
                        entered += theirs.recv(12).endswith(b" 200")
                    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return entered, connected

        owners = [threading.Thread(target=owner) for _ in range(2)]
        for thread in owners:
            thread.start()
        try:
            entered, connected = as_user(STRANGER, strangers)
        finally:
            stop.set()
            for thread in owners:
                thread.join(PATIENCE)
        self.assertEqual(entered, 0)
        self.assertEqual(connected, TRIES, "their ports were to be had")
        self.assertNotIn("b" * 12, server.log)
        with socket.create_connection(target, timeout=PATIENCE) as ours:
            ours.sendall(request)
            wait_until(lambda: "b" * 12 in server.log, "the owner's leaves its mark")


class Elsewhere(unittest.TestCase):
    """Connections from other machines, at the gate: the address is what a test says it is."""

    def admit(self, gate, address):
        connection = mock.Mock(getpeername=lambda: (address, 4000))
        return gate.admit(connection)

    def test_only_the_addresses_that_are_allowed_get_in(self):
        networks = tuple(map(ipaddress.ip_network, ("198.51.100.0/24", "2001:db8::/32")))
        gate = Gate(AccessRules(allow=networks))
        for address, let_in in {
            "198.51.100.7": True,
            "::ffff:198.51.100.7": True,
            "2001:db8::7": True,
            "203.0.113.1": False,
            "::ffff:203.0.113.1": False,
            "2001:db9::1": False,
        }.items():
            with self.subTest(address):
                if let_in:
                    self.assertIs(self.admit(gate, address), Standing.ADMITTED)
                else:
                    with self.assertRaisesRegex(Refused, "--allow"):
                        self.admit(gate, address)

    def test_without_a_list_everybody_gets_in(self):
        self.assertIs(self.admit(Gate(AccessRules()), "203.0.113.1"), Standing.ADMITTED)

    def test_allowed_addresses_do_not_open_this_machine(self):
        gate = Gate(AccessRules(allow=(ipaddress.ip_network("0.0.0.0/0"),)))
        with (
            mock.patch.object(peer, "owner", return_value=STRANGER),
            self.assertRaisesRegex(Refused, f"you are user {STRANGER}"),
        ):
            self.admit(gate, "127.0.0.1")

    def test_where_the_kernel_cannot_tell_nobody_local_gets_in(self):
        def cannot():
            raise peer.Unknown("not here")

        with mock.patch.object(peer, "find_source", cannot):
            with self.assertLogs(access.__name__, "ERROR") as logs:
                gate = Gate(AccessRules())
            self.assertIn("--access any", logs.output[0])
            with self.assertRaises(Refused):
                self.admit(gate, "127.0.0.1")
            self.assertIs(
                self.admit(Gate(AccessRules(any_user=True)), "127.0.0.1"), Standing.ADMITTED
            )


def head(target="/", method="GET", **fields):
    lines = "".join(f"\r\n{name.replace('_', '-')}: {value}" for name, value in fields.items())
    return http1.parse_request_head(f"{method} {target} HTTP/1.0{lines}".encode())


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@AS_ROOT
class Passwords(unittest.TestCase):
    def test_a_password_is_asked_of_whom_the_kernel_has_not_shown_to_be_the_owner(self):
        gate = Gate(AccessRules(password=b"secret:with colon"))
        gate.check(head(Host="x"), Standing.OWNER)
        gate.check(head(Authorization=basic("me:secret:with colon")), Standing.ADMITTED)
        for wrong in (
            {},
            {"Authorization": basic("me:secret")},
            {"Authorization": basic("secret:with colon")},
            {"Authorization": "Basic !!!"},
            {"Authorization": "Bearer secret"},
            {"Authorization": "Basic"},
            {"Authorization": basic("me:")},
        ):
            with self.subTest(wrong), self.assertRaises(Refused) as caught:
                gate.check(head(**wrong), Standing.ADMITTED)
            self.assertEqual(caught.exception.status, 401)
            self.assertIn("Basic", caught.exception.fields["WWW-Authenticate"])

    def test_a_worker_of_ours_needs_none_for_what_it_asks(self):
        gate = Gate(AccessRules(password=b"secret", any_user=True), basic("worker:known"))
        ours = {"Authorization": basic("worker:known")}
        for target, allowed in (
            ("/nested-transformation/1", True),
            ("/healthcheck", True),
            ("/cancel-transformation/" + "ab" * 32, True),
            ("/run-transformation", False),
            ("/status", False),
        ):
            with self.subTest(target):
                if allowed:
                    gate.check(head(target, **ours), Standing.ADMITTED, lacks_tls=True)
                else:
                    with self.assertRaises(Refused):
                        gate.check(head(target, **ours), Standing.ADMITTED)
                with self.assertRaises(Refused):
                    wrong = {"Authorization": basic("worker:guessed")}
                    gate.check(head(target, **wrong), Standing.ADMITTED)

    def test_a_password_is_known_in_either_encoding(self):
        gate = Gate(AccessRules(password="pässwört".encode()))
        for encoding in ("utf-8", "latin-1"):
            sent = base64.b64encode("me:pässwört".encode(encoding)).decode()
            head = mock.Mock(fields={"Authorization": f"Basic {sent}"})
            self.assertEqual(access._given_password(head), gate._password, encoding)

    def test_a_password_file_that_others_could_read_is_refused(self):
        with temporary_directory() as directory:
            path = directory / "password"
            path.write_text("secret\n")
            path.chmod(0o600)
            self.assertEqual(access.read_password(path), b"secret")
            link = directory / "link"
            link.symlink_to(path)
            foreign = directory / "foreign"
            foreign.write_text("secret")
            foreign.chmod(0o600)
            os.chown(foreign, STRANGER, STRANGER)
            empty = directory / "empty"
            empty.touch(0o600)
            fifo = directory / "fifo"
            os.mkfifo(fifo, 0o600)
            open_to_all = directory / "open"
            open_to_all.write_text("secret")
            open_to_all.chmod(0o640)
            shared = directory / "shared"
            shared.write_text("secret")
            shared.chmod(0o620)
            bad_ones = (link, foreign, empty, fifo, open_to_all, shared, directory)
            for bad in (*bad_ones, directory / "none"):
                with self.subTest(bad.name), self.assertRaisesRegex(StartupError, str(bad)):
                    access.read_password(bad)


class Browsers(unittest.TestCase):
    LOCAL = "localhost:5533"
    # What a request carries, and whether it is answered.
    TABLE = (
        ({"Host": "evil.example"}, True),  # a program: its Host proves nothing
        ({"Host": LOCAL, "Accept_Language": "en"}, True),
        ({"Host": "127.0.0.1:5533", "Accept_Language": "en"}, True),
        ({"Host": "[::1]:5533", "User_Agent": "Mozilla/5.0"}, True),
        ({"Host": "LOCALHOST", "User_Agent": "Mozilla/5.0"}, True),
        ({"Host": "evil.example", "User_Agent": "Mozilla/5.0"}, False),
        ({"Host": "evil.example", "Accept_Language": "en"}, False),
        ({"Host": "localhost.evil.example", "Accept_Language": "en"}, False),
        ({"Host": "127.0.0.1.evil.example", "Accept_Language": "en"}, False),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, False),
        ({"Host": "named.example", "Accept_Language": "en"}, True),
        ({"Host": "localhost.:5533", "Accept_Language": "en"}, True),
        ({"Accept_Language": "en"}, False),
        ({"method": "POST", "Host": LOCAL, "User_Agent": "Mozilla/5.0"}, False),
        ({"method": "POST", "Host": LOCAL, "Origin": f"http://{LOCAL}"}, True),
        ({"Host": LOCAL, "Origin": f"http://{LOCAL}"}, True),
        ({"Host": LOCAL, "Origin": f"https://{LOCAL}"}, True),
        ({"Host": LOCAL, "Origin": "http://localhost:9999"}, False),
        ({"Host": LOCAL, "Origin": "http://evil.example"}, False),
        ({"Host": LOCAL, "Origin": "null"}, False),
        ({"Host": LOCAL, "Origin": "file://"}, False),
        ({"Host": LOCAL, "Origin": f"ftp://{LOCAL}"}, False),
        ({"Host": LOCAL, "Origin": "http://["}, False),
        ({"Host": LOCAL, "Origin": "http://]"}, False),
        ({"Host": LOCAL, "Origin": ""}, False),
        ({"Host": LOCAL, "Referer": f"http://{LOCAL}/jobs"}, True),
        ({"Host": LOCAL, "Referer": "http://evil.example/page"}, False),
        ({"Host": LOCAL, "Referer": "http://localhost:9999/"}, False),
        ({"Host": LOCAL, "Referer": f"http://evil.example/{LOCAL}"}, False),
        ({"Host": LOCAL, "Referer": f"http://{LOCAL}@evil.example/"}, False),
        ({"Host": LOCAL, "Referer": "http://["}, False),
        ({"Host": "[", "Accept_Language": "en"}, False),
        ({"Host": "]", "Accept_Language": "en"}, False),
        ({"Host": "[::1", "Accept_Language": "en"}, False),
        ({"Host": "", "Accept_Language": "en"}, False),
        ({"Host": LOCAL, "Sec_Fetch_Site": "same-origin"}, True),
        ({"Host": LOCAL, "Sec_Fetch_Site": "none"}, True),
        ({"Host": LOCAL, "Sec_Fetch_Site": "same-site"}, False),
        ({"Host": LOCAL, "Sec_Fetch_Site": "cross-site"}, False),
        ({"Host": LOCAL, "Sec_Fetch_Site": "none\r\nSec-Fetch-Site: cross-site"}, False),
    )

    def test_only_pages_of_this_server_under_a_name_of_its_own_are_answered(self):
        gate = Gate(AccessRules(hosts=("Named.example",)))
        for fields, answered in self.TABLE:
            with self.subTest(fields):
                if answered:
                    gate.check(head(**fields), Standing.OWNER)
                else:
                    with self.assertRaises(Refused) as caught:
                        gate.check(head(**fields), Standing.OWNER)
                    self.assertEqual(caught.exception.status, 403)

    def test_the_names_of_this_machine_are_known(self):
        gate = Gate(AccessRules())
        for name in (socket.gethostname(), socket.getfqdn()):
            gate.check(head(Host=f"{name}:80", Accept_Language="en"), Standing.OWNER)

    def test_without_a_thread_to_ask_the_resolver_in_it_is_one_name_fewer(self):
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("no thread")):
            gate = Gate(AccessRules())
        gate.check(head(Host="localhost", Accept_Language="en"), Standing.OWNER)

    def test_a_machine_whose_name_has_several_parts_is_known_by_the_first_too(self):
        with mock.patch.object(socket, "gethostname", return_value="Login1.cluster.example"):
            gate = Gate(AccessRules())
        for name in ("login1", "login1.cluster.example"):
            gate.check(head(Host=name, Accept_Language="en"), Standing.OWNER)

    def test_a_resolver_that_does_not_answer_holds_nothing_up_and_its_answer_counts_later(self):
        answered = threading.Event()
        field = head(Host="late.example", Accept_Language="en")

        def answer_late():
            answered.wait(20)
            return "Late.Example"

        with (
            mock.patch.object(access, "_RESOLVER_LIMIT", 0.05),
            mock.patch("socket.getfqdn", side_effect=answer_late),
        ):
            gate = Gate(AccessRules())
            with self.assertRaises(Refused):
                gate.check(field, Standing.OWNER)
            answered.set()
            wait_until(lambda: "late.example" in gate._hosts, "the name is known")
        gate.check(field, Standing.OWNER)


class EveryAnswer(Served):
    FIELDS = {
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "content-security-policy": "frame-ancestors 'none'",
    }
    PAGE_POLICY = (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    def test_no_answer_lets_a_page_of_another_site_show_or_load_it(self):
        server = self.start()
        html = {"Accept": "text/html"}
        pages = (
            ("GET", "/", html, 200),
            *(
                ("GET", f"/page/{path.name}", {}, 200)
                for path in (Path(access.__file__).parent / "page").iterdir()
                if path.suffix in (".html", ".css", ".js", ".svg")
            ),
        )
        self.assertGreater(len(pages), 4)
        for method, path, headers, status in (
            *pages,
            ("GET", "/", {}, 200),
            ("GET", "/healthcheck", {}, 200),
            ("HEAD", "/healthcheck", {}, 200),
            ("GET", "/status", {}, 200),
            ("GET", "/metrics", {}, 200),
            ("GET", "/nowhere", {}, 404),
            ("PUT", "/healthcheck", {}, 405),
            ("GET", "/jobs/" + "a" * 64, {}, 404),
            ("GET", "/jobs/" + "a" * 64, html, 303),
            ("GET", "/run-transformation", {}, 400),
            ("GET", "/", {"Origin": "http://evil.example"}, 403),
            ("GET", "/", {"Content_Length": "x"}, 400),
        ):
            with self.subTest(path, method=method):
                answer = server.request(method, path, **headers)
                self.assertEqual(answer.status, status)
                expected = dict(self.FIELDS)
                if (method, path, headers, status) in pages:
                    expected["content-security-policy"] = self.PAGE_POLICY
                found = {name: answer.headers.get(name) for name in expected}
                self.assertEqual(found, expected)
                self.assertFalse({name for name in answer.headers if "allow-origin" in name})

    @AS_ROOT
    def test_nor_does_the_answer_to_a_stranger(self):
        server = self.start()
        found = as_user(STRANGER, lambda: server.request("GET", "/").headers)
        self.assertLessEqual(self.FIELDS.items(), found.items())

    def test_nor_does_what_a_job_prints(self):
        stream = http1.parse_response_head(
            render_stream_head(text_response(200, ""), keep_alive=True, chunked=True)[:-4]
        )
        for name, value in self.FIELDS.items():
            self.assertEqual(stream.fields.get(name), value)


@AS_ROOT
class Commands(Served):
    def test_a_local_owner_needs_no_password_and_another_user_does(self):
        password = self.directory / "password"
        password.write_text("open sesame\n")
        password.chmod(0o600)
        server = self.start("--password-file", str(password), "--access", "any")
        credentials = basic("x:open sesame")

        def theirs(**headers):
            return as_user(STRANGER, lambda: ask("127.0.0.1", server.port, **headers))[0]

        self.assertEqual(theirs(), 401)
        self.assertEqual(theirs(Authorization=credentials), 200)
        for place in (server.log, Path(f"/proc/{server.process.pid}/cmdline").read_text()):
            self.assertNotIn("sesame", place)

    def test_bad_access_settings_end_the_start_with_one_line(self):
        (self.directory / "readable").write_text("secret")
        table = (
            ("--password-file", str(self.directory / "readable")),
            ("--password-file", str(self.directory / "none")),
            ("--certfile", str(self.directory / "none")),
            ("--certfile", str(self.directory / "readable")),
            ("--keyfile", str(self.directory / "readable")),
        )
        (self.directory / "readable").chmod(0o644)
        for flags in table:
            with self.subTest(flags):
                server = self.start(*flags, wait=False)
                self.assertEqual(server.process.wait(PATIENCE), 1)
                self.assertIn(flags[0], server.log)
                self.assertNotIn("Traceback", server.log)
                self.assertNotIn("secret", server.log)
                self.assertEqual(server.status["status"], "failed")

    def test_at_the_start_it_is_said_who_can_reach_it(self):
        own = self.start("--host", "127.0.0.1")
        self.await_line(own, r"INFO port \d+ of 127.0.0.1 is open to processes of root on")
        self.assertNotIn("OPEN", own.log)
        own.stop()
        wide = self.start("--host", "0.0.0.0")
        self.await_line(wide, r"WARNING OPEN: .*everybody.*from other machines.*--allow CIDR")
        wide.stop()
        narrow = self.start("--host", "0.0.0.0", "--allow", "10.0.0.0/8", "--allow", "fd00::/8")
        self.await_line(narrow, "10.0.0.0/8 and fd00::/8")

    def test_the_password_is_a_part_of_who_can_reach_it(self):
        gate = Gate(AccessRules(any_user=True, password=b"x"))
        for address in ("127.0.0.1", "0.0.0.0"):
            self.assertIn(
                "every user of this machine who has the password", self.line(gate, address)
            )
            self.assertFalse(gate.exposed(address))
        self.assertIn("other machines and has the password", self.line(gate, "0.0.0.0"))
        own = Gate(AccessRules(password=b"x", allow=(ipaddress.ip_network("10.0.0.0/8"),)))
        self.assertNotIn("password", self.line(own, "127.0.0.1"))
        self.assertIn("to 10.0.0.0/8, with the password", self.line(own, "0.0.0.0"))

    def line(self, gate, address):
        return gate.describe("x", address, 1)

    def test_the_name_that_it_listens_by_is_one_of_its_names(self):
        # A name of this machine that is known everywhere, and is none of those that it calls itself.
        server = self.start("--host", "127.1")
        for name, status in (("127.1", 200), ("other.example", 403)):
            answer = server.request("GET", "/", Host=name, Accept_Language="en")
            self.assertEqual(answer.status, status)

    def await_line(self, server, pattern):
        wait_until(lambda: re.search(pattern, server.log), f"the log says {pattern}")

    def test_variables_hold_several_networks(self):
        env = {"SEAMLESS_JOBSERVER_ALLOW": "10.0.0.0/8, 192.168.1.7"}
        self.await_line(self.start("--host", "::", env=env), "10.0.0.0/8 and 192.168.1.7/32")


def make_certificate(directory):
    """Return the paths of a certificate for localhost and of its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        (
            f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} "
            f"-out {certificate} -subj /CN=localhost "
            "-addext subjectAltName=DNS:localhost"
        ).split(),
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    return certificate, key


class Encrypted(Served):
    def setUp(self):
        super().setUp()
        self.certificate, self.key = make_certificate(self.directory)
        self.flags = ("--certfile", str(self.certificate), "--keyfile", str(self.key))
        self.context = ssl.create_default_context(cafile=str(self.certificate))

    def test_tls_is_spoken_and_checked_by_name(self):
        server = self.start(*self.flags)
        connection = http.client.HTTPSConnection(
            "localhost", server.port, timeout=PATIENCE, context=self.context
        )
        with contextlib.closing(connection):
            for _ in range(2):  # on one connection
                connection.request("GET", "/healthcheck")
                self.assertEqual(connection.getresponse().read(), b"OK")

    def test_in_the_clear_only_the_owner_is_served(self):
        server = self.start(*self.flags, "--access", "any")
        status, text = ask("127.0.0.1", server.port)
        self.assertEqual(status, 426)
        self.assertIn("https", text)
        server.stop()
        shutil.rmtree(server.directory)
        server = self.start(*self.flags)
        self.assertEqual(ask("127.0.0.1", server.port), (200, "OK"))

    def test_nobody_is_asked_for_the_passphrase_of_a_key(self):
        locked = self.directory / "locked.pem"
        subprocess.run(
            f"openssl rsa -in {self.key} -aes128 -passout pass:x -out {locked}".split(),
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        code = (
            "import pathlib, sys\n"
            "from seamless_jobserver.server.access import make_tls\n"
            "make_tls(*map(pathlib.Path, sys.argv[1:]))\n"
        )
        ours, theirs = pty.openpty()
        with open(ours, "r+b", buffering=0), open(theirs, "r+b", buffering=0) as terminal:
            ended = subprocess.run(
                # With a terminal, at which somebody could be asked.
                [
                    *("setsid", "--ctty", "--wait", sys.executable, "-c", code),
                    *map(str, (self.certificate, locked)),
                ],
                stdin=terminal,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        self.assertEqual(ended.returncode, 1)
        self.assertIn("StartupError: --certfile", ended.stderr)

    def test_a_handshake_that_stops_half_way_costs_nobody_else_anything(self):
        server = self.start(*self.flags)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as half:
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
            self.assertEqual(ask("127.0.0.1", server.port), (200, "OK"))
        self.assertNotIn("Traceback", server.log)

    def test_a_client_that_hangs_up_under_tls_is_missed(self):
        server = self.start(*self.flags)
        body = json.dumps({"tf_checksum": "ef" * 32, "transformation_dict": TRANSFORMATION})
        connection = http.client.HTTPSConnection(
            "localhost", server.port, timeout=PATIENCE, context=self.context
        )
        with contextlib.closing(connection):
            connection.request("GET", "/run-transformation", body)
        wait_until(lambda: "job " + "ef" * 6 in server.log, "it was received and noticed")


@AS_ROOT
class Files(Served):
    def test_a_status_file_of_somebody_else_is_not_believed(self):
        directory = self.directory / "open"
        directory.mkdir()
        directory.chmod(0o1777)
        theirs = directory / "theirs.json"
        theirs.write_text("{}")
        os.chown(theirs, STRANGER, STRANGER)
        link = directory / "link.json"
        link.symlink_to(theirs)
        fifo = directory / "fifo.json"
        os.mkfifo(fifo)
        not_ours = "is not a file of yours"
        for path, why in ((theirs, not_ours), (link, not_ours), (fifo, "is no regular file")):
            with self.subTest(path.name):
                ended = subprocess.run(
                    [str(JOBSERVER), "--port", "0", "--status-file", str(path)],
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
                self.assertEqual(ended.returncode, 1)
                self.assertIn(why, ended.stderr)

    def test_what_it_makes_is_private_whatever_the_umask(self):
        status = self.directory / "status.json"
        status.write_text("{}")
        status.chmod(0o600)  # as the launcher makes it
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        flags = ["--host", "127.0.0.1", "--port", "0", "--status-file", str(status)]
        process = subprocess.Popen(
            [str(JOBSERVER), *flags],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.directory)},
        )
        with process:
            self.addCleanup(process.kill)
            for line in process.stdout:
                if b"is ready" in line:
                    break
            self.assertEqual(status.stat().st_mode & 0o777, 0o600)
            (private,) = self.directory.glob("seamless-jobserver-*")
            self.assertEqual(private.stat().st_mode & 0o777, 0o700)
            for path in private.iterdir():
                self.assertEqual(path.stat().st_mode & 0o077, 0, path)
            process.terminate()
            process.stdout.read()
        self.assertEqual(status.stat().st_mode & 0o777, 0o600)
