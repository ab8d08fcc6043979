"""A limit on the time of some work, in the task that there is.

Before Python 3.12 asyncio.wait_for makes a task of its own, which takes a good part of the time of
a small transfer, and forgets a cancellation that comes in the turn of the loop in which the work
ends.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def within(seconds: float | None, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`, and end it after so many seconds, if not None. Raises asyncio.TimeoutError."""
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = None
    if seconds is not None:
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), expire)
    try:
        return await work
    except asyncio.CancelledError:
        if not expired:
            raise
        if hasattr(task, "uncancel"):
            task.uncancel()
        raise asyncio.TimeoutError from None
    finally:
        if timer is not None:
            timer.cancel()
