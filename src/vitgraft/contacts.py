"""The six contacts: every way in which a method touches the frozen backbone.

A method never edits the backbone. It declares its contacts here, and the backbone's forward pass consults them, so
detaching is exact (pass other contacts, or none), any number of methods share one backbone, and the backbone's tensors
and module tree never change.

| contact | what is declared | what the backbone does with it |
|---|---|---|
| train  | the name of a tensor that exists | uses the method's own trainable copy in its place |
| weight | a `Change` of one affine layer | computes the changed layer instead of the plain one |
| branch | a module beside a sub-layer | adds its output to the residual stream, outside LayerScale |
|        | a module beside a linear layer | adds its output to the layer's |
|        | a module before a block, or after a sub-layer | passes the residual stream through it |
| tokens | extra tokens for one block or several | puts them in front, hands back what became of them, removes them |
| prefix | extra keys and values for one block | has its attention look at them too |
| tap    | the number of a block | hands back the block's output |

Names are timm's, by path: `blocks.3.attn.qkv` (linear), `blocks.3.norm1.weight` (tensor), `blocks.3.attn` and
`blocks.3.mlp` (sub-layers). One place takes one change and one branch of each kind: a second one is an error.

Beside another method's M extra tokens what is [B, P+N, D] below is [B, M+P+N, D].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .common.errors import RequestError, near_misses
from .kernels.linear import Change, exact

SUBLAYERS = ("attn", "mlp")

Tokens = Callable[[int], Tensor]
Entering = Callable[[int, Tensor, "tuple[int, int]"], "Tensor | None"]
Prefix = Callable[[], "tuple[Tensor, Tensor]"]


class Places(Protocol):
    """What contacts ask of a backbone: where it can be touched."""

    name: str
    depth: int
    blocks: tuple[Any, ...]  # each has a path
    affine: dict[str, nn.Module]
    linears: dict[str, nn.Linear]

    def tensor(self, name: str) -> Tensor: ...


@dataclass
class InTraining:
    """What a pass does in training only.

    drop_path: the rate at the last block, growing linearly from 0 at the first; inside the backbone only where
    something trains there: otherwise its pass is a function of the picture alone. noise: the deviation of the factors,
    of mean 1, by which channels are multiplied of what changed layers, branches and modules in the stream add; a
    factor for each channel and picture, in a Swin's attention each window, largest at the second block, none at the
    first (PACE, Ni et al. 2024, arXiv 2409.17137). copies: how often the batch holds each picture, the whole batch one
    time after the other; they share what is dropped. gradient_checkpointing: backward computes each block once more:
    those of a side network, and the backbone's own where something trains inside it.
    """

    drop_path: float = 0.0
    noise: float = 0.0
    copies: int = 1
    gradient_checkpointing: bool = False


class Tree(nn.Module):
    """Parameters and modules under dotted names, so that a state dict shows them under the backbone's own names."""

    def put(self, name: str, value: nn.Parameter | nn.Module) -> None:
        *folders, leaf = name.split(".")
        node: nn.Module = self
        for folder in folders:
            if folder not in node._modules:
                node.add_module(folder, nn.Module())
            node = node.get_submodule(folder)
        setattr(node, leaf, value)


class Contacts(nn.Module):
    """What one method adds to one backbone, and where.

    `trained`, `changes`, `branches`, `befores` and `afters` hold parameters and therefore belong to the method's state;
    `tokens` and `prefixes` refer to parameters that the method owns, and so does all that a record has from others by
    `join`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trained = Tree()
        self.changes = Tree()
        self.branches = Tree()
        self.befores = Tree()
        self.afters = Tree()
        self.tokens: dict[int, tuple[Tokens, int]] = {}  # first block -> the tokens, their last block
        self.entering: dict[int, Entering] = {}  # block -> who looks at what enters it
        self.prefixes: dict[str, Prefix] = {}  # path of an attention -> its keys and values
        self.taps: dict[int, bool] = {}  # block -> whether its output is normalised
        self.in_training = InTraining()
        self.rows: tuple[Contacts, ...] = ()  # of the methods whose pictures share a batch: see `side_by_side`
        self.change_at: dict[str, Change] = {}
        self.branch_at: dict[str, Callable[..., Tensor]] = {}
        self.before_at: dict[str, Callable[..., Tensor]] = {}
        self.after_at: dict[str, Callable[..., Tensor]] = {}
        self._changed: dict[str, dict[str, Change]] = {}  # path -> relative path -> change
        self._own: dict[str, dict[str, nn.Parameter]] = {}  # path -> relative name -> trained copy

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of the six contacts are in use."""
        used = {
            "train": len(self.own("")),
            "weight": len(self.change_at),
            "branch": len(self.branch_at) + len(self.before_at) + len(self.after_at),
            "tokens": len(self.tokens),
            "prefix": len(self.prefixes),
            "tap": len(self.taps),
        }
        return tuple(kind for kind, number in used.items() if number)

    @property
    def inside(self) -> bool:
        """Whether something that trains lies inside the backbone, so that gradients cross it."""
        return any(kind != "tap" for kind in self.kinds)

    @property
    def takes_noise(self) -> bool:
        """Whether something of it can be made noisy."""
        return bool(self.change_at or self.branch_at or self.before_at or self.after_at)

    def train_tensor(self, backbone: Places, name: str) -> None:
        """Trains a copy of the backbone's tensor `name`, starting from its value."""
        parameter = nn.Parameter(exact(backbone.tensor(name).detach()).clone())
        self.trained.put(name, parameter)
        self._train(name, parameter)

    def _train(self, name: str, parameter: nn.Parameter) -> None:
        for folder, rest in _splits(name):
            self._own.setdefault(folder, {})[rest] = parameter

    def own(self, path: str) -> dict[str, nn.Parameter]:
        """The trained copies of the tensors under `path`, "" for all of them, by their names relative to it."""
        return self._own.get(path, {})

    def touches(self, path: str) -> bool:
        """Whether a tensor or a layer under `path` is another one than the backbone's, or has a branch beside it."""
        return path in self._own or path in self._changed or path in self.branch_at

    def tensors(self, path: str, module: nn.Module) -> dict[str, Tensor]:
        """What stands in the place of tensors of the module at `path`, by their names relative to it."""
        found: dict[str, Tensor] = {**self.own(path)}
        for relative, change in self._changed.get(path, {}).items():
            layer: Any = module.get_submodule(relative)
            weight, bias = (f"{relative}.{name}".lstrip(".") for name in ("weight", "bias"))
            found[weight], merged = change.merged(found.get(weight, layer.weight), found.get(bias, layer.bias))
            if merged is not None:
                found[bias] = merged
        return found

    def change(self, backbone: Places, path: str, change: Change) -> None:
        """Puts `change` in the place of the linear layer, LayerNorm or patch embedding at `path`."""
        if path not in backbone.affine:
            known = ", ".join(sorted({re.sub(r"\.\d+", ".N", p) for p in backbone.affine}))
            raise RequestError(
                f"No layer {path!r} in {backbone.name} that can be changed: there are {known}; name one of these."
                f"{near_misses(path, backbone.affine)}"
            )
        if path in self.change_at:
            raise ValueError(f"{path} is changed already: one layer takes one change.")
        self.replace(path, change)

    def replace(self, path: str, change: Change) -> None:
        """Puts another change in the place of the one at `path`."""
        self.changes.put(path, change)
        self._change(path, change)

    def _change(self, path: str, change: Change) -> None:
        self.change_at[path] = change
        for folder, rest in [*_splits(path), (path, "")]:
            self._changed.setdefault(folder, {})[rest] = change

    def add_branch(self, backbone: Places, path: str, branch: nn.Module) -> None:
        """Adds `branch(inputs, outputs, grid)` to the residual stream beside the sub-layer at `path`, or to the outputs
        of the linear layer there.

        inputs [B, P+N, D] is what enters the sub-layer (after its norm), outputs [B, P+N, D] what leaves it (before
        LayerScale), grid the patch grid (h, w). Where nothing reads the patches any more, both are [B, P, D]. Of a
        linear layer they are [..., in] and [..., out], and grid is None: its tokens may lie in windows.
        """
        if path not in backbone.linears:
            _check_sublayer(backbone, path)
        _place(self.branches, self.branch_at, path, branch)

    def add_before(self, backbone: Places, block: int, module: nn.Module) -> None:
        """Passes the residual stream through `module(x, grid)` on its way into a block: [B, P+N, D] -> the same, the
        patches last, row by row of the grid (h, w)."""
        _check_block(backbone, block)
        _place(self.befores, self.before_at, backbone.blocks[block].path, module)

    def add_after(self, backbone: Places, path: str, module: nn.Module) -> None:
        """Passes the residual stream, once the sub-layer at `path` has been added to it, through `module(x)`:
        [B, P+N, D] -> the same, token by token."""
        _check_sublayer(backbone, path)
        _place(self.afters, self.after_at, path, module)

    def add_prefix(self, backbone: Places, block: int, prefix: Prefix) -> None:
        """Puts keys and values in front of those of one block's attention: `prefix()` -> both [heads, T, D / heads],
        of as many heads as queries have. They are taken as they are: no norm of keys, no position, no mask."""
        _check_block(backbone, block)
        path = f"{backbone.blocks[block].path}.attn"
        if path in self.prefixes:
            raise ValueError(f"{path} has keys and values of a method already: one attention takes one set.")
        self.prefixes[path] = prefix

    def add_tokens(
        self,
        backbone: Places,
        block: int,
        tokens: nn.Parameter | Tokens,
        until: int | None = None,
        *,
        entering: Entering | None = None,
    ) -> None:
        """Puts `tokens` in front of the sequence from `block` to the block `until`, or for `block` alone: [1, M, D], or
        `tokens(B)`, which makes them for B pictures, [B, M, D] or [1, M, D].

        entering: before each of these blocks `entering(i, x, grid)` is shown what enters it, [B, M+P+N, D], and may
        give what is added to the scores of its attention, [B, 1, M+P+N, M+P+N].
        """
        last = block if until is None else until
        _check_block(backbone, block)
        _check_block(backbone, last)
        if self._has_tokens(block, last):
            raise ValueError(f"Block {block} has extra tokens already: one block takes one set.")
        self.tokens[block] = (partial(_same, tokens) if isinstance(tokens, Tensor) else tokens, last)
        if entering is not None:
            self.entering |= dict.fromkeys(range(block, last + 1), entering)

    def _has_tokens(self, first: int, last: int) -> bool:
        return any(start <= last and first <= end for start, (_, end) in self.tokens.items())

    def tap(self, backbone: Places, block: int, *, normalised: bool = False) -> None:
        """Asks for the output of a block (0 is the first; -1 is what enters it), or that output under a LayerNorm
        without parameters."""
        _check_block(backbone, max(block, 0) if block >= -1 else block)
        self.taps[block] = normalised

    def join(self, other: Contacts) -> None:
        """Takes in what another method's record declares; its parameters stay where they are.

        RequestError where both want one place: a tensor, a layer, a branch of one kind, a block's extra tokens, its
        output in two forms.
        """
        places: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (self.own(""), other.own("")),
            (self.change_at, other.change_at),
            (self.branch_at, other.branch_at),
            (self.before_at, other.before_at),
            (self.after_at, other.after_at),
            (self.prefixes, other.prefixes),
        ]
        wanted = [place for ours, theirs in places for place in theirs if place in ours]
        wanted += [f"tokens in block {i}" for i, (_, last) in other.tokens.items() if self._has_tokens(i, last)]
        wanted += [f"the output of block {i}" for i, form in other.taps.items() if self.taps.get(i, form) != form]
        if wanted:
            raise RequestError(
                f"Two of the methods want {wanted[0]}{f' and {len(wanted) - 1} places more' if wanted[1:] else ''}, "
                "and one place takes one: choose other methods, or other places by their options."
            )
        for name, parameter in other.own("").items():
            self._train(name, parameter)
        for path, change in other.change_at.items():
            self._change(path, change)
        self.branch_at |= other.branch_at
        self.before_at |= other.before_at
        self.after_at |= other.after_at
        self.prefixes |= other.prefixes
        self.tokens |= other.tokens
        self.entering |= other.entering
        self.taps |= other.taps


def side_by_side(rows: Sequence[Contacts]) -> Contacts:
    """What a pass over a batch asks whose pictures are for different methods: the i-th of them for `rows[i]`.

    Layers that none has touched are one product for the whole batch; a branch, a change or a trained copy sees the
    picture of its own method alone. For inference. All must have as many extra tokens, keys and values in the same
    blocks, and train no tensors but those of LayerNorms and linear layers. Taps are those of all, as they are.
    """
    found = Contacts()
    found.rows = tuple(rows)
    for first, (_, last) in rows[0].tokens.items():
        found.tokens[first] = (partial(_same, torch.cat([row.tokens[first][0](1) for row in rows])), last)
    for path in rows[0].prefixes:
        pairs = zip(*(row.prefixes[path]() for row in rows), strict=True)
        found.prefixes[path] = partial(_same, tuple(torch.stack(of) for of in pairs))
    for row in rows:
        found.taps |= dict.fromkeys(row.taps, False)
        for path in row.branch_at:
            found.branch_at.setdefault(path, _Branches([row.branch_at.get(path) for row in rows]))
        for path in row.before_at:
            found.before_at.setdefault(path, _Streams([row.before_at.get(path) for row in rows]))
        for path in row.after_at:
            found.after_at.setdefault(path, _Streams([row.after_at.get(path) for row in rows]))
    return found


def _same(given: Any, *_: Any) -> Any:
    return given


class _Branches:
    """One branch or none for each picture of a batch."""

    def __init__(self, branches: Sequence[Callable[..., Tensor] | None]) -> None:
        self.branches = branches

    def __call__(self, inputs: Tensor, outputs: Tensor, grid: tuple[int, int]) -> Tensor:
        pairs = zip(self.branches, inputs.split(1), outputs.split(1), strict=True)
        return torch.cat([torch.zeros_like(y) if f is None else f(x, y, grid).to(y.dtype) for f, x, y in pairs])


class _Streams(_Branches):
    """One module or none for the residual stream of each picture of a batch."""

    def __call__(self, x: Tensor, *grid: Any) -> Tensor:
        rows = zip(self.branches, x.split(1), strict=True)
        # In the precision of the stream, which is that of the others too.
        return torch.cat([x if f is None else f(x, *grid).to(x.dtype) for f, x in rows])


def _splits(name: str) -> list[tuple[str, str]]:
    """Every way to cut a dotted name in two: ("", "a.b.c"), ("a", "b.c"), ("a.b", "c")."""
    parts = name.split(".")
    return [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(len(parts))]


def _place(tree: Tree, places: dict, path: str, module: nn.Module) -> None:
    if path in places:
        raise ValueError(f"{path} has been given a {type(places[path]).__name__} already: one place takes one.")
    tree.put(path, module)
    places[path] = module


def _check_sublayer(backbone: Places, path: str) -> None:
    if path not in {f"{block.path}.{name}" for block in backbone.blocks for name in SUBLAYERS}:
        first, last = backbone.blocks[0].path, backbone.blocks[-1].path
        raise RequestError(
            f"No sub-layer {path!r} in {backbone.name}: they are {first}.attn, {first}.mlp, ... {last}.mlp; name one "
            "of these."
        )


def _check_block(backbone: Places, block: int) -> None:
    if not 0 <= block < backbone.depth:
        raise RequestError(
            f"No block {block} in {backbone.name}: they are numbered 0 to {backbone.depth - 1}; name one of these."
        )
