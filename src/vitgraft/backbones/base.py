"""What every backbone promises, whatever its family."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..common.errors import RequestError, near_misses
from ..common.settings import BACKBONE_DTYPES
from ..contacts import Contacts
from ..data.preprocess import Preprocess
from ..features import Activations
from .weights import Loaded, load

# How torchao, which peft imports too, registers its enums is deprecated: no news to a user.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

ROLES = ("q", "k", "v", "qkv", "proj", "fc1", "fc2")


class Part(NamedTuple):
    """The rows [start, stop) of a linear layer."""

    layer: str  # its path
    start: int
    stop: int


class Block(NamedTuple):
    """One block as methods see it, wherever its modules lie.

    path: `blocks.3`, or `layers.2.blocks.1`; its sub-layers are PATH.attn and PATH.mlp. parts: what computes each of
    the ROLES, one part or several (q, k and v apart; the two halves of a SwiGLU); a role that no linear layer of its
    own plays is left out.
    """

    path: str
    width: int  # D
    heads: int  # of its attention
    parts: Mapping[str, tuple[Part, ...]]


class Backbone(nn.Module):
    """A pre-trained Vision Transformer, frozen: always in evaluation mode, never a gradient for its own tensors.

    A subclass is one family of timm's, in a file of its own: it sets what is declared here, and gives `takes`,
    `forward` and `pool`. B images, H W pixels, (h, w) patch grid, N = h*w, P prefix tokens (CLS, registers), D width,
    L blocks. Where a map is halved between stages, its blocks have grids and widths of their own: (h, w) and D are then
    those of the last.
    """

    width: int  # D
    depth: int  # L
    blocks: tuple[Block, ...]
    stages: tuple[range, ...]  # the blocks of each: one, but where the map is halved between them
    prefix: int  # P
    has_cls: bool
    has_layerscale: bool
    pooling: str  # how the weights were trained to be pooled: "token" is the CLS token alone
    patch: tuple[int, int]  # pixels (height, width)
    linears: dict[str, nn.Linear]  # the linear layers of the blocks that a method may change, by path
    affine: dict[str, nn.Module]  # those, and the other layers on the way of the tokens that a `Change` can replace

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.vit = loaded.vit.requires_grad_(False).eval()
        self.name = loaded.name
        self.source = loaded.source
        self.license = loaded.license
        self.architecture = loaded.architecture
        self.native = Preprocess(loaded.size, loaded.mean, loaded.std, loaded.interpolation)
        self._at = dict(self.vit.named_modules())
        # Contacts whose merged tensors stand here in the place of the backbone's own, and these (`adapters.merge`).
        self.merged: tuple[Contacts, dict[str, Tensor]] | None = None
        self._model_args = dict(loaded.model_args)
        self._no_contacts = Contacts()
        self._fingerprint = ""
        self.kept = BACKBONE_DTYPES[0]

    @classmethod
    def load(
        cls, name: str, *, dtype: str = BACKBONE_DTYPES[0], say: Callable[[str], None] = lambda line: None
    ) -> Backbone:
        """A backbone by timm name or local file; see `weights.load` for where it is looked for. dtype: in which its
        matrices are kept in memory, see `keep_in`."""
        found = cls.of(load(name, say=say))
        found.keep_in(dtype)
        return found

    def keep_in(self, dtype: str) -> None:
        """Keeps the matrices of the blocks (`linears`), nearly all of its numbers, in bf16 or int8 (torchao's, a scale
        for each row); all else stays float32.

        They are rounded once, for good: bf16 to 3 significant digits, int8 to 1/127 of the largest of a row. A product
        in bf16 then has the very numbers that it has of float32 weights, which it rounds itself; one in float32 has
        those of the rounded weights. The fingerprint stays that of the weights as they were. RequestError where they
        are rounded already to another type, or torchao is not there.
        """
        if dtype not in BACKBONE_DTYPES:
            raise RequestError(
                f"A backbone cannot be kept in {dtype!r}: there are {', '.join(BACKBONE_DTYPES)}; choose one of these."
            )
        if dtype == self.kept:
            return
        if self.kept != BACKBONE_DTYPES[0] or self.merged is not None:
            raise RequestError(
                f"{self.name} was asked for in {dtype}, but its tensors are {self.kept} by now, or have a method "
                "merged into them: load it once more."
            )
        self.fingerprint  # noqa: B018  # of the weights as they are
        self.kept = dtype
        self._round()

    def _round(self) -> None:
        if self.kept == "int8":
            try:
                from torchao.quantization import Int8WeightOnlyConfig, quantize_
            except ModuleNotFoundError as error:
                self.kept = BACKBONE_DTYPES[0]
                raise RequestError(
                    "A backbone in int8 needs the package torchao: install it (pip install 'vitgraft[int8]'), or take "
                    "bf16."
                ) from error
            own = set(self.linears.values())
            quantize_(self.vit, Int8WeightOnlyConfig(), filter_fn=lambda module, name: module in own)
        elif self.kept == "bf16":
            for layer in self.linears.values():
                layer.weight.data = layer.weight.data.bfloat16()

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        """What moves or casts a whole model leaves these matrices as they are kept."""
        super()._apply(fn, recurse)
        if self.kept == "bf16":
            self._round()
        return self

    @staticmethod
    def of(loaded: Loaded) -> Backbone:
        """The backbone of the family to which loaded weights belong."""
        return next(family for family in _families(Backbone) if family.takes(loaded.vit))(loaded)

    @classmethod
    def takes(cls, vit: nn.Module) -> bool:
        """Whether a model of timm is of this family."""
        raise NotImplementedError

    def forward(
        self,
        images: Tensor,
        contacts: Contacts | None = None,
        *,
        pooled_only: bool = False,
        patches: Collection[int] = (),
    ) -> Activations:
        """images [B, 3, H, W] (normalised), with a method's contacts or none -> Activations.

        pooled_only: nothing but `pool` will look at the tokens, so what it does not read may be left out. patches: the
        blocks whose patch tokens are wanted too.
        """
        raise NotImplementedError

    def pool(self, tokens: Tensor, contacts: Contacts | None = None) -> Tensor:
        """tokens [B, P+N, D] after the final norm -> [B, D], as the weights were trained to be pooled."""
        raise NotImplementedError

    def normalised(self, tokens: Tensor, contacts: Contacts) -> Tensor:
        """Tokens as the last block leaves them, [B, n, D] -> under the final norm."""
        raise NotImplementedError

    def tapped(self, x: Tensor, normalised: bool) -> Tensor:
        """A block's output [B, P+N, D] in the form in which a method asks for it."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode: drop path of the frozen blocks is the method's setting, dropout is none."""
        return super().train(False)

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name; RequestError if there is none."""
        try:
            return self.vit.get_parameter(name)
        except AttributeError:
            raise RequestError(
                f"No tensor {name!r} in {self.name}: its tensors are named as timm names them, "
                "for example blocks.0.norm1.weight; name one of these."
            ) from None

    def linear(self, path: str) -> nn.Linear:
        """The linear layer at `path` that a method may change; RequestError if there is none."""
        if path not in self.linears:
            known = ", ".join(sorted({".".join(p.split(".")[-2:]) for p in self.linears})) or "none"
            raise RequestError(
                f"No linear layer {path!r} in {self.name} that can be changed: its blocks have {known}; name one of "
                f"these.{near_misses(path, self.linears)}"
            )
        return self.linears[path]

    def parts(self, block: Block, role: str) -> tuple[Part, ...]:
        """What computes this one of the ROLES in a block; RequestError where no linear layer of its own does."""
        if role not in block.parts:
            raise RequestError(
                f"No linear layer is {role} in {block.path} of {self.name}: there are {', '.join(block.parts)}; choose "
                "among these."
            )
        return block.parts[role]

    def rows(self, block: Block, *roles: str) -> dict[str, list[tuple[int, int]]]:
        """The layers that play these roles in a block, and which of their outputs do, [start, stop) each, in order."""
        found: dict[str, list[tuple[int, int]]] = {}
        for role in roles:
            for layer, start, stop in self.parts(block, role):
                found.setdefault(layer, []).append((start, stop))
        return found

    def layers(self, block: Block, *roles: str) -> list[str]:
        """The paths of the linear layers that play these roles in a block, each once."""
        return list(dict.fromkeys(part.layer for role in roles for part in self.parts(block, role)))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the backbone by timm's name."""
        return dict(self.vit.named_parameters())

    def exchange(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Puts tensors of the same shapes in the place of its own of these names, and gives those; none is copied."""
        own = self.tensors()
        given = {}
        for name, tensor in tensors.items():
            given[name] = own[name].data
            own[name].data = tensor.to(given[name].device)
        self._fingerprint = ""
        return given

    @property
    def timm_arguments(self) -> dict[str, Any]:
        """What `timm.create_model` needs besides `architecture` and `num_classes` to make a model for these tensors: it
        takes pictures of any size that the patch divides, and pools as `pool` does."""
        raise NotImplementedError

    def bias_names(self, path: str) -> tuple[str, ...]:
        """Of the affine layer at `path` the tensors that its bias consists of, "" for a stretch that is always zero:
        one, none, or q's and v's beside a fused layer without k's."""
        return (f"{path}.bias",) if getattr(self.affine[path], "bias", None) is not None else ()

    def put_head(self, vit: nn.Module, head: nn.Linear) -> None:
        """Gives a copy of the timm model, whose tensors are these, a classifier of its own."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """sha256 over names, shapes and float32 bytes: the same weights, the same fingerprint, whatever the file."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.tensors().items()):
                value = tensor.detach().to("cpu", torch.float32).contiguous()
                digest.update(f"{name} {tuple(value.shape)}\n".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def preprocess(self, size: int | tuple[int, int] | None = None) -> Preprocess:
        """The weights' own preprocessing, at another picture size (pixels; (H, W) or one number) if given.

        A size that the patch does not divide is a RequestError that names the nearest ones.
        """
        height, width = self.native.size if size is None else (size, size) if isinstance(size, int) else size
        self._check_size(height, width)
        return Preprocess((height, width), self.native.mean, self.native.std, self.native.interpolation)

    def _check_size(self, *size: int) -> None:
        if any(side < patch or side % patch for side, patch in zip(size, self.patch, strict=True)):
            near = [
                str(side)
                if side >= patch and not side % patch
                else " or ".join(str(n) for n in (side // patch * patch, side // patch * patch + patch) if n > 0)
                or str(patch)
                for side, patch in zip(size, self.patch, strict=True)
            ]
            raise RequestError(
                f"Pictures of {size[0]} x {size[1]} pixels were asked for, but the patches of {self.name} are "
                f"{self.patch[0]} x {self.patch[1]} pixels: the nearest sizes are "
                f"{near[0]} (height) and {near[1]} (width); take one of these."
            )

    def _in_effect(self, contacts: Contacts | None) -> Contacts:
        """What a pass with these contacts has to ask: nothing where they are merged; RequestError where others are."""
        if contacts is None:
            return self._no_contacts
        if self.merged is None:
            return contacts
        if contacts is self.merged[0]:
            return self._no_contacts
        raise RequestError(
            f"The tensors of {self.name} have another method merged into them: call vitgraft.unmerge with its "
            "model first, or load the weights once more."
        )


def _families(cls: type[Backbone]) -> Iterator[type[Backbone]]:
    """Its subclasses that say what they take."""
    for sub in cls.__subclasses__():
        if "takes" in vars(sub):
            yield sub
        yield from _families(sub)


def drop_path(x: Tensor, rate: float, copies: int = 1) -> Tensor:
    """Stochastic depth (Huang et al. 2016): zeroes samples of x [B, ...] with probability `rate`, rescales the rest.
    copies: the batch is this many times the same, and what is dropped too."""
    if rate == 0.0:
        return x
    keep = x.new_empty((len(x) // copies,) + (1,) * (x.ndim - 1)).bernoulli_(1 - rate)
    return x * keep.repeat(copies, *(1,) * (x.ndim - 1)) / (1 - rate)


def noisy(x: Tensor, deviation: float) -> Tensor:
    """x [B, ..., D], each channel of each sample times a factor from a normal distribution around 1."""
    if deviation == 0.0:
        return x
    factors = torch.randn((len(x), *(1,) * (x.ndim - 2), x.shape[-1]), dtype=x.dtype, device=x.device)
    return x * (1 + deviation * factors)
