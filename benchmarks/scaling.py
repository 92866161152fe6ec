"""How time grows with the number of pictures and of tasks, with the side of a picture and the width of the backbone.

    python -m benchmarks.scaling --axis side width --repeat 5 --json scaling.json

    pictures  a whole fit of --epochs epochs, decoding included; `full` and `peft-lora` in vitgraft's protocol
    tasks     answering T tasks on one batch; where gradients do not cross the backbone, after one pass through it
    side      a training step on pictures of another side
    width     a training step on a backbone of another width, its heads 64 channels wide

Along an axis every contender does its work at every point in turn. The exponent is the slope of a straight line through
log(median seconds) over log(point), by least squares; its residual, the root mean square of what the line misses, is
told as a share of the time. Elsewhere `full` and `peft-lora` are plain timm, trained whole, and peft on it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.common.errors import RequestError

from . import contenders, measure
from .fit_time import Fit, fitted

Work = dict[tuple[str, int], Callable[[], float]]  # a contender's name and a point of the axis -> its seconds there
HEAD = 64  # channels
POINTS = {
    "pictures": [100, 200, 400, 800],
    "tasks": [1, 2, 5, 10, 20, 50],
    "side": [112, 168, 224, 336],
    "width": [192, 384, 768],
}


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch14_dinov2", repeat=3)
    known = list(dict.fromkeys([*contenders.names(), *contenders.RIVALS]))
    usual = ["hst-detached", "hst", "convpass", "lora-all", *contenders.RIVALS]
    parser.add_argument("--axis", action=measure.Names, known=POINTS, default=list(POINTS))
    for axis, points in POINTS.items():
        parser.add_argument(f"--{axis}", type=measure.at_least_one, nargs="+", default=points)
    parser.add_argument("--method", action=measure.Names, known=known, default=usual)
    parser.add_argument("--image-size", type=int, default=112, help="except along the axis side (%(default)s)")
    parser.add_argument("--batch-size", type=measure.at_least_one, default=16)
    parser.add_argument("--epochs", type=measure.at_least_one, default=10, help="of the fits (%(default)s)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    given = parser.parse_args(words)
    contenders.check(given.model, given.image_size, *(given.side if "side" in given.axis else ()))
    for axis in given.axis:
        if len(set(getattr(given, axis))) < 2:
            raise RequestError(f"--{axis} has one point, through which no line is known: give two or more.")

    found: dict[str, Any] = {}
    for axis in given.axis:
        with tempfile.TemporaryDirectory() as folder:
            work = AXES[axis](given, Path(folder))
            seconds = measure.turns(work, given.repeat, warm=0 if axis == "pictures" else 2)
        points = sorted(set(getattr(given, axis)))
        found[axis] = {name: along(points, [seconds[name, point] for point in points]) for name in given.method}
        print(f"\n{axis}\n\n{table(found[axis])}", flush=True)
    measure.write(given, axes=found)


def pictures(given: argparse.Namespace, folder: Path) -> Work:
    """Fits of so many pictures."""
    settings = {"epochs": given.epochs, "batch_size": given.batch_size, "precision": given.precision}
    work: Work = {}
    for number in given.pictures:
        root = contenders.make_pictures(folder / str(number), number)
        for name in given.method:
            method = "peft" if name == "peft-lora" else name
            one = partial(fitted, root, method, given.model, image_size=given.image_size, **settings)
            work[name, number] = partial(_seconds, one)
    fitted(root, "linear", given.model, image_size=given.image_size, epochs=1)  # imports and first calls
    return work


def _seconds(one: Callable[[], Fit]) -> float:
    return one().seconds


def tasks(given: argparse.Namespace, folder: Path) -> Work:
    """Answers of so many tasks to one batch."""
    images = contenders.random_images(given.batch_size, given.image_size)
    backbone = contenders.random_backbone(given.model, given.image_size)
    work: Work = {}
    for name in given.method:
        if name in contenders.RIVALS:
            models = [contenders.rival(name, given.model, given.image_size)] * max(given.tasks)
        else:
            models = [contenders.ours(name, backbone, seed) for seed in range(max(given.tasks))]
        models = [model.to(contenders.DEVICE).eval() for model in models]
        for T in given.tasks:
            answer = contenders.inference(contenders.several(models[:T]), images, given.precision)
            work[name, T] = measure.timed(answer)
    return work


def side(given: argparse.Namespace, folder: Path) -> Work:
    """Training steps on pictures of so many pixels."""
    return {(name, size): _step(given, name, size) for size in given.side for name in given.method}


def width(given: argparse.Namespace, folder: Path) -> Work:
    """Training steps on backbones with so many channels."""
    work: Work = {}
    for D in given.width:
        if D % HEAD:
            raise RequestError(f"A width of {D} was asked for, but a head has {HEAD} channels: give a multiple of it.")
        for name in given.method:
            work[name, D] = _step(given, name, given.image_size, embed_dim=D, num_heads=D // HEAD)
    return work


def _step(given: argparse.Namespace, name: str, size: int, **changes: Any) -> Callable[[], float]:
    step = contenders.training_step(name, given.model, size, given.batch_size, given.precision, **changes)
    return measure.timed(step)


AXES = {"pictures": pictures, "tasks": tasks, "side": side, "width": width}


def along(points: list[int], seconds: list[list[float]]) -> dict[str, Any]:
    """One contender's growth: seconds of the turns at each point, and the line through the logarithms of their medians.

    The exponent is its slope; the residual the root mean square of what it misses, in units of the logarithm.
    """
    x, y = np.log(points), np.log([statistics.median(turns) for turns in seconds])
    line = np.polyfit(x, y, 1)
    residual = float(np.sqrt(np.mean((np.polyval(line, x) - y) ** 2)))
    return {"points": points, "seconds": seconds, "exponent": float(line[0]), "residual": residual}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: median seconds at each point, the exponent, and its residual as a share of the time."""
    points = next(iter(found.values()))["points"]
    rows = []
    for name, growth in found.items():
        medians = [f"{statistics.median(turns):.3g}" for turns in growth["seconds"]]
        rows.append([name, *medians, f"{growth['exponent']:.2f}", f"{math.expm1(growth['residual']):.1%}"])
    return measure.table(["", *(f"s at {point}" for point in points), "exponent", "residual"], rows)


if __name__ == "__main__":
    measure.run(main)
