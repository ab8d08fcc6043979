"""Receipts: what a worker says of a result that it told of before the store had confirmed it.

While the store takes a small result, its worker is free, and the way to the server and back takes
about as long as the store does. So the worker answers at once, with an outcome that is
*unconfirmed*, gets the next job, and makes it ready. The receipt follows over a named pipe in the
worker's directory, a line of JSON for each. It is waited for on both sides:

- The server answers nobody before it has the receipt. A worker that ends owes it no longer: its
  results are then given up, like any job whose worker dies before its result is safe.
- The worker may ask the store for the next job's inputs, which keeps the store at work, but does
  not run that job's code before it has written the receipt. So no job's code can take down, or hold
  up, the result of another.

The server makes the pipe and reads it on its event loop; a thread of the worker, `Confirmations`,
writes to it.
"""

import asyncio
import json
import logging
import os
from typing import Final

from seamless_jobserver.messages import Ending, Outcome

_NAME: Final = "receipts"
_CHUNK: Final = 64 * 1024

_log = logging.getLogger(__name__)


class ReceiptsSender:
    """The worker's end."""

    def __init__(self, directory: str) -> None:
        """Open the pipe in a worker's directory. Raises OSError."""
        self._pipe = os.open(os.path.join(directory, _NAME), os.O_WRONLY | os.O_CLOEXEC)
        self._inode = os.fstat(self._pipe).st_ino

    def usable(self) -> bool:
        """Whether it is still the pipe: a job may have closed whatever was open."""
        try:
            return os.fstat(self._pipe).st_ino == self._inode
        except OSError:
            return False

    def send(self, number: int, outcome: Outcome) -> None:
        """Write the receipt of the result of job `number` of this worker. Raises OSError."""
        line = json.dumps([number, outcome.to_json()]).encode() + b"\n"
        while line:
            line = line[os.write(self._pipe, line) :]


class Receipts:
    """The server's end: of one worker, and used on the event loop alone."""

    def __init__(self, directory: str) -> None:
        """Make the pipe in a worker's directory. Raises OSError."""
        path = os.path.join(directory, _NAME)
        os.mkfifo(path, 0o600)
        self._pipe: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read = b""
        self._owed: dict[int, asyncio.Future[Outcome]] = {}
        self._given_up: str | None = None

    def listen(self) -> None:
        """Begin to read, on the loop that runs."""
        if self._pipe is not None and self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._pipe, self._take)

    def of(self, number: int) -> "asyncio.Future[Outcome]":
        """Return what will be the confirmed outcome of the worker's job `number`.

        It may have come already, and is to be asked for once. So may the worker's end: the outcome
        itself comes another way, which can take longer.
        """
        owed = self._owed.get(number)
        if owed is None:
            owed = self._owed[number] = asyncio.get_running_loop().create_future()
            if self._given_up is not None:
                owed.set_result(Outcome(Ending.CRASHED, message=self._given_up))
        owed.add_done_callback(lambda _: self._owed.pop(number, None))
        return owed

    def close(self, message: str) -> None:
        """Take what has come. The rest, and what is asked for later, crashed with `message`."""
        if self._pipe is None:
            return
        if self._loop is not None:
            self._take()
            self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        self._pipe = None
        self._given_up = message
        for owed in list(self._owed.values()):
            if not owed.done():
                owed.set_result(Outcome(Ending.CRASHED, message=message))

    def _take(self) -> None:
        if self._pipe is None or self._loop is None:
            return
        while True:
            try:
                read = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                break
            if not read:
                # The worker has ended. Until `close` the pipe would be readable all the time.
                self._loop.remove_reader(self._pipe)
                break
            self._read += read
        *lines, self._read = self._read.split(b"\n")
        for line in lines:
            self._accept(line)

    def _accept(self, line: bytes) -> None:
        try:
            number, fields = json.loads(line)
            outcome = Outcome.from_json(fields)
            owed = self._owed.get(number)
        except (ValueError, TypeError, KeyError):
            # A job has got hold of the pipe and writes to it.
            _log.warning("a worker has sent a receipt that is none: %.200r", line)
            return
        if owed is None and self._loop is not None:
            owed = self._owed[number] = self._loop.create_future()
        if owed is not None and not owed.done():
            owed.set_result(outcome)
