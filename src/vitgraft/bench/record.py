"""A job, which is one run of a benchmark that is to be done, and its record: one JSON file, enough to repeat it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from dataclasses import field as of_class
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import files
from ..common.errors import RequestError, WorkError
from ..common.settings import FREE, Settings, as_kept
from . import provenance

if TYPE_CHECKING:
    from .suites import Suite

FORMAT = "vitgraft bench record 1"
OF_FIT = ("task", "head", "head_options", "skip_bad")  # options of `fit` that are neither Settings' nor the method's
_WHAT = ("suite", "task", "protocol", "method", "arguments", "settings", "seed")  # identify a job, with two digests


@dataclass(frozen=True)
class Job:
    """One run that is to be done, and all that it depends on.

    label: its row in a table, such as "hst detached". task: one of the suite's. arguments: of the method. settings:
    fields of `Settings` other than the seed, and options of `fit`. backbone: a name or file, and fingerprint: what its
    weights are (`Backbone.fingerprint`). root: the data's folder, and digest: what lies there
    (`provenance.data_digest`). flags: what in the protocol flatters. chosen: on what and from where its settings were
    chosen (`search.Choice.told`); empty where nobody searched. source: where nothing is fitted on the task but the
    model of another run is tested on it, the key of that run, whose settings these are; else None.
    """

    suite: str
    task: str
    protocol: str
    label: str
    method: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    backbone: str
    fingerprint: str
    root: str
    digest: str
    flags: list[str]
    chosen: dict[str, Any] = of_class(default_factory=dict)
    source: str | None = None

    def __post_init__(self) -> None:
        for name in ("arguments", "settings", "flags", "chosen"):
            try:  # as JSON gives it back, so that a job equals the one that is read from its record
                plain = json.loads(json.dumps(getattr(self, name), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise RequestError(
                    f"The {name} of {self.label!r} cannot be written as JSON ({error}): give numbers, words and lists."
                ) from error
            object.__setattr__(self, name, plain)

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits: equal where the same run is asked for, whatever its label and wherever its files."""
        what = {name: getattr(self, name) for name in _WHAT}
        what["settings"] = {name: value for name, value in self.settings.items() if name not in FREE}
        what |= {"backbone": self.fingerprint, "data": self.digest}
        what |= {"source": self.source} if self.source else {}
        text = json.dumps(_same(what), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.label}, {self.task}, seed {self.seed}"

    def varied(self, words: str, options: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> Job:
        """The same with other options of the fit, and words added to its label."""
        settings, arguments = sort_options(options)
        return replace(
            self,
            label=f"{self.label} {words}",
            settings={**self.settings, **settings},
            arguments={**self.arguments, **arguments},
            chosen=dict(chosen or {}),
        )

    def tested(self, task: str, root: str, digest: str) -> Job:
        """The test of this run's model on another task."""
        return replace(self, task=task, root=root, digest=digest, source=self.key)

    def options(self) -> dict[str, Any]:
        """What `vitgraft.fit` is called with, besides the folders."""
        chosen = {"method": self.method, "backbone": self.backbone, "seed": self.seed}
        return {**self.settings, **self.arguments, **chosen}


def sort_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a fit, (settings, arguments of the method)."""
    names = {*Settings.names(), *OF_FIT}
    settings = {name: as_kept(name, value) for name, value in options.items() if name in names}
    return settings, {name: value for name, value in options.items() if name not in names}


def _same(value: Any) -> Any:
    """Numbers in one form: 1 and 1.0 are the same learning rate."""
    if isinstance(value, dict):
        return {name: _same(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_same(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Record:
    """What came out of a job.

    metric, value (0..1), interval (95 %, or None), split: what was measured, and where. seconds: of training.
    peak_memory: bytes, of the GPU or of the process. parameters: of the method; head_parameters: of head and neck; both
    as the adapter file holds them. cost: FLOPs and kept bytes. resolved: every setting and argument as it was in the
    end, defaults included. commit, dirty: of the package when the process began, None outside a checkout.
    """

    job: Job
    metric: str
    value: float
    interval: list[float] | None
    split: str
    seconds: float
    peak_memory: int
    parameters: int
    head_parameters: int
    backbone_parameters: int
    cost: dict[str, Any]
    resolved: dict[str, Any]
    backbone_source: str
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    machine: dict[str, Any]


def of_result(job: Job, result: Mapping[str, Any]) -> Record:
    """The record of a job from the result.json of its run; WorkError where that is not what was asked for."""
    if result.get("value") is None:
        raise WorkError(f"The run {job.title} measured nothing: give the setting eval_split.")
    if (found := result["backbone"]["fingerprint"]) != job.fingerprint:
        raise WorkError(
            f"The run {job.title} was to be on weights with fingerprint {job.fingerprint[:12]}, but {job.backbone} has "
            f"{found[:12]}: restore the weights, or begin a new benchmark."
        )
    parts = ("task", "head", "arguments", "protocol")
    commit, dirty = provenance.commit()
    record = Record(
        job=job,
        metric=result["metric"],
        value=float(result["value"]),
        interval=list(result["interval"]) if result["interval"] else None,
        split=result["split"],
        seconds=float(result["seconds"]),
        peak_memory=int(result["cost"]["peak_memory_bytes"]),
        parameters=result["parameters"],
        head_parameters=result["head_parameters"],
        backbone_parameters=result["backbone_parameters"],
        cost={name: value for name, value in result["cost"].items() if name != "peak_memory_bytes"},
        resolved={part: result[part] for part in parts},
        backbone_source=result["backbone"]["source"],
        versions={**provenance.versions(), **result["versions"]},
        commit=commit,
        dirty=dirty,
        machine=provenance.machine(),
    )
    if fault := _fault(asdict(record), Record):
        raise WorkError(f"The run {job.title} ended with a result that is no number to keep: {fault}; see its folder.")
    return record


def write(record: Record, path: Path) -> None:
    """Writes a record whole or not at all."""
    files.write_json(path, {"format": FORMAT, "key": record.job.key, **asdict(record)})


def read(path: str | Path, suite: Suite | None = None) -> Record:
    """A record, every field of it checked; RequestError where it was cut off or altered, or is of another suite."""
    path = Path(path)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read ({error})") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise _bad(path, f"does not begin as one, with the format {FORMAT!r}")
    fault = _fault(told, Record) or _fault(told["job"], Job, "job.")
    if fault:
        raise _bad(path, fault)
    job = Job(**told["job"])
    if told.get("key") != job.key or path.stem != job.key:
        raise _bad(path, f"says that it is the run {told.get('key')}, but its job is the run {job.key}")
    if suite is not None:
        check_suite(job, suite, path)
    return Record(**{f.name: told[f.name] for f in fields(Record) if f.name != "job"}, job=job)


def check_suite(job: Job, suite: Suite, path: Path) -> None:
    """RequestError unless the job is one of this suite."""
    if job.suite != suite.name:
        raise RequestError(
            f"{path} is a record of the suite {job.suite}, but {suite.name} was asked for: name the folder of that "
            "suite, or choose another folder."
        )
    if job.task not in (names := [task.name for task in suite.tasks]):
        raise RequestError(
            f"{path} is a record of the task {job.task!r}, but the suite {suite.name} has {', '.join(names)}: remove "
            "it, or name the suite that has this task."
        )


def _bad(path: Path, fault: str) -> RequestError:
    return RequestError(
        f"{path} is no whole record: it {fault}; delete it and start the benchmark again, which redoes it."
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _interval(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(map(_share, value)) and value[0] <= value[1]
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str) and value != "", "a word"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a word or null"),
    "bool | None": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
    "int": (_count, "a whole number, 0 or more"),
    "float": (lambda value: _number(value) and value >= 0, "a number, 0 or more"),
    "list[float] | None": (_interval, "two numbers from 0 to 1 in order, or null"),
    "list[str]": (lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of words"),
    "dict[str, Any]": (lambda value: isinstance(value, dict), "an object"),
    "dict[str, str]": (
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
        "words",
    ),
    "Job": (lambda value: isinstance(value, dict), "an object"),
    "value": (_share, "a number from 0 to 1"),
}


def _fault(told: Mapping[str, Any], kind: type, before: str = "") -> str:
    """What is wrong with the fields of a record or a job; empty if nothing is."""
    for field in fields(kind):  # their types are words, because annotations are not evaluated here
        if field.name not in told:
            if field.default is not MISSING or field.default_factory is not MISSING:
                continue
            return f"lacks the field {before}{field.name}"
        fits, words = _KINDS["value" if field.name == "value" else str(field.type)]
        if not fits(told[field.name]):
            return f"has {told[field.name]!r} in the field {before}{field.name}, which holds {words}"
    known = {"format", "key", *(field.name for field in fields(kind))}
    if unknown := sorted(set(told) - known):
        return f"has the unknown field {before}{unknown[0]}"
    return ""
