"""What a model says about the pictures of a split, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..data import Batch, LoadedPictures, Preprocess
from ..features import Activations
from ..model import Model
from .activations import Store, recall

Answer = Callable[[Model, Tensor, Activations | None, list[tuple[int, int]]], Any]


def ask(model: Model, images: Tensor, activations: Activations | None, sizes: list[tuple[int, int]]) -> Any:
    """The head's predictions on images [B, 3, H, W]."""
    return model(images, None, activations, sizes)


def answers(
    model: Model,
    pictures: LoadedPictures,
    preprocess: Preprocess,
    fabric: Fabric,
    ask: Answer,
    *,
    batch_size: int = 64,
    store: Store | None = None,
) -> Iterator[tuple[Batch, Any]]:
    """Every picture once, without augmentation: the batch, on the device, and the head's predictions. Each process has
    its own share of the pictures."""
    model.eval()
    dtype = next(model.head.parameters()).dtype
    order = pictures.even_batches(batch_size, rank=fabric.global_rank, world=fabric.world_size)
    for batch in pictures.batches(order):
        with torch.no_grad(), fabric.autocast():
            batch = batch.to(fabric.device)
            images = preprocess.normalise(batch.pixels).to(dtype)
            activations = recall(model, store, batch.indices, images)
            yield batch, ask(model, images, activations, batch.sizes)
    if store is not None:
        store.write()
