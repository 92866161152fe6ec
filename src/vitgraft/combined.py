"""Several methods on one backbone at once: `hst+lora`."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from .backbones import Backbone
from .common.errors import RequestError
from .contacts import Contacts
from .features import Activations, Features
from .method import Method


class Combined(Method):
    """Methods that adapt one backbone together, each by contacts of its own. Subclasses are made by `combine`.

    Features are those of the side network among them, if there is one. Its arguments are those of all; one that several
    have is named METHOD_ARGUMENT.
    """

    kinds: ClassVar[tuple[type[Method], ...]] = ()

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        places = self._places()
        given: dict[str, dict[str, Any]] = {kind.name(): {} for kind in self.kinds}
        for name, value in (self.defaults() | arguments).items():
            kind, argument = places[name]
            given[kind.name()][argument] = value
        self.admitted: list[Contacts] = []  # the head's, beside those of the parts
        self.parts = nn.ModuleDict({kind.name(): kind(**given[kind.name()]) for kind in self.kinds})

    @classmethod
    def name(cls) -> str:
        return "+".join(kind.name() for kind in cls.kinds)

    @classmethod
    def missing(cls) -> bool:
        return any(kind.missing() for kind in cls.kinds)

    @classmethod
    def _places(cls) -> dict[str, tuple[type[Method], str]]:
        """Every argument by its name here: whose it is, and its name there."""
        times = Counter(name for kind in cls.kinds for name in kind.defaults())
        return {_here(kind, name, times): (kind, name) for kind in cls.kinds for name in kind.defaults()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Of each method those that suit it beside another (`together`), or its own."""
        places = cls._places().items()
        return {name: (kind.defaults() | kind.together)[argument] for name, (kind, argument) in places}

    @classmethod
    def hints(cls) -> dict[str, Any]:
        return {name: kind.hints()[argument] for name, (kind, argument) in cls._places().items()}

    def arguments(self) -> dict[str, Any]:
        own = {part.name(): part.arguments() for part in self._parts}
        return {name: own[kind.name()][argument] for name, (kind, argument) in self._places().items()}

    @property
    def _parts(self) -> list[Any]:
        return list(self.parts.values())

    @property
    def _side(self) -> Any:
        """The side network among them, or None."""
        return next((part for part in self._parts if _is_side(type(part))), None)

    @property
    def own_maps(self) -> bool:
        return bool(self._side and self._side.own_maps)

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self._parts)

    @ready.setter
    def ready(self, value: bool) -> None:
        """Each says it of itself."""

    @property
    def recipe(self) -> dict[str, Any]:
        """All of theirs; of two values of one setting, such as learning rates, the smaller."""
        found: dict[str, Any] = {}
        for part in self._parts:
            found |= {name: min(value, found.get(name, value)) for name, value in part.recipe.items()}
        return found

    @property
    def size(self) -> int:
        return sum(part.size for part in self._parts)

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for part in self._parts:
            part.classes = self.classes
            part.attach(backbone)
        if side := self._side:
            self.width, self.map_channels, self.side_channels = side.width, side.map_channels, side.side_channels
        self._join()

    def _join(self) -> None:
        joined = Contacts()
        joined.in_training = self.contacts.in_training
        for part in self._parts:
            joined.join(part.contacts)
            vars(part)["joined"] = joined  # not as a module of the part: what it has are the parameters of all
        for contacts in self.admitted:
            joined.join(contacts)
        self.contacts = joined

    def admit(self, contacts: Contacts) -> None:
        self.admitted.append(contacts)
        self._join()

    def calibrate(self, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for part in self._parts:
            if not part.ready:
                part.calibrate(backbone, batches)

    def consolidate(self) -> None:
        for part in self._parts:
            part.consolidate()
        self._join()

    def losses(self) -> dict[str, Tensor]:
        return {name: loss for part in self._parts for name, loss in part.losses().items()}

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        side = self._side
        return side.features(backbone, images, activations) if side else super().features(backbone, images, activations)


@functools.cache
def combine(kinds: tuple[type[Method], ...]) -> type[Combined]:
    """The class of these methods together; RequestError for one that comes twice, and for two side networks."""
    names = [kind.name() for kind in kinds]
    if len({*names}) < len(names):
        raise RequestError(f"{'+'.join(names)} has a method twice: give each once.")
    sides = [kind for kind in kinds if _is_side(kind)]
    if len(sides) > 1:
        raise RequestError(
            f"The head reads one side network, but {' and '.join(kind.name() for kind in sides)} each are one: leave "
            f"{'one' if len(sides) == 2 else 'all but one'} out."
        )
    about: dict[str, Any] = {
        "kinds": kinds,
        "title": " and ".join(kind.title for kind in kinds),
        "paper": "; ".join(kind.paper for kind in kinds if kind.paper),
        "needs": next((kind.needs for kind in kinds if kind.missing()), ""),
        "keeps": sum(kind.keeps for kind in kinds),
        "dense": {},
        "choices": {},
        "__doc__": "\n\n".join(inspect.getdoc(kind) or "" for kind in kinds),
    }
    cls: Any = type("Combined", (Combined,), about)
    for here, (kind, argument) in cls._places().items():
        if argument in kind.choices:
            about["choices"][here] = kind.choices[argument]
        if argument in kind.dense.keys() - kind.together.keys():
            about["dense"][here] = kind.dense[argument]
    return cls


def _here(kind: type[Method], argument: str, times: Counter[str]) -> str:
    return argument if times[argument] == 1 else f"{kind.name()}_{argument}"


def _is_side(kind: type[Method]) -> bool:
    """Whether it makes features of its own."""
    return kind.features is not Method.features
