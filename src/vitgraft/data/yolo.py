"""The reader of YOLO's text files: boxes or polygons, with data.yaml in its forms, darknet's lists, or names alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from ..common.errors import RequestError
from .folders import SPLITS, files_in, is_picture, some, walk
from .layouts import read_class_names
from .objects import Entry, Fault, Row, Tally, fitted, picture_size, truth_beside
from .tables import text_lines, text_of
from .truth import DenseSet, Problem, gathered

TURNED = 0.004  # parts of a picture by which corners may be off, and are askew
LAYOUT = "images/SPLIT/FILE with labels/SPLIT/STEM.txt and data.yaml or classes.txt"
CONFIDENCE = "# boxes had a sixth number, a confidence, which was not read"
ENCLOSED = "# polygons were read as the boxes around them"
Pairs = dict[str | None, list[tuple[Path, Path | None]]]


def is_yolo(root: Path) -> bool:
    """Whether text files of numbers lie beside pictures, or in a folder named for them."""
    if any(True for _ in _lines(root, 20)):
        return True
    named = all((root / inner).is_dir() for inner in ("images", "labels"))
    return named and any(folder.truth and _has_texts(folder.path) for folder in walk(root))


def _has_texts(folder: Path) -> bool:
    return any(file.suffix.lower() == ".txt" for file in files_in(folder))


def _lines(root: Path, files: int) -> Iterator[list[str]]:
    """The words of the lines in the first label files, where all of them are numbers."""
    found = (file for pairs in truth_beside(root, ".txt").values() for _, file in pairs if file)
    for file, _ in zip(found, range(files), strict=False):
        try:
            lines = [line.split() for _, line in text_lines(file)]
        except RequestError:
            continue
        if lines and all(len(words) >= 5 and all(map(_number, words)) for words in lines):
            yield from lines


def has_polygons(root: Path) -> bool:
    """Whether every line that is looked at is a polygon, and they are no oriented boxes."""
    lines = list(_lines(root, 200))
    polygons = bool(lines) and all(len(words) > 6 and len(words) % 2 for words in lines)
    return polygons and not _are_oriented_boxes(lines)


def _are_oriented_boxes(lines: list[list[str]]) -> bool:
    """Whether all polygons have four corners and opposite sides that are equal, and some lie askew: a rectangle that is
    turned is so in parts of the picture too."""
    if any(len(words) != 9 for words in lines):
        return False
    corners = np.array([words[1:] for words in lines], dtype=float).reshape(-1, 4, 2)
    off = np.abs(corners[:, 0] + corners[:, 2] - corners[:, 1] - corners[:, 3])
    askew = np.abs(corners[:, 0] - corners[:, 1]).min(axis=1)
    return bool((off < TURNED).all() and (askew > TURNED).any())


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_yolo(
    root: Path, task: str, classes: tuple[str, ...] | None, problems: list[Problem], notes: list[str], seed: int = 0
) -> DenseSet:
    """Reads `root` in YOLO's form, a line being "class x y width height" of the box's centre, in parts of the picture,
    or "class x y x y ..." of a polygon.

    A picture without a text file has no object. What is wrong is added to `problems` and left out, what was guessed to
    `notes`. The pictures' sizes are taken from their files' heads.
    """
    tally = Tally()
    file = _yaml_file(root)
    content = _yaml(file, problems) if file else {}
    pairs = _told(root, file, content, notes) if file else {}
    pairs = pairs or _darknet(root) or truth_beside(root, ".txt")
    named = _names(root, file, content, problems, notes) or classes or ()
    found = {
        split: [_entry(picture, text, named, task, tally) for picture, text in files] for split, files in pairs.items()
    }
    if not any(found.values()):
        sentence = f"no picture of a split is in it; arrange the data as {LAYOUT}"
        problems.append(Problem(root, "", sentence, True))
    return gathered(root, task, classes or named, found, "YOLO labels", problems, notes, tally, seed)


# --- where the pictures are ---------------------------------------------------------------------------------------


def _yaml_file(root: Path) -> Path | None:
    """data.yaml, or another file of that form."""
    files = [file for file in files_in(root) if file.suffix.lower() in (".yaml", ".yml")]
    files.sort(key=lambda file: (file.stem not in ("data", "dataset"), file.name))
    return next((file for file in files if re.search(r"^\s*['\"]?(names|nc)['\"]?\s*:", text_of(file), re.M)), None)


def _yaml(file: Path, problems: list[Problem]) -> dict[str, Any]:
    """Its content, every value as it is written: YAML takes the names Yes, No and 010 for something else."""
    try:
        content = yaml.load(text_of(file), Loader=yaml.BaseLoader)  # which gives texts, lists and dicts alone
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        problems.append(Problem(file, "", f"it cannot be read as YAML ({what}); correct it", True))
        return {}
    return content if isinstance(content, dict) else {}


def _told(root: Path, file: Path, content: dict[str, Any], notes: list[str]) -> Pairs:
    """The pictures of each split as data.yaml names them: folders, lists of these, or files with a path a line."""
    found: Pairs = {}
    taken: set[Path] = set()
    for split in SPLITS:
        told = content.get(split) or ()
        pictures: list[Path] = []
        for text in [told] if isinstance(told, str) else told:
            places = list(_places(root, str(content.get("path") or ""), str(text)))
            if not places:
                notes.append(f"{file.name} names {text} for {split}, which is not there")
            pictures += [picture for place in places[:1] for picture in _pictures(root, place)]
        if pictures and set(pictures) <= taken:
            notes.append(f"{file.name} names the pictures of train for {split} too: that says nothing, and is left out")
        elif pictures:
            taken.update(pictures)
            found[split] = [(picture, _label_file(picture)) for picture in pictures]
    return found


def _places(root: Path, path: str, text: str) -> Iterator[Path]:
    """Where a path of data.yaml may be meant to lead: from its own folder, with `path` or without, or further in."""
    parts = [part for part in Path(text.replace("\\", "/")).parts if part not in ("..", ".")]
    for base in (root / path, root):
        for k in range(len(parts)):
            if (place := base.joinpath(*parts[k:])).exists():
                yield place


def _pictures(root: Path, place: Path) -> list[Path]:
    if place.is_dir():
        inner = place / "images" if (place / "images").is_dir() else place
        return [file for file in files_in(inner) if is_picture(file)]
    return [next(_places(root, "", line), root / line) for _, line in text_lines(place)]


def _label_file(picture: Path) -> Path | None:
    """labels/.../STEM.txt for images/.../FILE, or the one beside the picture."""
    parts = list(picture.parent.parts)
    for k in range(len(parts) - 1, -1, -1):
        if parts[k].lower() in ("images", "imgs"):
            beside = Path(*parts[:k], "labels", *parts[k + 1 :]) / f"{picture.stem}.txt"
            return beside if beside.is_file() else None
    beside = picture.with_suffix(".txt")
    return beside if beside.is_file() else None


def _darknet(root: Path) -> Pairs:
    """The pictures that train.txt, val.txt and test.txt name, one a line."""
    found: Pairs = {}
    for split in SPLITS:
        file = root / f"{split}.txt"
        lines = [line for _, line in text_lines(file)] if file.is_file() else []
        places = [next(_places(root, "", line), None) for line in lines]
        if lines and all(place and is_picture(place) for place in places):
            found[split] = [(place, _label_file(place)) for place in places if place]
    return found


# --- what they show -----------------------------------------------------------------------------------------------


def _entry(path: Path, file: Path | None, names: tuple[str, ...], task: str, tally: Tally) -> Entry:
    where = file or path
    try:
        entry = Entry(path, where, picture_size(path))
        lines = text_lines(file) if file else []
    except Fault as fault:
        return Entry(path, path, (0, 0), faults=[("", str(fault))])
    except RequestError as error:
        return Entry(path, where, (0, 0), faults=[("", str(error))])
    for number, line in lines:
        try:
            entry.rows.append((f"line {number}", _row(line, entry.size, names, task, tally)))
        except Fault as fault:
            entry.faults.append((f"line {number}", str(fault)))
    return entry


def _row(line: str, size: tuple[int, int], names: tuple[str, ...], task: str, tally: Tally) -> Row:
    h, w = size
    written, *words = line.replace(",", " ").split()
    try:
        rest = [float(word) for word in words]
    except ValueError as error:
        raise Fault(_no_box(line)) from error
    label = float(written) if _number(written) else -1.0
    if not 0 <= label < len(names) or label != int(label):
        counted = ", so counted from 1, perhaps" if label == len(names) else ""
        known = f"there are classes 0 to {len(names) - 1}{counted}"
        raise Fault(f"the class is {written}, but {known}; correct or remove it")
    if len(rest) == 5:
        tally[CONFIDENCE] += 1
        rest.pop()
    polygon = None
    if len(rest) == 4:
        x, y, width, height = rest
        box = ((x - width / 2) * w, (y - height / 2) * h, (x + width / 2) * w, (y + height / 2) * h)
        if task == "instance":
            raise Fault("it is a box, which instance masks are not; draw a polygon, or fit with --task detect")
    elif len(rest) >= 6 and len(rest) % 2 == 0:
        xs, ys = [x * w for x in rest[::2]], [y * h for y in rest[1::2]]
        box = (min(xs), min(ys), max(xs), max(ys))
        points = [min(max(n, 0.0), edge) for x, y in zip(xs, ys, strict=True) for n, edge in ((x, w), (y, h))]
        polygon = [points] if task == "instance" else None
        if task != "instance":
            tally[ENCLOSED] += 1
    else:
        raise Fault(_no_box(line))
    return Row(names[int(label)], fitted(box, size, tally), segmentation=polygon)


def _no_box(line: str) -> str:
    form = "'class x y width height', or a class and the points of a polygon"
    return f"the line {line[:60]!r} is no box, which is {form}; correct or remove it"


def _names(
    root: Path, file: Path | None, content: dict[str, Any], problems: list[Problem], notes: list[str]
) -> tuple[str, ...] | None:
    """The names of data.yaml, a list, {number: name} or one text, or those of classes.txt, which must not differ."""
    listed = read_class_names(root / "classes.txt") or next(
        (read_class_names(names) for names in files_in(root) if names.suffix == ".names"), None
    )
    if file is None or not content:
        return listed
    names = content.get("names")
    named: tuple[str, ...]
    try:
        if isinstance(names, str) and names:
            named = (names,)
        elif isinstance(names, (list, dict)):
            of_number = {int(k): v for k, v in names.items()} if isinstance(names, dict) else dict(enumerate(names))
            named = tuple(str(of_number[i]) for i in range(len(of_number)))
        else:
            named = tuple(map(str, range(int(content["nc"]))))
            notes.append(f"{file.name} has no names: the {len(named)} classes are called by their numbers")
    except (LookupError, ValueError, TypeError) as error:
        sentence = f"it has no names of classes, numbered from 0 ({type(error).__name__}: {error}); add them"
        problems.append(Problem(file, "", sentence, True))
        return listed
    if listed is not None and listed != named:
        sentence = f"its names are {some(named)}, but classes.txt has {some(listed)}; make them the same"
        problems.append(Problem(file, "", sentence, fatal=True))
    return named
