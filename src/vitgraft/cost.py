"""What a model costs: parameters, FLOPs, and the bytes that autograd keeps for the backward pass."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .model import Model


def parameters(model: Model) -> dict[str, int]:
    """Numbers of parameters: `method` and `head` (both train) and `backbone` (frozen)."""
    return {
        "method": sum(p.numel() for p in model.method.parameters()),
        "head": sum(p.numel() for p in model.head.parameters()),
        "backbone": sum(p.numel() for p in model.backbone.parameters()),
    }


def flops(model: Model, images: Tensor) -> int:
    """Floating point operations of one forward pass (a multiply-add is two) over images [B, 3, H, W]."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def kept_bytes(model: Model, images: Tensor, targets: Tensor) -> int:
    """Bytes that one training forward pass keeps for its backward pass, parameters not counted; each storage once."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no storage is freed and its place reused while they are counted

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        losses = model(images, targets)
    del losses
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def peak_memory(device: torch.device) -> int:
    """The most memory that was used so far, in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
