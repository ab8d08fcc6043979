"""The targets of the project for its speed and size, as checks of the results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.figures import Results
from benchmarks.subjects import FLOOR, OURS, UPSTREAM


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that meets it."""

    target: str
    measured: str
    met: bool


def verdicts(results: Results) -> list[Verdict]:
    """Return a verdict for each target that the results say anything about."""
    return [verdict for check in _CHECKS for verdict in check(results)]


def _added(results: Results) -> Iterator[Verdict]:
    for way in ("http", "folder"):
        figure = results.figure(f"one-by-one-{way}")
        if figure is None:
            continue
        floor, upstream, ours = (figure.median(one) for one in (FLOOR, UPSTREAM, OURS))
        if floor and upstream and ours and upstream > floor:
            part = (ours - floor) / (upstream - floor)
            yield Verdict(
                f"a small job adds at most a tenth of what upstream adds, {way}",
                f"{ours - floor:.1f} ms of {upstream - floor:.1f} ms: {part:.2f}",
                part <= 0.1,
            )


def _ratios(results: Results) -> Iterator[Verdict]:
    for key, least, words in _FASTER:
        figure = results.figure(key)
        ratio = figure.ratio(OURS, UPSTREAM) if figure else None
        if figure and ratio:
            yield Verdict(f"{words} upstream: {figure.title}", f"{ratio:.2f} times", ratio >= least)


_FASTER: Final = (
    ("one-by-one-http", 2.2, "2.2 times faster than"),
    ("one-by-one-folder", 4.5, "4.5 times faster than"),
    ("eight-http-1", 2.5, "2.5 times the jobs of"),
    ("eight-folder-1", 4.0, "4 times the jobs of"),
    ("shared-http", 20.0, "20 times faster than"),
    ("shared-folder", 20.0, "20 times faster than"),
    ("start-up", 4.0, "a quarter of the time of"),
)


def _two_workers(results: Results) -> Iterator[Verdict]:
    for way in ("http", "folder"):
        one, two = results.figure(f"eight-{way}-1"), results.figure(f"eight-{way}-2")
        rates = [figure.median(OURS) if figure else None for figure in (one, two)]
        if rates[0] and rates[1]:
            yield Verdict(
                f"two workers do more than one, {way}",
                f"{rates[1]:.0f} jobs/s instead of {rates[0]:.0f}",
                rates[1] > rates[0],
            )


def _twenty(results: Results) -> Iterator[Verdict]:
    for way in ("http", "folder"):
        figure = results.figure(f"twenty-{way}")
        ratio = figure.ratio(FLOOR, OURS) if figure else None
        if ratio:
            yield Verdict(
                f"20 MB in and out: at most the floor and a tenth, {way}",
                f"{ratio:.2f} times the floor",
                ratio <= 1.1,
            )


def _limits(results: Results) -> Iterator[Verdict]:
    for key, most in _LIMITS:
        figure = results.figure(key)
        median = figure.median(OURS) if figure else None
        if figure and median is not None:
            yield Verdict(
                f"{figure.title}: under {most:g} {figure.unit}",
                f"{median:.2f} {figure.unit}",
                median < most,
            )


_LIMITS: Final = (
    ("memory-idle", 120.0),
    ("memory-caller", 100.0),
    ("memory-growth", 0.1),
    ("nested-fan-out", 2.0),
    ("nested-levels", 0.5),
)


def _flat(results: Results) -> Iterator[Verdict]:
    curve = next((curve for curve in results.curves if curve.key == "waiting"), None)
    points = dict(curve.points(OURS)) if curve else {}
    if 10 in points and len(points) > 1:
        few, many = points[10], points[max(points)]
        yield Verdict(
            "the cost of a job does not grow with the number that wait",
            f"{many:.1f} ms with {max(points):.0f} waiting, {few:.1f} ms with 10",
            many <= 1.15 * few,
        )


_CHECKS: Final[tuple[Callable[[Results], Iterator[Verdict]], ...]] = (
    _added,
    _ratios,
    _two_workers,
    _twenty,
    _limits,
    _flat,
)
