"""What backward makes again is what was there, and is not kept."""

import pytest
import torch
import torch.nn.functional as F

from vitgraft import build
from vitgraft.engine import cost
from vitgraft.kernels.recompute import recomputed, recomputing, watched
from vitgraft.testing.backbones import random_backbone, random_images


def mlp(x, W):
    """Two GELUs, with trained layers behind them."""
    return F.linear(recomputed(F.gelu, F.linear(recomputed(F.gelu, x * 1), W)), W)


@pytest.fixture
def given():
    torch.manual_seed(0)
    x, W = torch.randn(4, 6, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    return x, W


def test_gradients_are_the_same_to_the_bit(given):
    plain = torch.autograd.grad(mlp(*given).square().sum(), given)
    with recomputing():
        y = mlp(*given)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), given), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_the_outputs_are_not_kept(given):
    kept = []
    with recomputing(), watched(kept.append):
        y = mlp(*given)
    outputs = [F.gelu(t) for t in kept]
    assert not any(torch.equal(k, o) for k in kept for o in outputs if k.shape == o.shape)
    assert y.requires_grad


def test_a_place_in_memory_that_is_another_tensors_by_now_is_not_mistaken(given, monkeypatch):
    """A tensor that nothing kept is freed, and its memory given to the next one; here every tensor has the same."""
    monkeypatch.setattr("vitgraft.kernels.recompute._identity", lambda t: 0)
    x, W = given
    with recomputing():
        recomputed(F.gelu, x * 2)
        y = F.linear(torch.sin(x), W)
    y.sum().backward()
    torch.testing.assert_close(W.grad, torch.autograd.grad(F.linear(torch.sin(x), W).sum(), W)[0])


def test_what_autocast_widened_is_kept(given):
    """As a LayerNorm of bf16 inputs on a GPU: float32 under autocast, which backward is outside of."""

    def norm(x):
        wide = x.float() if torch.is_autocast_enabled("cpu") else x
        return wide / 3

    x, _ = given
    scale = torch.ones(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), recomputing():
        made = recomputed(norm, x.bfloat16())
        loss = (made * scale).square().sum()
    loss.backward()
    assert made.dtype == torch.float32
    torch.testing.assert_close(scale.grad, 2 * made.detach().square().sum((0, 1)))


def test_outside_and_without_gradients_nothing_changes(given):
    assert torch.equal(recomputed(F.gelu, given[0]), F.gelu(given[0]))
    with torch.no_grad(), recomputing():
        assert not recomputed(F.gelu, given[0]).requires_grad


@pytest.mark.parametrize("method", ["full", "hst", "convpass", "consolidator"])
def test_a_step_of_a_model_is_the_same_to_the_bit_and_keeps_less(method, monkeypatch):
    backbone = random_backbone("dinov2")
    images, labels = random_images(backbone), torch.tensor([0, 1, 2])
    outcomes = []
    for remakes in (True, False):
        if not remakes:
            monkeypatch.setattr("vitgraft.backbones.transformer.recomputed", lambda function, x: function(x))
            monkeypatch.setattr("vitgraft.methods.hst.recomputed", lambda function, x: function(x))
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


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((m, {}) for m in ("full", "hst", "convpass", "consolidator", "lora", "vpt", "sct")),
        ("hst", {"detached": True}),
    ],
)
def test_checkpointing_changes_no_gradient(method, more):
    """Dropout and drop path draw the same numbers again."""
    backbone = random_backbone("dinov2")
    images, labels = random_images(backbone), torch.tensor([0, 1, 2])
    gradients = []
    for checkpointing in (True, False):
        model = build(backbone, method, classes=3, **more).train()
        model.method.ready = True
        model.method.contacts.in_training.drop_path = 0.3
        model.method.contacts.in_training.gradient_checkpointing = checkpointing
        torch.manual_seed(1)
        sum(model(images, labels).values()).backward()
        # Running statistics too: the second pass of a batch does not count.
        gradients.append({name: p.grad for name, p in model.trained().items()} | dict(model.named_buffers()))
    ours, theirs = gradients
    for name, gradient in ours.items():
        assert torch.equal(gradient, theirs[name]), name


def test_checkpointing_keeps_a_fraction():
    """Of each block its inputs, at most."""
    backbone = random_backbone("dinov2", depth=12)
    images, labels = random_images(backbone, batch=8), torch.zeros(8, dtype=torch.long)
    kept = {}
    for checkpointing in (True, False):
        model = build(backbone, "convpass", classes=3).train()
        model.method.contacts.in_training.gradient_checkpointing = checkpointing
        kept[checkpointing] = cost.kept_bytes(model, images, labels)
    one = images.shape[0] * (backbone.prefix + 16) * backbone.width * 4
    assert 12 * one <= kept[True] < 14 * one
    assert kept[True] < 0.2 * kept[False]


def test_nothing_is_checkpointed_where_no_gradient_passes(monkeypatch):
    monkeypatch.setattr("vitgraft.backbones.transformer.checkpointed", None)
    backbone = random_backbone()
    for method, mode in (("convpass", False), ("linear", True)):
        model = build(backbone, method, classes=3).train(mode)
        model.method.contacts.in_training.gradient_checkpointing = True
        model(random_images(backbone))


def test_what_is_made_of_something_made_again_is_made_again_too(given):
    """Two steps, of which the first is kept by nothing: both are formed from x, which is."""
    kept = []

    def cut(t):
        return t.roll(1, 0)

    def chain(x, W):
        gates = F.linear(x, W)
        return F.linear(recomputed(cut, recomputed(torch.mul, recomputed(F.silu, gates), x)), W)

    plain = torch.autograd.grad(chain(*given).square().sum(), given)
    with recomputing(), watched(kept.append):
        y = chain(*given)
    assert {t.untyped_storage().data_ptr() for t in kept} >= {t.untyped_storage().data_ptr() for t in given}
    x, W = given
    product = F.silu(F.linear(x, W)) * x
    assert not any(torch.equal(t, other) for t in kept for other in (product, cut(product)) if t.shape == product.shape)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), given), plain, strict=True):
        assert torch.equal(ours, theirs)
