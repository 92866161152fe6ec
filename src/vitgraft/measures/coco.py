"""Predictions and truth in the formats of COCO's tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.segmentations import encode

if TYPE_CHECKING:
    from ..data.objects import Objects

Result = dict[str, Any]  # one found object in COCO's results format


def results(
    prediction: dict[str, Tensor], image_id: int, shape: tuple[int, int], size: tuple[int, int]
) -> list[Result]:
    """What a head found in one picture, in COCO's results format and in pixels of the picture's file.

    prediction: boxes float [n, 4] xyxy, labels int64 [n] from 0, scores float [n] and, where there are masks,
    masks float [n, 1, h, w] probabilities, all in pixels of the picture as the model saw it. shape: (h, w) of that;
    size: (H, W) of the file. A class's `category_id` is its label + 1; a mask is where the probability is 0.5 or more.
    """
    (h, w), (H, W) = shape, size
    found: list[Result] = []
    scale = torch.tensor([W / w, H / h, W / w, H / h], dtype=torch.float64)
    boxes = prediction["boxes"].double().cpu() * scale
    boxes[:, 2:] -= boxes[:, :2]
    labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
    for box, label, score in zip(boxes.tolist(), labels, scores, strict=True):
        found.append({"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score})
    if "masks" in prediction:
        for row, mask in zip(found, prediction["masks"], strict=True):  # one at a time: a large picture's fill memory
            whole = F.interpolate(mask[None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
            row["segmentation"] = encode((whole >= 0.5).cpu().numpy())
    return found


def dataset(truth: Sequence[Objects], classes: Sequence[str], masks: bool) -> dict[str, Any]:
    """The truth as a COCO file holds it."""
    annotations = [
        {"id": number, "image_id": picture + 1, **annotation}
        for number, (picture, annotation) in enumerate(_annotations(truth, masks), start=1)
    ]
    images = [{"id": i, "height": objects.size[0], "width": objects.size[1]} for i, objects in enumerate(truth, 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations(truth: Sequence[Objects], masks: bool) -> Iterator[tuple[int, Result]]:
    """(picture, annotation) of every object; COCO's areas are those of the file, for boxes too."""
    for picture, objects in enumerate(truth):
        segmentations = (objects.segmentations if masks else None) or [None] * len(objects)
        for i, (box, segmentation) in enumerate(zip(xywh(objects), segmentations, strict=True)):
            annotation: Result = {
                "category_id": int(objects.labels[i]) + 1,
                "bbox": box,
                "area": float(objects.area[i]),
                "iscrowd": int(objects.crowd[i]),
                "segmentation": segmentation,
            }
            yield picture, {key: value for key, value in annotation.items() if value is not None}


def xywh(objects: Objects) -> list[list[float]]:
    """The boxes as COCO writes them."""
    boxes = objects.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.tolist()
