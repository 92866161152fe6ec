"""Pictures, a backbone and a finished run, for commands to be tried on."""

import pytest
from helpers_cli import fit


@pytest.fixture(scope="module")
def finished(ground, tmp_path_factory):
    return fit(ground, tmp_path_factory.mktemp("runs") / "linear", "--method", "linear", "--epochs", 2)
