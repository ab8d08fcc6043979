"""Whether a worker reaches its store and its database: asked by ``seamless-jobserver check``."""

import asyncio
import time
from typing import Any, Final

import seamless
from seamless_remote import buffer_remote, database_remote

from seamless_jobserver.messages import StoreCheck
from seamless_jobserver.worker.staging import Staging
from seamless_jobserver.worker.unserved import NO_STORE

_LIMIT: Final = 10.0
"""Seconds for one thing that the store is asked."""
_CODE: Final = b"def check(word):\n    return word[::-1]\n"


def check(staging: Staging) -> StoreCheck:
    """Put a trivial job's buffers into the store, read them, ask the database. Never raises."""
    # New each time: of what the store has, it takes nothing, whatever its disk is like.
    code, word = (
        seamless.Buffer(_CODE),
        seamless.Buffer(f'"checked at {time.time_ns()}"\n'.encode()),
    )
    trial: dict[str, Any] = {
        "__language__": "python",
        "__output__": ["result", "plain", None],
        "code": ["python", "transformer", code.get_checksum().hex()],
        "word": ["plain", None, word.get_checksum().hex()],
    }
    return StoreCheck(
        hashserver=_try(staging, _use_hashserver([code, word])),
        database=_try(staging, _ask_database(code)),
        trial=trial,
    )


def _try(staging: Staging, work: Any) -> str | None:
    try:
        problem: str | None = staging.call(asyncio.wait_for(work, _LIMIT))
    except asyncio.TimeoutError:
        return f"it does not answer within {_LIMIT:g} s. Is it overloaded, or its disk?"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was asked for
        return f"{type(error).__name__}: {error}. Does it run, and can this node reach it?"
    return problem


async def _use_hashserver(buffers: list[seamless.Buffer]) -> str | None:
    if not buffer_remote.has_write_server():
        return NO_STORE.strip()
    for buffer in buffers:
        await buffer_remote.write_buffer(buffer.get_checksum(), buffer)
    for buffer in buffers:
        found = await buffer_remote.get_buffer(buffer.get_checksum())
        if found is None or found.content != buffer.content:
            return "it took a buffer, and does not give it back. Is its directory writable?"
    return None


async def _ask_database(buffer: seamless.Buffer) -> str | None:
    if not database_remote.has_write_server():
        return (
            "the status file names none that can be written to: results are not remembered, and "
            "jobs inside jobs run in the worker that asks."
        )
    await database_remote.get_transformation_result(buffer.get_checksum())
    return None
