"""The adapter file: one task's trained tensors and everything that is needed to use them, in one safetensors file.

Its metadata holds one JSON header under `vitgraft`: format, task, method with its arguments, head, class names,
preprocessing, backbone name and fingerprint, protocol, metrics, versions, an index of the tensors, and a digest of all
this and the tensors. No backbone tensor is in it, and nothing in it is ever unpickled.

safetensors would spend a hundred bytes on the name and place of each tensor, and some methods have hundreds of small
ones. So all tensors of one dtype lie in a row, as one flat tensor by the dtype's name ("float16", "int16"). The index,
under `tensors`, says what they are: JSON {dtype: [[name, shape], ...]} in the order of the numbers, in zlib and base64.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..backbones import Backbone
from ..common.errors import RequestError, VitgraftError
from ..common.files import write_bytes
from ..common.settings import BACKBONE_DTYPES
from ..data import Preprocess
from ..model import Model, build

FORMAT = 2
NECK = ("neck_blocks", "neck_width")  # of a header's head
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LONGEST_INDEX = 2**24  # bytes of JSON: two hundred thousand tensors; a hostile file cannot unpack to more


class Adapter(NamedTuple):
    """A loaded adapter: the model, ready to predict, and the header of its file."""

    model: Model
    preprocess: Preprocess
    header: dict[str, Any]


def compact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """float16 where it holds a tensor to one part in a thousand, the smallest type that holds an integer one; as it was
    where neither is so."""
    return {name: _compact(t.detach().cpu().contiguous()) for name, t in tensors.items()}


def _compact(t: Tensor) -> Tensor:
    if t.dtype in INTEGERS and t.numel():
        low, high = t.min(), t.max()
        return t.to(next(d for d in INTEGERS if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max))
    if not t.is_floating_point() or t.dtype == torch.float64:
        return t
    half = t.half()
    error = (half.float() - t.float()).norm()
    return half if bool(error <= 1e-3 * t.float().norm()) else t


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> int:
    """Writes an adapter file as a whole or not at all; gives its size in bytes."""
    whole = content(tensors, header)
    write_bytes(path, whole)
    return len(whole)


def content(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """An adapter file."""
    rows, index = _pack(tensors)
    head = {"format": FORMAT, **header, "tensors": index}
    head["digest"] = _digest(rows, head)
    return save(rows, {"vitgraft": json.dumps(head, ensure_ascii=False)})


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of an adapter file; a RequestError says what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no adapter file {path}: give the adapter.safetensors of a run, or its folder.")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("vitgraft", "null"))
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{path} is no readable safetensors file ({error}): it is truncated, altered, or of another kind; "
            "take an intact copy, or fit again."
        ) from error
    if not isinstance(header, dict):
        raise RequestError(
            f"{path} is a safetensors file but no adapter of vitgraft: give one that `vitgraft fit` wrote."
        )
    if header.get("format") != FORMAT:
        raise RequestError(
            f"{path} has adapter format {header.get('format')}, and this version reads format {FORMAT}: "
            "use the version of vitgraft that wrote it."
        )
    if header.pop("digest", None) != _digest(rows, header):
        raise RequestError(f"{path} was altered after it was written: take an intact copy, or fit again.")
    try:
        return _unpack(rows, header.pop("tensors")), header
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError, zlib.error) as error:
        raise RequestError(
            f"{path} has an index of its tensors that cannot be read or does not agree with them: take an intact copy, "
            "or fit again."
        ) from error


def digest_of(path: Path) -> str:
    """What an adapter file holds, in a word: it is in its header, and checked by `read`."""
    try:
        with safe_open(path, "pt") as file:
            return str(json.loads((file.metadata() or {}).get("vitgraft", "null"))["digest"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""  # `read` says what is wrong


def told(
    model: Model,
    preprocess: Preprocess,
    classes: Sequence[str],
    *,
    task: str = "classify",
    head: str = "linear",
    head_options: Mapping[str, Any] | None = None,
    neck: Mapping[str, int] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The header of a model, of which `as_told` makes it again. neck: its NECK. more: protocol, metrics, versions."""
    backbone = model.backbone
    return {
        "task": task,
        "head": {"name": head, "options": dict(head_options or {}), **{key: (neck or {}).get(key, 0) for key in NECK}},
        "method": model.method.name(),
        "arguments": model.method.arguments(),
        "backbone": {key: getattr(backbone, key) for key in ("name", "source", "license", "fingerprint")},
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "protocol": {},
        "metrics": {},
        "versions": {},
        **more,
    }


def load(path: str | Path, backbone: Backbone | str | None = None) -> Adapter:
    """The model of an adapter file, in evaluation mode; the backbone is loaded by its name, or by that which is given.

    A backbone with another fingerprint is a RequestError: its features are not those that the adapter was trained on.
    """
    tensors, header = read(path)
    dtype = header.get("protocol", {}).get("backbone_dtype", BACKBONE_DTYPES[0])  # what it was trained on
    if isinstance(backbone, str):
        backbone = Backbone.load(backbone, dtype=dtype)
    try:
        backbone = backbone or Backbone.load(header["backbone"]["name"], dtype=dtype)
    except VitgraftError as error:
        raise type(error)(
            f"{path} needs the backbone that it was trained on, but {error} Name it with --backbone."
        ) from error
    try:
        check_backbone(path, header, backbone)
        model = as_told(header, backbone, len(header["classes"]))
        preprocess = Preprocess.from_dict(header["preprocess"])
    except (KeyError, TypeError) as error:
        raise RequestError(
            f"{path} has a header that lacks {error}, or holds what this version does not know: use the version of "
            "vitgraft that wrote it, or fit again."
        ) from error
    model.method.consolidate()
    try:
        model.load_state(tensors)
    except RuntimeError as error:
        raise RequestError(f"The tensors of {path} do not fit its header ({error}): take an intact copy.") from error
    return Adapter(model.eval(), preprocess, header)


def as_told(header: dict[str, Any], backbone: Backbone, classes: int, seed: int = 0) -> Model:
    """A new model of the kind that a header tells of, for so many classes; KeyError where it does not tell all."""
    told = header["head"]
    head = {"head": told["name"], "head_options": told["options"], **{key: told[key] for key in NECK}}
    kind = {"classes": classes, "task": header["task"], "seed": seed}
    return build(backbone, header["method"], **kind, **head, **header["arguments"])


def check_backbone(path: str | Path, header: dict[str, Any], backbone: Backbone) -> None:
    """RequestError unless the backbone is the one that the adapter of this header was trained on."""
    named = header["backbone"]
    if backbone.fingerprint != named["fingerprint"]:
        raise RequestError(
            f"{path} was trained on {named['name']} ({named['source']}, fingerprint {named['fingerprint'][:12]}), but "
            f"the backbone here is {backbone.name} ({backbone.source}, fingerprint {backbone.fingerprint[:12]}): "
            "load the weights that it was trained on."
        )


def _pack(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """One flat tensor for each dtype, by its name, and the index of what they hold."""
    index: dict[str, list[tuple[str, list[int]]]] = {}
    for name, tensor in tensors.items():
        index.setdefault(_kind(tensor), []).append((name, list(tensor.shape)))
    rows = {kind: torch.cat([tensors[name].reshape(-1) for name, _ in found]) for kind, found in index.items()}
    text = json.dumps(index, separators=(",", ":"))
    return rows, base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _unpack(rows: dict[str, Tensor], index: str) -> dict[str, Tensor]:
    """The inverse of `_pack`: tensors by their names, in the memory of `rows`.

    The index may hold anything. Nothing is taken from it that does not add up to the rows: whatever Python or torch
    raise on the way is its refusal.
    """
    inflate = zlib.decompressobj()
    text = inflate.decompress(base64.b64decode(index, validate=True), LONGEST_INDEX)
    if not inflate.eof:
        raise ValueError("the index is cut off, or too long")
    shapes = json.loads(text)
    if shapes.keys() != rows.keys():
        raise ValueError("the index knows of other dtypes")
    tensors: dict[str, Tensor] = {}
    for kind, found in shapes.items():
        row, sizes = rows[kind], [torch.Size(shape).numel() for _, shape in found]
        if _kind(row) != kind or row.shape != (sum(sizes),):
            raise ValueError(f"the tensors of {kind} are not those of the index")
        for (name, shape), part in zip(found, row.split(sizes), strict=True):
            if not isinstance(name, str) or name in tensors:
                raise ValueError(f"{name} is no name, or there twice")
            tensors[name] = part.view(shape)
    return tensors


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
