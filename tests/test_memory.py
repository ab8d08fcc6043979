"""What a worker lets go of after a job, so that the next thousand cost as much as the first."""

import gc
import hashlib
import linecache
import sys
import unittest
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402
from seamless.caching import buffer_writer, eviction_cost  # noqa: E402
from seamless.caching.buffer_cache import get_buffer_cache  # noqa: E402
from seamless.checksum import parse_buffer  # noqa: E402
from seamless_transformer.cached_compile import cached_compile  # noqa: E402
from seamless_transformer.transformation_cache import get_transformation_cache  # noqa: E402

from seamless_jobserver.worker import memory  # noqa: E402
from seamless_jobserver.worker.memory import let_go, settle  # noqa: E402


def use(number):
    buffer = seamless.Buffer(b"content %d" % number)
    buffer.get_checksum()
    buffer.tempref(scratch=True)
    return buffer


class Writing(unittest.TestCase):
    def test_what_could_not_be_sent_in_the_background_is_let_go_of(self):
        sent, failed, waiting = (seamless.Buffer(b"to send %d" % number) for number in range(3))
        for buffer in (sent, failed, waiting):
            entry = buffer_writer._QueueEntry(buffer.get_checksum(), buffer, Future())
            buffer_writer._entries[buffer.get_checksum()] = entry
            self.addCleanup(buffer_writer._entries.pop, buffer.get_checksum(), None)
        buffer_writer._entries[sent.get_checksum()].future.set_result(True)
        buffer_writer._entries[failed.get_checksum()].future.set_exception(OSError())
        let_go()
        self.assertEqual(list(buffer_writer._entries), [waiting.get_checksum()])


class Threads(unittest.TestCase):
    def test_what_several_use_at_the_same_time_is_right(self):
        def work(thread):
            for number in range(500):
                value = [thread, number]
                buffer = seamless.Buffer(value, "plain")
                expected = hashlib.sha256(buffer.content).hexdigest()
                self.assertEqual(buffer.get_checksum().hex(), expected)
                self.assertEqual(seamless.Buffer(buffer.content).get_value("plain"), value)

        settle()
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))


class LettingGo(unittest.TestCase):
    def setUp(self):
        settle()
        let_go()

    def test_what_was_there_before_the_jobs_is_not_looked_through_after_each(self):
        self.addCleanup(gc.unfreeze)
        self.assertGreater(gc.get_freeze_count(), 10 * len(gc.get_objects()))

    def test_buffers_kept_in_case_they_are_wanted_are_gone(self):
        checksum = use(1).get_checksum()
        self.assertIsNotNone(get_buffer_cache().get(checksum))
        let_go()
        self.assertIsNone(get_buffer_cache().get(checksum))

    def test_a_buffer_with_a_reference_stays(self):
        buffer = use(2)
        checksum = buffer.get_checksum()
        get_buffer_cache().incref(checksum, buffer=buffer, scratch=True)
        del buffer
        let_go()
        self.assertEqual(get_buffer_cache().get(checksum).content, b"content 2")
        self.assertIn(checksum, get_buffer_cache()._sizes)
        get_buffer_cache().decref(checksum)

    def test_results_of_nested_jobs_are_looked_up_in_the_database_again(self):
        checksum = use(3).get_checksum()
        known = get_transformation_cache()
        known._register_transformation_result(checksum, checksum)
        self.assertIn(checksum, known._transformation_cache)
        let_go()
        for name in memory._RESULTS:
            self.assertEqual(getattr(known, name), {})

    def test_what_seamless_notes_of_buffers_does_not_add_up(self):
        def noted():
            cache = get_buffer_cache()
            lengths = eviction_cost._cost_module.buffer_lengths._lengths
            return [len(cache._sizes), len(cache._scratch_refs), len(lengths)]

        before = noted()
        for number in range(100):
            use(number)
        self.assertNotEqual(noted(), before)
        let_go()
        self.assertEqual(noted(), before)

    def test_the_code_of_jobs_and_texts_that_were_valid_do_not_add_up(self):
        for number in range(100):
            cached_compile("a = 1", f"a job's code {number}")
            buffer = seamless.Buffer(b"a text %d" % number)
            parse_buffer.validate_text_celltype("a text", buffer.get_checksum(), "text")
        let_go()
        self.assertEqual(len(linecache.cache), 0)
        self.assertEqual(len(parse_buffer.text_validation_celltype_cache), 0)

    def test_what_a_job_leaves_in_cycles_is_gone_however_old_it_has_become(self):
        class Cycle:
            pass

        # What happens while the job runs, on top of what happened before it.
        for name, during in (
            ("nothing", lambda: None),
            ("a young collection", lambda: gc.collect(0)),
            ("a middle collection", lambda: gc.collect(1)),
            ("a full collection", gc.collect),
            ("both", lambda: (gc.collect(), gc.collect(1))),
            ("none at all", gc.disable),
            ("it is frozen and thawed", lambda: (gc.freeze(), gc.unfreeze())),
        ):
            for before in range(3):
                settle()
                self.addCleanup(gc.unfreeze)
                with self.subTest(name, before=before):
                    for _ in range(before):
                        let_go()
                    cycle = Cycle()
                    cycle.itself = cycle
                    during()
                    gone = weakref.ref(cycle)
                    del cycle
                    let_go()
                    self.assertIsNone(gone())
                gc.enable()

    def test_what_a_later_job_lets_go_of_is_gone_after_some_jobs_more(self):
        class Cycle:
            pass

        kept = [Cycle()]
        kept[0].itself = kept[0]
        gone = weakref.ref(kept[0])
        for _ in range(3):
            let_go()
        kept.clear()
        for _ in range(memory._MOST_YOUNG + 1):
            let_go()
        self.assertIsNone(gone())
