"""Object detection: a box, a class and a score for every object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_area

from ..common.settings import Settings
from ..data import Batch, Preprocess, open_picture
from ..data.dense import DensePictures
from ..features import Activations
from ..heads.detect import Record
from ..measures.average_precision import DetectScores
from ..measures.coco import results
from ..measures.prediction import Prediction
from ..model import Model
from ..pages.drawing import draw_objects, found_shapes
from .base import Answer
from .dense import DenseTask, each_picture, tiles

SAME = 0.5  # share of its area, or for a whole one IoU, from which an object of a tile is one of another tile
SHOWN = 0.5  # the least score of an object that is drawn, or counted in a line of text


class Detect(DenseTask):
    """COCO's average precision, in the pixels of the picture files."""

    metric = "box AP"
    masks: ClassVar[bool] = False

    def answer(self, settings: Settings, preprocess: Preprocess) -> Answer:
        return partial(tiled, size=preprocess.size) if settings.sliding else super().answer(settings, preprocess)

    def count(self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple) -> DetectScores:
        scores = DetectScores(pictures.split.objects, masks=self.masks)
        for i, found, size in each_picture(answers):
            scores.add(i, found, size)
        return scores

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple
    ) -> Iterator[Prediction]:
        for i, found, size in each_picture(answers):
            yield _prediction(i, str(pictures.paths[i]), results(found, i + 1, size, pictures.sizes[i]), classes)


def tiled(
    model: Model,
    images: Tensor,
    activations: Activations | None,
    sizes: list[tuple[int, int]],
    *,
    size: tuple[int, int],
) -> list[Record]:
    """What is found in images [B, 3, H, W], which are no smaller than a tile: in `tiles` of `size`, and put together.

    An object that lies in several tiles is found in each, in some cut by their edge: of those that are the same, the
    surest that is not cut stays.
    """
    shape = (images.shape[-2], images.shape[-1])
    found: list[list[Record]] = [[] for _ in images]
    for top, left in tiles(shape, size):
        inside = [(min(h - top, size[0]), min(w - left, size[1])) for h, w in sizes]
        there = [b for b, (h, w) in enumerate(inside) if min(h, w) > 0]
        if not there:
            continue
        part = images[there, :, top : top + size[0], left : left + size[1]]
        for b, record in zip(there, model(part, None, None, [inside[b] for b in there]), strict=True):
            found[b].append(_moved(record, (top, left), inside[b], sizes[b]))
    return [_together(each) for each in found]


def _moved(record: Record, corner: tuple[int, int], inside: tuple[int, int], size: tuple[int, int]) -> Record:
    """What was found in a tile at `corner` in the places of its picture of `size`, both inside the padding; with `cut`,
    which boxes end at an edge of the tile that is none of the picture."""
    (top, left), (h, w), boxes = corner, inside, record["boxes"]
    edges = [
        (boxes[:, 0] < 1) & (left > 0),
        (boxes[:, 1] < 1) & (top > 0),
        (boxes[:, 2] > w - 1) & (left + w < size[1]),
        (boxes[:, 3] > h - 1) & (top + h < size[0]),
    ]
    moved = {**record, "boxes": boxes + boxes.new_tensor([left, top, left, top]), "cut": torch.stack(edges).any(0)}
    if "masks" in record:
        around = (left, size[1] - left - w, top, size[0] - top - h)
        moved["masks"] = F.pad(record["masks"][..., :h, :w], around)
    return moved


def _together(parts: list[Record]) -> Record:
    """The objects of all tiles, each once, the surest first."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    cut = whole.pop("cut")
    order = torch.argsort(whole["scores"] - cut.to(whole["scores"].dtype), descending=True)  # those that are cut last
    kept: list[int] = []
    boxes, labels = whole["boxes"].float(), whole["labels"]
    areas = box_area(boxes).clamp(min=1e-6)
    for k in order.tolist():
        others = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
        others = others[labels[others] == labels[k]]
        low, high = torch.maximum(boxes[others, :2], boxes[k, :2]), torch.minimum(boxes[others, 2:], boxes[k, 2:])
        common = (high - low).clamp(min=0).prod(1)
        # A piece of an object lies in it, whatever the share of it that it is.
        share = common / (areas[k] if cut[k] else areas[others] + areas[k] - common)
        if not bool((share > SAME).any()):
            kept.append(k)
    kept.sort(key=lambda k: -float(whole["scores"][k]))
    return {name: tensor[kept] for name, tensor in whole.items()}


def _prediction(i: int, path: str, found: list[dict[str, Any]], classes: tuple[str, ...]) -> Prediction:
    named = [{"picture": path, "category": classes[row["category_id"] - 1], **row} for row in found]
    likely = [f"{row['category']} {row['score']:.0%}" for row in named if row["score"] >= SHOWN]

    def draw() -> Image.Image:
        picture = open_picture(path)
        return draw_objects(picture, found_shapes(found, picture.size[::-1], least=SHOWN), classes)

    return Prediction(i, path, named, ", ".join(likely) or f"nothing with a score of {SHOWN:.0%} or more", draw)
