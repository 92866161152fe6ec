"""Files of weights: tensors as they were stored, and what stands with them.

A safetensors file, a file of torch's, or a folder as the model hub has it, in one file or in shards, with its
config.json, preprocessor_config.json and model card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml  # type: ignore[import-untyped]
from safetensors import safe_open
from torch import Tensor

from ..common.errors import RequestError

PICKLED = (".pth", ".pt", ".bin")


class Stored(NamedTuple):
    """tensors: by their names, without what training loops put in front of all. facts: the file's metadata, and the
    config.json beside it where that does not name an architecture. preprocessor: preprocessor_config.json. license: as
    the metadata or the model card names it."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    preprocessor: dict[str, Any]
    license: str


def read(path: Path) -> Stored:
    """A file of weights, or a folder; RequestError where it is none."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for file in (files := _files(path)):
        more, facts = _read(file)
        tensors |= more
    if not facts.get("architecture"):
        facts = {**_read_json(files[0].with_name("config.json")), **facts}
    preprocessor = _read_json(files[0].with_name("preprocessor_config.json"))
    return Stored(_unwrapped(tensors), facts, preprocessor, str(facts.get("license") or _license_beside(files[0])))


def is_folder(path: Path) -> bool:
    """Whether it is a folder as the model hub has it."""
    return (path / "config.json").is_file()


def _files(path: Path) -> list[Path]:
    """The file of weights at `path`, or those in a folder as the model hub has it."""
    if path.is_file():
        return [path]
    for stem in ("model.safetensors", "pytorch_model.bin"):
        shards = _read_json(path / f"{stem}.index.json").get("weight_map")
        if isinstance(shards, dict):
            files = [path / str(shard) for shard in sorted(set(shards.values()))]
            if missing := next((file for file in files if not file.is_file()), None):
                raise RequestError(f"{path} holds weights in {len(files)} files, but {missing.name} is not there.")
            return files
        if (path / stem).is_file():
            return [path / stem]
    there = "it is a folder without model.safetensors" if path.is_dir() else "there is no such file"
    raise RequestError(
        f"{path} was asked for as a weight file, but {there}: give a .safetensors or .pth file, or a folder as the "
        "model hub has it."
    )


def _license_beside(file: Path) -> str:
    """What the model card beside a file of weights says, in the lines between its first two rows of dashes."""
    try:
        _, head, _ = file.with_name("README.md").read_text(encoding="utf-8").split("---", 2)
        card = yaml.safe_load(head)
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    said = [card.get(key) for key in ("license_name", "license")] if isinstance(card, dict) else []
    return next((str(name) for name in said if name), "")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and its metadata ({} for torch's format)."""
    try:
        if path.suffix not in PICKLED:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load alone has half a dozen kinds of them
        kind = "a file of tensors that torch.load reads with weights_only" if path.suffix in PICKLED else "safetensors"
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RequestError(
            f"{path} cannot be read as {kind} ({reason}): fetch it again, or save its state dict as .safetensors."
        ) from None
    if isinstance(state, dict):
        parts = ("state_dict", "model", "teacher", "student", "model_state_dict")
        state = next((state[key] for key in parts if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RequestError(f"{path} holds no state dict (tensors by name): save model.state_dict() and give that file.")
    return state, {}


WRAPPERS = ("module.", "_orig_mod.", "backbone.", "teacher.", "student.", "encoder.", "model.", "visual.", "net.")


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the names that training loops put in front of all tensors: module., backbone., teacher.backbone., ..."""
    while first := next((w for w in WRAPPERS if tensors and all(name.startswith(w) for name in tensors)), ""):
        tensors = {name.removeprefix(first): tensor for name, tensor in tensors.items()}
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is no such file or object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
