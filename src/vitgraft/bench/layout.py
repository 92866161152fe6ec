"""A table as text, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .reading import Row, Spread, Table, averages

if TYPE_CHECKING:
    from .beside import Beside, Theirs
    from .suites import Suite

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _words(spread: Spread | None, digits: int, between: str) -> str:
    """Per cent: 81.2, or 81.2±0.3 over several seeds."""
    if spread is None:
        return "-"
    deviation = spread.deviation
    return per_cent(spread.mean, digits) + ("" if deviation is None else between + per_cent(deviation, digits))


def _head(table: Table) -> list[str]:
    tasks = [task.name for task in table.suite.tasks]
    return ["method", "params (M)", "with head (M)", *tasks, *averages(table.suite)]


def _line(row: Row, between: str) -> list[str]:
    tasks = [_words(row.tasks.get(task.name), 1, between) for task in row.suite.tasks]
    means = [_words(of(row), 2, between) for of in averages(row.suite).values()]
    return [row.label, f"{row.parameters / 1e6:.3f}", f"{row.parameters_with_head / 1e6:.3f}", *tasks, *means]


def text(table: Table) -> str:
    """For a terminal: per cent, mean ± standard deviation over seeds, and the notes below."""
    lines = [_head(table), *(_line(row, "±") for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head = f"{table.suite.title}; protocol {table.protocol}; {table.backbone}"
    return "\n".join([head, "", *(_aligned(line, widths) for line in lines), *(f"* {note}" for note in table.notes)])


def beside_text(found: Beside) -> str:
    """For a terminal: below each row of ours the published ones of its method, and what in them is not alike."""
    columns = [name for name in _head(found.table) if name != "with head (M)"]
    lines: list[list[str]] = [columns]
    notes: dict[str, int] = {}  # what is said of several rows is said once

    def add(rows: Sequence[Theirs]) -> None:
        for theirs in rows:
            unlike = f"differs in {'; '.join(theirs.differs)}" if theirs.differs else "as ours"
            flags = f". Also: {'; '.join(theirs.flags)}" if theirs.flags else ""
            number = notes.setdefault(f"{theirs.source}: {unlike}{flags}", len(notes) + 1)
            mark = "=" if theirs.alike else "≠"
            lines.append([f"  {mark} {theirs.method} [{number}]", *_published(theirs, found.table.suite)])

    for row in found.table.rows:
        label, parameters, _, *values = _line(row, "±")
        lines.append([label, parameters, *values])
        add(found.of_row[row.label])
    if found.rest:
        lines.append(["not run here:", *[""] * (len(columns) - 1)])
        add(found.rest)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    alike = [pair.line() for pair in found.paired()]
    return "\n".join(
        [
            "published rows below ours, per cent",
            f"ours: {found.conditions.line()}",
            "= measured like ours, as far as its source says; ≠ not, so that the averages are not to be compared",
            "",
            *(_aligned(line, widths) for line in lines),
            *([""] if alike else []),
            *alike,
            "",
            *(f"[{number}] {note}" for note, number in notes.items()),
        ]
    )


def _published(theirs: Theirs, suite: Suite) -> list[str]:
    """The numbers of a published row, as those of ours stand in a line."""
    values = [(theirs.values.get(name), 1) for name in suite.task_names]
    values += [(mean, 2) for mean in theirs.averages(suite)]
    numbers = ["-" if value is None else per_cent(value, digits) for value, digits in values]
    return ["-" if theirs.parameters_m is None else f"{theirs.parameters_m:.3f}", *numbers]


def per_cent(value: float, digits: int) -> str:
    """A share as per cent, without the sign: 81.2."""
    return f"{100 * value:.{digits}f}"


def _aligned(words: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = words
    return "  ".join([first.ljust(widths[0]), *(w.rjust(n) for w, n in zip(rest, widths[1:], strict=True))]).rstrip()


def comma_separated(table: Table) -> str:
    """CSV, one line for each method and task, then its averages: values 0..1 unrounded, memory in bytes."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    columns = ("method", "task", "group", "mean", "deviation", "seeds", "values")
    writer.writerow([*columns, "parameters", "parameters_with_head", "memory", "seconds"])
    for row in table.rows:
        costs = [row.parameters, row.parameters_with_head, row.memory, row.seconds]
        cells = [(task.name, task.group, row.tasks.get(task.name)) for task in table.suite.tasks]
        cells += [(name, "", of(row)) for name, of in averages(row.suite).items()]
        for name, group, spread in cells:
            values = spread.values if spread else {}
            mean, deviation = (spread.mean, spread.deviation) if spread else (None, None)
            listed = [" ".join(map(str, values)), " ".join(map(str, values.values()))]
            writer.writerow([row.label, name, group, mean, deviation, *listed, *costs])
    return written.getvalue()


def latex(table: Table) -> str:
    """A tabular for the package booktabs, in per cent; the notes as comments."""
    head = " & ".join(map(_escaped, _head(table)))
    lines = [" & ".join(map(_escaped, _line(row, "±"))).replace("±", r" $\pm$ ") for row in table.rows]
    comments = [f"% {note}" for note in (f"protocol {table.protocol}, {table.backbone}", *table.notes)]
    columns = "l" + "r" * (len(_head(table)) - 1)
    body = [rf"{line} \\" for line in (head, *lines)]
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:]]
    return "\n".join([*comments, *parts, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(word: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in word)
