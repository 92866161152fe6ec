"""All that needs a GPU, in eight minutes: the tests that only run there, steps beside full fine-tuning, fits.

    python -m benchmarks.on_gpu --json gpu.json
    python -m benchmarks.on_gpu --json gpu.json --sets SETS/caltech101 --backbone vit_small_patch14_dinov2.safetensors

Its parts come in the order of what is missed most; each begins only if the time that it takes is left; the record is
written after each, so that it holds whatever ended. Without a GPU it says what it would do; `--anyway` does it, to see
that the program works, with `--model`, `--image-size` and `--batch-size` small.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitgraft import build, fit
from vitgraft.bench.suites import find
from vitgraft.common.errors import RequestError
from vitgraft.kernels import norm

from . import contenders, dense_time, measure, memory, step_time

STEPS = ("hst", "hst-detached", "hst-cached", "lora", "lora-all", "convpass", "consolidator", "sct")
COMPILED = ("full-compiled", "hst-compiled", "hst-stages-compiled", "lora-compiled")
STAGES = ((4, 32), (8, 48), (16, 64), (32, 72))  # of HST: stride in pixels, and width
DENSE = {"upernet": ("segment", 512), "mask": ("instance", 640)}
EPOCHS = 100  # of VTAB-1k's fits, 1,000 pictures each
FITS = ("hst", "lora", "hst+lora")


@dataclass(frozen=True)
class Part:
    """What is measured: in words, the seconds that it takes on an H200, and how."""

    words: str
    seconds: int
    work: Callable[[argparse.Namespace], dict[str, Any]]


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_base_patch16_224", repeat=7)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=measure.at_least_one, default=64)
    parser.add_argument("--minutes", type=float, default=8.0, help="in which it ends")
    parser.add_argument("--parts", action=measure.Names, known=list(PARTS), default=list(PARTS))
    parser.add_argument("--sets", nargs="+", type=Path, default=[], help="folders of pictures to classify, for `fits`")
    parser.add_argument("--backbone", help="the weights for `fits`")
    parser.add_argument("--out", type=Path, help="where `fits` go; the same folder continues them")
    parser.add_argument("--anyway", action="store_true", help="without a GPU too")
    given = parser.parse_args(words)
    if given.sets and not (given.backbone and given.out):
        raise RequestError(
            "Fits were asked for by --sets, but they need weights and a place: give --backbone and --out."
        )
    if not torch.cuda.is_available() and not given.anyway:
        print("There is no GPU here. With one this would be done, in this order, as far as time goes:")
        for name in given.parts:
            print(f"  {name:8} {PARTS[name].words}, {PARTS[name].seconds} s")
        return
    given.until = time.monotonic() + 60 * given.minutes
    found: dict[str, Any] = {}
    for name in given.parts:
        part, left = PARTS[name], given.until - time.monotonic()
        if left < part.seconds:
            found[name] = {"skipped": f"{left:.0f} s were left, it takes {part.seconds}"}
            print(f"{name}: {found[name]['skipped']}")
        else:
            begun = time.monotonic()
            try:
                found[name] = part.work(given)
            except RuntimeError as error:  # one part that a driver or the memory does not suit ends no other
                found[name] = {"failed": str(error).partition("\n")[0]}
                print(f"{name} failed: {found[name]['failed']}")
            found[name]["seconds"] = round(time.monotonic() - begun, 1)
        _write(given, found)


def _write(given: argparse.Namespace, found: dict[str, Any]) -> None:
    """The record so far, in the place of the last one."""
    if given.json is not None:
        kept = {name: value for name, value in vars(given).items() if name not in ("until", "sets", "out", "backbone")}
        measure.write(argparse.Namespace(**kept, sets=[path.name for path in given.sets]), **found)


def tests(given: argparse.Namespace) -> dict[str, Any]:
    """The steps of a graph beside steps kernel by kernel, and the kernels beside torch's."""
    words = [sys.executable, "-m", "pytest", "-q", "-n", "4", "tests/engine/test_step.py", "tests/kernels"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    print(done.stdout[-2000:])
    return {"exit": done.returncode, "told": done.stdout.splitlines()[-1:]}


def norms(given: argparse.Namespace) -> dict[str, Any]:
    """LayerNorm of the side network's stages, forward and backward: Triton's beside torch's."""
    device = torch.device(contenders.DEVICE)
    seconds = {}
    with torch.no_grad():
        for stride, d in STAGES:
            rows = given.batch_size * (given.image_size // stride) ** 2
            x, dy = (torch.randn(rows, d, device=device) for _ in range(2))
            work = {"torch": _torchs(x, dy), "triton": _tritons(x, dy)}
            found = measure.turns({name: measure.timed(one) for name, one in work.items()}, 5 * given.repeat)
            seconds[f"{len(x)} x {d}"] = found
    rows_of = (
        [
            name,
            *(f"{1e3 * statistics.median(of):.3f}" for of in found.values()),
            f"{measure.ratio(*reversed(found.values())):.2f}",
        ]
        for name, found in seconds.items()
    )
    print(measure.table(["rows", "torch, ms", "triton, ms", "ratio"], rows_of))
    return {"difference": norm.difference(device), "taken": norm._by_triton(x), "forward and backward": seconds}


def _torchs(x: Tensor, dy: Tensor) -> Callable[[], object]:
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])

    def work() -> object:
        _, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, 1e-6)
        return torch.ops.aten.native_layer_norm_backward(dy, x, weight.shape, mean, rstd, weight, bias, [True] * 3)

    return work


def _tritons(x: Tensor, dy: Tensor) -> Callable[[], object]:
    from vitgraft.kernels import triton_norm

    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])

    def work() -> object:
        _, mean, rstd = triton_norm.forward(x, weight, bias, 1e-6, x.dtype)
        return triton_norm.backward(dy, x, weight, mean, rstd)

    return work


def steps(given: argparse.Namespace) -> dict[str, Any]:
    """Steps of all methods beside full fine-tuning; hst with torch's norms too; what VTAB-1k then takes."""
    seconds = _steps(given, ("full", *STEPS), torchs_norms=True)
    print(step_time.table(seconds, ["full"]))
    test = sum(task.sizes["test"] for task in find("vtab-1k").tasks)
    # A pass without gradients is a third of a step.
    passes = test / given.batch_size * statistics.median(seconds["full"]) / 3
    trained = 19 * EPOCHS * (1000 // given.batch_size)  # steps
    minutes = {name: (trained * statistics.median(of) + passes) / 60 for name, of in seconds.items()}
    print(f"VTAB-1k, minutes a method and seed: {', '.join(f'{name} {of:.1f}' for name, of in minutes.items())}")
    return {"steps": seconds, "vtab minutes": minutes}


def compiled(given: argparse.Namespace) -> dict[str, Any]:
    """The same under torch.compile, and HST with its stages compiled alone."""
    seconds = _steps(given, ("full", "hst", *COMPILED))
    print(step_time.table(seconds, ["full", "full-compiled"]))
    return {"steps": seconds}


def _steps(given: argparse.Namespace, names: tuple[str, ...], *, torchs_norms: bool = False) -> dict[str, list[float]]:
    what = (given.model, given.image_size, given.batch_size, "bf16")
    made = {name: contenders.training_step(name, *what) for name in names}
    if torchs_norms:
        widest, norm.WIDEST = norm.WIDEST, 0
        made["hst, torch's norms"] = contenders.training_step("hst", *what)
        for _ in range(5):  # a graph keeps the kernels that it was made of
            made["hst, torch's norms"]()
        norm.WIDEST = widest
    # A step is a graph from the fourth on.
    return measure.turns({name: measure.timed(step) for name, step in made.items()}, given.repeat, warm=5)


def where(given: argparse.Namespace) -> dict[str, Any]:
    """Where the time of a step of HST and of LoRA goes, by kinds of operation."""
    what = (given.model, given.image_size, given.batch_size, "bf16")
    parts = {name: step_time.shares(contenders.training_step(name, *what)) for name in ("full", "hst", "lora-all")}
    rows = ([kind, *(f"{part[kind]:.3f}" for part in parts.values())] for kind in parts["full"])
    print(measure.table(["share", *parts], rows))
    return {"shares": parts}


def dense(given: argparse.Namespace) -> dict[str, Any]:
    """Steps with dense heads: UperNet at 512 pixels, Mask R-CNN at 640, each beside full fine-tuning."""
    seconds: dict[str, dict[str, list[float]]] = {}
    backbone = contenders.random_backbone(given.model)
    for head, (task, size) in DENSE.items():
        side, batch = (size, 8) if given.image_size == 224 else (64, 2)
        images, truth = (
            contenders.random_images(batch, side),
            memory.truth(task, 4, batch, side, side, contenders.DEVICE),
        )
        work = {}
        for name in ("full", "lora", "hst", "hst+lora"):
            model = build(backbone, name, classes=4, task=task, head=head).to(contenders.DEVICE)
            work[name] = measure.timed(dense_time.training_step(model, images, truth, "bf16"))
        seconds[head] = measure.turns(work, given.repeat)
        print(head, step_time.table(seconds[head], ["full"]), sep="\n")
    return {"steps": seconds}


def fits(given: argparse.Namespace) -> dict[str, Any]:
    """Fits of 100 epochs at 224 pixels, one after the other until the time is over; a stopped one goes on next time."""
    values: dict[str, float] = {}
    for folder in given.sets:
        for method in FITS:
            if time.monotonic() > given.until - PARTS["fits"].seconds:
                return {"values": values, "stopped": f"before {method} on {folder.name}"}
            run = fit(
                folder,
                out=given.out / f"{method}-{folder.name}",
                method=method,
                backbone=given.backbone,
                image_size=given.image_size,
                epochs=EPOCHS,
                train_split="train+val",
                eval_split="test",
                resume=True,
                quiet=True,
            )
            values[f"{method} on {folder.name}"] = run.result["value"]
            print(f"{method} on {folder.name}: {run.result['value']:.1%}, {run.result['seconds']:.0f} s", flush=True)
    return {"values": values}


PARTS = {
    "tests": Part("tests/engine/test_step.py and tests/kernels", 60, tests),
    "norms": Part("LayerNorm of narrow rows: Triton's beside torch's", 15, norms),
    "steps": Part("steps of all methods beside full fine-tuning", 60, steps),
    "compiled": Part("the same under torch.compile", 120, compiled),
    "where": Part("where the time of a step goes", 20, where),
    "dense": Part("steps with UperNet and Mask R-CNN", 60, dense),
    "fits": Part("fits on the sets given, as far as time goes", 60, fits),
}


if __name__ == "__main__":
    measure.run(main)
