"""The forms in which pictures to classify lie on disk: folders split/class, folders class, list files, tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..common.errors import RequestError, near_misses
from . import tables
from .folders import (
    ROLES,
    SPLITS,
    SUFFIX,
    files_in,
    folders_in,
    held_out_by_class,
    of_splits,
    pictures_in,
    same_form,
    some,
    split_of,
    unwrapped,
)

LAYOUTS = (
    "train/CLASS/picture (val/ and test/ beside train/, if there are any), CLASS/picture, "
    "lists train.txt, val.txt, test.txt of lines 'path label', or a table with a path and a label in each row"
)
# VTAB-1k in NOAH's form has the numbers of its pictures in the names of its lists.
LISTS = {"train.txt": "train", "train800.txt": "train", "val.txt": "val", "val200.txt": "val", "test.txt": "test"}
_UNION = "train800val200.txt"


class Found(NamedTuple):
    """What a reader hands back: for each split its (picture, class name) pairs, and all classes in order."""

    splits: dict[str, list[tuple[Path, str]]]
    classes: tuple[str, ...]
    how: str  # the layout in words
    declared: bool = False  # the classes are known apart from the training pictures, and may outnumber theirs


def recognise(root: Path, seed: int, val_share: float, classes: tuple[str, ...] | None, notes: list[str]) -> Found:
    """Reads the folder `root` by the first layout that fits; `classes` may name the indices in its lists.

    What was guessed or left out is added to `notes`.
    """
    lists = of_splits(root, {name: split for name, split in LISTS.items() if (root / name).is_file()})
    if lists:
        return _read_lists(root, lists, classes, notes)
    root = unwrapped(root, notes)
    found = tables.read(root, seed, val_share, notes) if not has_classes(root) else None
    if found:
        return Found(*found)
    for table in tables.tables_in(root):
        notes.append(f"{table.name} was not read, as the folders name the classes")
    inner = folders_in(root)
    meant = {folder.name: split for folder in inner if (split := split_of(folder.name))}
    with_classes = {name: split for name, split in meant.items() if folders_in(root / name)}
    if with_classes:
        splits = of_splits(root, with_classes)
        if unread := [folder.name for folder in inner if folder.name not in with_classes]:
            notes.append(f"{some(unread)} in {root} not read: no split by name, or without class folders")
        if renamed := {split: name for split, name in splits.items() if split != name}:
            notes.append(", ".join(f"{name} was read as {split}" for split, name in renamed.items()))
        pairs = {split: _read_classes(root / name, notes) for split, name in splits.items()}
        names = sorted({name for split in pairs.values() for _, name in split})
        _check_same(names, root)
        return Found(pairs, tuple(names), "folders " + ", ".join(f"{name}/CLASS" for name in splits.values()))
    if not inner or {folder.name for folder in inner} <= set(meant):
        hint = _of_objects(root)
        here = f"no class folders inside {some(f.name for f in inner)}" if inner else "neither class folders nor lists"
        raise RequestError(
            f"a data set was expected in {root}, but it holds {here}{hint}; arrange it as one of {LAYOUTS}"
        )
    if all(folders_in(folder) and all(split_of(f.name) for f in folders_in(folder)) for folder in inner):
        return _classes_first(root, notes)
    return _hold_out(root, seed, val_share, notes)


def _classes_first(root: Path, notes: list[str]) -> Found:
    """CLASS/SPLIT/picture."""
    _refuse_other_tasks(root, folders_in(root))
    pairs: dict[str, list[tuple[Path, str]]] = {}
    for folder in folders_in(root):
        check_name(folder)
        splits = of_splits(folder, {inner.name: split_of(inner.name) or "" for inner in folders_in(folder)})
        for split, name in splits.items():
            found = _pictures_below(folder / name, notes)
            pairs.setdefault(split, []).extend((picture, same_form(folder.name)) for picture in found)
    notes.append("the folders inside the classes were read as splits")
    names = tuple(sorted({name for found in pairs.values() for _, name in found}))
    return Found({split: pairs[split] for split in SPLITS if split in pairs}, names, "folders CLASS/SPLIT")


def _of_objects(root: Path) -> str:
    """What is said of annotations that no reader of boxes and masks knows."""
    found = [file.name for folder in (root, *folders_in(root)) for file in files_in(folder)]
    found = [name for name in found if name.lower().endswith((".json", ".xml", ".geojson"))]
    if not found:
        return ""
    return f" (and {some(found, 3)}: if those are boxes or masks, export them as COCO, YOLO or VOC)"


def has_classes(root: Path) -> bool:
    """Whether two folders or more could be classes, here or in a split."""
    inner = folders_in(root)
    places = [folder for folder in inner if split_of(folder.name)] or [root]
    names = [f.name.lower() for place in places for f in folders_in(place)]
    return len(set(names) - ROLES) > 1


def _read_classes(root: Path, notes: list[str]) -> list[tuple[Path, str]]:
    """The (picture, class name) pairs of `root`/CLASS/.../picture, sorted; pictures deeper than their class's folder
    are its own."""
    pairs = []
    classes = folders_in(root)
    _refuse_other_tasks(root, classes)
    for folder in classes:
        check_name(folder)
        pictures = list(_pictures_below(folder, notes))
        if not pictures:
            raise RequestError(f"{folder} was taken for a class, but it holds no picture; add some, or remove it")
        if deep := sum(picture.parent != folder for picture in pictures):
            notes.append(f"{folder}: {deep} pictures lie in folders inside it, and count as its own")
        pairs += [(picture, same_form(folder.name)) for picture in pictures]
    return pairs


def check_name(path: Path) -> None:
    """RequestError for a name that is no text: it could stand in no adapter, and on no page."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = path.name.encode("utf-8", "replace").decode()
        raise RequestError(
            f"the class folder {shown} in {path.parent} has a name that is not UTF-8, as in old archives: rename it"
        ) from error


def _pictures_below(folder: Path, notes: list[str]) -> Iterator[Path]:
    yield from pictures_in(folder, notes)
    for inner in folders_in(folder):
        yield from _pictures_below(inner, notes)


def _refuse_other_tasks(root: Path, classes: list[Path]) -> None:
    """RequestError for folders that no classes are: pictures beside masks, boxes or annotations."""
    names = [folder.name for folder in classes]
    if roles := [name for name in names if name.lower() in ROLES]:
        raise RequestError(
            f"{root} holds the folders {some(names)}: {some(roles)} {'is' if len(roles) == 1 else 'are'} no class, but "
            "the layout of pictures with masks or annotations, of which none could be read; arrange them as "
            "images/SPLIT/FILE with masks/SPLIT/STEM.png, with labels/SPLIT/STEM.txt, or with instances_SPLIT.json"
        )
    if len(classes) == 2:
        stems = [{SUFFIX.sub("", file.stem) for file in files_in(folder)} for folder in classes]
        paired = len(stems[0] & stems[1]) > max(2, 0.8 * min(map(len, stems)))
        flat = [name for name in names if _is_flat(root / name)] if paired else []
        if len(flat) == 1:
            raise RequestError(
                f"{root} holds {names[0]} and {names[1]} with a file of each name in both, and those in {flat[0]} look "
                "like masks: name the folders images and masks to segment; no two classes look so"
            )


def _is_flat(folder: Path) -> bool:
    """Whether the first pictures of a folder have few values, without noise, as masks do."""
    try:
        for file in files_in(folder)[:3]:
            with Image.open(file) as image:
                if image.format == "JPEG" or image.convert("RGB").getcolors(32) is None:
                    return False
    except OSError:
        return False
    return True


def _check_same(names: list[str], root: Path) -> None:
    """Two classes that differ in case alone are one, spelt in two ways."""
    first: dict[str, str] = {}
    for name in names:
        if other := first.get(name.casefold()):
            raise RequestError(
                f"{root} has the classes {other!r} and {name!r}, which differ in capital letters alone: give one class "
                "one name"
            )
        first[name.casefold()] = name


def _hold_out(root: Path, seed: int, val_share: float, notes: list[str]) -> Found:
    """CLASS/picture: the same share of each class goes to "val", one picture at least if the class has two."""
    pairs = _read_classes(root, notes)
    classes = tuple(dict.fromkeys(name for _, name in pairs))
    _check_same(list(classes), root)
    splits = held_out_by_class(pairs, val_share, lambda path: f"{path.parent.name}/{path.name}", seed)
    held = f"{val_share:.0%} of each class held out by seed {seed}"
    how = held if "val" in splits else "nothing held out for validation"
    return Found(splits, classes, f"folders CLASS, {how}")


class Line(NamedTuple):
    """A line of a list file."""

    path: Path
    label: str
    where: str  # "FILE:NUMBER"


def _read_lists(root: Path, lists: dict[str, str], classes: tuple[str, ...] | None, notes: list[str]) -> Found:
    lines = {split: _read_list(root, name) for split, name in lists.items()}
    vtab = "train800.txt" in lists.values()
    if (root / _UNION).is_file():
        vtab = True
        _check_union(root / _UNION, [line for split in ("train", "val") for line in lines.get(split, [])])
    named = read_class_names(root / "classes.txt") or classes
    names, of_label = _name_labels([line for split in lines.values() for line in split], named, vtab)
    if named is None and all(name.isdecimal() for name in names) and names != tuple(map(str, range(len(names)))):
        notes.append(f"the labels are the numbers {some(names)}: the classes are called by them")
    pairs = {split: [(line.path, of_label[line.label]) for line in found] for split, found in lines.items()}
    # VTAB-1k cuts its 1,000 pictures without regard to classes: some have only test pictures (Sun397, CIFAR-100).
    return Found(pairs, names, "lists " + ", ".join(lists.values()), declared=vtab or named is not None)


def parsed_line(root: Path, text: str, where: str) -> Line:
    """A line "path label", parted by blanks, tabs or a comma; the label may have blanks in it where the path ends at a
    file. RequestError where there is no such file, or no label."""
    cuts = [match.start() for match in re.finditer(r"[\s,;]+", text)]
    for cut in cuts:
        path, label = text[:cut].strip('"'), text[cut:].strip(' \t,;"')
        for written in (path, path.replace("\\", "/")):
            if (root / written).is_file():
                return Line(root / written, label, where)
    if not cuts or (root / text).is_file():
        raise RequestError(f"{where} reads {text!r}, but a line is 'path label'; write the label behind the path")
    path = text[: cuts[-1]].strip('"')
    raise RequestError(
        f"{where} names the picture {path!r}, but {root} has no such file; correct the path, which starts at "
        "that folder, or remove the line"
    )


def _read_list(root: Path, name: str) -> list[Line]:
    lines = [parsed_line(root, text, f"{root / name}:{number}") for number, text in tables.text_lines(root / name)]
    if not lines:
        raise RequestError(
            f"{root / name} was taken for a list, but it is empty; write lines 'path label', or remove it"
        )
    several = [line for line in lines if re.fullmatch(r"-?\d+([\s,;]+-?\d+)+", line.label)]
    if several:
        raise RequestError(
            f"{several[0].where} has the labels {several[0].label!r}: several of one picture, where a class is one; "
            "give each picture one label"
        )
    return lines


def _check_union(file: Path, lines: list[Line]) -> None:
    union = [(line.path, line.label) for line in _read_list(file.parent, file.name)]
    parts = [(line.path, line.label) for line in lines]
    if sorted(parts) != sorted(union):
        raise RequestError(
            f"{file} should be the union of training and validation lists, but {len(set(union) - set(parts))} of its "
            f"{len(union)} lines are not in them, and {len(set(parts) - set(union))} of their {len(parts)} not in it; "
            "correct it, or remove it"
        )


def _name_labels(
    lines: list[Line], named: tuple[str, ...] | None, whole: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """All class names, and for each label as it is written its class name.

    Labels are class names if all of them are names that are known, which also settles classes called "1", "2", ...
    Otherwise they are indices if all of them are integers, and names again if not. Integers that begin at 1, or some of
    which are as large as there are pictures, are names too, but with `whole`.
    """
    labels = {line.label for line in lines}
    indices = {label: int(label) for label in labels if label.isascii() and label.removeprefix("-").isdecimal()}
    if len(indices) < len(labels) or (named is not None and labels <= set(named)):
        names = named if named is not None else tuple(sorted(labels))
        of_label = {label: label for label in labels & set(names)}
    elif named is None and not whole and min(indices.values()) >= 0 and not _are_indices(indices.values(), len(lines)):
        numbers = sorted(set(indices.values()))
        names = tuple(map(str, numbers))
        of_label = {label: str(index) for label, index in indices.items()}
    else:
        count = len(named) if named is not None else min(max(indices.values()) + 1, len(lines))
        names = named if named is not None else tuple(str(index) for index in range(count))
        of_label = {label: names[index] for label, index in indices.items() if 0 <= index < count}
    for line in lines:
        if line.label not in of_label:
            there = f"the classes are {some(names)}" if named is not None else f"the lists hold {len(lines)} pictures"
            raise RequestError(
                f"{line.where} has the label {line.label!r}, but {there}; write an index from 0 to "
                f"{len(named or lines) - 1}, or class names throughout.{near_misses(line.label, named or ())}"
            )
    return names, of_label


def _are_indices(numbers: Collection[int], pictures: int) -> bool:
    """There cannot be more classes than pictures: a larger number is no index, and would make a huge head."""
    return 0 in numbers and max(numbers) < pictures


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """The lines of classes.txt, without a colour "r g b" behind the name; None when there is no such file or nothing
    in it."""
    if not path.is_file():
        return None
    first: dict[str, int] = {}
    for number, line in tables.text_lines(path):
        colour = tables.COLOUR.fullmatch(line)
        name = same_form(colour["name"] if colour else line)
        if name in first:
            raise RequestError(
                f"{path}:{number} names the class {name!r}, but line {first[name]} does too; write it once"
            )
        first[name] = number
    return tuple(first) or None
