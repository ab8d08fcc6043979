"""The connections of a session that are not in use at the moment, by server."""

import asyncio
from typing import Final

from seamless_jobserver.transport.connection import Connection
from seamless_jobserver.transport.request import Origin

KEPT_ALIVE: Final = 15.0
"""Seconds for which an idle connection is kept, as in aiohttp."""


class Connector:
    """Keeps connections between requests; all but `_close` is to be called on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle: dict[Origin, list[Connection]] = {}
        self._closed = False

    def take(self, origin: Origin, now: float) -> Connection | None:
        """Return a kept connection to `origin` that is still good, or None."""
        kept = self._idle.get(origin, [])
        _drop_stale(kept, now)
        # The one used last is at the end: so those that are too many grow old.
        idle = next((connection for connection in reversed(kept) if connection.idle), None)
        if idle is not None:
            kept.remove(idle)
        return idle

    def keep(self, origin: Origin, connection: Connection, now: float) -> None:
        """Keep `connection` for the next request to `origin`, and drop those kept too long."""
        if self._closed:
            connection.close()
            return
        connection.idle_since = now
        kept = self._idle.setdefault(origin, [])
        _drop_stale(kept, now)
        kept.append(connection)

    def drop_all(self) -> None:
        """Close every kept connection, and those that would be kept; to be called on the loop."""
        self._closed = True
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()

    def _close(self) -> None:
        # seamless-remote calls this by this name, from any thread.
        try:
            self._loop.call_soon_threadsafe(self.drop_all)
        except RuntimeError:
            self._idle.clear()  # the loop is closed, and the sockets go with their last reference


def _drop_stale(kept: list[Connection], now: float) -> None:
    for old in [old for old in kept if not old.usable or now - old.idle_since >= KEPT_ALIVE]:
        old.close()
        kept.remove(old)
