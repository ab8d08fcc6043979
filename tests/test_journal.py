"""What is remembered of jobs, and the files that they print into: names, bounds, counts."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import unittest
import zlib
from pathlib import Path
from unittest import mock

from seamless_jobserver.messages import CANCELED, Ending, Outcome, RunRequest
from seamless_jobserver.server import joboutput, journal
from seamless_jobserver.server.joboutput import JobOutput
from seamless_jobserver.server.jobs import Event, JobTable
from seamless_jobserver.server.journal import Journal
from seamless_jobserver.server.metrics import Histogram
from seamless_jobserver.worker.naming import name_of_code

NAMES = (
    ("python", "def power(a, b):\n    return a ** b\n", "power"),
    ("python", "async def fetch(a):\n    return a\n", "fetch"),
    ("python", "import numpy\n\ndef mean(a):\n    return numpy.mean(a)\n", "mean"),
    ("python", "def größe(a):\n    return a\n", "größe"),
    ("python", "def a(x):\n    return b(x)\n\ndef b(x):\n    return x\n", "def a(x):"),
    ("python", "lambda a, b: a + b", "lambda a, b: a + b"),
    ("python", "# what it does\nimport os\nresult =   os.getpid()\n", "result = os.getpid()"),
    (
        "bash",
        "#!/bin/bash\nset -e\n# counting\nwc -l   data.txt > RESULT\n",
        "wc -l data.txt > RESULT",
    ),
    ("bash", "echo \x1b[2J\n", "echo \N{REPLACEMENT CHARACTER}[2J"),
    (
        "c",
        "/* weigh */\n// it\nint transform(int a) { return a; }\n",
        "int transform(int a) { return a; }",
    ),
    ("python", "", ""),
    ("python", "\n# nothing\n", ""),
    ("bash", "x" * 500, "x" * 80),
)


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Names(unittest.TestCase):
    def test_a_job_is_called_by_its_function_or_its_first_telling_line(self):
        for language, code, name in NAMES:
            with self.subTest(code[:30]):
                self.assertEqual(name_of_code(code, language), name)


class Kept(unittest.TestCase):
    def setUp(self):
        self.time = 1000.0
        self.journal = Journal(lambda: self.time)
        self.table = JobTable()

    def receive(self, number, pins=0, code="c"):
        transformation = {
            "__language__": "python",
            "code": ["python", "transformer", code * 64],
            **{f"pin{pin}": ["plain", None, digest(number, pin)] for pin in range(pins)},
        }
        job, _ = self.table.join_or_add(RunRequest(f"{number:064x}", transformation))
        self.journal.received(job)
        return job

    def finish(self, job, ending=Ending.RESULT, event=Event.SUCCEED, **fields):
        outcome = Outcome(ending, **fields)
        self.table.apply(job, event, outcome)
        self.journal.ended(job, outcome)
        self.journal.write_up()

    def run_one(self, number, **fields):
        job = self.receive(number, **fields)
        self.table.apply(job, Event.START)
        self.journal.started(job, 1, None)
        self.finish(job)
        return job

    def test_the_oldest_jobs_are_forgotten_and_with_them_all_that_was_kept(self):
        with mock.patch.object(journal, "HISTORY", 10):
            for number in range(25):
                self.run_one(number)
        lines, more = self.journal.before(None, 100, ())
        self.assertFalse(more)
        self.assertEqual([json.loads(line)["seq"] for line in lines], list(range(25, 15, -1)))
        self.assertIsNone(self.journal.of(f"{14:064x}"))
        self.assertIsNotNone(self.journal.of(f"{15:064x}"))
        self.assertEqual(len(self.journal._newest), 10)
        self.assertEqual(len(self.journal._details), 10)
        kept = sum(len(ended.detail) for _, ended in self.journal._history.values())
        self.assertEqual(self.journal._detail_bytes, kept)

    def test_of_several_runs_that_are_under_way_the_newest_is_told(self):
        self.receive(1)
        newest = self.table.add_hosted(RunRequest(f"{1:064x}", {}), 2)
        self.journal.received(newest)
        self.assertIs(self.journal.of(newest.checksum).job, newest)

    def test_how_many_have_waited_for_a_job_at_most_is_told(self):
        job = self.receive(1)
        job.waiters = 3
        self.journal.joined(job)
        job.waiters = 1
        self.table.apply(job, Event.START)
        self.journal.started(job, 1, None)
        self.finish(job)
        self.assertEqual(json.loads(self.journal.since(0, 1)[0])["waiters"], 3)
        self.assertEqual(self.journal.totals["joined"], 1)

    def test_the_list_goes_on_where_it_was_left(self):
        for number in range(5):
            self.run_one(number)
        seen, more, before = [], True, None
        while more:
            lines, more = self.journal.before(before, 2, ())
            seen += [json.loads(line)["seq"] for line in lines]
            before = seen[-1]
        self.assertEqual(seen, [5, 4, 3, 2, 1])

    def test_of_a_long_message_the_end_is_kept(self):
        with mock.patch.object(journal, "_MESSAGE", 10):
            job = self.receive(1)
            self.finish(job, Ending.CANCELED, Event.CANCEL, message="the beginning and the end")
        detail = json.loads(zlib.decompress(self.journal.of(job.checksum).detail))
        self.assertEqual(detail["message"], "nd the end")

    def test_a_clock_that_is_set_back_makes_no_time_negative(self):
        job = self.receive(1)
        self.time -= 100
        self.table.apply(job, Event.START)
        self.journal.started(job, 1, None)
        self.time -= 100
        self.finish(job)
        self.assertEqual((self.journal.queue_times.sum, self.journal.run_times.sum), (0.0, 0.0))

    def test_a_transformation_that_ran_twice_is_known_until_its_last_run_is_forgotten(self):
        with mock.patch.object(journal, "HISTORY", 3):
            for number in (7, 1, 7, 2, 3):
                self.run_one(number)
            self.assertEqual(self.journal.of(f"{7:064x}").seq, 3)
            self.run_one(4)
        self.assertIsNone(self.journal.of(f"{7:064x}"))

    def test_details_are_bounded_by_bytes_and_the_newest_stay(self):
        with mock.patch.object(journal, "DETAILS", 100_000):
            for number in range(50):
                self.run_one(number, pins=100)
                self.assertLessEqual(self.journal._detail_bytes, 100_000)
        self.assertIsNone(self.journal.of(f"{0:064x}").detail)
        self.assertIn(b"pin99", zlib.decompress(self.journal.of(f"{49:064x}").detail))
        self.assertEqual(len(self.journal.since(0, 100)), 50, "their lines are all there")

    def test_whoever_looks_finds_what_has_ended_and_is_not_written_up_yet(self):
        looks = {
            "of": lambda checksum: self.journal.of(checksum).line,
            "since": lambda _: self.journal.since(0, 1)[0],
            "before": lambda _: self.journal.before(None, 1, ())[0][0],
        }
        for name, look in looks.items():
            with self.subTest(name):
                self.setUp()
                job = self.receive(1)
                job.waiters = 3
                self.table.apply(job, Event.START)
                self.journal.started(job, 1, None)
                outcome = Outcome(Ending.RESULT)
                self.table.apply(job, Event.SUCCEED, outcome)
                self.journal.ended(job, outcome)
                job.waiters, self.time = 0, 2000.0  # its callers have their answers, and go
                told = json.loads(look(job.checksum))
                self.assertEqual((told["waiters"], told["ended"], told["seq"]), (3, 1000.0, 1))

    def test_only_what_ended_later_is_told_and_never_more_than_asked_for(self):
        for number in range(5):
            self.run_one(number)
        for seq, most, expected in (
            (0, 100, [1, 2, 3, 4, 5]),
            (3, 100, [4, 5]),
            (0, 2, [4, 5]),
            (5, 100, []),
            (99, 100, []),
        ):
            with self.subTest((seq, most)):
                lines = self.journal.since(seq, most)
                self.assertEqual([json.loads(line)["seq"] for line in lines], expected)

    def test_a_list_of_failures_holds_nothing_else(self):
        self.run_one(1)
        for number, ending, event in (
            (2, Ending.FAILED, Event.FAIL),
            (3, Ending.CRASHED, Event.CRASH),
        ):
            job = self.receive(number)
            self.table.apply(job, Event.START)
            self.journal.started(job, 1, None)
            self.finish(job, ending, event, message="no")
        lines, _ = self.journal.before(None, 10, ["failed"])
        self.assertEqual([json.loads(line)["state"] for line in lines], ["failed"])
        self.assertEqual(self.journal.totals["crashed"], 1)

    def test_the_line_of_a_failure_that_says_most_is_told(self):
        for ending, event, message, problem in (
            (Ending.FAILED, Event.FAIL, "Traceback:\n  x\nValueError: no\n\n", "ValueError: no"),
            (
                Ending.CRASHED,
                Event.CRASH,
                "It ended by signal 9.\nLook there.\n",
                "It ended by signal 9.",
            ),
            (Ending.FAILED, Event.FAIL, "", None),
            (Ending.FAILED, Event.FAIL, "x" * 1000, "x" * 300),
            (Ending.CANCELED, Event.CANCEL, CANCELED.message, None),
        ):
            with self.subTest(message[:20]):
                job = self.receive(1)
                self.table.apply(job, Event.START)
                self.journal.started(job, 1, None)
                self.finish(job, ending, event, message=message)
                self.assertEqual(json.loads(self.journal.since(0, 1)[0])["problem"], problem)

    def test_a_queued_job_has_a_name_when_its_code_has_run_before(self):
        first = self.receive(1)
        self.assertEqual(self.journal.of(first.checksum).name, "")
        self.journal.named(first, "power")
        self.assertEqual(self.journal.of(first.checksum).name, "power")
        self.assertEqual(self.journal.of(self.receive(2).checksum).name, "power")
        self.assertEqual(self.journal.of(self.receive(3, code="d").checksum).name, "")

    def test_one_that_was_queued_before_that_can_be_named_then(self):
        first, second = self.receive(1), self.receive(2)
        self.assertEqual(self.journal.known_name(second), "")
        self.journal.named(first, "power")
        self.assertEqual(self.journal.known_name(second), "power")
        self.journal.named(first, "")  # of another attempt, which has not come as far
        self.assertEqual(self.journal.known_name(second), "power")

    def test_the_names_that_were_used_last_are_kept(self):
        with mock.patch.object(journal, "_NAMES", 2):
            for number, code in enumerate("cdce"):
                self.journal.named(self.receive(number, code=code), f"name of {code}")
        known = [self.journal.known_name(self.receive(9 + n, code=c)) for n, c in enumerate("cde")]
        self.assertEqual(known, ["name of c", "", "name of e"])

    def test_a_language_is_told_in_few_characters_whatever_it_is_said_to_be(self):
        for language, told in (("x" * 1000, "x" * 79 + "…"), (None, "python"), (3, "3")):
            job = self.receive(1)
            job.request.transformation["__language__"] = language
            self.finish(job, Ending.CANCELED, Event.CANCEL)
            self.assertEqual(json.loads(self.journal.since(0, 1)[0])["language"], told)

    def test_the_course_begins_anew_when_the_clock_is_set_back(self):
        self.finish(self.receive(1), Ending.CANCELED, Event.CANCEL)
        self.time -= 3600
        self.finish(self.receive(2), Ending.CANCELED, Event.CANCEL)
        course = self.journal.course()
        self.assertEqual(course["ended"][-2:], [0, 1])
        self.assertEqual(course["start"] + 179 * journal.STEP, int(self.time) // 10 * 10)

    def test_a_clock_that_is_corrected_by_a_second_costs_no_course(self):
        self.finish(self.receive(1), Ending.CANCELED, Event.CANCEL)
        self.time -= 1
        self.finish(self.receive(2), Ending.CANCELED, Event.CANCEL)
        self.assertEqual(self.journal.course()["ended"][-2:], [0, 2])

    def test_a_clock_that_is_set_far_ahead_costs_no_time(self):
        self.receive(1)
        self.time += 10_000 * journal.STEP
        with mock.patch.object(journal, "_Step", wraps=journal._Step) as made:
            self.journal.named(self.receive(2), "power")
        self.assertLess(made.call_count, 200)

    def test_the_course_tells_how_many_have_failed_and_how_many_have_waited_at_most(self):
        waited = [self.receive(number) for number in range(3)]
        for job, (ending, event) in zip(
            waited[:2], ((Ending.LOST, Event.LOSE), (Ending.CANCELED, Event.CANCEL)), strict=True
        ):
            self.finish(job, ending, event)
        course = self.journal.course()
        last = {name: course[name][-1] for name in ("ended", "failed", "waiting")}
        self.assertEqual(last, {"ended": 2, "failed": 1, "waiting": 3})

    def test_the_course_has_the_quiet_steps_too_and_a_queue_stays_as_long_as_it_is(self):
        waiting = self.receive(1)
        self.time += 5 * journal.STEP
        course = self.journal.course()
        self.assertEqual(course["waiting"][-6:], [1, 1, 1, 1, 1, 1])
        self.assertEqual(len(course["ended"]), 180)
        self.table.apply(waiting, Event.CANCEL, CANCELED)
        self.journal.ended(waiting, CANCELED)
        self.time += 10 * 3600
        course = self.journal.course()
        self.assertEqual(course["ended"] + course["waiting"], 360 * [0])
        self.assertEqual(course["start"] + 179 * journal.STEP, int(self.time) // 10 * 10)

    def test_a_job_that_goes_back_to_the_queue_waits_again(self):
        job = self.receive(1)
        self.table.apply(job, Event.START)
        self.journal.started(job, 1, "output")
        self.assertEqual(self.journal.waiting, [])
        self.table.apply(job, Event.REQUEUE)
        self.journal.requeued(job)
        (entry,) = self.journal.waiting
        self.assertEqual((entry.job, entry.output), (job, None))
        self.assertEqual(self.journal.course()["waiting"][-1], 1)
        self.assertEqual(self.journal.jobs_of_slot[1], 0)
        self.table.apply(job, Event.START)
        self.journal.started(job, 2, "output")
        self.assertEqual((self.journal.jobs_of_slot[1], self.journal.jobs_of_slot[2]), (0, 1))
        self.assertEqual(sum(self.journal.queue_times.counts), 1, "its first wait, and no other")

    def test_a_hosted_job_tells_which_job_it_is_inside_of(self):
        outer = self.receive(1)
        self.table.apply(outer, Event.START)
        self.journal.started(outer, 2, "output")
        inner = self.table.add_hosted(RunRequest(f"{2:064x}", {}), 2)
        self.journal.received(inner)
        self.table.apply(inner, Event.START)
        self.journal.started(inner, 2, None)
        self.assertIs(self.journal.in_slot(2).job, outer)
        self.finish(inner)
        (line,) = self.journal.since(0, 1)
        self.assertEqual(json.loads(line)["within"], outer.checksum)
        self.assertEqual(json.loads(line)["waiters"], 1)


class Output(unittest.TestCase):
    def setUp(self):
        self.output = JobOutput()
        self.addCleanup(self.output.close)
        for name, value in (("KEPT", 8192), ("TOTAL", 20_000), ("_WHILE_RUNNING", 65_536)):
            patch = mock.patch.object(joboutput, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def write(self, content):
        path = self.output.new_path()
        Path(path).write_bytes(content)
        return path

    def files(self):
        return sorted(int(path.name) for path in Path(self.output.directory).iterdir())

    def test_no_worker_gets_a_directory_in_one_that_somebody_else_has_made(self):
        directory = Path(self.output.new_directory())
        self.assertEqual(directory.parent, Path(self.output.directory))
        self.assertFalse(directory.exists())
        shutil.rmtree(self.output.directory)
        with self.assertRaises(FileNotFoundError):
            self.output.new_directory()
        os.mkdir(self.output.directory)
        with self.assertRaisesRegex(FileExistsError, "made again by somebody else"):
            self.output.new_directory()

    def test_what_clears_away_old_files_finds_the_directory_locked(self):
        other = os.open(self.output.directory, os.O_RDONLY)
        self.addCleanup(os.close, other)
        with self.assertRaises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.output.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_a_file_system_that_cannot_lock_is_good_enough(self):
        with mock.patch.object(joboutput.fcntl, "flock", side_effect=OSError(95, "not supported")):
            JobOutput().close()

    def test_looking_after_what_a_job_prints_costs_no_descriptor(self):
        path = self.write(b"x" * 100_000)
        before = len(os.listdir("/proc/self/fd"))
        self.output.limit(path)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_what_cannot_be_opened_for_want_of_anything_is_not_said_to_be_nothing(self):
        path = self.write(b"x")
        want = OSError(24, "Too many open files")
        for look in (self.output.open, self.output.end_of, self.output.extent):
            with (
                self.subTest(look.__name__),
                mock.patch.object(joboutput.os, "open", side_effect=want),
                self.assertRaisesRegex(OSError, "Too many open files"),
            ):
                look(path)

    def test_after_the_end_nothing_is_there(self):
        path = self.write(b"x")
        self.output.close()
        self.assertEqual(self.output.piece(path, None, 10), (b"", 0, 0))

    def test_what_is_printed_while_it_is_read_is_left_for_the_next_time(self):
        path = self.write(b"0123456789")
        fstat = os.fstat

        def print_more(descriptor):
            facts = fstat(descriptor)
            with open(path, "ab") as job:
                job.write(b"more")
            return facts

        with mock.patch.object(joboutput.os, "fstat", print_more):
            self.assertEqual(self.output.piece(path, 8, 100), (b"89", 8, 10))
            self.assertEqual(self.output.read(path, 3), (b"ore", 11))

    def test_who_reads_as_it_is_cut_down_finds_bytes_and_their_number_that_go_together(self):
        path = self.write(bytes(range(250)) * 80)
        replace, found = os.replace, []
        reading = threading.Thread(
            target=lambda: found.append(self.output.piece(path, None, 4)), daemon=True
        )

        def replace_and_let_others_read(*names):
            replace(*names)
            reading.start()
            reading.join(0.2)  # it cannot end before the rest is noted

        with mock.patch.object(joboutput.os, "replace", replace_and_let_others_read):
            self.output.keep(path)
        reading.join(20)
        self.assertEqual(found, [(b"\xf6\xf7\xf8\xf9", 19_996, 20_000)])

    def test_a_pipe_in_the_place_of_what_a_job_printed_is_not_waited_for(self):
        path = self.output.new_path()
        os.mkfifo(path)
        over = threading.Event()

        def look():
            for one in (self.output.limit, self.output.end_of, self.output.extent):
                with contextlib.suppress(OSError):
                    one(path)
            self.output.keep(path)
            over.set()

        threading.Thread(target=look, daemon=True).start()
        self.assertTrue(over.wait(20))
        self.assertEqual(self.files(), [])

    def test_a_link_beside_what_a_job_printed_is_not_written_through(self):
        path = self.write(b"x" * 10_000)
        secret = Path(self.output.directory) / "99"
        secret.write_bytes(b"s")
        os.symlink(secret, f"{path}.end")
        with self.assertLogs("seamless_jobserver.server.joboutput", "WARNING"):
            self.output.keep(path)
        self.assertEqual(secret.read_bytes(), b"s")

    def test_an_empty_file_is_not_kept_and_one_that_is_not_there_is_no_fault(self):
        self.assertEqual(self.output.keep(self.write(b"")), 0)
        self.assertEqual(self.output.keep(self.output.new_path()), 0)
        self.output.discard(self.output.new_path())
        self.output.limit(self.output.new_path())
        self.assertEqual(self.files(), [])

    def test_of_much_output_the_end_stays(self):
        path = self.write(bytes(range(256)) * 40)
        self.assertEqual(self.output.keep(path), 10_240)
        self.assertEqual(Path(path).read_bytes(), bytes(range(256)) * 32)
        self.assertEqual(self.output.extent(path), (2048, 10_240))
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_what_cannot_be_cut_down_is_not_kept_and_its_size_known(self):
        path = self.write(b"x" * 10_000)
        full = OSError(28, "No space left on device")
        with (
            mock.patch.object(joboutput.os, "replace", side_effect=full),
            self.assertLogs("seamless_jobserver.server.joboutput", "WARNING"),
        ):
            self.assertEqual(self.output.keep(path), 10_000)
        self.assertEqual(self.files(), [])
        self.assertEqual(self.output.extent(path), (10_000, 10_000))
        self.assertEqual((self.output._kept, self.output._size), ({}, 0))

    def test_later_files_push_out_the_oldest(self):
        for _ in range(4):
            self.output.keep(self.write(b"x" * 8000))
        self.assertEqual(self.files(), [3, 4])
        # Of a long one no more counts than what is kept of it.
        self.output.keep(self.write(b"x" * 100_000))
        self.assertEqual(self.files(), [4, 5])
        self.assertEqual(self.output.read(f"{self.output.directory}/1", 10), (b"", 0))
        self.assertIsNone(self.output.open(f"{self.output.directory}/1"))

    def test_of_what_was_pushed_out_the_size_is_still_known(self):
        path = self.write(b"x" * 10_000)
        self.output.keep(path)
        self.assertEqual(self.output.extent(path), (10_000 - 8192, 10_000))
        for _ in range(3):
            self.output.keep(self.write(b"x" * 8000))
        self.assertEqual(self.output.extent(path), (10_000, 10_000))
        self.assertEqual(self.output.piece(path, 0, 100), (b"", 10_000, 10_000))
        self.assertEqual(self.output._cut, {})

    def test_no_more_than_so_many_files_are_kept_and_so_many_sizes_remembered(self):
        with mock.patch.multiple(joboutput, MOST=3, _REMEMBERED=2):
            paths = [self.write(b"x") for _ in range(7)]
            for path in paths:
                self.output.keep(path)
        self.assertEqual(self.files(), [5, 6, 7])
        sizes = [self.output.extent(path)[1] for path in paths]
        self.assertEqual(sizes, [0, 0, 1, 1, 1, 1, 1])

    def test_output_is_read_on_from_where_the_reader_was(self):
        path = self.write(b"0123456789")
        for start, most, expected in (
            (0, 100, (b"0123456789", 0, 10)),
            (7, 100, (b"789", 7, 10)),
            (2, 4, (b"6789", 6, 10)),
            (10, 100, (b"", 10, 10)),
            (99, 100, (b"", 10, 10)),
            (None, 4, (b"6789", 6, 10)),
        ):
            with self.subTest((start, most)):
                self.assertEqual(self.output.piece(path, start, most), expected)
        path = self.write(bytes(range(200)) * 100)
        self.output.keep(path)
        self.assertEqual(self.output.piece(path, 19_998, 100), (b"\xc6\xc7", 19_998, 20_000))
        self.assertEqual(self.output.piece(path, 5, 9000).start, 20_000 - 8192)

    def test_a_job_that_prints_without_end_loses_the_beginning_and_prints_on(self):
        path = self.output.new_path()
        with open(path, "ab", buffering=0) as job:
            job.write(b"a" * 1_000_000)
            self.output.limit(path)
            self.assertLess(os.stat(path).st_blocks * 512, 65_536, "its blocks are given back")
            job.write(b"the end")
        content, start = self.output.read(path, 4096)
        self.assertEqual(start, 1_000_007 - 4096)
        self.assertEqual(content, b"a" * 4089 + b"the end")

    def test_the_end_that_goes_with_a_failure_says_how_much_is_left_out(self):
        path = self.write("ä".encode() * 200_000)
        text = self.output.end_of(path)
        self.assertTrue(text.startswith("[… 137856 bytes left out …]\n"))
        self.assertEqual(self.output.end_of(self.write(b"\xff!")), "\N{REPLACEMENT CHARACTER}!")

    def test_a_link_in_the_place_of_what_a_job_printed_is_not_followed(self):
        secret = Path(self.output.directory) / "secret"
        secret.write_bytes(b"s" * 100_000)
        path = self.output.new_path()
        Path(path).symlink_to(secret)
        self.output.limit(path)
        self.assertIsNone(self.output.open(path))
        self.assertEqual(self.output.read(path, 4096), (b"", 0))
        self.assertEqual(self.output.end_of(path), "")
        self.output.keep(path)
        self.assertEqual(secret.read_bytes(), b"s" * 100_000)

    def test_a_directory_in_the_place_of_ours_is_not_read(self):
        path = self.write(b"ours")
        moved = Path(f"{self.output.directory}-moved")
        os.rename(self.output.directory, moved)
        self.addCleanup(moved.rename, self.output.directory)
        self.assertEqual(self.output.read(path, 10), (b"ours", 0))


class Histograms(unittest.TestCase):
    def test_an_observation_on_a_bound_belongs_below_it(self):
        histogram = Histogram()
        for seconds in (0.0, 0.01, 0.0101, 1e9):
            histogram.observe(seconds)
        self.assertEqual(histogram.counts[:2], [2, 1])
        self.assertEqual(histogram.counts[-1], 1)
