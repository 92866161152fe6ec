"""The two-layer bottleneck that adapters share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def widen(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear from few features to many: x [..., R], weight [D, R] -> [..., D].

    The same product, but autograd then forms the weight's gradient as (x^T dy)^T. F.linear has it as dy^T x, which on a
    CPU takes as long as the gradient of a dense D x D weight does when R is 8.
    """
    rows, into = x.flatten(0, -2), weight.mT.contiguous()
    y = rows @ into if bias is None else torch.addmm(bias, rows, into)
    return y.unflatten(0, x.shape[:-1])


class Bottleneck(nn.Module):
    """up(relu(down(x))), D -> R -> D, times a scale; zero at the start.

    down starts by Kaiming (AdaptFormer's released code). Parameters: 2 D R + R + D.
    """

    def __init__(self, D: int, R: int, *, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(D, R)
        self.drop = nn.Dropout(dropout)
        self.up = nn.Linear(R, D)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, P+N, D] -> the same."""
        up = self.up
        return widen(self.drop(F.relu(self.down(x))), self.scale * up.weight, self.scale * up.bias)
