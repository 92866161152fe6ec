"""Few-shot episodes: a few classes of a set, a few pictures of each to learn from, others to be told apart.

Each episode is drawn from its number alone, so that all methods see the same, and what is added later too. The model is
new for each. Protocol of Snell et al. 2017, arXiv 1703.05175; steps and head of eTT, Xu et al. 2023, arXiv 2301.02419.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import methods, tasks
from ..backbones import Backbone
from ..common import files
from ..common.errors import RequestError
from ..common.settings import Settings
from ..engine import cost
from ..engine.activations import Store, activation_store, recall
from ..engine.devices import fabric, resolved_precision
from ..engine.step import Step
from ..features import Activations
from ..heads.prototypes import Cosine, Prototypes
from ..model import Model, build
from ..training import request
from ..training.loop import optimiser, take_settings
from . import record
from .suites import LOCAL, Suite, TaskOf, local

METRIC = "accuracy of the queries"
HEADS = ("nearest", "cosine", "linear")
FILE = "episodes.json"
OFTEN = 10  # episodes after which what is known is written


@dataclass(frozen=True)
class Episodes:
    """What an episode is; called as `vitgraft.fit` is, it goes through all of one method on one set.

    ways: classes of an episode. shots: pictures of each that are learned from, queries: others of each that are told
    apart. number: of episodes. head: "nearest", the means of the shots' features by cosine; "cosine", the same, which
    then train; "linear", a linear layer. steps: of AdamW, each on all shots; none where nothing trains.

    RequestError for numbers below one, and for a head that there is none of.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    number: int = 600
    head: str = "nearest"
    steps: int = 40

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < (name != "steps") + (name == "ways"):
                raise RequestError(f"{name} of an episode is {value}, but it must be more: give for example 5.")
        if self.head not in HEADS:
            raise RequestError(f"An episode has no head {self.head!r}: there are {', '.join(HEADS)}; choose one.")

    @property
    def words(self) -> str:
        """As the protocol of its records."""
        trained = f"{self.steps} steps, " if self.steps else ""
        return f"{self.number} episodes, {self.ways}-way, {self.queries} queries, {trained}head {self.head}"

    def draw(self, labels: Sequence[int], seed: int, k: int) -> tuple[list[int], list[int]]:
        """Of the k-th episode the pictures that are learned from and those that are told apart, both class by class;
        labels: of all pictures of a set."""
        members: dict[int, list[int]] = {}
        for i, label in enumerate(labels):
            members.setdefault(label, []).append(i)
        wanted = self.shots + self.queries
        enough = [label for label in sorted(members) if len(members[label]) >= wanted]
        if len(enough) < self.ways:
            most = sorted((len(of) for of in members.values()), reverse=True)
            raise RequestError(
                f"An episode of {self.ways} classes with {self.shots} + {self.queries} pictures was asked for, but "
                f"{len(enough)} of {len(members)} classes have {wanted} (the {self.ways}. has "
                f"{most[self.ways - 1] if len(most) >= self.ways else 0}): take fewer ways, shots or queries."
            )
        random = np.random.default_rng([seed, k])
        chosen = [random.permutation(members[int(label)]) for label in random.choice(enough, self.ways, replace=False)]
        shots = [int(i) for of in chosen for i in of[: self.shots]]
        return shots, [int(i) for of in chosen for i in of[self.shots : wanted]]

    def __call__(
        self,
        root: str | Path,
        *,
        out: Path,
        backbone: str,
        method: str,
        seed: int,
        shots: int | None = None,
        resume: bool = True,
        quiet: bool = True,
        **given: Any,
    ) -> Any:
        """All episodes of a method on the pictures of all splits of a set: an object with their `result`. Stopped, it
        continues with the next one. shots: in the place of this one's."""
        settings, arguments = record.sort_options(given)
        run = _Run(replace(self, shots=shots or self.shots), Path(root), backbone, method, seed, settings, arguments)
        return SimpleNamespace(result=run.result(Path(out)))


def suite(root: str | Path, names: Sequence[str] | None) -> tuple[Suite, dict[str, Path]]:
    """The sets in a folder, all or some, as a suite of episodes, and the folder of each."""
    own = local(root)
    sets = [own.task(name) for name in names] if names else list(own.tasks)
    made = tuple(TaskOf(t.name, (), t.classes, LOCAL, METRIC, t.title) for t in sets)
    return Suite("episodes", "few-shot episodes", own.source, made), {t.name: Path(root) / t.name for t in sets}


def check(what: Episodes, data: Mapping[str, Path], shots: Sequence[int], wanted: Iterable[Mapping[str, Any]]) -> None:
    """RequestError, before anything runs, for a method or setting that there is not, and sets with too few pictures."""
    kind = tasks.find("classify")
    for given in wanted:
        own = dict(given)
        request.sort_options(kind, own.pop("method"), "linear", own)
    for folder in data.values():
        found = kind.read(folder, seed=0)
        labels = found.split("+".join(found.splits)).labels
        for n in shots:
            replace(what, shots=n).draw(labels, 0, 0)


class _Run:
    """The episodes of one method on one set."""

    def __init__(
        self,
        what: Episodes,
        root: Path,
        backbone: str,
        method: str,
        seed: int,
        settings: Mapping[str, Any],
        arguments: Mapping[str, Any],
    ) -> None:
        self.what, self.root, self.method, self.seed, self.arguments = what, root, method, seed, dict(arguments)
        known = {name: value for name, value in settings.items() if name in Settings.names()}
        self.settings = Settings(**{**methods.create(method, **arguments).recipe, **known, "seed": seed})
        self.task = tasks.find("classify")
        self.backbone = Backbone.load(backbone)
        self.fabric = fabric(self.settings)
        self.fabric.launch()
        found = self.task.read(root, seed=0)
        everything = found.split("+".join(found.splits))
        self.preprocess = self.task.preprocessing(self.backbone, self.settings.image_size, self.settings.normalisation)
        self.pictures: Any = self.task.load(
            everything, self.preprocess, classes=len(found.classes), settings=self.settings
        )
        self.labels = [int(label) for label in everything.labels]
        self.store: Store | None = None

    def model(self, k: int) -> Model:
        """A new one for the k-th episode."""
        seed = self.seed * 1_000_003 + k
        made = build(self.backbone, self.method, classes=self.what.ways, seed=seed, **self.arguments)
        if self.what.head != "linear":
            kind = Prototypes if self.what.head == "nearest" else Cosine
            made = Model(self.backbone, made.method, kind(made.method.width, self.what.ways))
        take_settings(made, self.settings)
        torch.manual_seed(seed)
        return made.to(self.fabric.device).eval()

    def episode(self, k: int) -> float:
        """The share of queries that are told rightly."""
        shots, queries = self.what.draw(self.labels, self.seed, k)
        model = self.model(k)
        labels = torch.arange(self.what.ways, device=self.fabric.device).repeat_interleave(self.what.shots)
        targets = torch.arange(self.what.ways, device=self.fabric.device).repeat_interleave(self.what.queries)
        if self.store is None and not model.method.crosses_backbone:
            # What the backbone makes of a picture is then the same in every episode.
            self.store = activation_store(model, self.pictures, self.preprocess, self.settings, self.fabric)
        with self.fabric.autocast():
            images, asked = self._images(shots), self._images(queries)
            if not model.method.ready:
                model.method.calibrate(self.backbone, [(images, labels)])
            learned = self._read(model, shots, images)
            if self.what.head == "cosine":
                model.head.take(self._pooled(model, images, learned), labels)
        self._fit(model, images, labels, learned)
        with self.fabric.autocast(), torch.no_grad():
            if self.what.head == "nearest":
                model.head.take(self._pooled(model, images, learned), labels)
            answers = model(asked, None, self._read(model, queries, asked))
        return float((answers.argmax(1) == targets).float().mean())

    def _images(self, indices: list[int]) -> Tensor:
        batch = next(iter(self.pictures.batches([indices]))).to(self.fabric.device)
        return self.preprocess.normalise(batch.pixels)

    def _read(self, model: Model, indices: list[int], images: Tensor) -> Activations | None:
        """What is the same in every episode, if anything is."""
        with torch.no_grad():
            return recall(model, self.store, torch.tensor(indices), images)

    @staticmethod
    def _pooled(model: Model, images: Tensor, found: Activations | None) -> Tensor:
        with torch.no_grad():
            return model.features(images, found).pooled.float()

    def _fit(self, model: Model, images: Tensor, labels: Tensor, found: Activations | None) -> None:
        trained = model.trained()
        if not trained or not self.what.steps:
            return
        step = Step(model, optimiser(trained, self.settings), self.fabric, clip=self.settings.clip)
        model.train()
        for _ in range(self.what.steps):
            step(images, labels, found, None)
        model.eval()

    def result(self, out: Path) -> dict[str, Any]:
        """As the result.json of a fit. What is known is in `out` while it goes on."""
        files.check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        path, begun = out / FILE, time.monotonic()
        known: dict[str, Any] = files.read_json(path) if path.is_file() else {"accuracies": [], "seconds": 0.0}
        found, before = list(known["accuracies"]), float(known["seconds"])
        for k in range(len(found), self.what.number):
            found.append(self.episode(k))
            if len(found) % OFTEN == 0 or len(found) == self.what.number:
                files.write_json(path, {"accuracies": found, "seconds": before + time.monotonic() - begun})
            if len(found) % OFTEN == 0:
                mean, low, high = interval(found)
                words = f"{self.method} on {self.root.name}, {self.what.shots}-shot: {len(found)} of {self.what.number}"
                print(f"{words}, {mean:.1%} ({low:.1%} to {high:.1%})", file=sys.stderr, flush=True)
        return self._told(found, before + time.monotonic() - begun)

    def _told(self, found: list[float], seconds: float) -> dict[str, Any]:
        mean, low, high = interval(found)
        model = self.model(0)
        model.method.ready = True  # its size and its cost do not depend on what it has seen
        images = torch.zeros(1, 3, *self.preprocess.size, device=self.fabric.device)
        counts = cost.parameters(model)
        protocol = {
            **asdict(self.settings),
            "precision": resolved_precision(self.settings.precision),
            **asdict(self.what),
        }
        return {
            "task": "classify",
            "metric": METRIC,
            "value": mean,
            "interval": [low, high],
            "split": "all",
            "head": {"name": self.what.head},
            "method": self.method,
            "arguments": model.method.arguments(),
            "backbone": {"fingerprint": self.backbone.fingerprint, "source": self.backbone.source},
            "parameters": counts["method"],
            "head_parameters": counts["head"],
            "backbone_parameters": counts["backbone"],
            "seconds": round(seconds, 3),
            "protocol": protocol,
            "cost": {
                "gflops_per_picture": cost.flops(model, images) / 1e9,
                "peak_memory_bytes": cost.peak_memory(self.fabric.device),
            },
            "versions": {"python": platform.python_version()},
        }


def interval(found: Sequence[float]) -> tuple[float, float, float]:
    """The mean of accuracies, and the 95 % interval of that mean over episodes."""
    mean = fmean(found)
    half = 1.96 * stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)
