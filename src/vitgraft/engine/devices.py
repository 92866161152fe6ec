"""On what a model runs, and in which precision."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from ..common.settings import Settings

FABRIC_PRECISION = {"32": "32-true", "64": "64-true"}


def resolved_precision(precision: str) -> str:
    """`auto` as what it means on this machine; anything else as it is."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else "32"


def fabric(settings: Settings) -> Fabric:
    """Fabric with the devices and the precision of these settings, not yet launched."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it says at INFO is no news to a user
    strategy = "ddp" if settings.devices > 1 else "auto"
    precision = resolved_precision(settings.precision)
    how: dict[str, Any] = {"plugins": Autocast()} if precision == "bf16" else {"precision": FABRIC_PRECISION[precision]}
    return Fabric(devices=settings.devices, strategy=strategy, **how)


class Autocast(MixedPrecision):
    """bf16 autocast that leaves what comes in as it is: Fabric's own rounds pictures and boxes to 8 bits too."""

    def __init__(self) -> None:
        kinds = {"cuda": torch.cuda, "mps": torch.backends.mps}
        super().__init__("bf16-mixed", next((name for name, kind in kinds.items() if kind.is_available()), "cpu"))

    def convert_input(self, data: Any) -> Any:
        return data
