"""Text on pictures: a font that has the letters, and labels that do not cover each other."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from .palette import Colour, bright

DARK: Colour = (25, 25, 25)
# Pillow's own font has ASCII only; names in other letters look for one of these, where the system has it.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc")


class Text:
    """A line of text with a font that can write it; `width` and `height` in pixels, the height the same for all."""

    def __init__(self, text: str, size: int, most: int = 40) -> None:
        text = " ".join("".join(c if c.isprintable() else "?" for c in text).split())
        text = text if len(text) <= most else text[: most - 3].rstrip() + "..."
        self.text, self.font = _written(text, size)
        self.width = math.ceil(self.font.getlength(self.text))
        self.height = math.ceil(size * 1.1)

    def draw(self, pen: ImageDraw.ImageDraw, x: float, y: float, fill: Colour = DARK) -> None:
        """Writes it from `x` to the right, `y` being its middle."""
        pen.text((x, y + self.height * 0.36), self.text, fill=fill, font=self.font, anchor="ls")


@lru_cache(maxsize=4096)
def _written(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and the first font that has all its letters; without one, the text in plain letters."""
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont)  # a Pillow without FreeType has only a bitmap font
    if text.isascii():
        return text, own
    for name in FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        absent = bytes(font.getmask("\uffff"))
        if all(bytes(font.getmask(letter)) != absent for letter in text if letter != " "):
            return text, font
    return unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode(), own


def font_size(longest: int) -> int:
    """The size of letters on a picture of so many pixels a side."""
    return max(12, round(longest / 42))


class Labels:
    """Writes labels on a picture, each in a coloured box, and none over another."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.pen = ImageDraw.Draw(picture)
        self.taken: list[tuple[float, float, float, float]] = []

    def put(self, text: Text, tint: Colour, corners: Iterable[tuple[float, float]]) -> None:
        """Writes the label with its left upper corner at the first of `corners` that is free, or not at all."""
        w, h = size_of(text)
        for x, y in corners:
            x = min(max(0, round(x)), self.picture.width - w)
            y = min(max(0, round(y)), self.picture.height - h)
            if x < 0 or any(x < r and x + w > l and y < b and y + h > t for l, t, r, b in self.taken):  # noqa: E741
                continue
            self.taken.append((x, y, x + w, y + h))
            self.pen.rounded_rectangle((x, y, x + w - 1, y + h - 1), radius=max(2, h // 6), fill=tint)
            text.draw(self.pen, x + text.height * 0.3, y + h / 2, DARK if bright(tint) else (255, 255, 255))
            return


def size_of(text: Text) -> tuple[int, int]:
    """Width and height of a label."""
    return text.width + round(text.height * 0.6), round(text.height * 1.25)


def around(box: Iterable[float], text: Text) -> list[tuple[float, float]]:
    """Where the label of a box xyxy may stand, best first: on top of it, inside at its top, below, at its right."""
    x0, y0, x1, y1 = box
    w, h = size_of(text)
    return [(x0, y0 - h), (x0, y0), (x0, y1), (x1 - w, y0 - h), (x1 - w, y0), (x0, y1 - h), (x1 - w, y1)]
