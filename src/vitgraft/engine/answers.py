"""What a model says about the pictures of a split, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric

from .cache import Store, recall
from .data import Batch, Preprocess
from .model import Model
from .task import Answer, Loaded


def answers(
    model: Model,
    pictures: Loaded,
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
