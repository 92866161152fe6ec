"""What is known of the pictures of a dense task: a data set with its splits, and the problems found in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.errors import RequestError
from ..common.settings import MASKED
from .dataset import chosen
from .folders import SPLITS, fifth_held_out
from .objects import Entry, Objects, Tally, gather, known_rows

IGNORED = 255  # the label of a mask's pixels that belong to no class


@dataclass(frozen=True)
class Coding:
    """What the pixels of mask files mean: value or colour -> label, 255 to ignore it; or by file, the number of a
    segment -> label. Without any of them a value is the label."""

    values: Mapping[int, int] | None = None
    colours: Mapping[tuple[int, int, int], int] | None = None
    segments: Mapping[str, Mapping[int, int]] | None = None


@dataclass(frozen=True)
class DenseSplit:
    """Picture files and the truth about each, in a fixed order: `masks` for segment, `objects` for detect and instance.

    coding: of the masks. left_out: pictures whose truth is bad, with the reason. things: for panoptic, the labels of
    classes whose objects are countable.
    """

    name: str
    paths: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    objects: tuple[Objects, ...] = ()
    coding: Coding = Coding()
    left_out: tuple[tuple[Path, str], ...] = ()
    things: tuple[int, ...] = ()

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
    """A folder as a data set of `task`, a dense one; `layout` says in words what it holds, `notes` what was guessed,
    changed or left out to read it so, `things` which classes are countable, for panoptic."""

    root: Path
    task: str
    classes: tuple[str, ...]
    splits: dict[str, DenseSplit]
    layout: str
    notes: tuple[str, ...] = ()
    things: tuple[str, ...] = ()

    def split(self, name: str) -> DenseSplit:
        """One split, or a union such as "train+val" in the order asked for; RequestError if there is no such split."""
        found = chosen(self.root, self.splits, name)
        return DenseSplit(
            name,
            tuple(path for split in found for path in split.paths),
            tuple(mask for split in found for mask in split.masks),
            tuple(objects for split in found for objects in split.objects),
            _joined([split.coding for split in found]),
            tuple(bad for split in found for bad in split.left_out),
            found[0].things,
        )


def _joined(codings: Sequence[Coding]) -> Coding:
    """That of all splits, which differ in their files' segments alone."""
    segments = {file: of for coding in codings for file, of in (coding.segments or {}).items()}
    return replace(codings[0], segments=segments or None)


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


def counted(splits: Mapping[str, DenseSplit]) -> str:
    """How many pictures there are, and of a detector's how many objects."""

    def one(split: DenseSplit) -> str:
        return f" with {sum(map(len, split.objects))} objects" if split.objects else ""

    return "pictures: " + ", ".join(f"{name} {len(split)}{one(split)}" for name, split in splits.items())


def gathered(
    root: Path,
    task: str,
    classes: tuple[str, ...],
    found: Mapping[str | None, Sequence[Entry]],
    how: str,
    problems: list[Problem],
    notes: list[str],
    tally: Tally,
    seed: int,
) -> DenseSet:
    """A data set from what a reader found, by split (None: of no split by name, of which a fifth is held out).

    What is wrong is added to `problems`; a picture whose truth is not whole is left out with it: trained on without an
    object that it shows, it would teach that there is none.
    """
    if not classes:
        sentence = "no object has a class, and no file names the classes; add classes.txt"
        problems.append(Problem(root, "", sentence, True))
    parts = {split: list(found[split]) for split in SPLITS if found.get(split)}
    pool = list(found.get(None, ()))
    if pool and not parts:
        held = fifth_held_out([entry.path for entry in pool], lambda path: path.stem, notes, seed)
        parts = {split: [e for e in pool if e.path in paths] for split, paths in held.items()}
    elif pool:
        notes.append(f"{len(pool)} pictures are in no split by name, and were not read")
    splits = {}
    for split, entries in parts.items():
        good: list[tuple[Path, Objects]] = []
        bad: list[tuple[Path, str]] = []
        for entry in entries:
            rows, faults = known_rows(entry, classes)
            problems += [Problem(entry.file, place, sentence) for place, sentence in faults]
            if faults:
                bad.append((entry.path, ": ".join(filter(None, faults[0]))))
            else:
                good.append((entry.path, gather(entry.size, rows, classes, task in MASKED)))
        paths, objects = (tuple(part) for part in zip(*good, strict=True)) if good else ((), ())
        splits[split] = DenseSplit(split, paths, objects=objects, left_out=tuple(bad))
    notes += tally.notes()
    return DenseSet(root, task, classes, splits, f"{how}; classes: {len(classes)}; {counted(splits)}", tuple(notes))
