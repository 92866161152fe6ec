"""What was answered about pictures that may have several labels, and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .answered import Answered
from .resampling import interval

THRESHOLD = 0.5  # from which probability on a label counts as said


def average_precision(truth: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """The area under the steps of precision over recall: truth bool [n], scores [n], weights [R, n] -> [R]; NaN where
    nothing is true. Pictures with equal scores count together, as scikit-learn's `average_precision_score` has it."""
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], weights[:, order] * truth[order]
    last = torch.searchsorted(-scores, -scores, right=True) - 1  # of each picture the last of equal score
    found, seen = hits.cumsum(1)[:, last], weights[:, order].cumsum(1)[:, last]
    return (found / seen.clamp(min=1e-12) * hits).sum(1) / hits.sum(1)


@dataclass(frozen=True, eq=False)
class Evaluation(Answered):
    """The answers for the n pictures of one split: `truth` bool [n, K], `probabilities` float32 [n, K]."""

    metric: ClassVar[str] = "mAP"

    truth: Tensor
    probabilities: Tensor

    @property
    def said(self) -> Tensor:
        """Which labels are likelier than not, bool [n, K]."""
        return self.probabilities >= THRESHOLD

    def _mean_ap(self, weights: Tensor) -> Tensor:
        """weights [R, n] -> the mean of the average precisions of the labels that are there, [R]."""
        each = [
            average_precision(self.truth[:, k], self.probabilities[:, k], weights) for k in range(len(self.classes))
        ]
        return torch.stack(each).nanmean(0)

    @cached_property
    def per_class(self) -> list[tuple[str, float | None, int]]:
        """(name, average precision, how many pictures have it) of each label; None where no picture has it."""
        once = torch.ones(1, len(self), dtype=torch.float64)
        found = []
        for k, name in enumerate(self.classes):
            n = int(self.truth[:, k].sum())
            ap = float(average_precision(self.truth[:, k], self.probabilities[:, k], once)) if n else None
            found.append((name, ap, n))
        return found

    @cached_property
    def value(self) -> float:
        """Mean average precision over the labels that the split shows, 0..1."""
        found = [ap for _, ap, _ in self.per_class if ap is not None]
        return sum(found) / len(found) if found else 0.0

    @cached_property
    def interval(self) -> tuple[float, float]:
        return interval(len(self), self._mean_ap)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """micro_f1: over all answers; macro_f1: the mean over labels that are there or were said; exact: the share of
        pictures whose labels are all right and complete."""
        right = (self.said & self.truth).sum(0).double()
        either = (self.said.sum(0) + self.truth.sum(0)).double()
        f1 = (2 * right / either.clamp(min=1))[either > 0]
        return {
            "mAP": self.value,
            "micro_f1": float(2 * right.sum() / either.sum().clamp(min=1)),
            "macro_f1": float(f1.mean()) if len(f1) else 0.0,
            "exact": float((self.said == self.truth).all(1).double().mean()),
        }

    @property
    def note(self) -> str:
        """What the number is to be compared with."""
        share = float(self.truth.double().mean(0)[self.truth.any(0)].mean()) if self.truth.any() else 0.0
        return f"Answers by chance would give {share:.1%}; a picture has {self.truth.sum() / len(self):.2f} labels."

    def lines(self) -> list[str]:
        """The numbers in words."""
        told = ", ".join(f"{name.replace('_', ' ')} {n:.2%}" for name, n in self.numbers.items() if name != "mAP")
        rows = [
            f"  {name:24} {ap:7.1%}  {n} pictures" if ap is not None else f"  {name:24}    none"
            for name, ap, n in self.per_class
        ]
        return [f"{self.headline}, {told}", *rows]

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        return {**super().to_dict(), "per_class": [list(row) for row in self.per_class]}
