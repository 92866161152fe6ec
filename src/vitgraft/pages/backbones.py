"""The table of backbones: which of timm's pre-trained weights can be one, what each is, and what was tried."""

from __future__ import annotations

import fnmatch
from collections import Counter
from typing import Any

import timm

from ..backbones.architectures import UnsupportedError, skeleton
from ..common.errors import RequestError

# timm's files whose models are Vision Transformers of a kind that is taken, or comes near -> how the family is called
FAMILIES = {
    "vision_transformer": "ViT",
    "deit": "DeiT",
    "eva": "Eva",
    "swin_transformer": "Swin",
    "swin_transformer_v2": "Swin-V2",
    "beit": "BEiT",
    "hiera": "Hiera",
}
REAL = ("vit_base_patch16_224", "vit_small_patch14_dinov2")  # architectures of which docs/results.md has fits


def table(pattern: str = "*") -> list[dict[str, Any]]:
    """One record per pre-trained weights whose name fits the pattern, or has it in it; RequestError if none does."""
    fits = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    named = {
        name: family for module, family in FAMILIES.items() for name in timm.list_models(module=module, pretrained=True)
    }
    if not (chosen := [name for name in named if fnmatch.fnmatchcase(name, fits)]):
        raise RequestError(
            f"None of timm's {len(named)} weights of these families is called like {pattern!r}: name a part of one, "
            "such as dinov3 or swin_base."
        )
    known: dict[str, tuple[int, str]] = {}
    rows = []
    for name in chosen:
        architecture = name.partition(".")[0]
        if architecture not in known:
            known[architecture] = _examined(architecture)
        parameters, refused = known[architecture]
        rows.append(
            {
                "name": name,
                "family": named[name],
                "parameters": parameters or None,
                "licence": getattr(timm.get_pretrained_cfg(name), "license", None),
                "tried": None if refused else "real weights" if architecture in REAL else "random weights",
                "refused": refused or None,
            }
        )
    return rows


def _examined(architecture: str) -> tuple[int, str]:
    """The number of parameters without a head, and why it cannot be a backbone."""
    try:
        vit = skeleton(architecture).vit
    except UnsupportedError as error:
        return 0, error.reason
    return sum(tensor.numel() for tensor in vit.parameters()), ""


def text(rows: list[dict[str, Any]]) -> str:
    """The table as lines of text, with how many are taken of each family."""
    wide = max(len(row["name"]) for row in rows)
    lines = [f"{'weights':{wide}} {'family':8} {'parameters':>13}  {'licence':35} tried with"]
    for row in rows:
        said = row["tried"] or f"refused: {row['refused']}"
        size = f"{row['parameters']:,}" if row["parameters"] else ""
        lines.append(f"{row['name']:{wide}} {row['family']:8} {size:>13}  {row['licence'] or 'not stated':35} {said}")
    every = Counter(row["family"] for row in rows)
    taken = Counter(row["family"] for row in rows if row["tried"])
    lines += ["", *(f"{family:8} {taken[family]:>3} of {n:>3} are taken" for family, n in every.items()), ""]
    lines += [
        "parameters: without a head. tried with: random weights of the architecture, whose pass equals timm's; or real",
        "ones of it too. Weights in the form of transformers are read from their folder.",
    ]
    return "\n".join(lines)
