"""vitgraft: one frozen, pre-trained Vision Transformer, adapted to any visual task.

import vitgraft
run = vitgraft.fit("photos/", method="hst", out="runs/photos")
run.predict(["new.jpg"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .adapter import load as load_adapter
    from .backbone import Backbone
    from .fitting import fit
    from .model import Model, build
    from .run import Run

# Loaded when first used, so that `import vitgraft` does not wait for torch.
_HOMES = {
    "Backbone": "backbone",
    "Model": "model",
    "Run": "run",
    "build": "model",
    "fit": "fitting",
    "load_adapter": "adapter.load",
}

__all__ = ["Backbone", "Model", "Run", "build", "fit", "load_adapter"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        home, _, attribute = _HOMES[name].partition(".")
        return getattr(importlib.import_module(f"{__name__}.{home}"), attribute or name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
