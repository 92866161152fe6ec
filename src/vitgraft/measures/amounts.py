"""What numbers were answered for pictures, and how far they are off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from .answered import Answered
from .resampling import interval


@dataclass(frozen=True, eq=False)
class Evaluation(Answered):
    """The answers for the n pictures of one split: `truth` and `answers` float64 [n], of what `classes` names."""

    metric: ClassVar[str] = "R2"

    truth: Tensor
    answers: Tensor

    @property
    def errors(self) -> Tensor:
        """[n], above zero where too much was answered."""
        return self.answers - self.truth

    def _explained(self, weights: Tensor) -> Tensor:
        """weights [R, n] -> [R]"""
        mean = (weights @ self.truth) / weights.sum(1)
        around = (weights * (self.truth - mean[:, None]).square()).sum(1)
        return 1 - weights @ self.errors.square() / around

    @cached_property
    def value(self) -> float:
        """The share of the numbers' variance that the answers explain: 1 where all are right, 0 for always answering
        the mean, and below for worse."""
        around = (self.truth - self.truth.mean()).square().sum()
        return float(1 - self.errors.square().sum() / around) if around > 0 else 0.0

    @cached_property
    def interval(self) -> tuple[float, float]:
        return interval(len(self), self._explained)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """mean_absolute_error, with its interval, and root_mean_square_error, in the numbers' own unit."""
        absolute = self.errors.abs()
        return {
            "R2": self.value,
            "mean_absolute_error": float(absolute.mean()),
            "mean_absolute_error_interval": list(interval(len(self), lambda w: w @ absolute / w.sum(1))),
            "root_mean_square_error": float(self.errors.square().mean().sqrt()),
        }

    @property
    def note(self) -> str:
        """What the number is to be compared with."""
        around = float((self.truth - self.truth.median()).abs().mean())
        return (
            f"Always answering the median, {float(self.truth.median()):.6g}, would be off by {around:.4g} on average."
        )

    def lines(self) -> list[str]:
        """The numbers in words."""
        numbers = self.numbers
        least, most = numbers["mean_absolute_error_interval"]
        return [
            self.headline,
            f"  {self.classes[0]}: off by {numbers['mean_absolute_error']:.4g} on average ({least:.4g} to {most:.4g}), "
            f"root mean square {numbers['root_mean_square_error']:.4g}",
        ]
