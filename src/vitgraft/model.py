"""Backbone + method + head: the forward pass, what trains, and how a model is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import heads, methods
from .backbones import Backbone
from .common.errors import RequestError
from .common.settings import NECK_WIDTH
from .features import Activations, Features
from .heads.pyramid import Beside, Mix, Pyramid
from .kernels.recompute import recomputing
from .method import Method

PIXELS_PER_PATCH = 16  # in pictures of the dense tasks, whatever the backbone's own patch is


class Model(nn.Module):
    """One task: a frozen backbone (which other models may share), a method, a neck, a head.

    neck: what makes of the method's maps those that the head reads, one module after the other; often none. patches:
    the blocks whose patch tokens maps are made of, besides the last.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        head: Any,
        neck: Sequence[nn.Module] = (),
        patches: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.neck = nn.ModuleList(neck)
        self.head = head
        self.patches = patches
        # Weight, in training, of the squared distance between the answers to two noisy passes of a picture (PACE, Ni et
        # al. 2024, arXiv 2409.17137); the batch goes through twice.
        self.consistency = 0.0

    @property
    def enters(self) -> bool:
        """Whether the head has tokens of its own in the backbone."""
        return hasattr(self.head, "enter")

    def forward(
        self,
        images: Tensor,
        targets: Any = None,
        activations: Activations | None = None,
        sizes: list[tuple[int, int]] | None = None,
    ) -> Any:
        """images [B, 3, H, W], normalised -> the head's predictions; with the head's targets -> a dict of losses.

        activations: an earlier `read` of the same pictures. sizes: (h, w) of each picture inside its padding, where it
        has some. Dense tasks take sides that 32 divides.
        """
        with recomputing():
            return self._forward(images, targets, activations, sizes)

    def _forward(
        self, images: Tensor, targets: Any, activations: Activations | None, sizes: list[tuple[int, int]] | None
    ) -> Any:
        twice = bool(self.consistency) and targets is not None
        if twice:
            images = images.repeat(2, 1, 1, 1)
        features = self.features(images, activations, sizes)
        if targets is None:
            return self.head(features)
        if not twice:
            return {**self.head(features, targets), **self.method.losses()}
        one, other = (replace(features, pooled=half) for half in features.pooled.chunk(2))
        apart = (self.head(one).float() - self.head(other).float()).square().sum(-1).mean()
        return {**self.head(one, targets), "consistency": self.consistency * apart, **self.method.losses()}

    def features(
        self, images: Tensor, activations: Activations | None = None, sizes: list[tuple[int, int]] | None = None
    ) -> Features:
        """What the head sees of images [B, 3, H, W]; the rest as in `forward`."""
        if activations is None:
            activations = self.read(images)
        features = self.method.features(self.backbone, images, activations)
        H, W = images.shape[-2:]
        features.size, features.sizes = (H, W), sizes or []
        if self.enters:
            left = activations.extra[self.backbone.depth - 1]
            features.queries = self.backbone.normalised(left, self.method.in_effect)
        for part in self.neck:
            features = part(features, activations)
        return features

    def read(self, images: Tensor) -> Activations:
        """The pass through the backbone, images [B, 3, H, W]."""
        seen = self.seen(images)
        return self.method.read(self.backbone, seen, pooled_only=not self.head.levels, patches=self.patches)

    def seen(self, images: Tensor) -> Tensor:
        """What the backbone sees of images [B, 3, H, W].

        A picture of a dense task has 16 pixels for each patch, so that maps lie at strides 4, 8, 16 and 32 of it for
        every backbone: one whose patch has p pixels sees the picture resized by p / 16. A backbone of several stages
        has these strides itself.
        """
        patch = self.backbone.patch
        if not self.head.levels or len(self.backbone.stages) > 1 or patch == (PIXELS_PER_PATCH, PIXELS_PER_PATCH):
            return images
        size = [side // PIXELS_PER_PATCH * p for side, p in zip(images.shape[-2:], patch, strict=True)]
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)

    @property
    def _parts(self) -> dict[str, nn.Module]:
        """What an adapter holds."""
        return {"method": self.method, "neck": self.neck, "head": self.head}

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name: tensors of the method, the neck and the head."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors: all of the method's, the neck's and the head's, none of the backbone's."""
        return {f"{part}.{name}": t for part, module in self._parts.items() for name, t in module.state_dict().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`: names and shapes must agree (RuntimeError otherwise)."""
        for part, module in self._parts.items():
            prefix = f"{part}."
            module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})


def build(
    backbone: Backbone,
    method: str = "hst",
    *,
    classes: int,
    task: str = "classify",
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
    neck_blocks: int = 0,
    neck_width: int = NECK_WIDTH,
    seed: int = 0,
    **arguments: Any,
) -> Model:
    """A model for `classes` classes, where the backbone lies. Its tensors are drawn from `seed`; the global generator
    is left as it was.

    head: one of the task's, its first unless given, with its own options. neck_blocks: how many blocks a neck makes
    maps of, where the head needs one: the last, and others at equal distances; 0: four of a backbone that no gradient
    crosses, else the last alone, which then learns to carry what is asked of it. neck_width: of these maps, the
    backbone's own at most, which 0 stands for. arguments: of the method.
    """
    name = head or heads.names(task)[0]
    kind = heads.find(task, name)
    levels = kind.levels
    made = methods.create(method, dense=levels > 0, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made.classes = classes
        made.attach(backbone)
        channels = made.map_channels if levels else (made.width,)
        patches: tuple[int, ...] = ()
        neck: list[Any] = []
        if len(channels) < levels or (len(channels) == 1 and getattr(kind, "mixes", False)):
            patches = _evenly(backbone, neck_blocks or (1 if made.crosses_backbone else min(4, backbone.depth)))
            neck.append(Mix(channels[0], neck_width, [backbone.blocks[i].width for i in patches]))
            if levels > 1:
                neck.append(Pyramid(*neck[-1].channels))
        elif levels and len(backbone.stages) > 1 and not made.own_maps:
            patches = tuple(stage[-1] for stage in backbone.stages)
        if made.side_channels and levels:
            neck.append(Beside(neck[-1].channels if neck else channels, made.side_channels))
        made_head: Any = heads.create(
            task, name, neck[-1].channels if neck else channels, classes, **(head_options or {})
        )
        if hasattr(made_head, "enter"):
            made_head.enter(backbone, made)
    model = Model(backbone, made, made_head, neck, patches)
    return model.to(next(backbone.parameters()).device)


def _evenly(backbone: Backbone, n: int) -> tuple[int, ...]:
    """n blocks at equal distances, of which the last, whose output is normalised anyway, is left out."""
    L = backbone.depth
    if not 1 <= n <= L:
        raise RequestError(
            f"Maps were to be made of {n} blocks, but {backbone.name} has {L}: give neck_blocks from 1 to {L}."
        )
    return tuple((i + 1) * L // n - 1 for i in range(n - 1))
