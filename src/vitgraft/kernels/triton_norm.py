"""The kernels behind `norm`, in Triton: rows [n, d] of up to 128 numbers, many rows to a program; sums in float32.

Imported where they are used alone: Triton is there on Linux only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 2048  # numbers of a tile
PROGRAMS = 512  # of backward, each with a share of the weight's and the bias's sums: several to every multiprocessor


@triton.jit
def _forward(x, weight, bias, y, mean, rstd, n, eps, d: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.arange(0, WIDE)
    inside = (rows[:, None] < n) & (columns[None, :] < d)
    at = rows[:, None] * d + columns[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.sum(values, axis=1) / d
    centred = tl.where(inside, values - m[:, None], 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / d + eps)
    scale = tl.load(weight + columns, mask=columns < d, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=columns < d, other=0.0).to(tl.float32)
    tl.store(y + at, (centred * r[:, None] * scale[None, :] + shift[None, :]).to(y.dtype.element_ty), mask=inside)
    tl.store(mean + rows, m, mask=rows < n)
    tl.store(rstd + rows, r, mask=rows < n)


@triton.jit
def _backward(
    dy, x, weight, mean, rstd, dx, dweight, dbias, n, tiles, d: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    program = tl.program_id(0)
    columns = tl.arange(0, WIDE)
    scale = tl.load(weight + columns, mask=columns < d, other=0.0).to(tl.float32)
    of_weight = tl.zeros([WIDE], dtype=tl.float32)
    of_bias = tl.zeros([WIDE], dtype=tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (rows[:, None] < n) & (columns[None, :] < d)
        at = rows[:, None] * d + columns[None, :]
        m = tl.load(mean + rows, mask=rows < n, other=0.0)
        r = tl.load(rstd + rows, mask=rows < n, other=0.0)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        normal = tl.where(inside, (values - m[:, None]) * r[:, None], 0.0)
        given = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        scaled = given * scale[None, :]
        along = tl.sum(scaled * normal, axis=1) / d
        level = tl.sum(scaled, axis=1) / d
        found = r[:, None] * (scaled - level[:, None] - normal * along[:, None])
        tl.store(dx + at, found.to(dx.dtype.element_ty), mask=inside)
        of_weight += tl.sum(given * normal, axis=0)
        of_bias += tl.sum(given, axis=0)
    tl.store(dweight + program * d + columns, of_weight, mask=columns < d)
    tl.store(dbias + program * d + columns, of_bias, mask=columns < d)


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x [n, d] in `dtype`, with means and reciprocal deviations [n]."""
    x = x.contiguous()
    n, d = x.shape
    y = torch.empty(n, d, dtype=dtype, device=x.device)
    mean, rstd = (torch.empty(n, dtype=torch.float32, device=x.device) for _ in range(2))
    rows, wide = _tile(d)
    if n:
        _forward[(triton.cdiv(n, rows),)](x, weight, bias, y, mean, rstd, n, eps, d, rows, wide)
    return y, mean, rstd


def backward(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dy [n, d] -> the gradients of x [n, d], weight and bias [d]; the same each time, since no sum is atomic."""
    x, dy = x.contiguous(), dy.contiguous()
    n, d = x.shape
    rows, wide = _tile(d)
    tiles = triton.cdiv(n, rows)
    programs = max(1, min(tiles, PROGRAMS))
    dx = torch.empty_like(x)
    dweight, dbias = (torch.zeros(programs, d, dtype=torch.float32, device=x.device) for _ in range(2))
    if n:
        _backward[(programs,)](dy, x, weight, mean, rstd, dx, dweight, dbias, n, tiles, d, rows, wide)
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype)


def _tile(d: int) -> tuple[int, int]:
    """How many rows of how many numbers, both powers of two, as Triton has them."""
    wide = triton.next_power_of_2(d)
    return max(1, AT_ONCE // wide), wide
