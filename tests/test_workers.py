"""A worker process seen from the server, with a program that is the test's."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import unittest
from concurrent.futures import BrokenExecutor, Future
from unittest import mock

from seamless_jobserver.messages import WorkerProgram
from seamless_jobserver.progress import Phase, Progress
from seamless_jobserver.server import workers
from seamless_jobserver.server.workers import Worker, WorkerGone, WorkerStartFailed
from tests.machine import may_mount
from tests.stack import PATIENCE, ROOT, temporary_directory, wait_until
from tests.test_service import request
from tests.test_slots import SETTINGS


def come_up(_settings, _directory):
    return None


def die_while_answering(_request, _path, _patience):
    """Send the length of an answer and its first byte, as an executor's worker does, and end."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), struct.pack("!i", 100_000) + b"\x80")
    os._exit(3)


FULL_DISK = """
import sys
from seamless_jobserver.progress import Phase, Progress
directory = sys.argv[1]
with open(directory + '/filler', 'wb', buffering=0) as filler:
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError:
        pass
try:
    Progress(directory, create=True).enter(Phase.RUNNING)
except OSError as error:
    print(error.strerror)
"""


@unittest.skipUnless(may_mount(), "no disk can be mounted here")
class NoSpace(unittest.TestCase):
    def test_the_disk_in_memory_being_full_is_an_error_and_no_signal(self):
        with temporary_directory() as directory:
            mount = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'
            python = [sys.executable, "-c", FULL_DISK, str(directory)]
            tried = subprocess.run(
                ["unshare", "--mount", "sh", "-c", mount, str(directory), *python],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        self.assertEqual((tried.returncode, tried.stdout), (0, "No space left on device\n"))


class HowFar(unittest.TestCase):
    def setUp(self):
        context = temporary_directory()
        self.directory = str(context.__enter__())
        self.addCleanup(context.__exit__, None, None, None)
        self.server = Progress(self.directory, create=True)
        self.worker = Progress(self.directory)
        self.addCleanup(self.worker.close)
        self.addCleanup(self.server.close)

    def test_what_the_worker_says_is_known_also_when_it_has_been_forgotten(self):
        self.assertEqual((self.server.phase, self.server.name), (Phase.HANDED_OVER, ""))
        self.worker.enter(Phase.FETCHING)
        self.worker.call("simulate")
        for _ in range(3):
            self.assertEqual((self.server.phase, self.server.name), (Phase.FETCHING, "simulate"))
            self.server.close()

    def test_a_job_has_begun_where_what_is_said_makes_no_sense(self):
        with open(f"{self.directory}/progress", "r+b") as file:
            file.write(b"\xff")
        self.assertIs(self.server.phase, Phase.RUNNING)

    def test_whatever_a_job_is_called_can_be_told(self):
        self.worker.call("something long that is not there any more")
        for name, told in (
            ("simulate", "simulate"),
            ("größe", "größe"),
            ("a\0b", "ab"),
            ("\ud800x", "x"),
            ("x" * 1000, "x" * 160),
            ("x" + 200 * "ä", "x" + 79 * "ä"),
            ("", ""),
        ):
            with self.subTest(name[:10]):
                self.worker.call(name)
                self.assertEqual(self.server.name, told)


class Answers(unittest.IsolatedAsyncioTestCase):
    async def test_an_answer_that_fails_after_its_worker_has_ended_is_told_once(self):
        loop = asyncio.get_running_loop()
        faults = []
        loop.set_exception_handler(lambda _, context: faults.append(context))
        worker, question = Worker.__new__(Worker), Future()
        worker._ended = loop.create_future()
        question.set_running_or_notify_cancel()
        answer = asyncio.ensure_future(worker.answered(question))
        for step in (lambda: worker._ended.set_result(None), lambda: None, lambda: None):
            step()
            await asyncio.sleep(0)
        question.set_exception(BrokenExecutor("its process ended"))
        with self.assertRaisesRegex(BrokenExecutor, "its process ended"):
            await asyncio.wait_for(answer, PATIENCE)
        del answer, question
        gc.collect()
        self.assertEqual(faults, [])

    async def test_one_that_never_comes_after_its_worker_has_ended_is_not_waited_for(self):
        worker = Worker.__new__(Worker)
        worker._ended = asyncio.get_running_loop().create_future()
        worker._ended.set_result(None)
        with mock.patch.object(workers, "END_LIMIT", 0.05), self.assertRaises(BrokenExecutor):
            await asyncio.wait_for(worker.answered(Future()), PATIENCE)


def interrupt(*_):
    raise KeyboardInterrupt


class Interruptions(unittest.IsolatedAsyncioTestCase):
    """What a worker sends back that was interrupted between two steps of ours."""

    async def test_it_is_an_ordinary_error_and_does_not_end_the_loop(self):
        for kind in (KeyboardInterrupt, SystemExit):
            with self.subTest(kind):
                worker, question = Worker.__new__(Worker), Future()
                worker._ended = asyncio.get_running_loop().create_future()
                question.set_exception(kind())
                with self.assertRaisesRegex(RuntimeError, kind.__name__):
                    await worker.answered(question)

    async def test_also_when_it_has_just_begun_to_start(self):
        with temporary_directory() as directory:
            program = WorkerProgram(interrupt, print, print, print)
            worker = Worker(program, SETTINGS, str(directory / "worker"))
            try:
                with self.assertRaisesRegex(RuntimeError, "KeyboardInterrupt"):
                    await worker.ready()
            finally:
                await worker.close(0.0)
                worker.forget()


class Death(unittest.IsolatedAsyncioTestCase):
    @contextlib.asynccontextmanager
    async def worker(self):
        with temporary_directory() as directory:
            program = WorkerProgram(come_up, die_while_answering, print, print)
            worker = Worker(program, SETTINGS, str(directory / "worker"))
            try:
                await worker.ready()
                yield worker
            finally:
                await worker.close(0.0)
                worker.forget()
            self.assertEqual(list(directory.iterdir()), [])

    async def test_a_worker_that_dies_in_the_middle_of_its_answer_has_died_of_its_job(self):
        async with self.worker() as worker:
            answer = asyncio.wrap_future(worker.submit(request(), "", 1.0))
            with self.assertRaises(BrokenExecutor):
                await asyncio.wait_for(answer, PATIENCE)
            self.assertIn("exit code 3", await worker.describe_end())

    async def test_one_that_is_known_to_have_ended_is_handed_no_job_to_lose(self):
        async with self.worker() as worker:
            ended = worker.watch()
            os.kill(worker.pid, signal.SIGKILL)
            await asyncio.wait_for(ended, PATIENCE)
            # Whether its executor has noticed or not.
            with mock.patch.object(worker._executor, "submit") as submit:
                self.assertRaises(WorkerGone, worker.submit, request(), "", 1.0)
                submit.assert_not_called()

    async def test_a_worker_is_ended_also_when_there_is_no_thread_to_wait_for_it(self):
        async with self.worker() as worker:
            loop = asyncio.get_running_loop()
            want = RuntimeError("can't start new thread")
            with (
                mock.patch.object(loop, "run_in_executor", side_effect=want),
                self.assertLogs("seamless_jobserver.server.workers", "WARNING"),
            ):
                await worker.close(60.0)
                await worker.describe_end()
            self.assertIn("SIGKILL", await worker.describe_end())

    async def test_a_worker_that_cannot_be_looked_at_is_not_left_behind(self):
        with temporary_directory() as directory:
            program = WorkerProgram(come_up, die_while_answering, print, print)
            want = OSError(24, "Too many open files")
            before = len(os.listdir("/proc/self/fd"))
            with (
                mock.patch.object(workers.ProcessId, "of", side_effect=want),
                self.assertRaises(WorkerStartFailed),
            ):
                Worker(program, SETTINGS, str(directory / "worker"))
            self.assertEqual(list(directory.iterdir()), [])
            # Not `join`, which may return before the executor's thread has noted the exit status.
            wait_until(lambda: not multiprocessing.active_children(), "its process has ended")
            gc.collect()
            wait_until(
                lambda: len(os.listdir("/proc/self/fd")) <= before, "its descriptors are closed"
            )

    async def test_a_worker_is_ended_also_when_nothing_can_be_looked_up(self):
        async def kill(worker):
            worker.kill()

        want = OSError(24, "Too many open files")
        for end in (kill, Worker.terminate):
            async with self.worker() as worker:
                with (
                    self.subTest(end.__name__),
                    mock.patch.multiple(
                        workers,
                        kill_tree=mock.Mock(side_effect=want),
                        terminate_tree=mock.Mock(side_effect=want),
                    ),
                    self.assertLogs("seamless_jobserver.server.workers", "WARNING"),
                ):
                    await end(worker)
                    self.assertIn("SIGKILL", await worker.describe_end())
