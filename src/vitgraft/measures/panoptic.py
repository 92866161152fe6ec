"""How well every pixel was told its class and its object: panoptic quality (Kirillov et al. 2019, arXiv 1801.00868)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.detection import PanopticQuality

from ..data.segmentations import encode, sample
from .coco import Result, results
from .miou import FEWEST, middle, ranked
from .resampling import interval

if TYPE_CHECKING:
    from ..data.objects import Objects

NONE = -1  # the class of a pixel of no segment, or of a crowd: it counts neither way


class PanopticScores:
    """Counts segments picture by picture, by torchmetrics; `merge` joins what several processes have counted.

    truth: the segments of the n pictures. classes: K. things: the labels of those that are countable.
    """

    def __init__(self, truth: Sequence[Objects], classes: int, things: Sequence[int]) -> None:
        self.truth, self.things = tuple(truth), tuple(things)
        self.counts = torch.zeros(len(truth), 4, classes, dtype=torch.float64)
        self.rows: dict[int, list[Result]] = {}

    def add(self, index: int, prediction: dict[str, Tensor], shape: tuple[int, int]) -> None:
        """What a head found in one picture, see `coco.results`: segments, of which no two share a pixel."""
        if index in self.rows:
            raise ValueError(f"picture {index} came twice: add every picture once")
        truth = self.truth[index]
        found = self.rows[index] = segments(prediction, index + 1, shape, truth.size)
        # torchmetrics takes a true segment for found nowhere, and for no miss, where no class was predicted: where none
        # was, one that is nobody's is.
        K = self.counts.shape[2]
        masks, labels = [row["segmentation"] for row in found], [row["category_id"] - 1 for row in found]
        predicted = _pixels(masks, labels, truth.size, K)
        own = [NONE if crowd else int(label) for label, crowd in zip(truth.labels, truth.crowd, strict=True)]
        self.counts[index] = self._counted(predicted, _pixels(list(truth.segmentations or ()), own, truth.size, NONE))

    def _counted(self, predicted: Tensor, true: Tensor) -> Tensor:
        """[H, W, 2] both -> sum of IoU, true positives, false positives, false negatives of each class, [4, K]."""
        K = self.counts.shape[2]
        metric = PanopticQuality(things=set(self.things), stuffs=set(range(K + 1)) - set(self.things))
        metric.update(predicted[None], true[None])
        states: list[Any] = [metric.iou_sum, metric.true_positives, metric.false_positives, metric.false_negatives]
        order = [metric.cat_id_to_continuous_id[k] for k in range(K)]
        return torch.stack([state.double() for state in states])[:, order]

    def merge(self, other: PanopticScores) -> None:
        """Adds what another process has counted on other pictures of the same split."""
        if self.rows.keys() & other.rows.keys():
            raise ValueError("the two have pictures in common: every picture is counted once")
        self.rows |= other.rows
        self.counts += other.counts

    def evaluation(self, split: str, classes: Sequence[str], paths: Sequence[str]) -> PanopticEvaluation:
        """The numbers of the whole split."""
        if left := len(self.truth) - len(self.rows):
            raise ValueError(f"{left} of {len(self.truth)} pictures were not added: add them all")
        found = tuple(self.rows[index] for index in range(len(self.truth)))
        return PanopticEvaluation(split, tuple(classes), list(paths), self.things, self.truth, found, self.counts)


def segments(
    prediction: dict[str, Tensor], image_id: int, shape: tuple[int, int], size: tuple[int, int]
) -> list[Result]:
    """`coco.results` of segments that share no pixel, masks [n, 1, h, w] of 0 and 1: at the size of the file they share
    none either. One that vanishes there is left out."""
    masks = prediction["masks"][:, 0].cpu()
    numbers = torch.where(masks.any(0), masks.argmax(0) + 1, 0) if len(masks) else torch.zeros(shape)
    ids = F.interpolate(numbers[None, None].float(), size=size, mode="nearest-exact")[0, 0]
    found = []
    for k, row in enumerate(results({n: t for n, t in prediction.items() if n != "masks"}, image_id, shape, size), 1):
        inside = (ids == k).numpy()
        if inside.any():
            found.append({**row, "segmentation": encode(inside)})
    return found


def _pixels(segmentations: Sequence[Any], labels: Sequence[int], size: tuple[int, int], nobodys: int) -> Tensor:
    """The class and the number of the segment of each pixel, int64 [H, W, 2]; of those in none the class nobodys."""
    table = np.zeros((*size, 2), dtype=np.int64)
    table[..., 0] = nobodys
    rows, columns = np.arange(size[0]), np.arange(size[1])
    for number in reversed(range(len(segmentations))):
        inside = sample(segmentations[number], size, rows, columns)
        table[inside] = (labels[number], 0 if labels[number] == NONE else number + 1)
    return torch.from_numpy(table)


@dataclass(frozen=True, eq=False)
class PanopticEvaluation:
    """Predicted segments of the n pictures of one split against the truth.

    `classes` are the K names, `things` the labels of those that are countable, `paths` the n picture files, `truth`
    their segments, `rows` what was found in each, in COCO's results format, `counts` float64 [n, 4, K] each picture's
    sum of IoU, true positives, false positives and false negatives.
    """

    metric: ClassVar[str] = "PQ"
    note: ClassVar[str] = ""

    split: str
    classes: tuple[str, ...]
    paths: list[str]
    things: tuple[int, ...]
    truth: tuple[Objects, ...]
    rows: tuple[list[Result], ...]
    counts: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def class_quality(self) -> Tensor:
        """PQ of every class, float64 [K]; NaN for one that is nowhere."""
        return quality(self.counts.sum(0))

    @property
    def value(self) -> float:
        """PQ, 0..1: the mean over the classes that occur in the truth or in a prediction."""
        return float(middle(self.class_quality))

    @cached_property
    def picture_quality(self) -> Tensor:
        """Of each picture the mean PQ of the classes in it, float64 [n]."""
        return middle(quality(self.counts.unbind(1)))

    @property
    def ranking(self) -> list[int]:
        """The pictures, best first by `picture_quality`."""
        return ranked(self.picture_quality, range(len(self)))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of PQ: a bootstrap over pictures, with a fixed seed; None below 10 pictures."""
        if len(self) < FEWEST:
            return None
        flat, shape = self.counts.flatten(1), self.counts.shape[1:]
        return interval(len(self), lambda weights: middle(quality((weights @ flat).view(-1, *shape).unbind(1))))

    @property
    def per_class(self) -> list[tuple[str, float | None, int]]:
        """(name, PQ, pictures whose truth shows it) of every class, in order; no PQ for a class that is nowhere."""
        values = [None if math.isnan(value) else value for value in self.class_quality.tolist()]
        shown = ((self.counts[:, 1] + self.counts[:, 3]) > 0).sum(0).tolist()
        return list(zip(self.classes, values, shown, strict=True))

    @property
    def numbers(self) -> dict[str, Any]:
        """PQ, and its parts: SQ, how well what was found was outlined, RQ, how much was found; of things, of stuff."""
        total = self.counts.sum(0)
        parts = {"all": list(range(len(self.classes))), "things": list(self.things)}
        parts["stuff"] = [k for k in parts["all"] if k not in self.things]
        found = {}
        for name, labels in parts.items():
            own = total[:, labels]
            iou, hits, false, missed = own
            there = (hits + false + missed) > 0
            outlined = torch.where(hits > 0, iou / hits.clamp(min=1), 0.0)
            recognised = hits / (hits + 0.5 * (false + missed)).clamp(min=0.5)
            values = {"PQ": quality(own), "SQ": outlined, "RQ": recognised}
            found[name] = {kind: float(value[there].mean()) if there.any() else None for kind, value in values.items()}
        return {
            "PQ": found["all"]["PQ"],
            "SQ": found["all"]["SQ"],
            "RQ": found["all"]["RQ"],
            **{kind: found[kind] for kind in ("things", "stuff")},
        }

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
        }

    def lines(self, most: int = 20) -> list[str]:
        """The numbers as text; of more classes than `most`, the lowest."""
        between = " ({:.1%} to {:.1%})".format(*self.interval) if self.interval else ""
        numbers = self.numbers
        parts = [f"{kind} {numbers[kind]['PQ']:.2%}" for kind in ("things", "stuff") if numbers[kind]["PQ"] is not None]
        shown = [row for row in self.per_class if row[1] is not None]
        if len(shown) > most:
            shown = sorted(shown, key=lambda row: row[1] or 0.0)[:most]
        left = len(self.classes) - len(shown)
        return [
            f"PQ {self.value:.2%}{between} ({', '.join(parts)}), SQ {numbers['SQ']:.2%}, RQ {numbers['RQ']:.2%} on "
            f"{len(self)} pictures of {self.split}",
            *(f"  {name:24} {value:7.1%}  in {n} pictures" for name, value, n in shown),
            *([f"  and {left} more of {len(self.classes)} classes, higher or absent"] if left else []),
        ]


def quality(counts: Any) -> Tensor:
    """Sum of IoU, true positives, false positives, false negatives, each of any shape -> PQ; NaN where nothing is."""
    iou, hits, false, missed = counts
    return iou / (hits + 0.5 * (false + missed))
