"""Multi-label classification: any number of labels for a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from .. import data
from ..data import Batch, Pictures, Truth, several
from ..data.audit import Shown, shown_labels
from ..measures.labels import THRESHOLD, Evaluation
from ..measures.prediction import Prediction
from ..pages import several as shown
from .whole import Whole


class Labels(Truth):
    """Some of so many labels."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def tensor(self, labels: Sequence[Sequence[int]]) -> Tensor:
        """float32 [n, K] of 0 and 1."""
        found = torch.zeros(len(labels), self.classes)
        for row, own in zip(found, labels, strict=True):
            row[list(own)] = 1.0
        return found

    def shown(self, labels: Sequence[Sequence[int]]) -> Shown:
        return shown_labels(labels, self.classes)


class MultiLabel(Whole):
    decoded_as = "probabilities"
    metric = Evaluation.metric
    _nothing = ()

    def read(
        self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False
    ) -> data.DataSet:
        return several.read(root, "multilabel", seed=seed, classes=classes)

    def truth(self, classes: int) -> Truth:
        return Labels(classes)

    def found(self, answer: Tensor) -> Tensor:
        return answer.sigmoid()

    def measure(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, fabric: Fabric, *, split: str, classes: tuple
    ) -> Evaluation:
        found = self.all_found(answers, pictures, fabric, len(classes))
        return Evaluation(split, classes, [str(path) for path in pictures.paths], pictures.labels > 0, found)

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, classes: tuple
    ) -> Iterator[Prediction]:
        for batch, logits in answers:
            for i, row in zip(batch.indices.tolist(), self.found(logits.float()).tolist(), strict=True):
                path, each = str(pictures.paths[i]), dict(zip(classes, row, strict=True))
                said = sorted((name for name, p in each.items() if p >= THRESHOLD), key=lambda name: -each[name])
                text = ", ".join(f"{name} {each[name]:.1%}" for name in said) or "none"
                yield Prediction(i, path, [{"picture": path, "labels": said, "probabilities": each}], text)

    def sections(self, evaluation: Evaluation) -> str:
        return shown.labels(evaluation)
