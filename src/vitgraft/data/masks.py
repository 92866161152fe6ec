"""Data for semantic segmentation: pictures with masks beside them, in the forms that tools write, and ADE20K."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from .folders import SPLITS, SUFFIX, fifth_held_out, files_in, is_picture, pictures_in, walk
from .mask_values import CITYSCAPES, checked_names, coding_of
from .tables import text_lines
from .truth import IGNORED, Coding, DenseSet, DenseSplit, Problem, counted

LAYOUT = (
    "images/SPLIT/FILE with masks/SPLIT/STEM.png and classes.txt (SPLIT: train, val, test), or ADEChallengeData2016"
)
ADE = "ADEChallengeData2016"


def is_ade(root: Path) -> bool:
    """Whether `root` is ADE20K's folder, or holds it."""
    return any((root / inner / "annotations" / "training").is_dir() for inner in ("", ADE))


def has_masks(root: Path) -> bool:
    """Whether a folder of `root` holds pictures, and another one, named for it, masks of the same names."""
    return is_ade(root) or bool(_places(root))


_MASK = re.compile(r".+[-_](?:mask|seg|segmentation)", re.I)  # a mask beside its picture


class _Place(NamedTuple):
    """Pictures and their masks; of no split by name where `split` is None."""

    split: str | None
    pictures: Path
    masks: Path


def _places(root: Path) -> list[_Place]:
    """Where the pictures of each split lie, and their masks: in folders whose names say the same but for that, or in
    one folder, the masks with a suffix."""
    found = list(walk(root))
    truth = [folder for folder in found if folder.truth and _holds_pictures(folder.path)]
    places = []
    for folder in found:
        beside = [other for other in truth if (other.split, other.rest) == (folder.split, folder.rest)]
        if folder.truth:
            continue
        if beside and _holds_pictures(folder.path):
            places.append(_Place(folder.split, folder.path, beside[0].path))
        elif _holds_both(folder.path):
            places.append(_Place(folder.split, folder.path, folder.path))
    return places


def _holds_both(folder: Path) -> bool:
    """Whether a folder holds pictures and for each of them a mask, told by its suffix."""
    names = os.listdir(folder)
    if not any(_MASK.fullmatch(Path(name).stem) for name in names[:50]):
        return False
    stems = {Path(name).stem for name in names if is_picture(folder / name)}
    masks = {stem for stem in stems if _MASK.fullmatch(stem)}
    return bool(masks) and stems - masks == {SUFFIX.sub("", stem) for stem in masks}


def _holds_pictures(folder: Path) -> bool:
    return any(is_picture(file) for file in files_in(folder)[:8])


def read_masks(
    root: Path, classes: tuple[str, ...] | None, problems: list[Problem], notes: list[str], seed: int = 0
) -> DenseSet:
    """Reads `root` for segmentation; what is wrong is added to `problems` and left out, what was guessed to `notes`.

    With `classes`, those of an adapter that is evaluated, classes.txt must say the same or be absent.
    """
    if is_ade(root):
        return _read_ade(root / ADE if (root / ADE).is_dir() else root, classes, problems, notes)
    places = _places(root)
    if not places:
        problems.append(Problem(root, "", f"no folder of a split is in it; arrange the data as {LAYOUT}", True))
    pairs: dict[str | None, dict[Path, Path]] = {}
    listed = _listed(root)
    for place in places:
        found = _pair(place.pictures, place.masks, problems, notes, {s for stems in listed.values() for s in stems})
        pairs.setdefault(place.split, {}).update(found)
    how = ", ".join(f"{_short(root, p.pictures)} with {_short(root, p.masks)}" for p in places[:3])
    how += ", ..." if len(places) > 3 else ""
    splits = _split(pairs, listed, notes, seed)
    masks = [mask for found in splits.values() for mask in found]
    known, coding = coding_of(root, masks, list(splits.get("train", {})), classes, problems, notes)
    dense = {
        split: DenseSplit(split, tuple(found.values()), tuple(found), coding=coding) for split, found in splits.items()
    }
    return DenseSet(root, "segment", known, dense, f"{how}; classes: {len(known)}; {counted(dense)}", tuple(notes))


def _short(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else root.name


def _listed(root: Path) -> dict[str, list[str]]:
    """The stems of each split, where VOC's lists for segmentation are there."""
    lists = root / "ImageSets" / "Segmentation"
    files = {split: lists / f"{split}.txt" for split in SPLITS}
    return {split: [line for _, line in text_lines(file)] for split, file in files.items() if file.is_file()}


def _split(
    pairs: dict[str | None, dict[Path, Path]], listed: dict[str, list[str]], notes: list[str], seed: int
) -> dict[str, dict[Path, Path]]:
    """The pairs by split: as lists say, as the folders say, or with a fifth held out."""
    pool = pairs.pop(None, {})
    if pool and listed:
        by_stem = {mask.stem: mask for mask in pool}
        for split, stems in listed.items():
            pairs[split] = {by_stem[stem]: pool[by_stem[stem]] for stem in stems if stem in by_stem}
    elif pool and "train" not in pairs:
        if "val" in pairs:
            pairs["train"] = pool
        else:
            for split, masks in fifth_held_out(list(pool), lambda mask: mask.stem, notes, seed).items():
                pairs[split] = {mask: pool[mask] for mask in masks}
    elif pool:
        notes.append(f"{len(pool)} pictures with masks are in no split, and were not read")
    return {split: pairs[split] for split in SPLITS if pairs.get(split)}


def _read_ade(root: Path, classes: tuple[str, ...] | None, problems: list[Problem], notes: list[str]) -> DenseSet:
    info = root / "objectInfo150.txt"
    known = checked_names(info, _ade_classes(info) if info.is_file() else None, classes, problems)
    coding = Coding({0: IGNORED, **{label + 1: label for label in range(len(known))}})
    splits = {}
    for split, name in (("train", "training"), ("val", "validation")):
        if (root / "images" / name).is_dir():
            pairs = _pair(root / "images" / name, root / "annotations" / name, problems, notes)
            splits[split] = DenseSplit(split, tuple(pairs.values()), tuple(pairs), coding=coding)
    how = f"{ADE}, 0 ignored; classes: {len(known)}; {counted(splits)}"
    return DenseSet(root, "segment", known, splits, how, tuple(notes))


def _ade_classes(path: Path) -> tuple[str, ...]:
    """The first name of each class: a line is number, share, two counts and the names, parted by tabs."""
    rows = [line.split("\t") for _, line in text_lines(path)][1:]
    return tuple(row[-1].split(",")[0].strip() for row in rows)


def _pair(
    pictures: Path, masks: Path, problems: list[Problem], notes: list[str], listed: Collection[str] = ()
) -> dict[Path, Path]:
    """{mask: picture} of the same stem, or of the same but for a suffix such as _mask, for every picture of a folder.

    listed: the stems of those that are in a split; none: all.
    """
    of_stem: dict[str, Path] = {}
    suffixed: dict[str, Path] = {}
    together = pictures == masks
    for file in pictures_in(masks, notes):
        if together and not _MASK.fullmatch(file.stem):
            continue
        if CITYSCAPES.search(file.stem) or "gtFine" not in file.stem:
            of_stem.setdefault(file.stem, file)
            suffixed.setdefault(SUFFIX.sub("", CITYSCAPES.sub("", file.stem)), file)
    pairs: dict[Path, Path] = {}
    guessed = 0
    for picture in pictures_in(pictures, notes):
        if (listed and picture.stem not in listed) or (together and picture in suffixed.values()):
            continue
        stem = CITYSCAPES.sub("", picture.stem)
        mask = of_stem.get(picture.stem) or suffixed.get(stem)
        if mask is None:
            expected = masks / f"{picture.stem}.png"
            sentence = f"the picture has no mask, which should be {expected}; add the mask, or remove the picture"
        elif mask in pairs:
            sentence = f"the picture {pairs[mask].name} has the same mask, {mask.name}; rename one of the two"
        else:
            pairs[mask] = picture
            guessed += mask.stem != picture.stem
            continue
        problems.append(Problem(picture, "", sentence))
    if guessed:
        example = next(f"{p.name} with {m.name}" for m, p in pairs.items() if m.stem != p.stem)
        notes.append(f"{masks}: {guessed} masks were paired without the suffix of their names, as {example}")
    if not pairs:
        problems.append(Problem(pictures, "", f"it holds no picture that has a mask in {masks}; add some", True))
    return pairs


def masks_without_picture(splits: Iterable[DenseSplit]) -> list[Problem]:
    """Masks that no picture has."""
    splits = list(splits)
    known = {path for split in splits for path in (*split.masks, *split.paths)}
    return [
        Problem(mask, "", "there is no picture for this mask; add one, or rename or remove the mask")
        for folder in sorted({mask.parent for split in splits for mask in split.masks})
        for mask in files_in(folder)
        if mask not in known and is_picture(mask) and ("gtFine" not in mask.stem or CITYSCAPES.search(mask.stem))
    ]
