"""The forms in which a data set lies on disk: folders split/class, folders class, list files. One reader each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..common.errors import RequestError, near_misses

LAYOUTS = (
    "train/CLASS/picture (val/ and test/ beside train/, if there are any), CLASS/picture, "
    "or lists train.txt, val.txt, test.txt of lines 'path label'"
)
_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# VTAB-1k in NOAH's form has the numbers of its pictures in the names of its lists.
LISTS = {"train.txt": "train", "train800.txt": "train", "val.txt": "val", "val200.txt": "val", "test.txt": "test"}
_UNION = "train800val200.txt"


class Found(NamedTuple):
    """What a reader hands back: for each split its (picture, class name) pairs, and all classes in order."""

    splits: dict[str, list[tuple[Path, str]]]
    classes: tuple[str, ...]
    how: str  # the layout in words
    declared: bool = False  # the classes are known apart from the training pictures, and may outnumber theirs


def recognise(root: Path, seed: int, val_share: float, classes: tuple[str, ...] | None) -> Found:
    """Reads the folder `root` by the first layout that fits; `classes` may name the indices in its lists."""
    lists = of_splits(root, {name: split for name, split in LISTS.items() if (root / name).is_file()})
    if lists:
        return _read_lists(root, lists, classes)
    inner = folders(root)
    with_classes = {
        folder.name: _FOLDERS[folder.name] for folder in inner if folder.name in _FOLDERS and folders(folder)
    }
    if with_classes:
        splits = of_splits(root, with_classes)
        pairs = {split: _read_classes(root / name) for split, name in splits.items()}
        names = sorted({name for split in pairs.values() for _, name in split})
        return Found(pairs, tuple(names), "folders " + ", ".join(f"{name}/CLASS" for name in splits.values()))
    if not inner or {folder.name for folder in inner} <= set(_FOLDERS):
        here = f"no class folders inside {some(f.name for f in inner)}" if inner else "neither class folders nor lists"
        raise RequestError(f"a data set was expected in {root}, but it holds {here}; arrange it as one of {LAYOUTS}")
    return _hold_out(root, seed, val_share)


def _read_classes(root: Path) -> list[tuple[Path, str]]:
    """The (picture, class name) pairs of `root`/CLASS/picture, sorted; every file of a class counts as a picture."""
    pairs = []
    for folder in folders(root):
        if inner := folders(folder):
            raise RequestError(
                f"{folder} was taken for a class, but it holds folders ({some(f.name for f in inner)}) where pictures "
                f"were expected; arrange the data as one of {LAYOUTS}"
            )
        files = sorted((f for f in folder.iterdir() if not f.name.startswith(".")), key=lambda file: file.name)
        if not files:
            raise RequestError(f"{folder} was taken for a class, but it holds no picture; add some, or remove it")
        pairs += [(file, folder.name) for file in files]
    return pairs


def _hold_out(root: Path, seed: int, val_share: float) -> Found:
    """CLASS/picture: the same share of each class goes to "val", one picture at least if the class has two."""
    pairs = _read_classes(root)
    by_class: dict[str, list[Path]] = {}
    for path, name in pairs:
        by_class.setdefault(name, []).append(path)
    held_out: set[Path] = set()
    for paths in by_class.values():
        # By a hash of the name, not a generator's stream: the same choice on every platform, in every version.
        order = sorted(paths, key=lambda path: _hash(f"{seed}/{path.parent.name}/{path.name}"))
        count = min(max(int(val_share * len(paths) + 0.5), 1 if val_share else 0), len(paths) - 1)
        held_out.update(order[:count])
    splits = {"train": [pair for pair in pairs if pair[0] not in held_out]}
    if held_out:
        splits["val"] = [pair for pair in pairs if pair[0] in held_out]
    how = f"{val_share:.0%} of each class held out by seed {seed}" if held_out else "nothing held out for validation"
    return Found(splits, tuple(by_class), f"folders CLASS, {how}")


class _Line(NamedTuple):
    path: Path
    label: str
    where: str  # "FILE:NUMBER"


def _read_lists(root: Path, lists: dict[str, str], classes: tuple[str, ...] | None) -> Found:
    lines = {split: _read_list(root, name) for split, name in lists.items()}
    vtab = "train800.txt" in lists.values()
    if (root / _UNION).is_file():
        vtab = True
        _check_union(root / _UNION, [line for split in ("train", "val") for line in lines.get(split, [])])
    named = read_class_names(root / "classes.txt") or classes
    names, of_label = _name_labels([line for split in lines.values() for line in split], named)
    pairs = {split: [(line.path, of_label[line.label]) for line in found] for split, found in lines.items()}
    # VTAB-1k cuts its 1,000 pictures without regard to classes: some have only test pictures (Sun397, CIFAR-100).
    return Found(pairs, names, "lists " + ", ".join(lists.values()), declared=vtab or named is not None)


def _read_list(root: Path, name: str) -> list[_Line]:
    lines = []
    for number, text in text_lines(root / name):
        where = f"{root / name}:{number}"
        *rest, label = text.rsplit(maxsplit=1)
        if not rest or (root / text).is_file():
            raise RequestError(f"{where} reads {text!r}, but a line is 'path label'; write the label behind the path")
        path = rest[0]
        if not (root / path).is_file():
            raise RequestError(
                f"{where} names the picture {path!r}, but {root} has no such file; correct the path, which starts at "
                "that folder, or remove the line"
            )
        lines.append(_Line(root / path, label, where))
    if not lines:
        raise RequestError(
            f"{root / name} was taken for a list, but it is empty; write lines 'path label', or remove it"
        )
    return lines


def _check_union(file: Path, lines: list[_Line]) -> None:
    union = [(line.path, line.label) for line in _read_list(file.parent, file.name)]
    parts = [(line.path, line.label) for line in lines]
    if sorted(parts) != sorted(union):
        raise RequestError(
            f"{file} should be the union of training and validation lists, but {len(set(union) - set(parts))} of its "
            f"{len(union)} lines are not in them, and {len(set(parts) - set(union))} of their {len(parts)} not in it; "
            "correct it, or remove it"
        )


def _name_labels(lines: list[_Line], named: tuple[str, ...] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """All class names, and for each label as it is written its class name.

    Labels are class names if all of them are names that are known, which also settles classes called "1", "2", ...
    Otherwise they are indices if all of them are integers, and names again if not.
    """
    labels = {line.label for line in lines}
    indices = {label: int(label) for label in labels if label.isascii() and label.removeprefix("-").isdecimal()}
    if len(indices) < len(labels) or (named is not None and labels <= set(named)):
        names = named if named is not None else tuple(sorted(labels))
        of_label = {label: label for label in labels & set(names)}
    else:
        # There cannot be more classes than pictures: a larger "index" is some other number, and would make a huge head.
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


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """The lines of classes.txt, or None when there is no such file or nothing in it."""
    if not path.is_file():
        return None
    first: dict[str, int] = {}
    for number, name in text_lines(path):
        if name in first:
            raise RequestError(
                f"{path}:{number} names the class {name!r}, but line {first[name]} does too; write it once"
            )
        first[name] = number
    return tuple(first) or None


def text_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} was to be read as text, but is not in UTF-8 ({error.reason}); save it so"
        ) from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def of_splits(root: Path, splits: dict[str, str]) -> dict[str, str]:
    """{file or folder name: split} turned round, in the order train, val, test."""
    found: dict[str, str] = {}
    for name, split in splits.items():
        if split in found:
            raise RequestError(f"{root} holds {found[split]} and {name}, but both mean the split {split!r}; remove one")
        found[split] = name
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()  # names on disk may be no valid UTF-8


def folders(folder: Path) -> list[Path]:
    """The folders in `folder` by name, the hidden ones left out."""
    inner = (item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    return sorted(inner, key=lambda item: item.name)


def some(names: Iterable[str], most: int = 8) -> str:
    """`"a, b, c"`, or the first few and how many there are."""
    names = list(names)
    return ", ".join(names) if len(names) <= most else ", ".join(names[:most]) + f", ... ({len(names)} in all)"
