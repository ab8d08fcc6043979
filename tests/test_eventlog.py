"""The log of the server's own: what is written at once, what a moment later, and in which order."""

import asyncio
import contextlib
import io
import logging
import threading
import unittest
from unittest import mock

from seamless_jobserver.server import eventlog


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
            "the end": lambda: (self.log.info("now"), logging.shutdown([lambda: self.handler])),
        }
        for name, tell in ways.items():
            with self.subTest(name), contextlib.closing(io.StringIO()) as self.written:
                self.handler.flush()
                self.handler.target.setStream(self.written)
                self.log.info("before")
                tell()
                self.assertEqual(self.told()[:2], ["before", "now"])


def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
