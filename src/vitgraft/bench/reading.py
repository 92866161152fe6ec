"""From records to a table: means and spreads over seeds, both averages, paired differences, the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from ..common.errors import RequestError, near_misses
from ..common.files import read_json
from . import record
from .grouped import grouped
from .paired import bootstrap, signed_rank
from .record import Record

if TYPE_CHECKING:
    from .suites import Suite


@dataclass(frozen=True)
class Spread:
    """A number over seeds: {seed: value}."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1); None for a single seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One method in a table, by its label; `tasks`: {task: Spread}, 0..1, those that have a record."""

    label: str
    suite: Suite
    tasks: dict[str, Spread]
    records: tuple[Record, ...]

    @property
    def missing(self) -> list[str]:
        """The tasks of the suite without a record; while there is one, the row has no average."""
        return [task.name for task in self.suite.tasks if task.name not in self.tasks]

    @cached_property
    def mean(self) -> Spread | None:
        """The plain mean over the tasks, for each seed that has all of them."""
        return self._average(self.suite.mean)

    @cached_property
    def mean_of_groups(self) -> Spread | None:
        """The mean of the groups' means, for each seed that has all tasks."""
        return self._average(self.suite.mean_of_groups)

    @property
    def parameters(self) -> float:
        """Of the method, without the head; the mean over its runs, as all costs are."""
        return fmean(r.parameters for r in self.records)

    @property
    def parameters_with_head(self) -> float:
        return fmean(r.parameters + r.head_parameters for r in self.records)

    @property
    def memory(self) -> float:
        """Peak, in bytes."""
        return fmean(r.peak_memory for r in self.records)

    @property
    def seconds(self) -> float:
        """Of training, one run."""
        return fmean(r.seconds for r in self.records)

    def _average(self, average: Callable[[Mapping[str, float]], float]) -> Spread | None:
        if self.missing:
            return None
        # Only whole seeds: were a seed without its hardest task averaged, the method would gain by failing.
        seeds = sorted(set.intersection(*(set(spread.values) for spread in self.tasks.values())))
        found = {seed: average({name: spread.values[seed] for name, spread in self.tasks.items()}) for seed in seeds}
        return Spread(found) if found else None


COSTS: dict[str, Callable[[Row], float]] = {
    "parameters": lambda row: row.parameters,
    "parameters with head": lambda row: row.parameters_with_head,
    "memory": lambda row: row.memory,
    "seconds": lambda row: row.seconds,
}
# Settings that runs on one task must share to be like with like.
BUDGET = ("epochs", "batch_size", "image_size", "precision", "normalisation", "augmentation", "views", "train_split")
AVERAGES: dict[str, Callable[[Row], Spread | None]] = {
    "mean": lambda row: row.mean,
    "mean of groups": lambda row: row.mean_of_groups,
}


def averages(suite: Suite) -> dict[str, Callable[[Row], Spread | None]]:
    """Those of a suite, by their titles: of one group the mean of groups would be the mean once more."""
    found = {f"mean of {len(suite.tasks)}": AVERAGES["mean"]}
    return found | ({"mean of groups": AVERAGES["mean of groups"]} if len(suite.groups) > 1 else {})


@dataclass(frozen=True)
class Table:
    """Rows of one suite, one protocol and one backbone; notes: sentences without which the numbers mislead."""

    suite: Suite
    protocol: str
    backbone: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """Those that have a record."""
        return [task.name for task in self.suite.tasks if any(task.name in row.tasks for row in self.rows)]

    def title(self, task: str) -> str:
        """Of a task, for readers."""
        return self.suite.task(task).title or task

    def row(self, label: str) -> Row:
        """The row of a label; RequestError with the near misses if there is none."""
        labels = [row.label for row in self.rows]
        if label not in labels:
            raise RequestError(
                f"There is no row {label!r} in the table: there are {', '.join(labels)}; choose one of these."
                f"{near_misses(label, labels)}"
            )
        return self.rows[labels.index(label)]


@dataclass(frozen=True)
class Gap:
    """A run that a table lacks; reason: why it failed, empty if it was not done."""

    label: str
    task: str
    seed: int
    reason: str = ""


def gap_lines(gaps: Iterable[Gap]) -> list[str]:
    """The same in words: each that failed, with its reason, and what was not done, rows that lack the same together."""
    gaps = list(gaps)
    failed = [f"failed: {gap.label}, {gap.task}, seed {gap.seed}: {gap.reason}" for gap in gaps if gap.reason]
    seeds = grouped(((gap.label, gap.task), gap.seed) for gap in gaps if not gap.reason)
    tasks = grouped(((label, numbers), task) for (label, task), numbers in seeds.items())
    labels = grouped(((names, numbers), label) for (label, numbers), names in tasks.items())
    return failed + [
        f"not run: {'; '.join(rows)}, {', '.join(names)}, seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
        for (names, numbers), rows in labels.items()
    ]


def gaps(table: Table, out: str | Path) -> list[Gap]:
    """The runs that are not in a table: of each row the tasks and seeds that any row has, and those that failed in the
    folder `out`, whatever else there is of them."""
    seeds = {seed for row in table.rows for spread in row.tasks.values() for seed in spread.values}
    done = {(row.label, task, seed) for row in table.rows for task in row.tasks for seed in row.tasks[task].values}
    failed = _failures(Path(out), table.protocol)
    wanted = [(row.label, task, seed) for row in table.rows for task in table.tasks for seed in sorted(seeds)]
    missing = dict.fromkeys(run for run in [*wanted, *failed] if run not in done)
    return [Gap(*run, failed.get(run, "")) for run in missing]


def _failures(out: Path, protocol: str) -> dict[tuple[str, str, int], str]:
    """{(label, task, seed): reason} of the runs that failed at their last try."""
    found = {}
    for path in sorted((out / "failures").glob("*.json")):
        try:
            told = read_json(path)
            job, reason = told["job"], str(told["reason"])
            if job["protocol"] == protocol:
                found[job["label"], job["task"], job["seed"]] = reason
        except (RequestError, TypeError, KeyError):
            continue  # cut off: as if it had never been tried
    return found


def read(out: str | Path, suite: Suite) -> list[Record]:
    """All records in the folder of a grid; RequestError for one that was cut off or is of another suite, or if there is
    none."""
    paths = sorted(Path(out, "records").glob("*.json"))
    if not paths:
        raise RequestError(f"{out} holds no record of a benchmark: name the folder that `vitgraft bench run` made.")
    return [record.read(path, suite) for path in paths]


def table(
    records: Iterable[Record], suite: Suite, *, protocol: str | None = None, labels: Sequence[str] | None = None
) -> Table:
    """The records as a table, like with like.

    protocol: one of those that the records have; needed where there are several. labels: the rows and their order; by
    default all, by name. RequestError where records that must not stand side by side would: of several protocols or
    backbones, other data for the same task, another metric, or two different runs for one cell.
    """
    records = [r for r in records if protocol is None or r.job.protocol == protocol]
    if not records:
        raise RequestError(f"There is no record of the protocol {protocol}: choose another, or run it first.")
    for record_ in records:
        record.check_suite(record_.job, suite, Path(f"{record_.job.key}.json"))
    used = _only("protocols", [r.job.protocol for r in records], "choose one")
    _only("backbones", [r.job.fingerprint[:12] for r in records], "keep each backbone in a folder of its own")
    for task in suite.tasks:
        of_task = [r for r in records if r.job.task == task.name]
        _only(f"data sets of {task.name}", [r.job.digest[:12] for r in of_task], "keep each in a folder of its own")
        _only(f"metrics of {task.name}", [f"{r.metric} on {r.split}" for r in of_task], "measure all in one way")
    present = sorted({r.job.label for r in records})
    rows = tuple(_row(label, suite, [r for r in records if r.job.label == label]) for label in present)
    made = Table(suite, used, Path(records[0].job.backbone).name, rows, tuple(_notes(rows)))
    if labels is None:
        return made
    rows = tuple(made.row(label) for label in labels)
    return Table(suite, used, made.backbone, rows, tuple(_notes(rows)))


def _only(what: str, found: Sequence[str], advice: str) -> str:
    different = list(dict.fromkeys(found))
    if len(different) > 1:
        raise RequestError(f"A table compares like with like, but there are {what} {', '.join(different)}: {advice}.")
    return different[0] if different else ""


def _row(label: str, suite: Suite, records: Sequence[Record]) -> Row:
    cells: dict[str, dict[int, float]] = {task.name: {} for task in suite.tasks}
    for r in sorted(records, key=lambda r: r.job.seed):
        if r.job.seed in cells[r.job.task]:
            raise RequestError(
                f"There are two runs of {r.job.title!r} with other settings or arguments: give one of them another "
                "label, or remove its record."
            )
        cells[r.job.task][r.job.seed] = r.value
    return Row(label, suite, {task: Spread(values) for task, values in cells.items() if values}, tuple(records))


def _notes(rows: Sequence[Row]) -> list[str]:
    records = [r for row in rows for r in row.records]
    notes = [f"flatters: {flag}" for flag in dict.fromkeys(flag for r in records for flag in r.job.flags)]
    for missing, labels in grouped((tuple(row.missing), row.label) for row in rows if row.missing).items():
        lacks, has = ("lacks", "it has") if len(labels) == 1 else ("lack", "they have")
        notes.append(f"{', '.join(labels)} {lacks} {', '.join(missing)}, so {has} no average")
    counts = {row.label: [len(spread.values) for spread in row.tasks.values()] for row in rows}
    uneven = (((min(n), max(n)), label) for label, n in counts.items() if min(n) < max(n))
    for (fewest, most), labels in grouped(uneven).items():
        has, its = ("has", "its") if len(labels) == 1 else ("have", "their")
        notes.append(f"{', '.join(labels)} {has} {fewest} to {most} seeds; {its} averages are over whole seeds only")
    for name in BUDGET:
        # Of one task: a protocol may augment some tasks and not others.
        found: dict[str, dict[str, None]] = {}
        for r in records:
            found.setdefault(r.job.task, {})[str(r.resolved.get("protocol", {}).get(name))] = None
        if mixed := [task for task, values in found.items() if len(values) > 1]:
            values = ", ".join(found[mixed[0]])
            notes.append(f"the runs on {mixed[0]} were not given the same {name.replace('_', ' ')}: {values}")
    if len({str(r.machine) for r in records}) > 1:
        notes.append("seconds and memory are from different machines")
    if len({(str(r.versions), r.commit) for r in records}) > 1:
        notes.append("the runs are from different versions or commits")
    if any(r.dirty for r in records):
        notes.append("some runs are from code that differs from its commit")
    return notes


@dataclass(frozen=True)
class Paired:
    """`one` minus `other` over the tasks and seeds that both have, 0..1.

    spreads: {task: the difference of each seed}; mean: over tasks; interval: 95 %, by bootstrap over tasks; w, p:
    Wilcoxon's signed-rank test over tasks, two-sided.
    """

    one: str
    other: str
    spreads: dict[str, Spread]
    mean: float
    interval: tuple[float, float]
    w: float
    p: float

    @property
    def differences(self) -> dict[str, float]:
        """{task: difference of the means over shared seeds}."""
        return {task: spread.mean for task, spread in self.spreads.items()}

    def line(self) -> str:
        """The same in words, in points of per cent."""
        low, high = self.interval
        wins = sum(d > 0 for d in self.differences.values())
        return (
            f"{self.one} - {self.other}: {100 * self.mean:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}) over "
            f"{len(self.differences)} tasks, ahead on {wins}; Wilcoxon p = {self.p:.3g}"
        )


def compare(table: Table, one: str, other: str, *, draws: int = 10_000, seed: int = 0) -> Paired:
    """Two rows, task by task and seed by seed; RequestError where they share none."""
    a, b = table.row(one), table.row(other)
    spreads = {}
    for task in (task.name for task in table.suite.tasks if task.name in a.tasks and task.name in b.tasks):
        x, y = a.tasks[task].values, b.tasks[task].values
        if shared := sorted(set(x) & set(y)):
            spreads[task] = Spread({s: x[s] - y[s] for s in shared})
    if not spreads:
        raise RequestError(
            f"{one} and {other} share no task and seed, so nothing can be compared: run both on the same."
        )
    return paired(one, other, spreads, draws=draws, seed=seed)


def paired(one: str, other: str, spreads: dict[str, Spread], *, draws: int = 10_000, seed: int = 0) -> Paired:
    """What is to be said of the differences of two methods, {task: the difference of each seed}, at least one task."""
    values = [spread.mean for spread in spreads.values()]
    w, p = signed_rank(values)
    return Paired(one, other, spreads, fmean(values), bootstrap(values, draws=draws, seed=seed), w, p)


def pareto(table: Table, cost: str = "parameters", average: str = "mean") -> list[Row]:
    """The rows that no other beats: none is as good or better for the same cost or less. Cheapest first.

    cost: one of COSTS; average: one of AVERAGES. Rows without an average are left out.
    """
    for name, known in ((cost, [*COSTS]), (average, [*AVERAGES])):
        if name not in known:
            raise RequestError(
                f"There is no {name!r}: there is {', '.join(known)}; choose one.{near_misses(name, known)}"
            )
    points = [(COSTS[cost](row), found.mean, row) for row in table.rows if (found := AVERAGES[average](row))]

    def beaten(price: float, value: float) -> bool:
        return any(p <= price and v >= value and (p < price or v > value) for p, v, _ in points)

    front = [point for point in points if not beaten(*point[:2])]
    return [row for *_, row in sorted(front, key=lambda point: point[:2])]
