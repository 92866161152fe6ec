"""RepAdapter: a linear bottleneck before qkv and before fc1, which folds into them.

Luo et al. 2023, arXiv 2302.08106:  z' = z + s up(down(z)),  up with two groups;  y = W z' + b.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..kernels.bottleneck import widen
from ..kernels.linear import Change, frozen_linear
from ..method import Method, check_positive, check_share


class RepAdapter(Method):
    """Linear adapters at the entrance of attention and MLP (section 3.2).

    bottleneck: R. groups: of the layer R -> D (paper: 2). scale: s. dropout: between the two layers (released code).
    Where q, k and v, or the halves of a SwiGLU, are layers apart, each has an adapter of its own.

    Parameters for L blocks of width D, G groups: 2 L (D R + R + D R / G + D), 239,808 on ViT-B/16 (221,184 of them
    weights, the published 0.22 M).
    """

    title = "RepAdapter"
    paper = "Luo et al. 2023, arXiv 2302.08106"
    published = "VTAB-1k 73.6 (mean of 19, ViT-B/16 IN-21k, last epoch; Mai et al. 2025)"
    variants = ({"bottleneck": 6, "groups": 3, "scale": 0.5},)

    def __init__(self, *, bottleneck: int = 8, groups: int = 2, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.bottleneck, self.groups, self.scale, self.dropout = bottleneck, groups, scale, dropout
        check_positive(self, "bottleneck", "groups", "scale")
        check_share(self, "dropout")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        R, G = self.bottleneck, self.groups
        for block in backbone.blocks:
            if R % G or block.width % G:
                possible = ", ".join(str(n) for n in range(1, R + 1) if not R % n and not block.width % n)
                raise RequestError(
                    f"{G} groups do not divide a bottleneck of {R} and the width {block.width} of {backbone.name}: "
                    f"possible are {possible}; choose one of these."
                )
            for path in backbone.layers(block, "qkv", "fc1"):
                self.contacts.change(backbone, path, OnEntrance(block.width, R, G, self.scale, self.dropout))


class OnEntrance(Change):
    """W (z + s up(down(z))) + b."""

    def __init__(self, D: int, R: int, G: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(D, R)
        self.drop = nn.Dropout(dropout)
        self.up = nn.Parameter(torch.zeros(G, D // G, R // G))  # the diagonal blocks
        self.up_bias = nn.Parameter(torch.zeros(D))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        up = self.scale * torch.block_diag(*self.up)
        shift = weight @ (up @ self.down.bias + self.scale * self.up_bias)
        return weight + weight @ up @ self.down.weight, shift if bias is None else bias + shift

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        up = self.scale * torch.block_diag(*self.up)
        return frozen_linear(x + widen(self.drop(self.down(x)), up, self.scale * self.up_bias), weight, bias)
