"""One run: a store, a database, and the workloads one after another."""

import os
import platform
import time
from pathlib import Path

from benchmarks.bench import Bench, Environments
from benchmarks.caller import BenchmarkFailed
from benchmarks.environments import packages
from benchmarks.figures import Results
from benchmarks.workloads import WORKLOADS
from tests.stack import Store, temporary_directory


def run(names: list[str], ours: Path, upstream: Path, *, quick: bool) -> Results:
    """Run the workloads of these names and return what they have measured."""
    with temporary_directory() as directory:
        # Upstream's slowest workloads do not use it for a long time.
        store = Store(directory, idle_timeout=7200)
        try:
            bench = Bench(directory, store, Environments(ours, upstream), quick=quick)
            bench.results.circumstances = _circumstances(ours, upstream, quick)
            for name in names:
                begun = time.monotonic()
                bench.say(f"{name} …")
                try:
                    WORKLOADS[name](bench)
                except (BenchmarkFailed, AssertionError, OSError) as failure:
                    bench.results.failures.append(f"{name}: {failure}")
                    bench.say(f"{name} failed: {failure}")
                bench.say(f"{name}: {time.monotonic() - begun:.0f} s")
            bench.results.circumstances["load at the end"] = os.getloadavg()
            return bench.results
        finally:
            store.stop()


def _circumstances(ours: Path, upstream: Path, quick: bool) -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "packages": {"ours": packages(ours), "upstream": packages(upstream)},
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": len(os.sched_getaffinity(0)),
        "load at the beginning": os.getloadavg(),
        "quick": quick,
    }
