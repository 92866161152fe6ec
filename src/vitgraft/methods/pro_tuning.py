"""Pro-tuning: prompts that are predicted from the feature map, in front of each quarter of the blocks.

Nie et al. 2022, arXiv 2207.14381:  G = G + beta V(G),  V three light convolutions. There is no released code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..method import Method, check_positive


class ProTuning(Method):
    """Stage-wise prompt blocks; our reading, where the paper's details are not to be had.

    rank: R channels between the convolutions. kernel: k of the depth-wise one in the middle, odd. places: how many
    prompts, before blocks at equal distances, the first of all among them; on a backbone of several stages one stands
    before each.

    Parameters for each place of width D: (2 D + k^2 + 2) R + D + 1; 403,204 on ViT-B/16.
    """

    title = "Pro-tuning, prompts from the feature map"
    paper = "Nie et al. 2022, arXiv 2207.14381"
    keeps = 0.66
    variants = ({"rank": 6, "kernel": 3, "places": 2},)

    def __init__(self, *, rank: int = 64, kernel: int = 5, places: int = 4) -> None:
        super().__init__()
        self.rank, self.kernel, self.places = rank, kernel, places
        check_positive(self, "rank", "kernel", "places")
        if kernel % 2 == 0:
            raise RequestError(f"The kernel of pro_tuning is {kernel}, but has a middle: give an odd number, as 5.")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for i in self._blocks(backbone):
            prompt = Prompt(backbone.blocks[i].width, self.rank, self.kernel)
            self.contacts.add_before(backbone, i, prompt)

    def _blocks(self, backbone: Backbone) -> list[int]:
        """Not behind the last block: a class token would not see it."""
        if len(backbone.stages) > 1:
            return [stage[0] for stage in backbone.stages]
        if self.places > backbone.depth:
            raise RequestError(
                f"pro_tuning was to have {self.places} places, but {backbone.name} has {backbone.depth} blocks: give "
                f"places from 1 to {backbone.depth}."
            )
        return [i * backbone.depth // self.places for i in range(self.places)]


class Prompt(nn.Module):
    """One prompt block; its last convolution starts at zero."""

    def __init__(self, D: int, R: int, k: int) -> None:
        super().__init__()
        self.reduce, self.widen = nn.Linear(D, R), nn.Linear(R, D)
        self.depthwise = nn.Conv2d(R, R, k, padding=k // 2, groups=R)
        self.beta = nn.Parameter(torch.ones(1))
        for layer in (self.reduce, self.depthwise):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.widen.weight)
        nn.init.zeros_(self.widen.bias)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x [B, P+N, D] -> the same; what stands before the patches is left alone."""
        h, w = grid
        before, patches = x.split([x.shape[1] - h * w, h * w], dim=1)
        u = F.gelu(self.reduce(patches)).mT.unflatten(2, grid)
        u = F.gelu(self.depthwise(u)).flatten(2).mT
        return torch.cat([before, patches + (self.beta * self.widen(u)).to(x.dtype)], dim=1)
