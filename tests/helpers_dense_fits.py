"""Tiny data sets of the dense tasks, and words for a fit on them."""

import json

import numpy as np
from helpers_cli import make_backbone
from PIL import Image

from vitgraft import heads

CLASSES = ("box", "disc")
RCNN = {"width": 8, "hidden": 12, "samples": 16, "proposals": 20}
QUERY = {"queries": 12, "blocks": 2, "mlp": 16}
EOMT = {"queries": 12, "blocks": 2}
SMALL = {
    ("segment", "upernet"): {"width": 16, "auxiliary_width": 8},
    ("segment", "fpn"): {"neck": 16, "width": 32},
    ("segment", "linear"): {},
    ("segment", "query"): QUERY,
    ("segment", "eomt"): EOMT,
    ("detect", "faster"): RCNN,
    ("detect", "cascade"): RCNN,
    ("instance", "mask"): RCNN,
    ("instance", "cascade-mask"): RCNN,
    ("instance", "query"): QUERY,
    ("instance", "eomt"): EOMT,
    ("panoptic", "query"): {**QUERY, "things": [0]},
    ("panoptic", "eomt"): {**EOMT, "things": [0]},
}
DATA = {"segment": "segment", "detect": "objects", "instance": "objects"}


def make_dense_ground(folder):
    """A backbone, and pictures of red boxes and blue discs in the layouts of the three tasks."""
    make_backbone(folder / "vit.safetensors", img_size=32, patch_size=8)
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 3)):
        images, annotations = [], []
        for i in range(n):
            h, w = (40, 56) if i % 2 else (64, 40)
            pixels = rng.normal(120, 10, (h, w, 3))
            mask = np.full((h, w), 255 if i == 0 else 2, dtype=np.uint8)
            y, x = np.mgrid[:h, :w]
            for label in range(2 if i % 3 else 1):
                top, left, side = int(rng.integers(0, h - 20)), int(rng.integers(0, w - 20)), 18
                inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
                if label:
                    inside &= np.hypot(y - top - 9, x - left - 9) < 9
                pixels[inside] = (200, 40, 40) if label == 0 else (40, 40, 200)
                mask[inside] = label
                corners = [left, top, left + side, top, left + side, top + side, left, top + side]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": [left, top, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            for kind in ("segment", "objects"):
                (folder / kind / "images" / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / kind / f"images/{split}/{i}.png")
            (folder / "segment" / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(folder / "segment" / f"masks/{split}/{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "width": w, "height": h})
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "objects" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / "segment" / "classes.txt").write_text("box\ndisc\nground\n")
    return folder


def words_of(ground, task, run, *more, head=None):
    """A short fit with a small head, the task's first unless given; a later option wins over an earlier one."""
    words = ["fit", ground / DATA[task], "--backbone", ground / "vit.safetensors", "--out", run, "--epochs", 2]
    words += ["--image-size", 64, "--batch-size", 3, "--workers", 0, "--task", task, "--quiet"]
    if head:
        words += ["--head", head]
    options = [f"{name}={value}" for name, value in SMALL[task, head or heads.names(task)[0]].items()]
    return [*words, *(["--head-options", *options] if options else []), *more]
