"""Heart-LoRA: low-rank updates of the heads that respond to the task.

Zhong and Zhou 2024, arXiv 2404.08894: its second version, and with form="head" its first, HEAT. No released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone, Block
from ..common.errors import RequestError
from ..contacts import Contacts
from ..kernels.linear import Change, frozen_linear
from ..method import Method, check_positive, check_some, ready_once_loaded
from .lora import LowRank

LOGIT_SCALE = 10.0  # of the cosines to the class means, whose loss scores the heads


class HeartLoRA(Method):
    """LoRA without the heads that matter least, by the first order of the loss (Taylor score).

    form: "update", the update of such a head is left out; "head", the head itself is. leave_out: how many heads of each
    block, or which share of them: 0.2 is two of twelve. per: "all", the same heads in all layers of a stage, by the sum
    of their scores; "each", its own in each layer. targets, rank, alpha: as LoRA's, among q, k and v.

    score: with a the head's output before the projection, "sum" is |sum a dLoss/da| over pictures, tokens and channels;
    "picture" adds up the absolute values of each picture's sum, "element" those of all products. The loss is that of
    the nearest class mean of the frozen features, which needs no head that is trained.

    Parameters for L blocks of width D and H heads: 2 L R D + 2 L R (D - n D / H) for n heads left out, with q and v;
    270,336 on ViT-B/16. As form "head" 4 L R D.
    """

    title = "Heart-LoRA, LoRA of the heads that respond"
    paper = "Zhong and Zhou 2024, arXiv 2404.08894"
    published = "VTAB-1k 74.7 (mean of 19, ViT-B/16 IN-21k, each layer; its appendix)"
    starts_elsewhere = "with form=head heads are left out of the backbone"
    choices = {
        "targets": ("q", "k", "v"),
        "per": ("all", "each"),
        "form": ("update", "head"),
        "score": ("sum", "picture", "element"),
    }
    variants = (
        {"form": "head", "leave_out": 0.25, "score": "picture"},
        {"targets": ("q", "k", "v"), "per": "each", "rank": 3, "score": "element", "leave_out": 0.5},
    )

    def __init__(
        self,
        *,
        targets: Sequence[str] = ("q", "v"),
        rank: int = 8,
        alpha: float = 8.0,
        leave_out: float = 0.2,
        per: str = "all",
        form: str = "update",
        score: str = "sum",
    ) -> None:
        super().__init__()
        self.targets, self.rank, self.alpha, self.leave_out = tuple(targets), rank, alpha, leave_out
        self.per, self.form, self.score = per, form, score
        check_positive(self, "rank", "alpha")
        check_some(self, "targets")
        if leave_out < 0 or (leave_out > 1 and leave_out != int(leave_out)):
            raise RequestError(f"heart_lora cannot leave {leave_out} heads out: give a number, or a share below 1.")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for block in backbone.blocks:
            n = self._live(backbone, block)
            kept = n if self.form == "update" else block.heads
            for layer, own in backbone.rows(block, *self.targets).items():
                linear = backbone.linear(layer)
                shape = linear.in_features, linear.out_features, own, self.rank, self.alpha
                self.contacts.change(backbone, layer, OfHeads(*shape, block.heads, kept))
            if self.form == "head":
                self.contacts.change(backbone, f"{block.path}.attn.proj", Without(block.heads, n))
        if self.leave_out:
            ready_once_loaded(self)

    def _live(self, backbone: Backbone, block: Block) -> int:
        """How many heads of a block are kept."""
        H = block.heads
        if any(stop - start != block.width for role in self.targets for _, start, stop in backbone.parts(block, role)):
            raise RequestError(
                f"{backbone.name} has fewer heads of keys than of queries, and heart_lora counts them by queries: take "
                "lora."
            )
        out = math.floor(self.leave_out * H + 1e-9) if self.leave_out < 1 else int(self.leave_out)
        if out >= H:
            raise RequestError(
                f"heart_lora was to leave {out} heads out, but {block.path} of {backbone.name} has {H}: give fewer, or "
                "a share below 1, as 0.2."
            )
        return H - out

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Scores every head on the training pictures, and keeps the highest; among equals the first."""
        self.choose(backbone, taylor_scores(backbone, self.score, batches))

    def choose(self, backbone: Backbone, scores: list[Tensor]) -> None:
        """scores: of each block [H]."""
        for stage in backbone.stages:
            total = torch.stack([scores[i] for i in stage]).sum(0)
            for i in stage:
                order = total if self.per == "all" else scores[i]
                live = order.sort(descending=True, stable=True).indices
                for name, change in self.contacts.change_at.items():
                    if name.startswith(f"{backbone.blocks[i].path}.") and isinstance(change, OfHeads | Without):
                        change.live.copy_(live[: len(change.live)].sort().values)
        self.ready = True


class OfHeads(LowRank):
    """Low-rank updates of the rows of some heads, whose numbers are `live` [n]."""

    live: Tensor

    def __init__(self, ins: int, outs: int, rows: list[tuple[int, int]], R: int, alpha: float, H: int, n: int) -> None:
        super().__init__(ins, outs, rows, R, alpha, 0.0)
        self.H = H
        self.register_buffer("live", torch.arange(n), persistent=n < H)
        if n < H:
            self.B = nn.ParameterList(torch.zeros((end - start) // H * n, R) for start, end in rows)

    def spread(self, B: Tensor) -> Tensor:
        n, R = len(self.live), B.shape[1]
        if n == self.H:
            return B
        heads = B.view(n, -1, R)
        return heads.new_zeros(self.H, *heads.shape[1:]).index_copy(0, self.live, heads).flatten(0, 1)

    def gathered(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.H, -1)).index_select(0, self.live).flatten(0, 1)


class Without(Change):
    """The projection of an attention from the heads whose numbers are `live` [n] alone."""

    live: Tensor

    def __init__(self, H: int, n: int) -> None:
        super().__init__()
        self.H = H
        self.register_buffer("live", torch.arange(n), persistent=n < H)

    def _mask(self, D: int, like: Tensor) -> Tensor:
        return like.new_zeros(self.H).index_fill(0, self.live, 1.0).repeat_interleave(D // self.H)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self._mask(weight.shape[1], weight), bias

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return frozen_linear(x * self._mask(x.shape[-1], x), weight, bias)


class _Mask(Change):
    """Ones before a projection, whose gradient is a dLoss/da for every element."""

    def __init__(self, H: int) -> None:
        super().__init__()
        self.H = H

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.ones = torch.ones_like(x, requires_grad=True)
        return frozen_linear(x * self.ones, weight, bias)

    def products(self, B: int) -> Tensor:
        """Of the last pass, of B pictures: [B, elements of one head, H]"""
        assert self.ones.grad is not None
        return self.ones.grad.unflatten(-1, (self.H, -1)).transpose(-1, -2).reshape(B, -1, self.H)


def taylor_scores(backbone: Backbone, score: str, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Of each block the importance of its heads, float64 [H]. Two passes over the pictures: for the means of the
    classes, and for the gradients of their loss; batches of any size give the same."""
    means, classes = _class_means(backbone, batches)
    contacts, masks = Contacts(), []
    for block in backbone.blocks:
        masks.append(_Mask(block.heads))
        contacts.change(backbone, f"{block.path}.attn.proj", masks[-1])
    sums: list[Tensor] = [torch.zeros(block.heads, dtype=torch.float64) for block in backbone.blocks]
    for images, labels in batches:
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            pooled = backbone.pool(backbone(images, contacts).tokens, contacts)
            logits = LOGIT_SCALE * F.normalize(pooled, dim=-1) @ means.mT
            targets = torch.searchsorted(classes, labels)
            F.cross_entropy(logits, targets, reduction="sum").backward()
        for total, mask in zip(sums, masks, strict=True):
            products = mask.products(len(images)).double().cpu()
            by_picture = products.abs().sum(1) if score == "element" else products.sum(1)  # [B, H]
            total += (by_picture.abs() if score == "picture" else by_picture).sum(0)
    return [total.abs() for total in sums]


def _class_means(backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The normalised means of the frozen features [K, D], and the labels [K] that they are of, sorted."""
    sums: dict[int, Tensor] = {}
    with torch.no_grad():
        for images, labels in batches:
            with torch.autocast(images.device.type, enabled=False):
                pooled = backbone.pool(backbone(images, pooled_only=True).tokens)
            for label in labels.unique().tolist():
                sums[label] = sums.get(label, 0) + pooled[labels == label].sum(0)
    if len(sums) < 2:
        raise RequestError(
            f"heart_lora scores heads by the classes of whole pictures, but {len(sums) or 'none'} came: fit it to two "
            "classes or more, or take lora."
        )
    order = sorted(sums)
    means = F.normalize(torch.stack([sums[label] for label in order]), dim=-1)
    return means, torch.tensor(order, device=means.device)
