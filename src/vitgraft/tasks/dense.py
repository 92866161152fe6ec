"""What segmentation, detection and instance segmentation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lightning_fabric import Fabric

from ..backbones import Backbone
from ..common.settings import DENSE_METHOD, Settings
from ..data import Batch, Preprocess
from ..data.augment import Augment
from ..data.dense import DensePictures
from ..data.loader import GIVEN
from ..data.objects import Fault, Objects, gather, picture_size
from ..data.recognise import read_dense
from ..data.truth import DenseSet, DenseSplit
from ..pages import dense as shown
from .base import Evaluation, Task


class Scores(Protocol):
    """What one process has counted; `merge` adds what another one has."""

    def merge(self, other: Any) -> None: ...
    def evaluation(self, split: str, classes: Sequence[str], paths: Sequence[str]) -> Any: ...


class DenseTask(Task):
    """Pictures keep their shape: they are resized to fit the canvas, `Preprocess.size`; in training by a random scale,
    flipped, cropped and padded."""

    # Ahead of HST as published on every set that was measured, and level with both together, whose step is longer
    # (docs/results.md#hst-beside-lora).
    method = DENSE_METHOD
    # The optimiser of the published baselines (ViT-Adapter's configurations, whose parameter totals HST's tables have),
    # but for the rate: their 1e-4 is for 160,000 steps of all weights (docs/results.md#rates-of-dense-tasks).
    recipe: ClassVar[dict[str, Any]] = {"lr": 1e-3, "weight_decay": 0.05, "batch_size": 8, "jitter": (0.5, 2.0)}
    canvas = (512, 512)

    def read(
        self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False
    ) -> DenseSet:
        known = tuple(classes) if classes is not None else None
        return read_dense(root, self.name(), classes=known, skip_bad=skip_bad, seed=seed)

    def unlabelled(self, paths: Sequence[Path]) -> DenseSplit:
        """Of every picture the head is read, for its size as it stands upright."""
        return DenseSplit(GIVEN, tuple(paths), objects=tuple(_nothing(path) for path in paths))

    def preprocess(self, backbone: Backbone, size: tuple[int, int] | None) -> Preprocess:
        native = backbone.native
        return Preprocess(size or self.canvas, native.mean, native.std, native.interpolation, fit=True)

    def load(
        self,
        split: DenseSplit,
        preprocess: Preprocess,
        *,
        classes: int,
        settings: Settings,
        training: bool = False,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> DensePictures:
        assert settings.jitter is not None
        return DensePictures(
            split,
            preprocess,
            task=self.name(),
            classes=classes,
            workers=settings.workers,
            augment=Augment(settings.jitter, mosaic=settings.mosaic, paste=settings.paste, seed=settings.seed)
            if training
            else None,
            cover=settings.sliding,
            skip_bad=skip_bad,
            progress=progress,
        )

    def count(self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple) -> Scores:
        """What this process counts of its share of the answers."""
        raise NotImplementedError

    def measure(
        self,
        answers: Iterable[tuple[Batch, Any]],
        pictures: DensePictures,
        fabric: Fabric,
        *,
        split: str,
        classes: tuple,
    ) -> Evaluation:
        scores = self.count(answers, pictures, classes)
        _gather(scores, fabric)
        return scores.evaluation(split, classes, [str(path) for path in pictures.paths])

    def sections(self, evaluation: Any) -> str:
        return shown.sections(evaluation)


def tiles(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """The corners (top, left) of windows of `size` that cover a picture of `shape`, which is no smaller, and overlap by
    a third or more (mmsegmentation's rule)."""
    tops, lefts = (
        sorted({min(start, side - window) for start in range(0, side, window - window // 3)})
        for side, window in zip(shape, size, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def each_picture(answers: Iterable[tuple[Batch, Any]]) -> Iterator[tuple[int, Any, tuple[int, int]]]:
    """For every picture its index, its prediction, and its (h, w) inside the padding."""
    for batch, predictions in answers:
        yield from zip(batch.indices.tolist(), predictions, batch.sizes, strict=True)


def _gather(scores: Scores, fabric: Fabric) -> None:
    """Adds what the other processes have counted."""
    if fabric.world_size > 1:
        everyone: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(everyone, scores)
        for rank, other in enumerate(everyone):
            if rank != fabric.global_rank:
                scores.merge(other)


def _nothing(path: Path) -> Objects:
    """A picture of which nothing is known but its size; 0 for a bad one, which the loader finds bad."""
    try:
        size = picture_size(path)
    except Fault:
        size = (0, 0)
    return gather(size, (), (), masks=True)
