"""One picture file, whatever its pixel format, as 8-bit RGB."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..common.errors import WorkError


class BadPicture(WorkError):  # noqa: N818
    """A file that cannot be decoded to the end; `path` and `reason` stand apart, so that many can be listed at once."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`: the error survives pickling on its way out of a worker process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read as a picture ({self.reason}); replace or remove the file"


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in mode RGB, upright by its EXIF orientation, decoded to its last byte.

    Transparent pixels lie on white; 16-bit and float grey levels are scaled to 0..255, not cut off there.
    Of an animation it is the first frame. Raises `BadPicture`.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (
        Exception
    ) as error:  # decoders meet broken bytes with nearly any error: struct, zlib, SyntaxError, IndexError
        raise BadPicture(path, reason_of(path, error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image in mode RGB, by the rules of `open_picture`; raises ValueError where no conversion exists."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> np.ndarray:
    """Grey levels of a deep mode as uint8 [H, W].

    An integer picture has 16-bit levels. A float picture does not say what white is: 1, 255 or 65535, the smallest
    that holds its brightest pixel. Levels outside 0..65535 are stretched from darkest to brightest.
    """
    levels = np.asarray(image, dtype=np.float64)
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds pixels that are not finite")
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if high <= white), None)
    if low < 0 or white is None:
        levels, white = levels - low, max(high - low, 1e-12)
    return (levels * 255.0 / white + 0.5).astype(np.uint8)


def reason_of(path: Path, error: Exception) -> str:
    """Why decoding failed, in a few words that fit into brackets."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, UnidentifiedImageError):
        return (
            "the file is empty" if path.stat().st_size == 0 else "its content is in no picture format that Pillow knows"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
