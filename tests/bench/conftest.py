"""A small grid of fits, its data, and where it is to be left."""

import pytest
from helpers_bench import make_data, make_grid


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data")


@pytest.fixture
def grid(data):
    return make_grid(data)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
