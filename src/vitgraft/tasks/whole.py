"""What the tasks of whole pictures share: these are resized to one size, whatever their shape; the head is linear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..backbones import Backbone
from ..common.settings import Settings
from ..data import Batch, Pictures, Preprocess, Split, Truth
from ..data.loader import GIVEN
from ..data.recipes import Recipe
from .base import Task


class Whole(Task):
    """A subclass says what the truth about a picture is, and what becomes of a head's answer [B, K]."""

    def truth(self, classes: int) -> Truth:
        """What the labels of a split are."""
        raise NotImplementedError

    def found(self, answer: Tensor) -> Tensor:
        """A head's answer [B, K] as it is measured and told."""
        raise NotImplementedError

    def decoded(self, answer: Tensor) -> Tensor:
        return self.found(answer)

    def unlabelled(self, paths: Sequence[Path]) -> Split:
        return Split(GIVEN, tuple(paths), (self._nothing,) * len(paths))

    _nothing: Any = 0  # a label where there is none

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
            truth=self.truth(classes),
            keep_bytes=int(settings.memory * 2**30),
            progress=progress,
        )

    def all_found(
        self, answers: Iterable[tuple[Batch, Tensor]], pictures: Pictures, fabric: Fabric, classes: int
    ) -> Tensor:
        """What was answered about each picture, by all processes: [n, K]."""
        found = torch.zeros(len(pictures), classes)
        for batch, answer in answers:
            found[batch.indices] = self.found(answer.float()).cpu()
        if fabric.world_size > 1:
            torch.distributed.all_reduce(found)  # each process has its own rows, zeros elsewhere
        return found
