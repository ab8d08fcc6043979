"""The end of a server: why, whether it is really wanted, and in which order things are taken down.

The main thread waits for a `Reason`, which signal handlers, the idle timer and the slots put into
a queue. An end for want of use is a matter of moments: a request may come in just as the timer
expires. So nothing more is accepted then, what has been accepted gets a moment to show what it
wants, and if anything came, the server goes on as if the timer had not expired.

The end itself is one list, against one deadline:

    stop accepting -> refuse new jobs and drop the queued -> give the running a grace
    -> kill what is left -> let the answers go out

A second signal cuts the grace short, and whatever else is still waited for.
"""

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from seamless_jobserver.errors import ShuttingDown, WorkersUnavailable
from seamless_jobserver.server.bridge import Bridge
from seamless_jobserver.server.http import JobHTTPServer
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.service import Service

CLOSING: Final = 5.0
"""Seconds after the grace for all the rest of the end."""
_HURRIED: Final = 1.0
"""Seconds for all the rest after a second signal."""
_LOOK: Final = 0.05
_ROUND: Final = 1.0
"""Seconds until the main thread looks for a signal again: one that comes just before a wait begins
does not end the wait, and its handler runs only in that thread."""
_MOMENT: Final = 0.2
"""Seconds for a connection to send its request, when it was made as the idle timer expired."""
_MOMENTS: Final = 10
"""So many times: who connects again and again, and asks for nothing, does not use the server."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reason:
    """Why the server ends: in words, whether that is a failure, and whether nobody uses it."""

    text: str
    failure: bool = False
    idle: bool = False


Interrupts = queue.SimpleQueue[Reason]


def await_reason(interrupts: Interrupts) -> Reason:
    """Return the first reason to end."""
    while True:
        try:
            return interrupts.get(timeout=_ROUND)
        except queue.Empty:
            continue


def is_unused(http: JobHTTPServer, activity: Activity, timeout: float) -> bool:
    """Whether a server whose idle timer has expired is unused to this very moment.

    If so, it accepts nothing more; else it goes on.
    """
    pause = threading.Event()  # never set: it is waited for, with a limit
    http.suspend()
    for _ in range(_MOMENTS):
        deadline = time.monotonic() + _MOMENT
        while time.monotonic() < deadline:
            if http.holds or activity.idle_seconds() < timeout:
                http.start()
                return False
            pause.wait(_LOOK)
        if not http.accept_waiting() and not http.holds:
            break
    return True


def end(
    http: JobHTTPServer,
    bridge: Bridge,
    service: Service,
    interrupts: Interrupts,
    reason: Reason,
    grace: float,
) -> None:
    """Take the server down: everything but the processes and threads that it is made of."""
    deadline = time.monotonic() + grace + CLOSING
    http.stop_accepting()
    refusal = WorkersUnavailable(reason.text) if reason.failure else ShuttingDown()
    _finish(bridge.submit(service.refuse(refusal)), deadline)
    closing = bridge.submit(service.close(grace))
    second = _await_either(closing, interrupts, deadline - CLOSING)
    if second is not None:
        _log.warning("ending now: %s", second.text)
        deadline = min(deadline, time.monotonic() + _HURRIED)
    if not closing.done():
        closing.cancel()
        _finish(bridge.submit(service.close(0.0)), deadline)
    left = http.close(max(_LOOK, deadline - time.monotonic()))
    if left:
        _log.warning("%d connections did not take their answers", left)


def _await_either(
    closing: "concurrent.futures.Future[Any]", interrupts: Interrupts, deadline: float
) -> Reason | None:
    """Wait until the jobs have ended, or for a second reason, which is returned."""
    while time.monotonic() < deadline:
        try:
            closing.result(timeout=_LOOK)
            return None
        except concurrent.futures.TimeoutError:
            try:
                return interrupts.get_nowait()
            except queue.Empty:
                continue
    return None


def _finish(work: "concurrent.futures.Future[Any]", deadline: float) -> None:
    try:
        work.result(max(_LOOK, deadline - time.monotonic()))
    except (concurrent.futures.TimeoutError, asyncio.TimeoutError):
        # The guardian kills what is left when this process has ended.
        _log.error("the end takes too long, and is cut short")
