"""Receipts: a pipe between two sides, of which either may be late, or gone."""

import asyncio
import contextlib
import json
import os
import signal
import threading
import unittest
import weakref
from unittest import mock

from seamless_jobserver import receipts
from seamless_jobserver.messages import Ending, Outcome, Traffic
from seamless_jobserver.receipts import Receipts, ReceiptsSender
from seamless_jobserver.server import workers
from seamless_jobserver.server.workers import Worker
from seamless_jobserver.worker import confirmations
from seamless_jobserver.worker.confirmations import Confirmations, StoreBusy
from tests.stack import temporary_directory

STORED = Outcome(Ending.RESULT, result_checksum="cd" * 32, runtime={"cpu_user_seconds": 0.5})
TOO_LONG = Outcome(Ending.STORE_FAILED, message="away\n" * 50_000)
# What a job could write that has got hold of the pipe.
JUNK = (b"\n", b"junk\n", b"[]\n", b"[1]\n", b"[1, {}]\n", b'{"1": 2}\n', b"\xff\xfe\n", b"1\n")


class Pipe(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        opened = contextlib.ExitStack()
        self.addCleanup(opened.close)
        self.directory = str(opened.enter_context(temporary_directory()))

    async def asyncSetUp(self):
        self.receipts = Receipts(self.directory)
        self.addCleanup(self.receipts.close, "the test is over")
        self.sender = ReceiptsSender(self.directory)
        self.receipts.listen()

    async def test_it_comes_whole_whoever_is_first(self):
        waiting = self.receipts.of(1)
        self.sender.send(1, STORED)
        self.assertEqual(await asyncio.wait_for(waiting, 20), STORED)
        self.sender.send(2, STORED)
        self.sender.send(3, STORED)
        self.assertEqual(await asyncio.wait_for(self.receipts.of(3), 20), STORED)
        self.assertEqual(await asyncio.wait_for(self.receipts.of(2), 20), STORED)

    async def test_one_of_any_length_comes_whole(self):
        sending = threading.Thread(target=self.sender.send, args=(1, TOO_LONG))
        sending.start()
        self.assertEqual(await asyncio.wait_for(self.receipts.of(1), 20), TOO_LONG)
        sending.join(20)

    async def test_one_that_is_written_in_parts_comes_whole(self):
        write = os.write  # a handler of a signal, which a job may have, can cut it short
        with mock.patch.object(receipts.os, "write", lambda pipe, line: write(pipe, line[:10])):
            self.sender.send(1, STORED)
        self.assertEqual(await asyncio.wait_for(self.receipts.of(1), 20), STORED)

    async def test_one_that_comes_twice_counts_once_and_costs_no_other(self):
        for number, outcome in ((1, STORED), (1, TOO_LONG), (2, STORED)):
            line = json.dumps([number, outcome.to_json()]).encode()
            self.receipts._accept(line)
        self.assertEqual(await asyncio.wait_for(self.receipts.of(1), 20), STORED)
        self.assertEqual(await asyncio.wait_for(self.receipts.of(2), 20), STORED)
        await asyncio.sleep(0)
        self.assertEqual(self.receipts._owed, {}, "what has been asked for is not kept")

    async def test_a_pipe_whose_worker_has_ended_does_not_keep_the_loop_busy(self):
        ended, reads, read = asyncio.Event(), [], os.read

        def count(pipe, size):
            reads.append(read(pipe, size))
            if not reads[-1]:
                ended.set()
            return reads[-1]

        with mock.patch.object(receipts.os, "read", count):
            os.close(self.sender._pipe)
            await asyncio.wait_for(ended.wait(), 20)
            for _ in range(10):
                await asyncio.sleep(0)
        self.assertEqual(reads, [b""])

    async def test_of_a_pipe_that_is_closed_the_loop_knows_nothing_any_more(self):
        pipe = self.receipts._pipe
        self.receipts.close("it ended")
        self.assertFalse(asyncio.get_running_loop().remove_reader(pipe))

    async def test_what_is_none_is_passed_over(self):
        pipe = os.open(os.path.join(self.directory, "receipts"), os.O_WRONLY)
        self.addCleanup(os.close, pipe)
        with self.assertLogs("seamless_jobserver.receipts", "WARNING") as logged:
            for junk in JUNK:
                os.write(pipe, junk)
            self.sender.send(1, STORED)
            self.assertEqual(await asyncio.wait_for(self.receipts.of(1), 20), STORED)
        self.assertEqual(len(logged.output), len(JUNK))

    async def test_what_came_before_the_end_counts_and_the_rest_is_given_up(self):
        first, second = self.receipts.of(1), self.receipts.of(2)
        self.sender.send(1, STORED)
        self.receipts.close("it ended by signal 9\n")
        self.assertEqual(await first, STORED)
        self.assertEqual(await second, Outcome(Ending.CRASHED, message="it ended by signal 9\n"))
        # The outcome that it belongs to can be later than the end of its worker.
        self.assertEqual(await self.receipts.of(3), await second)

    async def test_a_worker_that_cannot_be_ended_either_is_waited_for_no_longer(self):
        worker = Worker.__new__(Worker)
        worker._receipts, worker._receipt_limit = self.receipts, 0.05
        told = Outcome(Ending.RESULT, runtime={"worker_execution_index": 1})
        with mock.patch.object(worker, "condemn"), mock.patch.object(workers, "END_LIMIT", 0.05):
            outcome = await asyncio.wait_for(worker.receipt(told), 20)
        self.assertIs(outcome.ending, Ending.CRASHED)
        self.assertIn("did not say", outcome.message)

    async def test_a_worker_that_does_not_send_one_in_time_is_ended(self):
        worker = Worker.__new__(Worker)
        worker._receipts, worker._receipt_limit = self.receipts, 0.05
        with mock.patch.object(worker, "condemn", self.receipts.close):
            told = Outcome(Ending.RESULT, runtime={"worker_execution_index": 1})
            outcome = await asyncio.wait_for(worker.receipt(told), 20)
        self.assertIs(outcome.ending, Ending.CRASHED)
        self.assertIn("did not say", outcome.message)

    async def test_a_job_that_has_closed_the_pipe_is_noticed(self):
        self.assertTrue(self.sender.usable())
        os.close(self.sender._pipe)
        self.assertFalse(self.sender.usable())
        other = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, other)
        self.assertEqual(other, self.sender._pipe)  # the same number, and another file
        self.assertFalse(self.sender.usable())

    async def test_the_next_job_waits_for_the_result_before_but_not_for_long(self):
        stored = threading.Event()

        def wait():
            stored.wait(20)
            return STORED

        worker = Confirmations(self.directory, lambda: Traffic(stored=7))
        worker.settle()
        with mock.patch.object(confirmations, "PATIENCE", 0.05):
            worker.follow(1, wait)
        with self.assertRaises(StoreBusy):
            worker.settle()
        stored.set()
        outcome = await asyncio.wait_for(self.receipts.of(1), 20)
        self.assertEqual(outcome.traffic, Traffic(stored=7))
        self.assertTrue(worker._nothing_owed.wait(20))  # it has sent, and is about to note that
        worker.settle()

    async def test_a_worker_that_cannot_send_one_ends_before_anything_else_begins(self):
        begun = []

        def send(*_):
            begun.append(worker._nothing_owed.is_set())
            raise BrokenPipeError

        worker = Confirmations(self.directory, Traffic)
        worker._sender = mock.Mock(send=send)
        with mock.patch.object(confirmations.os, "kill") as kill:
            worker.follow(1, lambda: STORED)
            self.assertTrue(worker._nothing_owed.wait(20))
        self.assertEqual(begun, [False])
        kill.assert_called_once_with(os.getpid(), signal.SIGKILL)

    async def test_a_result_is_not_held_when_it_is_confirmed(self):
        class Result:
            pass

        result = Result()
        gone = weakref.ref(result)
        worker = Confirmations(self.directory, Traffic)
        worker.follow(1, lambda result=result: STORED if result else None)
        del result
        await asyncio.wait_for(self.receipts.of(1), 20)
        self.assertIsNone(gone())
