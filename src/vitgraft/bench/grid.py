"""Many runs as one piece of work: methods x variants x tasks x seeds as jobs, and where they stand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..common.errors import RequestError, near_misses
from . import provenance, record
from .locks import is_held
from .record import Job
from .work import Fit, Say, check, failure_of, is_done, prepare, silent
from .workers import Processes

if TYPE_CHECKING:
    from .suites import Suite, TaskOf


class Workers(Protocol):
    """Who does the jobs: processes of this machine (`workers.Processes`), or a cluster (`on_ray.OnRay`).

    Whoever it is asks `do` for a job, whose lock and record keep it from being done twice.
    """

    def share(self, jobs: Sequence[Job], out: Path, fit: Fit | None, begun: float, say: Say) -> None:
        """Does what is left of the jobs in a folder that `prepare` made; returns when nothing is left to begin."""


def _nothing(method: str, task: str) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Grid:
    """methods x variants x tasks x seeds, as independent jobs in a fixed order.

    suite: whose tasks are done, all of them or those in `data`. data: {task: folder}. backbone: a timm name or a file;
    fingerprint: of its weights (`Backbone.fingerprint`), which identifies a run where a name does not. protocol: its
    name; options: what it says of a method on a task, both by name (`Protocol.options`); flags: what in it flatters.
    methods: {label: its options, with "method" where that is not the label}. variants: {words to add to the label:
    options}, such as {"lr 1e-3": {"lr": 1e-3}}. seeds: of the fit. Of two that give an option, the variant wins over
    the method, and that over the protocol. tune: gives a job the settings that a search chose for it
    (`search.Choices.tune`).

    Raises RequestError for a folder of no task, for an empty axis, for a task that is only tested where that with whose
    model it is tested is missing, and for two jobs that are the same run.
    """

    suite: Suite
    data: Mapping[str, str | Path]
    backbone: str
    fingerprint: str
    methods: Mapping[str, Mapping[str, Any]]
    protocol: str
    seeds: Sequence[int] = (0,)
    options: Callable[[str, str], Mapping[str, Any]] = _nothing
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    flags: Sequence[str] = ()
    tune: Callable[[Job], Job] | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.suite.tasks]
        for name in self.data:
            if name not in names:
                raise RequestError(
                    f"There is no task {name!r} in the suite {self.suite.name}: there are {', '.join(names)}; choose "
                    f"one of these.{near_misses(name, names)}"
                )
        for task in self.suite.tasks:
            if task.name in self.data and task.trained_on and task.trained_on not in self.data:
                raise RequestError(
                    f"{task.name} is tested with the model of {task.trained_on}, but that is not among the tasks: add "
                    "it, which fits no model twice."
                )
        for axis in ("data", "methods", "seeds", "variants"):
            if not len(getattr(self, axis)):
                raise RequestError(f"A grid has one or more {axis}, but none came: name some.")

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs: seed by seed, so that a grid that is stopped early is a whole table of fewer seeds; after each fit
        the tests of its model."""
        tasks = [task for task in self.suite.tasks if task.name in self.data]
        roots = {task.name: str(Path(self.data[task.name]).expanduser().resolve()) for task in tasks}
        digests = {name: provenance.data_digest(root) for name, root in roots.items()}
        tested = {task.name: [t.name for t in tasks if t.trained_on == task.name] for task in tasks}
        fits = (
            self._job(task, roots[task.name], digests[task.name], label, variant, seed)
            for seed in self.seeds
            for task in tasks
            if not task.trained_on
            for label in self.methods
            for variant in self.variants
        )
        jobs = tuple(
            job for fit in fits for job in (fit, *(fit.tested(t, roots[t], digests[t]) for t in tested[fit.task]))
        )
        first: dict[str, Job] = {}
        for job in jobs:
            if (other := first.setdefault(job.key, job)) is not job:
                raise RequestError(
                    f"{other.title!r} and {job.title!r} are the same run, and none is done twice: remove one of them."
                )
        return jobs

    def _job(self, task: TaskOf, root: str, digest: str, label: str, variant: str, seed: int) -> Job:
        own = dict(self.methods[label])
        method = own.pop("method", label)
        given = {**own, **self.variants[variant]}
        if taken := [name for name in ("seed", "method", "backbone", "out", "resume") if name in given]:
            raise RequestError(
                f"{label!r} on {task.name} sets {taken[0]}, which the grid sets for each of its runs: leave it out."
            )
        options = {**self.options(method, task.name), **given}
        options.pop("seed", None)  # the protocol's, where it has a single one
        settings, arguments = record.sort_options(options)
        job = Job(
            suite=self.suite.name,
            task=task.name,
            protocol=self.protocol,
            label=f"{label} {variant}".strip(),
            method=method,
            arguments=arguments,
            settings=settings,
            seed=seed,
            backbone=self.backbone,
            fingerprint=self.fingerprint,
            root=root,
            digest=digest,
            flags=list(self.flags),
        )
        return self.tune(job) if self.tune else job


@dataclass(frozen=True)
class Plan:
    """Where a grid stands, each list in its order: done, under way in a living process, failed at the last try, and to
    be done. What failed is tried again at the next start. reasons: of the failures, by key."""

    done: tuple[Job, ...]
    running: tuple[Job, ...]
    failed: tuple[Job, ...]
    waiting: tuple[Job, ...]
    reasons: dict[str, str]

    def lines(self) -> list[str]:
        """The same in words."""
        states = {name: getattr(self, name) for name in ("done", "running", "failed", "waiting")}
        jobs = [job for found in states.values() for job in found]
        tests = sum(bool(job.source) for job in jobs)
        what = f"{len(jobs) - tests} runs" + (f" and {tests} tests of their models" if tests else "")
        head = f"{what}: " + ", ".join(f"{len(found)} {name}" for name, found in states.items())
        return [head, *(f"failed  {job.title} ({job.key}): {self.reasons[job.key]}" for job in self.failed)]


def plan(grid: Grid, out: str | Path) -> Plan:
    """What of a grid is done in the folder `out` and what is to be done; starts nothing and changes nothing.

    RequestError where `out` holds records of another suite.
    """
    out = Path(out)
    found: dict[str, list[Job]] = {name: [] for name in ("done", "running", "failed", "waiting")}
    check(grid.suite, out)
    told = {job.key: failure for job in grid.jobs if (failure := failure_of(out, job.key))}
    for job in grid.jobs:
        if is_done(job, out):
            state = "done"
        elif is_held(out / "locks" / job.key):
            state = "running"
        else:
            state = "failed" if job.key in told else "waiting"
        found[state].append(job)
    reasons = {job.key: str(told[job.key]["reason"]) for job in found["failed"]}
    return Plan(**{state: tuple(jobs) for state, jobs in found.items()}, reasons=reasons)


def run(
    grid: Grid, out: str | Path, *, fit: Fit | None = None, workers: int | Workers = 1, say: Say | None = None
) -> Plan:
    """Does what is left of a grid in the folder `out`, and says where it stands then.

    A run that fails is noted with its reason and does not stop the others; it is tried again at the next start.
    Processes that share `out` divide the runs among them; this one leaves those that another is at, and returns when
    nothing is left to begin. workers: processes on this machine, or `OnRay`. fit, say: with several workers functions
    that can be pickled; fit is vitgraft's, unless given.

    Raises RequestError where `out` holds records of another suite, WorkError where nothing can be written.
    """
    out = prepare(grid.suite, out)
    spread(grid.jobs, out, fit=fit, workers=workers, say=say)
    return plan(grid, out)


def spread(
    jobs: Sequence[Job], out: Path, *, fit: Fit | None = None, workers: int | Workers = 1, say: Say | None = None
) -> None:
    """Does what is left of these jobs in a folder that `prepare` made; see `run`."""
    shared = Processes(workers) if isinstance(workers, int) else workers
    shared.share(jobs, out, fit, time.time(), say or silent)
