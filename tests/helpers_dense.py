"""Small data sets for the dense tasks, written to disk as a user would have them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitgraft.data.augment import Augment
from vitgraft.data.batch import Batch
from vitgraft.data.dense import DensePictures
from vitgraft.data.preprocess import Preprocess
from vitgraft.data.recognise import read_dense, survey
from vitgraft.data.truth import Problem

CANVAS = Preprocess(size=(64, 96), mean=(0.5, 0.25, 0.75), std=(0.5, 0.5, 0.5))


def noise(path: Path, size: tuple[int, int] = (40, 60), seed: int = 0) -> Path:
    """A picture of `size` (h, w) with a different colour in each of its 4 x 4 parts, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize(size[::-1], Image.Resampling.NEAREST).save(path)
    return path


def index_mask(path: Path, values: np.ndarray | int = 0, size: tuple[int, int] = (40, 60), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.broadcast_to(np.asarray(values, dtype=np.uint8), size).copy())
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    image.save(path)
    return path


def segment_set(root: Path, classes: int = 3, count: int = 3) -> Path:
    """train and val, each with `count` pictures of different sizes and their masks."""
    for split in ("train", "val"):
        for i in range(count):
            size = (40 + 3 * i, 60 - 5 * i)
            noise(root / "images" / split / f"{i}.png", size, seed=i)
            values = np.random.default_rng(i).choice([*range(classes), 255], size)
            index_mask(root / "masks" / split / f"{i}.png", values, size)
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(classes)))
    return root


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(**changes: Any) -> dict[str, Any]:
    """A sound annotation file of three pictures 60 wide and 40 high; the third shows no object."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (1, 2, 3)]
    boxes = {1: (1, 1, [5, 6, 20, 10]), 2: (1, 7, [30, 2, 12.5, 30]), 3: (2, 1, [0, 0, 60, 40])}
    annotations = [
        {"id": key, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3] / 2, "iscrowd": 0}
        | {"segmentation": polygon(*box)}
        for key, (image, category, box) in boxes.items()
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 1, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def annotation(**changes: Any) -> dict[str, Any]:
    """The sound file with its first annotation changed."""
    content = coco()
    content["annotations"][0] |= changes
    return content


def object_set(root: Path, content: dict[str, Any] | None = None, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for i in (1, 2, 3):
            noise(root / "images" / split / f"{i}.png", seed=i)
        (root / f"instances_{split}.json").write_text(json.dumps(content if content is not None else coco()))
    return root


def problems_of(root: Path, task: str) -> list[Problem]:
    """What `survey` finds; each problem is one line of a file that is there, and says what to do."""
    found = survey(root, task)[1]
    for problem in found:
        assert "\n" not in str(problem)
        assert "; " in problem.sentence
        assert str(problem.file) in str(problem)
    return found


def shared(name: str) -> Path:
    """A set of real pictures, or a skip."""
    root = Path(os.environ.get("VITGRAFT_SHARED", "")) / "data" / name
    if not os.environ.get("VITGRAFT_SHARED") or not root.is_dir():
        pytest.skip(f"data/{name} is not in the folder that VITGRAFT_SHARED names")
    return root


PANOPTIC_SIZE = (40, 60)
CATEGORIES = [
    {"id": 7, "name": "person", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 4, "name": "car", "isthing": 1},
]
# segment id -> category and place; the rest of a picture is of none
SEGMENTS = {
    300: (7, np.s_[5:20, 3:11]),
    70_000: (7, np.s_[18:30, 40:52]),
    17: (9, np.s_[0:5, :]),
    5: (4, np.s_[30:40, 0:20]),
}


def ids_of(segments=SEGMENTS):
    ids = np.zeros(PANOPTIC_SIZE, dtype=np.int64)
    for number, (_, place) in segments.items():
        ids[place] = number
    return ids


def write_png(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(path)


def panoptic_set(root, splits=("train2017", "val2017"), change=lambda content: content, ids=None):
    """As COCO is distributed: train2017/, annotations/panoptic_train2017.json and annotations/panoptic_train2017/."""
    for split in splits:
        images, annotations = [], []
        for k in (1, 2):
            noise(root / split / f"{k:012}.jpg", PANOPTIC_SIZE, seed=k)
            images.append({"id": k, "file_name": f"{k:012}.jpg", "height": PANOPTIC_SIZE[0], "width": PANOPTIC_SIZE[1]})
            write_png(root / "annotations" / f"panoptic_{split}" / f"{k:012}.png", ids_of() if ids is None else ids)
            info = [{"id": n, "category_id": c, "iscrowd": int(n == 5)} for n, (c, _) in SEGMENTS.items()]
            annotations.append({"image_id": k, "file_name": f"{k:012}.png", "segments_info": info})
        content = change({"images": images, "annotations": annotations, "categories": CATEGORIES})
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return root


def pictures(root: Path, task: str, split: str = "train", **options: object) -> DensePictures:
    data = read_dense(root, task)
    arguments = {"workers": 0, "augment": Augment(seed=3)} | options
    return DensePictures(data.split(split), CANVAS, task=task, classes=len(data.classes), **arguments)  # type: ignore[arg-type]


def tensors(batch: Batch) -> Iterator[torch.Tensor]:
    yield batch.pixels
    yield batch.indices
    yield torch.tensor(batch.sizes)
    for target in batch.targets:
        yield from target.values() if isinstance(target, dict) else [target]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = [list(zip(tensors(a), tensors(b), strict=True)) for a, b in zip(one, other, strict=True)]
    return all(a.shape == b.shape and torch.equal(a, b) for pair in pairs for a, b in pair)
