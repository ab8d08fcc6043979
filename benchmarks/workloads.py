"""The workloads, by the names that the command takes. Each adds its figures to the results."""

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any, Final

from benchmarks.bench import SERVERS, Bench, Workload, in_turns
from benchmarks.caller import BenchmarkFailed, Held, encode
from benchmarks.figures import Figure
from tests.stack import Jobserver, free_port

MB: Final = 1_000_000
_WAYS: Final = (("http", False), ("folder", True))
Job = dict[str, Any]


def one_by_one(bench: Bench) -> None:
    """Small Python jobs, one after another on one connection."""
    for way, folder in _WAYS:
        figure = bench.figure(f"one-by-one-{way}", f"a small job, {way}", "ms")
        with bench.all_subjects(folder=folder) as subjects:
            for name, subject in in_turns(subjects, bench.count(12, 3)):
                times = subject.one_by_one(bench.recipes.small(20))
                figure.add(name, [1000 * seconds for seconds in times])


def eight_connections(bench: Bench) -> None:
    """Small Python jobs from 8 connections, with one worker and with two."""
    for way, folder in _WAYS:
        figures = {
            workers: bench.figure(
                f"eight-{way}-{workers}",
                f"small jobs from 8 connections, {way}, {workers} worker{'s' * (workers > 1)}",
                "jobs/s",
                more_is_better=True,
            )
            for workers in (1, 2)
        }
        with (
            bench.all_subjects(folder=folder, workers=1) as one,
            bench.all_subjects(folder=folder, workers=2) as two,
        ):
            subjects = {
                (name, workers): subject
                for workers, named in ((1, one), (2, two))
                for name, subject in named.items()
            }
            for (name, workers), subject in in_turns(subjects, bench.count(9, 3)):
                jobs = bench.recipes.small(60)
                figures[workers].add(name, [len(jobs) / max(subject.at_once(jobs, 8))])


def twenty_megabytes(bench: Bench) -> None:
    """20 MB in and 20 MB out, all of it new."""
    for way, folder in _WAYS:
        figure = bench.figure(f"twenty-{way}", f"20 MB in and out, {way}", "ms")
        with bench.all_subjects(folder=folder) as subjects:
            for name, subject in in_turns(subjects, bench.count(9, 2)):
                (seconds,) = subject.one_by_one([bench.recipes.through(20 * MB)])
                figure.add(name, [1000 * seconds])


def shared_input(bench: Bench) -> None:
    """Jobs that all have the same 50 MB input, one after another; the first is left out."""
    for way, folder in _WAYS:
        figure = bench.figure(
            f"shared-{way}", f"a job whose 50 MB input was just used, {way}", "ms"
        )
        with bench.all_subjects(folder=folder) as subjects:
            jobs = {
                name: bench.recipes.shared(50 * MB, 1 + 10 * bench.count(4, 2)) for name in subjects
            }
            for name, subject in subjects.items():
                subject.one_by_one([jobs[name].pop()])
            for name, subject in in_turns(subjects, bench.count(4, 2)):
                times = subject.one_by_one([jobs[name].pop() for _ in range(10)])
                figure.add(name, [1000 * seconds for seconds in times])


def crowd(bench: Bench) -> None:
    """400 callers at one instant, each with a connection and a small job of its own."""
    last = bench.figure("crowd", "400 callers at one instant, until the last answer", "s")
    with bench.all_subjects(folder=True, workers=2) as subjects:
        for name, subject in in_turns(subjects, bench.count(3, 1)):
            with bench.tolerating(f"crowd, {name}", subject):
                last.add(name, [max(subject.at_once(bench.recipes.small(400), 400))])


def start_up(bench: Bench) -> None:
    """From launch to the first healthcheck, and to the first answer to a job, with two workers."""
    healthy = bench.figure("start-up", "launch to the first healthcheck", "s")
    worked = bench.figure("first-job", "launch to the first job's answer", "s")
    for name, _ in in_turns(dict.fromkeys(SERVERS), bench.count(7, 3)):
        to_health, to_job = _launch(bench, name)
        healthy.add(name, [to_health])
        worked.add(name, [to_job])


def memory(bench: Bench) -> None:
    """PSS of a server with two workers: idle, after jobs, and for each waiting caller."""
    idle = bench.figure("memory-idle", "memory (PSS), idle, two warm workers", "MB")
    after = bench.figure("memory-500", "growth after 500 small jobs", "MB")
    each = bench.figure("memory-growth", "growth for each job with a 5 MB result", "MB")
    waiting = bench.figure("memory-caller", "memory of a waiting caller", "kB")
    for name, _ in in_turns(dict.fromkeys(SERVERS), bench.count(3, 1)):
        with bench.server(name, folder=True, workers=2) as server:
            begin = server.memory()
            idle.add(name, [begin / MB])
            server.at_once(bench.recipes.small(500), 8)
            after.add(name, [(server.memory() - begin) / MB])
            # Callers first: what large results leave behind would be given to their threads.
            with bench.tolerating(f"waiting callers, {name}", server):
                waiting.add(name, [_per_waiting_caller(bench, server.port, server.memory) / 1000])
        with bench.server(name, folder=True, workers=2) as server:
            server.one_by_one(bench.recipes.growing(5 * MB, 4))
            begin = server.memory()
            jobs = bench.recipes.growing(5 * MB, 20)
            server.one_by_one(jobs)
            each.add(name, [(server.memory() - begin) / MB / len(jobs)])


def waiting_jobs(bench: Bench) -> None:
    """Cost of a job as the number of those that wait grows: so many at once, over their number."""
    curve = bench.curve("waiting", "cost of a job, by how many wait", "waiting jobs", "ms")
    with bench.all_subjects(folder=True) as subjects:
        for number in (1, 10, 100, 1000):
            for name, subject in in_turns(subjects, bench.count(3, 1)):
                with bench.tolerating(f"{number} waiting jobs, {name}", subject):
                    for _ in range(20 if number == 1 else 1):
                        jobs = bench.recipes.small(number)
                        seconds = max(subject.at_once(jobs, number))
                        curve.add(name, number, [1000 * seconds / number])


def pins(bench: Bench) -> None:
    """Cost of a job as the number of its inputs grows, all of them small and new."""
    for way, folder in _WAYS:
        curve = bench.curve(f"pins-{way}", f"cost of a job, by its pins, {way}", "pins", "ms")
        with bench.all_subjects(folder=folder) as subjects:
            for number in (1, 5, 20, 100, 500):
                for name, subject in in_turns(subjects, bench.count(5, 2)):
                    times = subject.one_by_one([bench.recipes.pins(number)])
                    curve.add(name, number, [1000 * seconds for seconds in times])


def buffers(bench: Bench) -> None:
    """Cost of a job as its buffer grows, in and out, all of it new."""
    sizes = [1000, 30_000, MB, 10 * MB, 100 * MB, 500 * MB]
    for way, folder in _WAYS:
        curve = bench.curve(f"buffers-{way}", f"cost of a job, by its buffer, {way}", "bytes", "ms")
        with bench.all_subjects(folder=folder) as subjects:
            for size in sizes[: bench.count(6, 4)]:
                rounds = 1 if size > 100 * MB else bench.count(5, 2)
                for name, subject in in_turns(subjects, rounds):
                    with bench.tolerating(f"a buffer of {size:,} bytes, {way}, {name}", subject):
                        times = subject.one_by_one([bench.recipes.through(size)])
                        curve.add(name, size, [1000 * seconds for seconds in times])


def nested(bench: Bench) -> None:
    """Jobs that ask for jobs: a fan-out that sleeps, three levels, and a crowd of fan-outs."""
    recipes = bench.recipes
    cases: list[tuple[Figure, int, Callable[[], list[Job]]]] = [
        (
            bench.figure("nested-fan-out", "8 nested jobs of 1 s, 4 workers", "s"),
            4,
            lambda: [recipes.fanning_out(8, 1.0)],
        ),
        (
            bench.figure("nested-levels", "three levels deep, 1 worker", "s"),
            1,
            lambda: [recipes.three_levels()],
        ),
        (
            bench.figure("nested-crowd", "16 jobs with 8 nested jobs each, 2 workers", "s"),
            2,
            lambda: [recipes.fanning_out(8, 0.0) for _ in range(16)],
        ),
    ]
    for figure, workers, make in cases:
        with bench.servers(workers=workers) as servers:
            for name, server in in_turns(servers, bench.count(5, 2)):
                with bench.tolerating(f"{figure.title}, {name}", server):
                    jobs = make()
                    figure.add(name, [max(server.at_once(jobs, len(jobs)))])


WORKLOADS: Final[dict[str, Workload]] = {
    "one-by-one": one_by_one,
    "eight": eight_connections,
    "twenty": twenty_megabytes,
    "shared": shared_input,
    "crowd": crowd,
    "start-up": start_up,
    "memory": memory,
    "waiting": waiting_jobs,
    "pins": pins,
    "buffers": buffers,
    "nested": nested,
}


def _launch(bench: Bench, name: str) -> tuple[float, float]:
    """Launch a jobserver; return the seconds to the first healthcheck and to the first answer."""
    port = free_port()
    request = encode(bench.recipes.small(1)[0])
    begun = time.perf_counter()
    jobserver = Jobserver(
        bench.new_folder(name),
        bench.parameters(folder=True),
        workers=2,
        command=bench.command(name),
        flags=("--port", str(port)),
        wait=False,
    )
    try:
        while not _is_healthy(port):
            with contextlib.suppress(subprocess.TimeoutExpired):
                jobserver.process.wait(0.002)
            if time.perf_counter() - begun > 60 or jobserver.process.poll() is not None:
                raise BenchmarkFailed(f"{name} did not start:\n{jobserver.log}")
        to_health = time.perf_counter() - begun
        with Held(port) as held:
            held.open(0, request)
            answer = held.first_answer()
            to_job = time.perf_counter() - begun
        if not answer.good:
            raise BenchmarkFailed(f"{name}: {answer.status}: {answer.body[:500]!r}")
        return to_health, to_job
    finally:
        jobserver.stop()


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _per_waiting_caller(bench: Bench, port: int, measure: Callable[[], float]) -> float:
    """Return the bytes that a caller costs whose job waits for a slot, from 400 of them."""
    number = 400
    with Held(port) as held:
        # More than there are workers: upstream gives one of them several, and leaves another free.
        for index in range(8):
            held.open(index, encode(bench.recipes.sleeping(120)))
        held.settle(2.0)
        before = measure()
        for index in range(number):
            held.open(index, encode(bench.recipes.small(1)[0]))
        held.settle(4.0)
        return (measure() - before) / number
