"""What a training picture to classify looks like: the recipes that `settings.AUGMENTATIONS` names."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from .pictures import to_rgb
from .preprocess import Preprocess, as_tensor

RANDAUGMENT = "rand-m9-mstd0.5-inc1"  # as in the training scripts of timm, DeiT, NOAH and SCT
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a crop, as Inception was trained with
STRONGEST = 9.999  # of timm's 0 to 10: at 10 posterising would keep no bit, which newer Pillow refuses


@dataclass(frozen=True)
class Recipe:
    """A training picture, drawn anew for each key: a crop or all of it, resized, mirrored or not, and RandAugment.

    The crop's place and RandAugment are timm's own.

    Args:
        name: one of `settings.AUGMENTATIONS`, its parts joined by "-"; each of them mirrors half of the pictures.
        preprocess: how a picture is resized, and by its mean what RandAugment fills empty corners with.
        seed: of everything that is drawn, with the key.
        views: of each picture, at which epochs take turns; 0: every epoch sees another one.
    """

    name: str
    preprocess: Preprocess
    seed: int
    views: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views at which epochs take turns."""
        return tuple(f"{self.name}/{self.seed}/{view}" for view in range(self.views))

    def key(self, epoch: int, index: int) -> str:
        """Of a picture as an epoch sees it."""
        return f"{epoch % self.views if self.views else epoch}/{index}"

    def pixels(self, image: Image.Image, key: str) -> Tensor:
        """A Pillow image of any mode and size as uint8 [3, H, W], a function of the seed and the key alone."""
        seen, parts = to_rgb(image), self.name.split("-")
        with _drawn_by(f"{self.seed}/{key}"):
            if "crop" in parts:
                top, left, height, width = RandomResizedCropAndInterpolation.get_params(seen, AREA, RATIO)
                seen = seen.crop((left, top, left + width, top + height))
            seen = self.preprocess.resized(seen)
            if random.random() < 0.5:
                seen = ImageOps.mirror(seen)
            if "randaugment" in parts:
                seen = self._randaugment(seen)
        return as_tensor(seen)

    @cached_property
    def _randaugment(self) -> Any:
        fill = tuple(min(255, round(255 * mean)) for mean in self.preprocess.mean)
        given = {"img_mean": fill, "interpolation": self.preprocess.filter, "magnitude_max": STRONGEST}
        return rand_augment_transform(RANDAUGMENT, given)


@contextmanager
def _drawn_by(key: str) -> Iterator[None]:
    """timm draws from the generators that Python and numpy share with everyone: here they follow from `key`, and
    afterwards they are as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(key)
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
