"""One worker process, seen from the server: the executor in front of it, and how it ends.

An executor of exactly one spawned process, because one dead process breaks a whole executor for
good. A worker that must not go on is *doomed*: it gets no other job, and a verdict, which becomes
the explanation of its end. Over a limit it is killed; when its job is reclaimed it is asked to end
first.
"""

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from seamless_jobserver.messages import (
    Ending,
    Outcome,
    RunRequest,
    StoreCheck,
    Traffic,
    WorkerProgram,
    WorkerSettings,
)
from seamless_jobserver.processtree import ProcessId, kill_tree, open_process, terminate_tree
from seamless_jobserver.progress import Phase, Progress
from seamless_jobserver.receipts import Receipts
from seamless_jobserver.server.casualties import OutOfMemoryKills, describe_exit

START_LIMIT: Final = 180.0
"""Seconds for a worker to import its packages, which takes long from a busy network disk."""
END_LIMIT: Final = 5.0
"""Seconds to wait for the exit code of a worker whose end was noticed."""
_RECEIPT_MARGIN: Final = 60.0
"""Seconds beyond `WorkerSettings.store_timeout` for a worker to say what became of a result."""
_UNCONFIRMED: Final = (
    "The worker process that had run this job ended before the store had confirmed its result.\n"
)
_NO_RECEIPT: Final = "The worker did not say whether the store has taken a result."
TERMINATION_LIMIT: Final = 2.0
"""Seconds between SIGTERM and SIGKILL for a worker whose job is reclaimed."""

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class WorkerGone(Exception):
    """The worker ended before it took the job; another slot can run it."""


class WorkerLost(Exception):
    """The worker ended with the job, before the job's own code began; the message says how."""


class NotBegun(Exception):
    """The worker has handed the job back, and can take none until its last result is confirmed.

    `traffic` is what it has moved meanwhile, and keeps for the job's next attempt, if it can.
    """

    def __init__(self, traffic: Traffic) -> None:
        super().__init__("the store has not taken the result of the job before")
        self.traffic = traffic


class WorkerStartFailed(Exception):
    """A worker could not be started; the message is the cause, for a person."""


class Worker:
    """One worker process and the executor in front of it.

    `verdict` says why it was condemned, if it was; `retired` whether it was ended because it could
    not be put back after a job.
    """

    def __init__(self, program: WorkerProgram, settings: WorkerSettings, directory: str) -> None:
        """`directory` is made for what the worker needs on disk, and goes away with `forget`.

        Raises `WorkerStartFailed`.
        """
        self._program = program
        self._directory = directory
        self._receipt_limit = settings.store_timeout + _RECEIPT_MARGIN
        try:
            os.mkdir(directory, 0o700)
            self._progress = Progress(directory, create=True)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise WorkerStartFailed(f"{directory} cannot be made: {error}") from error
        try:
            self._receipts = Receipts(directory)
        except OSError as error:
            self._progress.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise WorkerStartFailed(f"{directory} cannot be made: {error}") from error
        self._kills = OutOfMemoryKills()
        self._ended: asyncio.Future[None] | None = None
        self._watched: int | None = None
        self.verdict: str | None = None
        self.retired = False
        try:
            self._start(settings)
        except (OSError, ValueError, RuntimeError) as error:
            # A limit on processes, threads, open files or semaphores: each has an exception of its
            # own, and the executor, half started, may or may not have a process already.
            self.forget()
            raise WorkerStartFailed(f"no process could be started: {error}") from error
        try:
            self._identity = ProcessId.of(self.pid)
        except OSError as error:
            self._executor.shutdown(wait=False)
            self._process.kill()
            self.forget()
            raise WorkerStartFailed(f"its process cannot be looked at: {error}") from error

    def _start(self, settings: WorkerSettings) -> None:
        self._executor = ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn")
        )
        before = set(multiprocessing.active_children())
        try:
            # Submitting is what starts the process, in this thread, before it returns.
            self._warm_up: Future[str | None] = self._executor.submit(
                self._program.warm_up, settings, self._directory
            )
            (self._process,) = set(multiprocessing.active_children()) - before
        except BaseException:
            self._executor.shutdown(wait=False)
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise
        # A worker that dies in the middle of an answer has said how long it is, and the executor
        # would wait for the rest, and its callers with it, since the pipe has another writer: this
        # process, which never writes. Private: nothing public closes that end.
        answers = getattr(self._executor, "_result_queue", None)
        writer = getattr(answers, "_writer", None)
        if writer is not None:
            writer.close()

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._process.pid or 0

    @property
    def identity(self) -> ProcessId | None:
        """Pid and start time, or None when the process had already ended."""
        return self._identity

    async def ready(self) -> None:
        """Return when the worker can take jobs. Raises `WorkerStartFailed` with the cause."""
        warm = asyncio.wrap_future(self._warm_up)
        try:
            done, _ = await asyncio.wait({warm}, timeout=START_LIMIT)
        finally:
            warm.cancel()
        if not done:
            raise WorkerStartFailed(
                f"it was not ready within {START_LIMIT:.0f} s: is the disk with its packages slow?"
            )
        warm.exception()  # or asyncio would say that nobody has asked for it
        try:
            cause = _answer_to(self._warm_up)
        except BrokenExecutor:
            raise WorkerStartFailed(f"it ended by {await self.describe_end()}") from None
        if cause is not None:
            raise WorkerStartFailed(cause)
        self._receipts.listen()

    def watch(self) -> "asyncio.Future[None]":
        """Return what is done when the process has ended; call it once, when it is ready."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        try:
            self._watched = open_process(self.pid)
        except OSError:
            # Before Linux 5.3. It is a pipe, which what a job has forked holds open, too.
            self._watched = os.dup(self._process.sentinel)
        loop.add_reader(self._watched, self._note_end)
        return self._ended

    def _note_end(self) -> None:
        self._stop_watching()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _stop_watching(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = None

    async def answered(self, question: "Future[Answer]") -> Answer:
        """Return the answer to what was submitted. Raises BrokenExecutor when none comes any more.

        The executor notices the end of its process by pipes that a process which the job has forked
        holds open, and would wait for that one as well.
        """
        assert self._ended is not None
        # Not wrap_future and asyncio.wait: the next job waits for every turn of the loop.
        loop = asyncio.get_running_loop()
        news = loop.create_future()

        def note(_: object) -> None:
            if not news.done():
                news.set_result(None)

        def note_from_executor(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(note, None)

        question.add_done_callback(note_from_executor)
        self._ended.add_done_callback(note)
        try:
            await news
            if not question.done():
                # Until what it has left behind is killed, and the executor has noticed.
                news = loop.create_future()
                await asyncio.wait({news}, timeout=END_LIMIT)
            if not question.done():
                raise BrokenExecutor("the worker has ended, and left processes behind")
            return _answer_to(question)
        finally:
            self._ended.remove_done_callback(note)
            question.cancel()

    def submit(
        self, request: RunRequest, output_path: str, input_timeout: float
    ) -> "Future[Outcome]":
        """Hand a job to the worker. Raises `WorkerGone` when it has ended."""
        if self._ended is not None and self._ended.done():
            raise WorkerGone  # the executor may not know yet, and the job would count as lost
        self._progress.enter(Phase.HANDED_OVER)
        self._progress.call("")
        self._kills.begin()
        try:
            return self._executor.submit(self._program.run_job, request, output_path, input_timeout)
        except (BrokenExecutor, RuntimeError) as error:
            raise WorkerGone from error

    def receipt(self, outcome: Outcome) -> "asyncio.Future[Outcome]":
        """Return what will be what an unconfirmed `outcome` of this worker has come to."""
        receipt = self._receipts.of(outcome.runtime["worker_execution_index"])
        loop = asyncio.get_running_loop()

        def end_worker() -> None:
            if not receipt.done():
                self.condemn(_NO_RECEIPT)
                # When it has ended, this one is given up with it: unless it cannot be ended.
                loop.call_later(END_LIMIT, give_up)

        def give_up() -> None:
            if not receipt.done():
                message = f"{_UNCONFIRMED}{_NO_RECEIPT}\n"
                receipt.set_result(Outcome(Ending.CRASHED, message=message))

        timer = loop.call_later(self._receipt_limit, end_worker)
        receipt.add_done_callback(lambda _: timer.cancel())
        return receipt

    def record(self, request: RunRequest, result: str) -> "Future[str | None]":
        """Have the worker tell the database. Raises `WorkerGone` when it has ended."""
        try:
            return self._executor.submit(self._program.record_result, request.checksum, result)
        except (BrokenExecutor, RuntimeError) as error:
            raise WorkerGone from error

    def check_store(self) -> "Future[StoreCheck]":
        """Have the worker use its store. Raises `WorkerGone` when it has ended."""
        try:
            return self._executor.submit(self._program.check_store)
        except (BrokenExecutor, RuntimeError) as error:
            raise WorkerGone from error

    @property
    def phase(self) -> Phase:
        """How far the worker is with the job that it was handed last."""
        return self._progress.phase

    @property
    def job_name(self) -> str:
        """What the worker calls that job; empty as long as it does not know."""
        return self._progress.name

    async def describe_end(self) -> str:
        """Return how the process ended, in words: the signal or exit code, and the likely cause."""
        try:
            code = await asyncio.get_running_loop().run_in_executor(None, self._exit_code)
        except RuntimeError:
            code = self._process.exitcode  # for want of a thread: it may not be known yet
        return describe_exit(code, out_of_memory=code == -signal.SIGKILL and self._kills.happened)

    def _exit_code(self) -> int | None:
        deadline = time.monotonic() + END_LIMIT
        pause = threading.Event()  # never set: it is waited for, with a limit
        # Not `join`: it waits for what the worker has left behind, too. And another thread, of the
        # executor for one, may have collected the exit status and not have noted it yet.
        while self._process.exitcode is None and time.monotonic() < deadline:
            pause.wait(0.005)
        return self._process.exitcode

    def condemn(self, verdict: str) -> None:
        """Kill the worker because of `verdict`, which becomes the explanation of its end."""
        self.doom(verdict)
        self.kill()

    def doom(self, verdict: str) -> None:
        """Note that the worker is to end because of `verdict`: it gets no other job any more."""
        if self.verdict is None:
            self.verdict = verdict

    async def terminate(self) -> None:
        """End the worker, doomed before, and all below it: SIGTERM, and SIGKILL after a while."""
        try:
            if self._identity is not None:
                terminate_tree(self._identity)
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, self._process.join, TERMINATION_LIMIT)
        except (OSError, RuntimeError) as error:
            _log.warning("worker process %d cannot be asked to end: %s", self.pid, error)
        self.kill()

    def give_up_results(self, how: str) -> None:
        """Let the results that were not confirmed go with the worker, which has ended by `how`."""
        why = f"{self.verdict}\n" if self.verdict is not None else f"It ended by {how}.\n"
        self._receipts.close(f"{_UNCONFIRMED}{why}")

    def forget(self) -> None:
        """Give back what this side holds of a worker that has ended; on the loop, if watched."""
        self._stop_watching()
        self._receipts.close(_UNCONFIRMED)
        self._progress.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """Kill the process and everything below it. Further calls do nothing."""
        if self._identity is not None:
            try:
                refused = kill_tree(self._identity)
            except OSError as error:
                # No file to be had to look what is below it, which is swept up later on.
                _log.warning("worker process %d is killed alone: %s", self.pid, error)
                refused = set()
                self._process.kill()
            if refused:
                _log.warning("processes of another user were left alone: %s", sorted(refused))
        # Without cancel_futures: a job that was being handed over then ends with the broken
        # executor, like any other, and not by a cancellation that nobody has asked for.
        self._executor.shutdown(wait=False)

    async def close(self, timeout: float) -> None:
        """Let an idle process end by itself within `timeout` seconds, then kill what is left."""
        self._executor.shutdown(wait=False)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._process.join, timeout)
        except RuntimeError as error:
            _log.warning("worker process %d is not waited for: %s", self.pid, error)
        self.kill()


def _answer_to(question: "Future[Answer]") -> Answer:
    """Return the result of what was submitted, which is done; raises what it raised, tamed.

    A worker that is interrupted between two steps of ours sends that back like any exception, and
    a task that raises KeyboardInterrupt or SystemExit ends the event loop it runs on, for all.
    """
    error = question.exception()
    if error is not None and not isinstance(error, Exception):
        raise RuntimeError(f"the worker was interrupted by {type(error).__name__}") from error
    return question.result()
