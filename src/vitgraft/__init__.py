"""vitgraft: one frozen, pre-trained Vision Transformer, adapted to any visual task.

import vitgraft
run = vitgraft.fit("photos/", method="hst", out="runs/photos")
run.predict(["new.jpg"])

What `dir(vitgraft)` shows is all that is public; it is loaded when first used, so that `import vitgraft` does not wait
for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import methods
    from .adapters.file import load as load_adapter
    from .adapters.merge import merge, unmerge
    from .adapters.reference import load as load_reference
    from .adapters.run import Run
    from .backbones import Backbone
    from .common import errors
    from .common.settings import Settings
    from .method import Method
    from .model import Model, build
    from .serve.bank import Bank
    from .training.fitting import fit

# name -> the module that has it, and its name there; None: the module itself
_HOMES = {
    "Bank": ("serve.bank", "Bank"),
    "Backbone": ("backbones", "Backbone"),
    "Method": ("method", "Method"),
    "Model": ("model", "Model"),
    "Run": ("adapters.run", "Run"),
    "Settings": ("common.settings", "Settings"),
    "build": ("model", "build"),
    "errors": ("common.errors", None),
    "fit": ("training.fitting", "fit"),
    "load_adapter": ("adapters.file", "load"),
    "load_reference": ("adapters.reference", "load"),
    "merge": ("adapters.merge", "merge"),
    "methods": ("methods", None),
    "unmerge": ("adapters.merge", "unmerge"),
}

__all__ = [
    "Backbone",
    "Bank",
    "Method",
    "Model",
    "Run",
    "Settings",
    "build",
    "errors",
    "fit",
    "load_adapter",
    "load_reference",
    "merge",
    "methods",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    home = importlib.import_module(f"{__name__}.{module}")
    return getattr(home, attribute) if attribute else home


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
