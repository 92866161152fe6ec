"""What is left of a grid costs: FLOPs, counted on one picture; time, from records or a timed step; memory, from
records.

A fit is counted as `training.train` does it: whole batches, each epoch; the pass through a backbone that no gradient
crosses once for each picture or each of its views, the result being kept, unless every epoch sees another one; and the
pictures of the split that is measured, `val` after every epoch and at the end, any other at the end. Decoding,
calibration and the start of a process are not counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..common.errors import RequestError
from . import provenance, record
from .record import Job, Record

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..common.settings import Settings
    from .grid import Grid

TIMED = 8  # pictures of the timed step on a CPU; a GPU takes a whole batch
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PerPicture:
    """FLOPs of one picture. read: of the pass through the backbone; forward, step: of all of the model forward, and
    forward and backward, that pass included. crosses: whether gradients cross the backbone."""

    read: int
    forward: int
    step: int
    crosses: bool

    def training(self, n: int, batch_size: int, epochs: int, *, views: int = 1) -> int:
        """Of a fit on n pictures; views: of each, 0 where every epoch sees another one."""
        seen = n // min(batch_size, n) * min(batch_size, n) * epochs  # the last incomplete batch is dropped
        passed = seen if self.crosses or not views else n * min(views, epochs)
        return self.read * passed + (self.step - self.read) * seen

    def measuring(self, n: int, times: int) -> int:
        """Of so many looks at n pictures."""
        return self.forward * n * times if self.crosses else (self.read + (self.forward - self.read) * times) * n


@dataclass(frozen=True)
class Row:
    """What is left of one method, by its label. left: fits. flops: of one training picture, forward and backward, the
    most of its runs; total: of all that is left, tests of its models on other tasks included. seconds, memory (bytes):
    None where no record tells."""

    label: str
    left: int
    flops: int
    total: int
    seconds: float | None
    memory: int | None


class Estimate:
    """What the runs of a grid cost on this machine.

    backbone: the grid's, loaded. records: of earlier runs, those of other machines and other data are left aside.
    timed: whether to time a step where no record tells how long a method takes.
    """

    def __init__(self, grid: Grid, backbone: Backbone, records: Iterable[Record], *, timed: bool = False) -> None:
        self.grid, self.backbone, self.timed = grid, backbone, timed
        self._counted: dict[str, PerPicture] = {}
        self._rates: dict[str, float | None] = {}
        digests = {job.task: job.digest for job in grid.jobs}
        here = provenance.machine()
        same = [r for r in records if r.machine == here and digests.get(r.job.task) == r.job.digest]
        self.records = [r for r in same if not r.job.source]  # a test has the seconds of the fit of its model

    def rows(self, left: Sequence[Job]) -> list[Row]:
        """One for each method of which runs are left, in the grid's order."""
        labels = dict.fromkeys(job.label for job in self.grid.jobs)
        of_label = {label: [job for job in left if job.label == label] for label in labels}
        return [self._row(label, jobs) for label, jobs in of_label.items() if jobs]

    def _row(self, label: str, jobs: Sequence[Job]) -> Row:
        totals = [sum(self._flops(job)) for job in jobs]
        rates = [self._rate(job) for job in jobs]
        known = [rate for rate in rates if rate is not None]
        seconds = sum(r * total for r, total in zip(known, totals, strict=True)) if len(known) == len(jobs) else None
        memory = [r.peak_memory for job in jobs for r in self._like(job)]
        steps = [self._per_picture(job).step for job in jobs]
        return Row(
            label, sum(not job.source for job in jobs), max(steps), sum(totals), seconds, max(memory, default=None)
        )

    def _flops(self, job: Job) -> tuple[int, int]:
        """Of training and of measuring."""
        settings, counted = _settings(job), self._per_picture(job)
        pictures = self._pictures[job.task]
        measured = pictures.get(settings.eval_split or "", 0)
        if job.source:
            return 0, counted.measuring(measured, 1)
        looks = settings.epochs + 1 if settings.eval_split == "val" else 1
        trained = sum(pictures[name] for name in settings.train_split.split("+"))
        views = 1 if settings.augmentation == "none" else settings.views
        training = counted.training(trained, settings.batch_size, settings.epochs, views=views)
        return training, counted.measuring(measured, looks)

    @cached_property
    def _pictures(self) -> dict[str, dict[str, int]]:
        from ..data.dataset import read

        folders = {task: Path(folder).expanduser() for task, folder in self.grid.data.items()}
        trained_on = {task.name: task.trained_on for task in self.grid.suite.tasks}
        found = {task: read(folder) for task, folder in folders.items() if not trained_on[task]}
        for task in folders.keys() - found.keys():
            found[task] = read(folders[task], classes=found[str(trained_on[task])].classes)
        return {task: {name: len(split) for name, split in data.splits.items()} for task, data in found.items()}

    def _per_picture(self, job: Job) -> PerPicture:
        """Counted once for each method and picture size, with the head of the task that has the most classes."""
        key = json.dumps([job.method, job.arguments, _settings(job).image_size], sort_keys=True)
        if key not in self._counted:
            self._counted[key] = self._count(job)
        return self._counted[key]

    def _count(self, job: Job) -> PerPicture:
        """Of a step with one picture: what is done once a step, as forming a merged weight is, counts in full."""
        from ..engine import cost

        model, images, targets = self._model(job, 1)
        model.train()
        read, step = cost.step_flops(model, images, targets)
        model.eval()
        return PerPicture(read, cost.flops(model, images), step, model.method.crosses_backbone)

    def _model(self, job: Job, n: int) -> tuple[Any, Any, Any]:
        """The job's model, ready to train, with n random pictures and their classes."""
        import torch

        from .. import tasks as kinds
        from ..model import build
        from ..training.loop import take_settings

        settings = _settings(job)
        size = kinds.find("classify").preprocess(self.backbone, settings.image_size).size
        classes = max(task.classes for task in self.grid.suite.tasks if task.name in self.grid.data)
        model = build(self.backbone.float(), job.method, classes=classes, **job.arguments)
        take_settings(model, settings)
        images, targets = torch.randn(n, 3, *size), torch.arange(n) % classes
        if not model.method.ready:
            model.method.calibrate(self.backbone, [(images, targets)])
        return model, images, targets

    def _like(self, job: Job) -> list[Record]:
        """Records of the same method; of those with the same arguments only, where there are any."""
        same = [r for r in self.records if r.job.method == job.method]
        return [r for r in same if r.job.arguments == job.arguments] or same

    def _rate(self, job: Job) -> float | None:
        """Seconds for one FLOP of a method."""
        key = json.dumps([job.method, job.arguments], sort_keys=True)
        if key not in self._rates:
            rates = [r.seconds / self._flops(r.job)[0] for r in self._like(job)]  # its seconds are those of training
            self._rates[key] = fmean(rates) if rates else self._time(job) if self.timed else None
        return self._rates[key]

    def _time(self, job: Job) -> float:
        """The same, from the last of the training steps that it takes until a step is as fast as those of a fit."""
        import torch

        from ..engine.devices import fabric
        from ..engine.step import WARM, Step
        from ..training.loop import optimiser

        settings = _settings(job)
        launched = fabric(settings)
        launched.launch()
        on_cpu = launched.device.type == "cpu"
        n = min(settings.batch_size, TIMED) if on_cpu else settings.batch_size
        model, images, targets = self._model(job, n)
        step = Step(model, optimiser(model.trained(), settings), launched)
        images, targets = images.to(launched.device), targets.to(launched.device)
        model.train()
        for _ in range(2 if on_cpu else WARM + 2):
            begun = time.perf_counter()
            with launched.autocast():
                activations = None if model.method.crosses_backbone else model.read(images)
            step(images, targets, activations)
            if not on_cpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
        self.backbone.cpu()
        return seconds / (n * self._per_picture(job).step)


def _settings(job: Job) -> Settings:
    """The settings of a job's fit, defaults included."""
    from .. import tasks as kinds
    from ..training import request

    options = {n: v for n, v in {**job.settings, **job.arguments}.items() if n not in record.OF_FIT}
    return request.sort_options(kinds.find("classify"), job.method, "linear", options)[0]


def records_in(*folders: Path) -> list[Record]:
    """All whole records in these folders of results."""
    found = []
    for path in (path for folder in folders for path in sorted((folder / "records").glob("*.json"))):
        try:
            found.append(record.read(path))
        except RequestError:
            continue  # cut off: it will be repeated
    return found


def lines(rows: Sequence[Row]) -> list[str]:
    """A table for a terminal; empty where nothing is left."""
    if not rows:
        return []
    seconds = [row.seconds for row in rows if row.seconds is not None]
    memory = [row.memory for row in rows if row.memory is not None]
    time_of_all = _duration(sum(seconds)) if seconds else UNKNOWN
    total = [
        "all",
        str(sum(row.left for row in rows)),
        "",
        _flop(sum(row.total for row in rows)),
        time_of_all if len(seconds) in (0, len(rows)) else f"more than {time_of_all}",
        _gigabytes(max(memory, default=None)),
    ]
    cells = [["", "left", "a picture", "all of it", "time", "peak memory"]]
    for row in rows:
        when = UNKNOWN if row.seconds is None else _duration(row.seconds)
        cells.append([row.label, str(row.left), _flop(row.flops), _flop(row.total), when, _gigabytes(row.memory)])
    cells.append(total)
    widths = [max(len(line[i]) for line in cells) for i in range(len(total))]
    table = ["  ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    told = [
        "a picture: one training step on it, forward and backward; all of it: with every epoch and what is measured.",
        "time: of this machine, one run after the other, by the records here of the same method or the timed step; "
        "decoding comes on top.",
    ]
    if any(row.seconds is None for row in rows):
        told.append("unknown: no run of that method has ended on this machine; --time times a step of it.")
    return [*table, "", *told]


def _flop(count: float) -> str:
    for unit in ("MFLOP", "GFLOP", "TFLOP", "PFLOP"):
        count /= 1000 if unit != "MFLOP" else 1e6
        if count < 1000:
            break
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _gigabytes(memory: int | None) -> str:
    return UNKNOWN if memory is None else f"{memory / 1e9:.2f} GB"
