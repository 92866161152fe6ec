"""What a model costs: parameters, FLOPs, and the bytes that autograd keeps for the backward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..kernels.recompute import watched
from ..model import Model


def parameters(model: Model) -> dict[str, int]:
    """Numbers of parameters: of `method` and `head`, neck included, as an adapter file holds them, and of the frozen
    `backbone`."""
    return {
        "method": model.method.size,
        "head": sum(p.numel() for part in (model.neck, model.head) for p in part.parameters()),
        "backbone": sum(p.numel() for p in model.backbone.parameters()),
    }


def flops(model: Model, images: Tensor) -> int:
    """Floating point operations of one forward pass (a multiply-add is two) over images [B, 3, H, W]."""
    with _counting() as counter:  # with autograd: without it torch 2.4's fails on tensors that train
        model(images)
    return counter.get_total_flops()


def step_flops(model: Model, images: Tensor, targets: Tensor) -> tuple[int, int]:
    """Floating point operations over images [B, 3, H, W] of the pass through the backbone alone, and of a whole
    training step: forward, with that pass, and backward. Gradients are left on what trains."""
    with _counting() as counter:
        activations = model.read(images)
        read = counter.get_total_flops()
        loss: Tensor = sum(model(images, targets, activations).values())
        loss.backward()
    return read, counter.get_total_flops()


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    # The counter does not know every fused attention (before torch 2.15 none of a CPU); spelt out, it is two products.
    own: Any = {torch.ops.aten.convolution_backward: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=own) as counter:
        yield counter


def _convolution_backward(grad: Any, x: Any, weight: Any, *more: Any, **kwargs: Any) -> int:
    """As much as forward for each of the two gradients that is asked for; torch's own counts that of a weight as if
    there were no groups."""
    transposed, wanted = more[4], more[7]
    return conv_flop_count(x, weight, grad, transposed=transposed) * sum(wanted[:2])


def kept_bytes(model: Model, images: Tensor, targets: Tensor) -> int:
    """Bytes that one training forward pass keeps for its backward pass, parameters not counted; each storage once."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running statistics: measuring changes nothing
    kept = kept_by(lambda: model(images, targets), model)
    for buffer, value in before:
        buffer.copy_(value)
    return kept


def kept_by(forward: Callable[[], Any], model: nn.Module, batch: Iterable[Tensor] = ()) -> int:
    """The same of any forward pass of a module; batch: what it was given, and is not counted either."""
    kept: dict[int, Tensor] = {}  # held, so that no storage is freed and its place reused while they are counted

    def pack(t: Tensor) -> Tensor:
        if t.layout is torch.strided:  # the few numbers of a sparse tensor are not counted
            kept[_storage(t)] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), watched(pack):
        found = forward()
    del found
    own = [*model.parameters(), *model.buffers(), *batch]
    own += [t.cast[1] for t in own if hasattr(t, "cast")]  # of frozen weights, which stay from step to step
    for t in own:
        kept.pop(_storage(t), None)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def _storage(t: Tensor) -> int:
    """The identity of a tensor's storage, which tensors without memory (meta, fake) have too."""
    return t.untyped_storage()._cdata


def peak_memory(device: torch.device) -> int:
    """The most memory that was used so far, in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # psutil knows no peak where this module is
    except ModuleNotFoundError:
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
