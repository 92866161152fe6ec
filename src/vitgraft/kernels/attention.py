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

MOST_TOKENS = 600
AT_ONCE = 2**20  # bytes of float32 scores: what the caches hold


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: q [B, h, T, d], k and v [B, h, S, d] -> [B, h, T, d]."""
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[2], k.shape[2]) <= MOST_TOKENS
    if slow and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        made: Tensor = _Attention.apply(q, k, v)
        return made
    return F.scaled_dot_product_attention(q, k, v)


class _Attention(torch.autograd.Function):
    """torch's forward; in backward the scores are formed again, in float32 at least, of some heads at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        B, h, T, d = q.shape
        wide = torch.promote_types(q.dtype, torch.float32)
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        some = max(1, AT_ONCE // (4 * T * k.shape[2]))
        pictures, heads = max(1, some // h), min(some, h)
        for i, j in product(range(0, B, pictures), range(0, h, heads)):
            at = slice(i, i + pictures), slice(j, j + heads)
            Q, K, V, G = (t[at].flatten(0, 1) for t in (q, k, v, grad))
            weights = torch.softmax(Q.to(wide) * d**-0.5 @ K.to(wide).mT, -1)
            into = (G @ V.mT).to(wide)
            into = (weights * (into - (weights * into).sum(-1, keepdim=True)) * d**-0.5).to(q.dtype)
            for made, part in zip(grads, (into @ K, into.mT @ Q, weights.to(q.dtype).mT @ G), strict=True):
                made[at] = part.view_as(made[at])
        return grads
