"""The page of a benchmark: one self-contained HTML file with its table and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import RequestError
from ..pages import page
from ..pages.page import duration, size
from . import figures, protocols
from .layout import per_cent
from .reading import Gap, Paired, Row, Spread, Table, averages, gap_lines

if TYPE_CHECKING:
    from .beside import Beside, Theirs


def write(
    path: str | Path,
    table: Table,
    *,
    gaps: Sequence[Gap] = (),
    against: str | None = None,
    beside: Beside | None = None,
    pictures: str | Path | None = None,
) -> None:
    """Writes the page of a table to `path`.

    gaps: the runs that it lacks (`reading.gaps`). against: the row from which the differences of all others are shown.
    beside: the published rows (`beside.beside`). pictures: a folder that gets each picture as an SVG file too.
    Raises RequestError where there is no row `against`, WorkError where nothing can be written.
    """
    costs, seeds = figures.costs(table), figures.seeds(table)
    differences, pairs = figures.differences(table, against) if against else ([], [])
    page.write(
        path,
        "bench.html",
        title=f"{table.suite.title}: {len(table.rows)} methods",
        suite=table.suite.title,
        methods=len(table.rows),
        backbone=table.backbone,
        tasks=len(table.tasks),
        protocol=table.protocol,
        flags=list(dict.fromkeys(flag for record in _records(table) for flag in record.job.flags)),
        facts=_facts(table, gaps),
        how=_how(table),
        table=_table(table),
        told=[*(note for note in table.notes if not note.startswith("flatters: ")), *gap_lines(gaps)],
        costs=costs,
        cost_note=_cost_note(table, bool(costs)),
        against=against,
        differences=differences,
        pairs=[(pair.one, _test(pair)) for pair in pairs],
        seeds=seeds,
        published=_published(beside) if beside else None,
        choices=_choices(table),
        circumstances=_circumstances(table),
    )
    if pictures is not None:
        figures.export([*costs, *differences, *seeds], Path(pictures))


# --- header, table, notes -----------------------------------------------------------------------------------------


def _records(table: Table) -> list[Any]:
    return [record for row in table.rows for record in row.records]


def _seeds(table: Table) -> list[int]:
    return sorted({record.job.seed for record in _records(table)})


def _facts(table: Table, gaps: Sequence[Gap]) -> list[tuple[str, str]]:
    """What was measured, how, on what; and whether it is whole."""
    try:
        told = protocols.find(table.protocol).title
    except RequestError:  # of an earlier version
        told = table.protocol
    seeds, tasks, records = _seeds(table), table.tasks, _records(table)
    failed = sum(bool(gap.reason) for gap in gaps)
    count = f"{len(records):,} done" + (f", {failed} failed" if failed else "")
    count += f", {len(gaps) - failed} not run" if len(gaps) > failed else ""
    whole = len(table.suite.tasks)
    return [
        ("suite", table.suite.title),
        ("protocol", told),
        ("backbone", table.backbone),
        ("tasks", f"{len(tasks)}" if len(tasks) == whole else f"{len(tasks)} of {whole}"),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
        ("runs", count),
        ("measured", "; ".join(sorted({f"{r.metric} on {r.split}" for r in records}))),
    ]


def _how(table: Table) -> str:
    return (
        "Per cent. "
        + ("The small figure is the standard deviation over seeds. " if len(_seeds(table)) > 1 else "")
        + "Bold: the highest of its column. Memory and time are those of one training run, on average."
    )


def _table(table: Table) -> dict[str, Any]:
    """One line a method: parameters, the averages, every task, what a run costs."""
    means = averages(table.suite)
    columns: list[tuple[str, Callable[[Row], Spread | None]]] = [
        *means.items(),
        *((table.title(task), lambda row, task=task: row.tasks.get(task)) for task in table.tasks),
    ]
    best = [max((found.mean for row in table.rows if (found := of(row))), default=None) for _, of in columns]
    rows = []
    for row in table.rows:
        cells: list[Any] = [f"{count / 1e6:.3f}" for count in (row.parameters, row.parameters_with_head)]
        for k, ((_, of), top) in enumerate(zip(columns, best, strict=True)):
            cells.append(_cell(of(row), 2 if k < len(means) else 1, top))
        rows.append({"label": row.label, "cells": [*cells, size(row.memory), duration(row.seconds)]})
    heads = ["params (M)", "with head (M)", *(title for title, _ in columns), "memory", "time"]
    return {"heads": heads, "rows": rows, "averages": len(means)}


def _cell(spread: Spread | None, digits: int, best: float | None = None) -> dict[str, Any] | None:
    if spread is None:
        return None
    around = "" if spread.deviation is None else per_cent(spread.deviation, digits)
    return {"value": per_cent(spread.mean, digits), "around": around, "best": spread.mean == best}


def _cost_note(table: Table, drawn: bool) -> str:
    left_out = [row.label for row in table.rows if row.mean is None]
    without = f" Not here, for lack of an average: {', '.join(left_out)}." if left_out else ""
    if not drawn:
        return f"No picture: no row has every task of the suite.{without}"
    return (
        "Full dots, on the dashed line: no other method is as good for the same cost or less (the Pareto front). The "
        "thin lines are one standard deviation over seeds. An arrow: far below the axis, at the accuracy beside it."
        f"{without}"
    )


def _test(pair: Paired) -> tuple[str, ...]:
    """A mean difference, with what can be said of chance."""
    low, high, mean = (f"{100 * value:+.2f}".replace("-", "−") for value in (*pair.interval, pair.mean))
    ahead = f"{sum(d > 0 for d in pair.differences.values())} of {len(pair.differences)}"
    return mean, f"{low} to {high}", ahead, f"{pair.p:.2g}"


# --- published rows -----------------------------------------------------------------------------------------------


def _published(beside: Beside) -> dict[str, Any]:
    """The averages of ours and of theirs below each other, with what in theirs is not alike; then task by task."""
    part, rows = beside.table.suite, beside.table.rows

    def told(theirs: Theirs) -> dict[str, Any]:
        millions = None if theirs.parameters_m is None else f"{theirs.parameters_m:.2f}"
        return {
            "method": theirs.method,
            "alike": theirs.alike,
            "source": theirs.source,
            "differs": theirs.differs,
            "flags": theirs.flags,
            "means": [millions, *(_value(mean, 2) for mean in theirs.averages(part))],
            "by_task": [_value(theirs.values.get(task), 1) for task in part.task_names],
        }

    blocks = [
        {
            "ours": row.label,
            "means": [f"{row.parameters / 1e6:.3f}", *(_cell(of(row), 2) for of in averages(part).values())],
            "by_task": [_cell(row.tasks.get(task), 1) for task in part.task_names],
            "theirs": [told(theirs) for theirs in found],
        }
        for row in rows
        if (found := beside.of_row[row.label])
    ]
    tasks = [beside.table.title(task) for task in part.task_names] if blocks else []
    if beside.rest:
        blocks.append({"ours": "", "theirs": [told(theirs) for theirs in beside.rest]})
    alone = [row.label for row in rows if not beside.of_row[row.label]]
    notes = [f"Not published in these tables: {', '.join(alone)}."] if alone else []
    return {
        "heads": ["params (M)", *averages(part)],
        "blocks": blocks,
        "tasks": tasks,
        "notes": [*notes, *(pair.line() for pair in beside.paired())],
        "note": f"Ours: {beside.conditions.line()}. A published row with = was measured like that, as far as its "
        "source says; one with ≠ was not, so that its averages are not to be compared with ours, for the reason beside "
        f"it. All averages here are over the {len(part.tasks)} tasks that were run, in per cent.",
    }


def _value(value: float | None, digits: int) -> str | None:
    return None if value is None else per_cent(value, digits)


# --- choices and circumstances -------------------------------------------------------------------------------------


def _choices(table: Table) -> dict[str, Any] | None:
    """What a search chose for each method on each task, and what it gave; None where none did."""
    rows = []
    for row in table.rows:
        told = {record.job.task: record.job.chosen for record in row.records if record.job.chosen}
        if told:
            rows.append((row.label, [_choice(told.get(task)) for task in table.tasks]))
    return {"heads": [table.title(task) for task in table.tasks], "rows": rows} if rows else None


def _choice(told: Mapping[str, Any] | None) -> tuple[str, str] | None:
    if not told:
        return None
    options = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told["options"].items())
    seeds = f", {len(told['seeds'])} seeds each" if len(told["seeds"]) > 1 else ""
    return options, f"{per_cent(told['value'], 1)}, best of {told['trials']}{seeds}"


def _circumstances(table: Table) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, machines and versions; a value that is not the same in all runs is given in all its forms."""
    records = _records(table)

    def facts(dicts: Iterable[Mapping[str, object]]) -> list[tuple[str, str]]:
        found: dict[str, dict[str, None]] = {}
        for one in dicts:
            for key, value in one.items():
                text = " × ".join(map(str, value)) if isinstance(value, list) else str(value)
                found.setdefault(key, {})[{"None": "none", "True": "yes", "False": "no"}.get(text, text)] = None
        return [(key.replace("_", " "), _few([*values])) for key, values in found.items() if key != "seed"]

    code = [
        ("commit", _few(list(dict.fromkeys((record.commit or "none")[:12] for record in records)))),
        ("differs from it", _few(sorted({{None: "unknown", True: "yes", False: "no"}[r.dirty] for r in records}))),
    ]
    backbones = ({"source": r.backbone_source, "fingerprint": r.job.fingerprint[:12]} for r in records)
    return [
        ("Protocol", facts(record.resolved["protocol"] for record in records)),
        ("Machine", facts(record.machine for record in records)),
        ("Versions", [*facts(record.versions for record in records), *code]),
        ("Backbone", facts(backbones)),
    ]


def _few(words: Sequence[str], most: int = 6) -> str:
    shown = "; ".join(words[:most])
    return shown if len(words) <= most else f"{shown}; and {len(words) - most} more"
