"""A training picture as it is drawn: a view on one, on four in a mosaic, or with objects of another pasted in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import torch
from PIL import Image
from torch import Tensor

from .augment import Augment, Seen, Truth, boxes_of
from .preprocess import Preprocess

MIDDLE = 0.25, 0.75  # where four pictures may meet, in shares of the canvas
Look = Callable[[int, tuple[int, int]], Seen]  # a picture's index and a canvas -> a random view on it


def drawn(
    opened: Callable[[int], tuple[Image.Image, Truth]],
    index: int,
    among: int,
    augment: Augment,
    preprocess: Preprocess,
    masks: bool,
    key: str,
) -> Seen:
    """The picture `index`, one of so many that can be `opened`, as `augment` shows it, by its seed and `key` alone.

    `preprocess.size` is the canvas. `masks`: whether objects have masks in the target.
    """
    canvas = preprocess.size
    random = Random(f"{augment.seed}/{key}")
    mixing = Random(f"{augment.seed}/{key}/mixed")  # its own, so that what is not mixed is seen as it would be without

    def look(index: int, part: tuple[int, int]) -> Seen:
        image, truth = opened(index)
        view = augment.view(truth, part, random, part_of=canvas)
        return view.seen(image, truth, preprocess, masks, partial(augment.colours, random=random))

    if mixing.random() < augment.mosaic:
        others = [mixing.randrange(among) for _ in range(3)]
        found = mosaic(look, [index, *others], canvas, mixing)
    else:
        found = look(index, canvas)
    if mixing.random() < augment.paste:
        found = pasted(found, look(mixing.randrange(among), canvas), mixing)
    return found


def mosaic(look: Look, indices: list[int], canvas: tuple[int, int], random: Random) -> Seen:
    """Four pictures around a random place of the canvas, each as large as it would be alone, cut to its quarter.

    Mosaic: Bochkovskiy et al. 2020, arXiv 2004.10934, section 3.3.
    """
    (H, W), (y, x) = canvas, (round(side * random.uniform(*MIDDLE)) for side in canvas)
    corners = [(0, 0), (0, x), (y, 0), (y, x)]
    quarters = [(y, x), (y, W - x), (H - y, x), (H - y, W - x)]
    seen = [look(index, quarter) for index, quarter in zip(indices, quarters, strict=True)]
    pixels = _joined([pixels for pixels, _, _ in seen])
    if isinstance(seen[0][2], Tensor):
        return pixels, canvas, _joined([target for _, _, target in seen])
    shifted = []
    for (top, left), (_, _, target) in zip(corners, seen, strict=True):
        moved = {**target, "boxes": target["boxes"] + torch.tensor([left, top, left, top])}
        if "masks" in target:
            h, w = target["masks"].shape[1:]
            whole = target["masks"].new_zeros(len(target["masks"]), H, W)
            whole[:, top : top + h, left : left + w] = target["masks"]
            moved["masks"] = whole
        shifted.append(moved)
    return pixels, canvas, {name: torch.cat([each[name] for each in shifted]) for name in shifted[0]}


def _joined(quarters: list[Tensor]) -> Tensor:
    """Two above two."""
    return torch.cat([torch.cat(quarters[:2], -1), torch.cat(quarters[2:], -1)], -2)


def pasted(onto: Seen, source: Seen, random: Random) -> Seen:
    """A random number of the source's objects, by their masks, in front of what is there.

    An object of which they hide a part has the mask and the box of what is left; one that they hide wholly is left out
    (Copy-Paste: Ghiasi et al. 2021, arXiv 2012.07177, section 3).
    """
    (pixels, size, there), (new_pixels, _, offered) = onto, source
    chosen = random.sample(range(len(offered["labels"])), random.randint(0, len(offered["labels"])))
    if not chosen:
        return onto
    new = {name: of[chosen] for name, of in offered.items()}
    h, w = size
    new["masks"][:, h:], new["masks"][:, :, w:] = 0, 0  # nothing lies in the padding
    front = new["masks"].amax(0)
    left = there["masks"] * (1 - front)
    hidden = (left != there["masks"]).flatten(1).any(1)
    there = {**there, "masks": left, "boxes": there["boxes"].clone()}
    both = {name: torch.cat([there[name], new[name]]) for name in there}
    found = both["masks"].flatten(1).amax(1) > 0
    changed = torch.cat([hidden, torch.ones(len(chosen), dtype=torch.bool)])[found]
    both = {name: of[found] for name, of in both.items()}
    both["boxes"][changed] = boxes_of(both["masks"][changed])
    return torch.where(front.bool(), new_pixels, pixels), size, both
