"""E2VPT: prompts in front of the tokens, others among keys and values, and pruning of the former.

Han et al. 2023, arXiv 2307.13770:  softmax(q [S; k]^T / sqrt(e)) [S; v]  in each block, beside VPT's deep prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..features import Activations, Features
from ..method import Method, check_share, ready_once_loaded

LEAST_PIECES = 4  # of a prompt are kept (released code)


class E2VPT(Method):
    """Effective and efficient visual prompt tuning.

    prompts: M input prompts of each block; key_value: T key-value prompts of each. shared: the same tensor for keys and
    for values (released code). dropout: of input prompts, drawn for each picture.

    drop_tokens, drop_pieces: the shares that are pruned, of prompts and of the pieces (every Q-th channel) of each. A
    first fit of `first_epochs`, with a linear head on the pictures as they are, scores them; the rest then begins anew
    from the first fit's own start. score: "absolute", the size of the gradient of a piece's mask, or "released", its
    sign too, as the released code has it. keep_zero: pruned prompts stay as zeros that are attended to (released code);
    else the sequence gets shorter. pool_prompts: where patches are averaged, prompts are too (released code, Swin).

    Parameters for L blocks of width D: L D (M + T), pruned L (D / Q) m + L D T for m pieces left; 138,240 on ViT-B/16.
    Keys and values apart: L D T more.
    """

    title = "E2VPT, prompts for tokens, keys and values"
    paper = "Han et al. 2023, arXiv 2307.13770"
    published = "VTAB-1k 71.4 (mean of 19, ViT-B/16 IN-21k; groups 73.9)"
    choices = {"score": ("absolute", "released")}
    keeps = 0.66
    variants = (
        {"prompts": 3, "key_value": 2, "shared": False},
        {"prompts": 4, "pieces": 8, "drop_tokens": 0.5, "drop_pieces": 0.4, "first_epochs": 1},
    )

    def __init__(
        self,
        *,
        prompts: int = 10,
        key_value: int = 5,
        shared: bool = True,
        dropout: float = 0.1,
        pieces: int = 16,
        drop_tokens: float = 0.0,
        drop_pieces: float = 0.0,
        score: str = "absolute",
        keep_zero: bool = False,
        first_epochs: int = 10,
        pool_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.prompts, self.key_value, self.shared, self.dropout = prompts, key_value, shared, dropout
        self.pieces = pieces
        self.drop_tokens, self.drop_pieces, self.score = drop_tokens, drop_pieces, score
        self.keep_zero, self.first_epochs, self.pool_prompts = keep_zero, first_epochs, pool_prompts
        check_share(self, "dropout", "drop_tokens", "drop_pieces")
        if prompts < 0 or key_value < 0 or not prompts + key_value:
            raise RequestError(
                f"e2vpt was asked for {prompts} prompts and {key_value} of keys and values, which would add nothing: "
                "give one or more of either."
            )
        if self.pruned and not prompts:
            raise RequestError("e2vpt was to drop prompts, but has none: give prompts, or drop nothing.")

    @property
    def pruned(self) -> bool:
        return bool(self.drop_tokens or self.drop_pieces)

    @property
    def kept(self) -> tuple[int, int]:
        """How many prompts are left, and pieces of each."""
        M, Q = self.prompts, self.pieces
        left = Q - math.floor(Q * self.drop_pieces + 1e-9)
        return max(M - math.floor(M * self.drop_tokens + 1e-9), min(M, 1)), max(left, min(Q, LEAST_PIECES))

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        M, T = self.prompts, self.key_value
        Q = self.pieces if self.pruned else 1
        m, q = self.kept if self.pruned else (M, 1)
        self.rows = M if self.keep_zero else m  # of the sequence
        self.inputs, self.keys_values = nn.ParameterList(), nn.ParameterList()
        # Of each piece that is kept its place among rows * Q.
        self.register_buffer("places", torch.arange(m * q), persistent=self.pruned)
        for i, block in enumerate(backbone.blocks):
            D, H = block.width, block.heads
            if D % Q:
                raise RequestError(
                    f"Prompts of width {D} of {backbone.name} cannot be cut into {Q} pieces: give a divisor of {D}."
                )
            if M:
                bound = math.sqrt(6 / (3 * math.prod(backbone.patch) + D))
                self.inputs.append(nn.Parameter(torch.empty(m * q, D // Q).uniform_(-bound, bound)))
                self.contacts.add_tokens(backbone, i, partial(self._tokens, i))
            if T:
                bound = math.sqrt(6 / (T * D // H))  # Kaiming's for a tensor [H, T, e], as released
                sets = 1 if self.shared else 2
                self.keys_values.append(nn.Parameter(torch.empty(sets, H, T, D // H).uniform_(-bound, bound)))
                self.contacts.add_prefix(backbone, i, partial(self._prefix, i))
        if self.pruned:
            ready_once_loaded(self)

    def _tokens(self, i: int, B: int) -> Tensor:
        """The prompts of a block, [1, rows, D], or [B, rows, D] where each picture has its own dropout."""
        made: Tensor = self.inputs[i]  # [M, D], or [pieces that are kept, D / Q]
        if self.pruned:
            places: Any = self.places
            made = made.new_zeros(self.rows * self.pieces, made.shape[1]).index_copy(0, places, made)
            made = whole(made.unflatten(0, (self.rows, -1)))
        made = made[None]
        if self.dropout and self.training:
            made = F.dropout(made.expand(B, -1, -1), self.dropout)
        return made

    def _prefix(self, i: int) -> tuple[Tensor, Tensor]:
        own = self.keys_values[i]
        return own[0], own[-1]

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        found = super().features(backbone, images, activations)
        if self.pool_prompts and (extra := activations.extra.get(backbone.depth - 1)) is not None:
            extra = backbone.normalised(extra, self.in_effect)
            found.pooled = backbone.pool(torch.cat([activations.tokens, extra], dim=1), self.in_effect)
        return found

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """The first fit, the scores, the pruning, and the start of what is left."""
        labels = sorted({int(label) for _, of in batches for label in of})
        first = E2VPT(**{**self.arguments(), "drop_tokens": 0.0, "drop_pieces": 0.0})
        device = next(self.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first.attach(backbone)
            head = nn.Linear(backbone.width, len(labels)).to(device)
            first.to(device)
            start = {name: t.clone() for name, t in first.state_dict().items()}
            _fit(first, head, backbone, batches, labels)
            gradients = piece_gradients(first, head, backbone, batches, labels)
        self.keep(mask := chosen(gradients, *self.kept, self.score))
        for i, own in enumerate(self.inputs):
            own.data.copy_(in_pieces(start[f"inputs.{i}"], self.pieces)[mask])
        for i, own in enumerate(self.keys_values):
            own.data.copy_(start[f"keys_values.{i}"])

    def keep(self, mask: Tensor) -> None:
        """mask [M, Q]: true for the pieces that are kept, as many as `kept` says."""
        places: Any = self.places
        if not self.keep_zero:
            mask = mask[mask.any(1)]
        places.copy_(mask.flatten().nonzero()[:, 0])
        self.ready = True


def in_pieces(prompts: Tensor, Q: int) -> Tensor:
    """[M, D] -> [M, Q, D / Q]; channel c is of piece c mod Q."""
    return prompts.unflatten(-1, (-1, Q)).mT


def whole(pieces: Tensor) -> Tensor:
    """[M, Q, D / Q] -> [M, D]"""
    return pieces.mT.flatten(-2)


def _loss(
    method: E2VPT, head: nn.Module, backbone: Backbone, batch: tuple[Tensor, Tensor], labels: list[int]
) -> Tensor:
    images, of = batch
    found = method.read(backbone, images, pooled_only=not method.pool_prompts)
    pooled = method.features(backbone, images, found).pooled
    return F.cross_entropy(head(pooled), torch.searchsorted(torch.tensor(labels, device=of.device), of))


def _fit(
    method: E2VPT, head: nn.Module, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]], labels: list[int]
) -> None:
    optimiser = torch.optim.AdamW([*method.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-4)
    method.train()
    for _ in range(method.first_epochs):
        for batch in batches:
            _loss(method, head, backbone, batch, labels).backward()
            optimiser.step()
            optimiser.zero_grad()
    method.eval()


def piece_gradients(
    method: E2VPT, head: nn.Module, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]], labels: list[int]
) -> Tensor:
    """Of each piece of the prompts [M, Q] the gradient of a mask that all blocks share: the mean over batches, signed.
    That of a whole prompt's mask is the sum over its pieces."""
    total, n = torch.zeros(method.prompts, method.pieces, dtype=torch.float64), 0
    for batch in batches:
        grads = torch.autograd.grad(_loss(method, head, backbone, batch, labels), [*method.inputs])
        # dL/dm of values m P is P dL/dP at m = 1.
        by_block = [
            in_pieces((g * own).detach(), method.pieces).sum(-1).double().cpu()
            for g, own in zip(grads, method.inputs, strict=True)
        ]
        total, n = total + torch.stack(by_block).sum(0), n + 1
    return total / n


def chosen(gradients: Tensor, m: int, q: int, score: str) -> Tensor:
    """gradients [M, Q] -> which pieces are kept, as a mask: the m highest prompts, of each the q highest pieces; among
    equals the later ones, as a stable sort of the released code leaves them."""
    gradients = gradients.abs() if score == "absolute" else gradients
    tokens = gradients.sum(1).sort(stable=True).indices[-m:]
    mask = torch.zeros(gradients.shape, dtype=torch.bool)
    mask[tokens[:, None], gradients[tokens].sort(dim=1, stable=True).indices[:, -q:]] = True
    return mask
