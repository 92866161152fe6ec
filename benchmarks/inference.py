"""The latency of a forward pass against plain timm: each method unmerged and merged, and T tasks on one picture.

    python -m benchmarks.inference --batch-size 1 8 --repeat 20 --json inference.json

A pass is taken without autograd, on random pictures that are on the device already. Every contender takes one in
turn, `--repeat` times after two that are not counted; a ratio is the median of the ratios to timm's pass of the same
turn. The T tasks are classifiers of their own (`--task-method`) on one backbone: where gradients do not cross it, one
pass through it serves them all, elsewhere each takes its own. What a method trains is moved off its start first, as
training would.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitgraft import Backbone, Model
from vitgraft.adapters.merge import merge

from . import contenders, measure

Passes = dict[str, Callable[[Tensor], Any]]
TIMM, PEFT = "timm", "peft-lora"


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_base_patch16_224", repeat=20)
    known = contenders.names()
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=measure.at_least_one, nargs="+", default=[1, 8])
    parser.add_argument("--method", action=measure.Names, known=[*known, PEFT], default=[*known, PEFT])
    parser.add_argument("--tasks", type=measure.at_least_one, nargs="*", default=[1, 2, 5, 10, 50])
    parser.add_argument("--task-method", action=measure.Names, known=known, default=["hst-detached"])
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    given = parser.parse_args(words)
    contenders.check(given.model, given.image_size)

    tasks = {f"{name}, T = {T}": (name, T) for name in given.task_method for T in given.tasks}
    passes = all_passes(given, tasks)
    seconds = {}
    for batch_size in given.batch_size:
        images = contenders.random_images(batch_size, given.image_size)
        work = {name: measure.timed(contenders.inference(one, images, given.precision)) for name, one in passes.items()}
        seconds[batch_size] = measure.turns(work, given.repeat)
        print(f"\nBatch {batch_size}\n\n{table(seconds[batch_size], tasks)}", flush=True)
    measure.write(given, seconds=seconds)


def all_passes(given: argparse.Namespace, tasks: dict[str, tuple[str, int]]) -> Passes:
    """Every contender, by its name in the table, as a function of images [B, 3, H, W]."""
    backbone = contenders.random_backbone(given.model, given.image_size).to(contenders.DEVICE)
    found: Passes = {TIMM: plain(given)}
    for name in given.method:
        if name == PEFT:
            found[name] = contenders.peft_lora(plain(given)).eval()
            found[f"{name} merged"] = contenders.peft_lora(plain(given)).merge_and_unload().eval()
            continue
        model = found[name] = trained(name, backbone)
        if model.method.mergeable:
            found[f"{name} merged"] = merge(model).vit
    for name in given.task_method:
        models = [trained(name, backbone, seed) for seed in range(max(given.tasks, default=0))]
        for label, (other, T) in tasks.items():
            if other == name:
                found[label] = contenders.several(models[:T])
    return found


def plain(given: argparse.Namespace) -> Any:
    return contenders.plain(given.model, given.image_size).to(contenders.DEVICE).eval()


def trained(name: str, backbone: Backbone, seed: int = 0) -> Model:
    """A model off its start, where many methods are the identity, and merge to nothing."""
    model = contenders.ours(name, backbone, seed).to(contenders.DEVICE).eval()
    with torch.no_grad():
        for tensor in model.trained().values():
            tensor.add_(torch.randn_like(tensor), alpha=1e-3)
    return model


def table(seconds: dict[str, list[float]], tasks: dict[str, tuple[str, int]]) -> str:
    """Markdown: median milliseconds a pass and the ratio to timm's; of T tasks also what each adds to one pass."""
    rows = []
    for name, mine in seconds.items():
        ratio = measure.ratio(mine, seconds[TIMM])
        each = f"{(ratio - 1) / tasks[name][1]:.3f}" if name in tasks else ""
        rows.append([name, f"{1e3 * statistics.median(mine):.1f}", f"{ratio:.3f}", each])
    return measure.table(["", "ms a pass", "/ timm", "(ratio - 1) / T"], rows)


if __name__ == "__main__":
    measure.run(main)
