"""Every kind of backbone for a test that takes one; and commands that must fail."""

import os

import pytest
import torch
from helpers_backbones import FAMILIES, GRIDS, random_backbone, random_images
from helpers_cli import call, contents, fit_words, make_ground
from helpers_methods import refusal

# The order of a sum, so its last bits, depends on the number of threads; some tests compare two processes to the bit.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

SQUARE_TOO = ("cls", "dinov2")


def pytest_collection_modifyitems(items):
    """Which cells of the behaviour matrix are tried: all methods on all kinds of backbones and pictures, but

    * not what a backbone refuses: that it does is a test of its own;
    * square pictures on two kinds alone, as the others differ in nothing that a square could show.
    """

    def tried(item):
        given = getattr(getattr(item, "callspec", None), "params", {})
        if "variant" not in given or "family" not in given:
            return True
        one = given.get("grid", "wide") == "wide" or given["family"] in SQUARE_TOO
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


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A tiny backbone, and pictures of three classes."""
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def no_network(tmp_path_factory, monkeypatch):
    """An empty cache, and no model hub."""
    import huggingface_hub

    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail, and gives what it says: one line, while no file changes."""

    def run(*words, code=2, lines=1):
        before = contents(tmp_path)
        capsys.readouterr()
        assert call(*words) == code
        out, err = capsys.readouterr()
        said = err[err.index("vitgraft: ") :]  # a progress bar may stand before it
        assert out == ""
        assert said.count("\n") == lines
        assert "Traceback" not in said
        assert contents(tmp_path) == before
        return said

    return run


@pytest.fixture
def refused_fit(ground, tmp_path, refused):
    """The same for a fit."""

    def run(*more, data=None, code=2, lines=1):
        return refused(*fit_words(ground, tmp_path / "run", *more, data=data), code=code, lines=lines)

    return run
