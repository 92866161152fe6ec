"""The truth about one picture for detection and instance segmentation: its objects, and how readers hand them over."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .folders import files_in, is_junk, is_picture, some, walk
from .pictures import reason_of, upright_size

ROUNDING = 1.0  # pixels by which a box may reach out of its picture without a word: rounding, or counting from 1
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


@dataclass
class Entry:
    """A picture as a reader finds it: the file of its truth, its size (h, w), its objects with the place where each is
    written, and what is wrong with others, by place."""

    path: Path
    file: Path
    size: tuple[int, int]
    rows: list[tuple[str, Row]] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


class Fault(Exception):  # noqa: N818
    """What is wrong with one picture or object, in a sentence."""


class Tally(Counter[str]):
    """What was changed or guessed to read a set, and how many times."""

    def notes(self) -> Iterator[str]:
        for words, count in self.items():
            yield words.replace("#", str(count), 1) if "#" in words else words


CUT = "# boxes reached out of their pictures, and were cut to them"
SWAPPED = "# boxes had their corners in the wrong order, which was turned round"


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


def fitted(box: Box, size: tuple[int, int], tally: Tally) -> Box:
    """A box xyxy cut to a picture of `size` (h, w); `Fault` where it has no area, or lies outside for the most part."""
    (x0, y0, x1, y1), (h, w) = box, size
    corners = f"the box from x {x0:g}, y {y0:g} to x {x1:g}, y {y1:g}"
    if not all(map(math.isfinite, box)):
        raise Fault(f"{corners} is nowhere, but its corners are places in the picture; give finite numbers")
    if x1 < x0 and y1 < y0:
        tally[SWAPPED] += 1
        x0, y0, x1, y1 = x1, y1, x0, y0
    if x1 <= x0 or y1 <= y0:
        raise Fault(f"{corners} has no area, but an object has a width and a height above 0; correct or remove it")
    inside = max(0.0, min(x1, w) - max(x0, 0.0)) * max(0.0, min(y1, h) - max(y0, 0.0))
    if inside < 0.5 * (x1 - x0) * (y1 - y0):
        raise Fault(f"{corners} lies for the most part outside its picture, which is {w} wide and {h} high; correct it")
    if min(x0, y0) < -ROUNDING or x1 > w + ROUNDING or y1 > h + ROUNDING:
        tally[CUT] += 1
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(w)), min(y1, float(h))


def check_class(name: str, classes: Sequence[str]) -> None:
    """Raises `Fault` for a class that is not among `classes`."""
    if name not in classes:
        raise Fault(f"the object is of the class {name!r}, but the classes are {some(classes)}; rename or remove it")


def picture_size(path: Path) -> tuple[int, int]:
    """(h, w) of a picture, upright by its EXIF orientation, from its head alone; raises `Fault`."""
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except Exception as error:  # as in `open_picture`: decoders meet broken bytes with nearly any error
        raise Fault(f"it cannot be read as a picture ({reason_of(path, error)}); replace or remove it") from error


def truth_beside(root: Path, ending: str) -> dict[str | None, list[tuple[Path, Path | None]]]:
    """By split, pictures and the files of this ending (".xml") of the same stems: in the same folder, or in one whose
    name says the same but that it holds labels. Folders without any such file beside them are left out."""
    found = list(walk(root))
    files = {folder.path: _files_of(folder.path, ending) for folder in found}
    alike: dict[tuple[str | None, tuple[str, ...]], list[dict[str, Path]]] = {}
    for folder in found:
        if files[folder.path]:
            alike.setdefault((folder.split, folder.rest), []).append(files[folder.path])
    pairs: dict[str | None, list[tuple[Path, Path | None]]] = {}
    for folder in found:
        beside = alike.get((folder.split, folder.rest))
        pictures = [f for f in files_in(folder.path) if f.suffix.lower() != ending and is_picture(f)] if beside else []
        stems = {picture.stem for picture in pictures}
        truth = max(beside or [{}], key=lambda of: len(stems & of.keys()))
        if stems & truth.keys():
            pairs.setdefault(folder.split, []).extend((picture, truth.get(picture.stem)) for picture in pictures)
    return pairs


def _files_of(folder: Path, ending: str) -> dict[str, Path]:
    """The files of an ending in a folder, by stem; of others, which may be very many, nothing is made."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(ending)]
    return {path.stem: path for name in sorted(names) if not is_junk(path := folder / name) and path.is_file()}


def known_rows(entry: Entry, classes: Sequence[str]) -> tuple[list[Row], list[tuple[str, str]]]:
    """The entry's rows of these classes; and its faults, with those of the others."""
    rows, faults = [], list(entry.faults)
    for place, row in entry.rows:
        try:
            check_class(row.name, classes)
            rows.append(row)
        except Fault as fault:
            faults.append((place, str(fault)))
    return rows, faults


def names_in(entries: Iterable[Entry]) -> list[str]:
    """Every class that an object has, sorted."""
    return sorted({row.name for entry in entries for _, row in entry.rows})
