"""What the names of files and folders mean: splits, pictures, truth about pictures; and what is none of these."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from ..common.errors import RequestError

Key = TypeVar("Key")

SPLITS = ("train", "val", "test")
_SPLIT = re.compile(
    r"(?:seg|set)?_?(?:(?P<train>train(?:ing)?|trn)|(?P<val>val(?:id(?:ation|ate)?)?|eval(?:uation)?|dev)"
    r"|(?P<test>test(?:ing)?))[-_ ]?(?:set|data)?(?:20\d\d)?"
)
PICTURES = {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "leftimg8bit", "default"}
TRUTH = {"masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "gt", "gtfine"}
TRUTH |= {"groundtruth", "ground_truth", "segmentation", "segmentations", "segmentationclass", "segmentationclassraw"}
# Of these the names that no class has: "mask" and "no mask" are classes of faces.
ROLES = {"images", "imgs", "jpegimages", "leftimg8bit", "masks", "labels", "annotations", "annots", "gtfine"}
ROLES |= {"groundtruth", "ground_truth", "segmentations", "segmentationclass", "segmentationclassraw"}
_BOTH = re.compile(rf"(?P<split>.+?)[-_ ]?(?:{'|'.join(sorted(TRUTH, key=len, reverse=True))})")
# What systems and tools leave behind among other people's files.
_JUNK = {"thumbs.db", "desktop.ini", "@eadir", "__macosx", "$recycle.bin", "system volume information"}
# Behind the stem of a picture in the name of its mask.
SUFFIX = re.compile(r"(?:[-_ .](?:mask|label|labels|seg|segmentation|gt|annotation|l|p|m))+$", re.I)
DEPTH = 5  # folders below the root that are looked into


class Folder(NamedTuple):
    """A folder with files, and what its name and those of the folders around it say, up to the root of a data set."""

    path: Path
    split: str | None
    truth: bool  # masks or labels are in it
    rest: tuple[str, ...]  # what else is said, in small letters


def split_of(name: str) -> str | None:
    """The split that a name means: "train" for Train, training, train2017, train_set; None for others."""
    found = _SPLIT.fullmatch(name.lower())
    return next((split for split in SPLITS if found and found[split]), None)


def is_junk(path: Path) -> bool:
    """Whether a file or folder is hidden, or is what a system left there."""
    return path.name.startswith(".") or path.name.lower() in _JUNK


@cache
def _picture_endings() -> frozenset[str]:
    opened = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(opened - {".mpg", ".mpeg", ".pdf"} | {".heic", ".heif", ".avif"})


def is_picture(path: Path) -> bool:
    """Whether a file is one by its ending or, where that says nothing, by its first bytes."""
    ending = path.suffix.lower()
    if ending in _picture_endings():
        return True
    try:
        with Image.open(path):
            return True
    except Exception:  # decoders meet other files with nearly any error
        return False


def files_in(folder: Path) -> list[Path]:
    """The files in a folder by name, junk left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    return [path for name in names if not is_junk(path := folder / name)]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder by name, junk left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [path for name in names if not is_junk(path := folder / name)]


def pictures_in(folder: Path, notes: list[str]) -> list[Path]:
    """The pictures in a folder by name; what else lies there is left out and noted."""
    files = files_in(folder)
    pictures = [file for file in files if is_picture(file)]
    junk = [f.name for f in folder.iterdir() if f.name.lower() in _JUNK or f.name.startswith("._")]
    others = sorted({*(file.name for file in files), *junk} - {file.name for file in pictures})
    if others:
        notes.append(f"{folder}: {some(others)} left out, as no pictures")
    return pictures


def unwrapped(root: Path, notes: list[str]) -> Path:
    """The folder that holds more than one other folder alone, as archives often have around their content."""
    inner = root
    while not files_in(inner) and len(found := folders_in(inner)) == 1 and folders_in(found[0]):
        name = found[0].name.lower()
        if split_of(name) or name in PICTURES | TRUTH:
            break
        inner = found[0]
    if inner != root:
        notes.append(f"{root} holds the folder {inner.relative_to(root)} alone: that was read")
    return inner


def walk(root: Path) -> Iterator[Folder]:
    """Every folder of a data set that holds files, from the root down."""

    def visit(path: Path, split: str | None, truth: bool, rest: tuple[str, ...], depth: int) -> Iterator[Folder]:
        with os.scandir(path) as entries:  # once: a folder of a class may hold very many
            inner, has_file = [], False
            for entry in entries:
                if entry.is_dir():
                    inner.append(path / entry.name)
                else:
                    has_file = has_file or not is_junk(Path(entry.name))
        if has_file:
            yield Folder(path, split, truth, rest)
        for folder in sorted(folder for folder in inner if not is_junk(folder)) if depth else ():
            name = folder.name.lower()
            both = _BOTH.fullmatch(name)
            if meant := split_of(name):
                yield from visit(folder, meant, truth, rest, depth - 1)
            elif both and (meant := split_of(both["split"])):
                yield from visit(folder, meant, True, rest, depth - 1)
            elif name in TRUTH:
                yield from visit(folder, split, True, rest, depth - 1)
            else:
                plain = name in PICTURES or name == "data"  # FiftyOne's, which elsewhere is a folder around a set
                yield from visit(folder, split, truth, rest if plain else (*rest, name), depth - 1)

    return visit(root, None, False, (), DEPTH)


def of_splits(root: Path, splits: dict[str, str]) -> dict[str, str]:
    """{file or folder name: split} turned round, in the order train, val, test."""
    found: dict[str, str] = {}
    for name, split in splits.items():
        if split in found:
            raise RequestError(f"{root} holds {found[split]} and {name}, but both mean the split {split!r}; remove one")
        found[split] = name
    return {split: found[split] for split in SPLITS if split in found}


def held_out(keys: Sequence[Key], share: float, name: Callable[[Key], str], seed: int) -> set[Key]:
    """A share of the keys, one at least where there are two: by a hash of seed and name, not a generator's stream, so
    that the choice is the same on every platform, in every version."""
    order = sorted(keys, key=lambda key: _hash(f"{seed}/{name(key)}"))
    return set(order[: min(max(int(share * len(keys) + 0.5), 1 if share else 0), len(keys) - 1)])


def held_out_by_class(
    pairs: Sequence[tuple[Path, str]], share: float, name: Callable[[Path], str], seed: int
) -> dict[str, list[tuple[Path, str]]]:
    """(picture, class) pairs as "train" and, with the same share of each class, "val", if there is any of it."""
    by_class: dict[str, list[Path]] = {}
    for path, label in pairs:
        by_class.setdefault(label, []).append(path)
    kept = {path for paths in by_class.values() for path in held_out(sorted(paths), share, name, seed)}
    splits = {"train": [pair for pair in pairs if pair[0] not in kept], "val": [p for p in pairs if p[0] in kept]}
    return splits if kept else {"train": splits["train"]}


def fifth_held_out(
    pool: Sequence[Key], name: Callable[[Key], str], notes: list[str], seed: int
) -> dict[str, dict[Key, None]]:
    """What is of no split by name as "train" and, if there are two or more, "val", in its order; which is noted."""
    kept = held_out(pool, 0.2, name, seed)
    notes.append(f"no split by name: {len(kept)} of {len(pool)} pictures were held out as val, by seed {seed}")
    splits = {"train": [key for key in pool if key not in kept], "val": [key for key in pool if key in kept]}
    return {split: dict.fromkeys(keys) for split, keys in splits.items() if keys}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()  # names on disk may be no valid UTF-8


def same_form(text: str) -> str:
    """A name in one form of Unicode, in which names of macOS and of other systems are equal."""
    return unicodedata.normalize("NFC", text)


def some(names: Iterable[str], most: int = 8) -> str:
    """`"a, b, c"`, or the first few and how many there are."""
    names = list(names)
    return ", ".join(names) if len(names) <= most else ", ".join(names[:most]) + f", ... ({len(names)} in all)"
