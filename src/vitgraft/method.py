"""What a method is."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Collection, Iterable
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .common.errors import RequestError
from .contacts import Contacts
from .features import Activations, Features

# Contacts that no tensor of the backbone can stand for.
OBSTACLES = {
    "branch": "it adds a branch beside the backbone's layers, which no tensor of theirs can stand for",
    "prefix": "it adds keys and values to the attention, which no tensor of the backbone can stand for",
    "tokens": "it adds tokens to the sequence, which no tensor of the backbone can stand for",
    "tap": "its features come from a side network that reads the backbone",
}


class Method(nn.Module):
    """One way to adapt a frozen backbone.

    A subclass is one file in `methods/`. Its constructor's signature is its whole configuration (each argument kept
    under its own name); `attach` makes its tensors and declares its contacts; `features` is overridden by side networks
    only. `calibrate` and `consolidate` are for the few that look at the training pictures first, or store less than
    they train.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    published: ClassVar[str] = ""  # the published number with its protocol
    needs: ClassVar[str] = ""  # the package without which it cannot be attached, and the extra of ours that brings it
    keeps: ClassVar[float] = 0.6  # budget: bytes kept for backward, as a share of what timm's model keeps, all trained
    # Why a method that only adds does not begin as the frozen backbone; empty where it does.
    starts_elsewhere: ClassVar[str] = ""
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}  # argument -> the words that it takes
    dense: ClassVar[dict[str, Any]] = {}  # arguments whose default differs in the dense tasks
    together: ClassVar[dict[str, Any]] = {}  # arguments whose default differs beside another method
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()  # other forms to hold to the same promises, as arguments

    def __init__(self) -> None:
        super().__init__()
        self.contacts = Contacts()
        self.width = 0  # of the pooled features, D'; known once attached
        self.map_channels: tuple[int, ...] = ()  # of the maps, finest first; known once attached
        self.side_channels: tuple[int, ...] = ()  # of maps that are added to them, finest first
        self.classes = 0  # of the task; known before it is attached
        self.ready = True  # False: it must `calibrate`, or be loaded, before it can be used

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of the fit whose default differs with this method from the general one."""
        return {}

    @property
    def in_effect(self) -> Contacts:
        """The contacts that a pass is made with: its own, or those of all methods that it is combined with."""
        return vars(self).get("joined", self.contacts)

    @property
    def crosses_backbone(self) -> bool:
        """Whether gradients cross the backbone: something that trains lies inside it."""
        return self.contacts.inside

    @property
    def own_maps(self) -> bool:
        """Whether its maps are not the backbone's, but those of a side network."""
        return False

    @property
    def mergeable(self) -> bool:
        """Whether the method can be written into the backbone's own tensors: it only retrains or changes those."""
        return not self.obstacle

    @property
    def obstacle(self) -> str:
        """Why the method cannot be merged; empty if it can."""
        return next((OBSTACLES[kind] for kind in self.contacts.kinds if kind in OBSTACLES), "")

    @property
    def size(self) -> int:
        """How many numbers of the method an adapter file holds (`consolidate` may make them fewer than train)."""
        return sum(p.numel() for p in self.parameters())

    @classmethod
    def name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def hints(cls) -> dict[str, Any]:
        """The annotation of every argument of the constructor."""
        found = get_type_hints(cls.__init__)
        return {name: found[name] for name in cls.defaults()}

    @classmethod
    def missing(cls) -> bool:
        """Whether the package that it needs is not installed."""
        return bool(cls.needs) and importlib.util.find_spec(cls.needs) is None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every argument of the constructor with its default."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters}

    def arguments(self) -> dict[str, Any]:
        """The configuration of this instance: enough to make it again."""
        return {name: getattr(self, name) for name in self.defaults()}

    def attach(self, backbone: Backbone) -> None:
        """Makes the method's tensors and declares its contacts. Draws from torch's global generator."""
        self.width = backbone.width
        self.map_channels = tuple(backbone.blocks[stage[-1]].width for stage in backbone.stages)

    def admit(self, contacts: Contacts) -> None:
        """Takes in contacts that are not its own, but the head's; RequestError where both want one place."""
        self.contacts.join(contacts)

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """What the method has to learn from the training pictures before it is fitted: nothing, unless overridden.

        batches: (images [b, 3, H, W] normalised and not augmented, labels [b]), each picture once; they may be gone
        through again.
        """

    def consolidate(self) -> None:
        """From the form that trains to the form that is stored and loaded: the same, unless overridden."""

    def read(
        self, backbone: Backbone, images: Tensor, *, pooled_only: bool = False, patches: Collection[int] = ()
    ) -> Activations:
        """The pass through the backbone, images [B, 3, H, W]; pooled_only: for features without maps; patches: the
        blocks whose patch tokens maps are made of, besides the last.

        Where gradients do not cross the backbone it is a function of the picture alone: it is taken without autograd,
        and may be computed once and kept.
        """
        if not self.ready:
            raise RequestError(
                f"The method {self.name()} has not seen the training pictures yet: call its `calibrate` with them, or "
                "load an adapter; `fit` does it by itself."
            )
        with torch.set_grad_enabled(self.crosses_backbone and torch.is_grad_enabled()):
            return backbone(images, self.contacts, pooled_only=pooled_only, patches=patches)

    def losses(self) -> dict[str, Tensor]:
        """Losses of the method's own, beside the head's, by name; once in each step of a fit."""
        return {}

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        """What the head receives, from the picture and the pass through the backbone: one map, of the last block; or
        those of the stages, where there are several."""
        features = Features(backbone.pool(activations.tokens, self.in_effect), [])
        several = len(backbone.stages) > 1
        maps = activations.patches if several else [activations.tokens[:, backbone.prefix :]]
        for patches, (h, w) in zip(maps, activations.grids, strict=False):
            if patches.shape[1]:
                features.maps.append((images.shape[-2] / h, patches.mT.unflatten(2, (h, w))))
        return features


def ready_once_loaded(method: Method) -> None:
    """Of a method that must calibrate: not ready until it has, or an adapter is loaded."""
    method.ready = False
    method.register_load_state_dict_post_hook(_be_ready)


def _be_ready(method: Any, _: object) -> None:
    method.ready = True


def check_share(method: Method, *arguments: str) -> None:
    """A RequestError unless each of these arguments of the method lies in [0, 1)."""
    for name in arguments:
        value = getattr(method, name)
        if not 0 <= value < 1:
            raise RequestError(
                f"The {name} of {method.name()} is {value}, but is a share: give 0 or more, and less than 1."
            )


def check_some(method: Method, *arguments: str) -> None:
    """A RequestError if one of these arguments of the method, a choice of several words, is empty."""
    for name in arguments:
        if not getattr(method, name):
            raise RequestError(
                f"The {name} of {method.name()} is empty, which would add nothing: give one or more of "
                f"{', '.join(method.choices[name])}."
            )


def check_positive(method: Method, *arguments: str) -> None:
    """A RequestError unless each of these arguments of the method, if it is given, is above zero."""
    for name in arguments:
        value = getattr(method, name)
        if value is not None and not 0 < value < math.inf:
            raise RequestError(
                f"The {name} of {method.name()} is {value}, but must be above 0: give for example "
                f"{method.defaults()[name] or 1}."
            )
