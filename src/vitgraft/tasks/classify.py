"""Classification: one class for a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor

from .. import data
from ..common.settings import Settings
from ..data import Batch, OneClass, Pictures, Truth
from ..measures.accuracy import Evaluation
from ..measures.prediction import Prediction
from ..pages import classification as shown
from .whole import Whole


class Classify(Whole):
    decoded_as = "probabilities"
    metric = Evaluation.metric

    def read(
        self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False
    ) -> data.DataSet:
        return data.read(root, seed=seed, classes=classes)

    def head_options(self, settings: Settings, found: data.DataSet) -> dict[str, Any]:
        return {"label_smoothing": settings.label_smoothing}

    def truth(self, classes: int) -> Truth:
        return OneClass(classes)

    def found(self, answer: Tensor) -> Tensor:
        return answer.softmax(1)

    def measure(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, fabric: Fabric, *, split: str, classes: tuple
    ) -> Evaluation:
        found = self.all_found(answers, pictures, fabric, len(classes))
        return Evaluation(split, classes, [str(path) for path in pictures.paths], pictures.labels, found)

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, classes: tuple
    ) -> Iterator[Prediction]:
        for batch, logits in answers:
            for i, row in zip(batch.indices.tolist(), self.found(logits.float()).tolist(), strict=True):
                path, best = str(pictures.paths[i]), row.index(max(row))
                found = {
                    "picture": path,
                    "class": classes[best],
                    "probability": row[best],
                    "probabilities": dict(zip(classes, row, strict=True)),
                }
                yield Prediction(i, path, [found], f"{classes[best]}  {row[best]:.1%}")

    def sections(self, evaluation: Evaluation) -> str:
        return shown.sections(evaluation)
