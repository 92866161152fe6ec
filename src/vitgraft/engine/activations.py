"""Activations of a frozen backbone, computed once and kept.

For a method whose gradients do not cross the backbone, the pass through it is a function of the picture alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..backbones.weights import cache_folder
from ..common.settings import Settings
from ..data import Preprocess, even_batches
from ..data.batch import Batch, LoadedPictures, moved
from ..features import Activations
from ..model import Model
from .activations_on_disk import DTYPE, DiskStore, picture_digests


class MemoryStore:
    """The activations of n pictures in memory, in the precision of the run (bf16 for a bf16 run).

    limit: bytes it may take; a set that needs more is not kept, and `full` says so. Activations are rounded to that
    precision whether they are kept or not, so that the memory at hand changes no result.
    """

    def __init__(self, n: int, limit: int, dtype: torch.dtype) -> None:
        self.n, self.limit, self.dtype = n, limit, dtype
        self.full = not limit
        self._kept: Activations | None = None
        self._seen = torch.zeros(n, dtype=torch.bool)

    def lacks(self, indices: Tensor) -> bool:
        return not (self.full or bool(self._seen[indices].all()))

    def get(self, indices: Tensor, compute: Callable[[], Activations]) -> Activations:
        """The activations of the pictures `indices` [b]; made by `compute`, for all, if one is not there."""
        if self._kept is not None and bool(self._seen[indices].all()):
            rows = moved(indices, self._kept.tokens.device)
            return self._kept.map(lambda kept: kept[rows])
        found = compute()
        if self._kept is None and self.n * _bytes_per_picture(found, self.dtype) > self.limit:
            self.full = True
        found = found.map(lambda t: t.to(self.dtype))
        if not self.full:
            self._keep(indices, found)
        return found

    def _keep(self, indices: Tensor, found: Activations) -> None:
        if self._kept is None:
            self._kept = found.map(lambda t: torch.empty((self.n, *t.shape[1:]), dtype=self.dtype, device=t.device))
        for kept, value in zip(self._kept.tensors(), found.tensors(), strict=True):
            kept[indices] = value
        self._seen[indices] = True

    def write(self) -> None:
        """Nothing outlives the process."""


class Store(Protocol):
    """Gives the activations of pictures, and has them computed where it does not have them.

    full: whether it has no room for all, and therefore keeps none.
    """

    full: bool

    def lacks(self, indices: Tensor) -> bool:
        """Whether one of them is not there that could be."""
        ...

    def get(self, indices: Tensor, compute: Callable[[], Activations]) -> Activations: ...
    def write(self) -> None:
        """Makes sure that what was computed is where it stays."""
        ...


def activation_store(
    model: Model,
    pictures: LoadedPictures,
    preprocess: Preprocess,
    settings: Settings,
    fabric: Fabric,
    *,
    keep: bool = True,
) -> Store | None:
    """Room for the activations of the pictures: in memory in the precision of the run, or on disk in bf16, as the
    settings say. keep: False only rounds, as either of them would, and so does a picture that is another one in every
    epoch.

    None where gradients cross the backbone: what it gives then changes with every step; and in the dense tasks, whose
    pictures have sizes of their own.
    """
    if model.method.crosses_backbone or model.head.levels:
        return None
    precision = fabric._precision.precision
    keep = keep and len(pictures.views) > 0
    if keep and settings.cache:
        images = torch.zeros(1, 3, *preprocess.size, device=fabric.device, dtype=next(model.head.parameters()).dtype)
        with torch.no_grad(), fabric.autocast():
            one = model.read(images)
        backbone = model.backbone
        way = {
            "backbone": backbone.fingerprint,
            "kept": backbone.kept,
            "architecture": backbone.architecture,
            "arguments": backbone.timm_arguments,
            "preprocess": str(preprocess),
            "taps": sorted(model.method.contacts.taps.items()),
            "precision": precision,
        }
        root = cache_folder() / "activations"
        return DiskStore(root, way, _digests(pictures), one, int(settings.cache_size * 2**30))
    kinds = {"bf16-mixed": torch.bfloat16, "64-true": torch.float64}
    dtype = DTYPE if settings.cache else kinds.get(precision, torch.float32)
    n = len(pictures) * max(len(pictures.views), 1)
    return MemoryStore(n, int(settings.memory * 2**30) if keep else 0, dtype)


def _digests(pictures: LoadedPictures) -> list[str]:
    """What view v of picture i is known by, at v * n + i."""
    plain = picture_digests(pictures.paths)
    return [f"{digest}/{view}/{i}" if view else digest for view in pictures.views for i, digest in enumerate(plain)]


def recall(model: Model, store: Store | None, indices: Tensor, images: Tensor) -> Activations | None:
    """The activations of `indices`, v * n + i for view v of picture i, from the store; without one None, so that the
    model makes its own."""
    if store is None:
        return None
    found = store.get(indices, lambda: model.read(images))
    dtype = found.tokens.dtype if torch.is_autocast_enabled(images.device.type) else images.dtype
    return found.map(lambda t: t.to(images.device, dtype))


def fill(
    model: Model,
    store: Store,
    pictures: LoadedPictures,
    images_of: Callable[[Batch], Tensor],
    size: int,
    *,
    epoch: int = 0,
    view: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> None:
    """Has the store keep what the backbone makes of every picture in this view of it.

    Left to the epochs, of which each leaves out a few pictures, a batch with a single one that is not there would pass
    the backbone whole. Always in the same batches, all of `size`, so that a fit that is resumed finds the same bits.
    images_of: a batch as the model sees it.
    """
    n = len(pictures)
    order = [batch for batch in full_batches(n, size) if store.lacks(torch.tensor(batch) + view * n)]
    for done, batch in enumerate(pictures.batches(order, epoch=epoch), start=1):
        recall(model, store, batch.indices + view * n, images_of(batch))
        if store.full:
            return
        if tell is not None:
            tell(min(done * size, n), min(len(order) * size, n))
    store.write()


def full_batches(n: int, size: int) -> list[list[int]]:
    """All of n pictures in order, all batches of one size: the last is filled up with the first pictures."""
    order = even_batches(n, size)
    order[-1] += range(min(size, n) - len(order[-1]))
    return order


def _bytes_per_picture(a: Activations, dtype: torch.dtype) -> int:
    return sum(t[0].numel() for t in a.tensors()) * dtype.itemsize
