"""The reader of COCO's JSON: as distributed, and as Roboflow, CVAT, Label Studio and others export it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .folders import SPLITS, files_in, folders_in, is_picture, same_form, some, split_of
from .layouts import read_class_names
from .objects import Box, Entry, Fault, Row, Tally, check_class, fitted, picture_size
from .segmentations import fault_of
from .truth import DenseSet, Problem, gathered

LAYOUT = "images/SPLIT/FILE with instances_SPLIT.json (SPLIT: train, val, test), or COCO's train2017/ and annotations/"
_FILE = re.compile(r"instances_(.+)\.json")
KEYS = ("images", "annotations", "categories")
LARGE = 1 << 28  # bytes of a file that is not opened just to see what it is
SMALL = 1 << 24  # bytes of one whose content is kept for when it is read a second time
CONTRADICTS = "# boxes contradict their polygons (they share less than half of their area)"
NO_BOX = "# objects had no box, which was taken from their polygons"


class File(NamedTuple):
    path: Path
    split: str | None
    name: str  # of its split's folder, as it is written: "train2017"


def coco_files(root: Path) -> list[File]:
    """The annotation files of `root`; [] where it is no COCO data set.

    In the first folder that has some, those called instances_SPLIT.json alone, else every JSON file of that form.
    """
    for folder, files in json_files(root):
        named = [file for file in files if _FILE.fullmatch(file.name)]
        found = [File(file, *split_named(file)) for file in named or files if named or _is_coco(file)]
        if folder.parent == root and folder.name != "annotations" and found:  # SPLIT/_annotations.coco.json
            beside = (file for other in folders_in(root) if other != folder for file in files_in(other))
            found += [File(f, *split_named(f)) for f in beside if f.suffix.lower() == ".json" and _is_coco(f)]
        if found:
            return in_order(found)
    return []


def json_files(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folders in which annotations may lie, with their JSON files."""
    for folder in (root, root / "annotations", *folders_in(root)):
        if folder.is_dir():
            yield folder, [file for file in files_in(folder) if file.suffix.lower() == ".json"]


def in_order(files: Iterable[File]) -> list[File]:
    """By split, those of none last."""
    return sorted(files, key=lambda file: (SPLITS.index(file.split) if file.split else len(SPLITS), file.path))


def split_named(file: Path) -> tuple[str | None, str]:
    """The split that a file's name says, or its folder's."""
    match = _FILE.fullmatch(file.name)
    words = [match[1]] if match else [file.stem, *re.split(r"[-_. ]", file.stem)]
    return next(((split, word) for word in [*words, file.parent.name] if (split := split_of(word))), (None, words[0]))


def _is_coco(file: Path) -> bool:
    if file.stat().st_size > LARGE:
        return False
    try:
        content = parsed(file)
    except Fault:
        return False
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)
    return lists and not is_panoptic(content)


def is_panoptic(content: Any) -> bool:
    """Whether the annotations of a JSON file are of whole pictures, in the segments of a PNG each."""
    rows = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "segments_info" in rows[0]


def parsed(file: Path) -> Any:
    """What a JSON file holds; `Fault` where it is none."""
    told = file.stat()
    return (_kept if told.st_size <= SMALL else _kept.__wrapped__)(file, told.st_mtime_ns)


@lru_cache(maxsize=8)
def _kept(file: Path, changed: int) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Fault(f"it cannot be read as JSON ({error}); take an intact copy") from error


def read_coco(
    root: Path, task: str, classes: tuple[str, ...] | None, problems: list[Problem], notes: list[str], seed: int = 0
) -> DenseSet:
    """Reads `root` for detect or instance; what is wrong is added to `problems` and left out, what was guessed to
    `notes`. No picture is opened.

    Labels follow the categories' ids or, by name, `classes`: those of an adapter that is evaluated.
    """
    files = coco_files(root)
    if len(files) > 1 and len({file.split for file in files}) < len(files):
        twice = [file.path.name for file in files if [other.split for other in files].count(file.split) > 1]
        sentence = f"{some(twice)} are annotations of one split, or of none; keep one file for each of {some(SPLITS)}"
        problems.append(Problem(root, "", sentence, fatal=True))
    contents = []
    for file in files:
        try:
            contents.append(load(file))
        except Fault as fault:
            problems.append(Problem(file.path, "", str(fault), fatal=True))
    names = _names(root, contents, problems, notes)
    known, tally = classes or names, Tally()
    found: dict[str | None, list[Entry]] = {}
    index = Index(root)
    for content in contents:
        entries = pictures_of(index, content, problems)
        _objects(content, entries, known, task == "instance", problems, tally)
        found.setdefault(content.file.split, []).extend(entries.values())
    how = "COCO annotations " + ", ".join(content.file.path.name for content in contents)
    return gathered(root, task, known, found, how, problems, notes, tally, seed)


class Content(NamedTuple):
    file: File
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    names: dict[str, str]  # of the categories, by id in ascending order
    above: set[str]  # names that are the supercategory of another
    things: set[str]  # names that are countable: all, where the file does not say


def key_of(value: Any) -> str:
    """An id as a text: 7, "7" and 7.0 are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def load(file: File) -> Content:
    """An annotation file; raises `Fault` where it is none."""
    content = parsed(file.path)
    parts: list[Any] = [content.get(key) if isinstance(content, dict) else None for key in KEYS]
    for part in parts:
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise Fault(f"it is no COCO annotation file, which holds lists of {', '.join(KEYS)}; export it again")
    images, annotations, categories = parts
    pairs = [(category.get("id"), category.get("name")) for category in categories]
    typed = all(type(key) in (int, str, float) and isinstance(name, str) and name.strip() for key, name in pairs)
    if not typed or not len(pairs) == len({key_of(key) for key, _ in pairs}) > 0:
        raise Fault(f"it has {len(pairs)} categories, each of which needs an id and a name of its own; correct them")
    numbers = all(key_of(key).lstrip("-").isdecimal() for key, _ in pairs)
    order = sorted(pairs, key=lambda pair: int(key_of(pair[0])) if numbers else key_of(pair[0]))
    above = {str(category.get("supercategory")) for category in categories if category.get("supercategory")}
    names = {key_of(key): same_form(name.strip()) for key, name in order}
    things = {names[key_of(category["id"])] for category in categories if category.get("isthing", 1)}
    return Content(file, images, annotations, names, above, things)


def _names(root: Path, contents: Sequence[Content], problems: list[Problem], notes: list[str]) -> tuple[str, ...]:
    """The classes in the order of their ids in the first file; those of classes.txt must be the same."""
    names: dict[str, bool] = {}  # whether an object has it
    for content in contents:
        used = _used(content)
        for key, name in content.names.items():
            names[name] = names.get(name, False) or key in used
        if len(set(content.names.values())) < len(content.names):
            doubled = sorted({name for name in content.names.values() if list(content.names.values()).count(name) > 1})
            notes.append(f"{content.file.path.name}: several categories are called {some(doubled)}, and count as one")
        if stray := sorted({content.names[key] for key in used} - set(contents[0].names.values())):
            sentence = (
                f"it has objects of {some(map(repr, stray))}, but the categories of {contents[0].file.path.name} are "
                f"{some(contents[0].names.values())}; make them the same"
            )
            problems.append(Problem(content.file.path, "", sentence, fatal=True))
    parents = [name for name, has in names.items() if not has and any(name in content.above for content in contents)]
    if parents and len(parents) < len(names):
        notes.append(f"the category {some(parents)} has no object and stands above others: it is no class")
    found = tuple(name for name in names if name not in parents or len(parents) == len(names))
    named = read_class_names(root / "classes.txt")
    if named is None or not found or named in (found, ("background", *found)):
        # classes.txt may serve masks too, which number the background.
        return found
    if set(named) == set(found):
        notes.append("the classes have the order of classes.txt, which is another than that of the categories")
        return named
    sentence = f"the categories are {some(found)}, but {root / 'classes.txt'} has {some(named)}; make them the same"
    problems.append(Problem(contents[0].file.path, "", sentence, fatal=True))
    return found


def _used(content: Content) -> set[str]:
    """The ids of categories that have an object."""
    return {key_of(entry.get("category_id")) for entry in content.annotations} & set(content.names)


class Index:
    """Finds the pictures that annotations name, whatever the folder was where they were written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def bases(self, file: File) -> list[Path]:
        root, name = self.root, file.name
        folders = (file.path.parent, file.path.parent / "images", root / "images" / name, root / name, root / "images")
        return [base for base in dict.fromkeys((*folders, root)) if base.is_dir()]

    def find(self, text: str, bases: Sequence[Path]) -> Path | None:
        """The path as it is written from one of the bases, or the longest end of it; else the one of that name."""
        parts = Path(text.replace("\\", "/")).parts
        for k in range(len(parts)):
            for base in bases:
                if (path := base.joinpath(*parts[k:])).is_file():
                    return path
        if self._by_name is None:
            self._by_name = {}
            for path in self.root.rglob("*"):
                if path.is_file() and is_picture(path):
                    self._by_name.setdefault(same_form(path.name), []).append(path)
        found = self._by_name.get(same_form(parts[-1]) if parts else "", [])
        return found[0] if len(found) == 1 else None


def pictures_of(index: Index, content: Content, problems: list[Problem]) -> dict[str, Entry]:
    """{image id: its picture} of the images that are there, in the order of the file."""
    bases = index.bases(content.file)
    found: dict[str, Entry] = {}
    taken: set[Path] = set()
    for number, image in enumerate(content.images, 1):
        try:
            key, file = image.get("id"), image.get("file_name")
            if type(key) not in (int, str, float) or not isinstance(file, str):
                raise Fault("an image needs an id, a file_name, a height and a width in pixels; add what lacks")
            if key_of(key) in found:
                raise Fault(f"the id {key} is that of another image too; give each its own")
            path = index.find(file, bases)
            if path is None:
                raise Fault(f"its picture {file!r} is in none of {some(map(str, bases))}; add or correct it")
            if path in taken:
                raise Fault(f"its picture {file!r} is that of another image too; name it once")
            found[key_of(key)] = Entry(path, content.file.path, _size(image) or picture_size(path))
            taken.add(path)
        except Fault as fault:
            problems.append(Problem(content.file.path, place_of("image", image, number), str(fault)))
    if not found:
        sentence = "none of its images is there; add the pictures, or correct it"
        problems.append(Problem(content.file.path, "", sentence, True))
    return found


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(h, w), or None where it isn't told; `Fault` where it is no size."""
    sides = [image.get("height"), image.get("width")]
    if sides == [None, None]:
        return None
    if any(isinstance(side, bool) or not isinstance(side, (int, float)) or not 1 <= side < 1e6 for side in sides):
        raise Fault("an image needs an id, a file_name, a height and a width in pixels; add what lacks")
    return int(sides[0]), int(sides[1])  # type: ignore[arg-type]


def _objects(
    content: Content,
    entries: Mapping[str, Entry],
    classes: Sequence[str],
    masks: bool,
    problems: list[Problem],
    tally: Tally,
) -> None:
    """Adds every object, or what is wrong with it, to its picture."""
    absent = {key_of(image.get("id")) for image in content.images} - set(entries)
    ids: set[str] = set()
    for number, row in enumerate(content.annotations, 1):
        key, place = key_of(row.get("image_id")), place_of("annotation", row, number)
        if key in absent:
            continue  # its image is a problem already
        if key not in entries:
            image = row.get("image_id")
            sentence = f"it belongs to the image {image!r}, which is not in the file; correct or remove it"
            problems.append(Problem(content.file.path, place, sentence))
            continue
        entry = entries[key]
        try:
            if row.get("id") is not None and key_of(row["id"]) in ids:
                raise Fault(f"the id {row['id']} is that of another annotation too; give each its own")
            ids.add(key_of(row.get("id")))
            entry.rows.append((place, _row(row, content.names, entry.size, classes, masks, tally)))
        except Fault as fault:
            entry.faults.append((place, str(fault)))


def _row(
    entry: dict[str, Any],
    names: Mapping[str, str],
    size: tuple[int, int],
    classes: Sequence[str],
    masks: bool,
    tally: Tally,
) -> Row:
    category = key_of(entry.get("category_id"))
    if category not in names:
        raise Fault(
            f"it is of the category {entry.get('category_id')!r}, but the categories are {some(names)}; correct or "
            "remove it"
        )
    check_class(names[category], classes)
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list) and segmentation and all(isinstance(n, (int, float)) for n in segmentation):
        segmentation = [segmentation]  # one polygon, without the list around it
    around = _around(segmentation)
    box = _box(entry.get("bbox"), around, size, tally)
    if masks and (fault := fault_of(segmentation, size)):
        raise Fault(fault)
    crowd = str(entry.get("iscrowd", 0)).strip().lower() in ("1", "1.0", "true")
    area: Any = entry.get("area")
    given = float(area) if type(area) in (int, float) and 0 < area < math.inf else None
    if around and not crowd and _overlap(box, around) < 0.5:
        tally[CONTRADICTS] += 1
    return Row(names[category], box, crowd, given, segmentation if masks else None)


def _box(given: Any, around: Box | None, size: tuple[int, int], tally: Tally) -> Box:
    """The box xyxy of an annotation, cut to its picture; without one, that around its polygons."""
    if given is None and around:
        tally[NO_BOX] += 1
        return fitted(around, size, tally)
    try:
        x, y, w, h = (float(n) for n in given)
    except (TypeError, ValueError) as error:
        raise Fault(
            f"its bbox is {given!r}, but a box is [x, y, width, height] in pixels; correct or remove it"
        ) from error
    try:
        return fitted((x, y, x + w, y + h), size, tally)
    except Fault as fault:
        if x < w <= size[1] and y < h <= size[0]:
            raise Fault(f"{fault} (as x0, y0, x1, y1 it would fit: a COCO box is x, y, width, height)") from fault
        raise


def _around(segmentation: Any) -> Box | None:
    """The box around polygons; None for run lengths, and for what no polygons are."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    flat = [n for polygon in segmentation if isinstance(polygon, list) for n in polygon]
    whole = all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in segmentation)
    if not flat or not whole or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in flat):
        return None
    xs = [n for polygon in segmentation for n in polygon[::2]]
    ys = [n for polygon in segmentation for n in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    shared = max(0.0, w) * max(0.0, h)
    return shared / max(sum(areas) - shared, 1e-9)


def place_of(kind: str, entry: dict[str, Any], number: int) -> str:
    return f"{kind} {entry['id']}" if "id" in entry else f"{kind} number {number}"


def has_segmentations(files: Iterable[File]) -> bool:
    """Whether a file has a segmentation that is not empty: run lengths, or a list with something in it."""
    return any(_has_segmentations(file.path) for file in files)


_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(\{|\[\s*[^\s\]])')
CHUNK = 1 << 22


def _has_segmentations(path: Path) -> bool:
    """Looks at the text, up to the first one: COCO's own file is too large to be read for this."""
    with open(path, "rb") as file:
        end = b""
        while chunk := file.read(CHUNK):
            if _SEGMENTATION.search(end + chunk):
                return True
            end = chunk[-64:]
    return False
