"""A tiny backbone with pictures; no network; and commands that must fail."""

import os

import pytest
import torch
from helpers_cli import call, contents, fit_words, make_ground

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # its kernels are then interpreted, if this is said before it is imported
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


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
def workers_at_once(monkeypatch):
    """Worker processes read from the first picture on, however little there is."""
    from vitgraft.data import reader

    monkeypatch.setattr(reader, "STARTS", {})
    monkeypatch.setattr(reader, "STARTS_ANEW", 0.0)


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
