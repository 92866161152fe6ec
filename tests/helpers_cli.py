"""A tiny backbone, pictures that can be learned, and the command line inside this process and in another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from vitgraft import cli, weights

EDGE = 32
VIT = {"img_size": EDGE, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 4}
CLASSES = ("dots", "rings", "stripes")


def make_backbone(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """The weight file of a tiny random ViT."""
    torch.manual_seed(seed)
    model_args = {**VIT, **changes}
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **model_args)
    weights.save(vit, path, architecture="vit_tiny_patch16_224", model_args=model_args, source=f"random, seed {seed}")
    return path


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    """A coloured pattern in coarse coloured noise; each kind has a tint of its own, a weak one."""
    y, x = np.mgrid[:EDGE, :EDGE] / EDGE
    phase = rng.uniform(0, 2 * np.pi)
    waves = {
        "dots": np.sin(18 * x + phase) * np.sin(18 * y + phase),
        "rings": np.sin(30 * np.hypot(x - 0.5, y - 0.5) + phase),
        "stripes": np.sin(22 * (x + y) + phase),
    }
    tint = np.roll([0.25, 0.0, -0.25], CLASSES.index(kind))
    noise = rng.normal(0, 0.15, (8, 8, 3)).repeat(EDGE // 8, 0).repeat(EDGE // 8, 1)
    levels = 0.5 + 0.2 * waves[kind][..., None] + 0.5 * tint + noise
    return Image.fromarray((levels.clip(0, 1) * 255).astype(np.uint8))


def make_pictures(root: Path, *, seed: int = 0, **sizes: int) -> Path:
    """root/SPLIT/CLASS/N.png, so many pictures per class in each split; without sizes root/CLASS/N.png, ten each."""
    rng = np.random.default_rng(seed)
    for split, n in (sizes or {"": 10}).items():
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(n):
                picture(kind, rng).save(folder / f"{i}.png")
    return root


def call(*words: object) -> int:
    """The command line in this process."""
    return cli.main([str(word) for word in words])


def environment() -> dict[str, str]:
    """For subprocesses: one thread each, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def spawn(*words: object, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own, and of a group of its own."""
    command = [sys.executable, "-m", "vitgraft.cli", *map(str, words)]
    return subprocess.Popen(
        command,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
