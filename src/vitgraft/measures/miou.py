"""How well masks of classes were predicted: IoU of every class over a whole split, and of every picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.errors import WorkError
from ..data.truth import IGNORED

KEPT = 6  # best and as many worst pictures whose masks are kept to be looked at
EDGE = 640  # pixels of their longer side at most
ROUNDS, SAMPLES, FEWEST = 10, 100, 10  # the bootstrap's 10 x 100 samples; with fewer pictures than 10 it says nothing


def iou(hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Intersection over union from pixel counts of any shape, float64; NaN where a class is in neither mask."""
    return hits.double() / (predicted + true - hits)


def middle(values: Tensor) -> Tensor:
    """The mean over the last dimension without its NaNs; NaN where nothing else is there."""
    return values.nanmean(dim=-1)


class SegmentScores:
    """Counts pixels picture by picture, so that a split of any size is measured in little memory.

    pictures: n of the split. classes: K. Every picture is added once, by one of the processes; `merge` joins what
    several processes have counted.
    """

    def __init__(self, pictures: int, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.counts = torch.zeros(pictures, 3, classes, dtype=torch.int64)
        self.added = torch.zeros(pictures, dtype=torch.bool)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, index: int, predicted: Tensor, truth: Tensor) -> None:
        """One picture: classes 0..K-1 and, in the truth, 255 for pixels that count nowhere; integers [H, W] both."""
        if self.added[index] or predicted.shape != truth.shape:
            raise ValueError(
                f"picture {index} came {'twice' if self.added[index] else 'with masks of unequal size'}: add every "
                f"picture once, prediction {list(predicted.shape)} as large as truth {list(truth.shape)}"
            )
        K = len(self.confusion)
        truth = truth.to(predicted.device)
        known = truth != IGNORED
        pairs = truth[known].long() * K + predicted[known].long()
        confusion = torch.bincount(pairs, minlength=K * K).view(K, K).cpu()
        self.confusion += confusion
        self.counts[index] = torch.stack([confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)])
        self.added[index] = True
        self.kept[index] = (_small(predicted), _small(truth))
        if len(self.kept) > 8 * KEPT:
            self._drop()

    def merge(self, other: SegmentScores) -> None:
        """Adds what another process has counted on other pictures of the same split."""
        if bool((self.added & other.added).any()):
            raise ValueError("the two have pictures in common: every picture is counted once")
        self.confusion += other.confusion
        self.counts += other.counts
        self.added |= other.added
        self.kept |= other.kept
        self._drop()

    def evaluation(self, split: str, classes: Sequence[str], paths: Sequence[str]) -> SegmentEvaluation:
        """The numbers of the whole split; raises WorkError where no pixel of it has a class."""
        if not self.added.all():
            raise ValueError(f"{int((~self.added).sum())} of {len(self.added)} pictures were not added: add them all")
        if not self.confusion.any():
            raise WorkError(
                f"the {len(paths)} pictures of split {split!r} were to be measured, but every pixel of their masks is "
                f"{IGNORED}, which is ignored; give masks with pixels of the {len(classes)} classes"
            )
        self._drop()
        return SegmentEvaluation(split, tuple(classes), list(paths), self.confusion, self.counts, self.kept)

    def _drop(self) -> None:
        """Forgets the masks of pictures in the middle; the best and the worst of all are among those of each part."""
        order = ranked(middle(iou(*self.counts.unbind(1))), self.kept)
        self.kept = {index: self.kept[index] for index in {*order[:KEPT], *order[-KEPT:]}}


@dataclass(frozen=True, eq=False)
class SegmentEvaluation:
    """Predicted masks of the n pictures of one split against the truth, in pixels of each class.

    `classes` are the K names, `paths` the n picture files, `confusion` int64 [K, K] the pixels of one class (row) that
    were taken for another (column), `counts` int64 [n, 3, K] each picture's pixels that were right, predicted and true.
    `kept` holds (prediction, truth), uint8 [h, w], of the best and the worst pictures, reduced to 640 pixels a side.
    """

    metric: ClassVar[str] = "mIoU"
    note: ClassVar[str] = ""

    split: str
    classes: tuple[str, ...]
    paths: list[str]
    confusion: Tensor
    counts: Tensor
    kept: dict[int, tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        n, K = len(self.paths), len(self.classes)
        if n == 0 or self.confusion.shape != (K, K) or self.counts.shape != (n, 3, K):
            raise ValueError(
                f"an evaluation of {n} pictures in {K} classes got a confusion {list(self.confusion.shape)} and counts "
                f"{list(self.counts.shape)}: give at least one picture, [K, K] and [n, 3, K]"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def class_iou(self) -> Tensor:
        """IoU of every class over all pixels of the split, float64 [K]; NaN for a class in no mask of either kind."""
        return iou(*self.counts.sum(dim=0))

    @property
    def value(self) -> float:
        """mIoU, 0..1: the mean of `class_iou` over the classes that occur in the truth or in a prediction.

        Pixels are counted over the whole split before the division (ADE20K's and Cityscapes' way), not picture by
        picture. A class that is nowhere has no IoU and would make the mean depend on names that the split does not
        use; one that is predicted and never true has IoU 0 and counts: that is a mistake. The same convention as
        torchmetrics' MulticlassJaccardIndex with ignore_index=255.
        """
        return float(middle(self.class_iou))

    @property
    def pixel_accuracy(self) -> float:
        """The share of pixels that got their class, 0..1."""
        return int(self.confusion.diagonal().sum()) / int(self.confusion.sum())

    @cached_property
    def picture_iou(self) -> Tensor:
        """Of each picture, the mean IoU of the classes that occur in it, float64 [n]; NaN where all is ignored."""
        return middle(iou(*self.counts.unbind(1)))

    @property
    def ranking(self) -> list[int]:
        """The pictures, best first by `picture_iou`; those without a pixel that counts are left out."""
        return ranked(self.picture_iou, range(len(self)))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (low, high) of mIoU: a bootstrap over pictures, with a fixed seed; None below 10 pictures.

        It holds for pictures taken independently: frames of one film look alike, so that it is too narrow for them.
        """
        return None if self._samples is None else _range(middle(self._samples))

    @cached_property
    def class_intervals(self) -> list[tuple[float, float] | None]:
        """The same of every class's IoU; None where it is not known."""
        if self._samples is None:
            return [None] * len(self.classes)
        return [_range(column[~column.isnan()]) for column in self._samples.unbind(dim=1)]

    @cached_property
    def _samples(self) -> Tensor | None:
        """Each class's IoU on splits drawn from this one with replacement, float64 [1000, K]."""
        n = len(self)
        if n < FEWEST:
            return None
        generator = torch.Generator().manual_seed(0)
        counts, ones = self.counts.double().view(n, -1), torch.ones(SAMPLES, n, dtype=torch.float64)
        found = []
        for _ in range(ROUNDS):
            drawn = torch.randint(n, (SAMPLES, n), generator=generator)
            times = torch.zeros_like(ones).scatter_add_(1, drawn, ones)  # how often each picture is in each sample
            found.append((times @ counts).view(SAMPLES, 3, -1))
        return iou(*torch.cat(found).unbind(1))

    @property
    def per_class(self) -> list[tuple[str, float | None, int]]:
        """(name, IoU, pictures whose truth shows it) of every class, in order; no IoU for a class that is nowhere."""
        values = [None if math.isnan(value) else value for value in self.class_iou.tolist()]
        return list(zip(self.classes, values, (self.counts[:, 2] > 0).sum(dim=0).tolist(), strict=True))

    @property
    def numbers(self) -> dict[str, Any]:
        """Over all pixels of the split, each 0..1."""
        return {"mIoU": self.value, "pixel_accuracy": self.pixel_accuracy}

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        return {
            "split": self.split,
            "pictures": len(self),
            "classes": list(self.classes),
            "metric": self.metric,
            "value": self.value,
            "interval": list(self.interval) if self.interval else None,
            **self.numbers,
            "per_class": [list(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    def lines(self, most: int = 20) -> list[str]:
        """The numbers as text; of more classes than `most`, the lowest."""
        between = " ({:.1%} to {:.1%})".format(*self.interval) if self.interval else ""
        shown = [row for row in self.per_class if row[1] is not None]
        if len(shown) > most:
            shown = sorted(shown, key=lambda row: row[1] or 0.0)[:most]
        left = len(self.classes) - len(shown)
        where = f"on {len(self)} pictures of {self.split}"
        return [
            f"mIoU {self.value:.2%}{between}, pixel accuracy {self.pixel_accuracy:.2%} {where}",
            *(f"  {name:24} {value:7.1%}  in {n} pictures" for name, value, n in shown),
            *([f"  and {left} more of {len(self.classes)} classes, higher or absent"] if left else []),
        ]


def ranked(values: Tensor, indices: Iterable[int]) -> list[int]:
    """The indices, highest value first; NaN is left out, the first of equals comes first."""
    given = values.tolist()
    return sorted((i for i in indices if not math.isnan(given[i])), key=lambda i: (-given[i], i))


def _range(samples: Tensor) -> tuple[float, float] | None:
    """What 95 % of the samples lie in; None without samples."""
    if not len(samples):
        return None
    low, high = samples.quantile(torch.tensor([0.025, 0.975], dtype=samples.dtype)).tolist()
    return low, high


def _small(mask: Tensor) -> Tensor:
    """uint8 [h, w], at most EDGE pixels a side; every pixel is one of the mask's."""
    image = Image.fromarray(mask.to(torch.uint8).cpu().numpy())
    image.thumbnail((EDGE, EDGE), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image))
