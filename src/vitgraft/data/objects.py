"""Data for detection and instance segmentation: the truth about one picture, and the reader of COCO's JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .batch import DenseSet, DenseSplit, Problem, by_split
from .layouts import read_class_names, some
from .masks import fault_of

LAYOUT = "images/SPLIT/FILE with instances_SPLIT.json (SPLIT: train, val, test), or COCO's train2017/ and annotations/"
OUTSIDE = 1.0  # pixels by which a box may reach out of its picture: rounding, or counting from 1; they are cut off
_FILE = re.compile(r"instances_(.+)\.json")
Picture = tuple[Path, tuple[int, int]]  # and its size, (h, w)
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


def described(root: Path, task: str, classes: tuple[str, ...], splits: dict[str, DenseSplit], how: str) -> DenseSet:
    """The data set, with its layout in words."""
    counts = (f"{name} {len(split)} with {sum(map(len, split.objects))} objects" for name, split in splits.items())
    return DenseSet(root, task, classes, splits, f"{how}; classes: {len(classes)}; pictures: {', '.join(counts)}")


def coco_files(root: Path) -> dict[str, Path]:
    """The annotation files of `root` by split; {} where it is no COCO data set."""
    for folder in (root, root / "annotations"):
        if folder.is_dir():
            files = {match[1]: item for item in folder.iterdir() if (match := _FILE.fullmatch(item.name))}
            if found := by_split(folder, sorted(files)):
                return {split: files[name] for split, name in found.items()}
    return {}


def read_coco(root: Path, task: str, classes: tuple[str, ...] | None, problems: list[Problem]) -> DenseSet:
    """Reads `root` for detect or instance; what is wrong is added to `problems` and left out. No picture is opened.

    Labels follow the categories' ids or, by name, `classes`: those of an adapter that is evaluated.
    """
    contents = {}
    for split, path in coco_files(root).items():
        try:
            contents[split] = _load(path)
        except Fault as fault:
            problems.append(Problem(path, "", str(fault), fatal=True))
    found = classes or _agreed(root, contents.values(), problems)
    splits = {}
    for split, content in contents.items():
        pictures = _pictures(root, content, problems)
        rows = _rows(content, pictures, found, task == "instance", problems)
        objects = (gather(size, rows[key], found, task == "instance") for key, (_, size) in pictures.items())
        splits[split] = DenseSplit(split, tuple(path for path, _ in pictures.values()), objects=tuple(objects))
    how = "COCO annotations " + ", ".join(content.path.name for content in contents.values())
    return described(root, task, tuple(found), splits, how)


class _Content(NamedTuple):
    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    names: dict[int, str]  # of the categories, by id in ascending order


def _load(path: Path) -> _Content:
    """An annotation file; raises `Fault` where it is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Fault(f"it cannot be read as JSON ({error}); take an intact copy") from error
    keys = ("images", "annotations", "categories")
    parts: list[Any] = [content.get(key) if isinstance(content, dict) else None for key in keys]
    for part in parts:
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise Fault(f"it is no COCO annotation file, which holds lists of {', '.join(keys)}; export it again")
    images, annotations, categories = parts
    pairs = [(category.get("id"), category.get("name")) for category in categories]
    typed = all(type(key) is int and isinstance(name, str) for key, name in pairs)
    if not typed or not len(pairs) == len(dict(pairs)) == len({name for _, name in pairs}) > 0:
        raise Fault(f"it has {len(pairs)} categories, each of which needs an id and a name of its own; correct them")
    return _Content(path, images, annotations, dict(sorted(pairs)))


def _agreed(root: Path, contents: Iterable[_Content], problems: list[Problem]) -> tuple[str, ...]:
    """The classes in the order of their ids, on which all files and classes.txt must agree."""
    named = read_class_names(root / "classes.txt")
    first: tuple[str, ...] = ()
    for content in contents:
        names = tuple(content.names.values())
        first = first or names
        # classes.txt may serve masks too, which number the background.
        if named is not None and named not in (names, ("background", *names)):
            other = f"{root / 'classes.txt'} has {some(named)}"
        elif names != first:
            other = f"another split's are {some(first)}"
        else:
            continue
        sentence = f"the categories by id are {some(names)}, but {other}; make them the same, in the same order"
        problems.append(Problem(content.path, "", sentence, fatal=True))
    return first


def _pictures(root: Path, content: _Content, problems: list[Problem]) -> dict[Any, Picture]:
    """{image id: (path, (h, w))} of the images that are there, in the order of the file."""
    name = _FILE.fullmatch(content.path.name)[1]  # type: ignore[index]
    bases = [base for base in (root / "images", root / "images" / name, root / name, root) if base.is_dir()]
    found: dict[Any, Picture] = {}
    taken: set[Path] = set()
    for number, image in enumerate(content.images, 1):
        try:
            fields: list[Any] = [image.get(field) for field in ("id", "file_name", "height", "width")]
            key, file, h, w = fields
            typed = type(key) in (int, str) and isinstance(file, str) and type(h) is type(w) is int
            if not typed or min(h, w) < 1:
                raise Fault("an image needs an id, a file_name, a height and a width in pixels; add what lacks")
            if key in found:
                raise Fault(f"the id {key} is that of another image too; give each its own")
            path = next((base / file for base in bases if (base / file).is_file()), None)
            if path is None:
                raise Fault(f"its picture {file!r} is in none of {some(map(str, bases))}; add or correct it")
            if path in taken:
                raise Fault(f"its picture {file!r} is that of another image too; name it once")
        except Fault as fault:
            problems.append(Problem(content.path, _place("image", image, number), str(fault)))
        else:
            taken.add(path)
            found[key] = path, (h, w)
    if not found:
        problems.append(Problem(content.path, "", "none of its images is there; add the pictures, or correct it", True))
    return found


def _rows(
    content: _Content,
    pictures: Mapping[Any, Picture],
    classes: Sequence[str],
    masks: bool,
    problems: list[Problem],
) -> dict[Any, list[Row]]:
    """{image id: its objects}."""
    rows: dict[Any, list[Row]] = {key: [] for key in pictures}
    absent = {str(image.get("id")) for image in content.images} - {str(key) for key in pictures}
    ids: set[Any] = set()
    for number, entry in enumerate(content.annotations, 1):
        try:
            key = entry.get("image_id")
            if str(key) in absent:
                continue  # its image is a problem already
            if type(key) not in (int, str) or key not in rows:
                raise Fault(f"it belongs to the image {key!r}, which is not in the file; correct or remove it")
            if entry.get("id") is not None and str(entry["id"]) in ids:
                raise Fault(f"the id {entry['id']} is that of another annotation too; give each its own")
            ids.add(str(entry.get("id")))
            rows[key].append(_row(entry, content.names, pictures[key][1], classes, masks))
        except Fault as fault:
            problems.append(Problem(content.path, _place("annotation", entry, number), str(fault)))
    return rows


def _row(
    entry: dict[str, Any], names: Mapping[int, str], size: tuple[int, int], classes: Sequence[str], masks: bool
) -> Row:
    category, box = entry.get("category_id"), entry.get("bbox")
    if type(category) is not int or category not in names:
        raise Fault(
            f"it is of the category {category!r}, but the categories are {some(map(str, names))}; correct or remove it"
        )
    check_class(names[category], classes)
    if not isinstance(box, list) or len(box) != 4 or not all(type(n) in (int, float) for n in box):
        raise Fault(f"its bbox is {box!r}, but a box is [x, y, width, height] in pixels; correct or remove it")
    x, y, w, h = map(float, box)
    check_box((x, y, x + w, y + h), size)
    segmentation = entry.get("segmentation") if masks else None
    if masks and (fault := fault_of(segmentation, size)):
        raise Fault(fault)
    area: Any = entry.get("area")
    given = float(area) if type(area) in (int, float) and 0 < area < math.inf else None
    return Row(names[category], (x, y, x + w, y + h), bool(entry.get("iscrowd", 0)), given, segmentation)


def _place(kind: str, entry: dict[str, Any], number: int) -> str:
    return f"{kind} {entry['id']}" if "id" in entry else f"{kind} number {number}"
