"""Batch normalisation that stays right at batch 1 and across processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import again


class BatchNorm(nn.Module):
    """Over B and every position of [B, C, ...].

    torch's own raises at one value per channel, and its synchronised form exists on GPUs only. Here one value per
    channel is normalised by the running statistics, and with several processes the statistics are those of the global
    batch, so that two processes compute what one would.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        count = x.numel() // x.shape[1] * world
        if self.training and count > 1 and world > 1:
            return self._synchronised(x, count)
        batch = self.training and count > 1
        momentum = 0.0 if again() else self.momentum
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, batch, momentum, self.eps)

    def _synchronised(self, x: Tensor, count: int) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        mean = _Sum.apply(wide.sum(axes)) / count
        centred = wide - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / count
        if not again():
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, which each of them has a share in: gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
