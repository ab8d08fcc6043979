"""The log of the server's own: what is written at once, what a moment later, and in which order."""

import asyncio
import io
import json
import logging
import threading
import time
import unittest
from datetime import datetime, timedelta
from unittest import mock

from seamless_jobserver.server import eventlog
from tests.stack import PATIENCE


class Moments(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.written = io.StringIO()
        root = logging.getLogger()
        before = root.handlers[:], root.level
        with mock.patch("sys.stdout", self.written):
            eventlog.configure("info", "text")
        (self.handler,) = root.handlers

        def put_back():
            root.handlers[:] = before[0]
            root.setLevel(before[1])

        self.addCleanup(put_back)
        self.log = logging.getLogger("seamless_jobserver.tests")

    def told(self):
        return [line.rsplit(" ", 1)[1] for line in self.written.getvalue().splitlines()]

    async def test_what_the_loop_tells_is_written_a_moment_later_in_its_order(self):
        self.log.info("first")
        self.log.info("second")
        self.assertEqual(self.told(), [])
        await asyncio.sleep(10 * eventlog._MOMENT)
        self.assertEqual(self.told(), ["first", "second"])

    async def test_what_must_not_wait_is_written_at_once_after_what_was_kept(self):
        ways = {
            "a warning": lambda: self.log.warning("now"),
            "another thread": lambda: in_a_thread(lambda: self.log.info("now")),
            "very many lines": lambda: [self.log.info("now") for _ in range(eventlog._MOST_KEPT)],
            "the end": lambda: (self.log.info("now"), eventlog.finish()),
        }
        for name, tell in ways.items():
            with self.subTest(name):
                self.handler.flush()
                self.written = io.StringIO()
                self.handler.target.setStream(self.written)
                self.log.info("before")
                tell()
                self.assertEqual(self.told()[:2], ["before", "now"])


class Lines(unittest.TestCase):
    def written(self, form, tell):
        """Return what is written in a form when `tell` is called with a log."""
        written = io.StringIO()
        root = logging.getLogger()
        before = root.handlers[:], root.level
        try:
            with mock.patch("sys.stdout", written):
                eventlog.configure("info", form)
            tell(logging.getLogger("seamless_jobserver.tests"))
        finally:
            root.handlers[:] = before[0]
            root.setLevel(before[1])
        return written.getvalue()

    def test_what_a_message_quotes_cannot_make_a_line_of_its_own_nor_steer_a_terminal(self):
        quoted = "x\n2026-01-31 12:00:00 INFO job 000000000000: done\r\x1b[2J\u2028\x85"

        def tell(log):
            log.warning("failed: %s", quoted, extra={"job": "ab" * 32})

        for form in ("text", "json"):
            with self.subTest(form):
                told = self.written(form, tell)
                self.assertEqual(len(told.splitlines()), 1, told)
                self.assertNotIn("\x1b", told)
        line = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING job abababababab: failed: x\\n2026"
        self.assertRegex(self.written("text", tell), line)

    def test_a_fault_of_ours_comes_with_its_traceback_and_as_json_in_one_object(self):
        def tell(log):
            try:
                raise LookupError("ours")
            except LookupError:
                log.exception("it could not be carried out", extra={"job": "ab" * 32})

        self.assertIn("\nLookupError: ours\n", self.written("text", tell))
        (line,) = self.written("json", tell).splitlines()
        event = json.loads(line)
        self.assertEqual(set(event), {"time", "level", "message", "job", "exception"})
        self.assertEqual((event["level"], event["job"]), ("error", "ab" * 32))
        self.assertTrue(event["exception"].endswith("LookupError: ours"))
        moment = datetime.fromisoformat(event["time"])
        self.assertEqual(moment.utcoffset(), timedelta(0))
        self.assertAlmostEqual(moment.timestamp(), time.time(), delta=PATIENCE)


def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
