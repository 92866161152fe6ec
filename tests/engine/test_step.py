"""The steps of a fit; on a GPU the replayed graph takes the same ones as kernels launched one by one."""

import copy
import math

import pytest
import torch
from lightning_fabric import Fabric

from vitgraft import build
from vitgraft.engine.step import WARM, Step
from vitgraft.testing.backbones import random_backbone

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def prepared(model, lr=1e-2):
    fabric = Fabric(accelerator="auto", devices=1)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=lr, fused=True)
    return fabric, Step(model.train(), optimizer, fabric)


def batches(number):
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, 32, 32, generator=draw), torch.randint(0, 3, (4,), generator=draw)) for _ in range(number)
    ]


def losses(model, step, fabric, *, given):
    found = []
    for images, labels in given:
        images, labels = images.to(fabric.device), labels.to(fabric.device)
        activations = None if model.method.crosses_backbone else model.read(images)
        found.append(step(images, labels, activations))
    return torch.stack(found).cpu()


def test_a_step_is_adamw_on_the_loss():
    model = build(random_backbone(), "layernorm", classes=3)
    other = copy.deepcopy(model).train()
    fabric, step = prepared(model)
    optimizer = torch.optim.AdamW(other.trained().values(), lr=1e-2, fused=True)
    for images, labels in batches(WARM + 3):
        loss = other(images, labels)["cross_entropy"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        (found,) = losses(model, step, fabric, given=[(images, labels)])
        torch.testing.assert_close(found, loss.detach(), rtol=1e-4, atol=1e-4)
    for name, t in model.state().items():
        torch.testing.assert_close(t.cpu(), other.state()[name], rtol=1e-3, atol=1e-4)


@ON_GPU
@pytest.mark.parametrize("method", ["hst", "convpass", "sct", "consolidator", "lora", "full", "linear"])
def test_a_graph_takes_the_same_steps(method, monkeypatch):
    """As near to kernels launched one by one as these come to themselves: a GPU adds up in another order each time."""

    def taken(*, replayed, lr=1e-3):
        model = build(random_backbone(), method, classes=3)
        model.method.ready = True
        model.method.contacts.in_training.drop_path = 0.3
        fabric, step = prepared(model, lr)
        torch.manual_seed(0)
        monkeypatch.setattr("vitgraft.engine.step.WARM", WARM if replayed else math.inf)
        found = losses(model, step, fabric, given=batches(WARM + 5))
        assert (step._graph is not None) == replayed
        return found

    one, other, still = taken(replayed=False), taken(replayed=False), taken(replayed=False, lr=0.0)
    allowed = 1e-4 + 4 * float((one - other).abs().max())
    assert allowed < 0.1 * float((one - still)[WARM:].abs().max())  # what the replayed steps do is seen
    torch.testing.assert_close(taken(replayed=True), one, rtol=0, atol=allowed)


@ON_GPU
def test_what_cannot_be_a_graph_is_launched():
    model = build(random_backbone(), "bitfit", classes=3)
    head = model.head.forward
    model.head.forward = lambda *given: head(*given) if given[0].pooled.isfinite().all() else None
    fabric, step = prepared(model)
    with pytest.warns(UserWarning, match="no CUDA graph"):
        found = losses(model, step, fabric, given=batches(1) * (WARM + 5))
    assert found[-1] < found[WARM] < found[0]
