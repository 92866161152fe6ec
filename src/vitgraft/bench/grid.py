"""Many runs as one piece of work: any number of processes, killed and started again at will, do each of them once.

OUT/records/KEY.json     a finished run; written last, whole
OUT/failures/KEY.json    a run that failed at its last try, with the reason
OUT/runs/KEY/            the run's own folder, from which a fit that was killed continues
OUT/locks/KEY            held by the process that does the run

Some tasks are only tested, with the model of another: such a run has no folder of its own but reads that of the fit,
and is begun once the fit has a record.
"""

from __future__ import annotations

import gc
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import files
from ..errors import RequestError, VitgraftError, WorkError, near_misses
from . import provenance, record
from .locks import held, is_held
from .record import Job

if TYPE_CHECKING:
    from .suites import Suite, TaskOf

FOLDERS = ("records", "failures", "runs", "locks")
Fit = Callable[..., Any]  # as vitgraft.fit: gives an object with `result`, the contents of result.json
Say = Callable[[str], None]


class Workers(Protocol):
    """Who does the jobs: processes of this machine (`workers.Processes`), or a cluster (`on_ray.OnRay`).

    Whoever it is asks `do` for a job, whose lock and record keep it from being done twice.
    """

    def share(self, jobs: Sequence[Job], out: Path, fit: Fit | None, begun: float, say: Say) -> None:
        """Does what is left of the jobs in a folder that `prepare` made; returns when nothing is left to begin."""


def _silent(line: str) -> None:
    pass


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
    from .workers import Processes

    shared = Processes(workers) if isinstance(workers, int) else workers
    shared.share(jobs, out, fit, time.time(), say or _silent)


def prepare(suite: Suite, out: str | Path) -> Path:
    """Makes the folders in which `do` works; RequestError where they hold records of another suite."""
    out = Path(out)
    files.check_folder(out)
    check(suite, out)
    for name in FOLDERS:
        # Not files.make_folder, which takes away what another process is about to write.
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"{out / name} could not be made ({error.strerror}): choose another folder.") from error
    return out


def work(
    jobs: Sequence[Job], out: Path, fit: Fit | None, begun: float, *, owner: str = "", say: Say | None = None
) -> None:
    """Does, one after the other, each job that is not done, under way elsewhere, or failed since `begun` (seconds since
    1970). owner: what the locks say of who holds them."""
    for job in jobs:
        do(job, out, fit, begun, owner=owner, say=say)


def do(
    job: Job, out: Path, fit: Fit | None = None, begun: float = math.inf, *, owner: str = "", say: Say | None = None
) -> bool:
    """Does one job unless it is done, under way elsewhere, or failed since `begun`; whether it is done then.

    out: a folder that `prepare` made. Any number of processes may ask for the same job.
    """
    if is_done(job, out):
        return True
    with held(out / "locks" / job.key, owner) as free:
        if free and not is_done(job, out) and is_ready(job, out) and not failed_since(job, out, begun):
            _measure(job, out, fit or fit_here, say or _silent)
        return is_done(job, out)


def _measure(job: Job, out: Path, fit: Fit, say: Say) -> None:
    failure, started = out / "failures" / f"{job.key}.json", time.monotonic()
    provenance.commit()  # as the code is now, not when the run has ended
    try:
        if job.source:
            result = test_here(job, out / "runs" / job.source)
        else:
            result = fit(job.root, out=out / "runs" / job.key, resume=True, quiet=True, **job.options()).result
        found = record.of_result(job, result)
    except Exception as error:
        reason = str(error) if isinstance(error, VitgraftError) else f"{type(error).__name__}: {error}"
        note_failure(job, out, reason, "".join(traceback.format_exception(error)))
        say(f"failed    {job.title}: {reason}")
        return
    path = out / "records" / f"{job.key}.json"
    record.write(found, path)
    for left in path.parent.glob(files.TEMPORARY.format(name=path.name, process="*")):
        left.unlink(missing_ok=True)  # of writers of this record that were killed; the lock says that none is left
    failure.unlink(missing_ok=True)
    say(f"done      {job.title}: {found.metric} {found.value:.4f}, {time.monotonic() - started:.0f} s")


def fit_here(root: str, *, backbone: str, **options: Any) -> Any:
    """vitgraft.fit with the backbone that the run before left loaded, and memory measured from here on."""
    import torch

    from .. import fitting

    if torch.cuda.is_available():
        gc.collect()  # what the run before left is not this one's
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of this process begins anew
    return fitting.fit(root, backbone=_loaded(backbone), **options)


def test_here(job: Job, run: Path) -> dict[str, Any]:
    """The result of a run with what its model answers on the pictures of another task in the place of its own.

    A set may show some of the classes that the model knows: it answers with one of these, see `classification.among`.
    Raises WorkError where the run's folder is gone.
    """
    from ..run import Run

    if not (run / "result.json").is_file():
        raise WorkError(
            f"The model of {run} was to be tested, but that folder is gone: delete {run.parents[1] / 'records'}/"
            f"{run.name}.json, and the same command fits it again."
        )
    made = Run(run, _loaded(job.backbone))
    result = made.result
    found = made.evaluate(job.root, result["split"], shown_only=True, skip_bad=job.settings.get("skip_bad", False))
    return {**result, "value": found.value, "interval": found.interval, "numbers": found.numbers, "split": found.split}


@lru_cache(maxsize=1)
def _loaded(name: str) -> Any:
    from ..backbone import Backbone

    return Backbone.load(name)


def is_done(job: Job, out: Path) -> bool:
    """Whether there is a record of the job. One that was cut off is none: the run is repeated, the record replaced."""
    return _has_record(job.key, out)


def is_ready(job: Job, out: Path) -> bool:
    """Whether the model that the job tests is there; a fit can always begin."""
    return not job.source or _has_record(job.source, out)


def _has_record(key: str, out: Path) -> bool:
    path = out / "records" / f"{key}.json"
    if not path.is_file():
        return False
    try:
        record.read(path)
    except RequestError:
        return False
    return True


def check(suite: Suite, out: Path) -> None:
    """RequestError where `out` holds records of another suite."""
    for path in sorted((out / "records").glob("*.json")):
        try:
            found = record.read(path)
        except RequestError:
            continue  # damaged: it is repeated, or said where the table is read
        record.check_suite(found.job, suite, path)


def note_failure(job: Job, out: Path, reason: str, trace: str = "") -> None:
    """Writes down why a job failed."""
    told = {"key": job.key, "reason": reason, "time": time.time(), "job": asdict(job), "traceback": trace}
    circumstances = {"versions": provenance.versions(), "machine": provenance.machine()}
    files.write_json(out / "failures" / f"{job.key}.json", {**told, **circumstances})


def failure_of(out: Path, key: str) -> dict[str, Any] | None:
    """What is noted of a job that failed at its last try; None where nothing is."""
    path = out / "failures" / f"{key}.json"
    if not path.is_file():
        return None
    try:
        told = files.read_json(path)
        return told if "reason" in told and "time" in told else None
    except (RequestError, TypeError):
        return None  # cut off: as if it had never been tried


def failed_since(job: Job, out: Path, begun: float) -> bool:
    """Whether the job was tried and failed at or after `begun` (seconds since 1970)."""
    told = failure_of(out, job.key)
    return told is not None and told["time"] >= begun


def is_open(job: Job, out: Path, begun: float) -> bool:
    """Whether a job is left to begin: ready, and neither done, nor failed since `begun`, nor under way in a living
    process."""
    settled = is_done(job, out) or failed_since(job, out, begun) or is_held(out / "locks" / job.key)
    return is_ready(job, out) and not settled


def give_up(job: Job, out: Path, reason: str, say: Say) -> None:
    """Notes as failed a job whose worker is dead, unless another has taken it over or done it."""
    with held(out / "locks" / job.key) as free:
        if free and not is_done(job, out):
            note_failure(job, out, reason)
            say(f"failed    {job.title}: {reason}")
