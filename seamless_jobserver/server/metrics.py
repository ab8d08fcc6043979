"""Counting for machines: counters and histograms, and the text that Prometheus reads.

The format is the text exposition format of Prometheus, version 0.0.4: ``# HELP`` and ``# TYPE``
before the samples of a metric, cumulative buckets that end with ``+Inf``. No label ever holds
anything that came over HTTP.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "seamless_jobserver_"
SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 36000.0)
"""Upper bounds of the buckets of a histogram of times."""


class Histogram:
    """How many observations, in seconds, were at most each of `SECONDS`, and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class Metric(NamedTuple):
    """One metric: its name without the prefix, its type, its help, and its samples.

    A sample is keyed by the value of `label`, or by an empty text where there is no label.
    """

    name: str
    kind: str
    help: str
    samples: Mapping[str, float]
    label: str = ""


def render(metrics: Sequence[Metric], histograms: Mapping[str, tuple[str, Histogram]]) -> str:
    """Return the text; `histograms` gives help and observations by name."""
    lines = []
    for metric in metrics:
        lines += _heading(metric.name, metric.kind, metric.help)
        for value, number in metric.samples.items():
            labels = f'{{{metric.label}="{value}"}}' if metric.label else ""
            lines.append(f"{PREFIX}{metric.name}{labels} {_number(number)}")
    for name, (about, histogram) in histograms.items():
        lines += _heading(name, "histogram", about)
        together = 0
        bounds = [*map(_number, SECONDS), "+Inf"]
        for bound, count in zip(bounds, histogram.counts, strict=True):
            together += count
            lines.append(f'{PREFIX}{name}_bucket{{le="{bound}"}} {together}')
        lines.append(f"{PREFIX}{name}_sum {_number(histogram.sum)}")
        lines.append(f"{PREFIX}{name}_count {together}")
    return "\n".join(lines) + "\n"


def _heading(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} {kind}"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
