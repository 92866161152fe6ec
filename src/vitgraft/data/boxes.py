"""Boxes in two more forms: Pascal VOC's XML files, and YOLO's text files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import yaml  # type: ignore[import-untyped]
from PIL import Image

from ..common.errors import RequestError
from .layouts import folders, read_class_names, some, text_lines
from .masks import files
from .objects import Fault, Row, check_box, check_class, gather
from .pictures import reason_of
from .truth import DenseSet, DenseSplit, Problem, by_split, described

VOC = "JPEGImages/ with Annotations/STEM.xml and ImageSets/Main/SPLIT.txt"
YOLO = "images/SPLIT/FILE with labels/SPLIT/STEM.txt and data.yaml or classes.txt"


class _Entry(NamedTuple):
    """A picture and its objects, each with the place where it is written."""

    path: Path
    file: Path
    size: tuple[int, int]
    rows: list[tuple[str, Row]]


def read_voc(root: Path, classes: tuple[str, ...] | None, problems: list[Problem]) -> DenseSet:
    """Reads `root` in Pascal VOC's form; what is wrong is added to `problems` and left out.

    The classes are `classes`, or those of classes.txt, or every name that an object has, sorted. Objects that are
    marked difficult become crowds: VOC neither trains on them nor counts them.
    """
    lists = root / "ImageSets" / "Main"
    stems = [item.stem for item in lists.glob("*.txt")]
    name_of = by_split(lists, stems)
    if "train" not in name_of and "trainval" in stems:
        name_of = {"train": "trainval", **name_of}
    pictures = {path.stem: path for path in files(root / "JPEGImages")}
    found = {
        split: list(_voc_split(root, lists / f"{name}.txt", pictures, problems)) for split, name in name_of.items()
    }
    names = sorted({row.name for entries in found.values() for entry in entries for _, row in entry.rows})
    known = classes or read_class_names(root / "classes.txt") or tuple(names)
    return _gathered(root, known, found, "VOC annotations", problems)


def _voc_split(root: Path, file: Path, pictures: dict[str, Path], problems: list[Problem]) -> Iterator[_Entry]:
    for number, line in text_lines(file):
        stem = line.split()[0]
        annotation = root / "Annotations" / f"{stem}.xml"
        if stem not in pictures:
            sentence = f"there is no picture {stem} in {root / 'JPEGImages'}; add it, or remove the line"
            problems.append(Problem(file, f"line {number}", sentence))
            continue
        try:
            tree = ElementTree.parse(annotation).getroot()
            size = _voc_size(tree) or picture_size(pictures[stem])
        except (OSError, ElementTree.ParseError, Fault) as error:
            problems.append(Problem(annotation, "", f"it cannot be read ({error}); add or correct it"))
            continue
        rows = []
        for index, element in enumerate(tree.iter("object"), 1):
            try:
                rows.append((f"object {index}", _voc_row(element, size)))
            except Fault as fault:
                problems.append(Problem(annotation, f"object {index}", str(fault)))
        yield _Entry(pictures[stem], annotation, size, rows)


def _voc_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(h, w) as written, or None where it isn't: some tools leave it out or write 0."""
    h, w = (tree.findtext(f"size/{side}", "").strip() for side in ("height", "width"))
    return (int(h), int(w)) if h.isdecimal() and w.isdecimal() and int(h) and int(w) else None


def _voc_row(element: ElementTree.Element, size: tuple[int, int]) -> Row:
    name = element.findtext("name", "").strip()
    corners = [element.findtext(f"bndbox/{corner}", "") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError as error:
        raise Fault(f"its corners are {corners}, but a bndbox has four numbers; correct or remove it") from error
    if not name:
        raise Fault("it has no name, but an object is of a class; add its name, or remove it")
    box = (x0 - 1, y0 - 1, x1, y1)  # VOC counts pixels from 1, and the last one belongs to the box
    check_box(box, size)
    return Row(name, box, crowd=element.findtext("difficult", "0").strip() == "1")


def read_yolo(root: Path, classes: tuple[str, ...] | None, problems: list[Problem]) -> DenseSet:
    """Reads `root` in YOLO's form, a line being "class x y width height" of the box's centre, in parts of the picture.

    A picture without a text file has no object. What is wrong is added to `problems` and left out. The pictures'
    sizes are taken from their files' heads.
    """
    named = _yolo_names(root, problems) or classes or ()
    found = {}
    for split, name in by_split(root / "images", [folder.name for folder in folders(root / "images")]).items():
        labels = root / "labels" / name
        if not labels.is_dir():
            problems.append(
                Problem(labels, "", "there is no such folder, but the pictures' boxes are in it; add it", True)
            )
        found[split] = [
            entry
            for path in files(root / "images" / name)
            if (entry := _yolo_entry(path, labels / f"{path.stem}.txt", named, problems))
        ]
    return _gathered(root, classes or named, found, "YOLO labels", problems)


def _yolo_entry(path: Path, file: Path, names: tuple[str, ...], problems: list[Problem]) -> _Entry | None:
    try:
        size = picture_size(path)
        lines = text_lines(file) if file.is_file() else []
    except Fault as fault:
        problems.append(Problem(path, "", str(fault)))
        return None
    except RequestError as error:
        problems.append(Problem(file, "", str(error)))
        return None
    rows = []
    for number, line in lines:
        try:
            rows.append((f"line {number}", _yolo_row(line, size, names)))
        except Fault as fault:
            problems.append(Problem(file, f"line {number}", str(fault)))
    return _Entry(path, file, size, rows)


def _yolo_row(line: str, size: tuple[int, int], names: tuple[str, ...]) -> Row:
    h, w = size
    label, *rest = line.split()
    try:
        x, y, width, height = map(float, rest)
    except ValueError as error:
        form = "'class x y width height'"
        raise Fault(f"the line {line[:60]!r} is no box, which is {form}; correct or remove it") from error
    if not label.isdecimal() or int(label) >= len(names):
        raise Fault(f"the class is {label}, but there are classes 0 to {len(names) - 1}; correct or remove it")
    box = ((x - width / 2) * w, (y - height / 2) * h, (x + width / 2) * w, (y + height / 2) * h)
    check_box(box, size)
    return Row(names[int(label)], box)


def _yolo_names(root: Path, problems: list[Problem]) -> tuple[str, ...] | None:
    """The names of data.yaml, a list or {number: name}, or those of classes.txt, which must not differ."""
    listed = read_class_names(root / "classes.txt")
    file = root / "data.yaml"
    if not file.is_file():
        return listed
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        names = content["names"]
        named = tuple(str(names[i]) for i in range(len(names)))
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        what = " ".join(str(error).split())
        problems.append(Problem(file, "", f"it has no names of classes, numbered from 0 ({what}); add them", True))
        return listed
    if listed is not None and listed != named:
        sentence = f"its names are {some(named)}, but classes.txt has {some(listed)}; make them the same"
        problems.append(Problem(file, "", sentence, fatal=True))
    return named


def _gathered(
    root: Path, classes: tuple[str, ...], found: dict[str, list[_Entry]], how: str, problems: list[Problem]
) -> DenseSet:
    """The objects of known classes as arrays, and those of others as problems."""

    def good(entry: _Entry) -> list[Row]:
        rows = []
        for place, row in entry.rows:
            try:
                check_class(row.name, classes)
                rows.append(row)
            except Fault as fault:
                problems.append(Problem(entry.file, place, str(fault)))
        return rows

    if not classes:
        problems.append(
            Problem(root, "", "no object has a class, and no file names the classes; add classes.txt", True)
        )
    if not any(found.values()):
        problems.append(
            Problem(root, "", f"no picture of a split is in it; arrange the data as {VOC}, or {YOLO}", True)
        )
    splits = {
        split: DenseSplit(
            split,
            tuple(entry.path for entry in entries),
            objects=tuple(gather(entry.size, good(entry), classes) for entry in entries),
        )
        for split, entries in found.items()
    }
    return described(root, "detect", classes, splits, how)


def picture_size(path: Path) -> tuple[int, int]:
    """(h, w) of a picture, upright by its EXIF orientation, from its head alone; raises `Fault`."""
    try:
        with Image.open(path) as image:
            w, h = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except Exception as error:  # as in `open_picture`: decoders meet broken bytes with nearly any error
        raise Fault(f"it cannot be read as a picture ({reason_of(path, error)}); replace or remove it") from error
    return (w, h) if turned else (h, w)
