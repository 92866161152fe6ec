"""The one training loop: AdamW, warm-up, cosine, on Lightning Fabric; the last epoch is the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..common.errors import RequestError, WorkError
from ..common.settings import CLASS_WEIGHTS, Settings
from ..contacts import InTraining
from ..data import Preprocess, epoch_batches
from ..data.batch import Batch, LoadedPictures
from ..engine.activations import Store, activation_store, fill, full_batches, recall
from ..engine.step import Step
from ..model import Model
from .average import Average
from .checkpoint import Checkpoint, Progress


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up from 0, then half a cosine to 0; `step` counts from 0."""
    warm = max(1, round(settings.warmup * steps)) if settings.warmup else 0
    if step < warm:
        return settings.lr * (step + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def optimiser(trained: dict[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """AdamW, without weight decay on tensors of one axis (biases, norms)."""
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: of many small tensors one pass instead of a dozen each, 5 % of a step of the side network alone.
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, fused=True)


def take_settings(model: Model, settings: Settings) -> None:
    """What the model does in training only, as the settings have it. RequestError for noise that nothing takes, and for
    a head that cannot begin as it should."""
    contacts = model.method.contacts
    if settings.head_start == "lda" and not hasattr(model.head, "take"):
        raise RequestError(
            "head_start lda is for a head that is one linear layer, but this one is another: leave it out, or take the "
            "head linear."
        )
    if settings.noise and not contacts.takes_noise:
        raise RequestError(
            f"{model.method.name()} adds nothing to the backbone's layers that noise {settings.noise:g} could be put "
            "upon: leave noise and consistency out, or take a method with changed layers or branches, such as lora."
        )
    model.consistency = settings.consistency
    contacts.in_training = InTraining(
        settings.drop_path, settings.noise, 2 if settings.consistency else 1, settings.gradient_checkpointing
    )


def train(
    model: Model,
    pictures: LoadedPictures,
    preprocess: Preprocess,
    settings: Settings,
    fabric: Fabric,
    checkpoint: Checkpoint,
    *,
    after_epoch: Callable[[Progress], None] = lambda progress: None,
    on_step: Callable[[Progress, int, float], None] = lambda progress, steps, loss: None,
    on_calibrate: Callable[[int, int], None] = lambda done, pictures: None,
    on_read: Callable[[int, int], None] = lambda done, pictures: None,
) -> Progress:
    """Trains until the last epoch, from the checkpoint if there is one.

    Every epoch begins from a state of the random generators that depends on (seed, epoch, rank) alone; therefore a fit
    that was killed and resumed ends in the same weights as one that never was. `after_epoch` may add to the last record
    of `progress.history` before it is saved; `on_step` gets the number of all steps and the loss of the last one. A
    method that has to calibrate does it before the first epoch (`on_calibrate` gets pictures done and all), and once:
    what it has learned is in the checkpoint of epoch 0. A backbone that no gradient crosses reads all pictures before
    the first epoch (`on_read` gets the same), and never again.
    """
    trained = model.trained()
    optimizer = optimiser(trained, settings)
    step = Step(model, optimizer, fabric, clip=settings.clip)
    average = Average(trained, settings.ema)
    progress = checkpoint.restore(model, optimizer, average)  # in the run's precision, which the set-up gave to tensors
    dtype = next(model.head.parameters()).dtype
    world, rank = fabric.world_size, fabric.global_rank
    steps_per_epoch = len(epoch_batches(len(pictures), settings.batch_size, seed=0, epoch=0, world=world))
    if not steps_per_epoch:
        raise RequestError(
            f"There are {len(pictures)} pictures to train on, which is not one batch: give more pictures."
        )
    steps = settings.epochs * steps_per_epoch
    if not model.method.ready:
        _calibrate(model, pictures, preprocess, settings, fabric, on_calibrate)
        if fabric.is_global_zero:
            checkpoint.save(model, optimizer, average, progress)
    store = activation_store(model, pictures, preprocess, settings, fabric)
    share, first = settings.batch_size // world, progress.epoch
    often = pictures.shown.shares(power) if (power := CLASS_WEIGHTS[settings.sampling]) else None

    def images_of(batch: Batch) -> Tensor:
        return preprocess.normalise(batch.to(fabric.device).pixels).to(dtype)

    for epoch in range(progress.epoch, settings.epochs):
        begun = time.perf_counter()
        view = epoch % len(pictures.views) if pictures.views else 0
        if store is not None:
            with fabric.autocast():
                tell = on_read if epoch == first else None  # later ones read another view of the pictures, if any
                fill(model, store, pictures, images_of, share, epoch=epoch, view=view, tell=tell)
        if progress.step == 0 and settings.head_start == "lda":
            _start_head(model, pictures, store, images_of, share, fabric)
        torch.manual_seed(settings.seed * 1_000_003 + epoch * 1009 + rank)
        model.train()
        losses: list[Tensor] = []  # of the global batch
        checked = 0
        order = epoch_batches(
            len(pictures), settings.batch_size, seed=settings.seed, epoch=epoch, rank=rank, world=world, shares=often
        )
        for batch in pictures.batches(order, epoch=epoch):
            lr = learning_rate(progress.step, steps, settings)
            if hasattr(model.head, "share"):
                model.head.share = progress.step / steps
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = batch.to(fabric.device)
            images = images_of(batch)
            with fabric.autocast():
                activations = recall(model, store, batch.indices + view * len(pictures), images)
            loss = step(images, batch.targets, activations, batch.sizes)
            reduced: Any = fabric.all_reduce(loss, reduce_op="mean")
            losses.append(reduced)
            progress.step += 1
            average.update(progress.step)
            # On a GPU each look at a loss waits for the device.
            if fabric.device.type == "cpu" or progress.step % 20 == 0:
                _check_finite(losses[checked:], progress.step)
                checked = len(losses)
                on_step(progress, steps, float(losses[-1]))
        _check_finite(losses[checked:], progress.step)
        _check_tensors(model, progress.step)
        progress.epoch = epoch + 1
        progress.seconds += time.perf_counter() - begun
        record = {"epoch": progress.epoch, "step": progress.step, "loss": round(float(torch.stack(losses).mean()), 6)}
        progress.history.append({**record, "lr": lr, "seconds": round(progress.seconds, 3)})
        with average.in_place():
            after_epoch(progress)
        if fabric.is_global_zero and (checkpoint.due or progress.epoch == settings.epochs):
            checkpoint.save(model, optimizer, average, progress)
        fabric.barrier()
    average.take()
    return progress


def _calibrate(
    model: Model,
    pictures: LoadedPictures,
    preprocess: Preprocess,
    settings: Settings,
    fabric: Fabric,
    tell: Callable[[int, int], None],
) -> None:
    """Every process passes over all pictures, so that all come to the same result."""
    dtype = next(model.head.parameters()).dtype

    class Batches:
        """As often as they are asked for."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            done = 0
            for batch in pictures.batches(pictures.even_batches(settings.batch_size)):
                batch = batch.to(fabric.device)
                # The one class of whole pictures; where they have none, or several, they are all of one.
                one = isinstance(batch.targets, Tensor) and batch.targets.ndim == 1
                labels = batch.targets if one else torch.zeros_like(batch.indices)
                yield model.seen(preprocess.normalise(batch.pixels).to(dtype)), labels
                done += len(batch.indices)
                tell(done, len(pictures))

    model.eval()
    with fabric.autocast():
        model.method.calibrate(model.backbone, Batches())


def _start_head(
    model: Model,
    pictures: LoadedPictures,
    store: Store | None,
    images_of: Callable[[Batch], Tensor],
    size: int,
    fabric: Fabric,
) -> None:
    """The head takes the features of all pictures as they are before the first step, and as the first epoch shows them.
    Every process passes over all, so that all come to the same result."""
    found, labels = [], []
    model.train()  # batch normalisation by the batch, as in the steps to come
    with torch.no_grad(), fabric.autocast():
        for batch in pictures.batches(full_batches(len(pictures), size), epoch=0):
            batch = batch.to(fabric.device)
            images = images_of(batch)
            found.append(model.features(images, recall(model, store, batch.indices, images)).pooled)
            labels.append(batch.targets)
    model.head.take(torch.cat(found)[: len(pictures)], torch.cat(labels)[: len(pictures)])


def _check_finite(losses: list[Tensor], step: int) -> None:
    if not losses:
        return
    values = torch.stack(losses)
    if not bool(values.isfinite().all()):
        first = step - len(losses) + 1 + int((~values.isfinite()).nonzero()[0])
        raise _diverged(f"The loss became {float(values[~values.isfinite()][0])} at step {first}")


def _check_tensors(model: Model, step: int) -> None:
    """The last step of an epoch has no loss after it that would show what it did."""
    state = model.state()
    finite = torch.stack([t.isfinite().all() for t in state.values()]).tolist()  # a GPU is waited for once
    for name, is_finite in zip(state, finite, strict=True):
        if not is_finite:
            raise _diverged(f"The tensor {name} was no longer finite after step {step}")


def _diverged(what: str) -> WorkError:
    return WorkError(
        f"{what}; the last checkpoint, if there was one, is kept: fit into another folder with a "
        "lower --lr or with --precision 32."
    )
