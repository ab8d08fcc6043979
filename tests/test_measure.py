"""What one job used: children, and memory that is not its own or not its own alone."""

import resource
import subprocess
import sys
import time
import unittest
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

from seamless_jobserver.processtree import ProcessId, kill_tree, read_memory  # noqa: E402
from seamless_jobserver.worker import memorypeak  # noqa: E402
from seamless_jobserver.worker.measure import Measurement, Meter  # noqa: E402
from seamless_jobserver.worker.memorypeak import MemoryPeak  # noqa: E402
from tests.stack import PATIENCE, ROOT, wait_until  # noqa: E402
from tests.test_processtree import FORKS, MEGABYTES  # noqa: E402

MEGABYTE = 2**20
BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def burn():
    """Use 0.3 s of a processor in a child; return what the kernel says that it used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-S", "-E", "-c", BURN], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Measured(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.meter = Meter()

    def cpu(self, measurement):
        runtime = measurement.finish()
        return runtime["cpu_user_seconds"] + runtime["cpu_system_seconds"]


class Counting(Measured):
    def test_each_that_began_has_an_index_of_its_own(self):
        meter = Meter()
        self.assertEqual(self.index(meter.start(lambda: 0)), 1)
        for expected in (2, 3):
            with meter.measure_thread() as inside:
                self.assertEqual(self.index(inside), expected)
        meter.start(lambda: 0).finish()
        meter.take_back()
        self.assertEqual(self.index(meter.start(lambda: 0)), 4)

    def index(self, measurement):
        return measurement.finish()["worker_execution_index"]


class Threads(Measured):
    def test_children_count_for_the_one_that_runs_alone(self):
        with self.meter.measure_thread() as measurement:
            used = burn() + burn()
            self.assertAlmostEqual(self.cpu(measurement), used, delta=0.1)
        with self.meter.measure_thread() as measurement:
            self.assertLess(self.cpu(measurement), 0.1)

    def test_children_that_end_while_several_run_count_for_none_of_them(self):
        with self.meter.measure_thread() as first:
            used = burn()
            with self.meter.measure_thread() as second:
                burn()
                self.assertLess(self.cpu(second), 0.1)
            used += burn()
        self.assertAlmostEqual(self.cpu(first), used, delta=0.1)


class BesideTheStore(Measured):
    def test_what_storing_the_result_before_costs_is_left_out(self):
        stored = iter((1.0, 1.5))
        measurement = Meter(lambda: next(stored)).start(lambda: 0)
        begun = time.process_time()
        while time.process_time() < begun + 0.7:
            pass
        self.assertAlmostEqual(self.cpu(measurement), 0.2, delta=0.1)

    def test_what_that_takes_more_than_the_job_is_taken_off_the_systems_time(self):
        for user, system, expected in (
            (0.5, 1.0, (0.5, 1.0)),
            (-0.3, 1.0, (0.0, 0.7)),
            (-3.0, 1.0, (0.0, 0.0)),
        ):
            with (
                self.subTest(user),
                mock.patch.object(
                    Measurement,
                    "_cpu_seconds",
                    side_effect=[(10.0, 10.0), (10.0 + user, 10.0 + system)],
                ),
            ):
                runtime = self.meter.start(lambda: 0).finish()
                used = runtime["cpu_user_seconds"], runtime["cpu_system_seconds"]
                self.assertEqual(used, expected)

    def test_so_is_waiting_for_it(self):
        with mock.patch("time.perf_counter", side_effect=[10.0, 11.0, 14.0, 14.5]):
            measurement = self.meter.start(lambda: 0)
            measurement.leave_out(lambda: None)
            self.assertEqual(measurement.finish()["wall_time_seconds"], 1.5)

    def test_a_job_that_is_handed_back_does_not_count(self):
        first = self.meter.start(lambda: 0).finish()["worker_execution_index"]
        self.meter.start(lambda: 0).finish()
        self.meter.take_back()
        again = self.meter.start(lambda: 0).finish()["worker_execution_index"]
        self.assertEqual(again, first + 1)


class Memory(Measured):
    def test_what_a_jobs_processes_share_counts_once(self):
        for name in ("three idle forks", "forks with memory of their own", "forks below a child"):
            code, expected = MEGABYTES[name]
            with self.subTest(name):
                measurement = self.meter.start(lambda: 0)
                memory = read_memory()
                process = memory.resident - memory.files
                program = [sys.executable, "-c", f"{FORKS}\n{code}\nsay()\npause()"]
                with subprocess.Popen(program, stdout=subprocess.PIPE) as child:
                    try:
                        child.stdout.readline()
                        peak = measurement.finish()["memory_peak_bytes"] - process
                    finally:
                        kill_tree(ProcessId.of(child.pid))
                self.assertAlmostEqual(peak / MEGABYTE, expected, delta=40)

    def test_what_a_job_shares_with_its_forks_counts_once(self):
        # In a process of its own, as this one has threads that a fork would not survive.
        for more, expected in ((0, 200), (50, 350)):
            code = (
                "from seamless_jobserver.worker.memorypeak import MemoryPeak\n"
                "kept = b'k' * 100 * 2**20\n"
                "peak = MemoryPeak()\npeak.start(lambda: len(kept))\nbefore = peak.so_far()\n"
                f"block = b'x' * 200 * 2**20\nforks(3, {more})\nprint(peak.so_far() - before)\n"
                "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.killpg(0, 15)\n"
            )
            with self.subTest(more):
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", f"{FORKS}\n{code}"],
                    start_new_session=True,
                    capture_output=True,
                    timeout=PATIENCE,
                    cwd=ROOT,
                    check=True,
                )
                self.assertAlmostEqual(int(done.stdout) / MEGABYTE, expected, delta=25)

    def test_what_a_child_had_counts_though_nobody_has_looked_and_a_copy_of_its_parent_does_not(
        self,
    ):
        # In a process of its own, whose children have had nothing before.
        program = "b = b'x' * 200 * 2**20"
        for name, arguments, expected in (
            ("it has 200 MB", [sys.executable, "-S", "-E", "-c", program], 200),
            ("it was a copy of its parent for a moment", ["true"], 0),
        ):
            code = (
                "import subprocess\n"
                "from seamless_jobserver.worker.memorypeak import MemoryPeak\n"
                "kept = b'k' * 150 * 2**20\n"
                "peak = MemoryPeak()\npeak.start(lambda: len(kept))\npeak.stop()\n"
                f"subprocess.run({arguments!r}, check=True)\nprint(peak.so_far())\n"
            )
            with self.subTest(name):
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", code],
                    capture_output=True,
                    timeout=PATIENCE,
                    cwd=ROOT,
                    check=True,
                )
                self.assertAlmostEqual(int(done.stdout) / MEGABYTE, expected, delta=40)

    def test_want_of_files_at_that_moment_costs_no_job(self):
        kept = [100]
        measurement = self.meter.start(lambda: kept[0])
        kept[0] = 50
        want = OSError(24, "Too many open files")
        with mock.patch.object(memorypeak, "read_memory", side_effect=want):
            measurement.inputs_fetched()
            self.assertGreater(measurement.finish()["memory_peak_bytes"], 0)

    def test_looking_at_children_is_left_out_and_ends_with_the_job(self):
        def look(_peak):
            begun = time.thread_time()
            while time.thread_time() < begun + 0.02:
                pass

        with mock.patch.object(MemoryPeak, "_sample", look):
            meter = Meter()
            measurement = meter.start(lambda: 0)
            wait_until(lambda: sum(meter._memory.cpu_seconds) > 0.05, "it is looked at")
            measurement.finish()
        self.assertFalse(meter._memory._wanted.is_set())

    def test_what_earlier_jobs_left_does_not_count_for_as_long_as_it_is_there(self):
        # (what the job takes before it has driven out 200 MB, and after that, how often it is noted
        # that it has, its peak without what is its process's)
        for before, more, noted, expected in (
            (0, 300, 1, 500),
            (0, 50, 1, 250),
            (300, 50, 1, 500),
            (0, 300, 0, 500),
            (0, 300, 2, 500),
        ):
            with self.subTest(before=before, more=more, noted=noted):
                kept = {"earlier": b"x" * 200 * MEGABYTE}
                memory = read_memory()
                process = memory.resident - memory.files - 200 * MEGABYTE
                measurement = self.meter.start(lambda k=kept: sum(map(len, k.values())))
                inputs = b"y" * 200 * MEGABYTE
                transient = b"t" * before * MEGABYTE
                del transient
                kept.clear()
                if noted:
                    measurement.inputs_fetched()
                taken = b"z" * more * MEGABYTE
                del taken
                if noted > 1:  # by a nested job
                    measurement.inputs_fetched()
                del inputs
                peak = measurement.finish()["memory_peak_bytes"] - process
                self.assertAlmostEqual(peak / MEGABYTE, expected, delta=20)


if __name__ == "__main__":
    unittest.main()
