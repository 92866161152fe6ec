"""On what a model runs, and in which precision."""

from __future__ import annotations

import atexit
import logging
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from ..common.errors import RequestError
from ..common.settings import Settings

FABRIC_PRECISION = {"32": "32-true", "64": "64-true"}


def kind_of(device: str) -> str:
    """ "cuda", "mps" or "cpu": what a device is, "auto" on this machine. RequestError where it has none such."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(kind for kind, is_there in there.items() if is_there)
    kind, _, number = device.partition(":")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        found = [f"cuda:{k}" for k in range(torch.cuda.device_count())] + [k for k in ("mps", "cpu") if there[k]]
        raise RequestError(
            f"The device {device} was asked for, but this machine has {', '.join(found)}: choose another."
        )
    return kind


def resolved_precision(precision: str, device: str = "auto") -> str:
    """`auto` as what it means on this machine and device; anything else as it is."""
    if precision != "auto":
        return precision
    if kind_of(device) == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else "32"


def fabric(settings: Settings) -> Fabric:
    """Fabric with the devices and the precision of these settings, not yet launched."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it says at INFO is no news to a user
    strategy = "ddp" if settings.devices > 1 else "auto"
    if settings.devices > 1:
        atexit.register(_leave)
    precision, kind = resolved_precision(settings.precision, settings.device), kind_of(settings.device)
    how: dict[str, Any] = (
        {"plugins": Autocast(kind)} if precision == "bf16" else {"precision": FABRIC_PRECISION[precision]}
    )
    number = settings.device.partition(":")[2]
    return Fabric(accelerator=kind, devices=[int(number)] if number else settings.devices, strategy=strategy, **how)


def _leave() -> None:
    """Ends the threads that processes talk by: those of gloo may be met running by the end of the interpreter, which
    the process then dies of in the middle of a good exit. Fabric does so for NCCL alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Autocast(MixedPrecision):
    """bf16 autocast that leaves what comes in as it is: Fabric's own rounds pictures and boxes to 8 bits too."""

    def __init__(self, kind: str) -> None:
        super().__init__("bf16-mixed", kind)

    def convert_input(self, data: Any) -> Any:
        return data
