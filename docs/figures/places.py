"""What a method's contacts do at each place of a Vision Transformer: in how many blocks, with how many parameters."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitgraft.backbones import Backbone
from vitgraft.contacts import SUBLAYERS
from vitgraft.method import Method

# The boxes of a sub-layer, by the timm name of what they hold; the longest that a name begins with has it.
ATTENTION = {"norm1": "norm1", "attn.qkv": "qkv", "attn": "attention", "attn.proj": "proj", "ls1": "LayerScale"}
MLP = {"norm2": "norm2", "mlp.fc1": "fc1", "mlp": "GELU", "mlp.fc2": "fc2", "ls2": "LayerScale"}
INSIDE = sorted([*ATTENTION, *MLP], key=len, reverse=True)
EMBEDDING = {"cls_token": "class token", "reg_token": "registers", "pos_embed": "position"}
OUTSIDE = {"patch_embed": "patch", "norm": "norm", **dict.fromkeys([*EMBEDDING, "norm_pre"], "position")}


@dataclass
class Part:
    """What a method does at one place; sizes: block (None outside the blocks) -> how many parameters."""

    kind: str
    label: str
    module: nn.Module | None = None
    sizes: dict[int | None, int] = field(default_factory=dict)


def parts(method: Method) -> dict[str, list[Part]]:
    """Every place of the figure that the contacts touch, and how; but for tokens and taps, which have no layer."""
    c = method.contacts
    found: dict[str, dict[tuple[str, str], Part]] = {}

    def add(block: int | None, place: str, kind: str, label: str, size: int, module: nn.Module | None = None) -> None:
        part = found.setdefault(place, {}).setdefault((kind, label), Part(kind, label, module))
        part.sizes[block] = part.sizes.get(block, 0) + size

    trained: dict[tuple[int | None, str], dict[str, int]] = {}
    for name, tensor in c.trained.named_parameters():
        leaves, leaf = trained.setdefault(_place(name), {}), name.rpartition(".")[2]
        leaves[leaf] = leaves.get(leaf, 0) + tensor.numel()
    for (block, place), leaves in trained.items():
        add(block, place, "train", ", ".join(leaves), sum(leaves.values()))
    for path, change in c.change_at.items():
        add(*_place(path), "weight", type(change).__name__, size_of(change), change)
    for kind, places in (("branch", c.branch_at), ("after", c.after_at)):
        for path, module in places.items():
            block, place = _place(path)
            beside = (
                f"{place} {kind}" if place in SUBLAYERS else place
            )  # what is beside a linear layer stands in its box
            add(block, beside, kind, type(module).__name__, size_of(module), module)
    for path, module in c.before_at.items():
        add(_place(path)[0], "before", "after", type(module).__name__, size_of(module), module)
    for path, prefix in c.prefixes.items():
        keys, values = prefix()
        block, place = _place(path)
        add(block, place, "prefix", f"{keys.shape[1]} keys, values", _own(keys, values))
    return {place: list(kinds.values()) for place, kinds in found.items()}


def _place(path: str) -> tuple[int | None, str]:
    """The block (None outside) and the place of the figure to which a timm name belongs."""
    inside = re.match(r"blocks\.(\d+)\.?(.*)", path)
    if inside is None:
        return None, next((OUTSIDE[place] for place in OUTSIDE if f"{path}.".startswith(f"{place}.")), "pool")
    return int(inside[1]), next(place for place in [*INSIDE, ""] if f"{inside[2]}.".startswith(f"{place}."))


def _own(*tensors: Tensor) -> int:
    """How many parameters these are; none where they are computed of others."""
    own = {(id(base), t.storage_offset()): t for t in tensors if isinstance(base := t._base, nn.Parameter)}
    return sum(t.numel() for t in own.values())


def size_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def reads(branch: nn.Module, backbone: Backbone) -> tuple[bool, bool]:
    """Whether a branch looks at what enters its sub-layer, and at what leaves it: whether a gradient goes there."""
    inputs, outputs = (torch.zeros(1, backbone.prefix + 2, backbone.width, requires_grad=True) for _ in range(2))
    with torch.enable_grad():
        result = copy.deepcopy(branch).to_empty(device="cpu").float().eval()(inputs, outputs, (1, 2))
        first, second = torch.autograd.grad(result.sum(), (inputs, outputs), allow_unused=True)
    return first is not None, second is not None


def where(blocks: Iterable[int], depth: int) -> str:
    """Blocks in words."""
    found = sorted(blocks)
    if len(found) == depth:
        return f"all {depth} blocks"
    if len(found) == 1:
        return f"block {found[0]} only"
    if found == list(range(found[0], found[-1] + 1)):
        return f"blocks {found[0]} to {found[-1]}"
    return f"blocks {', '.join(map(str, found))}" if len(found) < 5 else f"{len(found)} of {depth} blocks"
