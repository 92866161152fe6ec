"""Rotary position embedding: pairs of the numbers of a query or key are turned by angles of its place.

Su et al. 2021, arXiv 2104.09864; on a grid Heo et al. 2024, arXiv 2403.13298. Prefix and extra tokens have no place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        if self.embedding.requires_grad or torch.compiler.is_compiling():
            return self._by_hand(x)
        turned: Tensor = _Turned.apply(x, self.sin, self.cos, self.half)
        return turned

    def _by_hand(self, x: Tensor) -> Tensor:
        """In operations that any compiler knows, and through which angles train."""
        if self.half:
            a, b = x.chunk(2, dim=-1)
            turned = torch.cat([-b, a], dim=-1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return torch.addcmul(x * self.cos, turned, self.sin)


class _Turned(torch.autograd.Function):
    """x [B, heads, T, d] turned by angles [(heads,) T, d], of which both numbers of a pair have one; the gradient is
    turned back by them. Nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sin: Tensor, cos: Tensor, half: bool) -> Tensor:
        ctx.save_for_backward(sin, cos)
        ctx.half, ctx.dtype = half, x.dtype
        return _turn(x, sin, cos, half)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        sin, cos = ctx.saved_tensors
        return _turn(dy, -sin, cos, ctx.half).to(ctx.dtype), None, None, None


def _turn(x: Tensor, sin: Tensor, cos: Tensor, half: bool) -> Tensor:
    """In as few passes over memory as there are: one where pairs lie together, as complex numbers do."""
    kind = torch.promote_types(x.dtype, cos.dtype)
    x, sin, cos = (t.to(torch.promote_types(kind, torch.float32)) for t in (x, sin, cos))
    d = x.shape[-1] // 2
    if half:
        y = x * cos
        y[..., :d].addcmul_(x[..., d:], sin[..., :d], value=-1)
        y[..., d:].addcmul_(x[..., :d], sin[..., d:])
    else:
        pairs = (x if x.stride(-1) == 1 else x.contiguous()).unflatten(-1, (d, 2))
        angles = torch.complex(cos[..., ::2], sin[..., ::2])
        y = torch.view_as_real(torch.view_as_complex(pairs) * angles).flatten(-2)
    return y.to(kind)
