"""Letting go of what Seamless keeps between jobs.

In a workflow, a process that has just used a buffer will probably use it again, and Seamless keeps
it. In a worker the next job is somebody else's, and what is kept only adds up. There are three
places: the strong cache, where temporary references fade but are taken away only by an eviction
run; the weak cache, which empties itself; and four small caches of the last values and buffers
used, which hold ten each however large they are. Beside them it notes the length of every buffer it
ever saw, and which were scratch, for as long as the process lives; the collector would look through
those notes after each job, and be slower from job to job. So do the lines of each job's code, for
tracebacks, and the texts that were found to be valid. And it notes the results of nested jobs:
where the buffers have been let go of, it would promise to the store what nobody has. Also which of
them are under way, for which the next job would wait for ever when their own has left them so.

The small caches are turned off in a worker, where nested transformations run in threads: two that
use one at the same moment damage its list, and one of them fails, or finds what is another's.

A function that a job defines refers to its namespace, and its namespace to the function, so that
reference counting alone never frees a job's inputs. The collector therefore runs after each job. It
leaves out what there was before `settle`, and looks only at what is young, as long as nothing of
the job can have grown old: a tenth of a millisecond instead of tens.
"""

import gc
import linecache
import sys
from typing import Any, Final

from seamless.caching import buffer_writer, eviction_cost
from seamless.caching.buffer_cache import BufferCache, get_buffer_cache
from seamless.checksum import cached_calculate_checksum, parse_buffer, serialize
from seamless_transformer.transformation_cache import get_transformation_cache

_RECENT: Final = (
    cached_calculate_checksum.calculate_checksum_cache,
    cached_calculate_checksum.checksum_cache,
    parse_buffer.parse_buffer_cache,
    serialize.serialize_cache,
)
_RESULTS: Final = (
    "_transformation_cache",
    "_rev_transformation_cache",
    "_transformation_dunder_cache",
    "_active_submissions",
)
_HAS_GENERATIONS: Final = sys.version_info < (3, 14)
"""From 3.14 on the collector works by increments, and the youngest generation tells nothing."""
_MOST_YOUNG: Final = 50
"""Jobs in a row after which only what is young is looked at: what one leaves, others may drop."""

_collections: list[int] = []
_young = 0


def settle() -> None:
    """Turn off the small caches, and exempt all that there is now from collection.

    The imported packages stay as they are.
    """
    for recent in _RECENT:
        recent.clear()
        recent.disable()
    gc.collect()
    gc.freeze()


def _collect() -> None:
    """Free what the last job has left in cycles.

    Its objects are old only if a collection of the middle generation, or a full one, has moved them
    there while it ran.
    """
    global _collections, _young
    _young += 1
    if not _HAS_GENERATIONS or _count_collections() != _collections or _young > _MOST_YOUNG:
        gc.collect()
        _young = 0
    # After a full collection too: the count of those since it is then never 0, to which a job that
    # freezes and thaws objects, and so makes them old, sets it.
    gc.collect(1)
    _collections = _count_collections()


def _count_collections() -> list[int]:
    # Not gc.get_freeze_count, which walks through all that was there before `settle`: milliseconds.
    counts = [generation["collections"] for generation in gc.get_stats()[1:]]
    return [*counts, gc.get_count()[2]]


def let_go() -> None:
    """Drop every buffer and value that is only kept in case it is wanted again.

    What a job holds by a normal reference stays, and so does a buffer that Seamless's background
    writer has still to send: that has a reference of its own.
    """
    _forget_failed_writes()
    cache = get_buffer_cache()
    with cache.lock:
        for entry in cache.strong_cache.values():
            if entry.tempref is not None and entry.normal_refs == 0:
                entry.tempref.clear()
        cache.run_eviction_once()
        for notes in _notes(cache):
            for checksum in [one for one in notes if one not in cache.strong_cache]:
                _drop(notes, checksum)
    linecache.clearcache()
    texts = getattr(parse_buffer, "text_validation_celltype_cache", None)
    if isinstance(texts, set):  # private, as all of these
        texts.clear()
    _forget_results()
    _collect()


def _forget_failed_writes() -> None:
    """Have Seamless's background writer let go of what it could not send, and will not try again.

    Private, hence the guards: without it those buffers stay until the worker has grown too much.
    """
    entries = getattr(buffer_writer, "_entries", None)
    lock = getattr(buffer_writer, "_lock", None)
    if isinstance(entries, dict) and lock is not None:
        with lock:
            for checksum in [one for one, entry in entries.items() if entry.future.done()]:
                del entries[checksum]


def _forget_results() -> None:
    """Have nested jobs look results up in the database.

    Private, hence the guards: without them a result that was never stored is promised to the store.
    """
    known = get_transformation_cache()
    for name in _RESULTS:
        results = getattr(known, name, None)
        if isinstance(results, dict):
            results.clear()


def _notes(cache: BufferCache) -> list[Any]:
    """Return what Seamless notes of buffers by their checksum.

    Private, hence the guards: without them a worker only grows, by some 300 bytes for each buffer.
    """
    costs = getattr(eviction_cost, "_cost_module", None)
    lengths = getattr(costs, "buffer_lengths", None)
    found = [
        getattr(cache, "_sizes", None),
        getattr(cache, "_scratch_refs", None),
        getattr(lengths, "_lengths", None),
    ]
    return [notes for notes in found if isinstance(notes, (dict, set))]


def _drop(notes: Any, checksum: Any) -> None:
    if isinstance(notes, dict):
        notes.pop(checksum, None)
    else:
        notes.discard(checksum)
