"""Data for semantic segmentation: pictures with index masks in our layout, and ADE20K as it is distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.errors import WorkError
from .layouts import folders, read_class_names, some, text_lines
from .pictures import reason_of
from .truth import IGNORED, DenseSet, DenseSplit, Problem, by_split

LAYOUT = (
    "images/SPLIT/FILE with masks/SPLIT/STEM.png and classes.txt (SPLIT: train, val, test), or ADEChallengeData2016"
)
ADE = "ADEChallengeData2016"


class BadTruth(WorkError):  # noqa: N818
    """A mask or an annotation that does not fit its picture; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)  # in `args`: the error survives pickling on its way out of a worker process
        self.problem = problem


def is_ade(root: Path) -> bool:
    """Whether `root` is ADE20K's folder, or holds it."""
    return any((root / inner / "annotations" / "training").is_dir() for inner in ("", ADE))


def read_masks(root: Path, classes: tuple[str, ...] | None, problems: list[Problem]) -> DenseSet:
    """Reads `root` for segmentation; what is wrong is added to `problems` and left out. No picture is opened here.

    With `classes`, those of an adapter that is evaluated, classes.txt must say the same or be absent.
    """
    ade = is_ade(root)
    root = root / ADE if ade and (root / ADE).is_dir() else root
    known = _classes(root / ("objectInfo150.txt" if ade else "classes.txt"), ade, classes, problems)
    pictures, masks = root / "images", root / ("annotations" if ade else "masks")
    folder_of = by_split(root, [folder.name for folder in folders(pictures)]) if pictures.is_dir() else {}
    if not folder_of:
        problems.append(Problem(pictures, "", f"no folder of a split is in it; arrange the data as {LAYOUT}", True))
    splits = {}
    for split, name in folder_of.items():
        pairs = _pair(pictures / name, masks / name, problems)
        splits[split] = DenseSplit(split, tuple(pairs.values()), tuple(pairs), zero_ignored=ade)
    how = f"{ADE}, 0 ignored" if ade else "images/SPLIT with masks/SPLIT"
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    return DenseSet(root, "segment", known, splits, f"{how}; classes: {len(known)}; pictures: {counts}")


def _classes(path: Path, ade: bool, classes: tuple[str, ...] | None, problems: list[Problem]) -> tuple[str, ...]:
    named = _ade_classes(path) if ade and path.is_file() else read_class_names(path)
    if named and classes and named != classes:
        sentence = (
            f"the classes are {some(named)}, but the adapter was trained on {some(classes)}, and it is by number that "
            "a mask names them; number the masks as the adapter does"
        )
        problems.append(Problem(path, "", sentence, fatal=True))
    known = classes or named or ()
    if not 1 <= len(known) <= IGNORED:
        sentence = (
            f"masks need 1 to {IGNORED} classes, but here are {len(known)}; write their names, one per line, in the "
            "order of their numbers from 0"
        )
        problems.append(Problem(path, "", sentence, fatal=True))
    return known


def _ade_classes(path: Path) -> tuple[str, ...]:
    """The first name of each class: a line is number, share, two counts and the names, parted by tabs."""
    rows = [line.split("\t") for _, line in text_lines(path)][1:]
    return tuple(row[-1].split(",")[0].strip() for row in rows)


def _pair(pictures: Path, masks: Path, problems: list[Problem]) -> dict[Path, Path]:
    """{mask: picture} of the same stem, for every picture of a folder."""
    pairs: dict[Path, Path] = {}
    for picture in files(pictures):
        mask = masks / f"{picture.stem}.png"
        if mask in pairs:
            sentence = f"the picture {pairs[mask].name} has the same mask, {mask.name}; rename one of the two"
        elif not mask.is_file():
            sentence = f"the picture has no mask, which should be {mask}; add the mask, or remove the picture"
        else:
            pairs[mask] = picture
            continue
        problems.append(Problem(picture, "", sentence))
    if not pairs:
        problems.append(Problem(pictures, "", f"it holds no picture that has a mask in {masks}; add some", True))
    return pairs


def files(folder: Path) -> list[Path]:
    """The files in a folder by name, the hidden ones left out; every one counts as a picture."""
    inner = (item for item in folder.iterdir() if item.is_file() and not item.name.startswith("."))
    return sorted(inner, key=lambda item: item.name)


def load_mask(path: Path, classes: int, zero_ignored: bool = False) -> np.ndarray:
    """A mask file as labels uint8 [h, w]: 0 up to below `classes`, and 255 where it is to be ignored.

    Raises `BadTruth` for a file that is no 8-bit index or grey picture, or that holds another value.
    """
    try:
        with Image.open(path) as image:
            raw = image.tile[0][3] if image.tile else None
            image.load()
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # as in `open_picture`: decoders meet broken bytes with nearly any error
        sentence = f"it cannot be read as a mask ({reason_of(path, error)}); replace or remove it"
        raise BadTruth(Problem(path, "", sentence)) from error
    if mode not in ("L", "P", "1") or raw in ("L;2", "L;4"):  # Pillow stretches 2 and 4 bits of grey to 0..255
        kind = f"{raw} bits" if mode == "L" else mode
        sentence = f"its pixels are {kind}, but a mask is an 8-bit grey or palette picture of class numbers; convert it"
        raise BadTruth(Problem(path, "", sentence))
    values = values.astype(np.uint8)
    labels = values - np.uint8(1) if zero_ignored else values  # 0 wraps round to 255
    bad = (labels >= classes) & (labels != IGNORED)
    if bad.any():
        y, x = np.unravel_index(int(bad.argmax()), bad.shape)
        first = int(zero_ignored)
        sentence = (
            f"the value is {values[y, x]}, one of {bad.sum()} such pixels, but the {classes} classes are {first} to "
            f"{classes - 1 + first}, and {0 if zero_ignored else IGNORED} is ignored; correct the mask, or the classes"
        )
        raise BadTruth(Problem(path, f"x {x}, y {y}", sentence))
    return labels


# The masks of single objects, as COCO writes them: polygons [[x, y, x, y, ...], ...] or run lengths
# {"size": [h, w], "counts": [...] or text}, which go down the columns, from left to right, beginning with zeros.


def fault_of(segmentation: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a COCO segmentation in a picture of `size` (h, w), in a sentence; None where all is well."""
    h, w = size
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [h, w]:
            given = segmentation.get("size")
            return (
                f"its run lengths are for a size of {given} (h, w), but the picture has {[h, w]}; correct or remove it"
            )
        runs = _runs(segmentation.get("counts"))
        if runs is None or (runs < 0).any() or runs.sum() != h * w:
            covered = "no lengths" if runs is None else f"{runs.sum()} pixels"
            return f"its run lengths hold {covered}, but the picture has {h * w} pixels; correct or remove it"
        return None
    if not isinstance(segmentation, list) or not segmentation:
        return "it has no segmentation, which instance masks need; add one, remove it, or fit with --task detect"
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and all(type(n) in (int, float) for n in polygon)
        if not numbers or len(polygon) % 2 or len(polygon) < 6:
            points = f"{len(polygon) / 2:g} points" if numbers else "something else than points"
            return f"a polygon of it has {points}, but needs x, y of 3 or more; correct or remove it"
        # Far points would make the rasteriser take all memory.
        for name, values, extent in (("x", polygon[::2], w), ("y", polygon[1::2], h)):
            if far := [n for n in values if not -extent <= n <= 2 * extent]:
                return (
                    f"a polygon of it has a point at {name} {far[0]:g}, far from its picture of {w} x {h}; correct it"
                )
    return None


def _runs(counts: Any) -> np.ndarray | None:
    """Run lengths int64 [r], from a list or from COCO's text; None where they are neither.

    In the text a number has 5 bits per character (+ 48), the lowest first; 32 says that more follow, 16 in the last
    one that it is negative; from the fourth number on it is the difference to the one two before.
    """
    if isinstance(counts, list) and all(type(n) is int for n in counts):
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str | bytes):
        return None
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    code = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    last = code & 32 == 0
    if not len(code) or code.min() < 0 or code.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.r_[0, ends[:-1] + 1]
    lengths = ends - starts + 1
    if lengths.max() > 8:  # no picture has 2 ** 40 pixels
        return None
    place = np.arange(len(code)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((code & 31) << 5 * place, starts)
    runs -= (code[ends] & 16 > 0) * (1 << 5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def sample(segmentation: Any, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The pixels of an object's mask at these rows and columns of its picture: bool [len(rows), len(columns)].

    `columns` ascend. No mask of the picture's own `size` (h, w) is made: large ones with many objects fit in memory.
    """
    h, w = size
    if isinstance(segmentation, list):
        from faster_coco_eval import mask

        segmentation = mask.segmToRle(segmentation, w, h)
    ends = _runs(segmentation["counts"]).cumsum()  # type: ignore[union-attr]
    found = np.zeros((len(columns), len(rows)), dtype=bool)
    if len(ends) > 1:
        first, last = ends[0] // h, (ends[len(ends) // 2 * 2 - 1] - 1) // h  # columns that hold the mask
        inside = slice(*columns.searchsorted([first, last + 1]))
        found[inside] = ends.searchsorted(columns[inside, None] * h + rows, side="right") & 1
    return found.T
