"""What a workload is given: the store, jobs, subjects to run them, and where results go."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.caller import BenchmarkFailed, burst, encode
from benchmarks.figures import Curve, Figure, Results
from benchmarks.recipes import Recipes
from benchmarks.subjects import FLOOR, OURS, SERVERS, UPSTREAM, Floor, Server, Subject
from tests.stack import Jobserver, Store


@dataclass(frozen=True)
class Environments:
    """The folders of the two virtual environments."""

    ours: Path
    upstream: Path


class Bench:
    """One run of the benchmarks."""

    def __init__(
        self, directory: Path, store: Store, environments: Environments, *, quick: bool
    ) -> None:
        self.results = Results()
        self.recipes = Recipes(store)
        self.quick = quick
        self._directory = directory
        self._store = store
        self._environments = environments
        self._numbers = itertools.count(1)

    def count(self, full: int, quick: int) -> int:
        """Return how often to do something: less when it should be quick."""
        return quick if self.quick else full

    def figure(self, key: str, title: str, unit: str, *, more_is_better: bool = False) -> Figure:
        """Return a new figure of the results."""
        figure = Figure(key, title, unit, more_is_better)
        self.results.figures.append(figure)
        return figure

    def curve(self, key: str, title: str, x: str, unit: str) -> Curve:
        """Return a new curve of the results."""
        curve = Curve(key, title, x, unit)
        self.results.curves.append(curve)
        return curve

    def say(self, text: str) -> None:
        """Tell the user how far it is, and how busy the machine."""
        print(f"[load {os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def tolerating(self, what: str, subject: Subject) -> Iterator[None]:
        """Note it when a subject does not get through this part, and go on with the others."""
        try:
            yield
        except BenchmarkFailed as failure:
            self.results.failures.append(f"{what}: {failure}")
            self.say(self.results.failures[-1])
            if isinstance(subject, Server):
                subject.replace()

    def command(self, name: str) -> str:
        """Return the command of a jobserver."""
        folder = self._environments.ours if name == OURS else self._environments.upstream
        return str(folder / "bin" / "seamless-jobserver")

    def new_folder(self, name: str) -> Path:
        """Return a path that nothing has used yet."""
        return self._directory / f"{name}-{next(self._numbers)}"

    def parameters(self, *, folder: bool) -> dict[str, Any]:
        """Return what a status file says of store and database."""
        return self._store.parameters(read_folder=folder)

    @contextlib.contextmanager
    def server(self, name: str, *, folder: bool = False, workers: int = 1) -> Iterator[Server]:
        """Run one jobserver, warm in all its workers."""

        def start() -> Jobserver:
            jobserver = Jobserver(
                self.new_folder(name),
                self.parameters(folder=folder),
                workers=workers,
                command=self.command(name),
            )
            try:
                jobs = self.recipes.small(8 * workers)
                burst(jobserver.port, [encode(job) for job in jobs], 4 * workers)
            except BaseException:
                jobserver.stop()
                raise
            return jobserver

        server = Server(start)
        try:
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def floor(self, *, folder: bool = False, workers: int = 1) -> Iterator[Floor]:
        """Run the floor, warm, with as many scripts as there are `workers`."""
        floor = Floor(
            self._environments.upstream / "bin" / "python",
            self.parameters(folder=folder),
            workers,
            self.new_folder(FLOOR) / "log",
        )
        try:
            floor.at_once(self.recipes.small(8 * workers), 1)
            yield floor
        finally:
            floor.stop()

    @contextlib.contextmanager
    def servers(self, *, folder: bool = False, workers: int = 1) -> Iterator[dict[str, Subject]]:
        """Run upstream and ours at the same time, to be asked in turn."""
        with contextlib.ExitStack() as stack:
            yield {
                name: stack.enter_context(self.server(name, folder=folder, workers=workers))
                for name in SERVERS
            }

    @contextlib.contextmanager
    def all_subjects(self, *, folder: bool, workers: int = 1) -> Iterator[dict[str, Subject]]:
        """Run floor, upstream and ours at the same time, to be asked in turn."""
        with (
            self.floor(folder=folder, workers=workers) as floor,
            self.servers(folder=folder, workers=workers) as servers,
        ):
            yield {FLOOR: floor, **servers}


Workload = Callable[[Bench], None]


Key = TypeVar("Key")
Value = TypeVar("Value")


def in_turns(subjects: dict[Key, Value], rounds: int) -> Iterator[tuple[Key, Value]]:
    """Yield all subjects, `rounds` times over, beginning with another one each time."""
    names = list(subjects)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            yield name, subjects[name]


__all__ = ["FLOOR", "OURS", "SERVERS", "UPSTREAM", "Bench", "Environments", "Workload", "in_turns"]
