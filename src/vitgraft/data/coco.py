"""The reader of COCO's JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .layouts import read_class_names, some
from .objects import Fault, Row, check_box, check_class, gather
from .segmentations import fault_of
from .truth import DenseSet, DenseSplit, Problem, by_split, described

LAYOUT = "images/SPLIT/FILE with instances_SPLIT.json (SPLIT: train, val, test), or COCO's train2017/ and annotations/"
_FILE = re.compile(r"instances_(.+)\.json")
Picture = tuple[Path, tuple[int, int]]  # and its size, (h, w)


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
