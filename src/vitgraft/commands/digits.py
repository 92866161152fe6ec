"""Small real tasks for the demo and for tests, drawn from the 1,797 handwritten digits that scikit-learn carries.

A picture is a sheet with one digit in one of 16 cells; a task asks one of two questions about it. Both tasks have the
same pictures, byte for byte, so that what a frozen backbone makes of them serves both. Train and test never share a
handwritten digit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.errors import RequestError, near_misses

Generator = np.random.Generator
INKS = ((27, 38, 79), (38, 36, 40), (92, 46, 22), (24, 74, 64))
PAPER = (248, 243, 231)
TRAIN_SHARE = 2 / 3  # of the handwritten digits; the others are for testing


@dataclass(frozen=True)
class Glyph:
    """One digit on the sheet: its value, its cell (0 to 15, row by row), centre and side as shares of the sheet's."""

    value: int
    cell: int
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Task:
    """What is asked of a picture: its class is one of the names."""

    about: str
    classes: tuple[str, ...]
    answer: Callable[[Glyph], int]


TASKS = {
    "digits": Task("which digit it is", tuple("0123456789"), lambda glyph: glyph.value),
    "place": Task(
        "which cell of a 4x4 grid the digit is in",
        tuple(f"{r}{c}" for r in "abcd" for c in "1234"),
        lambda glyph: glyph.cell,
    ),
}


def _glyphs(rng: Generator, count: int) -> list[Glyph]:
    """So many digits in cells; each digit and each cell equally often, and neither tells anything of the other."""
    values, cells = (rng.permutation(np.arange(count) % n) for n in (10, 16))
    found = []
    for value, cell in zip(values.tolist(), cells.tolist(), strict=True):
        row, column = divmod(cell, 4)
        x, y = 0.15 + 0.7 * (np.array([column, row]) + rng.uniform(0.1, 0.9, 2)) / 4
        found.append(Glyph(value, cell, x, y, 0.28))
    return found


def write(
    root: str | Path, task: str, *, size: int = 64, train: int = 1000, test: int = 500, seed: int = 0
) -> tuple[str, ...]:
    """Write a task as `root/<split>/<class>/<nnnn>.png`, `size` pixels square, and return its classes.

    The classes are balanced; the same arguments give the same pictures, for each task. `root` comes into being complete
    or not at all. Raises RequestError for an unknown task, fewer pictures than classes, a folder that already
    holds something, or where scikit-learn is missing.
    """
    root = Path(root)
    if task not in TASKS:
        raise RequestError(f"no task {task!r}: there are {', '.join(TASKS)}.{near_misses(task, TASKS)}")
    classes = TASKS[task].classes
    if min(train, test) < len(classes):
        raise RequestError(f"{task!r} has {len(classes)} classes: ask for at least as many pictures in each split.")
    if size < 16:
        raise RequestError(f"a size of {size} pixels shows no digits: ask for 16 or more.")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RequestError(f"{root} already holds something: name a folder that is new or empty.")
    written = _handwriting(seed)  # before any folder is made
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        for number, (split, count) in enumerate({"train": train, "test": test}.items()):
            folder = unfinished / split
            for name in classes:
                (folder / name).mkdir(parents=True)
            rng = np.random.default_rng([seed, number])
            hand = _Hand(written[split], rng)
            for index, glyph in enumerate(_glyphs(rng, count)):
                name = classes[TASKS[task].answer(glyph)]
                _draw(glyph, hand, size, rng).save(folder / name / f"{index:04}.png")
        os.replace(unfinished, root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return classes


def _handwriting(seed: int) -> dict[str, list[np.ndarray]]:
    """{split: for each value 0..9 its digits [n, 8, 8] in 0..1}; the splits share none."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise RequestError(
            "the demo's pictures come from scikit-learn, which is not installed: pip install 'vitgraft[demo]'."
        ) from None
    found = load_digits()
    rng = np.random.default_rng(seed)
    splits: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for value in range(10):
        digits = rng.permutation(found.images[found.target == value] / 16)
        cut = round(TRAIN_SHARE * len(digits))
        splits["train"].append(digits[:cut])
        splits["test"].append(digits[cut:])
    return splits


class _Hand:
    """Gives the digits of one split in turn, so that none comes twice before all have come once."""

    def __init__(self, digits: Sequence[np.ndarray], rng: Generator):
        self.digits, self.next = digits, [int(rng.integers(len(of_value))) for of_value in digits]

    def __call__(self, value: int) -> np.ndarray:
        self.next[value] = (self.next[value] + 1) % len(self.digits[value])
        return self.digits[value][self.next[value]]


def _draw(glyph: Glyph, hand: _Hand, size: int, rng: Generator) -> Image.Image:
    """Ink on paper: the digit is smoothed up at twice the size, cut to a clear stroke, and scaled down."""
    fine = 2 * size
    sheet = Image.new("L", (fine, fine))
    side = round(glyph.side * fine)
    smooth = Image.fromarray(np.pad(hand(glyph.value), 1).astype(np.float32))
    smooth = smooth.resize((side, side), Image.Resampling.BICUBIC)
    stroke = Image.fromarray((255 * np.clip((np.asarray(smooth) - 0.3) / 0.3, 0, 1)).astype(np.uint8))
    sheet.paste(255, (round(glyph.x * fine - side / 2), round(glyph.y * fine - side / 2)), stroke)
    cover = np.asarray(sheet.resize((size, size), Image.Resampling.BOX))[..., None] / 255
    ink = np.array(INKS[rng.integers(len(INKS))]) + rng.uniform(-8, 8, 3)
    paper = np.array(PAPER) + rng.uniform(-6, 6)
    return Image.fromarray(np.clip(paper + cover * (ink - paper), 0, 255).round().astype(np.uint8))
