"""Settings chosen on the validation split, never on test: every trial is a run with a record of its own.

OUT/search/         the trials, a folder as any benchmark's (see `grid`)
OUT/choices.json    for each method and task the settings of its best trial, and the values of all

Nothing else is kept: which trials come next follows from the records, so a search that was killed goes on where it was.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from ..common import files
from ..common.errors import RequestError, near_misses
from . import grid, record, shipped, work
from .grid import Grid, Workers
from .grouped import grouped
from .locks import alone, is_held
from .record import Job
from .work import Fit, Say

FORMAT = "vitgraft bench choices 2"
FOLDER, FILE = "search", "choices.json"  # in the benchmark's folder
OTHERS = "others"  # the space of a method that has none of its own
GIVEN = "given"  # the space of values that came with the request
WORD = "tuned"  # added to the label of a run whose settings were chosen
SEED = 0  # of Optuna's sampler
ASKED = 20  # times as often as there are trials is Optuna asked; it may propose what was tried

Options = dict[str, Any]
Sampler = Generator[list[Options], list[float], None]  # gives options to try, is sent their values


@dataclass(frozen=True)
class Space:
    """What a search may choose from; a file of `spaces/`.

    source: who published it. options: {setting of the fit or argument of the method: a list of values, or
    {"low", "high", "log"} for any number between, drawn evenly or, with log, evenly in its logarithm}.
    """

    name: str
    source: str
    options: Mapping[str, Any]

    def without(self, names: Sequence[str]) -> Space:
        """What is left to choose where some options are given."""
        return Space(self.name, self.source, {n: values for n, values in self.options.items() if n not in names})

    @property
    def size(self) -> float:
        """How many settings there are; infinite where an option is continuous."""
        return math.prod(len(v) if isinstance(v, list) else math.inf for v in self.options.values())

    def points(self) -> list[Options]:
        """All settings of a space that is not continuous, the last option varying fastest."""
        return [dict(zip(self.options, values, strict=True)) for values in itertools.product(*self.options.values())]


def find(method: str) -> Space:
    """The search space of a method: its own, or else that of all others."""
    return load(shipped.HERE / "spaces" / f"{method if method in shipped.names('spaces') else OTHERS}.json")


def given(options: Mapping[str, Sequence[Any]]) -> Space:
    """The space of these values, {option: values}, in the place of a published one; RequestError for a value twice."""
    for name, values in options.items():
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise RequestError(f"{name} was to be tried at {twice[0]} twice: give each value once.")
    return Space(GIVEN, "values that the request gave", {name: list(values) for name, values in options.items()})


def load(file: Path) -> Space:
    """A space from a file; RequestError that says what is wrong with it."""
    told = shipped.read(file, "search space")
    shipped.check_fields(f"{file}", told, [f.name for f in fields(Space)])
    shipped.check_kinds(f"{file}", told, {"name": str, "source": str, "options": dict})
    for name, values in told["options"].items():
        where = f"The option {name} of {file}"
        if isinstance(values, list):
            if not values:
                raise RequestError(f"{where} has no value: give some, or remove it.")
            continue
        shipped.check_fields(where, values, ("low", "high"), ("log",))
        if not (0 if values.get("log") else -math.inf) < values["low"] < values["high"] < math.inf:
            raise RequestError(f"{where} goes from {values['low']} to {values['high']}: give a low end below the high.")
    return Space(**told)


def all_points(space: Space) -> Sampler:
    """The grid, all at once."""
    yield space.points()


def tpe(space: Space, trials: int) -> Sampler:
    """So many different settings, one after the other, by Optuna's tree-structured Parzen estimator.

    Its seed is fixed and it sees values only, so that the same values bring about the same settings. As Optuna has it,
    the first ten are drawn at random.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(values) if isinstance(values, list) else FloatDistribution(**values)
        for name, values in space.options.items()
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED))
    known: dict[str, float] = {}
    for _ in range(ASKED * trials):
        if len(known) == trials:
            break
        trial = study.ask(distributions)
        options = {name: _rounded(trial.params[name]) for name in space.options}
        if (words := _words(options)) not in known:
            (known[words],) = yield [options]
        study.tell(trial, known[words])


def _rounded(value: Any) -> Any:
    """A number with the digits that matter, as a person would write it down."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _words(options: Options) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


@dataclass(frozen=True)
class Trial:
    """One setting that was tried. value: 0..1 on the validation split, the mean over seeds; None where a run failed,
    with the reason. runs: its records, OUT/search/records/RUN.json, one a seed."""

    options: Options
    value: float | None
    runs: list[str]
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """The best trial of a method on a task.

    options: what was chosen; value: of the metric on `split`, the mean over seeds; runs: the trial's records, one for
    each of the seeds. common: what all trials had in common. fingerprint, data: of the weights and the data set
    (`Job`). sampler: in words. space: searched in.
    """

    options: Options
    value: float
    split: str
    runs: list[str]
    seeds: list[int]
    common: dict[str, Any]
    fingerprint: str
    data: str
    sampler: str
    space: dict[str, Any]
    trials: list[dict[str, Any]]

    def told(self, file: Path) -> dict[str, Any]:
        """What a record says of where its settings come from."""
        return {
            "options": self.options,
            "split": self.split,
            "value": self.value,
            "trials": len(self.trials),
            "runs": self.runs,
            "seeds": self.seeds,
            "file": str(file),
        }


class Study:
    """The search for one method on one task.

    jobs: the fit without what is searched, once for each seed. trials: at most so many; None: the whole grid. Raises
    RequestError where a continuous space has no number of trials, or Optuna is needed and not there.
    """

    def __init__(self, jobs: Sequence[Job], space: Space, trials: int | None) -> None:
        self.jobs, self.space = list(jobs), space
        self.job = job = self.jobs[0]  # what it says of itself, all say
        whole = trials is None or trials >= space.size
        if whole and space.size == math.inf:
            raise RequestError(
                f"The search space of {job.method} has continuous options ({_continuous(space)}), of which there is no "
                "grid: give a number of --trials."
            )
        if not whole and importlib.util.find_spec("optuna") is None:
            raise RequestError(
                f"{trials} of the settings of {job.method} were to be tried, which Optuna chooses, but it is not "
                "installed: run pip install 'vitgraft[search]', or leave out --trials where the space is a grid."
            )
        self.sampler = f"grid of {space.size}" if whole else f"Optuna's TPE, seed {SEED}, {trials} trials"
        self.planned = int(space.size) if whole or trials is None else trials
        self._source = all_points(space) if whole or trials is None else tpe(space, trials)
        self._options = next(self._source)  # to try next
        self.trials: list[Trial] = []

    @property
    def finished(self) -> bool:
        return not self._options

    @property
    def pending(self) -> list[Job]:
        """The runs to do next; none once it is finished."""
        return [run for options in self._options for run in self._runs(options)]

    def _runs(self, options: Options) -> list[Job]:
        return [job.varied(_words(options), options) for job in self.jobs]

    def take(self, out: Path) -> bool:
        """Takes over what came of the pending trials in the folder `out`; whether all had come."""
        found = [_trial(self._runs(options), options, out) for options in self._options]
        came = [trial for trial in found if trial is not None]
        if len(came) < len(found):
            return False  # another process is at one
        self.trials += came
        try:
            # A run that failed, its loss not finite for example, is as bad as can be.
            self._options = self._source.send([trial.value or 0.0 for trial in came])
        except StopIteration:
            self._options = []
        return True

    def choice(self) -> Choice | None:
        """The best of all trials; None before all are done, and where all failed.

        Of equal values that with the smaller learning rate is taken, as KMnP/vpt's tune_vtab.py does, and then that
        which came first.
        """
        done = [trial for trial in self.trials if trial.value is not None]
        if not (self.finished and done):
            return None
        best = max(done, key=lambda trial: (trial.value, -trial.options.get("lr", 0.0)))
        return Choice(
            options=best.options,
            value=float(best.value or 0.0),
            split=self.job.settings["eval_split"],
            runs=best.runs,
            seeds=[job.seed for job in self.jobs],
            common={**self.job.settings, **self.job.arguments},
            fingerprint=self.job.fingerprint,
            data=self.job.digest,
            sampler=self.sampler,
            space=asdict(self.space),
            trials=[asdict(trial) for trial in self.trials],
        )


def _continuous(space: Space) -> str:
    return ", ".join(name for name, values in space.options.items() if not isinstance(values, list))


def _trial(runs: Sequence[Job], options: Options, out: Path) -> Trial | None:
    """What came of a trial; None where something has not yet."""
    values, reasons = [], []
    for job in runs:
        if work.is_done(job, out):
            values.append(record.read(out / "records" / f"{job.key}.json").value)
        elif not is_held(out / "locks" / job.key) and (failure := work.failure_of(out, job.key)):
            reasons.append(str(failure["reason"]))
        else:
            return None
    keys = [job.key for job in runs]
    return Trial(options, None, keys, reasons[0]) if reasons else Trial(options, fmean(values), keys)


def studies(base: Grid, trials: int | None, over: Space | None = None) -> list[Study]:
    """The searches for each method on each task of a grid whose options are those for choosing.

    over: the space of all methods, in the place of each one's own. What a method's own options give is not searched.
    RequestError where nothing is left to choose, and where a run would see another split than train and val.
    """
    if trials is not None and trials < 1:
        raise RequestError(f"trials is {trials}, but must be 1 or more: give another value.")
    found = []
    for jobs in grouped(((job.label, job.task), job) for job in base.jobs).values():
        job = jobs[0]
        splits = job.settings.get("train_split"), job.settings.get("eval_split")
        if splits != ("train", "val"):
            raise RequestError(
                f"Settings are chosen by training on train and measuring on val, but {job.label!r} was to train on "
                f"{splits[0]} and measure on {splits[1]}: leave out train_split and eval_split."
            )
        own = over or find(job.method)
        space = own.without(list(base.methods[job.label]))
        if not space.options:
            raise RequestError(
                f"The search for {job.label!r} has nothing to choose: {', '.join(own.options)} are given; leave one "
                "out."
            )
        found.append(Study(jobs, space, trials))
    return found


def search(
    base: Grid,
    found: Sequence[Study],
    out: Path,
    *,
    fit: Fit | None = None,
    workers: int | Workers = 1,
    say: Say | None = None,
) -> dict[str, dict[str, Choice]]:
    """Does what is left of the searches in OUT/search, writes OUT/choices.json, and gives what was chosen,
    {label: {task: Choice}}. What another process is at, or what failed altogether, is not among it.

    Choices of earlier searches in the same folder stay. fit, workers, say: as in `grid.run`.
    """
    folder = work.prepare(base.suite, out / FOLDER)
    _told(base, out)  # a file that cannot be added to says so before the work, not after it
    waiting = list(found)
    while waiting:
        pending = [job for study in waiting for job in study.pending]
        if left := [job for job in pending if not work.is_done(job, folder)]:
            grid.spread(left, folder, fit=fit, workers=workers, say=say)
        waiting = [study for study in waiting if study.take(folder) and not study.finished]
    made: dict[str, dict[str, Choice]] = {}
    for study in found:
        if choice := study.choice():
            made.setdefault(study.job.label, {})[study.job.task] = choice
    if made:
        with alone(folder / "locks" / "choices"):  # of searches for other methods some may end at the same time
            told = _told(base, out)
            for label, tasks in made.items():
                told["choices"].setdefault(label, {}).update({task: asdict(choice) for task, choice in tasks.items()})
            files.write_json(out / FILE, told)
    return made


def _told(base: Grid, out: Path) -> dict[str, Any]:
    """What OUT/choices.json says by now; where there is none, that of a grid for which nothing is chosen yet."""
    if (out / FILE).is_file():
        return Choices.read(out / FILE).told
    return {"format": FORMAT, "suite": base.suite.name, "protocol": base.protocol, "choices": {}}


@dataclass(frozen=True)
class Choices:
    """What is in a choices.json: {"suite", "protocol", "choices": {label: {task: Choice as a dict}}}."""

    file: Path
    told: dict[str, Any]

    @classmethod
    def read(cls, file: str | Path) -> Choices:
        """RequestError where it is not there, was cut off or altered."""
        file = Path(file).expanduser()
        told = shipped.read(file, "choices.json of a search")
        shipped.check_fields(f"{file}", told, ("format", "suite", "protocol", "choices"))
        if told["format"] != FORMAT:
            raise RequestError(f"{file} has the format {told['format']!r}, but {FORMAT!r} is read: search again.")
        shipped.check_kinds(f"{file}", told, {"choices": dict})
        names = [f.name for f in fields(Choice)]
        for label, tasks in told["choices"].items():
            shipped.check_fields(f"{label!r} in {file}", tasks, (), list(tasks) if isinstance(tasks, dict) else ())
            for task, choice in tasks.items():
                shipped.check_fields(f"The choice for {label!r} on {task} in {file}", choice, names)
        return cls(file.resolve(), told)

    def of(self, label: str, task: str) -> Choice:
        """What was chosen for a method on a task; RequestError where nothing was."""
        labels = self.told["choices"]
        if label not in labels:
            raise RequestError(
                f"{self.file} has choices for {', '.join(labels) or 'nothing'}, but none for {label!r}: search for it "
                f"first, or write the method as it was searched.{near_misses(label, labels)}"
            )
        if task not in labels[label]:
            raise RequestError(
                f"{self.file} has choices of {label!r} for {', '.join(labels[label])}, but none for {task}: search "
                "there first, or leave the task out with --tasks."
            )
        return Choice(**labels[label][task])

    def check(self, suite: str, methods: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> None:
        """RequestError where the choices are of another suite, or an option is both given and chosen."""
        if self.told["suite"] != suite:
            raise RequestError(
                f"{self.file} has choices for the suite {self.told['suite']}, but the suite is {suite}: search there."
            )
        for label, given in methods.items():
            for task in tasks:
                if both := [name for name in self.of(label, task).options if name in given]:
                    raise RequestError(
                        f"{both[0]} of {label!r} is given, but {self.file} has it chosen for {task}: leave it out."
                    )

    def tune(self, job: Job) -> Job:
        """The job with what was chosen for it; RequestError where that was for other weights or data."""
        choice = self.of(job.label, job.task)
        for what, chosen, here in (
            ("weights", choice.fingerprint, job.fingerprint),
            ("pictures", choice.data, job.digest),
        ):
            if chosen != here:
                raise RequestError(
                    f"The choice for {job.label!r} on {job.task} in {self.file} was made with other {what} "
                    f"({chosen[:12]}, here {here[:12]}): take those, or search again."
                )
        return job.varied(WORD, choice.options, choice.told(self.file))
