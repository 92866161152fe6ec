"""Classification: one class for a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from .. import data
from ..backbones import Backbone
from ..common.settings import Settings
from ..data import Batch, Pictures, Preprocess, Split
from ..data.recipes import Recipe
from ..measures.accuracy import Evaluation
from ..measures.prediction import Prediction
from ..pages import classification as shown
from .base import Task


class Classify(Task):
    """Pictures are resized to one size, whatever their shape; the head is linear."""

    metric = Evaluation.metric

    def read(
        self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False
    ) -> data.DataSet:
        return data.read(root, seed=seed, classes=classes)

    def head_options(self, settings: Settings) -> dict[str, Any]:
        return {"label_smoothing": settings.label_smoothing}

    def unlabelled(self, paths: Sequence[Path]) -> Split:
        return Split("given", tuple(paths), (0,) * len(paths))

    def preprocess(self, backbone: Backbone, size: tuple[int, int] | None) -> Preprocess:
        return backbone.preprocess(size)

    def load(
        self,
        split: Split,
        preprocess: Preprocess,
        *,
        classes: int,
        settings: Settings,
        training: bool = False,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Pictures:
        drawn = training and settings.augmentation != "none"
        return Pictures(
            split,
            preprocess,
            workers=settings.workers,
            recipe=Recipe(settings.augmentation, preprocess, settings.seed, settings.views) if drawn else None,
            skip_bad=skip_bad,
            keep_bytes=int(settings.memory * 2**30),
            classes=classes,
            progress=progress,
        )

    def measure(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, fabric: Fabric, *, split: str, classes: tuple
    ) -> Evaluation:
        found = torch.zeros(len(pictures), len(classes))
        for batch, logits in answers:
            found[batch.indices] = logits.float().softmax(1).cpu()
        if fabric.world_size > 1:
            torch.distributed.all_reduce(found)  # each process has its own rows, zeros elsewhere
        return Evaluation(split, classes, [str(path) for path in pictures.paths], pictures.labels, found)

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Pictures, classes: tuple
    ) -> Iterator[Prediction]:
        for batch, logits in answers:
            for i, row in zip(batch.indices.tolist(), logits.float().softmax(1).tolist(), strict=True):
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
