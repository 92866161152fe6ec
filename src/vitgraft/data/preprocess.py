"""From a picture to what the backbone takes in: one printable pipeline for training, evaluation and serving."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.errors import RequestError, near_misses
from ..common.settings import Triple
from .pictures import Levels, open_picture, to_rgb


@dataclass(frozen=True)
class Preprocess:
    """Direct resize to `size` (the aspect ratio is not kept: VTAB-1k's way), then normalisation per channel.

    Args:
        size: (H, W) in pixels; with `fit` of the canvas that a picture is resized to fit.
        mean: of R, G, B, on the scale 0..1; as the backbone was pre-trained, unless the fit says otherwise.
        std: of R, G, B, on the scale 0..1.
        interpolation: a Pillow filter by name; it is antialiased when it makes a picture smaller, "nearest" excepted.
        fit: the aspect ratio is kept, and what is missing to sides of multiples of 32 is padded: the dense tasks' way,
            of which `data.augment` is in charge.
        levels: the black and the white of grey pictures of more than 8 bits, as measured on the training set; None: of
            each picture its own.
    """

    size: tuple[int, int]
    mean: Triple
    std: Triple
    interpolation: str = "bicubic"
    fit: bool = False
    levels: Levels | None = None

    def __post_init__(self) -> None:
        known = [filter.name.lower() for filter in Image.Resampling]
        if self.interpolation not in known:
            hint = near_misses(self.interpolation, known)
            raise RequestError(
                f"interpolation {self.interpolation!r} was asked for, but there are {', '.join(known)}; take one.{hint}"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise RequestError(
                f"image size {self.size} was asked for, but it is (height, width) in pixels; give two of 1 or more"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise RequestError(
                f"mean {self.mean} and std {self.std} were given, but each is a number for R, G and B, std above 0; "
                "give three of each"
            )

    def load(self, path: str | os.PathLike[str]) -> Tensor:
        """The picture file as uint8 [3, H, W]; raises `BadPicture`."""
        return self.pixels(open_picture(path, self.levels))

    def pixels(self, image: Image.Image) -> Tensor:
        """A Pillow image of any mode and size as uint8 [3, H, W]."""
        return as_tensor(self.resized(image))

    def resized(self, image: Image.Image) -> Image.Image:
        """A Pillow image of any mode and size in mode RGB and this size."""
        height, width = self.size
        return to_rgb(image, self.levels).resize((width, height), self.filter)

    @property
    def filter(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to float32 [B, 3, H, W], on the device where the pixels are."""
        mean, std = (_on(pixels.device, triple) for triple in (self.mean, self.std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them; `from_dict` takes them back."""
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return told if self.levels else {key: value for key, value in told.items() if key != "levels"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`; raises RequestError when a field is missing, unknown or of the wrong kind."""
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**given)
        except TypeError as error:
            raise RequestError(
                f"preprocessing was read from {dict(fields)}, but it has size, mean, std and interpolation; "
                "write the file again with this version of vitgraft"
            ) from error

    def __str__(self) -> str:
        height, width = self.size
        mean, std = (" ".join(f"{value:g}" for value in triple) for triple in (self.mean, self.std))
        how = "resize to fit {}, pad to multiples of 32 with the mean" if self.fit else "resize to {}"
        sized = how.format(f"{height}x{width} (HxW, {self.interpolation})")
        deep = f", grey levels {self.levels[0]:g} to {self.levels[1]:g}" if self.levels else ""
        return f"RGB{deep}, {sized}, scale to 0..1, mean {mean}, std {std}"


@cache  # a new tensor on a GPU waits until that has nothing left to do
def _on(device: torch.device, triple: Triple) -> Tensor:
    return torch.tensor(triple, dtype=torch.float32, device=device).view(3, 1, 1)


def as_tensor(image: Image.Image) -> Tensor:
    """A Pillow image in mode RGB as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
