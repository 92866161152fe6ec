"""A tiny backbone, pictures that can be learned, and the command line inside this process and in another one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vitgraft.adapters import file as adapter
from vitgraft.backbones import weights
from vitgraft.commands import cli

EDGE = 32
VIT = {"img_size": EDGE, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 4}
CLASSES = ("dots", "rings", "stripes")


def make_backbone(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """The weight file of a tiny random ViT."""
    model_args = {**VIT, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **model_args)
    weights.save(vit, path, architecture="vit_tiny_patch16_224", model_args=model_args, source=f"random, seed {seed}")
    return path


def picture(kind: str, rng: np.random.Generator, tint: float = 0.125) -> Image.Image:
    """A pattern in coarse coloured noise; each kind has a tint of its own."""
    y, x = np.mgrid[:EDGE, :EDGE] / EDGE
    phase = rng.uniform(0, 2 * np.pi)
    waves = {
        "dots": np.sin(18 * x + phase) * np.sin(18 * y + phase),
        "rings": np.sin(30 * np.hypot(x - 0.5, y - 0.5) + phase),
        "stripes": np.sin(22 * (x + y) + phase),
    }
    colour = np.roll([tint, 0.0, -tint], CLASSES.index(kind))
    noise = rng.normal(0, 0.15, (8, 8, 3)).repeat(EDGE // 8, 0).repeat(EDGE // 8, 1)
    levels = 0.5 + 0.2 * waves[kind][..., None] + colour + noise
    return Image.fromarray((levels.clip(0, 1) * 255).astype(np.uint8))


def make_pictures(root: Path, *, tint: float = 0.125, **sizes: int) -> Path:
    """root/SPLIT/CLASS/N.png, so many pictures per class in each split; without sizes root/CLASS/N.png, ten each."""
    rng = np.random.default_rng(0)
    for split, n in (sizes or {"": 10}).items():
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(n):
                picture(kind, rng, tint).save(folder / f"{i}.png")
    return root


class Ground(NamedTuple):
    """What every test stands on: a backbone, pictures that are easy to tell apart, and some that are hard."""

    backbone: Path
    easy: Path
    hard: Path


def make_ground(folder: Path) -> Ground:
    return Ground(
        make_backbone(folder / "vit.safetensors"),
        make_pictures(folder / "easy", train=12, val=6, test=6),
        make_pictures(folder / "hard", tint=0.02, train=12, val=10, test=10),
    )


def call(*words: object) -> int:
    """The command line in this process."""
    return cli.main([str(word) for word in words])


def fit_words(ground: Ground, run: Path, *more: object, data: Path | None = None) -> list[str]:
    """A short fit; a later option wins over an earlier one."""
    words = ["fit", data or ground.easy, "--backbone", ground.backbone, "--out", run, "--batch-size", 12]
    words += ["--epochs", 3, "--workers", 0, "--quiet", *more]
    return [str(word) for word in words]


def fit(ground: Ground, run: Path, *more: object, data: Path | None = None) -> Path:
    assert call(*fit_words(ground, run, *more, data=data)) == 0
    return run


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def adapter_of(run: Path) -> dict[str, Tensor]:
    return adapter.read(run / "adapter.safetensors")[0]


def checkpoint_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def environment() -> dict[str, str]:
    """For subprocesses: one thread each, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# Other processes, forked from a server that has imported torch already: seconds less for each.

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["vitgraft.training.fitting", "vitgraft.pages.catalogue"])


class Other(NamedTuple):
    """The command line in another process."""

    process: BaseProcess
    log: Path  # its standard error

    def ends(self, seconds: float = 120) -> int:
        """Waits; gives the exit code, -9 after a kill."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text()


def start(
    words: list[str], log: Path, prepare: Callable[..., None] | None = None, *given: Any, **environment: str
) -> Other:
    """Starts the command line in another process, after `prepare(*given)` there."""
    process = _context.Process(target=_run, args=(words, log, prepare, given, environment))
    process.start()
    return Other(process, log)


def _run(words: list[str], log: Path, prepare: Callable | None, given: tuple, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in its background ignores it
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    if prepare:
        prepare(*given)
    sys.exit(cli.main(words))


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder in a folder, a file with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def has(said: str, *parts: Any) -> None:
    """All parts are in what was said."""
    missing = [part for part in parts if str(part) not in said]
    assert not missing, f"{missing} not in {said!r}"
