"""What a method is, and how one is found by the name of its file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import methods
from .backbone import Backbone
from .contacts import Contacts
from .errors import RequestError, near_misses
from .features import Activations, Features


class Method(nn.Module):
    """One way to adapt a frozen backbone.

    A subclass is one file in `methods/`. Its constructor's signature is its whole configuration (each argument kept
    under its own name); `attach` makes its tensors and declares its contacts; `features` is overridden by side networks
    only.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    published: ClassVar[str] = ""  # the published number with its protocol
    keeps: ClassVar[float] = 1.0  # budget: bytes kept for backward, as a share of what full fine-tuning keeps

    def __init__(self) -> None:
        super().__init__()
        self.contacts = Contacts()
        self.width = 0  # of the pooled features, D'; known once attached

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings of the fit whose default differs with this method from the general one."""
        return {}

    @property
    def crosses_backbone(self) -> bool:
        """Whether gradients cross the backbone: something that trains lies inside it."""
        return self.contacts.inside

    @property
    def mergeable(self) -> bool:
        """Whether the method can be written into the backbone's own tensors: it only retrains or changes those."""
        return all(kind in ("train", "weight") for kind in self.contacts.kinds)

    @classmethod
    def name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

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

    def read(self, backbone: Backbone, images: Tensor) -> Activations:
        """The pass through the backbone, images [B, 3, H, W].

        Where gradients do not cross the backbone it is a function of the picture alone: it is taken without autograd,
        and may be computed once and kept.
        """
        with torch.set_grad_enabled(self.crosses_backbone and torch.is_grad_enabled()):
            return backbone(images, self.contacts)

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        """What the head receives, from the picture and the pass through the backbone."""
        h, w = activations.grid
        patches = activations.tokens[:, backbone.prefix :].mT.unflatten(2, (h, w))
        return Features(backbone.pool(activations.tokens, self.contacts), [(float(backbone.patch[0]), patches)])


def names() -> list[str]:
    """The methods that exist: the files of `methods/`."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def find(name: str) -> type[Method]:
    """The class of a method; RequestError with the near misses if there is no such file."""
    if name not in names():
        raise RequestError(
            f"There is no method {name!r}: there are {', '.join(names())}; choose one of these."
            f"{near_misses(name, names())}"
        )
    module = importlib.import_module(f"{methods.__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    )


def create(name: str, **arguments: Any) -> Method:
    """A method by name; an argument that it does not have is a RequestError that names those it has."""
    cls = find(name)
    known = cls.defaults()
    for argument in arguments:
        if argument not in known:
            owners = [other for other in names() if argument in find(other).defaults()]
            raise RequestError(
                f"The method {name} has no option {argument!r}: it has {', '.join(known) or 'none'}"
                + (f"; {argument!r} belongs to {', '.join(owners)}" if owners else "")
                + f". Leave it out or choose another method.{near_misses(argument, known)}"
            )
    return cls(**arguments)
