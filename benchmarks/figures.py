"""Figures: samples of one quantity for each subject, and what follows from them."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Figure:
    """One quantity: its samples for each subject, in `unit`; `key` is how targets refer to it."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, subject: str, values: list[float]) -> None:
        """Add samples of a subject."""
        self.samples.setdefault(subject, []).extend(values)

    def median(self, subject: str) -> float | None:
        """Return the median for a subject, or None when it was not measured."""
        values = self.samples.get(subject)
        return statistics.median(values) if values else None

    def ratio(self, ours: str, other: str) -> float | None:
        """Return how many times better `ours` is than `other`."""
        mine, theirs = self.median(ours), self.median(other)
        if not mine or not theirs:
            return None
        return mine / theirs if self.more_is_better else theirs / mine


@dataclass
class Curve:
    """How a quantity grows: samples for each subject at each `x`."""

    key: str
    title: str
    x: str
    unit: str
    samples: dict[str, dict[float, list[float]]] = field(default_factory=dict)

    def add(self, subject: str, x: float, values: list[float]) -> None:
        """Add samples of a subject at `x`."""
        self.samples.setdefault(subject, {}).setdefault(x, []).extend(values)

    def points(self, subject: str) -> list[tuple[float, float]]:
        """Return the medians of a subject, by `x`."""
        values = self.samples.get(subject, {})
        return [(x, statistics.median(values[x])) for x in sorted(values)]


@dataclass
class Results:
    """All that one run has measured, and under which circumstances."""

    circumstances: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def figure(self, key: str) -> Figure | None:
        """Return the figure with this key, or None when it was not measured."""
        return next((figure for figure in self.figures if figure.key == key), None)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)
