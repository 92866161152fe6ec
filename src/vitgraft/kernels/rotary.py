"""Rotary position embedding: pairs of the numbers of a query or key are turned by angles of its place.

Su et al. 2021, arXiv 2104.09864; on a grid Heo et al. 2024, arXiv 2403.13298. Prefix and extra tokens have no place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Rotary:
    """The embedding of one grid, for all blocks or for each of them.

    embedding: sin and cos, side by side: [N, 2 d], or for each block and head [L, heads, N, 2 d] if `by_block`. half:
    number j is turned with j + d / 2, not with its neighbour.
    """

    def __init__(self, embedding: Tensor, by_block: bool, half: bool) -> None:
        self.embedding, self.by_block, self.half = embedding, by_block, half
        self._kept: dict[tuple, Rotary] = {}
        self.sin = self.cos = embedding

    def of(self, block: int, front: int, x: Tensor) -> Rotary:
        """That of a block, for sequences with so many tokens in front that are not turned; kept, as all blocks of a
        pass, and all passes, ask for the same few."""
        key = (block if self.by_block else 0, front)
        if key not in self._kept or self.embedding.requires_grad:
            own = self.embedding[block] if self.by_block else self.embedding
            sin, cos = own.chunk(2, dim=-1)
            made = Rotary(own, False, self.half)
            made.sin, made.cos = F.pad(sin, (0, 0, front, 0)), F.pad(cos, (0, 0, front, 0), value=1.0)
            self._kept[key] = made
        return self._kept[key]

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, heads, T, d] -> the same, in the precision of the embedding if that is the higher one."""
        if self.half:
            a, b = x.chunk(2, dim=-1)
            turned = torch.cat([-b, a], dim=-1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return torch.addcmul(x * self.cos, turned, self.sin)
