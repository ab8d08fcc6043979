"""The bridge between blocking threads and the one event loop that owns the state of the server.

One loop runs in one named thread, "jobserver-loop". It alone touches the job table and the slots,
which therefore need no locks. Other threads hand it coroutines and wait for what comes out.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from seamless_jobserver.errors import Unanswered

Result = TypeVar("Result")


class Bridge:
    """Owner of the loop and its thread. `close` is to be called once, from another thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="jobserver-loop", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self.loop.close()  # or the interpreter complains of it, at its end, when it likes
            raise

    def submit(self, work: Coroutine[Any, Any, Result]) -> "concurrent.futures.Future[Result]":
        """Start `work` on the loop, from any other thread, and return its future.

        Raises RuntimeError when the bridge is closed.
        """
        if self.loop.is_closed():
            work.close()
            raise RuntimeError("the bridge is closed")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def ask(self, work: Coroutine[Any, Any, Result], limit: float) -> Result:
        """Return what `work` comes to on the loop, within `limit` seconds. Raises `Unanswered`."""
        future = self.submit(work)
        try:
            return future.result(limit)
        except concurrent.futures.TimeoutError:
            future.cancel()
            # From Python 3.11 on that would be an OSError, and pass for a connection that was lost.
            raise Unanswered(limit) from None

    def close(self, timeout: float) -> bool:
        """Cancel what still runs, stop the loop and join its thread within `timeout` seconds.

        Returns whether the thread has ended.
        """
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
