"""One training step: forward, backward, AdamW; on a GPU replayed as a CUDA graph.

The layers of an adapter are small: on an H200 the kernels of a step take less time than Python takes to launch them
one by one. A graph launches all of them at once. It holds the very kernels of the steps before it, so that nothing but
the time changes.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..features import Activations
from ..model import Model

WARM = 3  # steps that are launched one kernel at a time, in which libraries set up what no graph may hold


class Step:
    """Takes the steps of one fit.

    model, optimizer: Fabric sets them up here, which gives the model's tensors their device and precision. A graph
    demands that all batches have the same shapes and that nothing in a step looks at a number; in the dense tasks, with
    gradient checkpointing, on a CPU and with several devices each step is launched kernel by kernel.
    """

    def __init__(self, model: Model, optimizer: torch.optim.Optimizer, fabric: Fabric, *, clip: float = 0.0) -> None:
        self._fabric, self._clip = fabric, clip
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        self._model, self._optimizer = fabric.setup(model, optimizer)
        alike = not model.head.levels and not model.method.contacts.in_training.gradient_checkpointing
        on_one_gpu = fabric.device.type == "cuda" and fabric.world_size == 1
        self._stream = torch.cuda.Stream(fabric.device) if alike and on_one_gpu else None
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: list[Tensor] = []
        self._loss = torch.empty(0)

    def __call__(
        self,
        images: Tensor,
        targets: Any,
        activations: Activations | None = None,
        sizes: list[tuple[int, int]] | None = None,
    ) -> Tensor:
        """The loss of one batch, before the step that it leads to; see `Model.forward`."""
        if self._stream is not None and self._taken == WARM:
            self._capture(images, targets, activations)
        if self._graph is not None:
            for kept, new in zip(self._given, _tensors(images, targets, activations), strict=True):
                kept.copy_(new)
            self._graph.replay()
            loss = self._loss.clone()
        else:
            loss = self._launched(images, targets, activations, sizes)
        if self._clip:
            torch.nn.utils.clip_grad_norm_(self._trained, self._clip)
        self._optimizer.step()
        if self._graph is None:
            self._optimizer.zero_grad()  # a graph writes gradients, always the same tensors; it adds to none
        self._taken += 1
        return loss

    def _launched(self, *given: Any) -> Tensor:
        if self._stream is None:
            return self._backward(*given)
        now = torch.cuda.current_stream(self._fabric.device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):  # what a library sets up, it sets up for a stream
            loss = self._backward(*given)
        now.wait_stream(self._stream)
        return loss

    def _backward(self, *given: Any) -> Tensor:
        loss: Any = sum(self._model(*given).values())
        self._fabric.backward(loss)
        return loss.detach()

    def _capture(self, images: Tensor, targets: Tensor, activations: Activations | None) -> None:
        """Records a step, without taking it."""
        images, targets = images.clone(), targets.clone()
        activations = None if activations is None else activations.map(torch.clone)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._loss = self._backward(images, targets, activations, None)
        except RuntimeError as error:  # a layer that somebody registered may look at a number
            self._stream = None
            self._optimizer.zero_grad()
            why = str(error).partition("\n")[0].rstrip(".")
            warnings.warn(f"The steps of this fit are no CUDA graph ({why}): they take longer.", stacklevel=3)
            return
        self._graph, self._given = graph, _tensors(images, targets, activations)


def _tensors(images: Tensor, targets: Tensor, activations: Activations | None) -> list[Tensor]:
    return [images, targets, *(activations.tensors() if activations else ())]
