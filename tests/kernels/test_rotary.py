"""The rotary embedding against complex numbers, its definition."""

import pytest
import torch

from vitgraft.kernels.rotary import Rotary


@pytest.mark.parametrize("half", [False, True])
def test_pairs_are_turned_by_their_angles(half):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)  # two tokens in front, five with a place
    angles = torch.randn(5, 4, dtype=torch.float64)
    wide = torch.cat([angles, angles], -1) if half else angles.repeat_interleave(2, -1)
    rotary = Rotary(torch.cat([wide.sin(), wide.cos()], -1), False, half).of(0, 2, x)
    first, second = (x[..., :4], x[..., 4:]) if half else (x[..., ::2], x[..., 1::2])
    pairs = torch.complex(first, second)
    pairs[:, :, 2:] *= torch.polar(torch.ones_like(angles), angles)
    parts = (pairs.real, pairs.imag)
    expected = torch.cat(parts, -1) if half else torch.stack(parts, -1).flatten(-2)
    torch.testing.assert_close(rotary(x), expected)


def test_each_block_and_head_has_its_own_where_they_differ():
    torch.manual_seed(0)
    x, embedding = torch.randn(1, 3, 5, 8), torch.randn(2, 3, 5, 16)
    rotary = Rotary(embedding, True, False)
    for block in range(2):
        alone = Rotary(embedding[block], False, False).of(0, 0, x)
        assert torch.equal(rotary.of(block, 0, x)(x), alone(x))
    assert rotary.of(1, 0, x) is rotary.of(1, 0, x)  # made once for all passes
    assert not torch.equal(rotary.of(0, 0, x)(x), rotary.of(1, 0, x)(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_it_is_the_formula_forward_and_backward(half, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, 3, 8, dtype=dtype).unbind(2)[0].transpose(1, 2).requires_grad_()  # a view, as of qkv
    angles = torch.randn(3, 5, 4, dtype=torch.promote_types(dtype, torch.float32))  # of three heads
    wide = torch.cat([angles, angles], -1) if half else angles.repeat_interleave(2, -1)
    rotary = Rotary(torch.cat([wide.sin(), wide.cos()], -1), False, half).of(0, 2, x)
    exact = x.detach().to(angles.dtype).requires_grad_()
    y, expected = rotary(x), rotary._by_hand(exact)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected)
    (dx,), (dexact,) = (torch.autograd.grad(t.sin().sum(), given) for t, given in ((y, x), (expected, exact)))
    assert dx.dtype == dtype
    torch.testing.assert_close(dx, dexact.to(dtype))


@pytest.mark.parametrize("half", [False, True])
def test_a_backbone_in_bf16_has_angles_in_bf16(half):
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 3, 5, 8).bfloat16(), torch.randn(5, 16).bfloat16()
    if not half:
        embedding = embedding[:, ::2].repeat_interleave(2, -1)
    else:
        embedding = embedding.unflatten(-1, (4, 4))[:, ::2].repeat_interleave(2, 1).flatten(1)
    y = Rotary(embedding, False, half).of(0, 0, x)(x)
    assert y.dtype == torch.bfloat16
    exact = Rotary(embedding.float(), False, half).of(0, 0, x)(x.float())
    assert torch.equal(y, exact.bfloat16())


def test_angles_that_train_get_their_gradient():
    embedding = torch.randn(5, 16, requires_grad=True)
    Rotary(embedding, False, False).of(0, 0, embedding)(torch.randn(1, 3, 5, 8)).sum().backward()
    assert embedding.grad.abs().min() > 0
