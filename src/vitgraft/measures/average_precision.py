"""How well objects were found: COCO's average precision of boxes and masks, and what was found in every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from torch import Tensor

from ..common.errors import WorkError
from .coco import Result, dataset, results, xywh

if TYPE_CHECKING:
    from ..data.objects import Objects

KINDS = {"box": "bbox", "mask": "segm"}  # our word and COCO's
# Where COCO's list of twelve numbers has ours.
NUMBERS = {"AP": 0, "AP50": 1, "AP75": 2, "AP small": 3, "AP medium": 4, "AP large": 5, "AR": 8}
MATCH = 0.5  # IoU from which an object counts as found, where one number must do


class DetectScores:
    """Collects what was found, picture by picture; `merge` joins what several processes have collected.

    truth: the objects of the n pictures. masks: whether masks are measured beside boxes.
    """

    def __init__(self, truth: Sequence[Objects], *, masks: bool) -> None:
        self.truth = tuple(truth)
        self.masks = masks
        self.rows: dict[int, list[Result]] = {}

    def add(self, index: int, prediction: dict[str, Tensor], shape: tuple[int, int]) -> None:
        """What a head found in one picture, see `coco.results`."""
        if index in self.rows or ("masks" in prediction) != self.masks:
            problem = "came twice" if index in self.rows else f"came {'without' if self.masks else 'with'} masks"
            raise ValueError(f"picture {index} {problem}: add every picture once, with masks where they are measured")
        self.rows[index] = results(prediction, index + 1, shape, self.truth[index].size)

    def merge(self, other: DetectScores) -> None:
        """Adds what another process has collected on other pictures of the same split."""
        if self.rows.keys() & other.rows.keys():
            raise ValueError("the two have pictures in common: every picture is added once")
        self.rows |= other.rows

    def evaluation(self, split: str, classes: Sequence[str], paths: Sequence[str]) -> DetectEvaluation:
        """The numbers of the whole split; raises WorkError where it has no object."""
        if left := len(self.truth) - len(self.rows):
            raise ValueError(f"{left} of {len(self.truth)} pictures were not added: add them all")
        if all(objects.crowd.all() for objects in self.truth):
            raise WorkError(
                f"the {len(paths)} pictures of split {split!r} were to be measured, but they show no object (crowds do "
                "not count); give a split with objects"
            )
        found = tuple(self.rows[index] for index in range(len(self.truth)))
        return DetectEvaluation(split, tuple(classes), list(paths), self.truth, found, self.masks)


class Match(NamedTuple):
    """Who found whom in one picture, at an IoU of 0.5 as COCO matches.

    `found` int64 [rows] is, for each predicted object, the true one that it found, -1 for none, or -2 where it lies in
    a crowd and counts neither as right nor as wrong; `found_by` int64 [objects] is the predicted one, or -1.
    """

    found: np.ndarray
    found_by: np.ndarray


@dataclass(frozen=True, eq=False)
class DetectEvaluation:
    """Predicted objects of the n pictures of one split against the truth.

    `classes` are the K names, `paths` the n picture files, `truth` their objects, `rows` what was found in each, in
    COCO's results format (image_id is the picture's place in `paths` + 1, category_id the class's + 1). With `masks`
    these are measured too, and are what `value` is about.
    """

    split: str
    classes: tuple[str, ...]
    paths: list[str]
    truth: tuple[Objects, ...]
    rows: tuple[list[Result], ...]
    masks: bool
    note: ClassVar[str] = ""
    interval: ClassVar[None] = None  # every sample of a bootstrap would need COCO's whole evaluation again

    def __post_init__(self) -> None:
        n = len(self.paths)
        if n == 0 or len(self.truth) != n or len(self.rows) != n:
            raise ValueError(
                f"an evaluation of {n} pictures got the truth of {len(self.truth)} and the rows of {len(self.rows)}: "
                "give at least one picture, and both for each"
            )
        if self.masks and any(len(objects.labels) and objects.segmentations is None for objects in self.truth):
            raise ValueError("masks are to be measured, but some true objects have none: give them, or masks=False")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def kind(self) -> str:
        """What counts in the end: "mask" where there are masks, otherwise "box"."""
        return "mask" if self.masks else "box"

    @property
    def metric(self) -> str:
        return f"{self.kind} AP"

    @property
    def value(self) -> float:
        """COCO's AP of `kind`, 0..1: the mean over classes and IoU thresholds 0.50, 0.55, ... 0.95."""
        return self.numbers[self.kind]["AP"] or 0.0

    @cached_property
    def _measured(self) -> dict[str, tuple[list[float], list[float]]]:
        """COCO's list of numbers and the AP of every class, for each kind; -1 where there is nothing to measure."""
        truth = COCO(dataset(self.truth, self.classes, self.masks))
        found = {}
        for kind in ("box", "mask") if self.masks else ("box",):
            # COCO's tools would take a mask's area from the box beside it: rows of masks go without boxes.
            unused = "bbox" if kind == "mask" else "segmentation"
            given = [{key: row[key] for key in row if key != unused} for picture in self.rows for row in picture]
            run = COCOeval_faster(truth, truth.loadRes(given), KINDS[kind])
            run.run()
            precision = run.eval["precision"][:, :, :, 0, -1]  # [thresholds, recalls, K], objects of any size
            found[kind] = (run.stats.tolist(), precision.mean(axis=(0, 1)).tolist())
        return found

    @cached_property
    def numbers(self) -> dict[str, dict[str, float | None]]:
        """{"box" and "mask": {"AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR"}}, each 0..1.

        AR is the recall with at most 100 objects a picture, averaged like AP; sizes are COCO's, by area: up to 32 x 32
        and 96 x 96 pixels of the file. A number is None where the split has no object that it is about.
        """
        return {
            kind: {name: _known(stats[place]) for name, place in NUMBERS.items()}
            for kind, (stats, _) in self._measured.items()
        }

    @cached_property
    def per_class(self) -> list[tuple[str, dict[str, float | None], int]]:
        """(name, {"box" and "mask": AP}, true objects without crowds) of every class, in order.

        AP is None for a class of which there is no object.
        """
        labels = [objects.labels[~objects.crowd] for objects in self.truth]
        counts = np.bincount(np.concatenate(labels), minlength=len(self.classes)).tolist()
        values = [
            {kind: _known(by_class[k]) for kind, (_, by_class) in self._measured.items()}
            for k in range(len(self.classes))
        ]
        return list(zip(self.classes, values, counts, strict=True))

    @cached_property
    def matches(self) -> tuple[Match, ...]:
        """Who found whom in each picture, by IoU of `kind`."""
        return tuple(_match(objects, found, self.masks) for objects, found in zip(self.truth, self.rows, strict=True))

    @cached_property
    def threshold(self) -> float:
        """The score from which objects are worth showing: where F1 over the split, at an IoU of 0.5, is highest."""
        pairs = [
            (row["score"], who >= 0)
            for found, match in zip(self.rows, self.matches, strict=True)
            for row, who in zip(found, match.found.tolist(), strict=True)
            if who != -2
        ]
        if not any(right for _, right in pairs):
            return 0.5
        scores, right = np.array(sorted(pairs, key=lambda pair: -pair[0])).T
        objects = sum(int((~truth.crowd).sum()) for truth in self.truth)
        f1 = 2 * np.cumsum(right) / (np.arange(1, len(scores) + 1) + objects)
        last = np.append(scores[1:] < scores[:-1], True)  # of equal scores all are taken or none
        return float(scores[np.argmax(np.where(last, f1, -1))])

    @cached_property
    def tallies(self) -> np.ndarray:
        """(found, missed, false) objects of each picture from `threshold` on, int64 [n, 3]."""
        counts = []
        for objects, found, match in zip(self.truth, self.rows, self.matches, strict=True):
            shown = np.array([row["score"] >= self.threshold for row in found], bool)
            hits = int((match.found[shown] >= 0).sum())
            real = int((~objects.crowd).sum())
            counts.append((hits, real - hits, int((match.found[shown] == -1).sum())))
        return np.array(counts)

    @cached_property
    def picture_f1(self) -> np.ndarray:
        """F1 of each picture from `threshold` on, at an IoU of 0.5, float64 [n]; 1 where rightly nothing was found."""
        return np.array([_f1(*tally)[2] for tally in self.tallies.tolist()])

    @property
    def ranking(self) -> list[int]:
        """The pictures, best first by `picture_f1`; of equals, those first with more found and with fewer mistakes."""
        return sorted(
            range(len(self)),
            key=lambda i: (-self.picture_f1[i], -self.tallies[i, 0], self.tallies[i, 1:].sum(), i),
        )

    @property
    def at_threshold(self) -> tuple[float, float, float]:
        """(precision, recall, F1) over the split from `threshold` on, at an IoU of 0.5."""
        return _f1(*self.tallies.sum(axis=0).tolist())

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON; the objects found are in `rows`."""
        precision, recall, f1 = self.at_threshold
        return {
            "split": self.split,
            "pictures": len(self),
            "classes": list(self.classes),
            "metric": self.metric,
            "value": self.value,
            "interval": self.interval,
            **self.numbers,
            "per_class": [[name, values, n] for name, values, n in self.per_class],
            "threshold": {"score": self.threshold, "iou": MATCH, "precision": precision, "recall": recall, "f1": f1},
        }

    def lines(self, most: int = 20) -> list[str]:
        """The numbers as text; of more classes than `most`, the lowest."""
        where = f"on {len(self)} pictures of {self.split}"
        text = []
        for kind, numbers in self.numbers.items():
            told = [f"{name} {value:.1%}" for name, value in numbers.items() if value is not None and name != "AP"]
            text.append(f"{kind} AP {numbers['AP'] or 0.0:.2%} ({', '.join(told)}) {where}")
        precision, recall, _ = self.at_threshold
        text.append(f"with scores from {self.threshold:.2f}: precision {precision:.1%}, recall {recall:.1%} (IoU 0.5)")
        shown = [(name, values[self.kind], n) for name, values, n in self.per_class if values[self.kind] is not None]
        if len(shown) > most:
            shown = sorted(shown, key=lambda row: row[1] or 0.0)[:most]
        text += [f"  {name:24} {value:7.1%}  {n} objects" for name, value, n in shown]
        if left := len(self.classes) - len(shown):
            text.append(f"  and {left} more of {len(self.classes)} classes, higher or absent")
        return text


def _known(value: float) -> float | None:
    """COCO writes -1 where there is nothing to measure."""
    return None if value < 0 else value


def _f1(found: int, missed: int, false: int) -> tuple[float, float, float]:
    """(precision, recall, F1); where there is nothing to find, or nothing was said, there is no mistake in it."""
    precision = found / (found + false) if found + false else 1.0
    recall = found / (found + missed) if found + missed else 1.0
    total = 2 * found + missed + false
    return precision, recall, 2 * found / total if total else 1.0


def _match(objects: Objects, found: list[Result], masks: bool) -> Match:
    """Best score first, each takes the true object of its class that it covers best and that is still free."""
    H, W = objects.size
    if masks:
        true: list[Any] = [rle.segmToRle(part, W, H) for part in objects.segmentations or ()]
        said: list[Any] = [row["segmentation"] for row in found]
    else:
        true, said = xywh(objects), [row["bbox"] for row in found]
    who, by = np.full(len(found), -1), np.full(len(true), -1)
    if not true or not said:
        return Match(who, by)
    same = np.array([row["category_id"] - 1 for row in found])[:, None] == objects.labels[None]
    overlap = np.where(same, np.asarray(rle.iou(said, true, objects.crowd.astype(int).tolist())), 0)
    for i in sorted(range(len(found)), key=lambda i: -found[i]["score"]):
        free = np.where((by < 0) & ~objects.crowd, overlap[i], 0)
        if free.max() >= MATCH:
            who[i] = free.argmax()
            by[who[i]] = i
        elif (overlap[i] * objects.crowd).max() >= MATCH:
            who[i] = -2
    return Match(who, by)
