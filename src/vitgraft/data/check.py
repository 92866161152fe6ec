"""Everything that is wrong or odd with a data set of any task: every file is read, and nothing stops at the first
problem. What `fit` reads is read here, by the same code."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import RequestError
from ..common.settings import WHOLE
from . import audit, several
from .dataset import read
from .dense import examine, unreadable
from .folders import is_junk, is_picture, some
from .layouts import LISTS, parsed_line, read_class_names
from .masks import masks_without_picture
from .pictures import BadPicture, open_picture
from .recognise import recognise, survey
from .tables import text_lines
from .truth import Problem

Progress = Callable[[int, int], None]


@dataclass
class Checked:
    """problems: what is wrong. notes: what was guessed or left out to read the set, and what is odd. counts: by split
    and class, see `audit.counts`."""

    task: str
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def add(self, split: str, shown: audit.Shown, classes: Sequence[str]) -> None:
        """What a split shows of each class, and what it lacks."""
        self.counts[split] = audit.counts(shown, classes)
        self.notes += audit.missing(split, shown, classes, training=split == "train")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        problems = [{**vars(each), "file": str(each.file)} for each in self.problems]
        return {"task": self.task, "problems": problems, "notes": self.notes, "counts": self.counts}


def check(
    root: str | os.PathLike[str], task: str | None = None, *, workers: int = 0, progress: Progress | None = None
) -> Checked:
    """Every problem of the data set in `root`, each with its file and place, and what is odd about it.

    The task is recognised where it is not given. Raises RequestError where there is no such folder, or where its task
    is not clear. `progress` is called with (pictures done, pictures in all).
    """
    root = Path(root).expanduser()
    found = Checked(task or recognise(root))
    if found.task in WHOLE:
        _whole_pictures(root, found, progress)
        return found
    try:
        data, found.problems = survey(root, found.task)
    except RequestError as error:
        found.problems = [Problem(root, "", str(error), fatal=True)]
        return found
    found.problems += masks_without_picture(data.splits.values())
    found.notes += [*data.notes, *audit.odd(data), *_deep(data)]
    total, done = sum(map(len, data.splits.values())), 0
    for name, split in data.splits.items():
        seen = examine(split, len(data.classes), workers, partial(_further, progress, done, total))
        done += len(split)
        found.problems += [each for each in seen if isinstance(each, Problem)]
        shown = audit.shown_by(split, [each for each in seen if not isinstance(each, Problem)], len(data.classes))
        found.add(name, shown, data.classes)
    return found


def _deep(data: Any) -> list[str]:
    return audit.deep(data.splits["train"].paths)[1] if "train" in data.splits else []


def _further(progress: Progress | None, before: int, total: int, done: int, _: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _whole_pictures(root: Path, found: Checked, progress: Progress | None) -> None:
    listed, found.problems = _listed(root) if found.task == "classify" else (set(), [])
    try:
        data = read(root) if found.task == "classify" else several.read(root, found.task)
        paths = {path for split in data.splits.values() for path in split.paths}
        found.notes += [*data.notes, *audit.odd(data), *_deep(data)]
        for name, split in data.splits.items():
            labels = [_labels(found.task, own) for own in split.labels]
            shown = audit.shown_labels(labels, len(data.classes))
            found.add(name, shown, data.classes)
    except RequestError as error:
        there = (path for path in root.rglob("*") if path.is_file() and not is_junk(path) and is_picture(path))
        paths = listed or set(there)
        found.problems = found.problems or [Problem(root, "", str(error), fatal=True)]
    for done, path in enumerate(sorted(paths), 1):
        try:
            open_picture(path)
        except BadPicture as bad:
            found.problems.append(unreadable(bad))
        if progress is not None:
            progress(done, len(paths))


def _labels(task: str, own: Any) -> tuple[int, ...]:
    """Which classes a picture shows; a number is of the one class there is."""
    return {"classify": (own,), "regress": (0,)}.get(task, own)


def _listed(root: Path) -> tuple[set[Path], list[Problem]]:
    """The pictures of lists "path label"; and the lines that cannot be read so, or whose label is no class of
    classes.txt."""
    paths: set[Path] = set()
    problems = []
    names = read_class_names(root / "classes.txt")
    for file in (root / name for name in LISTS if (root / name).is_file()):
        for number, line in text_lines(file):
            try:
                path, label, _ = parsed_line(root, line, f"line {number}")
                if names and label not in names and not (label.isdecimal() and int(label) < len(names)):
                    raise RequestError(
                        f"the label is {label!r}, but the classes are {some(names)}; correct or remove it"
                    )
                paths.add(path)
            except RequestError as error:
                problems.append(Problem(file, f"line {number}", str(error)))
    return paths, problems
