"""timm's Swin and Swin-V2: attention inside windows, and four stages between which the map is halved."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from ..contacts import Contacts
from ..kernels.attention import attention
from ..kernels.recompute import recomputed
from .transformer import Transformer, Where, prefixed
from .weights import Loaded

Pair = tuple[int, int]
APART = -100.0  # what is added to the scores of patches that lie in one window through the shift alone


class Swin(Transformer):
    """Tokens are a map's, row by row: methods see them outside the windows, [B, N, D] of the stage.

    Windows and shifts are those of the picture size that the weights are for, at every size, as timm has them: a map
    that they do not divide is padded with zeros. Extra tokens stand in front of every window, without a position; what
    becomes of them is the mean over the windows (Jia et al. 2022).
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        vit: Any = self.vit
        self.prefix = 0
        self.has_cls = self.has_layerscale = False
        self.pooling = vit.global_pool or "avg"
        self.patch = vit.patch_embed.patch_size
        self.post_norm = isinstance(vit, SwinTransformerV2)
        paths: list[str] = []
        stages: list[range] = []
        for s, stage in enumerate(vit.layers):
            stages.append(range(len(paths), len(paths) + len(stage.blocks)))
            paths += [f"layers.{s}.blocks.{j}" for j in range(len(stage.blocks))]
        self._found(paths, tuple(stages))
        between = {
            path: module
            for path, module in self._at.items()
            if path == "patch_embed.norm" or path.endswith((".downsample.norm", ".downsample.reduction"))
        }
        self.affine |= between
        self._windows = lru_cache(maxsize=64)(_Windows)

    @classmethod
    def takes(cls, vit: nn.Module) -> bool:
        return isinstance(vit, (SwinTransformer, SwinTransformerV2))

    @property
    def timm_arguments(self) -> dict[str, Any]:
        vit: Any = self.vit
        found = {**self._model_args, "img_size": list(vit.patch_embed.img_size), "strict_img_size": False}
        return found if vit.global_pool else {**found, "global_pool": self.pooling}

    def put_head(self, vit: Any, head: nn.Linear) -> None:
        vit.head.fc, vit.num_classes = head, head.out_features

    def pool(self, tokens: Tensor, contacts: Contacts | None = None) -> Tensor:
        """tokens [B, N, D] of the last stage after the final norm -> [B, D]."""
        if self.pooling == "max":
            return tokens.amax(1)
        return tokens.mean(1)

    def _embed(self, images: Tensor, c: Contacts) -> tuple[Tensor, Pair]:
        self._check_size(*images.shape[-2:])
        x = self._call("patch_embed", images, c)
        return x.flatten(1, 2), (x.shape[1], x.shape[2])

    def _merge_patches(self, stage: int, x: Tensor, grid: Pair, c: Contacts) -> tuple[Tensor, Pair]:
        x = self._call(f"layers.{stage}.downsample", x.unflatten(1, grid), c)
        return x.flatten(1, 2), (x.shape[1], x.shape[2])

    def _attention(self, path: str, x: Tensor, c: Contacts, where: Where) -> Tensor:
        attn: Any = self._at[path]
        block: Any = self._at[path.removesuffix(".attn")]
        windows = self._windows(where.grid, tuple(attn.window_size), tuple(block.shift_size), x.device)
        B, n = x.shape[0], len(windows.places)

        def inside(x: Tensor) -> Tensor:
            """[B, M + N, D] -> [B n, M + T, D]"""
            cut = windows.cut(x[:, where.M :])
            if where.M:
                cut = torch.cat([x[:, None, : where.M].expand(-1, n, -1, -1), cut], dim=2)
            return cut.flatten(0, 1)

        q, k, v = self._heads(path, recomputed(inside, x), c)  # [B n, heads, M + T, D / heads]
        mask = self._bias_of_places(path, c)[None]  # [1, heads, T, T]
        if windows.apart is not None:
            mask = mask + windows.apart[:, None].to(mask.dtype)
        scale, T = None, k.shape[2]
        if self.post_norm:  # Swin-V2: cosine attention
            logit_scale = c.own(path).get("logit_scale", attn.logit_scale).clamp(max=math.log(100.0)).exp()
            q = recomputed(lambda q: (F.normalize(q, dim=-1) * logit_scale).to(q.dtype), q)
            k, scale = recomputed(lambda k: F.normalize(k, dim=-1).to(k.dtype), k), 1.0
        k, v = prefixed(path, k, v, c)
        own = k.shape[2] - T
        mask = F.pad(mask, (own + where.M, 0, where.M, 0)).to(q.dtype)
        y = attention(q, k, v, mask, scale=scale, remade=self.post_norm or own > 0)
        y = recomputed(lambda y: y.transpose(1, 2).flatten(2), y)
        y = self._call(f"{path}.proj", y, c).unflatten(0, (B, n))
        out = windows.join(y[:, :, where.M :])
        return torch.cat([y[:, :, : where.M].mean(1), out], dim=1) if where.M else out

    def _bias_of_places(self, path: str, c: Contacts) -> Tensor:
        """What the places of two patches in a window add to their score, [heads, T, T]."""
        attn: Any = self._at[path]
        if self.post_norm:
            table = self._call(f"{path}.cpb_mlp", attn.relative_coords_table, c).flatten(0, -2)
            table = 16 * torch.sigmoid(table)
        else:
            table = c.own(path).get("relative_position_bias_table", attn.relative_position_bias_table)
        T = len(attn.relative_position_index)
        return table[attn.relative_position_index.flatten()].unflatten(0, (T, T)).movedim(-1, 0)


class _Windows:
    """How a map of one grid is cut into windows, and put together again.

    places [n, T]: of each place in the n windows of T patches the patch that stands there, N for none. apart [n, T, T]:
    what is added to the scores where the shift brings patches into one window that are not neighbours; None without.
    """

    def __init__(self, grid: Pair, window: Pair, shift: Pair, device: torch.device) -> None:
        (h, w), (a, b) = grid, window
        H, W = -(-h // a) * a, -(-w // b) * b
        N = h * w
        patches = torch.arange(N).view(h, w).roll((-shift[0], -shift[1]), (0, 1))
        padded = F.pad(patches, (0, W - w, 0, H - h), value=N)

        def cut(of: Tensor) -> Tensor:
            return of.view(H // a, a, W // b, b).transpose(1, 2).reshape(-1, a * b)

        self.places = cut(padded).to(device)
        self.whole = N == H * W
        back = torch.empty(H * W, dtype=torch.long)
        back[cut(torch.arange(H * W).view(H, W)).flatten()] = torch.arange(H * W)
        rolled = back.view(H, W)[:h, :w].roll(shift, (0, 1))
        self.back = rolled.flatten().to(device)  # of each patch its place among all windows'
        self.apart: Tensor | None = None
        if any(shift):
            rows, columns = (_regions(side, size, by) for side, size, by in ((H, a, shift[0]), (W, b, shift[1])))
            regions = cut(rows[:, None] * 3 + columns)
            self.apart = ((regions[:, :, None] != regions[:, None]) * APART).to(device)

    def cut(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n, T, D]"""
        if not self.whole:
            x = F.pad(x, (0, 0, 0, 1))
        return x.index_select(1, self.places.flatten()).unflatten(1, self.places.shape)

    def join(self, y: Tensor) -> Tensor:
        """[B, n, T, D] -> [B, N, D]"""
        return y.flatten(1, 2).index_select(1, self.back)


def _regions(side: int, window: int, shift: int) -> Tensor:
    """To which of up to three stretches of one axis each place belongs, after the shift."""
    places = torch.arange(side)
    return (places >= side - window).long() + (places >= side - shift).long() * (shift > 0)
