"""Consolidator: grouped linear branches that fold into the backbone's own layers.

Hao et al. 2023, arXiv 2305.00603. Beside each linear layer y = W x + b of every block stand grouped branches

    y = W x + b + sum_i Drop(A_i S_i x + beta_i)

where A_i is block-diagonal with g_i blocks and S_i an optional shuffle of the channels. Two consolidations follow the
fit: for storage, all branches of a layer become one value per position that any of them reaches; for inference, these
are added to W and b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, drop_path
from ..common.errors import RequestError
from ..kernels.linear import Change, Effective, cast_once, few_bits, frozen_linear
from ..method import Method, check_share

LAYERS = ("qkv", "proj", "fc1", "fc2")
SIDE = 64  # bytes of the shorter side of a product: of less it is slow, of more it spends itself on what is not kept


class Consolidator(Method):
    """Grouped connections beside qkv, proj, fc1 and fc2.

    groups: the group number g of each branch; half the width unless given (384 at width 768, released code), or the
    largest number below where that does not divide a layer (the MLP of EVA-02). reorder: the channels are shuffled
    before they are grouped (off in the released training). split_qkv: q, k and v are grouped each for itself and see
    every channel, instead of the fused layer, whose thirds see a third each (released code). branch_drop: the rate at
    which a branch is dropped per picture (released: 0, 0.2, 0.5 or 0.8 per task). originals: which of the backbone's
    own tensors train too: "bias" those of the four layers, which the published size counts; "norm" every LayerNorm,
    which the released code trains as well and the published size leaves out.

    Parameters for L blocks of width D with one branch: stored 12 L D^2 / g + 9 L D, 304,128 on ViT-B/16 (twice the
    second term while it trains: 387,072); training the norms adds 4 L D + 2 D, 38,400.
    """

    title = "Consolidator"
    paper = "Hao et al. 2023, arXiv 2305.00603"
    starts_elsewhere = "branches start within 1e-3 of zero (released code)"
    published = "VTAB-1k 76.5 (mean of groups, ViT-B/16 IN-21k, best epoch on test; table 1)"
    choices = {"originals": ("bias", "norm")}
    variants = (
        {"groups": (6, 12), "reorder": True, "originals": ("bias", "norm")},
        {"split_qkv": True, "originals": ()},
    )

    def __init__(
        self,
        *,
        groups: Sequence[int] | None = None,
        reorder: bool = False,
        split_qkv: bool = False,
        branch_drop: float = 0.0,
        originals: Sequence[str] = ("bias",),
    ) -> None:
        super().__init__()
        self.groups = None if groups is None else tuple(groups)
        self.reorder, self.split_qkv, self.branch_drop = reorder, split_qkv, branch_drop
        self.originals = tuple(originals)
        check_share(self, "branch_drop")
        if self.groups is not None and not self.groups:
            raise RequestError("Consolidator needs a group number, but none came: give one for each branch.")

    @property
    def recipe(self) -> dict[str, float]:
        """The middle of the released grid, 5e-4 to 1e-2."""
        return {"lr": 2e-3}

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for block in backbone.blocks:
            paths = backbone.layers(block, *LAYERS)
            if self.groups:
                _check_groups(backbone, paths, self.groups)
            for path in paths:
                linear = backbone.linear(path)
                groups = self.groups or (_half(block.width, linear),)
                if "bias" in self.originals and linear.bias is not None:
                    self.contacts.train_tensor(backbone, f"{path}.bias")
                parts = 3 if self.split_qkv and path.endswith(".qkv") else 1
                reach = [
                    columns(linear.in_features, linear.out_features, g, reorder=self.reorder, parts=parts)
                    for g in groups
                ]
                change = Grouped(reach, linear.in_features, self.branch_drop, parts=parts, reorder=self.reorder)
                self.contacts.change(backbone, path, change)
        if "norm" in self.originals:
            for path, module in backbone.affine.items():
                if isinstance(module, nn.LayerNorm):
                    for name in ("weight", "bias"):
                        self.contacts.train_tensor(backbone, f"{path}.{name}")

    @property
    def size(self) -> int:
        """One value per position that a branch reaches, one bias per layer, and what trains besides."""
        trained = self.contacts.own("")
        return sum(p.numel() for p in trained.values()) + sum(
            int(change.support.sum()) + (0 if f"{path}.bias" in trained else len(change.support))
            for path, change in self._changes()
        )

    def consolidate(self) -> None:
        """The first consolidation: of each layer's branches their sum is left; beta joins the bias if that trains."""
        trained = self.contacts.own("")
        for path, change in self._changes():
            if isinstance(change, Grouped):
                weight, beta = (t.detach() for t in change.summed())
                own = trained.get(f"{path}.bias")
                if own is not None:
                    own.data += beta
                self.contacts.replace(path, Summed(change.support, weight, beta if own is None else None))

    def _changes(self) -> list[tuple[str, Grouped | Summed]]:
        return [
            (path, change) for path, change in self.contacts.change_at.items() if isinstance(change, Grouped | Summed)
        ]


def columns(ins: int, outs: int, g: int, *, reorder: bool, parts: int = 1) -> np.ndarray:
    """Which inputs each output of a grouped layer reaches: [outs, ins / g].

    parts: the outputs are so many layers of their own, one after the other, each with g groups.
    """
    n = ins // g
    block = np.arange(outs // parts) // (outs // parts // g)
    place = block[:, None] * n + np.arange(n)
    if reorder:  # (S x)[j g + p] = x[p n + j]
        place = place % g * n + place // g
    return np.tile(place, (parts, 1))


def _half(width: int, linear: nn.Linear) -> int:
    """Half the width, or the largest number below that divides the layer where that does not."""
    common = math.gcd(linear.in_features, linear.out_features)
    return max(g for g in range(1, max(width // 2, 1) + 1) if not common % g)


def _check_groups(backbone: Backbone, paths: Sequence[str], groups: Sequence[int]) -> None:
    linears = [backbone.linear(path) for path in paths]
    common = math.gcd(*(n for linear in linears for n in (linear.in_features, linear.out_features)))
    for g in groups:
        if g < 1 or common % g:
            possible = ", ".join(str(n) for n in range(1, common + 1) if not common % n)
            raise RequestError(
                f"{g} groups do not divide the layers of {backbone.name}, whose widths are multiples of {common}: "
                f"possible are {possible}; choose one of these."
            )


class Grouped(Effective):
    """Grouped branches beside a linear layer; reach: for each branch the inputs of every output, [outs, n]."""

    reach0: Tensor

    def __init__(self, reach: list[np.ndarray], ins: int, drop: float, *, parts: int, reorder: bool) -> None:
        super().__init__()
        self.drop, self.parts, self.reorder = drop, parts, reorder
        self.support = np.zeros((len(reach[0]), ins), bool)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, places in enumerate(reach):
            np.put_along_axis(self.support, places, True, axis=1)
            self.register_buffer(f"reach{i}", torch.tensor(places), persistent=False)
            self.weights.append(nn.Parameter(torch.empty(places.shape)))
            self.biases.append(nn.Parameter(torch.empty(len(places))))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def summed(self) -> tuple[Tensor, Tensor]:
        """All branches as one weight [outs, ins] and one bias [outs]."""
        return self.merged(self.weights[0].new_zeros(self.support.shape), None)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        for i, A in enumerate(self.weights):
            weight = weight.scatter_add(1, getattr(self, f"reach{i}"), A.to(weight.dtype))
        beta = torch.stack(list(self.biases)).sum(0)
        return weight, beta if bias is None else bias + beta

    def merged_in(self, dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if dtype == weight.dtype or few_bits(weight) or len(self.weights) > 1:
            return super().merged_in(dtype, weight, bias)
        # The same numbers without casting the whole weight: few of them differ from what is cast already.
        merged, rows = cast_once(weight, dtype).clone(), torch.arange(len(weight), device=weight.device)[:, None]
        merged[rows, self.reach0] = (weight.gather(1, self.reach0) + self.weights[0]).to(dtype)
        beta = self.biases[0] if bias is None else bias + self.biases[0]
        return merged, beta.to(dtype)

    def gradients(self, x: Tensor, dy: Tensor, total: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return *(self._gradient(x, dy, A.shape) for A in self.weights), *(total() for _ in self.biases)

    def _gradient(self, x: Tensor, dy: Tensor, shape: torch.Size) -> Tensor:
        """Of one A, [outs, n].

        Products of a few groups at once, whose diagonal blocks are kept: those of single groups are too small to be
        fast.
        """
        n = shape[1]
        g = x.shape[1] // n
        side = min(n, shape[0] // self.parts // g) * x.element_size()
        m = next(k for k in range(1, g + 1) if not g % k and (k * side >= SIDE or k == g))
        outs, ins = dy.unflatten(1, (self.parts, g // m, -1)), self._grouped(x, g).unflatten(1, (g // m, -1))
        if x.device.type == "cpu":  # products read parts of a matrix in place, where einsum lays all of it out anew
            pairs = ((p, k) for p in range(self.parts) for k in range(g // m))
            blocks = torch.stack([outs[:, p, k].mT @ ins[:, k] for p, k in pairs]).unflatten(0, (self.parts, -1))
        else:
            blocks = torch.einsum("tpgo,tgi->pgoi", outs, ins)
        blocks = blocks.unflatten(3, (m, n)).unflatten(2, (m, -1))  # [parts, g / m, m, o, m, n]
        return blocks.diagonal(dim1=2, dim2=4).movedim(-1, 2).reshape(shape)

    def _grouped(self, x: Tensor, g: int) -> Tensor:
        """S x: the channels of x [..., in] in the order in which they fall into g groups."""
        return x.unflatten(-1, (g, -1)).mT.flatten(-2) if self.reorder else x

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (self.drop and self.training):
            return super().forward(x, weight, bias)
        y = frozen_linear(x, weight, bias)
        for A, beta in zip(self.weights, self.biases, strict=True):
            n = A.shape[1]
            g = x.shape[-1] // n
            groups = self._grouped(x, g).unflatten(-1, (g, n))
            # o outputs in each of the g groups, in each of the parts
            branch = torch.einsum("btgi,pgoi->btpgo", groups, A.view(self.parts, g, -1, n)).flatten(2)
            y = y + drop_path(branch + beta, self.drop)
        return y


class Summed(Change):
    """What is left of the branches of a layer: one value per position of their common support [outs, ins], one bias."""

    places: Tensor

    def __init__(self, support: np.ndarray, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.support = support
        self.register_buffer("places", torch.tensor(np.flatnonzero(support), device=weight.device), persistent=False)
        self.values = nn.Parameter(weight.flatten()[self.places])
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        changed = weight.flatten().index_add(0, self.places, self.values.to(weight.dtype)).view_as(weight)
        if self.bias is None:
            return changed, bias
        return changed, self.bias if bias is None else bias + self.bias
