"""timm's Eva: DINOv3, EVA and EVA-02, the Perception Encoder, ViTs with a rotary position embedding."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva as TimmEva
from timm.models.eva import EvaBlockPostNorm
from torch import nn
from torch.func import functional_call

from ..contacts import Contacts
from ..kernels.rotary import Rotary
from .vit import Plain
from .weights import Loaded


class Eva(Plain):
    """q and k of the patches are turned by their place, in every block; LayerScale is a tensor of the block."""

    _fc_norm = "use_fc_norm"

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        first: Any = self._at["blocks.0"]
        self.post_norm = isinstance(first, EvaBlockPostNorm)
        gammas = ("" if getattr(first, name, None) is None else name for name in ("gamma_1", "gamma_2"))
        self.scales = tuple(gammas)  # type: ignore[assignment]
        self.has_layerscale = any(self.scales)
        self._kept: dict[tuple, Rotary] = {}

    @classmethod
    def takes(cls, vit: nn.Module) -> bool:
        return isinstance(vit, TimmEva)

    def _rotary(self, grid: tuple[int, int], c: Contacts) -> Rotary | None:
        """Made once for each grid, unless its frequencies train."""
        rope: Any = self.vit.rope
        if rope is None:
            return None
        mixed = bool(self.vit.rope_mixed)
        half = bool(getattr(self._at["blocks.0.attn"], "rotate_half", False))
        if own := c.own("rope"):
            return Rotary(functional_call(_Embed(rope), {f"rope.{n}": t for n, t in own.items()}, (grid,)), mixed, half)
        one = next(self.vit.parameters())
        key = (grid, one.dtype, one.device, rope.freqs._version if mixed else 0)
        if key not in self._kept:
            self._kept = {key: Rotary(rope.get_embed(shape=grid), mixed, half)}  # pictures of a fit have one size
        return self._kept[key]


class _Embed(nn.Module):
    """`get_embed` as a module's forward, so that other tensors can stand in the place of its own."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, grid: tuple[int, int]) -> Any:
        rope: Any = self.rope
        return rope.get_embed(shape=grid)
