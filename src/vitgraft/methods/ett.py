"""eTT: keys and values for every class, made from its pictures; a shift behind each sub-layer.

Xu et al. 2023, arXiv 2301.02419:  [K_i | V_i] = U_i tanh(V w_c + b1) + b2_i  for class c in block i, w_c its prototype.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..contacts import Contacts
from ..features import Activations, Features
from ..kernels.linear import Change, frozen_linear
from ..method import Method, check_positive, ready_once_loaded

PROJECTED = 64  # width of what the regulariser compares
TEACHER, STUDENT = 0.04, 0.1  # its temperatures
KEPT = 0.9  # of its centre at each step


class ETT(Method):
    """Efficient transformer tuning: attentive prefix, domain residual adapter, feature transform.

    Prototypes are what the last block's class token attends to, the patches as they enter the first block, averaged
    over the pictures of a class (section 3; the released code has no clustering).

    hidden: width of the net from prototypes to keys and values; D / 16 unless given, D / 2 in the released code.
    transform: of the pooled features, by a D x D matrix that starts as the identity. regulariser: weight of the loss
    that keeps the classes of the trained prototypes apart as they were; 0 for none.

    Parameters for K classes, L blocks of width D, as stored: 2 L D K + 2 L D + D^2; 792,576 on ViT-B/16 with ten
    classes. While they train the net stands in the place of its keys and values: K D + (h D + h) + (h + 1) 2 L D, with
    64 (D + 1) of the regulariser.
    """

    title = "eTT, efficient transformer tuning"
    paper = "Xu et al. 2023, arXiv 2301.02419"
    starts_elsewhere = "keys and values start as the net is drawn (released code)"
    dense = {"transform": False}  # of a vector that no dense head reads
    keeps = 0.62
    variants = ({"hidden": 5, "transform": False, "regulariser": 0.0},)

    def __init__(self, *, hidden: int | None = None, transform: bool = True, regulariser: float = 0.1) -> None:
        super().__init__()
        self.hidden, self.transform, self.regulariser = hidden, transform, regulariser
        check_positive(self, "hidden")
        if regulariser < 0:
            raise RequestError(f"The regulariser of ett is {regulariser}, but is a weight: give 0 or more.")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if len(backbone.stages) > 1:
            raise RequestError(
                f"ett has one width from the first block to the last, but {backbone.name} has several: take a plain "
                "backbone, or e2vpt."
            )
        L, D, K = backbone.depth, backbone.width, self.classes
        h = self.hidden or max(1, D // 16)
        self.heads = backbone.blocks[0].heads
        self.prototypes = nn.Parameter(torch.zeros(K, D))
        self.net: nn.Sequential | None = nn.Sequential(nn.Linear(D, h), nn.Tanh(), nn.Linear(h, 2 * L * D))
        self.stored: nn.Parameter | None = None  # [L, 2, K, D]
        self.T = nn.Parameter(torch.eye(D)) if self.transform else None
        self.apart = Apart(D, K) if self.regulariser else None
        for i, block in enumerate(backbone.blocks):
            self.contacts.add_prefix(backbone, i, partial(self._prefix, i))
            for layer in backbone.layers(block, "proj", "fc2"):
                self.contacts.change(backbone, layer, Shift(D))
        ready_once_loaded(self)

    @property
    def size(self) -> int:
        """The keys and values, not the net that makes them."""
        blocks, shifts = len(self.contacts.prefixes), sum(p.numel() for p in self.contacts.parameters())
        D = self.width
        return 2 * blocks * D * self.classes + shifts + (0 if self.T is None else D * D)

    def _prefix(self, i: int) -> tuple[Tensor, Tensor]:
        """Of one block, [heads, K, D / heads] both."""
        both = self._made(i) if self.stored is None else self.stored[i]
        keys, values = both.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return keys, values

    def _made(self, i: int) -> Tensor:
        """[2, K, D]"""
        assert self.net is not None
        down, up = cast(nn.Linear, self.net[0]), cast(nn.Linear, self.net[2])
        at = slice(2 * i * self.width, 2 * (i + 1) * self.width)
        y = F.linear(torch.tanh(down(self.prototypes)), up.weight[at], up.bias[at])
        return y.unflatten(-1, (2, -1)).transpose(0, 1)

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Prototypes start as the means of what is attended to in the pictures of each class."""
        sums = torch.zeros_like(self.prototypes, requires_grad=False)
        counts = sums.new_zeros(self.classes)
        shifts = Contacts()  # zero in a fit; a checkpoint's are there already (released code)
        shifts.join(self.contacts)
        shifts.prefixes.clear()
        transformer: Any = backbone
        with torch.no_grad():
            for images, labels in batches:
                sums.index_add_(0, labels, transformer.attended(images, shifts).to(sums.dtype))
                counts += torch.bincount(labels, minlength=self.classes)
        if not counts.all():
            raise RequestError(
                f"ett makes keys and values of each class from its pictures, but {int((counts == 0).sum())} of "
                f"{self.classes} classes have none: it takes whole pictures of one class each, of every class one or "
                "more."
            )
        self.start(sums / counts[:, None])

    def start(self, prototypes: Tensor) -> None:
        """Begins with these prototypes [K, D]."""
        self.prototypes.data.copy_(prototypes)
        if self.apart is not None:
            self.apart.start.copy_(prototypes)
        self.ready = True

    def losses(self) -> dict[str, Tensor]:
        if self.apart is None:
            return {}
        return {"prototypes": self.regulariser * self.apart(self.prototypes)}

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        found = super().features(backbone, images, activations)
        if self.T is not None:
            found.pooled = F.linear(found.pooled, self.T)
        return found

    def consolidate(self) -> None:
        """Keys and values as they are, without what made them."""
        if self.stored is None:
            blocks = range(len(self.contacts.prefixes))
            self.stored = nn.Parameter(torch.stack([self._made(i).detach() for i in blocks]))
            del self.prototypes
            self.net = self.apart = None


class Shift(Change):
    """W x + b + d."""

    def __init__(self, outs: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.zeros(outs))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return weight, self.d if bias is None else bias + self.d

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return frozen_linear(x, weight, self.d if bias is None else bias + self.d)

    def upon(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.d.to(y.dtype)


class Apart(nn.Module):
    """The prototypical regularisation: a cross entropy that has the prototypes assigned as their start is."""

    start: Tensor  # [K, D]
    centre: Tensor  # [PROJECTED]

    def __init__(self, D: int, K: int) -> None:
        super().__init__()
        self.projector = nn.Linear(D, PROJECTED)
        self.register_buffer("start", torch.zeros(K, D))
        self.register_buffer("centre", torch.zeros(PROJECTED))

    def forward(self, prototypes: Tensor) -> Tensor:
        """[K, D] -> the loss; in training the centre follows."""
        with torch.no_grad():
            teacher = ((self.projector(F.normalize(self.start, dim=-1)) - self.centre) / TEACHER).softmax(-1)
        student = (self.projector(F.normalize(prototypes, dim=-1)) / STUDENT).log_softmax(-1)
        if self.training:
            self.centre.lerp_(teacher.mean(0).to(self.centre.dtype), 1 - KEPT)
        return -(teacher * student).sum(-1).mean()
