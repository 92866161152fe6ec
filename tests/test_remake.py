"""What backward makes again is what was there, and is not kept."""

import gc

import pytest
import torch
import torch.nn.functional as F
from conftest import random_backbone, random_images

from vitgraft import build, cost
from vitgraft.remake import remade, remaking, watched


def mlp(x, W):
    """Two GELUs, with trained layers behind them."""
    return F.linear(remade(F.gelu, F.linear(remade(F.gelu, x * 1), W)), W)


@pytest.fixture
def given():
    torch.manual_seed(0)
    x, W = torch.randn(4, 6, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    return x, W


def test_gradients_are_the_same_to_the_bit(given):
    plain = torch.autograd.grad(mlp(*given).square().sum(), given)
    with remaking():
        y = mlp(*given)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), given), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_the_outputs_are_not_kept(given):
    kept = []
    with remaking(), watched(kept.append):
        y = mlp(*given)
    outputs = [F.gelu(t) for t in kept]
    assert not any(torch.equal(k, o) for k in kept for o in outputs if k.shape == o.shape)
    assert y.requires_grad


def test_a_place_in_memory_that_is_another_tensors_by_now_is_not_mistaken(given):
    """A tensor that nothing kept is freed, and its memory given to the next one."""
    x, W = given
    with remaking():
        for _ in range(20):
            remade(F.gelu, x * 2)
            gc.collect()
            z = torch.sin(x)  # likely in the memory just freed
            y = F.linear(z, W)
    y.sum().backward()
    torch.testing.assert_close(W.grad, torch.autograd.grad(F.linear(torch.sin(x), W).sum(), W)[0])


def test_outside_and_without_gradients_nothing_changes(given):
    assert torch.equal(remade(F.gelu, given[0]), F.gelu(given[0]))
    with torch.no_grad(), remaking():
        assert not remade(F.gelu, given[0]).requires_grad


@pytest.mark.parametrize("method", ["full", "hst", "convpass", "consolidator"])
def test_a_step_of_a_model_is_the_same_to_the_bit_and_keeps_less(method, monkeypatch):
    backbone = random_backbone("dinov2")
    images, labels = random_images(backbone), torch.tensor([0, 1, 2])
    outcomes = []
    for remakes in (True, False):
        if not remakes:
            monkeypatch.setattr("vitgraft.backbone.remade", lambda function, x: function(x))
            monkeypatch.setattr("vitgraft.methods.hst.remade", lambda function, x: function(x))
        torch.manual_seed(0)
        model = build(backbone, method, classes=3).train()
        kept = cost.kept_bytes(model, images, labels)
        torch.manual_seed(1)
        sum(model(images, labels).values()).backward()
        outcomes.append((kept, {name: p.grad for name, p in model.trained().items()}))
    (less, ours), (more, theirs) = outcomes
    assert less < more
    for name, gradient in ours.items():
        assert torch.equal(gradient, theirs[name]), name
