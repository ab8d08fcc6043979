"""A job's inputs: from the read folders or the hashserver, all that it needs together.

Nothing is looked up twice. The store answers at once for a buffer that it does not know, but waits
with its answer while the buffer is promised; together with attempts at a store that is away, that
may take the input timeout. It counts anew with each piece that comes: what is large, or comes from
afar, may take longer.

All of it runs on a lane (`staging`).
"""

import asyncio
from typing import Final

import seamless
from seamless.caching.buffer_cache import get_buffer_cache
from seamless.checksum.calculate_checksum import TRIVIAL_CHECKSUMS
from seamless_remote import buffer_remote

from seamless_jobserver.transport.aiohttp_standin import observe_progress
from seamless_jobserver.worker.lane import as_long_as, together
from seamless_jobserver.worker.pins import Need, leaves
from seamless_jobserver.worker.unserved import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    InputMissing,
    InputUndelivered,
    StoreUnavailable,
)

_LONGEST_TRANSFER: Final = 24 * 3600.0
"""Seconds for an input to come, as long as more and more of it does."""
_QUESTION_LIMIT: Final = 5.0


async def fetch_all(needs: list[Need], timeout: float) -> list[seamless.Buffer]:
    """Return the buffers of `needs`; the leaves of a ``folder`` come along.

    `timeout` is the input timeout, in seconds. Raises `InputMissing`, `InputUndelivered` or
    `StoreUnavailable`.
    """
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
    pause = FIRST_PAUSE
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
        pause = min(2 * pause, LONGEST_PAUSE)


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
