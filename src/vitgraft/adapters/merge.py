"""A method written into the backbone's own tensors: a plain timm model, which needs nothing of ours.

    merged = vitgraft.merge(model)            # merged.vit, a timm model beside the backbone, which stays as it is
    vitgraft.merge(model, in_place=True)      # the backbone itself: `model` then runs without its contacts
    vitgraft.unmerge(model)                   # the very bytes that were there before
    export(run, "model.safetensors")             # a file that timm alone loads: `vitgraft merge`

What a method only retrains (contact train) or changes (contact weight) can be merged, nothing else. Merged tensors are
computed in float64 and rounded once; their logits are always compared with the unmerged ones.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbones import weights
from ..common.errors import RequestError, WorkError
from ..common.files import check_new_file
from ..common.settings import BACKBONE_DTYPES
from ..data import Preprocess
from ..model import Model
from .run import Run

# Of the norm of the logits; in float32 a hundred times what rounding and another order of sums come to, 1e-6 on ViT-B.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
CHECKED = 4  # random pictures


class Merged(NamedTuple):
    """A timm model that answers as backbone, method and head do together."""

    vit: nn.Module  # [B, 3, H, W] normalised -> logits [B, K]; shares the memory of what did not change
    changed: tuple[str, ...]  # timm's names of the tensors that are not the backbone's; the head's are not among them
    difference: float  # the largest difference of a logit, merged from unmerged
    relative: float  # the norm of the differences, as a share of the norm of the unmerged logits
    tolerance: float  # the `relative` that was allowed


def merge(model: Model, images: Tensor | None = None, *, in_place: bool = False) -> Merged:
    """Backbone, method and head of `model` as one plain timm model; the backbone stays as it is.

    images [B, 3, H, W], normalised: what the check looks at; random ones of the backbone's own size unless given.
    in_place: the merged tensors take the place of the backbone's own as well, until `unmerge`; `model` and the backbone
    without contacts then give the merged answers, other models on this backbone are refused.

    RequestError where the method cannot be merged, or another one is merged already; WorkError where the check fails.
    """
    backbone, method = model.backbone, model.method
    if model.head.levels:
        raise RequestError(
            f"A plain timm model ends in a classifier, but the head here is {type(model.head).__name__}, of a dense "
            "task: use it unmerged, as `vitgraft predict` does."
        )
    if method.obstacle:
        raise RequestError(
            f"The method {method.name()} cannot be merged: {method.obstacle}; use it unmerged, as `vitgraft predict` "
            "does, or fit one of the methods that merge, which `vitgraft methods` lists."
        )
    if backbone.kept != BACKBONE_DTYPES[0]:
        raise RequestError(
            f"{backbone.name} is kept in {backbone.kept}, into which nothing is merged: give the run a backbone in "
            f"{BACKBONE_DTYPES[0]}, Run(path, Backbone.load(name)), whose answers differ by that rounding."
        )
    if backbone.merged is not None:
        raise RequestError(
            f"The tensors of {backbone.name} have a method merged into them already, and hold one at a time: call "
            "vitgraft.unmerge with its model first."
        )
    changed = _changed(model)
    vit = _plain(model, changed)
    difference, relative = _compare(model, vit, random_pictures(backbone.native) if images is None else images)
    tolerance = TOLERANCE[next(vit.parameters()).dtype]
    if not relative <= tolerance:  # also where it is not a number
        raise WorkError(
            f"The merged logits of {method.name()} differ from the unmerged ones by {relative:.1e} of their norm, and "
            f"{tolerance:.0e} is allowed, as rounding alone stays far below it: use it unmerged, as `vitgraft predict` "
            "does, and report this."
        )
    if in_place:
        backbone.merged = (method.contacts, backbone.exchange(changed))
    return Merged(vit, tuple(changed), difference, relative, tolerance)


def unmerge(model: Model) -> None:
    """Puts the backbone's own tensors back in their place, after a merge in place; RequestError if there was none."""
    backbone = model.backbone
    if backbone.merged is None or backbone.merged[0] is not model.method.contacts:
        raise RequestError(
            f"The method {model.method.name()} of this model is not merged into {backbone.name}, so nothing can be "
            "taken back: call vitgraft.merge with in_place=True first."
        )
    backbone.exchange(backbone.merged[1])
    backbone.merged = None


def export(run: Run, out: str | Path) -> dict[str, Any]:
    """Merges a run and writes the timm model to the new file `out`; gives what was done, ready for JSON.

    The metadata hold timm's `architecture`, `model_args` and `pretrained_cfg`, the latter with preprocessing and class
    names (`label_names`), and `Backbone.load` reads the file too. RequestError and WorkError leave no file.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise RequestError(
            f"{out} was to be written, but timm tells a safetensors file by its ending alone: let --out end in "
            ".safetensors."
        )
    check_new_file(out)
    model, preprocess, header = run.adapter
    architecture = model.backbone.architecture
    merged = merge(model, random_pictures(preprocess))
    arguments = {**model.backbone.timm_arguments, "num_classes": len(header["classes"])}
    shown = {
        "input_size": [3, *preprocess.size],
        "interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "crop_pct": 1.0,  # with "squash": resized without a cut, whatever the aspect ratio
        "crop_mode": "squash",
    }
    weights.save(
        merged.vit,
        out,
        architecture=architecture,
        source=f"{model.backbone.source}, with {header['method']} merged by vitgraft",
        license=model.backbone.license,
        model_args=arguments,
        pretrained_cfg={**shown, "num_classes": len(header["classes"]), "label_names": header["classes"]},
    )
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "method": header["method"],
        "arguments": header["arguments"],
        "classes": header["classes"],
        "tensors": len(model.backbone.tensors()),
        "changed": list(merged.changed),
        "difference": merged.difference,
        "relative": merged.relative,
        "tolerance": merged.tolerance,
        "pictures": [CHECKED, 3, *preprocess.size],
        "python": [
            "import timm",
            f"model = timm.create_model({architecture!r}, {keywords(checkpoint_path=str(out), **arguments)}).eval()",
            f"transform = timm.data.create_transform({keywords(**shown)})",
        ],
    }


@torch.no_grad()
def _changed(model: Model) -> dict[str, Tensor]:
    """What stands in the place of the backbone's tensors and differs from them, by timm's names, in their dtype."""
    backbone = model.backbone
    # All of the method, as changes may share tensors that it owns; on the CPU, as not every device knows float64.
    contacts = copy.deepcopy(model.method).to("cpu", torch.float64).contacts
    own = backbone.tensors()
    found: dict[str, Tensor] = dict(contacts.own(""))
    for path, change in contacts.change_at.items():
        name, biases = f"{path}.weight", backbone.bias_names(path)
        values = {of: found[of] if of in found else own[of].to("cpu", torch.float64) for of in (name, *biases) if of}
        before = [values[of] if of else torch.zeros_like(values[biases[0]]) for of in biases]
        found[name], bias = change.merged(values[name], torch.cat(before) if before else None)
        after = () if bias is None else bias.chunk(len(biases) or 1)
        for part, of in zip(after, biases or [""], strict=False):
            if of:
                found[of] = part
            elif part.any():
                raise RequestError(
                    f"The method {model.method.name()} gives {path} a bias, but this layer of {backbone.name} has none"
                    f"{' for k' if biases else ''}, so timm has no place for it: use it unmerged, as `vitgraft "
                    "predict` does."
                )
    rounded = {name: tensor.detach().to(own[name]).contiguous() for name, tensor in found.items()}
    return {name: tensor for name, tensor in rounded.items() if not torch.equal(tensor, own[name])}


def _plain(model: Model, changed: dict[str, Tensor]) -> nn.Module:
    """A timm model of these tensors, of the backbone's own where there are none, and of the head."""
    backbone = model.backbone
    # Parameters of its own in the memory of the backbone's: what moves or casts the one leaves the other as it is.
    parameters = {
        id(tensor): nn.Parameter(changed.get(name, tensor.detach()), requires_grad=False)
        for name, tensor in backbone.tensors().items()
    }
    vit: Any = copy.deepcopy(backbone.vit, parameters)
    head: Any = model.head.layer()
    backbone.put_head(vit, head.to(next(vit.parameters())).requires_grad_(False))
    return vit


@torch.no_grad()
def _compare(model: Model, vit: nn.Module, images: Tensor) -> tuple[float, float]:
    """The largest difference of a logit, and the norm of all as a share of that of the unmerged logits."""
    training = model.training
    images = images.to(next(vit.parameters()))
    unmerged: Any = model.eval()(images)
    model.train(training)
    differences = (vit(images) - unmerged).double()
    largest = differences.abs().max().item()
    return largest, (differences.norm() / unmerged.double().norm()).item() if largest else 0.0


def random_pictures(preprocess: Preprocess) -> Tensor:
    """Random normalised pictures [B, 3, H, W], always the same."""
    return torch.randn(CHECKED, 3, *preprocess.size, generator=torch.Generator().manual_seed(0))


def keywords(**arguments: Any) -> str:
    """As they stand in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
