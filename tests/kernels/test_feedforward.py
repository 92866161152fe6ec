"""A feed-forward network that keeps its input alone gives the numbers of the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.kernels import feedforward as module
from vitgraft.kernels.feedforward import feedforward


@pytest.fixture
def layers():
    torch.manual_seed(0)
    norm, fc1, fc2 = nn.LayerNorm(6, eps=1e-3), nn.Linear(6, 24), nn.Linear(24, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, fc1, fc2


def plain(x, norm, fc1, fc2):
    return fc2(F.gelu(fc1(norm(x))))


def gradients(function, x, layers, dy):
    x = x.clone().requires_grad_()
    y = function(x, *layers)
    return [y, *torch.autograd.grad(y, [x, *(p for layer in layers for p in layer.parameters())], dy.to(y.dtype))]


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_outputs_and_every_gradient_in_chunks_of_any_size(layers, rows, monkeypatch):
    """15 rows, in 15, 4 and 1 chunks."""
    monkeypatch.setattr(module, "AT_ONCE", rows * 24 * 8)
    layers = [layer.double() for layer in layers]
    x, dy = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    for ours, theirs in zip(gradients(feedforward, x, layers, dy), gradients(plain, x, layers, dy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_under_autocast_it_is_as_near_to_float32_as_the_plain_one(layers):
    x, dy = torch.randn(40, 50, 6), torch.randn(40, 50, 6)
    exact = gradients(plain, x, layers, dy)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (gradients(function, x, layers, dy) for function in (feedforward, plain))
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype
        assert (mine - true).norm() <= 1.1 * (other - true).norm() + 1e-3 * true.norm()


def test_nothing_but_the_input_is_kept(layers):
    x, kept = torch.randn(7, 6, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        feedforward(x, *layers)
    own = {p.data_ptr() for layer in layers for p in layer.parameters()}
    assert [t.shape for t in kept if t.data_ptr() not in own] == [(7, 6)]


def test_no_rows_at_all(layers):
    x = torch.randn(0, 6, requires_grad=True)
    y = feedforward(x, *layers)
    y.sum().backward()
    assert y.shape == (0, 6)
    assert all(not p.grad.any() for layer in layers for p in layer.parameters())
