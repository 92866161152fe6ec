"""Batch normalisation: torch's own numbers, and one batch's numbers when several processes share it."""

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from vitgraft.kernels.batchnorm import BatchNorm

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def pair(channels, shape, affine):
    torch.manual_seed(0)
    theirs: Any = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(
        channels, eps=1e-4, momentum=0.2, affine=affine
    )
    ours = BatchNorm(channels, eps=1e-4, momentum=0.2, affine=affine)
    with torch.no_grad():
        theirs.running_mean.normal_()
        theirs.running_var.uniform_(0.5, 2)
        for parameter in theirs.parameters():
            parameter.normal_()
    theirs.double()
    ours.double().load_state_dict({n: t for n, t in theirs.state_dict().items() if n != "num_batches_tracked"})
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2, 6), (1, 4, 3, 3)])
def test_equals_torchs_own(shape, affine, training):
    ours, theirs = pair(4, shape, affine)
    x = 3 * torch.randn(shape, dtype=torch.float64) + 1
    upstream = torch.randn(shape, dtype=torch.float64)
    found = []
    for norm in (ours.train(training), theirs.train(training)):
        for scale in (1, 2):  # twice, for the running statistics
            leaf = (scale * x).requires_grad_()
            y = norm(leaf)
        gradients = torch.autograd.grad(y, [leaf, *norm.parameters()], upstream)
        found.append((y, gradients, norm.running_mean, norm.running_var))
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    assert training == (not torch.equal(ours.running_mean, pair(4, shape, affine)[0].running_mean))


def test_one_value_per_channel_takes_the_running_statistics():
    ours, theirs = pair(4, (1, 4), True)
    x = torch.randn(1, 4, dtype=torch.float64)
    before = ours.running_mean.clone(), ours.running_var.clone()
    torch.testing.assert_close(ours.train()(x), theirs.eval()(x), **CLOSE)
    assert torch.equal(ours.running_mean, before[0])
    assert torch.equal(ours.running_var, before[1])


def cases():
    """[(affine, the global batch, what flows back into it)]"""
    generator = torch.Generator().manual_seed(1)
    shapes = ((True, (4, 3, 2, 5)), (False, (6, 3)), (False, (2, 3)))
    numbers = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for _, shape in shapes]
    return [(affine, 3 * x + 2, upstream) for (affine, _), (x, upstream) in zip(shapes, numbers, strict=True)]


def one_pass(affine, x, upstream):
    norm, _ = pair(3, x.shape, affine)
    leaf = x.clone().requires_grad_()
    y = norm.train()(leaf)
    gradients = torch.autograd.grad(y, [leaf, *norm.parameters()], upstream)
    return y.detach(), *gradients[:1], norm.running_mean, norm.running_var, list(gradients[1:])


def process(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    halves = [(affine, x.chunk(2)[rank], upstream.chunk(2)[rank]) for affine, x, upstream in cases()]
    torch.save([one_pass(*half) for half in halves], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_would(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, str(tmp_path)), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for (affine, x, upstream), first, second in zip(cases(), zero, one, strict=True):
        y, gradient, mean, var, own = one_pass(affine, x, upstream)
        torch.testing.assert_close(torch.cat([first[0], second[0]]), y, **CLOSE)
        torch.testing.assert_close(torch.cat([first[1], second[1]]), gradient, **CLOSE)
        for half in (first, second):
            torch.testing.assert_close((half[2], half[3]), (mean, var), **CLOSE)
        # The gradients of tensors that every process holds are summed by whoever trains them.
        torch.testing.assert_close([a + b for a, b in zip(first[4], second[4], strict=True)], own, **CLOSE)
        assert len(own) == (2 if affine else 0)
        assert not torch.equal(one_pass(affine, x.chunk(2)[0], upstream.chunk(2)[0])[3], var), "the halves differ"
