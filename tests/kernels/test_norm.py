"""Triton's LayerNorm for narrow rows beside torch's, on a GPU or by its interpreter; and what happens without it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from vitgraft.kernels import norm
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone, random_images
from vitgraft.testing.methods import shaken

COMPILED = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vitgraft.kernels import triton_norm as kernels

pointers = {"x", "weight", "bias", "y", "mean", "rstd", "dy", "dx", "dweight", "dbias"}
for dtype in ("fp32", "bf16"):
    for kernel in (kernels._forward, kernels._backward):
        of = {"n": "i32", "tiles": "i32", "eps": "fp32", "d": "constexpr", "ROWS": "constexpr", "WIDE": "constexpr"}
        of |= {name: f"*{dtype}" if name in ("x", "y", "dy", "dx") else "*fp32" for name in pointers}
        signature = {name: of[name] for name in kernel.arg_names}
        rows, wide = kernels._tile(72)
        source = ASTSource(kernel, signature, constexprs={"d": 72, "ROWS": rows, "WIDE": wide})
        made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
        print(kernel.__name__, dtype, len(made.asm["cubin"]))
"""


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def by_triton(monkeypatch):
    """Triton's kernels, whatever the device (conftest.py has them interpreted where there is no GPU)."""
    pytest.importorskip("triton", reason="Triton is not installed")
    taken = []

    def narrow(x):
        taken.append(x.shape)
        return x.shape[-1] <= norm.WIDEST and x.dtype != torch.float64

    monkeypatch.setattr(norm, "_by_triton", narrow)
    return taken


def test_norms_and_gradients_are_torchs(by_triton):
    assert norm.difference(DEVICE) < 1e-5


@pytest.mark.parametrize("shape", [(3, 50, 32), (2, 7, 72), (5, 48), (0, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autograd(shape, dtype, by_triton):
    """Rows that do not lie one behind the other too, as tokens of a map that was laid out anew."""
    generator = torch.Generator().manual_seed(0)
    d = shape[-1]
    weight, bias = (torch.randn(d, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    x = torch.randn(shape, generator=generator).mT.contiguous().mT.to(DEVICE, dtype).requires_grad_()
    dy = torch.randn(shape, generator=generator).to(DEVICE)
    ours = norm.layer_norm(x, weight, bias, 1e-6)
    assert (ours.shape, ours.dtype) == (x.shape, dtype)
    found = torch.autograd.grad(ours, (x, weight, bias), dy.to(dtype))
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = F.layer_norm(exact[0], (d,), exact[1], exact[2], 1e-6)
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    torch.testing.assert_close(ours.double(), expected, **near)
    for one, other in zip(found, torch.autograd.grad(expected, exact, dy.to(dtype).double()), strict=True):
        torch.testing.assert_close(one.double(), other, **near)


@pytest.mark.parametrize("detached", [False, True])
def test_a_side_network_is_the_same(detached, by_triton, monkeypatch):
    backbone = random_backbone()
    images, labels = random_images(backbone).to(DEVICE), torch.tensor([0, 1, 2]).to(DEVICE)

    def taken():
        model = shaken(build(backbone, "hst", classes=3, detached=detached)).to(DEVICE).train()
        loss = model(images, labels)["cross_entropy"]
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.trained().items()}

    loss, found = taken()
    assert {shape[-1] for shape in by_triton} == {32, 48, 64, 72}
    monkeypatch.undo()
    expected_loss, expected = taken()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_kernels_compile_for_a_gpu(architecture):
    """Triton needs none for that. bf16 and float32, on an A100 and an H100."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-c", COMPILED, str(architecture)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize("what", ["fails", "differs"])
def test_where_triton_does_not_suit_the_device_torch_is_taken(what, monkeypatch):
    def difference(device):
        if what == "fails":
            raise RuntimeError("no compiler\nfor this device")
        return 0.25

    monkeypatch.setattr(norm, "difference", difference)
    monkeypatch.setattr(norm.importlib.util, "find_spec", lambda name: object())
    norm._as_torch_has_it.cache_clear()
    said = "cannot be used on cpu .no compiler.: " if what == "fails" else "0.2 from torch's"
    with pytest.warns(UserWarning, match=said):
        assert not norm._as_torch_has_it(torch.device("cpu"))
    norm._as_torch_has_it.cache_clear()
