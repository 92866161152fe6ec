"""Masks of classes and objects drawn on pictures: the same colour for a class everywhere, outlines, labels, a legend.

Colours tell classes apart with any kind of colour vision; what matters most (a mistake, an ignored pixel) is also drawn
in another way: dashed, hatched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..data.segmentations import sample
from ..data.truth import IGNORED
from .lettering import Labels, Text, around, font_size
from .palette import GREY, Colour, colour, is_background, shade

if TYPE_CHECKING:
    from ..data.objects import Objects

FINE = 2  # shapes are drawn this many times as large, then reduced, so that their edges are smooth
SMALLEST = 200  # pixels of the longer side below which a picture is enlarged, so that its labels can be read
FILL, FILL_OBJECT = 0.55, 0.4  # how much of what lies below a mask's colour hides


@dataclass(frozen=True, eq=False)
class Shape:
    """One object to draw: box xyxy in pixels of the picture, label 0..K-1, mask bool [h, w] of the whole picture.

    `faulty` objects (missed, or not there) are dashed; a `crowd` is hatched grey, as it counts neither way. shade:
    which one of its class's colour it has.
    """

    box: Sequence[float]
    label: int
    score: float | None = None
    mask: np.ndarray | None = None
    faulty: bool = False
    crowd: bool = False
    shade: int = 0

    @property
    def tint(self) -> Colour:
        return GREY if self.crowd else shade(self.label, self.shade)


def reduced(segmentation: Any, size: tuple[int, int], edge: int = 1280) -> np.ndarray:
    """A COCO segmentation of a picture of `size` (H, W) as a mask for `Shape`, of at most `edge` pixels a side."""
    step = max(1.0, max(size) / edge)
    rows, columns = ((np.arange(int(n / step)) * step + step / 2).astype(int) for n in size)
    return sample(segmentation, size, rows, columns)


def found_shapes(
    results: Sequence[dict[str, Any]], size: tuple[int, int], *, least: float, false: Sequence[bool] | None = None
) -> list[Shape]:
    """What was found in a picture of `size` (H, W), see `coco.results`, with scores from `least` on.

    false: which of the results are known to be wrong.
    """
    found = []
    for k, row in enumerate(results):
        if row["score"] >= least:
            x, y, w, h = row["bbox"]
            mask = reduced(row["segmentation"], size) if "segmentation" in row else None
            faulty = bool(false is not None and false[k])
            found.append(Shape((x, y, x + w, y + h), row["category_id"] - 1, row["score"], mask, faulty))
    return found


def true_shapes(objects: Objects, *, missed: Sequence[bool] | None = None) -> list[Shape]:
    """The truth about a picture. missed: which of the objects were not found."""
    found = []
    for k, box in enumerate(objects.boxes.tolist()):
        mask = None if objects.segmentations is None else reduced(objects.segmentations[k], objects.size)
        faulty, crowd = bool(missed is not None and missed[k]), bool(objects.crowd[k])
        found.append(Shape(box, int(objects.labels[k]), None, mask, faulty and not crowd, crowd))
    return found


def draw_segments(picture: Image.Image, mask: np.ndarray, classes: Sequence[str], *, edge: int = 1280) -> Image.Image:
    """The picture with its pixels' classes: translucent colours, white borders, names where there is room.

    mask: integers [h, w] of any size with the picture's aspect; 255 is hatched grey, a class named "background" stays
    clear. edge: pixels of the longer side at most.
    """
    picture = _resized(picture, edge)
    large = _enlarged(picture)
    labels, line = _smooth(mask, large.size), _line(picture)
    clear = [k for k, name in enumerate(classes) if is_background(name)]
    table = np.array([*map(colour, range(IGNORED)), GREY], dtype=np.uint8)
    strength = np.where(np.isin(labels, clear), 0, FILL)
    strength[labels == IGNORED] = np.where(_stripes(labels.shape, line), 0.85, 0.4)[labels == IGNORED]
    large = _blend(large, table[labels], strength)
    large = _blend(large, np.full(3, 255), 0.7 * _borders(labels))
    drawn = large.resize(picture.size, Image.Resampling.BOX)
    written = Labels(drawn)
    present, counts = np.unique(labels, return_counts=True)
    for label in present[np.argsort(-counts)].tolist():
        if label < len(classes) and label not in clear:
            text = Text(classes[label], font_size(max(drawn.size)), most=18)
            x, y, room = (value / FINE for value in _heart(labels == label))
            if room > 0.7 * text.height and room > 0.3 * text.width:
                written.put(text, colour(label), [(x - text.width / 2, y - text.height / 2)])
    return drawn


def draw_objects(
    picture: Image.Image, shapes: Sequence[Shape], classes: Sequence[str], *, edge: int = 1280, boxes: bool = True
) -> Image.Image:
    """The picture with its objects: boxes, translucent outlined masks, and labels where they hide no other label.

    edge: pixels of the longer side at most. Where there is one class only, labels tell the score alone. Objects of one
    class that overlap have shades of its colour. boxes: whether these are drawn.
    """
    given = picture.size
    picture = _resized(picture, edge)
    ratio = np.array([picture.width / given[0], picture.height / given[1]] * 2)
    large, line = _enlarged(picture), _line(picture)
    order = sorted(shapes, key=lambda shape: (not shape.crowd, shape.score or 0.0))  # what is surest lies on top
    order = _told_apart(order)
    large = _paint(large, order, ratio * FINE, line)
    pen = ImageDraw.Draw(large)
    for shape in order:
        if boxes and not shape.crowd:
            _frame(pen, np.asarray(shape.box) * ratio * FINE, shape, line)
    drawn = large.resize(picture.size, Image.Resampling.BOX)
    written, size = Labels(drawn), font_size(max(drawn.size))
    texts = [_texts(shape, classes, size) for shape in order]
    room = 0.08 * drawn.width * drawn.height  # where names would hide more than that, the colours must tell them
    named = len(classes) > 1 and sum(text.width * text.height for text, _ in texts) < room
    for shape, (long, short) in zip(reversed(order), reversed(texts), strict=True):
        text = long if named or shape.crowd else short
        if text.text:
            written.put(text, shape.tint, around(np.asarray(shape.box) * ratio, text))
    return drawn


def beside(
    panels: Mapping[str, Image.Image], labels: Iterable[int], classes: Sequence[str], *, ignored: bool = False
) -> Image.Image:
    """Pictures of one size by their titles, side by side on white, over a legend of the classes `labels`.

    ignored: the legend has the hatched grey of pixels without a class.
    """
    first = next(iter(panels.values()))
    size, gap = font_size(max(first.size)), max(6, max(first.size) // 60)
    top = 2 * size if any(panels) else gap
    width = len(panels) * (first.width + gap) + gap
    below = _legend(labels, classes, width, size, ignored)
    whole = Image.new("RGB", (width, top + first.height + below.height), "white")
    whole.paste(below, (0, top + first.height))
    for k, (title, image) in enumerate(panels.items()):
        x = gap + k * (first.width + gap)
        Text(title, size).draw(ImageDraw.Draw(whole), x, top / 2)
        whole.paste(image, (x, top))
    return whole


def _legend(labels: Iterable[int], classes: Sequence[str], width: int, size: int, ignored: bool) -> Image.Image:
    """A strip with a swatch and a name for each class, in letters of `size`."""
    entries = [(classes[k], colour(k)) for k in sorted(set(labels)) if not is_background(classes[k])]
    texts = [(Text(name, size), tint) for name, tint in [*entries, *([("ignored", GREY)] if ignored else [])]]
    height = round(size * 1.1)
    places, x, row = [], height // 2, 0
    for text, _ in texts:
        wide = text.width + 3 * height
        if x > height and x + wide > width:
            x, row = height // 2, row + 1
        places.append((x, round(height * (0.75 + 1.6 * row))))
        x += wide
    strip = Image.new("RGB", (width, round(height * (1.6 * row + 2.5)) if texts else height // 2), "white")
    pen = ImageDraw.Draw(strip)
    for (left, top), (text, tint) in zip(places, texts, strict=True):
        pen.rounded_rectangle((left, top, left + height, top + height), height // 5, fill=tint)
        if tint == GREY:
            hatch = _stripes((height + 1, height + 1), max(2, height // 5))
            strip.paste((200, 200, 200), (left, top), Image.fromarray(hatch.astype(np.uint8) * 255))
        text.draw(pen, left + height * 1.4, top + height / 2)
    return strip


# --- what the drawings are made of --------------------------------------------------------------------------------


def _told_apart(shapes: Sequence[Shape]) -> list[Shape]:
    """The same shapes, those of one class whose boxes overlap in shades of their own; the last of them in the first."""
    done: list[Shape] = []
    for shape in reversed(shapes):
        (x0, y0, x1, y1) = shape.box
        taken = {
            other.shade
            for other in done
            if other.label == shape.label
            and min(x1, other.box[2]) > max(x0, other.box[0])
            and min(y1, other.box[3]) > max(y0, other.box[1])
        }
        done.append(replace(shape, shade=next(k for k in range(len(shapes)) if k not in taken)))
    return done[::-1]


def _resized(picture: Image.Image, edge: int) -> Image.Image:
    """RGB; reduced to `edge` pixels a side, or enlarged where labels could not be read."""
    longest = max(picture.size)
    goal = min(max(longest, SMALLEST), edge)
    size = max(1, round(picture.width * goal / longest)), max(1, round(picture.height * goal / longest))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width * FINE, picture.height * FINE), Image.Resampling.BICUBIC)


def _line(picture: Image.Image) -> int:
    """The width of a line, in pixels of the enlarged picture."""
    return max(3, round(FINE * max(picture.size) / 270))


def _smooth(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class indices of another size (W, H), uint8: each pixel has the class that covers most of it."""
    step = max(1, min(mask.shape[1] // size[0], mask.shape[0] // size[1]))
    mask = mask[step // 2 :: step, step // 2 :: step]
    best, labels = np.zeros(size[::-1], np.uint8), np.zeros(size[::-1], np.uint8)
    for label in np.unique(mask).tolist():
        here = Image.fromarray(((mask == label) * 255).astype(np.uint8))
        share = np.asarray(here.resize(size, Image.Resampling.BILINEAR))
        labels[share > best] = label
        best = np.maximum(best, share)
    return labels


def _stripes(shape: tuple[int, ...], line: int) -> np.ndarray:
    """Slanting stripes of two lines' width, bool [H, W]."""
    y, x = np.indices(shape)
    return (x + y) // (2 * line) % 2 == 0


def _blend(image: Image.Image, colours: np.ndarray, strength: np.ndarray) -> Image.Image:
    """Colours uint8 [H, W, 3] or [3] over the image, hiding it by `strength` (0..1, [H, W])."""
    below = np.asarray(image, dtype=np.float32)
    over = below + (colours - below) * strength[..., None].astype(np.float32)
    return Image.fromarray(np.round(over).astype(np.uint8))


def _borders(labels: np.ndarray) -> np.ndarray:
    """The pixels, bool [H, W], that lie beside one of another class."""
    found = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    found[:, :-1] |= across
    found[:, 1:] |= across
    found[:-1] |= down
    found[1:] |= down
    return found


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask, bool [H, W], that lie within `width` of one outside it."""
    inner = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(width))  # as fast at any width
    return mask & (np.asarray(inner) < 255)


def _heart(mask: np.ndarray, edge: int = 96) -> tuple[float, float, float]:
    """The middle (x, y) of where a mask, bool [H, W], is thickest, and how far it reaches from there, in pixels."""
    H, W = mask.shape
    scale = max(H, W) / edge
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image = image.resize((max(1, round(W / scale)), max(1, round(H / scale))), Image.Resampling.BOX)
    rest = np.pad(np.asarray(image) > 127, 1)
    last, steps = rest, 0
    while rest.any():
        last, steps = rest, steps + 1
        rest = np.asarray(Image.fromarray(rest.astype(np.uint8)).filter(ImageFilter.MinFilter(3))) > 0
    places = np.argwhere(last)
    if not steps:
        return 0.0, 0.0, 0.0
    y, x = places[np.abs(places - np.median(places, axis=0)).sum(axis=1).argmin()]
    return (float(x) - 0.5) * scale, (float(y) - 0.5) * scale, steps * scale


def _paint(image: Image.Image, shapes: Sequence[Shape], ratio: np.ndarray, line: int) -> Image.Image:
    """Masks of objects, each with its outline, and crowds; a later one lies over those before it."""
    colours, strength = np.zeros((image.height, image.width, 3), np.uint8), np.zeros((image.height, image.width))
    stripes = np.where(_stripes(strength.shape, line), 0.85, 0.4)
    for shape in shapes:
        if shape.mask is not None:
            part, there = _placed(shape.mask, image.size, line + 1)
        elif shape.crowd:
            x0, y0, x1, y1 = np.round(np.asarray(shape.box) * ratio).astype(int).tolist()
            part = slice(max(0, y0), max(0, y1)), slice(max(0, x0), max(0, x1))
            there = np.ones(strength[part].shape, bool)
        else:
            continue
        colours[part][there] = shape.tint
        strength[part][there] = stripes[part][there] if shape.crowd else FILL_OBJECT
        strength[part][_rim(there, line)] = 0.95
    return _blend(image, colours, strength)


def _placed(mask: np.ndarray, size: tuple[int, int], margin: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a mask lies in a picture of `size` (W, H), with a margin, and the mask there, smoothly enlarged."""
    sides = []
    for axis, goal in ((0, size[0]), (1, size[1])):
        there = np.flatnonzero(mask.any(axis=axis))
        scale = goal / mask.shape[1 - axis]
        first, last = (int(there[0] * scale), math.ceil((there[-1] + 1) * scale)) if len(there) else (0, 1)
        start, end = max(0, first - margin), min(goal, last + margin)
        sides.append((start, end, start / scale, min(end / scale, mask.shape[1 - axis])))
    (left, right, x0, x1), (top, bottom, y0, y1) = sides
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    part = whole.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    return (slice(top, bottom), slice(left, right)), np.asarray(part) > 127


def _texts(shape: Shape, classes: Sequence[str], size: int) -> tuple[Text, Text]:
    """The label of an object with its class, and without."""
    score = "" if shape.score is None else f"{shape.score:.2f}"
    name = "crowd" if shape.crowd else classes[shape.label]
    return Text(f"{name[:18]} {score}", size), Text(score, size)


def _frame(pen: ImageDraw.ImageDraw, box: np.ndarray, shape: Shape, line: int) -> None:
    """The box of an object, darkly rimmed so that it shows on any ground; dashed where it is faulty."""
    x0, y0, x1, y1 = np.round(box).tolist()
    wide = max(3, line // 2) if shape.mask is not None else line
    for rim, tint in ((1, (20, 20, 20)), (0, shape.tint)):
        # An odd number of dashes and gaps along a side, so that every corner is drawn.
        across, down = (round(length / (4 * line)) // 2 * 2 + 1 if shape.faulty else 1 for length in (x1 - x0, y1 - y0))
        for k in range(0, across, 2):
            a, b = x0 + (x1 - x0) * k / across, x0 + (x1 - x0) * (k + 1) / across
            for y in (y0, y1 - wide):
                pen.rectangle((a - rim, y - rim, max(a, b) + rim, y + wide + rim), fill=tint)
        for k in range(0, down, 2):
            a, b = y0 + (y1 - y0) * k / down, y0 + (y1 - y0) * (k + 1) / down
            for x in (x0, x1 - wide):
                pen.rectangle((x - rim, a - rim, x + wide + rim, max(a, b) + rim), fill=tint)
