"""BAPAT: a bottleneck beside the projections of each attention, another beside the MLP.

Yu et al. 2022, arXiv 2210.00788:  [k | v] = [W_k z | W_v z] + s (U tanh(V z + b1) + b2)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..kernels.bottleneck import widen
from ..method import Method, check_positive
from .adaptformer import OnInputs


class BAPAT(Method):
    """Parallel attention (PATT) and AdaptFormer together.

    where: which of q, k and v PATT adds to; k and v are the paper's. rank: R of its bottleneck; 128 in the released
    code, which is 5.5 % of a ViT-B with its mlp_rank of 64. scale: s. mlp_rank, mlp_scale: of the adapter beside the
    MLP, 0 for none. zero: PATT begins as nothing, and the whole as the frozen backbone; else its layers are drawn as
    any (released code).

    Parameters for L blocks of width D, with k and v: L (3 D R + R + 2 D) + L (2 D r + r + D), r the mlp_rank; 396,480
    on ViT-B/16. Where k and v are layers of their own each has a bottleneck.
    """

    title = "BAPAT, parallel attention and AdaptFormer"
    paper = "Yu et al. 2022, arXiv 2210.00788"
    choices = {"where": ("kv", "qv", "qk", "qkv")}
    keeps = 0.66  # what enters each attention as well
    variants = ({"where": "qkv", "rank": 5, "mlp_rank": 0}, {"where": "qv", "rank": 3, "scale": 2.0})

    def __init__(
        self,
        *,
        rank: int = 8,
        scale: float = 0.8,
        where: str = "kv",
        mlp_rank: int = 8,
        mlp_scale: float = 0.1,
        zero: bool = True,
    ) -> None:
        super().__init__()
        self.rank, self.scale, self.where = rank, scale, where
        self.mlp_rank, self.mlp_scale, self.zero = mlp_rank, mlp_scale, zero
        check_positive(self, "rank", "scale", "mlp_scale")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for block in backbone.blocks:
            for layer, own in backbone.rows(block, *self.where).items():
                outs = backbone.linear(layer).out_features
                patt = Parallel(block.width, outs, own, self.rank, self.scale, zero=self.zero)
                self.contacts.add_branch(backbone, layer, patt)
            if self.mlp_rank > 0:
                beside = OnInputs(block.width, self.mlp_rank, scale=self.mlp_scale)
                self.contacts.add_branch(backbone, f"{block.path}.mlp", beside)


class Parallel(nn.Module):
    """PATT beside one linear layer of D inputs, on some rows of its outputs, [start, end) each."""

    def __init__(self, D: int, outs: int, rows: list[tuple[int, int]], R: int, scale: float, *, zero: bool) -> None:
        super().__init__()
        self.outs, self.rows, self.scale = outs, rows, scale
        self.down = nn.Linear(D, R)
        self.up = nn.Linear(R, sum(end - start for start, end in rows))
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, inputs: Tensor, outputs: Tensor, grid: None) -> Tensor:
        """inputs [..., D] -> what is added to the outputs [..., outs]."""
        hidden = torch.tanh(self.down(inputs))
        return widen(hidden, self._placed(self.up.weight), self._placed(self.up.bias))

    def _placed(self, t: Tensor) -> Tensor:
        """[rows, ...] -> [outs, ...], zeros elsewhere."""
        parts = (self.scale * t).split([end - start for start, end in self.rows])
        unused = (0, 0) * (t.dim() - 1)
        placed = [F.pad(p, (*unused, start, self.outs - end)) for p, (start, end) in zip(parts, self.rows, strict=True)]
        return torch.stack(placed).sum(0)
