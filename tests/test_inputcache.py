"""The cache of input buffers: what it keeps, and what it lets go."""

import hashlib
import threading
import unittest
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402

from seamless_jobserver.worker import inputcache  # noqa: E402
from seamless_jobserver.worker.inputcache import MOST, InputCache  # noqa: E402

KILO = 1024


def make(text, size=KILO):
    content = text.encode().ljust(size, b".")
    return hashlib.sha256(content).hexdigest(), seamless.Buffer(content)


class Keeping(unittest.TestCase):
    def test_a_kept_buffer_is_found_by_its_checksum(self):
        cache = InputCache(100 * KILO)
        checksum, buffer = make("a")
        cache.keep(checksum, buffer)
        self.assertIs(cache.get(checksum).content, buffer.content)
        self.assertEqual(cache.get(checksum).get_checksum().hex(), checksum)
        self.assertIsNone(cache.get("0" * 64))

    def test_the_least_recently_used_goes_first(self):
        first, second, third = (make(name, size=40 * KILO) for name in "abc")
        for use in (
            lambda cache: self.assertIsNotNone(cache.get(first[0])),
            lambda cache: cache.keep(*first),
        ):
            # Room for two: what keeping them costs is less than half of their size.
            cache = InputCache(100 * KILO)
            cache.keep(*first)
            cache.keep(*second)
            use(cache)
            cache.keep(*third)
            self.assertIsNone(cache.get(second[0]))
            self.assertIsNotNone(cache.get(first[0]))
            self.assertIsNotNone(cache.get(third[0]))

    def test_the_size_never_passes_the_limit(self):
        limit = 50 * KILO
        cache = InputCache(limit)
        for number in range(300):
            cache.keep(*make(str(number), size=(number % 20 + 1) * KILO))
            self.assertLessEqual(cache.size, limit)
        self.assertGreater(cache.size, limit // 2)

    def test_keeping_the_same_buffer_again_costs_nothing(self):
        cache = InputCache(100 * KILO)
        entry = make("a")
        cache.keep(*entry)
        size = cache.size
        cache.keep(*entry)
        self.assertEqual(cache.size, size)

    def test_a_buffer_larger_than_the_cache_drives_nothing_out(self):
        cache = InputCache(10 * KILO)
        small, large = make("a"), make("b", size=20 * KILO)
        cache.keep(*small)
        cache.keep(*large)
        self.assertIsNone(cache.get(large[0]))
        self.assertIsNotNone(cache.get(small[0]))

    def test_a_limit_of_nothing_keeps_nothing(self):
        cache = InputCache(0)
        checksum, buffer = make("a")
        cache.keep(checksum, buffer)
        self.assertIsNone(cache.get(checksum))
        self.assertEqual(cache.size, 0)

    def test_a_forgotten_buffer_is_gone_and_its_bytes_are_free(self):
        cache = InputCache(100 * KILO)
        checksum, buffer = make("a")
        cache.keep(checksum, buffer)
        cache.forget(checksum)
        cache.forget(checksum)
        self.assertIsNone(cache.get(checksum))
        self.assertEqual(cache.size, 0)

    def test_what_was_kept_before_a_job_is_told_from_what_it_brings_and_drives_out(self):
        cache = InputCache(100 * KILO)
        first, second, third = (make(name, size=40 * KILO) for name in "abc")
        cache.keep(*first)
        self.assertEqual(cache.earlier, 0)
        cache.begin_job()
        kept = cache.size
        self.assertEqual(cache.earlier, kept)
        cache.keep(*second)
        self.assertIsNotNone(cache.get(first[0]))
        self.assertEqual(cache.earlier, kept)
        cache.forget(second[0])
        self.assertEqual(cache.earlier, kept)
        cache.keep(*second)
        cache.keep(*third)
        self.assertIsNone(cache.get(first[0]))
        self.assertEqual(cache.earlier, 0)
        cache.begin_job()
        self.assertEqual(cache.earlier, cache.size)

    def test_the_number_of_buffers_is_bounded_too(self):
        cache = InputCache(10**9)
        entries = [make(str(number), size=1) for number in range(MOST + 5)]
        for entry in entries:
            cache.keep(*entry)
        kept = [checksum for checksum, _ in entries if cache.get(checksum)]
        self.assertEqual(kept, [checksum for checksum, _ in entries[5:]])

    def test_the_large_ones_are_told_when_they_change(self):
        with mock.patch.object(inputcache, "LARGE", 10 * KILO):
            cache = InputCache(40 * KILO)
            self.assertEqual(cache.news_of_large(), [])
            cache.keep(*make("small"))
            self.assertIsNone(cache.news_of_large(), "nothing of it has changed")
            first, second = (make(name, size=15 * KILO) for name in "ab")
            cache.keep(*first)
            self.assertEqual(cache.news_of_large(), [first[0]])
            self.assertIsNone(cache.news_of_large())
            cache.keep(*second)
            cache.keep(*make("c", size=20 * KILO))
            self.assertNotIn(first[0], cache.news_of_large())
            cache.forget(second[0])
            self.assertNotIn(second[0], cache.news_of_large())

    def test_threads_do_not_disturb_its_account(self):
        cache = InputCache(20 * KILO)
        entries = [make(str(number)) for number in range(40)]

        def use(offset):
            for round_ in range(200):
                checksum, buffer = entries[(round_ * 7 + offset) % len(entries)]
                cache.keep(checksum, buffer)
                cache.get(checksum)
                if round_ % 5 == 0:
                    cache.forget(checksum)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for checksum, _ in entries:
            cache.forget(checksum)
        self.assertEqual(cache.size, 0)
