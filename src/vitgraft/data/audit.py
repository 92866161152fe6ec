"""What is odd about a data set, said before anything is trained on it: a wrong number without a word is the worst."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.errors import WorkError
from .dataset import DataSet
from .folders import some
from .pictures import FEW, Levels, measured_levels, orientation
from .truth import IGNORED, DenseSet, DenseSplit

LOOKED_AT = 500  # pictures whose heads are read for their EXIF orientation, spread over the set
RARE = 0.2  # of what a class would have if all had as much: one that has less is rare
MUCH = 0.5  # share of the pixels of a split that may be ignored without a word


@dataclass(frozen=True)
class Shown:
    """What the pictures of a split show of each class, in the classes' order.

    pictures: how many show it. things: how many objects or pixels there are of it, as `kind` says; of whole pictures
    they are the same as `pictures`. first: the index of the first picture that shows it, -1 for none. ignored: pixels.
    each: of every picture the classes that it shows.
    """

    kind: str  # "pictures", "objects" or "pixels"
    pictures: list[int]
    things: list[int]
    first: list[int]
    ignored: int = 0
    each: Sequence[Sequence[int]] = ()

    def rarest(self) -> tuple[int, float]:
        """The class that there is least of, among those that there are any of, and how much of what it would have if
        all of these had as much."""
        there = [k for k, things in enumerate(self.things) if things]
        least = min(there, key=lambda k: self.things[k])
        return least, self.things[least] * len(there) / sum(self.things)

    def shares(self, power: float) -> list[float]:
        """How often each picture is to be drawn, relative to others: by the rarest class that it shows, once over the
        share of pictures that show that class, to a power. At 1 classes of one picture each come alike, at 0.5 it is
        the repeat factor of LVIS without its threshold (Gupta et al. 2019, arXiv 1908.03195). A picture of no class is
        drawn as one of the commonest."""
        n = len(self.each)
        of = [(n / max(pictures, 1)) ** power for pictures in self.pictures]
        common = min((share for share, pictures in zip(of, self.pictures, strict=True) if pictures), default=1.0)
        return [max((of[k] for k in classes), default=common) for classes in self.each]


def shown_labels(labels: Sequence[Sequence[int]], classes: int) -> Shown:
    """Of whole pictures, each of which shows some of the classes."""
    number, first = [0] * classes, [-1] * classes
    for index, own in reversed(list(enumerate(labels))):
        for label in own:
            number[label] += 1
            first[label] = index
    return Shown("pictures", number, number, first, each=labels)


@dataclass(frozen=True)
class Seen:
    """What was seen of one picture of a dense task: the size (h, w) of its file, and of its mask, if it has one, the
    number of pixels of each label int64 [256]."""

    size: tuple[int, int]
    pixels: np.ndarray | None = None


def shown_by(split: DenseSplit, seen: Sequence[Seen], classes: int) -> Shown:
    """Of pictures with masks, by what was seen of each; or with objects, crowds left out."""
    if split.masks:
        table = np.array([each.pixels for each in seen], dtype=np.int64).reshape(len(seen), 256)
        kind, ignored = "pixels", int(table[:, IGNORED].sum()) if classes <= IGNORED else 0
        table = table[:, :classes]
    else:
        rows = [np.bincount(found.labels[~found.crowd], minlength=classes) for found in split.objects]
        table, kind, ignored = np.array(rows, dtype=np.int64).reshape(len(rows), classes), "objects", 0
    there = table > 0
    first = np.where(there.any(0), there.argmax(0), -1) if len(table) else np.full(classes, -1)
    each = [row.nonzero()[0].tolist() for row in there]
    return Shown(kind, there.sum(0).tolist(), table.sum(0).tolist(), first.tolist(), ignored, each)


def counts(shown: Shown, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """{class: {"pictures": how many show it, "objects" or "pixels": how many there are}}."""
    return {
        name: {"pictures": pictures, **({shown.kind: things} if shown.kind != "pictures" else {})}
        for name, pictures, things in zip(classes, shown.pictures, shown.things, strict=True)
    }


def missing(split: str, shown: Shown, classes: Sequence[str], *, training: bool) -> Iterator[str]:
    """What a split shows nothing of, and whether much of it is ignored."""
    absent = [name for name, things in zip(classes, shown.things, strict=True) if not things]
    if absent and training:
        one = {"pictures": "picture", "objects": "object", "pixels": "pixel"}[shown.kind]
        yield f"{split} has no {one} of {some(map(repr, absent))}, of which nothing can be learned"
    whole = shown.ignored + sum(shown.things)
    if shown.ignored > MUCH * whole:
        yield f"{shown.ignored / whole:.0%} of the pixels of {split} are ignored (255, or of no class)"


def weights_by(asked: str, shown: Shown, classes: Sequence[str]) -> tuple[str, list[str]]:
    """Which class weights are meant, and what is to be said of it: "auto" looks whether a class is rare."""
    if asked != "auto":
        return asked, []
    least, share = shown.rarest()
    if share >= RARE:
        return "none", []
    return "root", [
        f"rare classes count more in the loss (--class-weights root; none would not): {classes[least]!r} has "
        f"{100 * share:.2g} % of the {shown.kind} that it would have if all classes had as many"
    ]


def check_learnable(split: str, shown: Shown, classes: Sequence[str]) -> None:
    """WorkError where masks of several classes show one of them alone: every answer would be that one, and right."""
    there = [name for name, things in zip(classes, shown.things, strict=True) if things]
    if shown.kind == "pixels" and len(there) < 2 <= len(classes):
        alone = f"show the class {there[0]!r} alone" if there else "show no class"
        rest = "; all else is 255, which is ignored" if shown.ignored else ""
        raise WorkError(
            f"the masks of split {split!r} were to be learned from, but {alone}{rest}: number the classes 0 to "
            f"{len(classes) - 1} in the masks, or give classes.txt as many names as there are"
        )


def odd(data: DataSet | DenseSet) -> Iterator[str]:
    """What the files say without being decoded: pictures that are in two splits, and pictures turned by EXIF."""
    yield from _shared(data.splits)
    if isinstance(data, DenseSet):
        yield from _same_stems(data.splits)
        yield from _turned([path for split in data.splits.values() for path in split.paths])


def deep(paths: Sequence[Path]) -> tuple[Levels | None, list[str]]:
    """The black and white of grey pictures of more than 8 bits, if there are any, and what is to be said of them."""
    found = measured_levels(paths)
    if found is None:
        return None, []
    (black, white), few = found
    notes = [f"grey pictures of more than 8 bits: levels {black:g} to {white:g}, measured on train, are black to white"]
    if few:
        names = some((path.name for path in few), 3)
        notes.append(f"{len(few)} of the pictures looked at have fewer than {FEW} of 256 levels then: {names}")
    return (black, white), notes


def _shared(splits: Mapping[str, DenseSplit] | Mapping[str, object]) -> Iterator[str]:
    """Pictures of one split that are in another too, byte for byte. Only files of equal size are read."""
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for name, split in splits.items():
        for path in split.paths:  # type: ignore[attr-defined]
            try:
                by_size.setdefault(path.stat().st_size, []).append((name, path))
            except OSError:
                continue  # it is a problem where it is decoded
    pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = {}
    for found in by_size.values():
        if len({name for name, _ in found}) < 2:
            continue
        first: dict[str, tuple[str, Path]] = {}
        for name, path in found:
            other, same = first.setdefault(_digest(path), (name, path))
            if other != name:
                pairs.setdefault((name, other), []).append((path, same))
    for (name, other), both in pairs.items():
        one = f"{both[0][0].name} is {both[0][1].name}"
        yield f"{len(both)} pictures of {name} are in {other} too, byte for byte ({one}): the number will flatter"


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return str(path)


def _same_stems(splits: Mapping[str, DenseSplit]) -> Iterator[str]:
    for name, split in splits.items():
        stems: dict[tuple[Path, str], Path] = {}
        twice = [path.name for path in split.paths if stems.setdefault((path.parent, path.stem), path) != path]
        if twice:
            yield f"{len(twice)} pictures of {name} have the stem of another in their folder: {some(twice, 3)}"


def _turned(paths: Sequence[Path]) -> Iterator[str]:
    looked = paths[:: max(1, len(paths) // LOOKED_AT)]
    turned = [path for path in looked if _orientation(path) > 1]
    if turned:
        yield (
            f"{len(turned)} of {len(looked)} pictures looked at are turned by their EXIF orientation "
            f"({turned[0].name}): they are read upright, and their masks or boxes must be so too"
        )


def _orientation(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return orientation(image)
    except Exception:  # a problem where it is decoded
        return 1
