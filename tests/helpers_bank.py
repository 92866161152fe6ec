"""Adapters that have trained a little, for banks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vitgraft.adapters import file as adapter
from vitgraft.common.settings import Settings
from vitgraft.testing.methods import header_of, model_of, shaken, variant_id


def write_adapter(file: Path, backbone, variant, seed: int = 0) -> Path:
    """The adapter of a method in one form, for the classes "METHOD 0" to "METHOD 4"."""
    model = shaken(model_of(variant, backbone, seed=seed))
    model.method.consolidate()
    classes = [f"{variant_id(variant)} {k}" for k in range(5)]
    adapter.write(file, model.state(), header_of(model) | {"protocol": asdict(Settings()), "classes": classes})
    return file
