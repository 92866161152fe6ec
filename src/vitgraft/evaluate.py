"""What a model answered on the pictures of a split, and the numbers that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from .cache import ActivationStore, recall
from .data import Pictures, Preprocess, even_batches
from .model import Model


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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The answers for the n pictures of one split.

    `classes` are the K names, `paths` the n picture files, `labels` the true classes, int64 [n],
    `probabilities` what the model gave to each class, float32 [n, K].
    """

    split: str
    classes: tuple[str, ...]
    paths: list[str]
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

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> Tensor:
        """The class with the highest probability of each picture, int64 [n]."""
        return self.probabilities.argmax(dim=1)

    @property
    def accuracy(self) -> float:
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

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        return {
            "split": self.split,
            "pictures": len(self),
            "classes": list(self.classes),
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "per_class": [list(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }


def predict(
    model: Model,
    pictures: Pictures,
    preprocess: Preprocess,
    fabric: Fabric,
    *,
    batch_size: int = 64,
    store: ActivationStore | None = None,
) -> Tensor:
    """What the model gives to every class of every picture, float32 [n, K]; every process gets all of them."""
    model.eval()
    dtype = next(model.head.parameters()).dtype
    batches = even_batches(len(pictures), batch_size, rank=fabric.global_rank, world=fabric.world_size)
    rows: list[Tensor] = []
    places: list[Tensor] = []
    with torch.no_grad(), fabric.autocast():
        for pixels, _, indices in pictures.batches(batches):
            images = preprocess.normalise(pixels.to(fabric.device)).to(dtype)
            activations = recall(model, store, indices, images)
            rows.append(model(images, None, activations).float().softmax(1).cpu())
            places.append(indices)
    mine = torch.zeros(len(pictures), rows[0].shape[1] if rows else 0)
    mine[torch.cat(places)] = torch.cat(rows)
    if fabric.world_size > 1:
        torch.distributed.all_reduce(mine)  # each process has its own rows, zeros elsewhere
    return mine


def evaluate(
    model: Model,
    pictures: Pictures,
    preprocess: Preprocess,
    fabric: Fabric,
    *,
    split: str,
    classes: tuple[str, ...],
    batch_size: int = 64,
    store: ActivationStore | None = None,
) -> Evaluation:
    """The model's answers on every picture of a split."""
    found = predict(model, pictures, preprocess, fabric, batch_size=batch_size, store=store)
    return Evaluation(split, classes, [str(path) for path in pictures.paths], pictures.labels, found)
