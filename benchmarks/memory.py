"""What one training step and one prediction take at a picture size: time, bytes kept for backward, peak memory.

    python -m benchmarks.memory --task instance --head mask --method hst --image-size 800 1344 --json memory.json

One contender a process, because the peak is the process's. Random weights, one random picture with a few objects.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from vitgraft import build
from vitgraft.engine import cost

from . import contenders, measure

CLASSES = 80


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch16_224")
    parser.add_argument("--task", default="segment")
    parser.add_argument("--head")
    parser.add_argument("--method", default="hst")
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--image-size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--batch-size", type=measure.at_least_one, default=1)
    given = parser.parse_args(words)

    backbone = contenders.random_backbone(given.model)
    arguments: dict[str, Any] = {"detached": True} if given.detached else {}
    model = build(backbone, given.method, classes=CLASSES, task=given.task, head=given.head, **arguments)
    H, W = given.image_size
    images, targets = torch.randn(given.batch_size, 3, H, W), truth(given.task, CLASSES, given.batch_size, H, W)
    found: dict[str, Any] = {"bytes_kept_for_backward": cost.kept_bytes(model.train(), images, targets)}
    begun = time.perf_counter()
    losses: Any = model(images, targets)
    sum(losses.values()).backward()
    found["seconds_of_a_training_step"] = time.perf_counter() - begun
    begun = time.perf_counter()
    with torch.no_grad():
        model.eval()(images)
    found["seconds_of_a_prediction"] = time.perf_counter() - begun
    found["peak_memory_bytes"] = cost.peak_memory(torch.device("cpu"))
    print(json.dumps(found, indent=1))
    measure.write(given, **found)


def truth(task: str, classes: int, B: int, H: int, W: int, device: str = "cpu") -> Any:
    """Targets of B pictures: random masks, or two objects in each."""
    if task == "segment":
        return torch.randint(0, classes, (B, H, W), dtype=torch.uint8).to(device)
    boxes = torch.tensor([[0.1 * W, 0.1 * H, 0.4 * W, 0.6 * H], [0.5 * W, 0.3 * H, 0.9 * W, 0.9 * H]])
    target = {"boxes": boxes, "labels": torch.tensor([0, classes - 1])}
    if task == "instance":
        target["masks"] = torch.ones(2, H, W, dtype=torch.uint8)
    return [{name: t.to(device) for name, t in target.items()}] * B


if __name__ == "__main__":
    measure.run(main)
