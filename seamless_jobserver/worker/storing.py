"""Buffers on their way out: to every hashserver that takes them, until each has confirmed.

A result counts as stored when every server answered 200 or 201. An answer of 202 means that
somebody else is sending the same buffer at this moment and may yet break off. The store's
``/has-now`` counts such an upload as present, so asking it proves nothing; sending again does: the
answer is 201 when the other upload has ended well, and our own upload when it has not. A result may
have cost hours, so it is offered again and again, for as long as the store timeout allows.

Nothing is promised here: a promise that this process does not live to keep would hold up everybody
who asks for that buffer for ten minutes. (Seamless's background writer does promise the leaves of
a deep result, as soon as they are made; storing them keeps that promise before the job ends.)

All of it runs on a lane (`staging`).
"""

import asyncio
from typing import Final

import seamless
from seamless_remote import buffer_remote

from seamless_jobserver.transport.aiohttp_standin import observe_answers
from seamless_jobserver.worker.lane import together, within
from seamless_jobserver.worker.unserved import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NO_STORE,
    StoreUnavailable,
)

_ATTEMPT: Final = 60.0
_SLOWEST: Final = 2**20
"""Seconds, and bytes a second, that bound one attempt to send a buffer to a store that hangs."""


async def store_all(buffers: list[seamless.Buffer], limit: float) -> None:
    """Return when all `buffers` are confirmed, each offered for `limit` seconds.

    Raises `StoreUnavailable`.
    """
    if len(buffers) == 1:
        await _store(buffers[0], limit)  # sooner, since it is no task of its own
    else:
        await together([_store(buffer, limit) for buffer in buffers])


async def _store(buffer: seamless.Buffer, limit: float) -> None:
    checksum = buffer.get_checksum()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    pause = FIRST_PAUSE
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
        pause = min(2 * pause, LONGEST_PAUSE)


async def _try_to_store(
    checksum: seamless.Checksum, buffer: seamless.Buffer, left: float
) -> str | None:
    """Send `buffer` once, with `left` seconds until all is over; return what went wrong, if any.

    Raises `StoreUnavailable` when there is nobody to send it to.
    """
    with observe_answers() as answers:
        limit = min(_ATTEMPT + len(buffer) / _SLOWEST, max(FIRST_PAUSE, left))
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
