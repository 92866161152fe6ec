"""Two methods on the same tasks: how large is the difference, and could it be chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

EXACT = 25  # differences up to which the test counts every assignment of signs


def signed_rank(differences: Sequence[float]) -> tuple[float, float]:
    """Wilcoxon's signed-rank test (1945), two-sided: (W, p), W the smaller of the two sums of ranks.

    Differences of zero are left out; equal ones share the mean of their ranks. p is exact up to 25 differences, ties
    included, and beyond that from the normal distribution with corrections for ties and continuity. Without any
    difference p is 1.
    """
    kept = [d for d in (round(d, 12) for d in differences) if d]  # 0.3 - 0.1 and 0.2 are one difference
    n = len(kept)
    doubled = _doubled_ranks([abs(d) for d in kept])
    total = sum(doubled)
    positive = sum(rank for rank, d in zip(doubled, kept, strict=True) if d > 0)
    least = min(positive, total - positive)
    p = _exact(doubled, least) if n <= EXACT else _normal(doubled, least)
    return least / 2, p


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Twice the rank of each, from 2; whole numbers, because a shared rank may end in a half."""
    return [2 * sum(other < size for other in sizes) + sum(other == size for other in sizes) + 1 for size in sizes]


def _exact(ranks: Sequence[int], least: int) -> float:
    """The share of the 2**n assignments of signs whose smaller sum is no larger than `least`."""
    ways = [1] + [0] * sum(ranks)  # how many sets of ranks have this sum
    for rank in ranks:
        for value in range(len(ways) - 1, rank - 1, -1):
            ways[value] += ways[value - rank]
    return min(1.0, 2 * sum(ways[: least + 1]) / 2 ** len(ranks))


def _normal(ranks: Sequence[int], least: int) -> float:
    # The sum of independent ranks with random signs: its variance is sum(rank^2) / 4, ties included.
    mean, deviation = sum(ranks) / 4, math.sqrt(sum(rank * rank for rank in ranks)) / 4
    z = min(0.0, (least / 2 - mean + 0.5) / deviation)
    return min(1.0, math.erfc(-z / math.sqrt(2)))


def bootstrap(differences: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval (low, high) of the mean difference, over tasks drawn with replacement.

    It says how much the mean depends on which tasks are in the suite; with few tasks it is too narrow.
    """
    given = np.asarray(differences, dtype=float)
    chosen = np.random.default_rng(seed).integers(len(given), size=(draws, len(given)))
    low, high = np.quantile(given[chosen].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
