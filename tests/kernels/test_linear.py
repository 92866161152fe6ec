"""Fast paths of the methods give what their plain forms give, forward and backward."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitgraft import build
from vitgraft.kernels.bottleneck import widen
from vitgraft.kernels.linear import Change
from vitgraft.methods.consolidator import Grouped, columns
from vitgraft.methods.lora import LowRank
from vitgraft.testing.backbones import random_backbone, random_images

B, T, IN, OUT = 3, 5, 48, 144
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def low_rank(rows=((0, OUT),), **given):
    change = LowRank(IN, OUT, list(rows), 4, 6.0, given.get("dropout", 0.0))
    for b in change.B:
        b.data.normal_()
    return change


def grouped(*groups, reorder=False, parts=1, drop=0.0):
    reach = [columns(IN, OUT, g, reorder=reorder, parts=parts) for g in groups]
    return Grouped(reach, IN, drop, parts=parts, reorder=reorder)


CHANGES = {
    "low rank": low_rank,
    "low rank, two thirds": lambda: low_rank([(0, 48), (96, 144)]),
    "24 groups": lambda: grouped(24),
    "48 groups": lambda: grouped(48),
    "one group": lambda: grouped(1),
    "two branches": lambda: grouped(6, 12),
    "shuffled": lambda: grouped(24, 3, reorder=True),
    "three parts": lambda: grouped(24, parts=3),
    "three parts, shuffled": lambda: grouped(8, parts=3, reorder=True),
}


@pytest.fixture(params=CHANGES)
def change(request):
    torch.manual_seed(0)
    return CHANGES[request.param]().double()


def outcome(call, x, bias, tensors):
    """The output, and the gradients of x, the bias and the tensors."""
    y = call(x, bias)
    wanted = [x, *([bias] if bias is not None and bias.requires_grad else []), *tensors]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((weights * y.square()).sum(), wanted)]


@pytest.mark.parametrize("bias", ["none", "frozen", "trained"])
def test_an_effective_weight_gives_what_autograd_gives_through_the_merged_one(change, bias):
    W = torch.randn(OUT, IN, dtype=torch.float64)
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    b = None if bias == "none" else torch.randn(OUT, dtype=torch.float64, requires_grad=bias == "trained")
    tensors = list(change.parameters())
    fast = outcome(lambda x, b: change(x, W, b), x, b, tensors)
    plain = outcome(lambda x, b: Change.forward(change, x, W, b), x, b, tensors)
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "one group"], indirect=True)
def test_the_dense_gradient_of_the_weight_is_not_formed(change):
    """Except by one group, whose own gradient it is. Counted among what the products of a step are given: they have the
    size of the weight."""
    W = torch.randn(OUT, IN, dtype=torch.float64)
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    with torch.autograd.profiler.profile(record_shapes=True) as seen:
        change(x, W, None).sum().backward()
    products = [e.input_shapes[:2] for e in seen.function_events if e.name == "aten::mm"]
    assert [B * T, OUT] in [shapes[0] for shapes in products]
    assert all([OUT, B * T] not in shapes or [B * T, IN] not in shapes for shapes in products)


def test_without_a_gradient_of_the_inputs_none_is_formed(change):
    W = torch.randn(OUT, IN, dtype=torch.float64)
    y = change(torch.randn(B, T, IN, dtype=torch.float64), W, None)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in change.parameters())


def test_a_tensor_written_to_before_backward_is_an_error(change):
    y = change(torch.randn(B, T, IN, dtype=torch.float64), torch.randn(OUT, IN, dtype=torch.float64), None)
    with torch.no_grad():
        next(change.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("form", [grouped(24, drop=1e-13), grouped(12, 6, drop=1e-13, reorder=True)])
def test_branches_that_may_be_dropped_give_the_same(form):
    form = form.double()
    W = torch.randn(OUT, IN, dtype=torch.float64)
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    tensors = list(form.parameters())
    branches = outcome(lambda x, b: form.train()(x, W, b), x, None, tensors)
    merged = outcome(lambda x, b: form.eval()(x, W, b), x, None, tensors)
    for ours, theirs in zip(branches, merged, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_in_bf16_a_small_update_is_not_rounded_away():
    """An update of a thousandth of the weight lies below the last bit of bf16."""
    torch.manual_seed(0)
    change = low_rank()
    W = torch.ones(OUT, IN).bfloat16().float()
    x = torch.randn(B, T, IN).bfloat16().float()
    for b in change.B:
        b.data.normal_(std=1e-4)
    exact = F.linear(x, change.merged(W, None)[0]) - F.linear(x, W)
    with torch.autocast("cpu", torch.bfloat16):
        found = change(x, W * 0, None).float()
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert not torch.equal(change.merged(W, None)[0], W)
    assert torch.equal(change.merged(W, None)[0].bfloat16().float(), W), "merged it would be gone"


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_that_is_merged_in_bf16_is_the_merged_weight_rounded(change, bias):
    change = change.float()
    W, b = torch.randn(OUT, IN), torch.randn(OUT) if bias else None
    for ours, theirs in zip(change.merged_in(torch.bfloat16, W, b), change.merged(W, b), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs.bfloat16())


@pytest.mark.parametrize("method", ["lora", "consolidator"])
def test_under_autocast_gradients_come_in_the_precision_of_the_parameters(method):
    backbone = random_backbone()
    model = build(backbone, method, classes=3)
    images, labels = random_images(backbone), torch.tensor([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(model(images, labels).values())
    loss.backward()
    sixteen = {name: p.grad.clone() for name, p in model.trained().items()}
    assert {g.dtype for g in sixteen.values()} == {torch.float32}
    model.zero_grad()
    sum(model(images, labels).values()).backward()
    both = [
        torch.cat([g.flatten() for g in grads])
        for grads in (sixteen.values(), [p.grad for p in model.trained().values()])
    ]
    assert np.corrcoef(*both)[0, 1] > 0.98


@pytest.mark.parametrize("bias", [True, False])
def test_widen_is_a_linear_layer(bias):
    torch.manual_seed(0)
    x = torch.randn(B, T, 4, dtype=torch.float64, requires_grad=True)
    W = torch.randn(OUT, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(OUT, dtype=torch.float64, requires_grad=True) if bias else None
    for ours, theirs in zip(
        outcome(lambda x, b: widen(x, W, b), x, b, [W]), outcome(lambda x, b: F.linear(x, W, b), x, b, [W]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("method", ["linear", "convpass", "lora", "fact", "repadapter", "ssf", "sct", "hst"])
def test_frozen_weights_cast_once_give_what_autocast_gives(method, monkeypatch):
    """And what is merged, exchanged or moved is cast anew."""
    backbone = random_backbone()
    images = random_images(backbone)
    model = build(backbone, method, classes=3).eval()
    model.method.ready = True

    def answers():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(images)

    ours, again = answers(), answers()
    assert torch.equal(ours, again)
    with monkeypatch.context() as patch:
        patch.setattr("vitgraft.kernels.linear.compute_dtype", lambda x: torch.float32)
        assert torch.equal(answers(), ours)
    given = backbone.exchange({"blocks.0.mlp.fc1.weight": 2 * backbone.tensor("blocks.0.mlp.fc1.weight").detach()})
    assert not torch.equal(answers(), ours)
    backbone.exchange(given)
    assert torch.equal(answers(), ours)
