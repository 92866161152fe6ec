"""How a picture and its truth lie on the canvas: for evaluation resized to fit, for training drawn at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as F

from ..common.errors import RequestError
from .objects import Objects
from .preprocess import Preprocess
from .segmentations import sample
from .truth import IGNORED

STRIDE = 32  # sides of a batch are multiples of it
ONE_CLASS = 0.75  # a crop of which one class takes more than this is drawn again (as mmsegmentation's recipes do) ...
TRIES = 10  # ... so many times
Truth = np.ndarray | Objects
# Pixels uint8 [3, H, W], (h, w) inside the padding, and the target: a mask uint8 [H, W], or what `View.objects` gives.
Seen = tuple[Tensor, tuple[int, int], Any]


@dataclass(frozen=True)
class View:
    """A picture of `file` pixels (h, w) resized to `resized`, cut at `corner` (top, left), mirrored, and padded.

    What is seen of it is as large as the `canvas` (H, W) has room for; padding is at the right and at the bottom.
    """

    file: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of what is seen, without the padding."""
        (h, w), (H, W), (top, left) = self.resized, self.canvas, self.corner
        return min(h - top, H), min(w - left, W)

    def picture(
        self, image: Image.Image, preprocess: Preprocess, colours: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """A picture in mode RGB -> uint8 [3, H, W], changed by `colours`, padded with the mean colour."""
        (h, w), (H, W), (top, left) = self.size, self.canvas, self.corner
        y, x = self.file[0] / self.resized[0], self.file[1] / self.resized[1]
        box = (left * x, top * y, min((left + w) * x, self.file[1]), min((top + h) * y, self.file[0]))
        filter = Image.Resampling[preprocess.interpolation.upper()]
        # A picture that is made much smaller is first averaged in whole steps: four times quicker, hardly different.
        pixels = F.pil_to_tensor(image.resize((w, h), filter, box=box, reducing_gap=3.0))
        pixels = F.horizontal_flip(pixels) if self.mirrored else pixels
        pixels = colours(pixels) if colours else pixels
        return F.pad(pixels, [0, 0, W - w, H - h], fill=[round(255 * mean) for mean in preprocess.mean])

    def _sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of the file that are nearest to the centres of the pixels seen."""
        rows, columns = (
            (2 * (start + np.arange(n)) + 1) * file // (2 * resized)
            for start, n, file, resized in zip(self.corner, self.size, self.file, self.resized, strict=True)
        )
        return rows, columns

    def _padded(self, seen: np.ndarray, fill: int) -> Tensor:
        (h, w), (H, W) = self.size, self.canvas
        pixels = torch.from_numpy(np.ascontiguousarray(seen))
        return F.pad(F.horizontal_flip(pixels) if self.mirrored else pixels, [0, 0, W - w, H - h], fill=fill)

    def mask(self, labels: np.ndarray) -> Tensor:
        """Labels uint8 [h, w] of the file -> uint8 [H, W], 255 in the padding."""
        return self._padded(labels[np.ix_(*self._sampled())][None], IGNORED)[0]

    def objects(self, truth: Objects, masks: bool) -> dict[str, Tensor]:
        """boxes float32 [n, 4] xyxy, labels int64 [n], with `masks` uint8 [n, H, W]: of no crowd, and what is seen.

        An object is left out where less than a pixel of its box is seen, or none of its mask. One that the edge cuts
        has the box of what is left of its mask.
        """
        chosen = np.flatnonzero(~truth.crowd)
        given = torch.from_numpy(truth.boxes[chosen])
        whole = F.resize(tv_tensors.BoundingBoxes(given, format="XYXY", canvas_size=self.file), list(self.resized))
        cut = F.crop(whole, *self.corner, *self.size)
        boxes = (F.horizontal_flip(cut) if self.mirrored else cut).as_subclass(Tensor)
        extent, before = boxes[:, 2:] - boxes[:, :2], (whole[:, 2:] - whole[:, :2]).as_subclass(Tensor)
        seen = (extent >= 1).all(1).numpy()
        found = {"boxes": boxes[seen], "labels": torch.from_numpy(truth.labels[chosen[seen]])}
        if not masks:
            return found
        assert truth.segmentations is not None
        pixels = np.zeros((seen.sum(), *self.size), dtype=np.uint8)
        rows, columns = self._sampled()
        for mask, index in zip(pixels, chosen[seen], strict=True):
            mask[:] = sample(truth.segmentations[index], self.file, rows, columns)
        found["masks"] = self._padded(pixels, 0)
        left = found["masks"].flatten(1).amax(1) > 0
        found = {key: value[left] for key, value in found.items()}
        shorter = (extent < before - 1e-3).any(1)[seen][left]
        found["boxes"][shorter] = boxes_of(found["masks"][shorter])
        return found

    def seen(
        self,
        image: Image.Image,
        truth: Truth,
        preprocess: Preprocess,
        masks: bool,
        colours: Callable[[Tensor], Tensor] | None = None,
    ) -> Seen:
        """A picture and its truth at the file's size, together; `masks`: whether objects have masks in the target."""
        target = self.objects(truth, masks) if isinstance(truth, Objects) else self.mask(truth)
        return self.picture(image, preprocess, colours), self.size, target


def boxes_of(masks: Tensor) -> Tensor:
    """uint8 [n, H, W], none of them empty -> float32 [n, 4] xyxy around the pixels, to their far edges."""
    return masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])


def fitted(
    file: tuple[int, int], canvas: tuple[int, int], scale: float = 1.0, *, cover: bool = False
) -> tuple[int, int]:
    """(h, w) of a picture that fills the canvas as well as its aspect ratio lets it, times `scale`; 1 at least.

    cover: it is as small as it can be without leaving a part of the canvas empty.
    """
    ratio = scale * (max if cover else min)(canvas[0] / file[0], canvas[1] / file[1])
    return max(1, round(file[0] * ratio)), max(1, round(file[1] * ratio))


def evaluation_view(file: tuple[int, int], canvas: tuple[int, int], cover: bool = False) -> View:
    """The whole picture, as large as the canvas lets it be, padded to the next multiples of 32 only; with `cover` as
    large as it must be to cover the canvas."""
    h, w = resized = fitted(file, canvas, cover=cover)
    return View(file, resized, (math.ceil(h / STRIDE) * STRIDE, math.ceil(w / STRIDE) * STRIDE))


@dataclass(frozen=True)
class Augment:
    """The random views of training.

    Args:
        jitter: range of the factor by which a picture is larger than what fits the canvas; 0.5 to 2 as in the
            published ADE20K recipes.
        flip: probability of a mirrored picture.
        photometric: whether brightness, contrast, saturation and hue change, in torchvision's ranges for SSD.
        mosaic: probability of a picture made of crops of four.
        paste: probability that objects of another picture, which have masks, are pasted into a picture.
        seed: of everything that is drawn, with the epoch and the picture's index.
    """

    jitter: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    photometric: bool = True
    mosaic: float = 0.0
    paste: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.jitter[0] <= self.jitter[1] < math.inf:
            raise RequestError(
                f"scale jitter {self.jitter} was asked for, but it is (least, most) above 0; give such two"
            )
        for name in ("flip", "mosaic", "paste"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise RequestError(f"a {name} of {value} was asked for, but it is a probability; give 0 to 1")

    def view(
        self, truth: Truth, canvas: tuple[int, int], random: Random, part_of: tuple[int, int] | None = None
    ) -> View:
        """A view on a picture with this truth, at its file's size. A crop keeps an object, if there are any; of a mask
        it avoids that one class takes nearly all. Where the canvas is a `part_of` another, what is shown is as large as
        it would be on that one."""
        file = truth.size if isinstance(truth, Objects) else (truth.shape[0], truth.shape[1])
        resized = fitted(file, part_of or canvas, random.uniform(*self.jitter))
        mirrored = random.random() < self.flip
        room = max(resized[0] - canvas[0], 0), max(resized[1] - canvas[1], 0)
        if room == (0, 0):
            return View(file, resized, canvas, mirrored=mirrored)
        if isinstance(truth, Objects):
            return View(file, resized, canvas, _around_one(truth, resized, canvas, room, random), mirrored)
        for _ in range(TRIES):
            view = View(file, resized, canvas, (random.randint(0, room[0]), random.randint(0, room[1])), mirrored)
            counts = view.mask(truth).flatten().bincount(minlength=IGNORED + 1)[:IGNORED]
            if counts.max() < ONE_CLASS * counts.sum():
                break
        return view

    def colours(self, pixels: Tensor, random: Random) -> Tensor:
        """uint8 [3, H, W] -> the same, each change with probability 0.5, contrast before or after the other two."""
        if not self.photometric:
            return pixels

        def perhaps(change: Callable[[Tensor, float], Tensor], low: float, high: float) -> None:
            nonlocal pixels
            if random.random() < 0.5:
                pixels = change(pixels, random.uniform(low, high))

        contrast_first = random.random() < 0.5
        perhaps(F.adjust_brightness, 0.875, 1.125)
        if contrast_first:
            perhaps(F.adjust_contrast, 0.5, 1.5)
        perhaps(F.adjust_saturation, 0.5, 1.5)
        perhaps(F.adjust_hue, -0.05, 0.05)
        if not contrast_first:
            perhaps(F.adjust_contrast, 0.5, 1.5)
        return pixels


def _around_one(
    truth: Objects, resized: tuple[int, int], canvas: tuple[int, int], room: tuple[int, int], random: Random
) -> tuple[int, int]:
    """A corner of a crop that holds one of the objects, or as much of it as fits; any corner where there is none."""
    chosen = np.flatnonzero(~truth.crowd)
    low_high = [(0, room[0]), (0, room[1])]
    if len(chosen):
        x0, y0, x1, y1 = truth.boxes[random.choice(chosen)].tolist()
        for axis, (start, end) in enumerate([(y0, y1), (x0, x1)]):
            ratio = resized[axis] / truth.size[axis]
            low, high = sorted((math.ceil(end * ratio) - canvas[axis], math.floor(start * ratio)))
            low_high[axis] = min(max(low, 0), room[axis]), max(min(high, room[axis]), 0)
    return random.randint(*low_high[0]), random.randint(*low_high[1])
