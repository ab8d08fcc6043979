"""A job's buffers: in from the read folder or the hashserver, out to the hashserver, confirmed.

One thread, "jobserver-staging", runs an event loop for as long as the worker lives, so that the
connections to the store stay open from job to job. (`Checksum.resolve` makes a new loop and a new
connection each time.) The thread that runs the jobs hands it coroutines and waits:

- *In*: all buffers that a job needs are fetched together, and a list of them is returned. Seamless
  keeps fetched buffers in a weak cache: they are found there for as long as the list is held, and
  their memory is gone when it is dropped. Nothing is looked up twice.
- *Out*: a result counts as stored when every server answered 200 or 201. An answer of 202 means
  that somebody else is sending the same buffer at this moment and may yet break off. The store's
  ``/has-now`` counts such an upload as present, so asking it proves nothing; sending again does:
  the answer is 201 when the other upload has ended well, and our own upload when it has not.

Nothing is promised here: a promise that this process does not live to keep would hold up everybody
who asks for that buffer for ten minutes. (Seamless's background writer does promise the leaves of
a deep result, as soon as they are made; storing them keeps that promise before the job ends.)
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import seamless
from seamless.caching.buffer_cache import get_buffer_cache
from seamless.checksum.calculate_checksum import TRIVIAL_CHECKSUMS
from seamless_remote import buffer_remote

from seamless_jobserver.transport.aiohttp_standin import observe_answers
from seamless_jobserver.worker.inputcache import InputCache
from seamless_jobserver.worker.pins import Need
from seamless_jobserver.worker.readfolders import ReadFolders

_AT_ONCE: Final = 16
"""Transfers under way at a time; the store answers from one process, and more only queue there."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 2.0
"""Seconds between attempts to store a buffer that somebody else is sending."""
CONFIRMATION_LIMIT: Final = 600.0
"""Seconds after which a result that nobody confirms counts as not stored."""

Result = TypeVar("Result")


class InputMissing(Exception):
    """Buffers that are neither in a read folder nor on a hashserver; `needs` says which."""

    def __init__(self, missing: list[Need]) -> None:
        self.needs = missing
        named = "\n".join(f"  {need.name}: {need.checksum}" for need in missing[:20])
        rest = f"\n  … and {len(missing) - 20} more" if len(missing) > 20 else ""
        super().__init__(
            f"Input not found in any read folder or hashserver (pin: checksum):\n{named}{rest}\n"
            "The client has not uploaded it, or the store has lost it. Run the workflow again "
            "where the input is at hand, so that it is uploaded.\n"
        )


class StoreUnavailable(Exception):
    """The hashserver did not take or give a buffer; the message says what it did instead."""


class Staging:
    """Moves the buffers of the worker's jobs. Make one in each worker process."""

    def __init__(self) -> None:
        self._cache = InputCache()
        self._folders = ReadFolders()
        self._loop = asyncio.new_event_loop()
        # Files are read in threads of this pool, which by their name are told from a job's own.
        self._files = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="jobserver-files")
        self._loop.set_default_executor(self._files)
        self._thread = threading.Thread(target=self._serve, name="jobserver-staging", daemon=True)
        self._thread.start()

    def fetch(self, needs: Iterator[Need]) -> list[seamless.Buffer]:
        """Fetch all buffers of `needs` and return them; hold the list while the job runs.

        The leaves of a ``folder`` come along, as the job gets their contents. Raises
        `InputMissing` or `StoreUnavailable`.
        """
        wanted = list(needs)
        checksums = {need.checksum for need in wanted} - TRIVIAL_CHECKSUMS.keys()
        # Held until the loop has found them in Seamless's weak cache, where they are from now on.
        near = self._fetch_near(checksums)
        if near.keys() == checksums:
            leaves = {
                leaf
                for need in wanted
                if need.celltype == "folder" and need.checksum in near
                for leaf in _leaves(near[need.checksum].get_value("plain"))
            } - TRIVIAL_CHECKSUMS.keys()
            near.update(self._fetch_near(leaves))
            if near.keys() >= leaves:
                return list(near.values())
        buffers = self.call(self._fetch_all(wanted))
        for buffer in buffers:
            self._cache.keep(buffer.get_checksum().hex(), buffer)
        return buffers

    def _fetch_near(self, checksums: set[str]) -> dict[str, seamless.Buffer]:
        """Return those that are in the cache or a read folder, which takes no server."""
        near = {}
        for checksum in checksums:
            buffer = self._cache.get(checksum)
            if buffer is not None:
                near[checksum] = buffer
        rest = [checksum for checksum in checksums if checksum not in near]
        for checksum, found in zip(rest, self._folders.read(rest), strict=True):
            if found is not None:
                self._cache.keep(checksum, found)
                near[checksum] = found
        return near

    def store(self, buffer: seamless.Buffer) -> None:
        """Write `buffer` to every write server and return when all have confirmed it.

        An empty buffer is left out: Seamless knows it by its checksum. Raises `StoreUnavailable`.
        """
        if len(buffer):
            self.call(self._store(buffer))

    def store_leaves(self, structure: Any) -> None:
        """Store the buffers that a deep structure names and this process holds; confirmed.

        Those that it does not hold were there before the job. Raises `StoreUnavailable`.
        """
        cache = get_buffer_cache()
        held = [cache.get(seamless.Checksum(leaf)) for leaf in set(_leaves(structure))]
        buffers = [buffer for buffer in held if buffer is not None and len(buffer)]
        self.call(_together([self._store(buffer) for buffer in buffers]))

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the staging loop, with its open connections, and wait for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise StoreUnavailable("the transfer was cut off") from error

    async def _fetch_all(self, needs: list[Need]) -> list[seamless.Buffer]:
        found = await _together([_fetch(need) for need in needs])
        missing = [need for need, buffer in zip(needs, found, strict=True) if buffer is None]
        if all(need.optional for need in missing):
            leaves = [
                Need(need.name, "bytes", leaf, need.optional)
                for need, buffer in zip(needs, found, strict=True)
                if need.celltype == "folder" and buffer is not None
                for leaf in set(_leaves(buffer.get_value("plain")))
            ]
            contents = await _together([_fetch(leaf) for leaf in leaves])
            missing += [leaf for leaf, buf in zip(leaves, contents, strict=True) if buf is None]
            found += contents
        required = [need for need in missing if not need.optional]
        if required:
            raise InputMissing(required)
        return [buffer for buffer in found if buffer is not None]

    async def _store(self, buffer: seamless.Buffer) -> None:
        checksum = buffer.get_checksum()
        pause = _FIRST_PAUSE
        waited = 0.0
        while True:
            with observe_answers() as answers:
                try:
                    written = await buffer_remote.write_buffer(checksum, buffer)
                except Exception as error:
                    raise StoreUnavailable(_store_report(checksum, error)) from error
            if not written:
                raise StoreUnavailable(NO_STORE)
            if all(answer.status in (200, 201) for answer in answers if answer.method == "PUT"):
                return
            if waited > CONFIRMATION_LIMIT:
                raise StoreUnavailable(
                    f"The result {checksum} was not stored: for {waited:.0f} s the hashserver has "
                    "been saying that somebody else is sending it, but it does not come.\n"
                )
            await asyncio.sleep(pause)
            waited += pause
            pause = min(2 * pause, _LONGEST_PAUSE)


NO_STORE: Final = (
    "There is no hashserver that takes results: the status file that this jobserver was started "
    "with names no writable one under parameters.buffer.\n"
)


async def _fetch(need: Need) -> seamless.Buffer | None:
    checksum = seamless.Checksum(need.checksum)
    trivial = TRIVIAL_CHECKSUMS.get(need.checksum)
    if trivial is not None:
        return seamless.Buffer(trivial)
    buffer = get_buffer_cache().get(checksum)
    if buffer is not None:
        return buffer
    try:
        return await buffer_remote.get_buffer(checksum)
    except Exception as error:
        raise StoreUnavailable(
            f"Input {need.name} ({need.checksum}) could not be fetched: "
            f"{type(error).__name__}: {error}\n"
            "The hashserver is away, or refuses this jobserver. Run the workflow again.\n"
        ) from error


async def _together(work: list[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run `work` with at most `_AT_ONCE` under way; the first failure ends the rest."""
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


def _leaves(structure: Any) -> Iterator[str]:
    """Yield the checksums in a deep structure: nested dicts and lists with hex strings."""
    pending = [structure]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str):
            yield value


def _store_report(checksum: seamless.Checksum, error: Exception) -> str:
    return (
        f"The result {checksum} was computed, but could not be stored: "
        f"{type(error).__name__}: {error}\n"
        "The hashserver is away, full, or refuses this jobserver. Run the workflow again when it "
        "is back.\n"
    )
