"""Intermediate tensors that backward makes again instead of keeping them.

A GELU or a LayerNorm keeps its inputs for its own backward pass. Its outputs, which the next layer keeps as well where
that layer trains, follow from them at the price of one pass over memory. Whole blocks follow from their inputs at the
price of one forward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Function = Callable[..., Tensor]


class Recipe(NamedTuple):
    """How to make the tensor `made` again: function(*inputs)."""

    made: weakref.ref[Tensor]
    function: Function
    inputs: tuple[Tensor | Packed, ...]


class Packed(NamedTuple):
    """What is kept in the place of a tensor."""

    recipe: Recipe
    shape: torch.Size


_recipes: list[dict[int, Recipe]] = []  # of the forward passes under way, the innermost last; by storage
_watchers: list[Callable[[Tensor], object]] = []
_repetitions = 0  # under way


@contextmanager
def recomputing() -> Iterator[None]:
    """Inside, what `recomputed` gives is made again in backward wherever autograd would keep it."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    recipes: dict[int, Recipe] = {}

    def pack(t: Tensor) -> Tensor | Packed:
        kept = _packed(t, recipes)
        if _watchers:
            for tensor in _tensors(kept):
                for watch in _watchers:
                    watch(tensor)
        return kept

    _recipes.append(recipes)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        _recipes.pop()
        recipes.clear()


def recomputed(function: Function, *inputs: Tensor) -> Tensor:
    """function(*inputs); function must be cheap and give the same each time, and its inputs must be kept
    anyway, or be made by `recomputed` themselves."""
    made = function(*inputs)
    if torch.compiler.is_compiling():  # a part that is compiled by itself; its compiler decides what is kept
        return made
    # Backward runs outside autocast, where what was widened would come out narrow.
    if _recipes and made.requires_grad and made.dtype == inputs[0].dtype:
        recipes = _recipes[-1]
        given = tuple(_packed(t.detach(), recipes) for t in inputs)
        recipes[_identity(made)] = Recipe(weakref.ref(made), function, given)
    return made


def checkpointed(function: Callable[..., Tensor], *given: Any) -> Tensor:
    """function(*given), of which nothing but the given is kept: backward computes all of it once more (Chen et al.
    2016)."""
    for t in given:
        for watch in _watchers if isinstance(t, Tensor) else ():
            watch(t)
    _recipes.append({})  # what is recomputed inside belongs to this call, and ends with it
    try:
        return checkpoint(function, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), _repetition()))
    finally:
        _recipes.pop()


def again() -> bool:
    """Whether backward is computing what is `checkpointed` once more: what counts passes counts the first alone."""
    return _repetitions > 0


@contextmanager
def _repetition() -> Iterator[None]:
    global _repetitions
    _repetitions += 1
    try:
        yield
    finally:
        _repetitions -= 1


@contextmanager
def watched(watch: Callable[[Tensor], object]) -> Iterator[None]:
    """Inside, `watch` is called with each tensor that a pass under `recomputing` keeps after all."""
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


def _packed(t: Tensor, recipes: dict[int, Recipe]) -> Tensor | Packed:
    """How a tensor is made again, if it is one of those."""
    if t.layout is not torch.strided:  # a sparse tensor has no storage of its own
        return t
    recipe = recipes.get(_identity(t))
    made = None if recipe is None else recipe.made()
    if recipe is None or made is None:  # a storage whose tensor is gone may be another's by now
        return t
    whole = t.numel() == made.numel() and t.is_contiguous() and made.is_contiguous()
    itself = t.shape == made.shape and t.stride() == made.stride()
    return Packed(recipe, t.shape) if whole or itself else t


def _tensors(kept: Tensor | Packed) -> Iterator[Tensor]:
    """What is in memory for it."""
    if isinstance(kept, Tensor):
        yield kept
    else:
        for given in kept.recipe.inputs:
            yield from _tensors(given)


def _unpack(kept: Tensor | Packed) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        return kept.recipe.function(*map(_unpack, kept.recipe.inputs)).view(kept.shape)


def _identity(t: Tensor) -> int:
    return t.untyped_storage()._cdata
