"""Waiting for the store beside the jobs: one result at a time, and then its receipt.

The thread that runs the jobs hands over what waits for a result to be safe, and is told when it is.
`seamless_jobserver.receipts` says what that is good for.
"""

import dataclasses
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from seamless_jobserver.messages import Outcome, Traffic
from seamless_jobserver.receipts import ReceiptsSender

PATIENCE: Final = 1.0
"""Seconds for the store to take a result before the next job, which waits for that, is handed back:
the store is away or slow, and another worker may have it sooner."""


class StoreBusy(Exception):
    """The result of the job before has not been confirmed yet: this one is not begun."""


class Confirmations:
    """Make one in each worker process; its thread lives as long as that."""

    def __init__(self, directory: str, take_traffic: Callable[[], Traffic]) -> None:
        """`directory` is the worker's; `take_traffic` returns what was moved. Raises OSError."""
        self._sender = ReceiptsSender(directory)
        self._take_traffic = take_traffic
        self._work: queue.SimpleQueue[tuple[int, Callable[[], Outcome]]] = queue.SimpleQueue()
        self._nothing_owed = threading.Event()
        self._nothing_owed.set()
        self._patience_ends = 0.0
        threading.Thread(target=self._serve, name="jobserver-receipts", daemon=True).start()

    def possible(self) -> bool:
        """Whether a receipt could be sent."""
        return self._sender.usable()

    def follow(self, number: int, wait: Callable[[], Outcome]) -> None:
        """Have `wait` called, and its outcome sent as the receipt of job `number`."""
        self._nothing_owed.clear()
        self._patience_ends = time.monotonic() + PATIENCE
        self._work.put((number, wait))

    def settle(self) -> None:
        """Return when no receipt is owed any more. Raises `StoreBusy` when it is long overdue."""
        if not self._nothing_owed.wait(max(0.0, self._patience_ends - time.monotonic())):
            raise StoreBusy

    def _serve(self) -> None:
        while True:
            number, wait = self._work.get()
            outcome = wait()
            del wait  # it refers to the result
            told = dataclasses.replace(outcome, traffic=self._take_traffic())
            try:
                self._sender.send(number, told)
            except OSError:
                # A job has closed the pipe. Who cannot tell must not go on: the server waits.
                os.kill(os.getpid(), signal.SIGKILL)
            self._nothing_owed.set()
