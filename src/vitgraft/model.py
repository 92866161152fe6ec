"""Backbone + method + head: the forward pass, what trains, and how a model is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import method as methods
from .backbone import Backbone
from .features import Activations
from .heads.classify import Classify
from .method import Method


class Model(nn.Module):
    """One task: a frozen backbone (which other models may share), a method, a head."""

    def __init__(self, backbone: Backbone, method: Method, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.head = head

    def forward(
        self, images: Tensor, targets: Tensor | None = None, activations: Activations | None = None
    ) -> Tensor | dict[str, Tensor]:
        """images [B, 3, H, W], normalised -> predictions (logits [B, K]); with targets [B] -> a dict of losses.

        `activations` is an earlier `method.read` of the same pictures.
        """
        if activations is None:
            activations = self.method.read(self.backbone, images)
        return self.head(self.method.features(self.backbone, images, activations), targets)

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name: the method's tensors and the head's."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors: all of the method's and the head's, none of the backbone's."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("backbone.")}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`: names and shapes must agree (RuntimeError otherwise)."""
        self.method.load_state_dict(
            {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
        )
        self.head.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})


def build(
    backbone: Backbone,
    method: str = "hst",
    *,
    classes: int,
    seed: int = 0,
    label_smoothing: float = 0.0,
    **arguments: Any,
) -> Model:
    """A model for `classes` classes, its tensors drawn from `seed`; the global generator is left as it was."""
    made = methods.create(method, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made.attach(backbone)
        head = Classify(made.width, classes, label_smoothing=label_smoothing)
    return Model(backbone, made, head)
