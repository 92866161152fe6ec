"""The two-layer bottleneck that adapters share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
        return self.scale * self.up(self.drop(F.relu(self.down(x))))
