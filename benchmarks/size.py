"""The bytes of an adapter file against two for each parameter in it, and what peft and timm write instead.

    python -m benchmarks.size --json size.json

Each file is written by a fit of one step on a few small pictures, as every fit writes it; how long it trains makes no
difference, except where a tensor then needs more than float16. The rivals are the safetensors files that peft's
`save_pretrained` leaves (LoRA, rank 8 on every linear layer), and that hold timm's whole model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_model

from vitgraft import Backbone, fit

from . import contenders, measure

# What a user would keep instead, by the names of contenders.RIVALS.
RIVALS = {"full": "timm's whole model", "peft-lora": "peft's save_pretrained"}


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_base_patch16_224")
    known = contenders.names()
    parser.add_argument("--method", action=measure.Names, known=known, default=known)
    parser.add_argument("--against", action=measure.Names, known=list(RIVALS), default=list(RIVALS))
    given = parser.parse_args(words)

    with tempfile.TemporaryDirectory() as folder:
        pictures = contenders.make_pictures(Path(folder, "pictures"), contenders.CLASSES, 64, 64)
        backbone = contenders.random_backbone(given.model)
        sizes = {name: of_fit(name, pictures, backbone) for name in given.method}
    rivals = {RIVALS[name]: of_rival(name, given.model) for name in given.against}
    print(table({**sizes, **rivals}))
    measure.write(given, adapters=sizes, rivals=rivals)


def of_fit(name: str, pictures: Path, backbone: Backbone) -> dict[str, int]:
    """Parameters and bytes of a method's adapter file, head included."""
    side = 4 * backbone.patch[0]
    with tempfile.TemporaryDirectory() as folder:
        out, form = Path(folder, "run"), contenders.form(name)
        run = fit(pictures, out=out, backbone=backbone, epochs=1, image_size=side, workers=0, quiet=True, **form)
        return {
            "parameters": run.result["parameters"] + run.result["head_parameters"],
            "bytes": (out / "adapter.safetensors").stat().st_size,
        }


def of_rival(name: str, model: str) -> dict[str, int]:
    """The same of the safetensors file that a user of timm or of peft would keep."""
    vit: Any = contenders.plain(model)
    with tempfile.TemporaryDirectory() as folder:
        if name == "full":
            save_model(vit, str(Path(folder, "model.safetensors")))
        else:
            vit = contenders.peft_lora(vit)
            vit.save_pretrained(folder)
        trained = sum(p.numel() for p in vit.parameters() if p.requires_grad)
        return {"parameters": trained, "bytes": sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))}


def table(sizes: dict[str, dict[str, int]]) -> str:
    """Markdown: parameters, bytes, bytes for each parameter, and how many are more than two for each."""
    rows = []
    for name, found in sizes.items():
        parameters, size = found["parameters"], found["bytes"]
        rows.append([name, f"{parameters:,}", f"{size:,}", f"{size / parameters:.3f}", f"{size - 2 * parameters:,}"])
    return measure.table(["", "parameters", "bytes", "bytes / parameters", "bytes - 2 x parameters"], rows)


if __name__ == "__main__":
    measure.run(main)
