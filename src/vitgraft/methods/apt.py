"""APT: what prompts would add to an attention, computed beside it.

Wu et al. 2023, arXiv 2306.15706:  y = e^s (o + w a U),  a = relu(z K^T),  K = U + U A^T C^T,  w the largest of a.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..method import Method, check_positive


class APT(Method):
    """Approximated prompt tuning (sections 3.2 and 3.3; the released code where they differ).

    prompts: M of every block; 200 on ViLT. rank: R of the map from prompts as values to prompts as keys; 4 in the
    released code. form: "released", the formula above, or "softmax", as the paper has it, y = o + g softmax(z K^T /
    sqrt(D)) U with a scalar g that starts at zero. gate: a scalar before the prompts' part, zero at the start, so that
    the released form begins as the frozen backbone; ours, and the default behind LayerScale, which mutes all else.

    Parameters for L blocks of width D: L (M D + 2 R D + 1), with gate L more; 534,540 on ViT-B/16.
    """

    title = "APT, approximated prompt tuning"
    paper = "Wu et al. 2023, arXiv 2306.15706"
    starts_elsewhere = "prompts are drawn at 0.02, and weighted by what they find (released code)"
    choices = {"form": ("released", "softmax")}
    keeps = 0.66  # what enters and leaves each attention as well
    variants = ({"form": "softmax", "prompts": 7}, {"gate": True, "prompts": 5, "rank": 2})

    def __init__(self, *, prompts: int = 50, rank: int = 4, form: str = "released", gate: bool | None = None) -> None:
        super().__init__()
        self.prompts, self.rank, self.form, self.gate = prompts, rank, form, gate
        check_positive(self, "prompts", "rank")
        if gate and form == "softmax":
            raise RequestError("The softmax form of apt has a scalar that starts at zero already: leave the gate out.")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        scaled = backbone.has_layerscale  # outputs are then added muted, and e^s of them is none of ours to add
        gate = self.form == "released" and (scaled if self.gate is None else self.gate)
        for block in backbone.blocks:
            diffusion = Diffusion(block.width, self.prompts, self.rank, self.form, gate, scale_outputs=not scaled)
            self.contacts.add_branch(backbone, f"{block.path}.attn", diffusion)


class Diffusion(nn.Module):
    """The prompts' part of one block. Behind LayerScale s scales it alone, elsewhere the attention's output too."""

    def __init__(self, D: int, M: int, R: int, form: str, gate: bool, *, scale_outputs: bool) -> None:
        super().__init__()
        self.form, self.scale_outputs = form, scale_outputs
        self.U = nn.Parameter(torch.empty(M, D))
        self.A = nn.Parameter(torch.empty(R, D))
        self.C = nn.Parameter(torch.zeros(D, R))
        self.s = nn.Parameter(torch.zeros(1))
        self.gate = nn.Parameter(torch.zeros(1)) if gate else None
        nn.init.normal_(self.U, std=0.02)
        nn.init.normal_(self.A)

    def forward(self, inputs: Tensor, outputs: Tensor, grid: tuple[int, int]) -> Tensor:
        """z = inputs [B, P+N, D], o = outputs [B, P+N, D] -> what is added to them."""
        keys = self.U + self.U @ self.A.mT @ self.C.mT
        scores = F.linear(inputs, keys)
        if self.form == "softmax":
            return (self.s * (scores / math.sqrt(inputs.shape[-1])).softmax(-1)) @ self.U
        a = scores.relu()
        # What scales the outputs scales the M shares instead, which are fewer to keep for backward.
        scale = self.s.exp() if self.gate is None else self.s.exp() * self.gate
        found = (a * (scale * a.detach().amax(-1, keepdim=True))) @ self.U
        return found + self.s.expm1() * outputs if self.scale_outputs else found
