"""Linear layers: changed ones, as one product on their changed weight also while the change trains; frozen ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Change(nn.Module):
    """Other values in the place of one layer's own: `(W, b)` becomes `merged(W, b)`.

    A subclass gives `merged`, which is the method's definition and what a merge writes. On linear layers it may
    override `forward`, where the same product is cheaper without forming the merged weight.
    """

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight [out, in] of a linear layer, [out] of a LayerNorm, [out, 3, p, p] of the patch embedding; bias [out]
        or None -> the same shapes."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of a linear layer: x [B, P+N, in] -> [B, P+N, out]."""
        return F.linear(x, *self.merged(exact(weight), bias))

    def upon(self, x: Tensor, y: Tensor) -> Tensor:
        """The outputs, from x [B, P+N, in] and what the layer makes of it unchanged, y [B, P+N, out], where that is
        cheaper than a product of the change's own: y may be of a batch that other methods share."""
        raise NotImplementedError


class Gathered(Change):
    """A change that works upon the outputs of the unchanged layer, for a batch of several methods in one go."""

    @property
    def group(self) -> tuple[Any, ...]:
        """What changes must have in common to be computed together."""
        raise NotImplementedError

    @staticmethod
    def upon_rows(changes: Sequence[Any], x: Tensor, y: Tensor) -> Tensor:
        """`upon` for x [S, T, in] and y [S, T, out], the i-th row by the i-th change, which None leaves as it is."""
        raise NotImplementedError


class Effective(Change):
    """A change whose training step costs what the frozen layer's does, and its own few gradients.

    Forward and backward are one product each, with the merged weight, which is formed anew in both and never kept. Left
    to autograd, the gradient of the merged weight would be formed, a third product of that size, to be summed into the
    few tensors of the change; `gradients` gives those directly. What `merged` does to the bias must be to add to it.
    """

    def gradients(self, x: Tensor, dy: Tensor, total: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """x [n, in] and dy [n, out], the gradient of the outputs, total() its sum [out] -> the gradients of
        `parameters()`, in that order."""
        raise NotImplementedError

    def merged_in(self, dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `merged` gives, rounded to the precision of the products."""
        merged, shift = self.merged(exact(weight), bias)
        return merged.to(dtype), None if shift is None else shift.to(dtype)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.requires_grad or torch.compiler.is_compiling():
            return super().forward(x, weight, bias)
        return _Product.apply(x.to(compute_dtype(x)), weight, bias, self, *self.parameters())


class _Unchanged(Effective):
    """A frozen weight that is kept in few bits: formed anew in forward and in backward."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, bias

    def gradients(self, x: Tensor, dy: Tensor, total: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return ()


def few_bits(weight: Tensor) -> bool:
    """Whether a frozen weight is kept in bf16, or in int8 by torchao."""
    return weight.dtype == torch.bfloat16 or hasattr(weight, "qdata")


def exact(weight: Tensor) -> Tensor:
    """A weight in float32 where it is kept in few bits, else as it is."""
    if hasattr(weight, "qdata"):
        return weight.dequantize().float()
    return weight.float() if weight.dtype == torch.bfloat16 else weight


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which a product with x [...] is computed here and now."""
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear with a weight that does not train: under autocast the same numbers, without casting it at every call
    and keeping every cast until backward."""
    dtype = compute_dtype(x)
    if few_bits(weight) and (hasattr(weight, "qdata") or weight.dtype != dtype):
        if torch.compiler.is_compiling():
            return F.linear(x.to(dtype), exact(weight).to(dtype), bias)
        return _UNCHANGED(x, weight, bias)
    if weight.requires_grad or weight.dtype == dtype or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return F.linear(x.to(dtype), cast_once(weight, dtype), bias)


def cast_once(frozen: Any, dtype: torch.dtype) -> Tensor:
    """The tensor in another precision, made once and kept at it while its values are the same."""
    now = (frozen.untyped_storage()._cdata, frozen._version, dtype)
    made, cast = getattr(frozen, "cast", (None, frozen))
    if made != now:
        cast = frozen.detach().to(dtype)
        frozen.cast = (now, cast)
    return cast


_UNCHANGED = _Unchanged()


class _Product(torch.autograd.Function):
    """x [..., in] with the frozen weight [out, in] and the bias [out] that `change` changes -> [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, change: Effective, *parameters: Tensor
    ) -> Tensor:
        ctx.change, ctx.bias_dtype = change, None if bias is None else bias.dtype
        ctx.save_for_backward(x if parameters else None, weight, *parameters)
        return F.linear(x, *change.merged_in(x.dtype, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parameters = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            merged, _ = ctx.change.merged_in(dy.dtype, weight, None)
            dx = dy @ merged
        rows = dy.flatten(0, -2)
        total = cache(lambda: rows.sum(0))
        own = ctx.change.gradients(x.flatten(0, -2), rows, total) if parameters else ()
        bias = total().to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return dx, None, bias, None, *(g.to(p.dtype) for g, p in zip(own, parameters, strict=True))
