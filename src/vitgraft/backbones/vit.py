"""timm's plain Vision Transformer: AugReg, DeiT, DINO, DINOv2, MAE, CLIP, SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import global_pool_nlc, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..contacts import Contacts
from .transformer import Transformer
from .weights import Loaded

GRIDS = 32  # of which resampled positions are kept


class Plain(Transformer):
    """One map from the first block to the last, with prefix tokens in front of it."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        vit: Any = self.vit
        self._positions: dict[tuple, Tensor] = {}
        self.prefix = vit.num_prefix_tokens
        self.has_cls = vit.cls_token is not None
        self.pooling = vit.global_pool or ("token" if self.has_cls else "avg")
        self.patch = vit.patch_embed.patch_size
        depth = len(vit.blocks)
        self._found([f"blocks.{i}" for i in range(depth)], (range(depth),))

    @property
    def timm_arguments(self) -> dict[str, Any]:
        vit: Any = self.vit
        found = {**self._model_args, "img_size": list(vit.patch_embed.img_size), "dynamic_img_size": True}
        if not vit.global_pool:  # timm then hands on all tokens
            found |= {"global_pool": self.pooling, self._fc_norm: not isinstance(vit.fc_norm, nn.Identity)}
        return found

    _fc_norm = "fc_norm"  # timm's argument for a norm behind the pooling

    def put_head(self, vit: Any, head: nn.Linear) -> None:
        vit.head, vit.num_classes, vit.global_pool = head, head.out_features, self.pooling

    def pool(self, tokens: Tensor, contacts: Contacts | None = None) -> Tensor:
        """tokens [B, P+N, D] after the final norm -> [B, D], as the weights were trained to be pooled."""
        c = self._in_effect(contacts)
        with_prefix = getattr(self.vit, "pool_include_prefix", None)
        if self.vit.attn_pool is not None:
            x = self._call("attn_pool", tokens if with_prefix is not False else tokens[:, self.prefix :], c)
        else:
            x = global_pool_nlc(
                tokens,
                pool_type=self.pooling,
                num_prefix_tokens=self.prefix,
                reduce_include_prefix=bool(with_prefix),
            )
        return self._call("fc_norm", x, c)

    def _embed(self, images: Tensor, c: Contacts) -> tuple[Tensor, tuple[int, int]]:
        """Patches, position embedding resampled to their grid, prefix tokens: [B, 3, H, W] -> [B, P+N, D]."""
        self._check_size(*images.shape[-2:])
        x = self._call("patch_embed", images, c)
        B, h, w, _ = x.shape
        x = x.flatten(1, 2)
        own = c.own("")
        vit: Any = self.vit
        prefix = [own.get(name, getattr(vit, name)) for name in ("cls_token", "reg_token")]
        prefix = [token.expand(B, -1, -1) for token in prefix if token is not None]
        position = self._position(own["pos_embed"], (h, w)) if "pos_embed" in own else self._frozen_position((h, w))
        if position is not None and vit.no_embed_class:  # DeiT-3, DINOv2 with registers: patches only
            x = x + position
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        if position is not None and not vit.no_embed_class:
            x = x + position
        return self._call("norm_pre", x, c), (h, w)

    def _position(self, position: Tensor, grid: tuple[int, int]) -> Tensor:
        """The position embedding [1, P+N, D], or of the patches alone, at another grid."""
        vit: Any = self.vit
        return resample_abs_pos_embed(
            position,
            new_size=list(grid),
            old_size=list(vit.patch_embed.grid_size),
            num_prefix_tokens=0 if vit.no_embed_class else self.prefix,
        )

    def _frozen_position(self, grid: tuple[int, int]) -> Tensor | None:
        """The same of the backbone's own, resampled once for each grid: pictures come in few sizes."""
        position: Tensor | None = self.vit.pos_embed  # type: ignore[assignment]
        if position is None or torch.compiler.is_dynamo_compiling():
            return None if position is None else self._position(position, grid)
        key = (grid, position.dtype, position.device)
        if key not in self._positions:
            if len(self._positions) >= GRIDS:
                self._positions.clear()
            self._positions[key] = self._position(position, grid)
        return self._positions[key]

    def exchange(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._positions.clear()
        return super().exchange(tensors)


class ViT(Plain):
    """Position embedding added to the tokens, LayerScale in modules of its own."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.has_layerscale = not isinstance(self._at["blocks.0.ls1"], nn.Identity)
        if self.has_layerscale:
            self.scales = ("ls1.gamma", "ls2.gamma")

    @classmethod
    def takes(cls, vit: nn.Module) -> bool:
        return isinstance(vit, VisionTransformer)
