"""Our rows beside published ones, like with like: the same tasks, and in words whatever else was not the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import RequestError
from ..common.settings import AUGMENTATIONS, NORMALISATIONS
from . import protocols, published
from .reading import Paired, Row, Spread, Table, averages, paired
from .record import Record
from .suites import Suite

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Conditions:
    """How numbers came about, in the words of the published tables."""

    checkpoint: str
    normalisation: str
    epoch: str
    augmentation: str

    def differences(self, theirs: published.Row) -> list[str]:
        """In what a published row differs from these conditions, or may differ; empty: in nothing that it says."""
        found = []
        for name, own in vars(self).items():
            other = getattr(theirs, name)
            if UNKNOWN in (own, other):
                whose = "ours" if own == UNKNOWN else "theirs"
                found.append(f"{name}: {whose} is not known")
            elif own != other:
                found.append(f"{name}: {other}, ours {own}")
        return found

    def line(self) -> str:
        """The same in words."""
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class Theirs:
    """A published row on our tasks.

    source: paper and table. values: {task: 0..1}. mean, mean_of_groups: 0..1 over our tasks, None where it lacks one.
    differs: why the averages are not to be compared, empty if they are. flags: what to know of the row all the same.
    """

    method: str
    source: str
    parameters_m: float | None
    values: dict[str, float]
    mean: float | None
    mean_of_groups: float | None
    differs: tuple[str, ...]
    flags: tuple[str, ...]

    def averages(self, suite: Suite) -> list[float | None]:
        """As many as `reading.averages` has of the suite."""
        return [self.mean, self.mean_of_groups][: len(averages(suite))]

    @property
    def alike(self) -> bool:
        """Whether its averages may be compared with ours."""
        return not self.differs


@dataclass(frozen=True)
class Beside:
    """table: ours, of the tasks that were run only; of_row: {label: the published rows of its method}; rest: published
    rows of methods that were not run; conditions: ours."""

    table: Table
    conditions: Conditions
    of_row: dict[str, tuple[Theirs, ...]]
    rest: tuple[Theirs, ...]

    def paired(self) -> list[Paired]:
        """Our rows against those published rows that they may be compared with, over tasks."""
        return [
            _against(self.table.row(label), theirs)
            for label, found in self.of_row.items()
            for theirs in found
            if theirs.alike
        ]


def beside(table: Table) -> Beside:
    """A table of ours and all published rows of its suite.

    The averages on both sides are over the tasks that were run. RequestError where nothing is published of the suite.
    """
    known = _known(table.suite)
    if not known:
        there = dict.fromkeys(published.find(name).suite for name in published.names())
        raise RequestError(
            f"No published table is about the suite {table.suite.name}: there are some for {', '.join(there)}; leave "
            "the comparison out, or compare with a row of your own."
        )
    run = {task for row in table.rows for task in row.tasks}
    part = replace(table.suite, tasks=tuple(task for task in table.suite.tasks if task.name in run))
    ours = replace(table, suite=part, rows=tuple(replace(row, suite=part) for row in table.rows))
    conditions, unlike = _conditions(table)
    of_row, used = {}, set()
    for row in ours.rows:
        methods = {record.job.method for record in row.records}
        used |= methods
        mine = [found for found in known if found.row.ours in methods]
        own = [*unlike, *_arguments(row)]
        of_row[row.label] = tuple(_theirs(found, ours.suite, conditions, own) for found in mine)
    rest = (_theirs(found, ours.suite, conditions, unlike) for found in known if found.row.ours not in used)
    return Beside(ours, conditions, of_row, tuple(rest))


class _Known(NamedTuple):
    """A published row with all the tables that print it, and its values by task, in per cent."""

    row: published.Row
    tables: list[published.Table]
    values: dict[str, float]


def _known(suite: Suite) -> list[_Known]:
    """All published rows of a suite; one that several tables print, having copied it, is there once."""
    found: dict[tuple, _Known] = {}
    for table, row in published.rows(suite.name):
        same = (row.values, *(getattr(row, field.name) for field in fields(Conditions)))
        found.setdefault(same, _Known(row, [], row.of_tasks(suite))).tables.append(table)
    return list(found.values())


def _theirs(known: _Known, part: Suite, conditions: Conditions, unlike: Sequence[str]) -> Theirs:
    """A published row on the tasks of `part`; unlike: what of ours is not as in any published row."""
    values = {task: known.values[task] / 100 for task in part.task_names if task in known.values}
    lacking = [task for task in part.task_names if task not in values]
    differs = [*conditions.differences(known.row), *unlike, *([f"it lacks {', '.join(lacking)}"] if lacking else [])]
    return Theirs(
        known.row.method,
        "; also ".join(f"{table.paper}, {table.table}" for table in known.tables),
        known.row.parameters_m,
        values,
        None if lacking else part.mean(values),
        None if lacking else part.mean_of_groups(values),
        tuple(differs),
        (*known.row.flags, *known.tables[0].flags),
    )


def _conditions(table: Table) -> tuple[Conditions, list[str]]:
    """Ours, and in words what is not as in any published row: another size of the pictures, another split."""
    from timm.models import get_pretrained_cfg

    records = [record for row in table.rows for record in row.records]
    name = records[0].job.backbone
    architecture, equals, _ = name.partition("=")
    known: Any = get_pretrained_cfg(architecture if equals else Path(name).name)
    own_mean_std = UNKNOWN if known is None else _normalisation(known.mean, known.std)
    normalisations = {record.resolved["protocol"]["normalisation"] for record in records}
    conditions = Conditions(
        # A file may hold any weights, whatever it is called: only a name says which they are.
        checkpoint=UNKNOWN if equals or known is None else f"{known.architecture}.{known.tag}",
        normalisation=_one({own_mean_std if name == "own" else name for name in normalisations}),
        epoch=_one({str(record.resolved["protocol"].get("epoch_reported", UNKNOWN)) for record in records}),
        augmentation=_augmentation(records),
    )
    sizes = {tuple(record.resolved["protocol"].get("image_size") or ()) for record in records}
    own = tuple(known.input_size[1:]) if known is not None else None
    unlike = [
        f"ours on pictures of {' x '.join(map(str, size))} pixels" for size in sorted(sizes) if own and size != own
    ]
    # A package may carry the weights in a shorter form; its source says so.
    unlike += [
        f"our weights are from {found}"
        for found in sorted({r.backbone_source for r in records})
        if found.startswith("package ")
    ]
    splits = sorted({record.split for record in records} - {"test"})
    return conditions, [*unlike, *(f"ours is measured on the split {split}" for split in splits)]


def _one(found: set[str]) -> str:
    return found.pop() if len(found) == 1 else UNKNOWN


def _augmentation(records: Sequence[Record]) -> str:
    """In the words of the published tables, in which some of the tasks may have it: "flip on 11 tasks"."""
    of_task: dict[str, set[str]] = {}
    for record in records:
        of_task.setdefault(record.job.task, set()).add(record.resolved["protocol"]["augmentation"])
    found = [_one(names) for names in of_task.values()]
    used = sorted(set(found) - {"none"})
    if len(used) > 1 or UNKNOWN in used:
        return UNKNOWN
    words, count = AUGMENTATIONS[used[0] if used else "none"], len(found) - found.count("none")
    return words if len(set(found)) == 1 else f"{words} on {count} task{'s' * (count > 1)}"


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    return next((name for name, known in NORMALISATIONS.items() if known == (tuple(mean), tuple(std))), "own")


def _arguments(row: Row) -> list[str]:
    """The arguments in which a row of ours is not its method as it is by default, or as its protocol has it."""
    from .. import methods

    found: dict[str, Any] = {}
    for record in row.records:
        job = record.job
        usual: Mapping[str, Any] = methods.find(job.method).defaults()
        if job.protocol in protocols.names():
            usual = {**usual, **protocols.find(job.protocol).options(job.method, job.task)}
        found |= {name: value for name, value in job.arguments.items() if value != _plain(usual.get(name))}
    return [f"ours has {name}={json.dumps(value)}" for name, value in found.items()]


def _plain(value: Any) -> Any:
    """As a record has it, which is JSON."""
    return list(value) if isinstance(value, tuple) else value


def _against(ours: Row, theirs: Theirs) -> Paired:
    spreads = {
        task: Spread({seed: value - theirs.values[task] for seed, value in spread.values.items()})
        for task, spread in ours.tasks.items()
    }
    return paired(ours.label, f"{theirs.method} ({theirs.source})", spreads)
