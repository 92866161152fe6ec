"""Noise upon what a method adds, and the distance between two noisy passes (PACE)."""

from __future__ import annotations

import math

import pytest
import torch

from vitgraft.backbones.base import noisy
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone
from vitgraft.testing.methods import shaken
from vitgraft.training.loop import take_settings

METHODS = ("lora", "convpass", "consolidator", "pro_tuning", "bapat", "hst+lora")


def model_of(method, **settings):
    model = build(random_backbone(), method, classes=3)
    model.method.ready = True
    shaken(model)
    take_settings(model, Settings(**settings))
    return model


def in_noise(model):
    """As it trains, but without anybody's dropout."""
    model.eval().method.contacts.training = True
    return model


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_factor_for_each_picture_and_channel():
    torch.manual_seed(0)
    x = torch.ones(50, 7, 80)
    found = noisy(x, 0.5)
    assert torch.equal(found, found[:, :1].expand_as(found)), "of all tokens the same"
    assert found.mean() == pytest.approx(1, abs=0.03)
    assert found[:, 0].std() == pytest.approx(0.5, abs=0.03)
    assert noisy(x, 0.0) is x


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_of_training_alone(method, images):
    model, plain = model_of(method, noise=1.0), model_of(method)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    one, two = in_noise(model)(images), model(images)
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_without_deviation_noise_changes_nothing(method, images):
    """What the method adds is parted from what the backbone gives, and put together again."""
    noisy_one, plain = in_noise(model_of(method, noise=1e-7).double()), model_of(method).double().eval()
    torch.testing.assert_close(noisy_one(images.double()), plain(images.double()), rtol=1e-5, atol=1e-6)


def test_noise_falls_from_block_to_block_and_spares_the_first():
    model = model_of("lora", noise=1.0).train()
    backbone, contacts = model.backbone, model.method.contacts
    y = torch.ones(2000, 1, 4)
    found = [float(backbone._noisy(block.path, y, contacts).std()) for block in backbone.blocks]
    L = backbone.depth
    assert found[0] == 0
    assert found[1:] == pytest.approx([(L + 1 - i) / L for i in range(1, L)], rel=0.05)


def test_the_distance_is_that_of_two_passes(images):
    targets = torch.tensor([0, 1, 2, 0])
    model = model_of("lora", noise=1.0, consistency=0.5).train()
    torch.manual_seed(3)
    losses = model(images, targets)
    sum(losses.values()).backward()
    torch.manual_seed(3)
    with torch.no_grad():
        one, other = model(torch.cat([images, images])).chunk(2)
        entropy = torch.nn.functional.cross_entropy(one, targets)
        torch.testing.assert_close(losses["consistency"], 0.5 * (one - other).square().sum(1).mean())
        torch.testing.assert_close(losses["cross_entropy"], entropy)
    assert all(p.grad is not None for p in model.trained().values())
    assert len(model.eval()(images)) == len(images)


@pytest.mark.parametrize("method", ["lora", "convpass", "hst+lora"])
def test_both_passes_drop_the_same(method, images):
    """But for noise so small that it is not seen they are one pass."""
    model = in_noise(model_of(method, noise=1e-9, consistency=1.0, drop_path=0.6))
    torch.manual_seed(0)
    losses = [float(model(images, torch.tensor([0, 1, 2, 0]))["consistency"]) for _ in range(5)]
    assert max(losses) < 1e-6
    model.method.contacts.in_training.copies = 1
    losses = [float(model(images, torch.tensor([0, 1, 2, 0]))["consistency"]) for _ in range(5)]
    assert max(losses) > 1e-4


def test_what_cannot_be_is_refused():
    with pytest.raises(RequestError, match="consistency 1 compares two noisy passes, but noise is 0"):
        Settings(consistency=1.0)
    for method in ("bitfit", "linear", "hst"):
        with pytest.raises(RequestError, match=f"{method} adds nothing .* noise 0.5"):
            model_of(method, noise=0.5)
    for value in (-1.0, math.inf):
        with pytest.raises(RequestError, match="noise is"):
            Settings(noise=value)
