"""How much a number depends on which pictures a split happens to hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RESAMPLES = 500


def interval(n: int, value: Callable[[Tensor], Tensor], share: float = 0.95) -> tuple[float, float]:
    """The bootstrap's percentile interval (low, high): n pictures are drawn with replacement RESAMPLES times, always
    the same ones (Efron 1979). value: weights [R, n], how often each was drawn -> the number [R]."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
    weights = torch.zeros(RESAMPLES, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    found = value(weights)
    found = found[~found.isnan()]
    if not len(found):
        return 0.0, 1.0
    edge = (1 - share) / 2
    low, high = torch.quantile(found, torch.tensor([edge, 1 - edge], dtype=found.dtype)).tolist()
    return low, high
