"""Fixtures of the behaviour matrix, as a plugin of pytest: `-p vitgraft.testing.fixtures`."""

import pytest
import torch

from vitgraft.testing.backbones import FAMILIES, GRIDS, random_backbone, random_images
from vitgraft.testing.methods import TESTED, refusal

# The order of a sum, so its last bits, depends on the number of threads; some tests compare two processes to the bit.
torch.set_num_threads(1)

SQUARE_TOO = ("cls", "dinov2")
OTHER_FORMS = ("cls", "dinov3", "eva02", "swin")


def pytest_collection_modifyitems(items):
    """Which cells of the behaviour matrix are tried: all methods on all kinds of backbones and pictures, but

    * not what a backbone refuses: that it does is a test of its own;
    * square pictures on two kinds alone, as the others differ in nothing that a square could show;
    * a method's other forms on four, which differ most in where a method can touch them; of one's own method on all.
    """

    def tried(item):
        given = getattr(getattr(item, "callspec", None), "params", {})
        if "variant" not in given or "family" not in given:
            return True
        one = given.get("grid", "wide") == "wide" or given["family"] in SQUARE_TOO
        one &= bool(TESTED) or not given["variant"][1] or given["family"] in OTHER_FORMS
        return one and not refusal(given["variant"], given["family"])

    items[:] = [item for item in items if tried(item)]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def backbone(family):
    return random_backbone(family)


@pytest.fixture
def cls():
    """The plainest of the backbones, where the family does not matter."""
    return random_backbone("cls")


@pytest.fixture(params=GRIDS)
def grid(request):
    return GRIDS[request.param]


@pytest.fixture
def images(backbone, grid):
    return random_images(backbone, grid)
