"""What a classifier answered on the pictures of a split, and the numbers that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .answered import Answered


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (low, high) of the share `correct / n`, by default at 95 %.

    Unlike the normal approximation it stays inside 0..1 and keeps its width when every answer, or none, is right.
    """
    if n < 1:
        return 0.0, 1.0
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def among(ask: Callable[..., Tensor], labels: Iterable[int]) -> Callable[..., Tensor]:
    """Asks a classifier for one of these classes: the logits, [B, K], of all others become -inf.

    Sets such as ImageNet-A and ImageNet-R show 200 of the 1000 classes that a model knows, and are measured so by their
    authors: `eval.py` of hendrycks/natural-adv-examples and of hendrycks/imagenet-r (Hendrycks et al. 2021, arXiv
    1907.07174 and 2006.16241). NOAH's released code answers among all 1000, which gives lower numbers.
    """
    allowed = sorted(set(labels))

    def asked(*given: Any) -> Tensor:
        logits = ask(*given)
        only = torch.full_like(logits, -math.inf)
        only[:, allowed] = logits[:, allowed]
        return only

    return asked


@dataclass(frozen=True, eq=False)
class Evaluation(Answered):
    """The answers for the n pictures of one split.

    `classes` are the K names, `paths` the n picture files, `labels` the true classes, int64 [n],
    `probabilities` what the model gave to each class, float32 [n, K].
    """

    metric: ClassVar[str] = "top-1 accuracy"

    labels: Tensor
    probabilities: Tensor

    def __post_init__(self) -> None:
        n, K = len(self.paths), len(self.classes)
        if n == 0 or self.labels.shape != (n,) or self.probabilities.shape != (n, K):
            raise ValueError(
                f"an evaluation of {n} pictures in {K} classes got labels {list(self.labels.shape)} and probabilities "
                f"{list(self.probabilities.shape)}: give at least one picture, labels [n] and probabilities [n, K]"
            )
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < K:
            raise ValueError(f"a label is outside 0..{K - 1}, the {K} classes: give indices into them")

    @property
    def predicted(self) -> Tensor:
        """The class with the highest probability of each picture, int64 [n]."""
        return self.probabilities.argmax(dim=1)

    @property
    def value(self) -> float:
        """Top-1 accuracy, 0..1."""
        return int((self.predicted == self.labels).sum()) / len(self)

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % Wilson interval (low, high)."""
        return wilson(int((self.predicted == self.labels).sum()), len(self))

    @property
    def confusion(self) -> Tensor:
        """How many pictures of one class (row) were taken for another (column), int64 [K, K]."""
        K = len(self.classes)
        return torch.bincount(self.labels * K + self.predicted, minlength=K * K).view(K, K)

    @property
    def per_class(self) -> list[tuple[str, int, int]]:
        """(name, correct, n) of every class, in the classes' order; n is 0 where the split has no such picture."""
        confusion = self.confusion
        return list(zip(self.classes, confusion.diagonal().tolist(), confusion.sum(dim=1).tolist(), strict=True))

    @property
    def note(self) -> str:
        """What the number is to be compared with."""
        counts = self.labels.bincount()
        share = float(counts.max()) / len(self)
        return f"Always answering “{self.classes[int(counts.argmax())]}” would give {share:.1%}."

    def lines(self) -> list[str]:
        """The numbers in words."""
        named = [self.headline]
        told = {name.replace("_", " "): value for name, value in self.numbers.items() if name != "accuracy"}
        named[0] += "".join(f", {name} {value:.2%}" for name, value in told.items())
        for name, correct, n in self.per_class:
            named.append(f"  {name:24} {correct / n:7.1%}  {correct} of {n}" if n else f"  {name:24}    none")
        return named

    @property
    def numbers(self) -> dict[str, Any]:
        """Over all pictures of the split, 0..1.

        balanced_accuracy: the mean recall of the classes that the split shows. macro_f1: the mean over these and over
        those that were answered. top5_accuracy: where there are more than five classes.
        """
        found = {"accuracy": self.value, "balanced_accuracy": self.balanced, "macro_f1": self.macro_f1}
        if len(self.classes) > 5:
            five = self.probabilities.topk(5, dim=1).indices
            found["top5_accuracy"] = float((five == self.labels[:, None]).any(1).double().mean())
        return found

    @property
    def balanced(self) -> float:
        """The mean over classes of the share of their pictures that are recognised."""
        shown = [correct / n for _, correct, n in self.per_class if n]
        return sum(shown) / len(shown)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that are in the split, or that were answered."""
        confusion = self.confusion.double()
        right, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        return float((2 * right / either.clamp(min=1))[either > 0].mean())

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        return {
            **super().to_dict(),
            "per_class": [list(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }
