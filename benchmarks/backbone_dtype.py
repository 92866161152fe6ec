"""What a frozen backbone kept in bf16 or int8 takes and costs: its bytes after a step, the time of a step as a ratio to
float32's, and how far the logits are from float32's.

python -m benchmarks.backbone_dtype --model vit_base_patch16_224 --method linear lora hst --json kept.json

Bytes are those of all tensors that the backbone holds, casts of them included. Steps are interleaved as in `step_time`.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch

from vitgraft.backbones import Backbone
from vitgraft.common.settings import BACKBONE_DTYPES, Settings
from vitgraft.engine.devices import fabric
from vitgraft.engine.step import Step
from vitgraft.training.loop import optimiser

from . import contenders, measure


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch14_dinov2", repeat=5)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=measure.at_least_one, default=32)
    parser.add_argument("--method", action=measure.Names, known=contenders.names(), default=["lora"])
    parser.add_argument("--precision", nargs="+", choices=("32", "bf16"), default=["bf16", "32"])
    given = parser.parse_args(words)
    images = contenders.random_images(given.batch_size, given.image_size)
    labels = torch.randint(0, contenders.CLASSES, (given.batch_size,)).to(contenders.DEVICE)
    rows, record = [], []
    for method, precision in itertools.product(given.method, given.precision):
        settings = Settings(precision=precision)
        models, steps = {}, {}
        for dtype in BACKBONE_DTYPES:
            backbone = contenders.random_backbone(given.model, given.image_size)
            backbone.keep_in(dtype)
            model = models[dtype] = contenders.ours(method, backbone).to(contenders.DEVICE).train()
            step = Step(model, optimiser(model.trained(), settings), fabric(settings))
            steps[dtype] = measure.timed(lambda step=step: step(images, labels, None))
        logits = {dtype: answer(model, images, precision) for dtype, model in models.items()}
        seconds = measure.turns(steps, given.repeat)
        for dtype, model in models.items():
            off = float((logits[dtype] - logits["float32"]).norm() / logits["float32"].norm())
            size, times = held(model.backbone), measure.ratio(seconds[dtype], seconds["float32"])
            took = statistics.median(seconds[dtype])
            rows.append([method, precision, dtype, f"{size / 2**20:.0f}", f"{took:.3f}", f"{times:.2f}", f"{off:.1e}"])
            record.append({"method": method, "precision": precision, "dtype": dtype, "bytes": size, "off": off})
            record[-1]["seconds"] = seconds[dtype]
    head = ["method", "precision", "kept in", "MiB held", "step, s", "/ float32", "logits off by"]
    print(measure.table(head, rows))
    measure.write(given, found=record)


@torch.no_grad()
def answer(model: Any, images: torch.Tensor, precision: str) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = model.eval()(images).float()
    model.train()
    return found


def held(backbone: Backbone) -> int:
    """Bytes of its tensors, and of the casts that are kept at them."""
    total = 0
    for tensor in backbone.vit.state_dict(keep_vars=True).values():
        own = [tensor.qdata, tensor.scale] if hasattr(tensor, "qdata") else [tensor]
        cast = getattr(tensor, "cast", (None, None))[1]
        total += sum(part.nbytes for part in (*own, *([cast] if cast is not None else [])))
    return total


if __name__ == "__main__":
    measure.run(main)
