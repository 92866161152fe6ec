"""`--log`: a fit told to other programs."""

import csv
import os

import pytest
from helpers_cli import adapter_of, call, fit, fit_words, result_of, same

from vitgraft.common.settings import Settings


@pytest.fixture(scope="module")
def plain(ground, tmp_path_factory):
    return fit(ground, tmp_path_factory.mktemp("plain") / "run", "--method", "linear")


def rows_of(path):
    with open(path, newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_csv(ground, plain, tmp_path):
    run = fit(ground, tmp_path / "run", "--method", "linear", "--log", "csv")
    assert same(adapter_of(run), adapter_of(plain)), "who is told does not change the result"
    rows = rows_of(run / "logs" / "version_0" / "metrics.csv")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [*range(1, 10)]
    assert max(row["lr"] for row in steps) == pytest.approx(result_of(run)["protocol"]["lr"])
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2, 3]
    assert [row["final"] for row in rows if "final" in row] == [pytest.approx(result_of(run)["value"])]
    # A fit that goes on is no other fit, whoever is told.
    assert call(*fit_words(ground, run, "--method", "linear", "--resume")) == 0


def test_tensorboard(ground, plain, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = fit(ground, tmp_path / "run", "--method", "linear", "--log", "tensorboard+csv")
    read = events.EventAccumulator(str(run / "logs" / "tensorboard"))
    read.Reload()
    assert len(read.Scalars("loss")) == 9
    assert read.Scalars("final")[0].value == pytest.approx(result_of(run)["value"])
    assert (run / "logs" / "version_0" / "metrics.csv").is_file()


@pytest.mark.parametrize(("kind", "there"), [("wandb", "wandb/offline-run-*/*.wandb"), ("mlflow", "logs/mlflow.db")])
def test_those_that_need_more_packages(kind, there, ground, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip(kind)
    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    run = fit(ground, tmp_path / "run", "--method", "linear", "--log", kind)
    assert list(run.glob(there))


def test_what_is_not_there_is_said(refused_fit, monkeypatch):
    assert "There is no log 'tensorbord': there are none, csv" in refused_fit("--log", "tensorbord")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else True)
    assert "--log wandb needs the package wandb" in refused_fit("--log", "csv+wandb")
    assert Settings().log == "none"
