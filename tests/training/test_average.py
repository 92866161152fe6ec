"""Averages over steps (`--ema`) and gradients that are cut down (`--clip`)."""

import pytest
import torch
from helpers_cli import adapter_of, fit, result_of, same
from torch import nn

from vitgraft import Run
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings
from vitgraft.engine.devices import fabric
from vitgraft.engine.step import Step
from vitgraft.testing.backbones import random_backbone, random_images
from vitgraft.testing.methods import model_of
from vitgraft.training.average import Average
from vitgraft.training.loop import optimiser

DECAY = 0.9


def test_it_is_the_average_of_the_formula():
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = Average({"p": p}, DECAY)
    expected = p.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            p += torch.tensor([1.0, 0.5])
        average.update(step)
        d = min(DECAY, step / (9 + step))
        expected = d * expected + (1 - d) * p.detach()
    torch.testing.assert_close(average.tensors["p"], expected)
    last = p.detach().clone()
    with average.in_place():
        torch.testing.assert_close(p.detach(), expected)
    assert torch.equal(p, last), "training goes on from where it was"
    average.take()
    torch.testing.assert_close(p.detach(), expected)


def test_constant_tensors_are_their_average():
    p = nn.Parameter(torch.randn(3))
    average = Average({"p": p}, 0.99)
    for step in range(1, 50):
        average.update(step)
    torch.testing.assert_close(average.tensors["p"], p.detach())


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_a_step_s_gradient_is_cut_down_to_the_norm(clip):
    norms = []
    for limit in (0.0, clip):
        model = model_of(("lora", {}), random_backbone("cls")).train()
        settings = Settings(precision="32", clip=limit)
        step = Step(model, optimiser(model.trained(), settings), fabric(settings), clip=limit)
        step._optimizer.zero_grad = lambda: None
        images = random_images(model.backbone)
        step(images, torch.arange(len(images)))
        own = [p.grad for p in model.trained().values()]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in own]))))
    free, cut = norms
    assert cut == pytest.approx(min(free, clip), rel=1e-3)


def test_what_is_measured_and_kept_is_the_average(ground, tmp_path):
    words = ["--method", "bitfit", "--lr", "1e-2"]
    plain = fit(ground, tmp_path / "plain", *words)
    averaged = fit(ground, tmp_path / "averaged", *words, "--ema", DECAY)
    assert not same(adapter_of(plain), adapter_of(averaged))
    assert result_of(averaged)["protocol"]["ema"] == DECAY
    # Stored, it answers as it was measured.
    assert Run(averaged).evaluate(ground.easy, "val").value == pytest.approx(result_of(averaged)["value"])


@pytest.mark.parametrize("wrong", [{"clip": -1.0}, {"clip": float("inf")}, {"ema": 1.0}, {"ema": -0.1}])
def test_what_cannot_be(wrong):
    with pytest.raises(RequestError):
        Settings(**wrong)
