"""The benchmarks' own arithmetic: medians, ratios, verdicts and the table; no measuring."""

import unittest

from benchmarks.figures import Curve, Figure, Results
from benchmarks.report import table
from benchmarks.targets import verdicts


def figure(key, floor, upstream, ours, **named):
    made = Figure(key, key, "ms", **named)
    for subject, values in (("floor", floor), ("upstream", upstream), ("ours", ours)):
        made.add(subject, values)
    return made


class Arithmetic(unittest.TestCase):
    def test_a_ratio_says_how_many_times_better(self):
        times = figure("times", [1], [30, 10, 20], [4, 5, 100])
        self.assertEqual(times.median("upstream"), 20)
        self.assertEqual(times.ratio("ours", "upstream"), 4)
        rates = figure("rates", [1], [10], [40], more_is_better=True)
        self.assertEqual(rates.ratio("ours", "upstream"), 4)

    def test_what_was_not_measured_has_no_ratio(self):
        self.assertIsNone(figure("times", [], [], [4]).ratio("ours", "upstream"))

    def test_a_target_is_judged_by_what_is_added_to_the_floor(self):
        for ours, met in ((6.0, True), (9.0, False)):
            results = Results(figures=[figure("one-by-one-http", [5], [25], [ours])])
            first = verdicts(results)[0]
            self.assertEqual(first.met, met, first)

    def test_the_table_has_every_figure_every_point_and_every_failure(self):
        curve = Curve("waiting", "cost by waiting", "jobs", "ms")
        for x in (10, 1000):
            curve.add("ours", x, [5.0])
        results = Results(
            figures=[figure("start-up", [], [2.0], [0.4])],
            curves=[curve],
            failures=["crowd: upstream is stuck"],
        )
        text = table(results)
        for part in ("start-up", "cost by waiting: 1,000", "crowd: upstream is stuck", "5.00"):
            self.assertIn(part, text)
        self.assertIn("does not grow", text)
