"""The five contacts: every way in which a method touches the frozen backbone.

A method never edits the backbone. It declares its contacts here, and the backbone's forward pass consults them, so
detaching is exact (pass other contacts, or none), any number of methods share one backbone, and the backbone's tensors
and module tree never change.

| contact | what is declared | what the backbone does with it |
|---|---|---|
| train  | the name of a tensor that exists | uses the method's own trainable copy in its place |
| weight | a `Change` of one linear layer | computes the changed layer instead of the plain one |
| branch | a module beside a sub-layer | adds its output to the residual stream, outside LayerScale |
| tokens | extra tokens for one block | puts them in front, hands back what became of them, removes them |
| tap    | the number of a block | hands back the block's output |

Names are timm's, by path: `blocks.3.attn.qkv` (linear), `blocks.3.norm1.weight` (tensor), `blocks.3.attn` and
`blocks.3.mlp` (sub-layers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import RequestError, near_misses

if TYPE_CHECKING:
    from .backbone import Backbone

SUBLAYERS = ("attn", "mlp")


class Change(nn.Module):
    """Another linear map in the place of one of the backbone's: `(W, b)` becomes `merged(W, b)`.

    A subclass gives `merged`, which is the method's definition and what a merge writes; it may override `forward` where
    the same product is cheaper without forming the merged weight.
    """

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight [out, in], bias [out] or None -> the same shapes."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, P+N, in] -> [B, P+N, out]."""
        return F.linear(x, *self.merged(weight, bias))


class Tree(nn.Module):
    """Parameters and modules under dotted names, so that a state dict shows them under the backbone's own names."""

    def put(self, name: str, value: nn.Parameter | nn.Module) -> None:
        *folders, leaf = name.split(".")
        node: nn.Module = self
        for folder in folders:
            if folder not in node._modules:
                node.add_module(folder, nn.Module())
            node = node.get_submodule(folder)
        setattr(node, leaf, value)


class Contacts(nn.Module):
    """What one method adds to one backbone, and where.

    `trained`, `change` and `branch` hold parameters and therefore belong to the method's state; `tokens` refers to
    parameters that the method owns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trained = Tree()
        self.changes = Tree()
        self.branches = Tree()
        self.tokens: dict[int, nn.Parameter] = {}
        self.taps: set[int] = set()
        # Rate at the last block, growing linearly from 0 at the first; active in training only, and inside the backbone
        # only where something trains there: otherwise its pass is a function of the picture alone.
        self.drop_path = 0.0
        self.change_at: dict[str, Change] = {}
        self.branch_at: dict[str, nn.Module] = {}
        self._own: dict[str, dict[str, nn.Parameter]] = {}  # path -> relative name -> trained copy

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of the five contacts are in use."""
        used = {
            "train": len(list(self.trained.parameters())),
            "weight": len(self.change_at),
            "branch": len(self.branch_at),
            "tokens": len(self.tokens),
            "tap": len(self.taps),
        }
        return tuple(kind for kind, number in used.items() if number)

    @property
    def inside(self) -> bool:
        """Whether something that trains lies inside the backbone, so that gradients cross it."""
        return any(kind != "tap" for kind in self.kinds)

    def train_tensor(self, backbone: Backbone, name: str) -> None:
        """Trains a copy of the backbone's tensor `name`, starting from its value."""
        parameter = nn.Parameter(backbone.tensor(name).detach().clone())
        self.trained.put(name, parameter)
        parts = name.split(".")
        for i in range(len(parts)):
            self._own.setdefault(".".join(parts[:i]), {})[".".join(parts[i:])] = parameter

    def own(self, path: str) -> dict[str, nn.Parameter]:
        """The trained copies of the tensors under `path`, by their names relative to it."""
        return self._own.get(path, {})

    def change_linear(self, backbone: Backbone, path: str, change: Change) -> None:
        """Puts `change` in the place of the linear layer at `path`."""
        if path not in backbone.linears:
            known = ", ".join(sorted({".".join(p.split(".")[2:]) for p in backbone.linears}))
            raise RequestError(
                f"No linear layer {path!r} in {backbone.name}: the blocks have {known}."
                f"{near_misses(path, backbone.linears)}"
            )
        self.changes.put(path, change)
        self.change_at[path] = change

    def add_branch(self, backbone: Backbone, path: str, branch: nn.Module) -> None:
        """Adds `branch(inputs, outputs, grid)` to the residual stream beside the sub-layer at `path`.

        inputs [B, P+N, D] is what enters the sub-layer (after its norm), outputs [B, P+N, D] what leaves it (before
        LayerScale), grid the patch grid (h, w).
        """
        if path not in {f"blocks.{i}.{name}" for i in range(backbone.depth) for name in SUBLAYERS}:
            raise RequestError(
                f"No sub-layer {path!r} in {backbone.name}: they are blocks.0.attn, blocks.0.mlp, ... "
                f"blocks.{backbone.depth - 1}.mlp; name one of these."
            )
        self.branches.put(path, branch)
        self.branch_at[path] = branch

    def add_tokens(self, backbone: Backbone, block: int, tokens: nn.Parameter) -> None:
        """Puts `tokens` [1, M, D] in front of the sequence for one block only."""
        _check_block(backbone, block)
        self.tokens[block] = tokens

    def tap(self, backbone: Backbone, block: int) -> None:
        """Asks for the output of a block (0 is the first)."""
        _check_block(backbone, block)
        self.taps.add(block)


def _check_block(backbone: Backbone, block: int) -> None:
    if not 0 <= block < backbone.depth:
        raise RequestError(
            f"No block {block} in {backbone.name}: they are numbered 0 to {backbone.depth - 1}; name one of these."
        )
