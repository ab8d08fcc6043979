"""A lane: an event loop in a thread of its own, on which a worker's transfers run.

The thread that runs the jobs hands it coroutines, goes on as soon as the first request has left,
and waits for the end when it has nothing else to do. The loop lives as long as the process, so that
the connections to the store stay open from job to job.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from os import sched_yield as _yield
from typing import Any, Final, Generic, TypeVar

_AT_ONCE: Final = 16
"""Transfers under way at a time; the store answers from one process, and more only queue there."""
_HEAD_START: Final = 0.05
"""Seconds that whoever begins a transfer waits at the most before going on."""

Result = TypeVar("Result")


class CutOff(Exception):
    """Something has ended a transfer that had not come to its end."""


class Transfer(Generic[Result]):
    """A coroutine that runs on a lane, seen from the thread that has begun it."""

    def __init__(self, future: "Future[Result]") -> None:
        self._future = future

    def wait(self) -> Result:
        """Return its result; raises what it raised, or `CutOff`."""
        try:
            return self._future.result()
        except concurrent.futures.CancelledError as error:
            raise CutOff("the transfer was cut off") from error

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end for so long, and return whether it has come."""
        return bool(concurrent.futures.wait([self._future], seconds).done)

    def cut_off(self) -> None:
        """End it, in its own time."""
        self._future.cancel()


class Lane:
    """One thread with its loop; both end with the process."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._loop = asyncio.new_event_loop()
        # Files are read in threads of this pool, which by their name are told from a job's own.
        files = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="jobserver-files")
        self._loop.set_default_executor(files)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def processor_seconds(self) -> float:
        """What the thread has taken of a processor so far (pthread_getcpuclockid(3))."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def begin(self, work: Coroutine[Any, Any, Result]) -> Transfer[Result]:
        """Begin to run a coroutine on the loop."""
        begun = threading.Event()

        async def run() -> Result:
            self._loop.call_soon(begun.set)
            return await work

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        # Until its first request has left. This thread would otherwise go on, and hold the
        # interpreter for the longer part of what the store needs.
        begun.wait(_HEAD_START)
        return Transfer(future)


def give_way() -> None:
    """Let a thread that waits for this processor have it first (sched_yield(2)).

    To be called between two steps of what is done while the store works, which is often on the same
    machine: it hands each request from thread to thread a dozen times, and at each it could have
    to wait for the end of this thread's time slice.
    """
    with suppress(Exception):  # a job may have put anything there, or forbidden it
        _yield()


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`, and end it after so many seconds. Raises asyncio.TimeoutError."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    return await as_long_as(lambda: until - loop.time(), work)


async def as_long_as(left: Callable[[], float], work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`, and end it when no seconds are `left`. Raises asyncio.TimeoutError.

    In the task that there is: before Python 3.12 asyncio.wait_for makes one of its own, which takes
    a good part of the time of a small transfer.
    """
    task = asyncio.current_task()
    assert task is not None
    expired = False

    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def expire() -> None:
        nonlocal expired, timer
        if (more := left()) > 0:
            timer = loop.call_later(more, expire)
            return
        expired = True
        task.cancel()

    before = task.cancelling() if hasattr(task, "cancelling") else 0
    timer = loop.call_later(max(0.0, left()), expire)
    try:
        return await work
    except asyncio.CancelledError:
        if not expired:
            raise
        if hasattr(task, "uncancel") and task.uncancel() > before:
            raise  # somebody else has canceled it too
        raise asyncio.TimeoutError from None
    finally:
        timer.cancel()


async def together(work: list[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run `work` with at most `_AT_ONCE` under way; the first failure ends the rest."""
    if len(work) == 1:
        return [await work[0]]
    turns = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(one: Coroutine[Any, Any, Result]) -> Result:
        async with turns:
            return await one

    tasks = [asyncio.ensure_future(in_turn(one)) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in work:
            one.close()
        raise
