"""A job's buffers on their way in and out: what is asked for, how long, and what an answer means."""

import asyncio
import contextlib
import hashlib
import inspect
import json
import unittest
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402
from seamless.caching.buffer_cache import get_buffer_cache  # noqa: E402
from seamless_remote import buffer_remote  # noqa: E402

from seamless_jobserver.messages import Traffic  # noqa: E402
from seamless_jobserver.transport import connection  # noqa: E402
from seamless_jobserver.transport.aiohttp_standin import Answer  # noqa: E402
from seamless_jobserver.worker import fetching, lane, staging, storing  # noqa: E402
from seamless_jobserver.worker.pins import Need  # noqa: E402
from seamless_jobserver.worker.unserved import (  # noqa: E402
    FIRST_PAUSE,
    InputMissing,
    StoreUnavailable,
)
from tests.stack import PATIENCE  # noqa: E402

A = "ab" * 32


def name(content):
    return hashlib.sha256(content).hexdigest()


def need(content, celltype="bytes", **fields):
    return Need("a", celltype, name(content), **fields)


def folder_of(*leaves):
    structure = {f"{number}.txt": name(leaf) for number, leaf in enumerate(leaves)}
    return json.dumps(structure, indent=2).encode() + b"\n"


class AskedFor(unittest.TestCase):
    """Inputs from a store that is the test's: `there` is what it has, `asked` what it was asked.

    They are contents, and no buffers: those would be at hand for as long as the test holds them.
    """

    def setUp(self):
        self.there = {}
        self.asked = []
        for name, function in (("get_buffer", self.get), ("get_buffer_lengths", self.lengths)):
            patch = mock.patch.object(buffer_remote, name, function)
            patch.start()
            self.addCleanup(patch.stop)

    async def get(self, checksum):
        self.asked.append(checksum.hex())
        content = self.there.get(checksum.hex())
        if isinstance(content, list):
            content = content.pop(0)
        if isinstance(content, Exception):
            raise content
        if content is None:
            return None
        if inspect.iscoroutinefunction(content):
            return await content()
        return seamless.Buffer(content)

    async def lengths(self, _checksums):
        return [None]

    def put(self, *contents):
        self.there.update({name(content): content for content in contents})

    def fetch(self, *needs, timeout=20.0):
        fetching_all = fetching.fetch_all(list(needs), timeout)
        return asyncio.run(asyncio.wait_for(fetching_all, PATIENCE))


class Inputs(AskedFor):
    def test_what_is_at_hand_is_not_asked_for(self):
        held = seamless.Buffer(b"made by the job itself")
        get_buffer_cache().incref(held.get_checksum(), buffer=held, scratch=True)
        self.addCleanup(get_buffer_cache().decref, held.get_checksum())
        for content in (held.content, b""):
            (found,) = self.fetch(need(content))
            self.assertEqual(found.content, content)
        self.assertEqual(self.asked, [])

    def test_the_leaves_of_a_folder_come_though_something_that_may_be_missing_is(self):
        folder = folder_of(b"leaf")
        self.put(b"leaf", folder)
        found = self.fetch(need(b"missing", optional=True), need(folder, "folder"))
        self.assertEqual([one.content for one in found], [folder, b"leaf"])

    def test_leaves_may_be_missing_where_their_folder_may(self):
        folder = folder_of(b"missing leaf")
        self.put(folder)
        (found,) = self.fetch(need(folder, "folder", optional=True))
        self.assertEqual(found.content, folder)
        with self.assertRaises(InputMissing):
            self.fetch(need(folder, "folder"))

    def test_one_that_comes_for_ever_is_given_up_at_last(self):
        async def trickle():
            while True:
                await asyncio.sleep(0.01)
                connection._note_progress()

        self.there[A] = trickle
        with (
            mock.patch.object(fetching, "_LONGEST_TRANSFER", 0.5),
            self.assertRaises(StoreUnavailable),
        ):
            self.fetch(Need("a", "bytes", A), timeout=0.2)

    def test_a_fault_that_came_before_the_store_hung_is_told(self):
        async def hang():
            await asyncio.get_running_loop().create_future()

        self.there[A] = [OSError("it breaks off"), hang]
        with self.assertRaisesRegex(StoreUnavailable, "it breaks off"):
            self.fetch(Need("a", "bytes", A), timeout=0.2)

    def test_it_is_asked_for_again_with_growing_pauses(self):
        self.there[A] = [*(OSError("away") for _ in range(12)), b"there"]
        with mock.patch.object(asyncio, "sleep", mock.AsyncMock()) as pause:
            self.fetch(Need("a", "bytes", A), timeout=600.0)
        pauses = [call.args[0] for call in pause.await_args_list]
        self.assertEqual(pauses, [min(0.02 * 2**number, 10.0) for number in range(12)])


class Staged(AskedFor):
    """The same, through the lanes of a worker."""

    def setUp(self):
        super().setUp()
        self.staging = staging.Staging(5.0, 10**6)

    def test_where_inputs_have_little_time_the_result_before_comes_first(self):
        for timeout, events in (
            (2 * PATIENCE, ["settled", A]),
            (2 * PATIENCE + 1.0, [A]),
        ):
            self.asked.clear()
            with (
                self.subTest(timeout),
                mock.patch.object(staging, "PATIENCE", PATIENCE),
                self.assertRaises(InputMissing),
            ):
                self.staging.fetch(
                    iter([Need("a", "bytes", A)]),
                    timeout,
                    lambda: None,
                    lambda: self.asked.append("settled"),
                )
            self.assertEqual(self.asked, events)

    def test_what_is_forgotten_is_not_kept(self):
        content = b"given to compiled code"
        self.put(content)
        fetched = self.staging.fetch(iter([need(content)]), 20.0, lambda: None)
        self.assertGreater(self.staging.kept, 0)
        self.staging.forget(fetched)
        self.assertEqual(self.staging.kept, 0)

    def test_what_was_moved_is_told_once(self):
        self.put(b"moved")
        for expected in (Traffic(staged=5, cache_misses=1), Traffic(cache_hits=1)):
            self.staging.fetch(iter([need(b"moved")]), 20.0, lambda: None)
            self.assertEqual(self.staging.take_traffic(), expected)
        self.assertEqual(self.staging.take_traffic(), Traffic())

    def test_a_transfer_that_something_has_cut_off_is_the_stores_failure(self):
        async def cut_off():
            raise asyncio.CancelledError

        with self.assertRaises(StoreUnavailable):
            self.staging.call(cut_off())

    def test_what_is_offered_for_a_moment_is_so_however_long_others_are(self):
        for patience, limit in ((None, 5.0), (1.0, 1.0), (60.0, 5.0)):
            with (
                self.subTest(patience),
                mock.patch.object(staging, "store_all", mock.AsyncMock()) as store_all,
            ):
                self.staging.begin_to_store([seamless.Buffer(b"result")], patience)()
                self.assertEqual(store_all.call_args.args[1], limit)

    def test_what_is_empty_is_not_sent(self):
        with mock.patch.object(staging, "store_all", mock.AsyncMock()) as store_all:
            self.staging.store([seamless.Buffer(b"")])
            store_all.assert_not_called()


class OnALane(unittest.TestCase):
    def test_the_first_failure_ends_the_rest_also_what_has_not_begun(self):
        begun = []

        async def wait(number):
            begun.append(number)
            if number == 5:
                raise ValueError("mine")
            await asyncio.get_running_loop().create_future()

        work = [wait(number) for number in range(3 * lane._AT_ONCE)]
        with self.assertRaisesRegex(ValueError, "mine"):
            asyncio.run(asyncio.wait_for(lane.together(work), PATIENCE))
        self.assertLess(len(begun), len(work))
        states = {inspect.getcoroutinestate(one) for one in work}
        self.assertEqual(states, {inspect.CORO_CLOSED})

    def test_who_may_not_give_way_goes_on(self):
        for want in (PermissionError(1, "Operation not permitted"), TypeError("of a job")):
            with mock.patch.object(lane, "_yield", side_effect=want):
                lane.give_way()


STORE, OTHER = "http://store/" + A, "http://other/" + A
# What servers have answered -> whether they have taken a buffer.
ANSWERS = (
    ([("PUT", STORE, 200)], True),
    ([("PUT", STORE, 201)], True),
    ([("PUT", STORE, 202)], False),
    ([("PUT", STORE, 500), ("PUT", STORE, 201)], True),
    ([("PUT", STORE, 201), ("PUT", STORE, 202)], False),
    ([("PUT", STORE, 202), ("PUT", OTHER, 200)], False),
    ([("GET", "http://store/healthcheck", 404), ("PUT", STORE, 201)], True),
)


class Offered(unittest.TestCase):
    def offer(self, *, size=10, left=600.0, answers=(), written=True):
        """Offer a buffer once; return what went wrong, and for how long it was offered."""
        limits = []

        @contextlib.contextmanager
        def observed():
            yield [Answer(*answer) for answer in answers]

        async def within(seconds, work):
            limits.append(seconds)
            return await work

        buffer = seamless.Buffer(bytes(size))
        with (
            mock.patch.object(storing, "observe_answers", observed),
            mock.patch.object(storing, "within", within),
            mock.patch.object(buffer_remote, "write_buffer", mock.AsyncMock(return_value=written)),
        ):
            problem = asyncio.run(storing._try_to_store(buffer.get_checksum(), buffer, left))
        return problem, *limits

    def test_it_is_stored_when_the_last_word_of_each_server_says_so(self):
        for answers, taken in ANSWERS:
            with self.subTest(answers):
                problem, _ = self.offer(answers=answers)
                self.assertEqual(problem is None, taken)

    def test_it_is_not_where_there_is_nobody_to_take_it(self):
        with self.assertRaisesRegex(StoreUnavailable, "no hashserver that takes results"):
            self.offer(written=False)

    def test_a_large_one_has_more_time_and_none_has_more_than_is_left(self):
        for size, left, limit in (
            (10 * 2**20, 600.0, 70.0),
            (10 * 2**20, 5.0, 5.0),
            (10, -1.0, FIRST_PAUSE),
        ):
            with self.subTest(size=size, left=left):
                self.assertEqual(self.offer(size=size, left=left), (None, limit))


if __name__ == "__main__":
    unittest.main()
