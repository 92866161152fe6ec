"""The Plain Mask Decoder of PMT (Cavagnero et al. 2026, arXiv 2603.25398): query masks from maps of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.layers.pos_embed_sincos import build_rotary_pos_embed
from torch import Tensor, nn

from ..common.errors import RequestError
from ..features import Features
from ..kernels.rotary import Rotary
from .masks import QueryMasks, kept_from
from .pyramid import together

HEAD_WIDTH = 32  # of the attention, at least


class Queries(QueryMasks):
    """M queries stand in front of the patch tokens of one map, and go with them through `blocks` transformer blocks.
    From every block, and from what enters the first, each query predicts a class or none, and a mask at stride 4.

    Where it differs from the paper: the map has the neck's width, not the backbone's; in training a query sees, by
    chance in `masking` of all cases, no more than the patches of its mask so far (the paper lets that chance fall by
    steps from 1 to 0); losses are of all cells of a mask at stride 4, not of 12,544 points.

    blocks: 6 in the paper. mlp: width of their MLPs. masking: as above. The rest as `QueryMasks` has it.

    Of several maps each is led to the width of that of stride 16 by a 1x1 convolution, resized, and all are summed.

    Parameters for a map of width E, M queries, K classes, b blocks of MLP width m:
    M E + b (4 E^2 + 2 E m + 9 E + m) + 2 E + (E + 1) (K + 1) + 3 (E^2 + E) + 2 (4 E^2 + 12 E).
    """

    levels: ClassVar[int] = 1
    mixes: ClassVar[bool] = True  # of several blocks, where a plain backbone gives one map
    published: ClassVar[dict[str, int]] = {"blocks": 6, "mlp": 1024}

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        masks: bool = False,
        queries: int = 0,
        blocks: int = 3,
        mlp: int = 512,
        masking: float = 0.5,
        score_threshold: float = 0.05,
        detections: int = 100,
        things: Sequence[int] | None = None,
        sure: float = 0.5,
        overlap: float = 0.8,
    ) -> None:
        E = channels[0] if len(channels) == 1 else channels[2]  # of stride 16
        if E % 4:
            raise RequestError(
                f"Query masks were asked for on a map of width {E}, whose places take a multiple of 4: give such a "
                "neck_width."
            )
        super().__init__(
            E,
            classes,
            masks=masks,
            queries=queries,
            score_threshold=score_threshold,
            detections=detections,
            things=things,
            sure=sure,
            overlap=overlap,
        )
        # Several maps, of HST or of a backbone's stages, are brought together at stride 16.
        self.laterals = nn.ModuleList(nn.Conv2d(C, E, 1) for C in channels) if len(channels) > 1 else None
        self.masking = masking
        self.blocks = nn.ModuleList(Block(E, mlp) for _ in range(blocks))
        self.norm = nn.LayerNorm(E)

    def forward(self, features: Features, targets: Any = None) -> Any:
        """As `QueryMasks.told` has it."""
        return self.told(self._decode(self._patches(features), all_of_them=targets is not None), features, targets)

    def _patches(self, features: Features) -> Tensor:
        """The map that is decoded, [B, E, h, w], of stride 16."""
        maps = [x for _, x in features.maps]
        if self.laterals is None:
            return maps[0]
        size = (maps[2].shape[-2], maps[2].shape[-1])
        return together([lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)], size)

    def _decode(self, patches: Tensor, *, all_of_them: bool) -> list[tuple[Tensor, Tensor]]:
        """patches [B, E, h, w] -> logits [B, M, K+1] and mask logits [B, M, 4 h, 4 w]: of each prediction, or the
        last."""
        grid = (patches.shape[-2], patches.shape[-1])
        M = len(self.queries)
        x = torch.cat([self.queries.expand(patches.shape[0], -1, -1), patches.flatten(2).mT], dim=1)
        blocks: list[Any] = list(self.blocks)
        sin, cos = build_rotary_pos_embed(list(grid), dim=blocks[0].width, device=x.device, in_pixels=False)
        rotary = Rotary(torch.cat([sin, cos], -1), False, False).of(0, M, x)
        found = [self._predict(x, grid)] if all_of_them else []
        for i, block in enumerate(blocks):
            seen = self._seen(found[-1][1], grid, x) if all_of_them and self.training and self.masking else None
            x = block(x, rotary, seen)
            if all_of_them or i == len(blocks) - 1:
                found.append(self._predict(x, grid))
        return found

    def _predict(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        M = len(self.queries)
        return self.predicted(x[:, :M], x[:, M:].mT.unflatten(2, grid))

    def _seen(self, masks: Tensor, grid: tuple[int, int], x: Tensor) -> Tensor:
        """What is added to the scores of attention, [B, 1, T, T]: nothing, or minus infinity where a query is kept from
        a patch that its mask does not cover."""
        M, T = len(self.queries), x.shape[1]
        bias = x.new_zeros(len(x), 1, T, T)
        bias[:, 0, :M, M:].masked_fill_(kept_from(masks, grid, self.masking), float("-inf"))
        return bias


class Block(nn.Module):
    """A transformer block of width E, pre-norm; places by rotary embedding. Without LayerScale, which the paper's has
    from its backbone: with it, at 0.1, queries had not learned their classes after 300 steps."""

    def __init__(self, E: int, mlp: int) -> None:
        super().__init__()
        fitting = (n for n in range(max(E // HEAD_WIDTH, 1), 0, -1) if not E % n and not E // n % 4)
        self.width = E // next(fitting)
        self.norm1, self.norm2 = nn.LayerNorm(E), nn.LayerNorm(E)
        self.qkv, self.proj, self.mlp = nn.Linear(E, 3 * E), nn.Linear(E, E), Mlp(E, mlp)

    def forward(self, x: Tensor, rotary: Rotary, bias: Tensor | None) -> Tensor:
        """x [B, M+N, E], bias [B, 1, M+N, M+N] -> [B, M+N, E]."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, -1, self.width)).permute(2, 0, 3, 1, 4)
        q, k = rotary(q).to(v.dtype), rotary(k).to(v.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(v.dtype))
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
