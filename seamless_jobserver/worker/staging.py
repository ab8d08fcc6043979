"""A job's buffers: in from the read folder or the hashserver, out to the hashserver, confirmed.

Two lanes, "jobserver-staging" for what comes in and "jobserver-storing" for what goes out, keep
their connections to the store open from job to job. (`Checksum.resolve` makes a new loop and a new
connection each time.) They are two, so that what storing a result costs can be told from what the
next job does meanwhile. The thread that runs the jobs hands them coroutines and waits:

- *In*: all buffers that a job needs are fetched together, and a list of them is returned. Seamless
  keeps fetched buffers in a weak cache: they are found there for as long as the list is held, and
  their memory is gone when it is dropped. Nothing is looked up twice. The store answers at once for
  a buffer that it does not know, but waits with its answer while the buffer is promised; together
  with attempts at a store that is away, that may take the input timeout. It counts anew with each
  piece that comes: what is large, or comes from afar, may take longer. The store may be busy with
  the result of the job before meanwhile; if that takes long, the inputs are given up, with the job.
- *Out*: a result counts as stored when every server answered 200 or 201. An answer of 202 means
  that somebody else is sending the same buffer at this moment and may yet break off. The store's
  ``/has-now`` counts such an upload as present, so asking it proves nothing; sending again does:
  the answer is 201 when the other upload has ended well, and our own upload when it has not. A
  result may have cost hours, so it is offered for `store_timeout` seconds. What lies in the store's
  own folder, where that can be seen from here, is stored.

Nothing is promised here: a promise that this process does not live to keep would hold up everybody
who asks for that buffer for ten minutes. (Seamless's background writer does promise the leaves of
a deep result, as soon as they are made; storing them keeps that promise before the job ends.)
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import seamless
from seamless.caching.buffer_cache import get_buffer_cache
from seamless.checksum.calculate_checksum import TRIVIAL_CHECKSUMS
from seamless_remote import buffer_remote

from seamless_jobserver.messages import Ending, Traffic
from seamless_jobserver.transport.aiohttp_standin import observe_answers, observe_progress
from seamless_jobserver.worker.confirmations import PATIENCE, StoreBusy
from seamless_jobserver.worker.lane import (
    CutOff,
    Lane,
    Result,
    Transfer,
    as_long_as,
    together,
    within,
)
from seamless_jobserver.worker.nearby import Nearby
from seamless_jobserver.worker.pins import Need, leaves
from seamless_jobserver.worker.readfolders import ReadFolders

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 10.0
"""Seconds between attempts at a store that is away, or that somebody else is sending to."""
_LONGEST_TRANSFER: Final = 24 * 3600.0
"""Seconds for an input to come, as long as more and more of it does."""
_ATTEMPT: Final = 60.0
_SLOWEST: Final = 2**20
"""Seconds, and bytes a second, that bound one attempt to send a buffer to a store that hangs."""
_QUESTION_LIMIT: Final = 5.0
_LOOKED_FOR: Final = 16 * 2**20
"""Bytes up to which a buffer is looked for in the store's folder: finding one means reading it."""


class Unserved(Exception):
    """The store did not do what a job needs, which is no failure of the job: `ending` says what."""

    ending: Ending


class InputMissing(Unserved):
    """Buffers that are neither in a read folder nor on a hashserver; `needs` says which."""

    ending = Ending.INPUT_MISSING

    def __init__(self, missing: list[Need]) -> None:
        self.needs = missing
        named = "\n".join(f"  {need.name}: {need.checksum}" for need in missing[:20])
        rest = f"\n  … and {len(missing) - 20} more" if len(missing) > 20 else ""
        super().__init__(
            f"Input not found in any read folder or hashserver (pin: checksum):\n{named}{rest}\n"
            "The client has not uploaded it, or the store has lost it. Run the workflow again "
            "where the input is at hand, so that it is uploaded.\n"
        )


class InputUndelivered(Unserved):
    """A buffer has been promised, but has not come in time; the message says what to do."""

    ending = Ending.INPUT_UNDELIVERED


class StoreUnavailable(Unserved):
    """The hashserver did not take or give a buffer; the message says what it did instead."""

    ending = Ending.STORE_FAILED


class Staging:
    """Moves the buffers of the worker's jobs. Make one in each worker process."""

    def __init__(self, store_timeout: float, cache_size: int, folder: str | None = None) -> None:
        """`store_timeout` is in seconds; see above. `cache_size` is in bytes: see `InputCache`.

        `folder` is where the store keeps its buffers, if it is known: see `store_folder`.
        """
        self._store_timeout = store_timeout
        self._stored = ReadFolders([] if folder is None else [folder])
        self._nearby = Nearby(cache_size)
        self._traffic_lock = threading.Lock()  # threads of nested jobs and of receipts count too
        self._traffic = Traffic()
        self._inward = Lane("jobserver-staging")
        self._outward = Lane("jobserver-storing")

    def fetch(
        self,
        needs: Iterator[Need],
        timeout: float,
        waiting: Callable[[], None],
        settle: Callable[[], None] = lambda: None,
    ) -> list[seamless.Buffer]:
        """Fetch all buffers of `needs` and return them; hold the list while the job runs.

        The leaves of a ``folder`` come along, as the job gets their contents. `timeout` is the
        input timeout, in seconds. When it takes longer than the store may need to confirm what it
        was sent before, `settle` is called, which may raise `StoreBusy`, and then `waiting`. Raises
        `InputMissing`, `InputUndelivered` or `StoreUnavailable`.
        """
        wanted = list(needs)
        # Held until the loop has found them in Seamless's weak cache.
        near, complete = self._nearby.take(wanted)
        if complete:
            self._count(Traffic(cache_hits=len(near)))
            return near
        if timeout <= 2 * PATIENCE:
            settle()  # or most of it would pass while the store has something else to do
        under_way = self._inward.begin(_fetch_all(wanted, timeout))
        if not under_way.ends_within(PATIENCE):
            try:
                settle()
            except StoreBusy:
                under_way.cut_off()
                raise
            waiting()
        fetched = _ended(under_way)
        self._nearby.keep(fetched)
        staged = sum(map(len, fetched)) - sum(map(len, near))
        misses = max(0, len(fetched) - len(near))
        self._count(Traffic(staged=staged, cache_hits=len(near), cache_misses=misses))
        return fetched

    def has_path(self, checksum: str, mode: str) -> bool:
        """Return what `ReadFolders.has_path` does."""
        return self._nearby.has_path(checksum, mode)

    def store(self, buffers: list[seamless.Buffer]) -> None:
        """Write `buffers` to every write server and return when all have confirmed them.

        Empty ones are left out: Seamless knows them by their checksum. Raises `StoreUnavailable`.
        """
        self.begin_to_store(buffers)()

    def begin_to_store(
        self, buffers: list[seamless.Buffer], patience: float | None = None
    ) -> Callable[[], None]:
        """Begin what `store` does; return what waits for its end, and must be called.

        They are offered for `patience` seconds, if that is given and less than the store timeout.
        """
        wanted = self._not_there([buffer for buffer in buffers if len(buffer)])
        if not wanted:
            return lambda: None
        limit = self._store_timeout if patience is None else min(patience, self._store_timeout)
        under_way = self._outward.begin(_store_all(wanted, limit))

        def wait() -> None:
            _ended(under_way)
            self._count(Traffic(stored=sum(map(len, wanted))))

        return wait

    def _not_there(self, buffers: list[seamless.Buffer]) -> list[seamless.Buffer]:
        """Leave out what lies whole in the store's own folder, such as most transformations."""
        small = [buffer for buffer in buffers if len(buffer) <= _LOOKED_FOR]
        large = [buffer for buffer in buffers if len(buffer) > _LOOKED_FOR]
        return self._stored.without(small) + large

    def take_traffic(self) -> Traffic:
        """Return what was moved since the last call of this."""
        with self._traffic_lock:
            traffic, self._traffic = self._traffic, Traffic()
        return traffic

    def _count(self, more: Traffic) -> None:
        with self._traffic_lock:
            self._traffic = Traffic(*map(sum, zip(self._traffic, more, strict=True)))

    def forget(self, buffers: list[seamless.Buffer]) -> None:
        """Do not keep `buffers` for other jobs: their content may not be what it was."""
        for buffer in buffers:
            self._nearby.cache.forget(buffer.get_checksum().hex())

    @property
    def kept(self) -> int:
        """Bytes of inputs that are kept from job to job."""
        return self._nearby.cache.size

    @property
    def kept_from_earlier(self) -> int:
        """Bytes of inputs that were kept before the present job, and still are."""
        return self._nearby.cache.earlier

    def begin_job(self) -> None:
        """Tell what is kept now from what the next job will bring."""
        self._nearby.cache.begin_job()

    def news_of_large(self) -> list[str] | None:
        """Return what `InputCache.news_of_large` does."""
        return self._nearby.cache.news_of_large()

    @property
    def storing_seconds(self) -> float:
        """What storing has taken of a processor so far, in seconds."""
        return self._outward.processor_seconds

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the staging loop, with its open connections, and wait for it."""
        return _ended(self._inward.begin(work))


def _ended(under_way: Transfer[Result]) -> Result:
    """Return what a transfer brought. Raises `StoreUnavailable` as well, when it was cut off."""
    try:
        return under_way.wait()
    except CutOff as error:
        raise StoreUnavailable(f"{error}\n") from error


async def _fetch_all(needs: list[Need], timeout: float) -> list[seamless.Buffer]:
    found = await _fetch_each(needs, timeout)
    missing = [need for need in needs if found[need.checksum] is None]
    if all(need.optional for need in missing):
        parts = [
            Need(need.name, "bytes", leaf, need.optional)
            for need in needs
            if need.celltype == "folder" and (buffer := found[need.checksum]) is not None
            for leaf in set(leaves(buffer.get_value("plain"))) - found.keys()
        ]
        contents = await _fetch_each(parts, timeout)
        missing += [part for part in parts if contents[part.checksum] is None]
        found.update(contents)
    required = [need for need in missing if not need.optional]
    if required:
        raise InputMissing(required)
    return [buffer for buffer in found.values() if buffer is not None]


class _Patience:
    """How long an attempt at an input may take: anew with each piece of it that comes."""

    def __init__(self, until: float, seconds: float, last: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._until = until
        self._seconds = seconds
        self._last = last

    def renew(self) -> None:
        self._until = min(self._clock() + self._seconds, self._last)

    def left(self) -> float:
        return self._until - self._clock()


async def _fetch_each(needs: list[Need], timeout: float) -> dict[str, seamless.Buffer | None]:
    """Fetch each buffer once, however many pins have it; return them by their checksum."""
    once = {need.checksum: need for need in reversed(needs)}
    found = await together([_fetch(need, timeout) for need in once.values()])
    return dict(zip(once, found, strict=True))


async def _fetch(need: Need, timeout: float) -> seamless.Buffer | None:
    """Return the buffer, or None when the store has never heard of it."""
    checksum = seamless.Checksum(need.checksum)
    trivial = TRIVIAL_CHECKSUMS.get(need.checksum)
    if trivial is not None:
        return seamless.Buffer(trivial)
    buffer = get_buffer_cache().get(checksum)
    if buffer is not None:
        return buffer
    loop = asyncio.get_running_loop()
    # Faults come in pieces, too: they renew nothing but the attempt that they end.
    given_up = loop.time() + timeout
    last = loop.time() + max(timeout, _LONGEST_TRANSFER)
    fault: Exception | None = None
    pause = _FIRST_PAUSE
    while True:
        patience, begun = _Patience(given_up, timeout, last), loop.time()
        try:
            with observe_progress(patience.renew):
                return await as_long_as(patience.left, buffer_remote.get_buffer(checksum))
        except asyncio.TimeoutError:
            raise await _explain_wait(need, timeout, fault) from fault
        except Exception as error:
            if loop.time() - begun > timeout:
                # More and more of it has come until then: it is worth another try.
                given_up = min(loop.time() + timeout, last)
            if loop.time() + pause >= given_up:
                raise _away(need, timeout, error) from error
            fault = error
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _away(need: Need, timeout: float, fault: Exception) -> Exception:
    return StoreUnavailable(
        f"Input {need.name} ({need.checksum}) could not be fetched for {timeout:g} s: "
        f"{type(fault).__name__}: {fault}\n"
        "The hashserver is away, or refuses this jobserver. Run the workflow again when it is "
        "back.\n"
    )


async def _explain_wait(need: Need, timeout: float, fault: Exception | None) -> Exception:
    """Return why the store has not answered in time for `need`: a promise, or itself.

    `fault` is what an attempt before has met, if it has.
    """
    checksum = seamless.Checksum(need.checksum)
    try:
        (known,) = await asyncio.wait_for(
            buffer_remote.get_buffer_lengths([checksum]), _QUESTION_LIMIT
        )
    except asyncio.TimeoutError:
        known = None
    except Exception as error:  # noqa: BLE001 - seamless-remote passes on whatever it met
        known, fault = None, fault or error
    if known:
        return InputUndelivered(
            f"Input not delivered (pin: checksum):\n  {need.name}: {need.checksum}\n"
            f"The client has promised it to the hashserver, but has not sent it within "
            f"{timeout:g} s: it has probably ended, or lost its connection. Run "
            "the workflow again, so that it is uploaded. (--input-timeout of the jobserver "
            "says how long it waits.)\n"
        )
    if fault is not None:
        return _away(need, timeout, fault)
    return StoreUnavailable(
        f"Input {need.name} ({need.checksum}) could not be fetched: the hashserver has not "
        f"answered for {timeout:g} s. Run the workflow again when it does.\n"
    )


async def _store_all(buffers: list[seamless.Buffer], limit: float) -> None:
    if len(buffers) == 1:
        await _store(buffers[0], limit)  # sooner, since it is no task of its own
    else:
        await together([_store(buffer, limit) for buffer in buffers])


async def _store(buffer: seamless.Buffer, limit: float) -> None:
    checksum = buffer.get_checksum()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    pause = _FIRST_PAUSE
    while True:
        problem = await _try_to_store(checksum, buffer, deadline - loop.time())
        if problem is None:
            return
        if loop.time() + pause >= deadline:
            raise StoreUnavailable(
                f"The result {checksum} was computed, but could not be stored for "
                f"{limit:g} s: {problem}\n"
            )
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _try_to_store(
    checksum: seamless.Checksum, buffer: seamless.Buffer, left: float
) -> str | None:
    """Send `buffer` once, with `left` seconds until all is over; return what went wrong, if any.

    Raises `StoreUnavailable` when there is nobody to send it to.
    """
    with observe_answers() as answers:
        limit = min(_ATTEMPT + len(buffer) / _SLOWEST, max(_FIRST_PAUSE, left))
        try:
            written = await within(limit, buffer_remote.write_buffer(checksum, buffer))
        except asyncio.TimeoutError:
            return "the hashserver does not answer."
        except Exception as error:  # noqa: BLE001 - seamless-remote passes on whatever it met
            return (
                f"{type(error).__name__}: {error}\n"
                "The hashserver is away, full, or refuses this jobserver."
            )
    if not written:
        raise StoreUnavailable(NO_STORE)
    # The last one of each server: seamless-remote sends again what has failed.
    last = {answer.url: answer.status for answer in answers if answer.method == "PUT"}
    if all(status in (200, 201) for status in last.values()):
        return None
    return "the hashserver says that somebody else is sending it, but it does not come."


NO_STORE: Final = (
    "There is no hashserver that takes results: the status file that this jobserver was started "
    "with names no writable one under parameters.buffer.\n"
)


def held_leaves(structure: Any) -> list[seamless.Buffer]:
    """Return the buffers that a deep structure names and that this process holds.

    Those that it does not hold were in the store before the job.
    """
    cache = get_buffer_cache()
    held = (cache.get(seamless.Checksum(leaf)) for leaf in set(leaves(structure)))
    return [buffer for buffer in held if buffer is not None]
