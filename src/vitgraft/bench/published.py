"""Published tables: the values of papers, task by task, each with its source and with what flatters it.

A table is a file of `published/`. Its values are in percent and in the order of its suite's tasks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, near_misses
from ..common.settings import NORMALISATIONS
from . import shipped
from .protocols import EPOCHS
from .suites import Suite
from .suites import find as find_suite

_NORMALISATIONS = (*NORMALISATIONS, "unknown")
# What a row may say in its own right, where the rows of a table differ.
_OF_ROW = ("checkpoint", "normalisation", "epoch", "augmentation")


@dataclass(frozen=True)
class Row:
    """One method's values.

    Args:
        method: as printed.
        ours: the same method's name in vitgraft, if it has it in this form.
        parameters_m: what trains, without the head, in millions; None: not given.
        values: percent, one per task of the suite; None: not given.
        stated: averages as their source gives them: "mean", "groups" (the mean of groups), "by_group" (a list), and
            "best_epoch_mean", "best_epoch_groups", had the best epoch on test been reported.
        checkpoint: the weights, by timm's name, or "unknown".
        normalisation: of the pictures, a name of `settings.NORMALISATIONS`, or "unknown".
        epoch: which one is reported, one of `protocols.EPOCHS`.
        augmentation: of the training pictures.
        flags: what to know before comparing this row, the table's flags left aside.
    """

    method: str
    ours: str | None
    parameters_m: float | None
    values: tuple[float | None, ...]
    stated: Mapping[str, Any] = field(default_factory=dict, hash=False)
    checkpoint: str = "unknown"
    normalisation: str = "unknown"
    epoch: str = "unknown"
    augmentation: str = "unknown"
    flags: tuple[str, ...] = ()

    def of_tasks(self, suite: Suite) -> dict[str, float]:
        """{task: value in percent} of the tasks that have one."""
        pairs = zip(suite.task_names, self.values, strict=True)
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class Table:
    """One table of one source; `flags` holds for all its rows."""

    id: str
    paper: str
    table: str
    source: str
    suite: str
    backbone: str
    checkpoint: str
    normalisation: str
    epoch: str
    augmentation: str
    flags: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, method: str) -> Row:
        """The first row of a method, by its printed name or by ours; RequestError with the near misses if none."""
        for row in self.rows:
            if method in (row.method, row.ours):
                return row
        known = [row.method for row in self.rows]
        raise RequestError(
            f"The table {self.id} has no row {method!r}: it has {', '.join(known)}; choose one of these."
            f"{near_misses(method, known)}"
        )


def names() -> list[str]:
    """The tables that ship: the files of `published/`."""
    return shipped.names("published")


def find(name: str) -> Table:
    """A table by its id; RequestError with the near misses if there is none."""
    return load(shipped.path("published", name, names(), "published table"))


def rows(suite: str, method: str | None = None) -> Iterator[tuple[Table, Row]]:
    """All published rows of a suite, or those of one method by its name in vitgraft, each with its table."""
    for table in map(find, names()):
        if table.suite == suite:
            yield from ((table, row) for row in table.rows if method is None or row.ours == method)


def load(file: str | os.PathLike[str]) -> Table:
    """A table from a file, of ours or one's own; RequestError that says what is wrong with it.

    A row that does not say its checkpoint, normalisation, epoch or augmentation has the table's.
    """
    file = Path(file)
    found = shipped.read(file, "published table")
    shipped.check_fields(f"{file}", found, [f.name for f in fields(Table)])
    shipped.check_kinds(f"{file}", found, {"suite": str, "flags": list, "rows": list})
    try:
        suite = find_suite(found["suite"])
    except RequestError as error:
        raise RequestError(f"{file} is of a suite that is not there: {error}") from error
    common = {name: found[name] for name in _OF_ROW}
    if not found["rows"]:
        raise RequestError(f"{file} was to be read as a published table, but has no row: add one.")
    read = tuple(_row(file, number, row, suite, common) for number, row in enumerate(found["rows"], 1))
    return Table(**{**found, "flags": tuple(found["flags"]), "rows": read})


def _row(file: Path, number: int, given: Any, suite: Suite, common: Mapping[str, Any]) -> Row:
    where = f"Row {number} of {file}"
    shipped.check_fields(where, given, ("method", "values"), [f.name for f in fields(Row)])
    shipped.check_kinds(where, given, {"method": str, "flags": list, "stated": dict})
    where = f"The row {given['method']!r} of {file}"
    values = given["values"]
    if not isinstance(values, list) or len(values) != len(suite.tasks):
        came = f"{len(values)} values" if isinstance(values, list) else f"{values!r}"
        raise RequestError(
            f"{where} has {came}, but {suite.name} has {len(suite.tasks)} tasks: give one per task in the suite's "
            "order, null where one is missing."
        )
    for task, value in zip(suite.task_names, values, strict=True):
        if value is not None and not _is_percent(value):
            raise RequestError(
                f"{where} has {value!r} for {task}, but a value is a number from 0 to 100: correct it, or write null."
            )
    row = Row(
        **{
            "ours": None,
            "parameters_m": None,
            **common,
            **given,
            "values": tuple(values),
            "flags": tuple(given.get("flags", ())),
        }
    )
    for name, word, words in (
        ("epoch", row.epoch, EPOCHS),
        ("normalisation", row.normalisation, _NORMALISATIONS),
    ):
        if word not in words:
            raise RequestError(
                f"{where} has the {name} {word!r}, but there is {', '.join(words)}: write one of these."
                f"{near_misses(str(word), words)}"
            )
    return row


def _is_percent(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 100
    )
