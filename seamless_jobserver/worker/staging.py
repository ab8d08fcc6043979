"""A job's buffers: in from the read folder or the hashserver, out to the hashserver, confirmed.

Two lanes, "jobserver-staging" for what comes in, and for what else is asked of store and database,
and "jobserver-storing" for what goes out, keep their connections open from job to job.
(`Checksum.resolve` makes a new loop and a new connection each time.) They are two, so that what
storing a result costs can be told from what the next job does meanwhile. The thread that runs the
jobs hands them coroutines and waits:

- *In* (`fetching`): all buffers that a job needs are fetched together, and a list of them is
  returned. Seamless keeps fetched buffers in a weak cache: they are found there for as long as the
  list is held, and their memory is gone when it is dropped. The store may be busy with the result
  of the job before meanwhile; if that takes long, the inputs are given up, with the job.
- *Out* (`storing`): results, until the store has confirmed them. What lies in the store's own
  folder, where that can be seen from here, is stored.
"""

import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Final

import seamless
from seamless.caching.buffer_cache import get_buffer_cache

from seamless_jobserver.messages import Traffic
from seamless_jobserver.worker.confirmations import PATIENCE, StoreBusy
from seamless_jobserver.worker.fetching import fetch_all
from seamless_jobserver.worker.lane import CutOff, Lane, Result, Transfer
from seamless_jobserver.worker.nearby import Nearby
from seamless_jobserver.worker.pins import Need, leaves
from seamless_jobserver.worker.readfolders import ReadFolders
from seamless_jobserver.worker.storing import store_all
from seamless_jobserver.worker.unserved import StoreUnavailable

_LOOKED_FOR: Final = 16 * 2**20
"""Bytes up to which a buffer is looked for in the store's folder: finding one means reading it."""


class Staging:
    """Moves the buffers of the worker's jobs. Make one in each worker process."""

    def __init__(self, store_timeout: float, cache_size: int, folder: str | None = None) -> None:
        """`store_timeout` is for how many seconds a result is offered to a store that is away.

        `cache_size` is in bytes: see `InputCache`. `folder` is where the store keeps its buffers,
        if it is known: see `store_folder`.
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
        under_way = self._inward.begin(fetch_all(wanted, timeout))
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
        under_way = self._outward.begin(store_all(wanted, limit))

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


def held_leaves(structure: Any) -> list[seamless.Buffer]:
    """Return the buffers that a deep structure names and that this process holds.

    Those that it does not hold were in the store before the job.
    """
    cache = get_buffer_cache()
    held = (cache.get(leaf) for leaf in _checksums(set(leaves(structure))))
    return [buffer for buffer in held if buffer is not None]


def _checksums(leaves: set[str]) -> Iterator[seamless.Checksum]:
    for leaf in leaves:
        # A string of the job's own that only looks like one is left as it is, as Seamless does.
        with suppress(ValueError):
            yield seamless.Checksum(leaf)
