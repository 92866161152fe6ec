"""Frozen backbones whose matrices are kept in bf16 or int8."""

import pytest
import torch
from helpers_cli import adapter_of, call, fit, fit_words, result_of, same

import vitgraft
from vitgraft.backbones import Backbone
from vitgraft.common.errors import RequestError
from vitgraft.engine import cost
from vitgraft.testing.backbones import random_backbone, random_images
from vitgraft.testing.methods import VARIANTS, model_of, refusal, shaken, steps, variant_id

KINDS = ("bf16", "int8")
every_form = pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
# Methods that add to a matrix, or train it, do so to the rounded one.
CHANGE = {"weight", "train"}


def kept(family, dtype):
    pytest.importorskip("torchao") if dtype == "int8" else None
    backbone = random_backbone(family)
    backbone.keep_in(dtype)
    return backbone


def gradients(model, images):
    loss = sum(model(images, torch.arange(len(images)) % 5).values())
    return loss, torch.autograd.grad(loss, list(model.trained().values()), allow_unused=True)


@every_form
@pytest.mark.parametrize("where", ["dinov2", "eva02", "swin"])
def test_in_bf16_products_have_the_same_bits(variant, where):
    """Where a method leaves the matrices alone; where it changes them, it changes the rounded ones."""
    if refusal(variant, where):
        pytest.skip("this family refuses it")
    exact, less = random_backbone(where), kept(where, "bf16")
    images = random_images(exact, (3, 5))
    one, two = (shaken(model_of(variant, backbone)) for backbone in (exact, less))
    two.load_state(one.state())
    with torch.autocast("cpu", torch.bfloat16):
        (loss, own), (other, theirs) = gradients(one, images), gradients(two, images)
    if not CHANGE & set(one.method.contacts.kinds) or one.method.name() in ("bitfit", "layernorm", "hst"):
        assert torch.equal(loss, other)
        for a, b in zip(own, theirs, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    else:
        torch.testing.assert_close(loss, other, rtol=0.02, atol=0.02)
        assert all(g is None or g.isfinite().all() for g in theirs)


@every_form
@pytest.mark.parametrize("dtype", KINDS)
def test_in_float32_the_numbers_are_those_of_the_rounded_weights(variant, dtype):
    less, plain = kept("dinov2", dtype), random_backbone("dinov2")
    with torch.no_grad():
        for path, layer in plain.linears.items():
            rounded = less.linears[path].weight
            layer.weight.copy_(rounded.dequantize() if dtype == "int8" else rounded.float())
    images = random_images(plain, (3, 5))
    one, two = (shaken(model_of(variant, backbone)) for backbone in (plain, less))
    two.load_state(one.state())
    (loss, own), (other, theirs) = gradients(one, images), gradients(two, images)
    torch.testing.assert_close(loss, other)
    for a, b in zip(own, theirs, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    if variant[0] not in ("full", "peft"):  # peft's own layers hold the weight spread out until backward
        assert cost.kept_bytes(two.train(), images, torch.arange(3)) <= 1.01 * cost.kept_bytes(
            one.train(), images, torch.arange(3)
        ), "nothing is spread out and kept until backward"
    before = {path: layer.weight.data for path, layer in less.linears.items()}
    losses = steps(two, images, 3, lr=5e-3)
    assert losses[-1] < losses[0]
    assert all(
        less.linears[path].weight.data is tensor
        or torch.equal(*(t.dequantize() if dtype == "int8" else t for t in (less.linears[path].weight.data, tensor)))
        for path, tensor in before.items()
    )


@pytest.mark.parametrize("dtype", KINDS)
def test_they_stay_as_they_are_kept(dtype):
    backbone, exact = kept("cls", dtype), random_backbone("cls")
    assert backbone.fingerprint == exact.fingerprint
    images = random_images(exact)
    answer = backbone(images).tokens
    scale = exact(images).tokens.norm()
    assert 1e-5 * scale < (answer - exact(images).tokens).norm() < 0.05 * scale
    for move in (torch.nn.Module.float, torch.nn.Module.double, torch.nn.Module.cpu):
        move(backbone)
        backbone.vit.patch_embed.float()
    backbone.float()
    assert torch.equal(backbone(images).tokens, answer)
    size = sum(layer.weight.numel() for layer in backbone.linears.values())
    bits = sum(
        (layer.weight.qdata.nbytes if dtype == "int8" else layer.weight.nbytes) for layer in backbone.linears.values()
    )
    assert bits == size * {"bf16": 2, "int8": 1}[dtype]
    assert size > 0.9 * sum(p.numel() for p in random_backbone("cls").vit.blocks.parameters())
    with pytest.raises(RequestError, match=f"but its tensors are {dtype} by now"):
        backbone.keep_in("float32")
    with pytest.raises(RequestError, match="cannot be kept in 'int4'"):
        exact.keep_in("int4")
    with pytest.raises(RequestError, match="into which nothing is merged"):
        vitgraft.merge(model_of(("lora", {}), backbone))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("method", ["hst", "lora"])
def test_a_run_keeps_its_backbone_as_it_was_trained(dtype, method, ground, tmp_path):
    pytest.importorskip("torchao") if dtype == "int8" else None
    run = fit(ground, tmp_path / "run", "--method", method, "--backbone-dtype", dtype, "--precision", 32)
    assert result_of(run)["protocol"]["backbone_dtype"] == dtype
    again = vitgraft.Run(run)
    assert again.adapter.model.backbone.kept == dtype
    assert again.evaluate(ground.easy, "val").value == result_of(run)["value"]
    if method == "hst":  # what it makes of pictures is not what the exact one makes
        other = fit(ground, tmp_path / "other", "--method", "hst", "--precision", 32)
        assert not same(adapter_of(run), adapter_of(other))
    given = Backbone.load(str(ground.backbone))
    assert vitgraft.Run(run, given).adapter.model.backbone is given
    assert call(*fit_words(ground, run, "--method", method, "--precision", 32, "--resume")) == 2
    if method == "lora":
        assert call("merge", run, "--out", tmp_path / "m.safetensors") == 2


def test_without_torchao(monkeypatch, refused_fit):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    assert "needs the package torchao" in refused_fit("--backbone-dtype", "int8")
    assert "There is no backbone_dtype 'int4'" in refused_fit("--backbone-dtype", "int4")
