"""What to fit with, by how much time there is: method, rate, epochs and augmentation, and what was measured of them.

Free of torch, so that the command line knows them. The numbers are those of docs/results.md, on a ViT-S/14 and about
1,000 pictures; what is given beside a recipe goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import RequestError, near_misses
from .settings import DENSE


@dataclass(frozen=True)
class Recipe:
    """A method with settings of the fit and arguments of its own, and why."""

    method: str
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return ", ".join([self.method, *(f"{name} {value}" for name, value in self.options.items())])


RECIPES: dict[str, dict[str, Recipe]] = {
    "quick": {
        "whole": Recipe(
            "hst",
            "each picture passes the backbone once; after 10 epochs it is ahead of LoRA on the mean of three sets, at "
            "a fifth of the time of an epoch",
            {"detached": True, "epochs": 10},
        ),
        "dense": Recipe(
            "linear",
            "no gradient crosses the backbone, of which the neck reads four blocks; 3 to 9 points of mIoU behind LoRA, "
            "of AP 4 to 8, at 0.55 of the time of a step",
        ),
    },
    "best": {
        "whole": Recipe(
            "hst+lora",
            "a side network that reads a backbone which LoRA adapts, level with LoRA alone or ahead of it on three "
            "sets; pictures are mirrored half of the time: give augmentation none where left and right matter",
            {"epochs": 40, "augmentation": "flip"},
        ),
        "dense": Recipe("lora", "level with hst+lora on the mean of four sets, at 0.8 of the time of a step"),
    },
}


def find(name: str, task: str) -> Recipe:
    """RequestError for a recipe that there is none of."""
    if name not in RECIPES:
        raise RequestError(
            f"There is no recipe {name!r}: there are {', '.join(RECIPES)}; choose one of these."
            f"{near_misses(name, RECIPES)}"
        )
    return RECIPES[name]["dense" if task in DENSE else "whole"]
