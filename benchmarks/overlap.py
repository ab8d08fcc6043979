"""What it brings to overlap the jobs of one worker: ``python benchmarks/overlap.py``.

First, what is built: a jobserver as it is, which makes the next job ready while the store takes a
small result, and one that does not, in turns: small jobs from 8 connections, one worker each.

Then, what more there could be. No server: a loop as in `benchmarks.floor`, but with the jobserver's
own staging, runs jobs in four ways that take turns, in one process beside a real hashserver. So
each ratio is the most that a jobserver could gain, before what it would take to tell two jobs of
one process apart:

- *one by one*: fetch, run, store, and only then the next job;
- *fetch ahead*: the inputs of the next job are fetched while one runs and is stored;
- *run on*: the next job is fetched and run while the last result is being confirmed;
- *both*.
"""

import contextlib
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.stack import Store

WAYS = ("one by one", "fetch ahead", "run on", "both")
ROUNDS = 4
SERVER_ROUNDS = 13
CODE = """def f(data, tag, seconds):
    import time
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return data.content[:size] + str(tag).encode()
"""
# What it is -> seconds of computing, bytes of input, bytes of result, jobs in a row.
KINDS = {
    "small job": (0.0, 100, 100, 40),
    "0.1 s, 1 MB in": (0.1, 10**6, 100, 8),
    "0.1 s, 20 MB in": (0.1, 20 * 10**6, 100, 6),
    "0.1 s, 20 MB in and out": (0.1, 20 * 10**6, 20 * 10**6, 6),
    "20 MB in and out": (0.0, 20 * 10**6, 20 * 10**6, 6),
}


def main() -> None:
    """Print a table of ratios for both ways in which inputs can come."""
    from tests.stack import Store, temporary_directory

    with temporary_directory() as directory:
        store = Store(directory / "store")
        try:
            for way, folder in (("http", False), ("folder", True)):
                compare_servers(store, directory / way, way, read_folder=folder)
            for way, folder in (("http", False), ("folder", True)):
                parameters = json.dumps(store.parameters(read_folder=folder))
                argv = [sys.executable, __file__, "worker", str(store.buffers), parameters]
                print(
                    f"inputs by {way}: ms for a job one by one, and how many times faster",
                    flush=True,
                )
                subprocess.run(argv, check=True, timeout=3600)
        finally:
            store.stop()


def compare_servers(store: "Store", directory: Path, way: str, *, read_folder: bool) -> None:
    """Print the jobs a second without and with what is built, and their ratio."""
    from benchmarks.caller import burst, encode
    from benchmarks.recipes import Recipes
    from tests.constants import constants
    from tests.stack import Jobserver

    recipes = Recipes(store)
    directory.mkdir()
    # No result is small enough.
    without = constants(directory, {"worker.execution._SMALL": -1})
    rates: dict[str, list[float]] = {"without": [], "with": []}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, env in (("without", without), ("with", {})):
            parameters = store.parameters(read_folder=read_folder)
            servers[name] = Jobserver(directory / name, parameters, workers=1, env=env)
            stack.callback(servers[name].stop)
        for turn in range(SERVER_ROUNDS):
            for name in list(servers)[:: 1 if turn % 2 else -1]:
                requests = [encode(job) for job in recipes.small(60)]
                answers = burst(servers[name].port, requests, 8)
                assert all(answer is not None and answer.good for answer in answers)
                last = max(answer.seconds for answer in answers if answer is not None)
                if turn:  # the first time they warm up
                    rates[name].append(len(requests) / last)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(
        f"small jobs from 8 connections, inputs by {way}: {medians['without']:.1f} a second "
        f"without, {medians['with']:.1f} with: {medians['with'] / medians['without']:.2f} times",
        flush=True,
    )


def work(buffers: str, parameters: dict[str, Any]) -> None:
    """Measure in this process, and print a row for each kind of job."""
    from seamless_jobserver.transport import import_seamless_remote

    import_seamless_remote()
    import seamless.config
    from seamless import Checksum
    from seamless.caching.buffer_cache import get_buffer_cache
    from seamless_transformer.run import run_transformation_dict

    from benchmarks.recipes import Recipes
    from seamless_jobserver.worker.memory import let_go
    from seamless_jobserver.worker.pins import needs
    from seamless_jobserver.worker.staging import Staging

    class Buffers:
        """As much of a store as `Recipes` asks for."""

        def __init__(self) -> None:
            self.buffers = Path(buffers)

    seamless.config.set_remote_clients(parameters, in_remote=True)
    recipes = Recipes(Buffers())  # type: ignore[arg-type]
    # No cache, and no look into the store's folder: what is measured is the way to the store.
    staging = Staging(600.0, 0)
    ahead = ThreadPoolExecutor(1)

    def fetch(job: dict[str, Any]) -> Any:
        return staging.fetch(needs(job["transformation_dict"], {}), 60.0, lambda: None)

    def run(job: dict[str, Any]) -> Callable[[], None]:
        transformation = job["transformation_dict"]
        result = run_transformation_dict(
            transformation, Checksum(job["tf_checksum"]), {}, scratch=True, require_value=True
        )
        return staging.begin_to_store([get_buffer_cache().get(Checksum(result))])

    def seconds(way: str, jobs: Sequence[dict[str, Any]]) -> float:
        begun = time.perf_counter()
        held = list(fetch(jobs[0]))
        confirm: Callable[[], None] | None = None
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            coming = (
                ahead.submit(fetch, following)
                if following and way in ("fetch ahead", "both")
                else None
            )
            begun_to_store = run(job)  # which finds its inputs in Seamless's weak cache
            held.clear()
            if confirm is not None:
                confirm()
            confirm = begun_to_store
            if way in ("one by one", "fetch ahead"):
                confirm()
                confirm = None
            let_go()
            if following:
                held.extend(coming.result() if coming else fetch(following))
        if confirm is not None:
            confirm()
        return (time.perf_counter() - begun) / len(jobs)

    for kind, (computing, size, out, count) in KINDS.items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        number = iter(range(10**9))
        for turn in range(ROUNDS):
            for way in WAYS[turn % 4 :] + WAYS[: turn % 4]:
                jobs = []
                for _ in range(count):
                    tag = f"{kind} {way} {turn} {next(number)}"
                    seed = hashlib.sha256(tag.encode()).digest()
                    data = seed * (size // len(seed) + 1)
                    code = CODE.replace("size", str(out))
                    jobs.append(
                        recipes.job(code, output="bytes", data=data, tag=tag, seconds=computing)
                    )
                times[way].append(seconds(way, jobs))
        medians = {way: statistics.median(found) for way, found in times.items()}
        ratios = ", ".join(
            f"{way} {medians[WAYS[0]] / medians[way]:.2f}" for way in WAYS if way != WAYS[0]
        )
        print(f"  {kind:25} {1000 * medians[WAYS[0]]:7.1f}   {ratios}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
