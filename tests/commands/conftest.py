"""Pictures, a backbone and a finished run, for commands to be tried on."""

import pytest
from helpers_cli import fit, make_ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def finished(ground, tmp_path_factory):
    return fit(ground, tmp_path_factory.mktemp("runs") / "linear", "--method", "linear", "--epochs", 2)
