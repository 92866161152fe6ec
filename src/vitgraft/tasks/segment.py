"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..common.settings import Settings
from ..data import Batch, Preprocess, open_picture
from ..data.dense import DensePictures
from ..data.segmentations import encode
from ..features import Activations
from ..measures.miou import SegmentEvaluation, SegmentScores
from ..measures.prediction import Prediction
from ..model import Model
from ..pages.drawing import draw_segments
from .base import Answer
from .dense import DenseTask, each_picture, tiles


class Segment(DenseTask):
    """Measured in the pixels of the mask files: logits are resized to them, never the masks to the logits."""

    metric = SegmentEvaluation.metric
    decoded_as = "labels"

    def decoded(self, answer: Tensor) -> Tensor:
        """The class of each pixel, uint8 [B, H, W]."""
        return answer.argmax(1).to(torch.uint8)

    def answer(self, settings: Settings, preprocess: Preprocess) -> Answer:
        one = partial(windows, size=preprocess.size) if settings.sliding else super().answer(settings, preprocess)
        return partial(mirrored, one) if settings.mirror else one

    def count(self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple) -> SegmentScores:
        scores = SegmentScores(len(pictures), len(classes))
        for i, labels in _labels(answers, pictures):
            scores.add(i, labels, torch.from_numpy(pictures.truth(i)))
        return scores

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple
    ) -> Iterator[Prediction]:
        for i, labels in _labels(answers, pictures):
            yield _prediction(i, str(pictures.paths[i]), labels.numpy().astype(np.uint8), classes)


def windows(
    model: Model,
    images: Tensor,
    activations: Activations | None,
    sizes: list[tuple[int, int]],
    *,
    size: tuple[int, int],
) -> Tensor:
    """Logits [B, K, H, W] of images [B, 3, H, W], no smaller than a window: the mean over `tiles` of `size`."""
    shape = (images.shape[-2], images.shape[-1])
    total: Any = 0
    counts = images.new_zeros(shape)
    for top, left in tiles(shape, size):
        bottom, right = top + size[0], left + size[1]
        logits = model(images[..., top:bottom, left:right]).float()
        total = total + F.pad(logits, (left, shape[1] - right, top, shape[0] - bottom))
        counts[top:bottom, left:right] += 1
    return total / counts


def mirrored(
    one: Answer, model: Model, images: Tensor, activations: Activations | None, sizes: list[tuple[int, int]]
) -> Tensor:
    """The mean of what `one` says of images [B, 3, H, W] and, turned back, of their mirror images: [B, K, H, W]."""
    turned = one(model, images.flip(-1), None, sizes)
    return (one(model, images, activations, sizes).float() + turned.float().flip(-1)) / 2


def _labels(answers: Iterable[tuple[Batch, Tensor]], pictures: DensePictures) -> Iterator[tuple[int, Tensor]]:
    """Each picture's index and the class of each of its file's pixels, int64 [H, W]."""
    for i, logits, (h, w) in each_picture(answers):
        yield i, highest(logits.float()[:, :h, :w], pictures.sizes[i]).cpu()


def highest(logits: Tensor, size: tuple[int, int], most: int = 1 << 26) -> Tensor:
    """The class with the highest of `logits` [K, h, w] at each pixel of `size`, int64.

    most: numbers at once, because 150 classes at the size of a camera's picture would fill the memory.
    """
    step = max(1, most // (size[0] * size[1]))
    for first in range(0, len(logits), step):
        part = F.interpolate(logits[None, first : first + step], size, mode="bilinear", align_corners=False)[0]
        values, labels = part.max(0)
        if first == 0:
            best, found = values, labels
            continue
        better = values > best
        best, found = torch.where(better, values, best), torch.where(better, labels + first, found)
    return found


def _prediction(i: int, path: str, mask: np.ndarray, classes: tuple[str, ...]) -> Prediction:
    present = {classes[label]: mask == label for label in np.unique(mask).tolist()}
    shares = sorted(((float(part.mean()), name) for name, part in present.items()), reverse=True)
    rows = [{"picture": path, "category": name, "segmentation": encode(part)} for name, part in present.items()]

    def draw() -> Image.Image:
        return draw_segments(open_picture(path), mask, classes)

    return Prediction(i, path, rows, ", ".join(f"{name} {share:.0%}" for share, name in shares), draw)
