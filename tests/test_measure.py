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
from seamless_jobserver.worker.measure import Meter  # noqa: E402
from tests.stack import PATIENCE, ROOT  # noqa: E402
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

    def test_what_earlier_jobs_left_does_not_count_for_as_long_as_it_is_there(self):
        # (what the job takes after it has driven out 200 MB, its peak without what is its process's)
        for more, expected in ((300, 500), (50, 250)):
            with self.subTest(more):
                kept = {"earlier": b"x" * 200 * MEGABYTE}
                memory = read_memory()
                process = memory.resident - memory.files - 200 * MEGABYTE
                measurement = self.meter.start(lambda k=kept: sum(map(len, k.values())))
                inputs = b"y" * 200 * MEGABYTE
                kept.clear()
                measurement.inputs_fetched()
                taken = b"z" * more * MEGABYTE
                del inputs, taken
                peak = measurement.finish()["memory_peak_bytes"] - process
                self.assertAlmostEqual(peak / MEGABYTE, expected, delta=20)


if __name__ == "__main__":
    unittest.main()
