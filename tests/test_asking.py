"""The commands that look at a server: what they take as a secret, and what they show."""

import base64
import contextlib
import io
import json
import os
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
            connection.send(answers[min(len(self.heads), len(answers)) - 1])

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
        for user, given in ((os.geteuid(), True), (os.geteuid() + 1, False)):
            port = int(self.serve(OK).rpartition(":")[2])
            status.write_text(json.dumps({"port": port}))
            arguments = ("--status-file", str(status), "--password-file", str(secret))
            told = {"owner": mock.Mock(return_value=user), "find_source": mock.Mock()}
            with self.subTest(user), mock.patch.multiple(peer, **told):
                code, printed = self.run_command(top, *arguments)
            self.assertEqual(code, 1)
            self.assertEqual(any("Authorization" in head for head in self.heads), given)
            self.assertEqual("is not yours" in printed, not given)

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


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def answer(status, text):
    body = text.encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
