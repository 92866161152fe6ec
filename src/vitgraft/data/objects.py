"""The truth about one picture for detection and instance segmentation: its objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .layouts import some

OUTSIDE = 1.0  # pixels by which a box may reach out of its picture: rounding, or counting from 1; they are cut off
Box = tuple[float, float, float, float]  # xyxy, in pixels of the picture's file


@dataclass(frozen=True, eq=False)
class Objects:
    """The truth about one picture, in pixels of its file.

    size           (h, w) of the picture
    boxes          float32 [n, 4], xyxy, inside the picture; n may be 0
    labels         int64 [n]
    crowd          bool [n]; a crowd is neither trained on nor counted against a prediction (VOC: difficult objects)
    area           float32 [n], in pixels: of the object where the annotation says so, else of its box
    segmentations  n COCO segmentations (polygons or RLE), undecoded; None where only boxes are known
    """

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    segmentations: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


class Row(NamedTuple):
    """One object as a reader finds it; `name` is its class."""

    name: str
    box: Box
    crowd: bool = False
    area: float | None = None
    segmentation: Any = None


class Fault(Exception):  # noqa: N818
    """What is wrong with one picture or object, in a sentence."""


def gather(size: tuple[int, int], rows: Sequence[Row], classes: Sequence[str], masks: bool = False) -> Objects:
    """The objects of one picture as arrays, their boxes cut to the picture."""
    h, w = size
    label_of = {name: label for label, name in enumerate(classes)}
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4).clip(0, (w, h, w, h))
    area = [
        a if row.area is None else row.area
        for row, a in zip(rows, np.prod(boxes[:, 2:] - boxes[:, :2], 1), strict=True)
    ]
    return Objects(
        size,
        boxes.astype(np.float32),
        np.array([label_of[row.name] for row in rows], dtype=np.int64),
        np.array([row.crowd for row in rows], dtype=bool),
        np.array(area, dtype=np.float32),
        tuple(row.segmentation for row in rows) if masks else None,
    )


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Raises `Fault` for a box xyxy without area, or outside a picture of `size` (h, w)."""
    (x0, y0, x1, y1), (h, w) = box, size
    corners = f"the box from x {x0:g}, y {y0:g} to x {x1:g}, y {y1:g}"
    if not all(map(math.isfinite, box)):
        raise Fault(f"{corners} is nowhere, but its corners are places in the picture; give finite numbers")
    if x1 <= x0 or y1 <= y0:
        raise Fault(f"{corners} has no area, but an object has a width and a height above 0; correct or remove it")
    inside = x0 < w and y0 < h and x1 > 0 and y1 > 0
    if not inside or min(x0, y0) < -OUTSIDE or x1 > w + OUTSIDE or y1 > h + OUTSIDE:
        raise Fault(f"{corners} reaches out of its picture, which is {w} wide and {h} high; correct or remove it")


def check_class(name: str, classes: Sequence[str]) -> None:
    """Raises `Fault` for a class that is not among `classes`."""
    if name not in classes:
        raise Fault(f"the object is of the class {name!r}, but the classes are {some(classes)}; rename or remove it")
