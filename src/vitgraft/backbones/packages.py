"""Installed packages that carry a backbone's weights, for machines that reach a package index but no model hub.

The table is `packages.json`: which file of which package holds which backbone, its sha256, and its names for
timm's tensors (`*` stands for the block's number; several names are concatenated). No code of
such a package is ever imported.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_bytes
from torch import Tensor


class NotHereError(Exception):
    """This source does not have the weights; the text says why, and the next source is asked."""


class Carried(NamedTuple):
    """Weights as a package carries them."""

    stored: dict[str, Tensor]  # int8 under the package's names, with `NAME_scale` and `NAME_zero_point`
    names: dict[str, list[str]]  # timm's name without .weight or .bias -> the package's names
    source: str  # in words


def table() -> list[dict[str, Any]]:
    """One row for each backbone that a package carries."""
    return json.loads(resources.files(__package__).joinpath("packages.json").read_text(encoding="utf-8"))


def find(backbone: str) -> Carried:
    """The weights of `backbone` from the package that carries it; NotHereError says why there are none."""
    row = next((row for row in table() if row["backbone"] == backbone), None)
    if row is None:
        carried = ", ".join(f"{row['backbone']} ({row['package']})" for row in table())
        raise NotHereError(f"none carries it, only {carried}")
    try:
        package = importlib.metadata.distribution(row["package"])
        content = Path(str(package.locate_file(row["file"]))).read_bytes()
    except importlib.metadata.PackageNotFoundError:
        raise NotHereError(f"{row['package']}, which carries it, is not installed") from None
    except OSError as error:
        raise NotHereError(f"{row['file']} of {row['package']} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        raise NotHereError(
            f"{row['file']} of {row['package']} {package.version} is not the expected file by its sha256"
        )
    source = f"package {row['package']} {package.version} ({row['form']}; {row['origin']})"
    return Carried(load_bytes(content), row["names"], source)


def restore(stored: Mapping[str, Tensor], names: Mapping[str, list[str]], wanted: Iterable[str]) -> dict[str, Tensor]:
    """float32 tensors under timm's names: (int8 - zero_point) * scale, parts concatenated along axis 0."""

    def restored(part: str) -> Tensor:
        return (stored[part].float() - stored[f"{part}_zero_point"].float()) * stored[f"{part}_scale"]

    tensors = {}
    for name in wanted:
        stem, dot, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            stem, dot, kind = name, "", ""
        block = re.search(r"\.(\d+)\.", stem)
        parts = names[re.sub(r"\.\d+\.", ".*.", stem)]
        number = block.group(1) if block else ""
        tensors[name] = torch.cat([restored(part.replace("*", number) + dot + kind) for part in parts])
    return tensors
