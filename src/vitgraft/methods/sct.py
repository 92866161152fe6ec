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
from ..method import Method, check_positive, ready_once_loaded

TUNED = {"mlp": {"all": "fc2"}, "qkv": {"q": "q", "v": "v"}}  # mode -> of each part the role of its linear layer


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
    starts_elsewhere = "W starts at a truncated normal of 0.02 (released code)"
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
        # Per block its modules by the part that they tune; the contacts own them.
        self.salient: tuple[dict[str, Salient], ...] = ()
        for block in backbone.blocks:
            D = block.width
            K = self.channels or max(D // 8, 1)
            if K > D:
                raise RequestError(
                    f"SCT was asked for {K} salient channels, but {backbone.name} has {D} in all: give at most {D}; "
                    f"the paper takes {max(D // 8, 1)}."
                )
            if self.mode == "attn":
                made = {"all": Salient(K, D, 0, self.scale, self.scale_x)}
                self.contacts.add_after(backbone, f"{block.path}.attn", made["all"])
            else:
                made = {}
                of_layer: dict[str, dict[str, Salient]] = {}
                for name, role in TUNED[self.mode].items():
                    (part,) = backbone.parts(block, role)
                    made[name] = Salient(K, part.stop - part.start, part.start, self.scale, self.scale_x)
                    of_layer.setdefault(part.layer, {})[name] = made[name]
                for layer, own in of_layer.items():
                    self.contacts.change(backbone, layer, SalientOutputs(own))
            self.salient += (made,)
        ready_once_loaded(self)

    def choose(self, scores: list[Tensor]) -> None:
        """Keeps the K highest of every block's scores ([D], or those of each tuned part one after the other); among
        equals the first."""
        for score, parts in zip(scores, self.salient, strict=True):
            for salient, part in zip(parts.values(), score.chunk(len(parts)), strict=True):
                highest = part.sort(descending=True, stable=True).indices[: len(salient.indices)]
                salient.indices.copy_(highest.sort().values)
        self.ready = True

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Scores every channel on the training pictures, through the plain backbone, and keeps the highest."""
        self.choose(class_aware_scores(backbone, self.mode, batches))


def class_aware_scores(backbone: Backbone, mode: str, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Per block the class-aware importance of every channel, float64 [D] ([2 D] for "qkv": of q, then of v).

    Squares are summed per class and channel as the batches come; activations are never kept. As released, "attn" and
    "mlp" are scored on the residual stream after the attention and the MLP, although "mlp" tunes the MLP's output.
    """
    contacts = Contacts()
    watches: list[list[Watch | WatchOutputs]] = []
    for block in backbone.blocks:
        if mode == "qkv":
            parts = [part for role in TUNED[mode].values() for part in backbone.parts(block, role)]
            outputs = {layer: WatchOutputs() for layer in dict.fromkeys(part.layer for part in parts)}
            for layer, watch in outputs.items():
                watch.rows = [slice(part.start, part.stop) for part in parts if part.layer == layer]
                contacts.change(backbone, layer, watch)
            watches.append(list(outputs.values()))
        else:
            stream = Watch()
            contacts.add_after(backbone, f"{block.path}.{mode}", stream)
            watches.append([stream])
    sums: dict[int, list[Tensor]] = {}  # label -> per block [D], squares summed over its pictures and patch tokens
    with torch.no_grad():
        for images, labels in batches:
            backbone(images, contacts)
            squares = [
                torch.cat([w.squares(len(images), backbone.prefix) for w in of_block], dim=1) for of_block in watches
            ]
            for label in labels.unique().tolist():
                found = [of_block[labels == label].sum(0) for of_block in squares]
                before = sums.get(label, [torch.zeros_like(t) for t in found])
                sums[label] = [a + b for a, b in zip(before, found, strict=True)]
    if not sums:
        raise RequestError("SCT chooses its channels on training pictures, but none came: give one batch at least.")
    return [torch.stack([total.sqrt() for total in of_block]).mean(0) for of_block in zip(*sums.values(), strict=True)]


class Watch(nn.Module):
    """Remembers the residual stream as it passes."""

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x

    def squares(self, B: int, P: int) -> Tensor:
        """Of the patches of each picture the squares, summed: [B, D]."""
        return self.seen[:, P:].double().square().sum(1)


class WatchOutputs(Change):
    """Remembers what some rows of a linear layer give."""

    seen: Tensor
    rows: list[slice]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = frozen_linear(x, weight, bias)
        self.seen = torch.cat([y[..., rows] for rows in self.rows], dim=-1)
        return y

    def squares(self, B: int, P: int) -> Tensor:
        """The same; the tokens of a picture may lie in several windows."""
        return self.seen[:, P:].double().square().sum(1).unflatten(0, (B, -1)).sum(1)


class Salient(nn.Module):
    """A K x K linear layer on K of D channels, counted from `start`."""

    indices: Tensor

    def __init__(self, K: int, D: int, start: int, scale: float, scale_x: bool) -> None:
        super().__init__()
        self.D, self.start, self.scale, self.scale_x = D, start, scale, scale_x
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
        return self.upon(x, frozen_linear(x, weight, bias))

    def upon(self, x: Tensor, y: Tensor) -> Tensor:
        for salient in self.parts.values():
            y = salient(y)
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = weight.mT, weight.new_zeros(len(weight)) if bias is None else bias
        for salient in self.parts.values():
            weight, bias = salient(weight, homogeneous=True), salient(bias)
        return weight.mT, bias
