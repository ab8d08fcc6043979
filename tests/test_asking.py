"""The commands that look at a server: what they take as a secret, and what they show."""

import base64
import contextlib
import io
import json
import unittest

from seamless_jobserver import check, top
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
