"""What the values and colours of masks mean: numbers, colours that are named, 0 and 255."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.errors import WorkError
from .folders import some
from .layouts import read_class_names
from .pictures import reason_of
from .tables import COLOUR, text_lines
from .truth import IGNORED, Coding, Problem

LOOKED_AT = 200  # masks whose values are looked at before training, spread over the set
CITYSCAPES = re.compile(r"_leftImg8bit$|_gtFine_label(?:Train)?Ids$|_gtCoarse_labelIds$")
# Cityscapes' 19 classes that are measured, by the number that labelIds gives them.
CITY_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITY_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
Rgb = tuple[int, int, int]


class BadTruth(WorkError):  # noqa: N818
    """A mask or an annotation that does not fit its picture; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)  # in `args`: the error survives pickling on its way out of a worker process
        self.problem = problem


def checked_names(
    path: Path, named: tuple[str, ...] | None, classes: tuple[str, ...] | None, problems: list[Problem]
) -> tuple[str, ...]:
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


@dataclass
class _Seen:
    """What some masks hold: values by the number of masks, colours by the number of pixels, palettes of the values."""

    values: Counter[int] = field(default_factory=Counter)
    colours: Counter[Rgb] = field(default_factory=Counter)
    palette: dict[int, Rgb] = field(default_factory=dict)
    clash: str = ""  # where one value has two colours
    coloured: int = 0  # masks that are pictures in colours
    numbered: int = 0  # masks of numbers


def _look(masks: Sequence[Path]) -> _Seen:
    seen = _Seen()
    for path in masks:
        try:
            with Image.open(path) as image:
                if image.mode in ("RGB", "RGBA"):
                    array = np.asarray(image.convert("RGB")).reshape(-1, 3)
                    if (array == array[:, :1]).all():
                        seen.values.update(np.unique(array[:, 0]).tolist())
                        seen.numbered += 1
                    else:
                        seen.coloured += 1
                        colours, counts = np.unique(array, axis=0, return_counts=True)
                        seen.colours.update(dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True)))
                    continue
                palette = image.getpalette() if image.mode == "P" else None
                present = np.unique(_values(image)).tolist()
        except (OSError, ValueError, SyntaxError):
            continue  # it is a problem where each mask is read
        seen.values.update(present)
        seen.numbered += 1
        for value in present if palette else ():
            colour: Any = tuple((palette or [])[3 * value : 3 * value + 3])
            if len(colour) == 3 and seen.palette.setdefault(value, colour) != colour:
                seen.clash = seen.clash or (
                    f"{value} is the colour {' '.join(map(str, colour))} in {path.name}, but "
                    f"{' '.join(map(str, seen.palette[value]))} in another mask"
                )
    return seen


def coding_of(
    root: Path,
    masks: Sequence[Path],
    trained: Sequence[Path],
    classes: tuple[str, ...] | None,
    problems: list[Problem],
    notes: list[str],
) -> tuple[tuple[str, ...], Coding]:
    """The classes, and what each value or colour of a mask is; from the names that are written, and from the masks."""
    path = root / "classes.txt"
    coloured = _colours(root)
    named = tuple(coloured) or read_class_names(path)
    spread = masks if named is None and not classes else masks[:: max(1, len(masks) // LOOKED_AT)]
    seen = _look(spread)
    if masks and all(CITYSCAPES.search(mask.stem) for mask in masks[:10]) and not named:
        notes.append("Cityscapes' labelIds: its 19 classes by name, everything else ignored")
        table = dict.fromkeys(range(256), IGNORED) | {value: label for label, value in enumerate(CITY_IDS)}
        return checked_names(path, CITY_NAMES, classes, problems), Coding(table)
    if seen.coloured > seen.numbered or (seen.clash and coloured):
        if coloured:
            colours = {rgb: label for label, rgb in enumerate(coloured.values())}
            return checked_names(path, named, classes, problems), Coding(colours=colours)
        found = ", ".join(" ".join(map(str, rgb)) for rgb, _ in seen.colours.most_common(8))
        sentence = (
            f"the masks are pictures in colours, of which it is not said which class each is; the commonest of "
            f"{len(seen.colours)} are {found}: write lines 'name r g b' into {path}"
        )
        problems.append(Problem(masks[0].parent if masks else root, "", sentence, fatal=True))
        return classes or named or ("",), Coding()
    if seen.clash:
        sentence = f"its palette is not that of the others: {seen.clash}; write lines 'name r g b' into {path}"
        problems.append(Problem(masks[0].parent, "", sentence, fatal=True))
    return _numbered(path, seen, masks, named, classes, problems, notes)


def _numbered(
    path: Path,
    seen: _Seen,
    masks: Sequence[Path],
    named: tuple[str, ...] | None,
    classes: tuple[str, ...] | None,
    problems: list[Problem],
    notes: list[str],
) -> tuple[tuple[str, ...], Coding]:
    """The same of masks whose values are numbers."""
    present = set(seen.values)
    known = classes or named
    if present and max(present) in (IGNORED, 65535) and len(present) <= 2 and len(known or "12") == 2:
        high = max(present)
        if present <= {0, high}:
            known = checked_names(path, named or (None if classes else ("background", "foreground")), classes, problems)
            notes.append(f"the masks hold 0 and {high} alone: {high} was read as the class {known[1]!r}")
            return known, Coding({0: 0, high: 1})
    if known is None and present:
        numbers = [value for value in present if value != IGNORED]
        known = tuple(map(str, range(max(numbers, default=0) + 1)))
        notes.append(f"no classes.txt: the classes were named by the numbers 0 to {len(known) - 1} in the masks")
        if len(known) > IGNORED:
            return checked_names(path, known, classes, problems), Coding()
    return checked_names(path, named if classes else known, classes, problems), Coding()


def _colours(root: Path) -> dict[str, Rgb]:
    """{class: its colour}, from classes.txt, CVAT's labelmap.txt, or the tables that others write."""
    for name in ("classes.txt", "labelmap.txt", "label_colors.txt", "class_dict.csv"):
        if not (root / name).is_file():
            continue
        found: dict[str, Rgb] = {}
        for _, line in text_lines(root / name):
            if match := COLOUR.fullmatch(line):
                found[match["name"].strip()] = (int(match["r"]), int(match["g"]), int(match["b"]))
            elif match := re.fullmatch(r"(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+(\S.*)", line):
                found[match[4].strip()] = (int(match[1]), int(match[2]), int(match[3]))
        if found:
            return found
    return {}


def _values(image: Image.Image) -> np.ndarray:
    """The numbers of a mask that has one channel, integers [h, w]; ValueError for another kind of picture."""
    tile: Any = getattr(image, "tile", None)
    raw = tile[0][3] if tile else None
    image.load()
    values = np.asarray(image)
    if image.mode == "L" and raw in ("L;2", "L;4"):  # Pillow stretches 2 and 4 bits of grey to 0..255
        return values // (85 if raw == "L;2" else 17)
    if image.mode in ("L", "P", "1", "I") or image.mode.startswith("I;16"):
        return values.astype(np.int64)
    if image.mode in ("RGB", "RGBA", "LA"):
        grey = values[..., 0]
        if image.mode == "LA" or ((values[..., 1] == grey).all() and (values[..., 2] == grey).all()):
            return grey
    raise ValueError(f"its pixels are {image.mode}, but a mask is a picture of class numbers; convert it")


def load_mask(path: Path, classes: int, coding: Coding = Coding()) -> np.ndarray:  # noqa: B008
    """A mask file as labels uint8 [h, w]: 0 up to below `classes`, and 255 where it is to be ignored.

    Raises `BadTruth` for a file that is no such picture, or that holds another value.
    """
    try:
        with Image.open(path) as image:
            if coding.segments is not None:
                return _by_segment(path, segment_ids(image), coding.segments[str(path)])
            if coding.colours is not None:
                image.load()
                return _by_colour(path, np.asarray(image.convert("RGB")), coding.colours)
            values = _values(image)
    except ValueError as error:
        raise BadTruth(Problem(path, "", str(error))) from error
    except BadTruth:
        raise
    except Exception as error:  # as in `open_picture`: decoders meet broken bytes with nearly any error
        sentence = f"it cannot be read as a mask ({reason_of(path, error)}); replace or remove it"
        raise BadTruth(Problem(path, "", sentence)) from error
    labels = values
    if coding.values is not None:
        table = np.full(1 << 16, -1)
        for value, label in coding.values.items():
            table[value] = label
        labels = np.where((values >= 0) & (values < len(table)), table[values.clip(0, len(table) - 1)], -1)
    bad = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if bad.any():
        y, x = np.unravel_index(int(bad.argmax()), bad.shape)
        raise BadTruth(Problem(path, f"x {x}, y {y}", _other_value(values[y, x], int(bad.sum()), classes, coding)))
    return labels.astype(np.uint8)


def _other_value(value: int, pixels: int, classes: int, coding: Coding) -> str:
    if coding.values is None:
        known = f"the {classes} classes are 0 to {classes - 1}, and {IGNORED} is ignored"
    else:
        ignored = [value for value, label in coding.values.items() if label == IGNORED]
        numbers = sorted(set(coding.values) - set(ignored))
        known = f"the {classes} classes are {numbers[0]} to {numbers[-1]}"
        known = f"the classes are the values {numbers[0]} and {numbers[1]} alone" if len(numbers) == 2 else known
        known += f", and {some(map(str, ignored), 3)} is ignored" if ignored else ""
    return f"the value is {value}, one of {pixels} such pixels, but {known}; correct the mask, or the classes"


def segment_ids(image: Image.Image) -> np.ndarray:
    """The number of each pixel's segment in a panoptic PNG, int64 [h, w]: R + 256 G + 65,536 B; 0 is of none."""
    if image.mode in ("L", "P", "I", "1") or image.mode.startswith("I;16"):
        image.load()
        return np.asarray(image).astype(np.int64)
    return (np.asarray(image.convert("RGB")).astype(np.int64) << np.array([0, 8, 16])).sum(axis=-1)


def _by_segment(path: Path, ids: np.ndarray, segments: Mapping[int, int]) -> np.ndarray:
    """Numbers of segments to labels; BadTruth for one that is not listed."""
    present, place = np.unique(ids, return_inverse=True)
    table = np.array([IGNORED if number == 0 else segments.get(number, -1) for number in present.tolist()])
    if (table < 0).any():
        number = int(present[table < 0][0])
        y, x = np.argwhere(ids == number)[0]
        sentence = (
            f"the segment {number} is not in the JSON that says what the segments are; add it, or correct the PNG"
        )
        raise BadTruth(Problem(path, f"x {x}, y {y}", sentence))
    return table[place.reshape(ids.shape)].astype(np.uint8)


def _by_colour(path: Path, array: np.ndarray, colours: Mapping[Rgb, int]) -> np.ndarray:
    """uint8 [h, w, 3] to labels; BadTruth for a colour that is no class's."""
    code = (array.astype(np.int64) << np.array([16, 8, 0])).sum(axis=-1)
    labels = np.full(code.shape, -1)
    for (r, g, b), label in colours.items():
        labels[code == (r << 16 | g << 8 | b)] = label
    if (bad := labels < 0).any():
        y, x = np.unravel_index(int(bad.argmax()), bad.shape)
        rgb = " ".join(map(str, array[y, x].tolist()))
        sentence = f"the colour is {rgb}, one of {bad.sum()} pixels of no class; correct the mask, or add the colour"
        raise BadTruth(Problem(path, f"x {x}, y {y}", sentence))
    return labels.astype(np.uint8)
