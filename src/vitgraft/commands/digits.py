"""Small real tasks for the demo and for tests, drawn from the 1,797 handwritten digits that scikit-learn carries.

A task is a row of `TASKS`: its classes, and a function that arranges digits on a sheet for one class. Positions and
sides are fractions of the sheet, so a task looks the same at any size. Train and test never share a handwritten digit.
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
    """One digit on the sheet: its value, centre, and side of its square."""

    value: int
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Task:
    """What a picture's class means, and how digits are arranged for a class."""

    about: str
    classes: tuple[str, ...]
    arrange: Callable[[Generator, int], list[Glyph]]


def _one(rng: Generator, label: int) -> list[Glyph]:
    x, y = rng.uniform(0.46, 0.54, 2)
    return [Glyph(label, x, y, rng.uniform(0.72, 0.88))]


def _place(rng: Generator, label: int) -> list[Glyph]:
    row, column = divmod(label, 4)
    inner = 0.15 + 0.7 * (np.array([column, row]) + rng.uniform(0.1, 0.9, 2)) / 4
    return [Glyph(int(rng.integers(10)), inner[0], inner[1], 0.28)]


TASKS = {
    "digits": Task("which digit it is", tuple("0123456789"), _one),
    "place": Task("which cell of a 4x4 grid the digit is in", tuple(f"{r}{c}" for r in "abcd" for c in "1234"), _place),
}


def write(
    root: str | Path, task: str, *, size: int = 64, train: int = 1000, test: int = 500, seed: int = 0
) -> tuple[str, ...]:
    """Write a task as `root/<split>/<class>/<nnnn>.png`, `size` pixels square, and return its classes.

    The classes take turns, so they are balanced; the same arguments give the same pictures. `root` comes into being
    complete or not at all. Raises RequestError for an unknown task, fewer pictures than classes, a folder that already
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
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        for number, (split, count) in enumerate({"train": train, "test": test}.items()):
            folder = unfinished / split
            for name in classes:
                (folder / name).mkdir(parents=True)
            rng = np.random.default_rng([seed, number])
            hand = _Hand(_handwriting(seed)[split], rng)
            for index in range(count):
                label = index % len(classes)
                picture = _draw(TASKS[task].arrange(rng, label), hand, size, rng)
                picture.save(folder / classes[label] / f"{index:04}.png")
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


def _draw(glyphs: Sequence[Glyph], hand: _Hand, size: int, rng: Generator) -> Image.Image:
    """Ink on paper: every digit is smoothed up at twice the size cut to a clear stroke, and scaled down."""
    fine = 2 * size
    sheet = Image.new("L", (fine, fine))
    for glyph in glyphs:
        side = round(glyph.side * fine)
        smooth = Image.fromarray(np.pad(hand(glyph.value), 1).astype(np.float32))
        smooth = smooth.resize((side, side), Image.Resampling.BICUBIC)
        stroke = Image.fromarray((255 * np.clip((np.asarray(smooth) - 0.3) / 0.3, 0, 1)).astype(np.uint8))
        sheet.paste(255, (round(glyph.x * fine - side / 2), round(glyph.y * fine - side / 2)), stroke)
    cover = np.asarray(sheet.resize((size, size), Image.Resampling.BOX))[..., None] / 255
    ink = np.array(INKS[rng.integers(len(INKS))]) + rng.uniform(-8, 8, 3)
    paper = np.array(PAPER) + rng.uniform(-6, 6)
    return Image.fromarray(np.clip(paper + cover * (ink - paper), 0, 255).round().astype(np.uint8))
