"""The commands that look at a server: what they take as a secret, and what they show."""

import base64
import contextlib
import io
import itertools
import json
import os
import socket
import threading
import unittest
from unittest import mock

from seamless_jobserver import asking, check, peer, top
from tests.scripted_server import OK, ScriptedServer
from tests.stack import temporary_directory

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08"


class Commands(unittest.TestCase):
    def setUp(self):
        context = temporary_directory()
        self.directory = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def serve(self, *answers):
        """Start a server that gives each request the next answer, and the last one again."""
        self.heads = []

        def script(connection):
            self.heads.append(connection.read_request()[0])
            answer = answers[min(len(self.heads), len(answers)) - 1]
            if answer is None:
                connection.socket.recv(1)  # until it is given up
            else:
                connection.send(answer)

        server = ScriptedServer(script)
        self.addCleanup(server.close)
        return server.url

    def run_command(self, command, *arguments):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = command.main(arguments)
            except SystemExit as end:
                code = end.code
        return code, printed.getvalue()

    def test_the_password_can_come_from_a_file_that_nobody_else_can_read(self):
        secret = self.directory / "password"
        secret.write_text("open: sesame\n")
        secret.chmod(0o600)
        for command in (check, top):
            url = self.serve(OK)
            with self.subTest(command.__name__):
                self.run_command(command, url, "--password-file", str(secret))
                self.assertIn(f"Authorization: Basic {encoded(':open: sesame')}", self.heads[0])
        secret.chmod(0o644)
        code, printed = self.run_command(check, "--password-file", str(secret))
        self.assertEqual(code, 2)
        self.assertIn(f"--password-file {secret} must be a file of yours", printed)

    def test_the_password_of_a_url_is_decoded_and_that_of_a_file_used_instead(self):
        secret = self.directory / "password"
        secret.write_text("file\n")
        secret.chmod(0o600)
        url = self.serve(OK).replace("//", "//me:a%3Ab%20c@")
        self.run_command(check, url)
        self.run_command(check, url, "--password-file", str(secret))
        self.assertIn(encoded("me:a:b c"), self.heads[0])
        self.assertIn(encoded("me:file"), self.heads[-1])

    def test_a_server_of_a_status_file_gets_the_password_only_if_it_is_ours(self):
        secret, status = self.directory / "password", self.directory / "status.json"
        secret.write_text("sesame\n")
        secret.chmod(0o600)
        ours, unknown = os.geteuid(), peer.Unknown("not accepted yet")
        # Whose it is, asked again and again; what is said when it does not get the password.
        for owners, refusal in (
            ([ours], None),
            ([unknown, OSError(9, "Bad file descriptor"), ours], None),
            ([ours + 1], "is not yours"),
            ([unknown, ours + 1], "is not yours"),
            (itertools.repeat(unknown), "does not accept the connection"),
        ):
            port = int(self.serve(OK).rpartition(":")[2])
            status.write_text(json.dumps({"port": port}))
            arguments = ("--status-file", str(status), "--password-file", str(secret))
            told = {"owner": mock.Mock(side_effect=owners), "find_source": mock.Mock()}
            with (
                self.subTest(owners),
                mock.patch.multiple(peer, **told),
                # Long for the few looks that some need, and soon over where there is no end.
                mock.patch.object(asking, "_ACCEPT_LIMIT", 0.5 if refusal else 20.0),
            ):
                code, printed = self.run_command(top, *arguments)
                self.assertEqual(code, 1)
                given = any("Authorization" in head for head in self.heads)
                self.assertEqual(given, refusal is None)
                if refusal is not None:
                    self.assertIn(refusal, printed)

    def test_nor_one_of_which_it_cannot_be_found_out_where_it_is(self):
        for local, given in (
            (mock.Mock(return_value=False), True),
            (mock.Mock(side_effect=peer.Unknown("for want of descriptors")), False),
        ):
            server = asking.Server(self.serve(OK), b"sesame", ours=True)
            with mock.patch.object(peer, "is_local", local):
                if given:
                    server.ask("GET", "/")
                else:
                    with self.assertRaisesRegex(asking.Unreachable, "is not yours"):
                        server.ask("GET", "/")
            self.assertEqual(any("Authorization" in head for head in self.heads), given)

    def test_a_status_file_without_a_port_names_none(self):
        status = self.directory / "status.json"
        for content in ("{}", '{"port": "5533"}', '{"port": true}', '{"port": 1.5}', "[]", "{"):
            status.write_text(content)
            with self.subTest(content):
                code, printed = self.run_command(top, "--status-file", str(status))
                self.assertEqual(code, 2)
                self.assertIn(f"{status} names no port", printed)

    def test_a_server_is_looked_for_where_its_launcher_says_that_it_listens(self):
        here = ["127.0.0.1", "::1", socket.gethostname()]
        for status, hosts in (
            ({}, here),
            ({"command": "jobserver --host 10.0.0.1"}, ["10.0.0.1", *here]),
            ({"command": "jobserver --host=10.0.0.1"}, ["10.0.0.1", *here]),
            ({"command": "jobserver --host 10.0.0.1 --host=[fd00::1]"}, ["fd00::1", *here]),
            ({"command": "jobserver --host"}, here),
            ({"command": "jobserver --host '10.0.0.1"}, here),  # not written for a shell
            ({"command": ["--host", "10.0.0.1"]}, here),
            ({"command": "jobserver --host 0.0.0.0", "network_interface": "::"}, here),
            ({"network_interface": "10.0.0.2"}, ["10.0.0.2", *here]),
            (
                {"command": "jobserver --host 10.0.0.1", "network_interface": "10.0.0.2"},
                ["10.0.0.1", "10.0.0.2", *here],
            ),
            ({"network_interface": "::1"}, ["::1", "127.0.0.1", socket.gethostname()]),
        ):
            with self.subTest(status):
                self.assertEqual(asking.addresses(status), hosts)

    def test_a_url_may_lead_to_a_place_below_the_top(self):
        self.run_command(check, f"{self.serve(OK)}/jobs/")
        self.assertTrue(self.heads[0].startswith("GET /jobs/healthcheck HTTP/1.1\r\n"))

    def test_a_status_file_of_somebody_else_is_not_believed(self):
        status = self.directory / "status.json"
        status.write_text(json.dumps({"port": 1}))
        facts = mock.Mock(st_mode=status.stat().st_mode, st_uid=os.geteuid() + 1)
        with mock.patch.object(asking.os, "fstat", return_value=facts):
            code, printed = self.run_command(top, "--status-file", str(status))
        self.assertEqual(code, 2)
        self.assertIn("is not a file of yours", printed)
        os.mkfifo(self.directory / "fifo")
        code, printed = self.run_command(top, "--status-file", str(self.directory / "fifo"))
        self.assertEqual(code, 2)
        self.assertIn("is no regular file", printed)

    def test_an_answer_without_end_is_given_up(self):
        endless = answer(200, 5000 * "x")
        with mock.patch.object(asking, "_MOST", 1000):
            code, printed = self.run_command(top, self.serve(endless))
        self.assertEqual(code, 1)
        self.assertIn("answers without an end", printed)

    def test_an_answer_that_trickles_in_is_given_up(self):
        gone = threading.Event()

        def trickle(connection):
            connection.read_request()
            with contextlib.suppress(OSError):
                connection.send(part)
                for _ in range(500):
                    if gone.wait(0.01):
                        break
                    connection.send(b"x")

        for part in (b"HTTP/1.1 200 OK\r\nX-Much: ", b"HTTP/1.1 200 OK\r\n\r\n"):
            server = ScriptedServer(trickle)
            self.addCleanup(server.close)
            with self.subTest(part), mock.patch.object(asking, "_WHOLE", 0.1):
                asked = asking.Server(server.url)
                with self.assertRaisesRegex(asking.TooSlow, "has not come to its end"):
                    asked.ask("GET", "/", timeout=0.2)
        gone.set()

    def test_of_one_that_goes_on_and_on_no_more_is_read(self):
        sent = []

        def script(connection):
            connection.read_request()
            connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(1000):
                connection.send(65536 * b"x")
                sent.append(None)

        with ScriptedServer(script) as server, mock.patch.object(asking, "_MOST", 1000):
            code, printed = self.run_command(top, server.url)
        self.assertEqual(code, 1)
        self.assertIn("answers without an end", printed)
        self.assertLess(len(sent), 1000)

    def test_check_tells_failures_from_what_cannot_be_tried_now(self):
        well, trial = answer(200, "OK"), {"code": 1}
        idle, starting, busy = state("idle"), state("starting"), state("busy")
        broken = state("down", problem="no such module")
        hangs = "504: The hashserver hangs."
        good = answer(200, json.dumps({"hashserver": None, "database": None, "trial": trial}))
        away = answer(200, json.dumps({"hashserver": "away", "database": None, "trial": trial}))
        ran = answer(200, '{"result_checksum": "ab"}')
        # What the server answers, one after another; the exit code, and what is printed.
        for answers, code, told in (
            ([well, idle, idle, good, ran], 0, "ok     a trivial job: it ran"),
            ([well, busy, busy, good, ran], 0, "ok     a trivial job: it ran"),
            ([answer(426, "426: use https")], 1, "it answers, and does not let you in"),
            ([answer(500, "OK")], 1, "answers 500"),
            ([well, state("idle", ending=True), idle, good, ran], 1, "It is about to end"),
            # Of two workers one has failed, and the other is still to come.
            ([well, *(3 * [state("down", "starting", problem="x")]), idle, good, ran], 0, "it ran"),
            ([well, broken], 1, "no such module"),
            ([well, starting], 1, "None of them has started in time"),
            ([well, idle, idle, answer(504, hangs)], 1, f"answer 504\n       {hangs}"),
            ([well, busy, busy, answer(503, "503: no worker")], 0, "later  its store: not tried"),
            ([well, idle, idle, away, ran], 1, "FAILED its hashserver: not usable"),
            ([well, idle, idle, good, None], 0, "later  a trivial job: not run within 0.5 s"),
            ([well, idle, idle, good, answer(500, "no luck")], 1, "FAILED a trivial job"),
        ):
            limit = 0.0 if starting in answers else 60.0
            url = self.serve(*answers)
            limits = {"_PAUSE": 0.0, "_START_LIMIT": limit, "_JOB_LIMIT": 20.0}
            if None in answers:
                limits["_JOB_LIMIT"] = 0.5
            with self.subTest(told), mock.patch.multiple(check, **limits):
                ended, printed = self.run_command(check, url, "--wait", "0")
                self.assertIn(told, printed)
                self.assertEqual(ended, code, printed)
                asked = any("/run-transformation" in head for head in self.heads)
                self.assertEqual(asked, good in answers, "a job is run where the store is well")

    def test_an_answer_that_makes_no_sense_is_given_up_in_one_line(self):
        for state in ('{"time": 1e999, "server": {"started": -1e999}}', "[" * 100_000):
            with self.subTest(state[:10]):
                code, printed = self.run_command(top, self.serve(answer(200, state)))
                self.assertEqual(code, 1)
                self.assertNotIn("Traceback", printed)
                self.assertEqual(len(printed.strip().splitlines()), 1, printed)

    def test_what_a_server_says_cannot_steer_the_terminal(self):
        healthy = answer(200, "OK")
        state = {
            "time": 2.0,
            "workers": [{"state": EVIL, "problem": EVIL}],
            "server": {
                "version": EVIL,
                "user": EVIL,
                "hostname": EVIL,
                "started": 1.0,
                "ending": False,
                "record": False,
            },
            "running": [],
            "waiting_count": EVIL,
        }
        for command, answers in (
            (check, (answer(403, f"no\n{EVIL}"),)),
            (check, (healthy, answer(200, json.dumps(state)))),
            (top, (answer(403, f"no\n{EVIL}"),)),
            (top, (b"HTTP/1.1 200 O\x1bK\r\n\x1b[2J\r\n\r\n",)),
            (check, (b"\x1b[2J nonsense\r\n\r\n",)),
        ):
            url = self.serve(*answers)
            with self.subTest(command=command.__name__, answers=answers):
                code, printed = self.run_command(command, url)
                self.assertEqual(code, 1)
                for control in "\x1b\x07\x9b\r\x08":
                    self.assertNotIn(control, printed)


def state(*workers, problem=None, ending=False):
    """Return the answer with the state of a server that has workers in these states."""
    server = dict.fromkeys(("version", "user", "hostname"), "x")
    return answer(
        200,
        json.dumps(
            {
                "time": 2.0,
                "workers": [
                    {"state": one, "problem": problem if one == "down" else None} for one in workers
                ],
                "server": {**server, "started": 1.0, "ending": ending, "record": False},
                "running": [],
                "waiting_count": 0,
            }
        ),
    )


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def answer(status, text):
    body = text.encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
