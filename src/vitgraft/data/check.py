"""Everything that is wrong with a data set of any task: every file is read, and nothing stops at the first problem."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..common.errors import RequestError
from .dataset import read
from .dense import examine, unreadable
from .layouts import LISTS, read_class_names, some, text_lines
from .masks import files
from .pictures import BadPicture, open_picture
from .recognise import recognise, survey
from .truth import DenseSet, Problem

Progress = Callable[[int, int], None]


def check(
    root: str | os.PathLike[str], task: str | None = None, *, workers: int = 0, progress: Progress | None = None
) -> list[Problem]:
    """Every problem of the data set in `root`, each with its file and place; [] where all is well.

    The task is recognised where it is not given. Raises RequestError where there is no such folder, or where its task
    is not clear. `progress` is called with (pictures done, pictures in all).
    """
    root = Path(root).expanduser()
    task = task or recognise(root)
    if task == "classify":
        return _classification(root, progress)
    try:
        data, problems = survey(root, task)
    except RequestError as error:
        return [Problem(root, "", str(error), fatal=True)]
    problems += _orphans(data)
    total, done = sum(map(len, data.splits.values())), 0
    for split in data.splits.values():
        found = examine(split, len(data.classes), workers, partial(_further, progress, done, total))
        done += len(split)
        problems += [problem for problem in found if isinstance(problem, Problem)]
    return problems


def _further(progress: Progress | None, before: int, total: int, done: int, _: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _orphans(data: DenseSet) -> list[Problem]:
    """Masks that no picture has."""
    known = {mask for split in data.splits.values() for mask in split.masks}
    return [
        Problem(mask, "", "there is no picture for this mask; add one, or rename or remove the mask")
        for folder in sorted({mask.parent for mask in known})
        for mask in files(folder)
        if mask not in known
    ]


def _classification(root: Path, progress: Progress | None) -> list[Problem]:
    paths, problems = _listed(root)
    try:
        data = read(root)
        paths = {path for split in data.splits.values() for path in split.paths}
    except RequestError as error:
        paths = paths or {path for path in root.glob("*/**/*") if path.is_file() and not path.name.startswith(".")}
        problems = problems or [Problem(root, "", str(error), fatal=True)]
    for done, path in enumerate(sorted(paths), 1):
        try:
            open_picture(path)
        except BadPicture as bad:
            problems.append(unreadable(bad))
        if progress is not None:
            progress(done, len(paths))
    return problems


def _listed(root: Path) -> tuple[set[Path], list[Problem]]:
    """The pictures that lists "path label" name, and the lines whose picture or label is not there."""
    paths: set[Path] = set()
    problems = []
    names = read_class_names(root / "classes.txt")
    for file in (root / name for name in LISTS if (root / name).is_file()):
        for number, line in text_lines(file):
            path, _, label = line.rpartition(" ")
            known = names is None or label in names or (label.isdecimal() and int(label) < len(names))
            if not (root / path.strip()).is_file():
                fault = f"the line is {line!r}, but {root} has no picture {path.strip()!r}; correct or remove it"
            elif not known:
                fault = f"the label is {label!r}, but the classes are {some(names or ())}; correct or remove it"
            else:
                paths.add(root / path.strip())
                continue
            problems.append(Problem(file, f"line {number}", fault))
    return paths, problems
