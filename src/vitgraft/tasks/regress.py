"""Regression: a number for a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from .. import data
from ..common.settings import Settings
from ..data import Batch, Pictures, Truth, several
from ..data.audit import Shown
from ..measures.amounts import Evaluation
from ..measures.prediction import Prediction
from ..pages import several as shown
from .whole import Whole


class Amounts(Truth):
    """A number each."""

    def tensor(self, labels: Sequence[float]) -> Tensor:
        """float32 [n, 1]"""
        return torch.tensor(labels, dtype=torch.float32)[:, None]

    def shown(self, labels: Sequence[float]) -> Shown:
        return Shown("pictures", [len(labels)], [len(labels)], [0 if labels else -1])


class Regress(Whole):
    decoded_as = "values"
    metric = Evaluation.metric

    def read(
        self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False
    ) -> data.DataSet:
        return several.read(root, "regress", seed=seed, classes=classes)

    def head_options(self, settings: Settings, found: data.DataSet) -> dict[str, Any]:
        """Mean and standard deviation of what is trained on, in which the head counts."""
        given = torch.tensor(found.split(settings.train_split).labels, dtype=torch.float64)
        return {"mean": float(given.mean()), "std": float(given.std()) or 1.0}

    def truth(self, classes: int) -> Truth:
        return Amounts()

    def found(self, answer: Tensor) -> Tensor:
        return answer

    def measure(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, fabric: Fabric, *, split: str, classes: tuple
    ) -> Evaluation:
        found = self.all_found(answers, pictures, fabric, 1)[:, 0].double()
        paths = [str(path) for path in pictures.paths]
        return Evaluation(split, classes, paths, pictures.labels[:, 0].double(), found)

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, classes: tuple
    ) -> Iterator[Prediction]:
        for batch, numbers in answers:
            for i, value in zip(batch.indices.tolist(), numbers.float()[:, 0].tolist(), strict=True):
                path = str(pictures.paths[i])
                row = {"picture": path, "name": classes[0], "value": value}
                yield Prediction(i, path, [row], f"{classes[0]} {value:.6g}")

    def sections(self, evaluation: Evaluation) -> str:
        return shown.amounts(evaluation)
