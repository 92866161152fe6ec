"""The time of a training step and of a prediction with dense heads, beside full fine-tuning, interleaved.

    python -m benchmarks.dense_time --sets pets3 pennfudan --precision bf16 --json dense.json

Every fit of `benchmarks.dense_table`, and `full` with the same heads, takes a step and a prediction in turn, at that
table's picture and batch size, on random pictures with random tensors; ratios are medians of the ratios of one turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from vitgraft import Model, build

from . import contenders, dense_table, measure, memory

CLASSES = 4
METHODS: dict[str, dict[str, Any]] = {"full": {"method": "full"}, **dense_table.METHODS}


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch14_dinov2", repeat=5)
    sets = list(dense_table.SETS)
    parser.add_argument("--sets", action=measure.Names, known=sets, default=sets)
    parser.add_argument("--method", action=measure.Names, known=list(METHODS), default=list(METHODS))
    heads = list(dict.fromkeys(head for of in dense_table.SETS.values() for head in of.heads))
    parser.add_argument("--heads", action=measure.Names, known=heads, default=heads)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    given = parser.parse_args(words)

    methods = list(dict.fromkeys(["full", *given.method]))
    seconds = {name: measure_set(given.model, dense_table.SETS[name], methods, given) for name in given.sets}
    for name, found in seconds.items():
        print(table(name, found, dense_table.SETS[name].settings["batch_size"]))
    measure.write(given, seconds=seconds)


def measure_set(model: str, of: dense_table.Set, methods: list[str], given: Any) -> dict[str, list[float]]:
    """Seconds of each turn by "method, head, step" and "method, head, prediction"."""
    backbone = contenders.random_backbone(model)
    task, (H, W), B = of.settings["task"], of.settings["image_size"], of.settings["batch_size"]
    images = torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(0)).to(contenders.DEVICE)
    truth = memory.truth(task, CLASSES, B, H, W, contenders.DEVICE)
    work = {}
    for head, options in of.heads.items():
        for name in [one for one in methods if head in given.heads and dense_table.suits(one, head)]:
            trained = build(backbone, classes=CLASSES, task=task, head=head, head_options=options, **METHODS[name]).to(
                contenders.DEVICE
            )
            trained.method.ready = True
            for what, one in (("step", training_step), ("prediction", prediction)):
                work[f"{name}, {head}, {what}"] = measure.timed(one(trained, images, truth, given.precision))
    return measure.turns(work, given.repeat)


def training_step(trained: Model, images: torch.Tensor, truth: Any, precision: str) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(trained.trained().values(), lr=1e-5, fused=True)

    def step() -> None:
        trained.train()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss: torch.Tensor = sum(trained(images, truth).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prediction(trained: Model, images: torch.Tensor, truth: Any, precision: str) -> Callable[[], Any]:
    return contenders.inference(lambda pictures: trained.eval()(pictures), images, precision)


def table(name: str, seconds: dict[str, list[float]], batch_size: int) -> str:
    """Markdown: median seconds of a step and of a prediction for one picture, and their median ratios to `full`."""
    rows = []
    for key in dict.fromkeys(key.rpartition(", ")[0] for key in seconds):
        head = key.partition(", ")[2]
        cells = []
        for what in ("step", "prediction"):
            mine, full = seconds[f"{key}, {what}"], seconds[f"full, {head}, {what}"]
            cells += [f"{statistics.median(mine) / batch_size:.3f}", f"{measure.ratio(mine, full):.2f}"]
        rows.append([key, *cells])
    return measure.table([name, "step, s a picture", "/ full", "prediction, s a picture", "/ full"], rows)


if __name__ == "__main__":
    measure.run(main)
