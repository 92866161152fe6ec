"""Softmax attention, with a backward of its own where torch's is slow: bf16 on a processor, up to a few hundred tokens.

torch's fused backward spends most of its time there on laying bf16 blocks out anew: at 65 tokens it takes 4 times as
long as ours, at 257 1.6 times, at 577 1.2 times. At 1025 tokens, in float32 and on a GPU it is the faster one.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recompute import recomputed

MOST_TOKENS = 600
AT_ONCE = 2**21  # bytes of float32 scores: what the caches hold


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None, remade: bool = False
) -> Tensor:
    """softmax(scale q k^T + mask) v: q [B, h, T, d], k and v [B, h, S, d] -> [B, h, T, d].

    mask [n, h, T, S]: of picture i mask i % n. scale: 1 / sqrt(d) unless given. remade: q, k and v are made again in
    backward wherever they would be kept, so copies of them should be too.
    """
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[2], k.shape[2]) <= MOST_TOKENS
    fixed = mask is None or not mask.requires_grad
    if slow and fixed and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        made: Tensor = _Attention.apply(q, k, v, mask, scale)
        return made
    return _fused(q, k, v, mask, scale, remade)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, remade: bool = False) -> Tensor:
    """torch's. Where masks differ from picture to picture they take the place of heads, which it knows."""
    if mask is None or len(mask) == 1:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    n = len(mask)

    def as_heads(t: Tensor) -> Tensor:
        return t.unflatten(0, (-1, n)).flatten(1, 2)

    q, k, v = (recomputed(as_heads, t) if remade else as_heads(t) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, mask.flatten(0, 1)[None], scale=scale)
    return y.unflatten(1, (n, -1)).flatten(0, 1)


class _Attention(torch.autograd.Function):
    """torch's forward; in backward the scores are formed again, in float32 at least, of some heads at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = q.shape[-1] ** -0.5 if scale is None else scale
        return _fused(q, k, v, mask, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):  # a user's loop may be inside it
            q, k, v, mask = ctx.saved_tensors
            B, h, T, _ = q.shape
            wide = torch.promote_types(q.dtype, torch.float32)
            grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
            some = max(1, AT_ONCE // (4 * T * k.shape[2]))
            pictures, heads = max(1, some // h), min(some, h)
            for i, j in product(range(0, B, pictures), range(0, h, heads)):
                at = slice(i, i + pictures), slice(j, j + heads)
                Q, K, V, G = (t[at].flatten(0, 1) for t in (q, k, v, grad))
                scores = Q.to(wide) * ctx.scale @ K.to(wide).mT
                if mask is not None:
                    own = mask[torch.arange(i, min(i + pictures, B)) % len(mask), at[1]]
                    scores.add_(own.flatten(0, 1))
                weights = torch.softmax(scores, -1)
                into = torch._softmax_backward_data((G @ V.mT).to(wide), weights, -1, wide)
                into = into.mul_(ctx.scale).to(q.dtype)
                for made, part in zip(grads, (into @ K, into.mT @ Q, weights.to(q.dtype).mT @ G), strict=True):
                    made[at] = part.view_as(made[at])
        return *grads, None, None
