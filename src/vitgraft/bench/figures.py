"""The pictures of a benchmark's page: accuracy over each cost, differences from a row, seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..common.errors import RequestError
from ..common.files import make_folder, write_bytes
from ..pages.charts import Dots, dots, standalone
from ..pages.page import duration, percent, size, style
from ..pages.scatter import Point, scatter
from .paired import bootstrap
from .reading import COSTS, Paired, Spread, Table, compare, pareto

GIB = 2**30
WIDE = 540  # of a picture that has half of the page


@dataclass(frozen=True)
class Picture:
    """A chart: the name of its file, and the figure as HTML."""

    file: str
    html: str


def export(pictures: Iterable[Picture], folder: Path) -> None:
    """Each picture as an SVG file."""
    make_folder(folder)
    for picture in pictures:
        write_bytes(folder / f"{picture.file}.svg", standalone(picture.html, style()).encode("utf-8", errors="replace"))


def _axes(table: Table) -> list[tuple[str, str, str, float, Callable[[float], str]]]:
    """Each cost: (its name in COSTS, title, label of the axis, its unit there, a value in words)."""
    longest = max(row.seconds for row in table.rows)
    unit, seconds = next(
        (u, s) for u, s, most in (("s", 1, 600), ("min", 60, 36_000), ("h", 3600, 1e99)) if longest < most
    )

    def trained(count: float) -> str:
        return f"{count:,.0f} parameters"

    return [
        ("parameters", "Trained parameters", "trained parameters without the head, millions", 1e6, trained),
        ("parameters with head", "With the head", "trained parameters with the head, millions", 1e6, trained),
        ("memory", "Peak memory", "peak memory in training, GiB", GIB, size),
        ("seconds", "Training time", f"training time of a run, {unit}", seconds, duration),
    ]


def costs(table: Table) -> list[Picture]:
    """Accuracy over each cost, with the front of what nothing beats; none without an average."""
    measured = [(row, found) for row in table.rows if (found := row.mean)]
    made = []
    for cost, title, label, unit, words in _axes(table):
        front = [row.label for row in pareto(table, cost)]
        points = [
            Point(row.label, COSTS[cost](row) / unit, found.mean, found.deviation, row.label in front)
            for row, found in measured
        ]

        def told(value: float, unit: float = unit, words: Callable[[float], str] = words) -> str:
            return words(value * unit)

        y_label = f"mean of {len(table.suite.tasks)}, per cent"
        made.append(Picture(_slug("cost", cost), scatter(title, points, percent, _tick, told, label, y_label)))
    return [picture for picture in made if picture.html]


def differences(table: Table, against: str) -> tuple[list[Picture], list[Paired]]:
    """All rows from one: a picture of the means over tasks, and one for each row with every task."""
    base = table.row(against).label
    pairs, made = [], []
    for row in table.rows:
        if row.label == base:
            continue
        try:
            pairs.append(compare(table, row.label, base))
        except RequestError:  # no task and seed in common: the table says what is missing
            continue
    if pairs:
        rows = [Dots(pair.one, [*pair.differences.values()], pair.mean, pair.interval) for pair in pairs]
        made.append(
            Picture("difference", dots(f"All methods, minus {base}", rows, _points, _step, zero=True, width=WIDE))
        )
    for pair in pairs:
        rows = [_dots(table.title(task), spread) for task, spread in pair.spreads.items()]
        rows.append(Dots("mean", [], pair.mean, pair.interval, strong=True))
        figure = dots(f"{pair.one} minus {base}", rows, _points, _step, zero=True)
        made.append(Picture(_slug("difference", pair.one), figure))
    return made, pairs


def _dots(label: str, spread: Spread) -> Dots:
    """Differences of one task over seeds; the interval is the bootstrap's, over seeds."""
    values = [*spread.values.values()]
    return Dots(label, values, fmean(values), bootstrap(values) if len(values) > 1 else None)


def seeds(table: Table) -> list[Picture]:
    """For each task every run of every method."""
    made = []
    for task in table.tasks:
        rows = [(row.label, row.tasks[task]) for row in table.rows if task in row.tasks]
        lines = [Dots(label, [*spread.values.values()], spread.mean) for label, spread in rows]
        made.append(Picture(_slug("seeds", task), dots(table.title(task), lines, _plain, _tick)))
    return made


def _slug(*words: str) -> str:
    """Words as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.")


def _points(value: float) -> str:
    """A difference in points of per cent."""
    return _signed(f"{100 * value:+.1f}")


def _step(value: float) -> str:
    """A round difference, for an axis."""
    return _signed(f"{100 * value:+.6g}")


def _signed(figure: str) -> str:
    return figure.replace("-", "−") if float(figure) else figure.lstrip("+-")


def _plain(value: float) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * value:.1f}"


def _tick(value: float) -> str:
    return f"{100 * value:.6g}"
