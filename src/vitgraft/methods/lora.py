"""LoRA: a low-rank update beside frozen linear layers.

Hu et al. 2022, arXiv 2106.09685:  W' = W + alpha / R  B A,  with B = 0 at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import ROLES, Backbone
from ..kernels.bottleneck import widen
from ..kernels.linear import Effective, Gathered, compute_dtype, frozen_linear
from ..method import Method, check_positive, check_share, check_some


class LoRA(Method):
    """Low-rank adaptation.

    targets: which linear layers: q, k, v (a pair of their own inside a fused layer), qkv (one pair for all of it),
    proj, fc1, fc2; q and v are the paper's, in dense tasks all are the default. rank: R (8 in NOAH's VTAB-1k runs).
    alpha: the update is scaled by alpha / R. dropout: before A.

    Parameters for L blocks of width D: per target R (in + out), with D -> D for q, k, v and proj, D -> 3 D for qkv,
    D -> 4 D for fc1, 4 D -> D for fc2: 4 L R D with q and v, 294,912 on ViT-B/16.
    """

    title = "LoRA, low-rank adaptation"
    paper = "Hu et al. 2022, arXiv 2106.09685"
    published = "VTAB-1k 74.5 (mean of groups, ViT-B/16 IN-21k; NOAH, Zhang et al. 2022)"
    dense = {"targets": ("qkv", "proj", "fc1", "fc2")}
    choices = {"targets": ROLES}
    variants = ({"targets": ("qkv", "proj", "fc1", "fc2")}, {"targets": ("q", "k", "v"), "rank": 3, "alpha": 6.0})

    def __init__(
        self, *, targets: Sequence[str] = ("q", "v"), rank: int = 8, alpha: float = 8.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.targets, self.rank, self.alpha, self.dropout = tuple(targets), rank, alpha, dropout
        check_positive(self, "rank", "alpha")
        check_some(self, "targets")
        check_share(self, "dropout")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for block in backbone.blocks:
            for layer, own in backbone.rows(block, *self.targets).items():
                linear = backbone.linear(layer)
                change = LowRank(linear.in_features, linear.out_features, own, self.rank, self.alpha, self.dropout)
                self.contacts.change(backbone, layer, change)


class LowRank(Gathered, Effective):
    """Low-rank updates of some rows of a linear layer, [start, end) each; one product for all of them."""

    def __init__(self, ins: int, outs: int, rows: list[tuple[int, int]], R: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.outs, self.rows, self.scale = outs, rows, alpha / R
        self.A = nn.Parameter(torch.empty(len(rows) * R, ins))
        self.B = nn.ParameterList(torch.zeros(end - start, R) for start, end in rows)
        self.drop = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def up(self) -> Tensor:
        """The matrices B, each in its own rows and columns: [outs, len(rows) R]."""
        all_of_them = [self.spread(B) for B in self.B]
        if self.rows == [(0, self.outs)]:
            return all_of_them[0]
        R = self.B[0].shape[1]
        n = len(self.rows)
        placed = [
            F.pad(B, (i * R, (n - 1 - i) * R, start, self.outs - end))
            for i, (B, (start, end)) in enumerate(zip(all_of_them, self.rows, strict=True))
        ]
        return torch.stack(placed).sum(0)

    def spread(self, B: Tensor) -> Tensor:
        """What is kept of a matrix B -> all of its rows."""
        return B

    def gathered(self, rows: Tensor) -> Tensor:
        """All rows of a matrix B -> those that are kept."""
        return rows

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.addmm(weight, self.up(), self.A, alpha=self.scale), bias

    def gradients(self, x: Tensor, dy: Tensor, total: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        up = self.scale * self.up()
        dA = (dy @ up.to(dy.dtype)).mT @ x
        dup = self.scale * (x @ self.A.mT.to(x.dtype)).mT @ dy  # [len(rows) R, outs]: B's gradients, turned
        R = self.B[0].shape[1]
        parts = (dup[i * R : (i + 1) * R, start:end].mT for i, (start, end) in enumerate(self.rows))
        return dA, *map(self.gathered, parts)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # In 16 bits the sum of a weight and a small update is the weight.
        if torch.finfo(compute_dtype(x)).bits > 16 and not (self.drop.p and self.training):
            return super().forward(x, weight, bias)
        return self.upon(x, frozen_linear(x, weight, bias))

    def upon(self, x: Tensor, y: Tensor) -> Tensor:
        return y + widen(F.linear(self.drop(x), self.A), self.scale * self.up())

    @property
    def group(self) -> tuple[int, ...]:
        return (len(self.A),)

    @staticmethod
    def upon_rows(changes: Sequence[LowRank | None], x: Tensor, y: Tensor) -> Tensor:
        """One product with all A, one with all B (as Punica and S-LoRA gather them, arXiv 2310.18547, 2311.03285); of a
        row without a change both are zeros, so shapes are the same whoever shares the batch."""
        down = _stacked([None if change is None else change.A for change in changes])
        up = _stacked([None if change is None else change.scale * change.up() for change in changes])
        return y + torch.bmm(torch.bmm(x, down.mT), up.mT)


def _stacked(given: Sequence[Tensor | None]) -> Tensor:
    """Tensors of one shape as rows, zeros for None."""
    nothing = torch.zeros_like(next(t for t in given if t is not None))
    return torch.stack([nothing if t is None else t for t in given])
