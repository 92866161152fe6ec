"""VPT: learnable prompts in front of the tokens.

Jia et al. 2022, arXiv 2203.12119. Deep: every block has prompts of its own, whose outputs are thrown away. Shallow: the
prompts enter at the first block and stay to the last.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..method import Method, check_positive


class VPT(Method):
    """Visual prompt tuning.

    form: "deep" or "shallow" (section 3.2). prompts: M, per block in the deep form; the paper searches 1 to 200 per
    task. Prompts start uniform within sqrt(6 / (3 p^2 + D)), p the patch size (released code).

    Parameters for L blocks of width D: L M D, 92,160 on ViT-B/16; shallow M D.
    """

    title = "VPT, visual prompt tuning"
    paper = "Jia et al. 2022, arXiv 2203.12119"
    published = "VTAB-1k 69.4 (mean of 19, ViT-B/16 IN-21k; table 1)"
    choices = {"form": ("deep", "shallow")}
    variants = ({"form": "shallow"},)
    keeps = 0.62

    def __init__(self, *, form: str = "deep", prompts: int = 10) -> None:
        super().__init__()
        self.form, self.prompts = form, prompts
        check_positive(self, "prompts")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if self.form == "shallow" and len(backbone.stages) > 1:
            raise RequestError(
                f"Shallow prompts stay from the first block to the last, but {backbone.name} merges its patches on the "
                "way: take the deep form."
            )
        L = backbone.depth
        firsts, last = (range(L), None) if self.form == "deep" else (range(1), L - 1)
        self.tokens = nn.ParameterList()
        for first in firsts:
            D = backbone.blocks[first].width
            bound = math.sqrt(6 / (3 * math.prod(backbone.patch) + D))
            tokens = nn.Parameter(torch.empty(1, self.prompts, D).uniform_(-bound, bound))
            self.tokens.append(tokens)
            self.contacts.add_tokens(backbone, first, tokens, until=last)
