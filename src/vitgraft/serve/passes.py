"""Passes through a backbone that several questions share: full batches, always of one shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..contacts import Contacts, side_by_side
from ..features import Activations
from ..model import Model


class Wanted(NamedTuple):
    """What one question wants of a pass."""

    question: int
    picture: Any  # questions of one picture have the same
    images: Tensor  # [1, 3, H, W], that picture
    model: Model
    detached: bool  # its method leaves the backbone alone
    alike: tuple[Any, ...]  # what it must have in common with others to share a batch


@dataclass(eq=False)
class Place:
    """One row of a pass: a picture, and the contacts that it meets: of one task, or of several that leave the backbone
    alone."""

    seen: Tensor  # [1, 3, H, W], as the backbone sees the picture
    contacts: Contacts
    alike: tuple[Any, ...]
    questions: list[int] = field(default_factory=list)
    patches: set[int] = field(default_factory=set)
    tapped: dict[tuple[int, bool], Tensor] = field(default_factory=dict)  # blocks' outputs in the forms asked for


class Passes:
    """Those of one backbone, of `batch` pictures each."""

    def __init__(self, backbone: Backbone, batch: int) -> None:
        self.backbone, self.batch = backbone, batch
        self.taken: Counter[int] = Counter()  # of so many pictures, beside those that fill a batch up

    def alike(self, contacts: Contacts) -> tuple[Any, ...]:
        """What places must have in common to share a batch: the numbers of extra tokens, keys and values. A method that
        trains tensors which no layer of its own reads (a position embedding) shares with none but its own."""
        layers = {name.rpartition(".")[0] for name in contacts.own("")}
        plain = all(isinstance(self.backbone.vit.get_submodule(path), (nn.Linear, nn.LayerNorm)) for path in layers)
        tokens = tuple((first, make(1).shape[1], last) for first, (make, last) in sorted(contacts.tokens.items()))
        prefixes = tuple((path, make()[0].shape[1]) for path, make in sorted(contacts.prefixes.items()))
        return (tokens + prefixes, None if plain else object())

    def of(self, wanted: Iterable[Wanted]) -> Iterator[list[Place]]:
        """The places of all questions, in full batches of one shape."""
        shared: dict[Any, Place] = {}
        groups: dict[Any, list[Place]] = {}
        for one in wanted:
            key = (one.picture, bool(one.model.head.levels)) if one.detached else one.question
            if (place := shared.get(key)) is None:
                place = shared[key] = Place(one.model.seen(one.images), Contacts(), one.alike)
                groups.setdefault((place.seen.shape[-2:], place.alike), []).append(place)
            if one.detached:
                place.contacts.taps |= one.model.method.contacts.taps
            else:
                place.contacts = one.model.method.contacts
            place.questions.append(one.question)
            place.patches |= {*one.model.patches}
        for (shape, _), places in groups.items():
            rows = self._rows(shape)
            for first in range(0, len(places), rows):
                yield places[first : first + rows]

    def _rows(self, shape: Any) -> int:
        """How many pictures of a shape pass at once: fewer, where they are larger than the backbone's own."""
        H, W = self.backbone.native.size
        return max(1, min(self.batch, self.batch * H * W // (shape[0] * shape[1])))

    def take(self, places: list[Place]) -> Iterator[tuple[Place, Activations]]:
        """Each place with what the backbone makes of it. The batch is filled up with the last one."""
        rows = self._rows(places[0].seen.shape[-2:])
        filled = places + [places[-1]] * (rows - len(places))
        seen = torch.cat([place.seen for place in filled])
        alone = places[0].alike[1] is not None
        contacts = places[0].contacts if alone else side_by_side([place.contacts for place in filled])
        asked = sorted({i for place in places for i in place.patches})
        found = self.backbone(seen, contacts, patches=asked)
        self.taken[len(places)] += 1
        for k, place in enumerate(places):
            each = found.map(_row(k))
            each.patches = [of for i, of in zip(asked, each.patches, strict=True) if i in place.patches]
            yield place, each

    def own(self, found: Activations, model: Model, place: Place) -> Activations:
        """Of what a pass gave for one picture the part that a model asked for, in its form."""
        raw = place.alike[1] is None
        taps = {}
        for i, form in model.method.contacts.taps.items():
            if (i, form) not in place.tapped:
                place.tapped[i, form] = self.backbone.tapped(found.taps[i], raw and form)
            taps[i] = place.tapped[i, form]
        order = sorted(place.patches)
        return replace(found, taps=taps, patches=[found.patches[order.index(i)] for i in model.patches])


def _row(k: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[k : k + 1]
