"""What is known of the pictures of a dense task: a data set with its splits, and the problems found in one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.errors import RequestError
from .dataset import chosen
from .layouts import of_splits
from .objects import Objects

IGNORED = 255  # the value of a mask's pixels that belong to no class
_SPLIT = re.compile(r"(train)(?:ing)?(?:20\d\d)?|(val)(?:id|idation)?(?:20\d\d)?|(test)(?:ing)?(?:20\d\d)?")


@dataclass(frozen=True)
class DenseSplit:
    """Picture files and the truth about each, in a fixed order: `masks` for segment, `objects` for detect and instance.

    With `zero_ignored` (ADE20K) a mask's 0 is ignored, and its other values are the label plus one.
    """

    name: str
    paths: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    objects: tuple[Objects, ...] = ()
    zero_ignored: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> DenseSplit:
        """The pictures with these indices only."""
        return replace(
            self,
            paths=tuple(self.paths[index] for index in indices),
            masks=tuple(self.masks[index] for index in indices if self.masks),
            objects=tuple(self.objects[index] for index in indices if self.objects),
        )


@dataclass(frozen=True)
class DenseSet:
    """A folder as a data set of `task`: segment, detect or instance; `layout` says in words what it holds."""

    root: Path
    task: str
    classes: tuple[str, ...]
    splits: dict[str, DenseSplit]
    layout: str

    def split(self, name: str) -> DenseSplit:
        """One split, or a union such as "train+val" in the order asked for; RequestError if there is no such split."""
        found = chosen(self.root, self.splits, name)
        return DenseSplit(
            name,
            tuple(path for split in found for path in split.paths),
            tuple(mask for split in found for mask in split.masks),
            tuple(objects for split in found for objects in split.objects),
            found[0].zero_ignored,
        )


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set, in a sentence.

    `place` is where in the file: "line 3", "annotation 17", or "" for all of it. Nothing can be read around a `fatal`
    one; of the others, what they are about can be left out.
    """

    file: Path
    place: str
    sentence: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.sentence}" if self.place else f"{self.file}: {self.sentence}"


def refuse(root: Path, problems: Sequence[Problem], skip_bad: bool) -> None:
    """RequestError with the first problem, if there is one; with `skip_bad` only with one that is fatal."""
    fatal = [problem for problem in problems if problem.fatal]
    if not (fatal or (problems and not skip_bad)):
        return
    ways = [f"`vitgraft check {root}` lists all {len(problems)} problems"] if len(problems) > 1 else []
    ways += [] if fatal else ["--skip-bad leaves out what is bad"]
    hints = f" ({', '.join(ways)})" if ways else ""
    raise RequestError(f"{[*fatal, *problems][0]}{hints}")


def by_split(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The names that mean a split, by split, in the order train, val, test: {"train": "train2017", ...}."""
    meant = {name: next(filter(None, match.groups())) for name in names if (match := _SPLIT.fullmatch(name))}
    return of_splits(root, meant)


def described(root: Path, task: str, classes: tuple[str, ...], splits: dict[str, DenseSplit], how: str) -> DenseSet:
    """The data set, with its layout in words."""
    counts = (f"{name} {len(split)} with {sum(map(len, split.objects))} objects" for name, split in splits.items())
    return DenseSet(root, task, classes, splits, f"{how}; classes: {len(classes)}; pictures: {', '.join(counts)}")
