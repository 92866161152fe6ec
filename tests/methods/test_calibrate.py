"""A method that looks at the training pictures before it is fitted: once, in the open, and not again on --resume."""

import pytest
import torch
from helpers_cli import adapter_of, call, fit, fit_words, result_of, same

from vitgraft.common.errors import RequestError
from vitgraft.methods.sct import SCT
from vitgraft.model import build
from vitgraft.training import loop as training

WORDS = ["--method", "sct", "--precision", "32", "--epochs", 3]


@pytest.fixture(scope="module")
def whole(ground, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    return fit(ground, run, *WORDS)


def test_without_its_channels_it_refuses(cls):
    model = build(cls, "sct", classes=3)
    with pytest.raises(RequestError, match=r"sct has not seen the training pictures.*calibrate"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(RequestError, match="none came"):
        model.method.calibrate(cls, [])


def test_the_channels_are_stored_with_the_adapter(whole):
    tensors = adapter_of(whole)
    indices = {name: t for name, t in tensors.items() if name.endswith("indices")}
    assert len(indices) == 4
    assert all(t.dtype == torch.uint8 and len(t) == 6 and bool((t.int().diff() > 0).all()) for t in indices.values())
    assert any(not torch.equal(t, torch.arange(6)) for t in indices.values())
    assert result_of(whole)["parameters"] == 4 * (6 * 6 + 6), "indices do not train"


def test_its_progress_is_shown(ground, tmp_path, capsys):
    words = fit_words(ground, tmp_path / "run", *WORDS)
    words.remove("--quiet")
    assert call(*words) == 0
    said = capsys.readouterr().err
    assert "calibrate" in said
    assert "36/36" in said


@pytest.mark.parametrize("stop", ["in the calibration", "after the calibration"])
def test_a_stopped_fit_continues(ground, whole, tmp_path, monkeypatch, stop):
    calls = []
    calibrate = SCT.calibrate

    def counted(self, backbone, batches):
        calls.append(self)
        if stop == "in the calibration" and len(calls) == 1:
            next(iter(batches))
            raise KeyboardInterrupt
        calibrate(self, backbone, batches)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(SCT, "calibrate", counted)
    words = fit_words(ground, tmp_path / "run", *WORDS)
    with monkeypatch.context() as patch:
        if stop == "after the calibration":
            patch.setattr(training, "_check_finite", killed)  # at the first step
        assert call(*words) == 130
    assert call(*words, "--resume") == 0
    assert len(calls) == (2 if stop == "in the calibration" else 1)
    assert same(adapter_of(tmp_path / "run"), adapter_of(whole))
