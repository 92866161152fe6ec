"""LayerNorm over rows of few numbers, as the stages of a side network have them.

On a GPU torch gives each row to a group of threads that 32 to 72 numbers do not fill: of a step of HST these norms
take more than a quarter (docs/performance.md). There a kernel of ours, in Triton, takes many rows at once; everywhere
else it is torch's.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WIDEST = 128  # numbers in a row; torch fills its threads with more
NEAR = 1e-4  # what float32 sums in another order may differ by, of numbers of size 1


class LayerNorm(nn.LayerNorm):
    """torch's, of the last axis alone."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., d], weight and bias [d] -> the same shape; in float32 where autocast has torch's so."""
    if torch.compiler.is_compiling() or not _by_triton(x):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    made: Tensor = _Narrow.apply(x, weight, bias, eps)
    return made


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Without autograd, rows [n, d] -> the norm in a precision of its own, and what `gradients` wants of it: means and
    reciprocal deviations, [n] or [n, 1]."""
    if _by_triton(x):
        from .triton_norm import forward

        return forward(x, weight, bias, eps, dtype)
    y, mean, rstd = torch.native_layer_norm(_wide(x, weight), weight.shape, weight, bias, eps)
    return y.to(dtype), mean, rstd


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dy [n, d] -> the gradients of rows, weight and bias."""
    if _by_triton(x):
        from .triton_norm import backward

        return backward(dy, x, weight, mean, rstd)
    given = _wide(x, weight)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        dy.to(given.dtype), given, weight.shape, mean, rstd, weight, bias, [True, True, True]
    )
    return found


def _wide(x: Tensor, weight: Tensor) -> Tensor:
    """A GPU's LayerNorm takes inputs of its weight's precision alone."""
    return x if x.device.type == "cpu" else x.to(weight.dtype)


def _by_triton(x: Tensor) -> bool:
    return x.is_cuda and x.shape[-1] <= WIDEST and x.dtype != torch.float64 and _as_torch_has_it(x.device)


@cache
def _as_torch_has_it(device: torch.device) -> bool:
    """Whether Triton is there, and its kernels give on this device what torch gives; asked once, before any is used."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        apart = difference(device)
    except Exception as error:  # a compiler or a driver that does not suit it: whatever it raises, torch's will do
        why = str(error).partition("\n")[0].rstrip(".")
        warnings.warn(f"Triton cannot be used on {device} ({why}): side networks take longer.", stacklevel=2)
        return False
    if not apart < NEAR:
        warnings.warn(f"Triton's LayerNorm is {apart:.1g} from torch's on {device}: torch's is taken.", stacklevel=2)
        return False
    return True


def difference(device: torch.device) -> float:
    """The largest difference between Triton's kernels and torch's, of norms and gradients of random rows."""
    from . import triton_norm

    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for n, d in ((1, 32), (1000, 48), (333, 72), (70, 128)):
        x, dy = (torch.randn(n, d, generator=generator).to(device) for _ in range(2))
        weight, bias = (torch.randn(d, generator=generator).to(device) for _ in range(2))
        y, mean, rstd = triton_norm.forward(x, weight, bias, 1e-6, torch.float32)
        ours = (y, *triton_norm.backward(dy, x, weight, mean, rstd))
        expected, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, 1e-6)
        theirs = torch.ops.aten.native_layer_norm_backward(
            dy, x, weight.shape, mean, rstd, weight, bias, [True, True, True]
        )
        # Gradients of weight and bias are sums over the rows.
        sizes = (1, 1, n**0.5, n**0.5)
        for one, other, size in zip(ours, (expected, *theirs), sizes, strict=True):
            worst = max(worst, float((one - other).abs().max()) / size)
    return worst


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        wide = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
        y, mean, rstd = normalised(x.flatten(0, -2), weight, bias, eps, wide)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        dx, dweight, dbias = gradients(dy.flatten(0, -2), x.flatten(0, -2), *rest)
        return dx.view(x.shape), dweight, dbias, None
