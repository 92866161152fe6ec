"""What a model costs, counted."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from vitgraft.engine import cost
from vitgraft.model import Model, build
from vitgraft.pages import catalogue
from vitgraft.testing.backbones import random_backbone, random_images


def test_parameters(cls):
    model = build(cls, "hst", classes=3)
    counted = cost.parameters(model)
    assert counted["head"] == 73 * 3
    assert counted["backbone"] == sum(p.numel() for p in cls.vit.parameters())
    assert counted["method"] + counted["head"] == sum(p.numel() for p in model.trained().values())


def vit_flops(L, D, T, patches, pixels=3 * 16 * 16):
    """Multiply-adds twice: patches, four linear layers per block (12 D^2 a token), scores and their use.

    In the last block CLS alone asks, and it alone goes through the projection and the MLP.
    """
    whole = 12 * D * D * T + 2 * T * T * D
    last = 3 * D * D * T + 9 * D * D + 2 * T * D
    return 2 * (patches * pixels * D + (L - 1) * whole + last)


def test_flops_of_vit_b16():
    """35.1 GFLOP by timm, 32.9 where CLS alone is read, on tensors without memory."""
    backbone = catalogue.shape_of(catalogue.VIT_B16)
    with torch.device("meta"):
        model = build(backbone, "linear", classes=1000)
        counted = cost.flops(model, torch.empty(1, 3, 224, 224))
    assert counted == vit_flops(12, 768, 197, 196) + 2 * 768 * 1000
    assert counted / 1e9 == pytest.approx(32.93, abs=0.05)


@pytest.mark.parametrize("batch", [1, 3])
def test_flops_on_a_real_tensor(cls, batch):
    counted = cost.flops(build(cls, "linear", classes=10), random_images(cls, batch=batch))
    assert counted == batch * (vit_flops(4, 48, 17, 16) + 2 * 48 * 10)


class Squares(Model):
    """Keeps its input once, however often it is used, and never its own weight."""

    def __init__(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(7))

    def forward(self, images, targets=None, activations=None):
        x = images * 1.0
        return {"loss": ((x * self.weight) + x.view(-1, 7).square().view_as(x)).sum()}


def test_kept_bytes_count_each_storage_once():
    images = torch.ones(5, 7, requires_grad=True)
    assert cost.kept_bytes(Squares(), images, torch.zeros(5)) == 5 * 7 * 4


def test_kept_bytes_of_the_methods():
    backbone = random_backbone("cls", embed_dim=96)
    images, labels = random_images(backbone, (6, 6), batch=4), torch.tensor([0, 1, 2, 0])

    def kept(method, **arguments):
        return cost.kept_bytes(build(backbone, method, classes=3, **arguments).train(), images, labels)

    full, bitfit, linear = kept("full"), kept("bitfit"), kept("linear")
    assert linear < 0.02 * full
    assert linear < bitfit <= full  # full keeps no more: what its layers need is made again
    assert kept("hst", detached=True) < kept("hst")
    # The least that full tuning keeps, of all blocks but the last: two residual streams, qkv, inputs of proj and GELU.
    assert full > 3 * 4 * 37 * (96 * 6 + 4 * 96) * 4


def test_kept_bytes_leave_no_trace(cls):
    model = build(cls, "full", classes=3).train()
    before = {name: t.clone() for name, t in model.state().items()}
    twice = [cost.kept_bytes(model, random_images(cls), torch.tensor([0, 1, 2])) for _ in range(2)]
    assert twice[0] == twice[1]
    assert all(torch.equal(t, before[name]) for name, t in model.state().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to know the memory in use")
def test_peak_memory_is_the_most_that_this_process_had():
    def in_use():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = cost.peak_memory(torch.device("cpu"))
    assert in_use() <= before + 2**24
    ballast = []
    while in_use() < before + 2**27:  # not by so much at once: what earlier tests left may go meanwhile
        ballast.append(torch.ones(2**22))  # 16 MiB
    ballast.clear()
    assert before + 2**26 <= cost.peak_memory(torch.device("cpu")) <= before + 2**28


def test_flops_see_what_a_method_adds(cls):
    images = random_images(cls, batch=1)
    linear, hst, detached = (
        cost.flops(build(cls, name, classes=3, **more).eval(), images)
        for name, more in (("linear", {}), ("hst", {}), ("hst", {"detached": True}))
    )
    assert linear < detached < hst
