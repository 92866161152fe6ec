"""The time of one training step of a method, as a ratio to what a user would take instead; interleaved, in one process.

    python -m benchmarks.step_time --method convpass lora --against full peft-lora --json step.json

Every contender takes one step in turn, `--repeat` times after two steps that are not counted; a contender's ratio to
another one is the median of the ratios of their steps of the same turn, so that a busy machine slows both alike. `full`
is plain timm trained whole, `peft-lora` peft's LoRA (rank 8, every linear layer of the blocks) on plain timm; neither
runs code of vitgraft. A step is forward, backward and AdamW on random pictures that are on the device already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F

from vitgraft import Backbone, Model, build
from vitgraft import method as methods
from vitgraft.bench.provenance import machine, versions
from vitgraft.weights import Loaded

CLASSES = 10
# What stands for itself, apart from the names of methods.
FORMS: dict[str, dict[str, Any]] = {
    "hst-detached": {"method": "hst", "detached": True},
    "lora-all": {"method": "lora", "targets": ("qkv", "proj", "fc1", "fc2")},
}
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_small_patch14_dinov2", help="a timm name; its tensors are random here")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=64)
    known = f"{', '.join([*methods.names(), *FORMS])}, full, peft-lora"
    parser.add_argument("--method", nargs="+", default=["convpass"], help=known)
    parser.add_argument("--against", nargs="+", default=["full"], help=known)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    names = list(dict.fromkeys([*given.against, *given.method]))
    steps = {name: contender(name, given) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(given.repeat + 2):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begun)
        print(f"turn {turn + 1} of {given.repeat + 2}", flush=True)
    print(table(seconds, given.against))
    if given.json:
        record = {
            "settings": {k: str(v) for k, v in vars(given).items()},
            "machine": machine(),
            "versions": versions(),
            "seconds": seconds,
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n")


def contender(name: str, given: argparse.Namespace) -> Step:
    """A function that takes one training step."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(given.batch_size, 3, given.image_size, given.image_size, device=device)
    labels = torch.randint(0, CLASSES, (given.batch_size,), device=device)
    model = plain(name, given) if name in ("full", "peft-lora") else ours(name, given)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16"):
            if isinstance(model, Model):
                loss = sum(model(images, labels).values())
            else:
                loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain(name: str, given: argparse.Namespace) -> torch.nn.Module:
    vit = timm.create_model(given.model, num_classes=CLASSES, img_size=given.image_size)
    if name == "full":
        return vit
    import peft

    linears = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=linears, modules_to_save=["head"])
    return peft.get_peft_model(vit, config)


def ours(name: str, given: argparse.Namespace) -> Model:
    vit = timm.create_model(given.model, num_classes=0, img_size=given.image_size, dynamic_img_size=True).eval()
    size = (given.image_size, given.image_size)
    backbone = Backbone(Loaded(vit, given.model, "random", given.model, (0.5,) * 3, (0.5,) * 3, "bicubic", size))
    form = dict(FORMS.get(name, {"method": name}))
    model = build(backbone, form.pop("method"), classes=CLASSES, **form)
    model.method.ready = True  # which channels SCT has chosen makes no difference to the time
    return model


def table(seconds: dict[str, list[float]], against: list[str]) -> str:
    """Markdown: median seconds a step, and the median ratio to each of `against`."""
    lines = ["| | s a step | " + " | ".join(f"/ {other}" for other in against) + " |"]
    lines.append("|---|---|" + "---|" * len(against))
    for name, mine in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(mine, seconds[other], strict=True)) for other in against]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {name} | {statistics.median(mine):.3f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
