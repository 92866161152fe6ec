"""The table of methods, from the methods themselves."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .. import methods
from ..backbones import Backbone
from ..backbones.architectures import skeleton
from ..backbones.weights import Loaded
from ..method import Method

VIT_B16 = "vit_base_patch16_224"
CLASSES = 10  # of the task, where a method's parameters depend on their number


def shape_of(architecture: str) -> Backbone:
    """A backbone of this timm architecture on torch's meta device, without numbers: enough to count parameters."""
    vit: Any = skeleton(architecture).vit
    half, size = (0.5, 0.5, 0.5), vit.patch_embed.img_size
    return Backbone.of(Loaded(vit, architecture, "shapes only", architecture, half, half, "bicubic", size))


def attached(name: str, backbone: Backbone, **arguments: Any) -> Method:
    """The method on such a backbone: its parameters and contacts are there, their numbers are not."""
    method = methods.create(name, **arguments)
    method.classes = CLASSES
    with torch.device("meta"):
        method.attach(backbone)
    return method


def table(*names: str) -> list[dict[str, Any]]:
    """One record per method, all unless named; parameters are those on ViT-B/16 with the method's defaults, without a
    head. What only an attached method knows is None where a package that it needs is missing."""
    backbone = shape_of(VIT_B16)
    return [_row(methods.find(name), backbone) for name in names or methods.names()]


def _row(cls: type[Method], backbone: Backbone) -> dict[str, Any]:
    method = None if cls.missing() else attached(cls.name(), backbone)
    return {
        "name": cls.name(),
        "title": cls.title,
        "paper": cls.paper,
        "contacts": list(method.contacts.kinds) if method else [],
        "parameters_vit_b16": method and method.size,
        "crosses_backbone": method and method.crosses_backbone,
        "mergeable": method and method.mergeable,
        "published": cls.published,
    }


def text() -> str:
    """The table as lines of text."""
    lines = [f"{'method':14} {'parameters':>11}  {'contacts':18} {'crosses':8} {'merges':7} published"]
    for row in table():
        if row["parameters_vit_b16"] is None:
            lines.append(f"{row['name']:14} {'':>11}  needs vitgraft[{methods.find(row['name']).needs}]")
            continue
        lines.append(
            f"{row['name']:14} {row['parameters_vit_b16']:>11,}  {' '.join(row['contacts']) or 'none':18} "
            f"{_yes(row['crosses_backbone']):8} {_yes(row['mergeable']):7} {row['published']}"
        )
    lines.append("")
    lines.append("parameters: on ViT-B/16, without the head. crosses: whether gradients cross the backbone.")
    return "\n".join(lines)


def describe(name: str) -> str:
    """A method's own description and its options with their defaults."""
    cls = methods.find(name)
    options = [f"  --{key.replace('_', '-'):18} {_shown(value)}" for key, value in cls.defaults().items()]
    paper = [cls.paper, ""] if cls.paper else []
    return "\n".join(
        [cls.title, *paper, inspect.getdoc(cls) or "", "", "options and defaults:", *(options or ["  none"])]
    )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
