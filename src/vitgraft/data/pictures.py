"""One picture file, whatever its pixel format, as 8-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..common.errors import WorkError

with suppress(ImportError):  # HEIC and AVIF of telephones, where the package is installed
    import pillow_heif

    pillow_heif.register_heif_opener()


class BadPicture(WorkError):  # noqa: N818
    """A file that cannot be decoded to the end; `path` and `reason` stand apart, so that many can be listed at once."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`: the error survives pickling on its way out of a worker process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read as a picture ({self.reason}); replace or remove the file"


Levels = tuple[float, float]  # the grey levels of a picture of more than 8 bits that are black and white
WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of float pictures, of cameras of 8 to 16 bits
MEASURED = 200  # pictures of a set whose levels are measured, spread over it
FEW = 16  # levels of a picture below which something is lost


def open_picture(path: str | os.PathLike[str], levels: Levels | None = None) -> Image.Image:
    """The picture in mode RGB, upright by its EXIF orientation, decoded to its last byte.

    Transparent pixels lie on white; grey levels of more than 8 bits are scaled to 0..255, not cut off there: by
    `levels`, those of the set that the picture is of, else by its own. Of an animation it is the first frame. Raises
    `BadPicture`.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image), levels)
    except (
        Exception
    ) as error:  # decoders meet broken bytes with nearly any error: struct, zlib, SyntaxError, IndexError
        raise BadPicture(path, reason_of(path, error)) from error


def orientation(image: Image.Image) -> int:
    """EXIF's, which `open_picture` undoes: 1 is upright, 5 to 8 lie on their side."""
    found = image.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(h, w) that `open_picture` makes of a picture that is open, from its head alone."""
    tags: Any = getattr(image, "tag_v2", {})  # a TIFF says its upright size before it is decoded, in some versions
    w, h = tags.get(256, image.width), tags.get(257, image.height)
    return (w, h) if orientation(image) >= 5 else (h, w)


def to_rgb(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """Any Pillow image in mode RGB, by the rules of `open_picture`; raises ValueError where no conversion exists."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_deep(image):
        return Image.fromarray(_to_8_bit(image, levels)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_8_bit(image: Image.Image, given: Levels | None) -> np.ndarray:
    """Grey levels of a deep mode as uint8 [H, W], by the levels that are given.

    A picture alone, without the others of its set, has 16-bit levels if it is one of integers. A float picture does not
    say what white is: 1, 255 or 65535, the smallest that holds its brightest pixel. Levels outside 0..65535 are
    stretched from darkest to brightest.
    """
    levels = np.asarray(image, dtype=np.float64)
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds pixels that are not finite")
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if high <= white), None)
    black = 0.0
    if given is not None:
        black, white = given
    elif low < 0 or white is None:
        black, white = low, high
    scaled = (levels - black) * 255.0 / max(white - black, 1e-12)
    return (scaled.clip(0, 255) + 0.5).astype(np.uint8)


def measured_levels(paths: Sequence[Path]) -> tuple[Levels, list[Path]] | None:
    """The black and white of the pictures of more than 8 bits in a set, one scale for all, and those of the pictures
    looked at that have fewer than 16 levels then; None where there is no such picture.

    White is 1, 255, 1023, 4095, 16383 or 65535: the smallest that no picture exceeds by more than a tenth, or their
    brightest level.
    """
    found: list[tuple[Path, np.ndarray]] = []
    for path in paths[:: max(1, len(paths) // MEASURED)]:
        try:
            with Image.open(path) as image:
                if _is_deep(image):
                    found.append((path, np.unique(np.asarray(image, dtype=np.float64))))
        except Exception:  # bad pictures are said where all are decoded
            continue
    values = np.concatenate([own for _, own in found]) if found else np.zeros(0)
    if not len(values) or not np.isfinite(values).all():
        return None
    high, black = float(values.max()), min(0.0, float(values.min()))
    white = max(high, next((white for white in WHITES if high <= 1.1 * white), high))
    few = [
        path for path, own in found if len(np.unique(np.round((own - black) * 255 / max(white - black, 1e-12)))) < FEW
    ]
    return (black, white), few


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
