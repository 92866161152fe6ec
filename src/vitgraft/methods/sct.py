"""SCT: one small linear layer on each block's most salient channels.

Zhao et al. 2023, arXiv 2309.08513. The K channels I of a block's features whose class-aware importance is highest are
tuned, all others are left alone:

    x_I = x_I + s (W x_I + b)                  or, scaling x,  x_I = s x_I + (W x_I + b)

The importance of a channel is its L2 norm over all pictures and patch tokens of a class, averaged over the classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..contacts import Contacts
from ..kernels.linear import Change, frozen_linear
from ..method import Method, check_positive


class SCT(Method):
    """Salient channel tuning.

    mode: what is tuned (released code): "attn" the residual stream after the attention has been added to it, the
    published one; "mlp" the output of the MLP; "qkv" q and v, each with channels of its own. channels: K, one eighth of
    the width unless given (paper). scale: s; 1 is the scale-free form that the released code runs. scale_x: s
    multiplies x instead of the change (released configurations of CLEVR, dSprites and smallNORB).

    Parameters for L blocks: L (K^2 + K), twice that for "qkv": 111,744 on ViT-B/16.
    """

    title = "SCT, salient channel tuning"
    paper = "Zhao et al. 2023, arXiv 2309.08513"
    published = "VTAB-1k 73.6 (mean of 19, ViT-B/16 IN-21k, augmentation on 11 tasks, best epoch on test)"
    choices = {"mode": ("attn", "mlp", "qkv")}
    variants = ({"mode": "mlp", "scale": 0.5}, {"mode": "qkv", "scale": 0.5, "scale_x": True})
    keeps = 0.62

    def __init__(
        self, *, mode: str = "attn", channels: int | None = None, scale: float = 1.0, scale_x: bool = False
    ) -> None:
        super().__init__()
        self.mode, self.channels, self.scale, self.scale_x = mode, channels, scale, scale_x
        check_positive(self, "channels", "scale")

    @property
    def recipe(self) -> dict[str, float]:
        """The middle of the published per-task learning rates, 7e-4 to 7.5e-2."""
        return {"lr": 6e-3}

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        D = backbone.width
        K = self.channels or max(D // 8, 1)
        if K > D:
            raise RequestError(
                f"SCT was asked for {K} salient channels, but {backbone.name} has {D} in all: give at most {D}; "
                f"the paper takes {max(D // 8, 1)}."
            )
        parts = {"q": 0, "v": 2 * D} if self.mode == "qkv" else {"all": 0}
        # Per block its modules by the part that they tune; the contacts own them.
        self.salient: tuple[dict[str, Salient], ...] = ()
        for i in range(backbone.depth):
            made = {part: Salient(K, start, self.scale, self.scale_x) for part, start in parts.items()}
            self.salient += (made,)
            if self.mode == "attn":
                self.contacts.add_after(backbone, f"blocks.{i}.attn", made["all"])
            else:
                path = "mlp.fc2" if self.mode == "mlp" else "attn.qkv"
                self.contacts.change(backbone, f"blocks.{i}.{path}", SalientOutputs(made))
        self.ready = False
        self.register_load_state_dict_post_hook(_be_ready)

    def choose(self, scores: list[Tensor]) -> None:
        """Keeps the K highest of every block's scores ([D], or [3 D] for q | k | v); among equals the first."""
        for score, parts in zip(scores, self.salient, strict=True):
            for salient in parts.values():
                part = score[salient.start : salient.start + self.width]
                highest = part.sort(descending=True, stable=True).indices[: len(salient.indices)]
                salient.indices.copy_(highest.sort().values)
        self.ready = True

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Scores every channel on the training pictures, through the plain backbone, and keeps the highest."""
        self.choose(class_aware_scores(backbone, self.mode, batches))


def class_aware_scores(backbone: Backbone, mode: str, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Per block the class-aware importance of every channel, float64 [D] ([3 D] for "qkv").

    Squares are summed per class and channel as the batches come; activations are never kept. As released, "attn" and
    "mlp" are scored on the residual stream after the attention and the MLP, although "mlp" tunes the MLP's output.
    """
    contacts = Contacts()
    watches = [WatchOutputs() if mode == "qkv" else Watch() for _ in range(backbone.depth)]
    for i, watch in enumerate(watches):
        if isinstance(watch, Change):
            contacts.change(backbone, f"blocks.{i}.attn.qkv", watch)
        else:
            contacts.add_after(backbone, f"blocks.{i}.{mode}", watch)
    sums: dict[int, Tensor] = {}  # label -> [L, D], squares summed over its pictures and patch tokens
    with torch.no_grad():
        for images, labels in batches:
            backbone(images, contacts)
            squares = torch.stack([w.seen[:, backbone.prefix :].double().square().sum(1) for w in watches])
            for label in labels.unique().tolist():
                sums[label] = sums.get(label, 0) + squares[:, labels == label].sum(1)
    if not sums:
        raise RequestError("SCT chooses its channels on training pictures, but none came: give one batch at least.")
    return list(torch.stack([total.sqrt() for total in sums.values()]).mean(0))


class Watch(nn.Module):
    """Remembers the residual stream as it passes."""

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


class WatchOutputs(Change):
    """Remembers what a linear layer gives."""

    seen: Tensor

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.seen = F.linear(x, weight, bias)
        return self.seen


class Salient(nn.Module):
    """A K x K linear layer on K of the channels, counted from `start`: [..., D] -> [..., D]."""

    indices: Tensor

    def __init__(self, K: int, start: int, scale: float, scale_x: bool) -> None:
        super().__init__()
        self.start, self.scale, self.scale_x = start, scale, scale_x
        self.register_buffer("indices", torch.arange(K))
        self.linear = nn.Linear(K, K)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, *, homogeneous: bool = False) -> Tensor:
        """homogeneous: without b, as the columns of a weight are mapped."""
        at = self.start + self.indices
        part = x[..., at]
        change = F.linear(part, self.linear.weight, None if homogeneous else self.linear.bias)
        part = self.scale * part + change if self.scale_x else part + self.scale * change
        return x.index_copy(-1, at, part.to(x.dtype))


class SalientOutputs(Change):
    """Tunes salient outputs of a linear layer."""

    def __init__(self, parts: dict[str, Salient]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = frozen_linear(x, weight, bias)
        for salient in self.parts.values():
            y = salient(y)
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = weight.mT, weight.new_zeros(len(weight)) if bias is None else bias
        for salient in self.parts.values():
            weight, bias = salient(weight, homogeneous=True), salient(bias)
        return weight.mT, bias


def _be_ready(method: nn.Module, _: object) -> None:
    """The channels have been chosen before, and have come with the other tensors."""
    assert isinstance(method, SCT)
    method.ready = True
