"""A feed-forward network that keeps nothing but its input for the backward pass.

Between its two layers it is several times as wide as outside, and in a side network that sees maps of stride 4 this is
most of what there is to remember. Backward forms it again, some rows at a time, so that neither pass writes it all to
memory: one product of six is done twice, and takes about what the traffic took.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .linear import compute_dtype
from .norm import gradients, normalised

AT_ONCE = 2**21  # bytes of the wide tensor on a processor: what the caches hold


def feedforward(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """fc2(gelu(fc1(norm(x)))): x [..., d] -> the same, in the precision of the products."""
    if torch.compiler.is_compiling():
        return fc2(F.gelu(fc1(norm(x))))
    parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    made: Tensor = _FeedForward.apply(x.flatten(0, -2), norm.eps, compute_dtype(x), *parameters)
    return made.view(x.shape)


class _FeedForward(torch.autograd.Function):
    """x [n, d], the LayerNorm's weight and bias [d], W1 [r, d], b1 [r], W2 [d, r], b2 [d] -> [n, d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.eps, ctx.dtype = eps, dtype
        weight, bias, *rest = parameters
        W1, b1, W2, b2 = (t.to(dtype) for t in rest)
        y = x.new_empty(x.shape, dtype=dtype)
        for rows in _chunks(x, W1):
            inputs, *_ = normalised(x[rows], weight, bias, eps, dtype)
            torch.addmm(b2, F.gelu(torch.addmm(b1, inputs, W1.T)), W2.T, out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *rest = ctx.saved_tensors
        W1, b1, W2, _ = (t.to(ctx.dtype) for t in rest)
        dx = torch.empty_like(x)
        sums = [torch.zeros_like(t) for t in (weight, bias, *rest)]
        for rows in _chunks(x, W1):
            out = dy[rows].to(ctx.dtype)
            inputs, mean, rstd = normalised(x[rows], weight, bias, ctx.eps, ctx.dtype)
            wide = torch.addmm(b1, inputs, W1.T)
            dwide = torch.ops.aten.gelu_backward(out @ W2, wide)
            dx[rows], dweight, dbias = gradients(dwide @ W1, x[rows], weight, bias, mean, rstd)
            own = (dweight, dbias, dwide.T @ inputs, dwide.sum(0), out.T @ F.gelu(wide), out.sum(0))
            for total, part in zip(sums, own, strict=True):
                total += part
        return dx, None, None, *sums


def _chunks(x: Tensor, W1: Tensor) -> Iterator[slice]:
    """The rows of x [n, d], as many at once as the caches hold; on a GPU all."""
    n = max(1, AT_ONCE // (len(W1) * W1.itemsize)) if x.device.type == "cpu" else len(x)
    return (slice(i, i + n) for i in range(0, len(x), max(n, 1)))
