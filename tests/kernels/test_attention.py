"""Attention's own backward against torch's, exactly in float64 and no worse than torch's in bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vitgraft.kernels import attention as ours
from vitgraft.kernels.attention import attention


def drawn(dtype, queries=9, keys=9, pictures=5):
    torch.manual_seed(0)
    shapes = [
        (pictures, n, 2, 8) for n in (queries, keys, keys)
    ]  # heads behind the tokens, as the linear layer gives them
    return [torch.randn(shape, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def gradients(function, inputs):
    made = function(*inputs)
    torch.manual_seed(1)
    return torch.autograd.grad(made, inputs, torch.randn(made.shape, dtype=torch.float64).to(made.dtype))


@pytest.mark.parametrize("masks", [0, 1, 3])
@pytest.mark.parametrize("queries", [9, 1])
@pytest.mark.parametrize("at_once", [1, 2000, 2**22], ids=["a head", "some pictures", "all"])
def test_the_gradients_are_those_of_softmax_attention(masks, queries, at_once, monkeypatch):
    """masks: how many there are, at which pictures take turns."""
    monkeypatch.setattr(ours, "AT_ONCE", at_once)
    inputs = drawn(torch.float64, queries, pictures=6)
    mask = torch.randn(masks, 2, queries, 9, dtype=torch.float64) if masks else None
    each = mask.repeat(6 // masks, 1, 1, 1) if masks else None
    own = [
        lambda q, k, v: ours._Attention.apply(q, k, v, mask, 0.3),
        lambda q, k, v: attention(q, k, v, mask, scale=0.3),
    ]

    def theirs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, each, scale=0.3)

    for function in own:
        torch.testing.assert_close(function(*inputs), theirs(*inputs), rtol=1e-12, atol=1e-12)
        for made, right in zip(gradients(function, inputs), gradients(theirs, inputs), strict=True):
            torch.testing.assert_close(made, right, rtol=1e-12, atol=1e-12)


def test_a_mask_that_trains_has_a_gradient():
    inputs = drawn(torch.bfloat16, pictures=6)
    mask = torch.randn(3, 2, 9, 9, dtype=torch.bfloat16, requires_grad=True)
    attention(*inputs, mask).float().square().sum().backward()
    assert mask.grad.abs().sum() > 0


@pytest.mark.parametrize("masks", [0, 3])
def test_a_backward_inside_autocast_is_the_same_to_the_bit(masks):
    inputs = drawn(torch.bfloat16, pictures=6)
    mask = torch.randn(masks, 2, 9, 9, dtype=torch.bfloat16) if masks else None
    outside = gradients(lambda q, k, v: attention(q, k, v, mask), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(lambda q, k, v: attention(q, k, v, mask), inputs)
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def test_in_bf16_they_are_no_further_off_than_torchs_own():
    inputs = drawn(torch.bfloat16)
    exact = gradients(F.scaled_dot_product_attention, [t.detach().double().requires_grad_() for t in inputs])
    fused = gradients(F.scaled_dot_product_attention, inputs)
    assert attention(*inputs).grad_fn.name() == "_AttentionBackward"
    for made, theirs, right in zip(gradients(attention, inputs), fused, exact, strict=True):
        assert made.dtype == torch.bfloat16
        assert (made - right).norm() <= 1.2 * (theirs - right).norm()


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, 9), (torch.bfloat16, ours.MOST_TOKENS + 1)])
def test_where_torchs_backward_is_the_faster_one_it_is_taken(dtype, tokens):
    inputs = drawn(dtype, tokens, tokens, 1)
    assert attention(*inputs).grad_fn.name() != "_AttentionBackward"
