"""Results as a table for people and as a plot."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Curve, Figure, Results
from benchmarks.subjects import FLOOR, OURS, SUBJECTS, UPSTREAM
from benchmarks.targets import verdicts

_COLUMNS: Final = ("figure", "unit", *SUBJECTS, "ours : upstream", "ours : floor")
_COLORS: Final = {FLOOR: "0.6", UPSTREAM: "tab:orange", OURS: "tab:blue"}


def table(results: Results) -> str:
    """Return everything as an RST table of medians and ratios, and the targets as another."""
    rows = [_figure_row(figure) for figure in results.figures]
    rows += [row for curve in results.curves for row in _curve_rows(curve)]
    text = _grid(_COLUMNS, rows)
    judged = [
        (one.target, one.measured, "yes" if one.met else "**no**") for one in verdicts(results)
    ]
    if judged:
        text += "\n\n" + _grid(("target", "measured", "met"), judged)
    for failure in results.failures:
        text += f"\n\nNot measured: {failure}"
    return text + "\n"


def plot(results: Results, folder: Path) -> list[Path]:
    """Draw the plot into `folder` as PNG and SVG; return the two paths.

    Raises ImportError where matplotlib (extra ``bench``) is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    curves = [curve for curve in results.curves if curve.samples]
    count = 1 + len(curves)
    columns = min(3, count)
    lines = -(-count // columns)
    figure, all_axes = pyplot.subplots(
        lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False, layout="constrained"
    )
    axes = [one for line in all_axes for one in line]
    _draw_ratios(axes[0], results.figures)
    for one, curve in zip(axes[1:], curves, strict=False):
        _draw_curve(one, curve)
    for one in axes[count:]:
        one.set_axis_off()
    paths = [folder / "performance.png", folder / "performance.svg"]
    for path in paths:
        # Without a date, the same results make the same file.
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths


def _draw_ratios(axes: Any, figures: list[Figure]) -> None:
    pairs = [(figure.title, figure.ratio(OURS, UPSTREAM)) for figure in figures]
    known = [(title, ratio) for title, ratio in pairs if ratio is not None and ratio > 0][::-1]
    axes.barh([title for title, _ in known], [ratio for _, ratio in known], color=_COLORS[OURS])
    axes.axvline(1, color=_COLORS[UPSTREAM])
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_title("times better than upstream (line: the same)", fontsize=9)


def _draw_curve(axes: Any, curve: Curve) -> None:
    for subject in SUBJECTS:
        points = curve.points(subject)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=subject, color=_COLORS[subject])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(curve.x, fontsize=8)
    axes.set_ylabel(curve.unit, fontsize=8)
    axes.set_title(curve.title, fontsize=9)
    axes.legend(fontsize=7)


def _figure_row(figure: Figure) -> tuple[str, ...]:
    medians = [_number(figure.median(subject)) for subject in SUBJECTS]
    ratios = [_ratio(figure.ratio(OURS, other)) for other in (UPSTREAM, FLOOR)]
    return (figure.title, figure.unit, *medians, *ratios)


def _curve_rows(curve: Curve) -> Iterator[tuple[str, ...]]:
    points = {subject: dict(curve.points(subject)) for subject in SUBJECTS}
    for x in sorted({x for values in points.values() for x in values}):
        one = Figure(curve.key, f"{curve.title}: {x:,.0f}", curve.unit)
        for subject, values in points.items():
            if x in values:
                one.add(subject, [values[x]])
        yield _figure_row(one)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.2f}"


def _grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    bar = "  ".join("=" * width for width in widths)

    def line(cells: tuple[str, ...]) -> str:
        return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    return "\n".join([bar, line(head), bar, *map(line, rows), bar])
