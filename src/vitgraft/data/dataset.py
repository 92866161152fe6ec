"""A user's folder as a data set: classes, splits, and a label for every picture. No picture is opened here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, near_misses
from . import outside
from .folders import folders_in, some
from .layouts import LAYOUTS, Found, recognise


@dataclass(frozen=True)
class Split:
    """Picture files and their labels, in a fixed order; `labels[i]` is an index into the data set's classes, or several
    of them, or a number, as the task has it."""

    name: str
    paths: tuple[Path, ...]
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class DataSet:
    """What `read` found; `layout` says in words which form it has, how it was split, and how much there is of it,
    `notes` what was guessed, changed or left out to read it so."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    layout: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """One split, or a union such as "train+val" in the order asked for; RequestError if there is no such split."""
        found = chosen(self.root, self.splits, name)
        paths = tuple(path for split in found for path in split.paths)
        return Split(name, paths, tuple(label for split in found for label in split.labels))


def chosen(root: Path, splits: Mapping[str, Any], name: str) -> list[Any]:
    """The splits that a name such as "train+val" means; RequestError if there is no such split."""
    parts = name.split("+")
    for part in parts:
        if part not in splits:
            raise RequestError(
                f"split {part!r} was asked for, but {root} has {some(splits)}; take one of them, or join some with '+'."
                f"{near_misses(part, splits)}"
            )
    if len(set(parts)) < len(parts):
        raise RequestError(
            f"split {name!r} was asked for, but each of {some(splits)} can be in a union once; name none twice"
        )
    return [splits[part] for part in parts]


def read(
    root: str | os.PathLike[str], *, seed: int = 0, val_share: float = 0.2, classes: Sequence[str] | None = None
) -> DataSet:
    """Recognises the layout of the folder `root` and reads it.

    * list files `train.txt`, `val.txt`, `test.txt`, or VTAB-1k's `train800.txt`, `val200.txt`, `train800val200.txt`;
      a line is "path label", the path relative to `root`, the label an index or a class name; `classes.txt` names the
      classes in the order of their indices, if it is there;
    * `train/CLASS/picture`, with `val` (or `valid`, `validation`) and `test` beside `train`;
    * `CLASS/picture`: of each class `val_share` (0 up to below 1) is held out as "val", chosen by `seed` and the
      files' names, so that the choice is the same on every machine.

    With `classes`, those of an adapter that is evaluated, labels are indices into it and no training split is needed.
    Raises RequestError for a folder that cannot be read so.
    """
    root = Path(root).expanduser()
    if not 0 <= val_share < 1:
        raise RequestError(
            f"a validation share of {val_share} was asked for, but it is a part of each class; give 0 up to below 1"
        )
    check_data_folder(root)
    known = tuple(classes) if classes is not None else None
    if (other := outside.read(root, "classify", seed=seed, classes=known)) is not None:
        return other
    try:
        notes: list[str] = []
        found = recognise(root, seed, val_share, known, notes)
    except OSError as error:
        raise RequestError(
            f"{error.filename or root} was to be read, but the system refuses ({error.strerror}); check its permissions"
        ) from error
    if known is not None:
        _check_known(root, found, known)
        return _number(root, found, known, found.how, notes)
    trained = {name for _, name in found.splits.get("train", [])}
    _check_training(root, found, trained)
    untrained = len(found.classes) - len(trained)
    note = f" ({untrained} without a training picture)" if untrained else ""
    return _number(root, found, found.classes, f"{found.how}; {len(found.classes)} classes{note}", notes)


def _number(root: Path, found: Found, classes: tuple[str, ...], layout: str, notes: Sequence[str]) -> DataSet:
    """Class names to labels."""
    index = {name: label for label, name in enumerate(classes)}
    splits = {
        split: Split(split, tuple(path for path, _ in pairs), tuple(index[name] for _, name in pairs))
        for split, pairs in found.splits.items()
    }
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    return DataSet(root, classes, splits, f"{layout}; pictures: {counts}", tuple(notes))


def check_data_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise RequestError(f"a data set was expected at {root}, but that is a file; name the folder that holds it")
    if not root.parent.is_dir():
        raise RequestError(f"a data set was expected at {root}, but there is no folder {root.parent}; correct the path")
    siblings = [folder.name for folder in folders_in(root.parent)]
    beside = f"holds {some(siblings)}" if siblings else "holds no folder"
    raise RequestError(
        f"a data set was expected at {root}, but {root.parent} {beside}; correct the path."
        f"{near_misses(root.name, siblings)}"
    )


def _check_known(root: Path, found: Found, known: tuple[str, ...]) -> None:
    """Nothing is evaluated that the adapter was not trained on."""
    for split, pairs in found.splits.items():
        if extra := sorted({name for _, name in pairs} - set(known)):
            raise RequestError(
                f"split {split!r} of {root} holds {_classes(extra)}, but the adapter knows {some(known)}; rename or "
                f"remove what it does not know.{near_misses(extra[0], known)}"
            )


def _check_training(root: Path, found: Found, trained: set[str]) -> None:
    """There is something to train on, and nothing is validated or tested that was not trained."""
    if not trained:
        raise RequestError(
            f"{root} was to be trained on, but has only the split {' and '.join(found.splits)}; add training pictures, "
            f"as in one of {LAYOUTS}"
        )
    if len(trained) < 2:
        raise RequestError(
            f"{root} was to be trained on, but its training pictures show only {_classes(trained)}; add a second class"
        )
    for split, pairs in found.splits.items():
        unseen = sorted({name for _, name in pairs} - trained)
        if unseen and not found.declared:
            raise RequestError(
                f"split {split!r} of {root} holds {_classes(unseen)}, but training shows {some(sorted(trained))}; add "
                f"training pictures, or remove what is not trained.{near_misses(unseen[0], trained)}"
            )


def _classes(names: Sequence[str] | set[str]) -> str:
    return f"the class {next(iter(names))!r}" if len(names) == 1 else f"the classes {some(names)}"
