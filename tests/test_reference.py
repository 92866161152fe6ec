"""A checkpoint of the authors' released code gives the numbers that their code gave (float64, tests/golden)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vitgraft import reference
from vitgraft.errors import RequestError

GOLDEN = Path(__file__).parent / "golden"
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    parts: dict[str, dict[str, Any]] = {"weight": {}, "in": {}, "out": {}, "grad": {}}
    for key, tensor in found.items():
        kind, _, rest = key.partition(".")
        parts[kind][rest] = tensor.double() if tensor.is_floating_point() else tensor
    return parts, facts


@pytest.fixture(scope="module")
def hst():
    parts, facts = read("hst")
    return reference.load("hst", parts["weight"], num_heads=4), parts, facts


def near(ours, theirs):
    """To 1e-9 of the tensor's own size: relative, yet fair to elements that nearly cancel."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_sizes_come_from_the_tensors(hst):
    model, _, facts = hst
    assert (model.backbone.depth, model.backbone.width, model.backbone.patch) == (12, 48, (16, 16))
    assert model.backbone.native.size == (64, 64)
    assert model.method.arguments() == {
        "widths": (32, 48, 64, 72),
        "heads": (2, 4, 8, 12),
        "mlp_ratio": 4,
        "meta_tokens": 1,
        "detached": False,
    }
    assert not model.training
    assert sum(p.numel() for p in model.trained().values()) == int(facts["trainable"])


def test_logits_and_loss(hst):
    model, parts, _ = hst
    images, labels = parts["in"]["image"], parts["in"]["label"]
    with torch.no_grad():
        near(model(images), parts["out"]["logits"])
        torch.testing.assert_close(model(images, labels)["cross_entropy"], parts["out"]["loss"], **EXACT)


def test_stages_and_the_pooled_vector(hst):
    model, parts, _ = hst
    images = parts["in"]["image"]
    with torch.no_grad():
        features = model.method.features(model.backbone, images, model.method.read(model.backbone, images))
        for stage, (_, map_) in enumerate(features.maps, 1):
            near(map_.flatten(2).mT, parts["out"][f"stage{stage}"])
        last = features.maps[-1][1].mean((2, 3))
        near(last, parts["out"]["pooled"])
        near(features.pooled, model.method.pooled_norm(parts["out"]["pooled"]))


def test_gradients(hst):
    model, parts, _ = hst
    model.zero_grad()
    model(parts["in"]["image"], parts["in"]["label"])["cross_entropy"].backward()
    ours = {theirs: name for name, theirs in reference.names(model).items()}
    assert len(parts["grad"]) == 7
    for name, gradient in parts["grad"].items():
        assert gradient.any()
        near(model.trained()[ours[name]].grad, gradient)


def test_every_tensor_of_theirs_is_used_once(hst):
    model, parts, _ = hst
    ours = list(reference.names(model).values())
    backbone = list(model.backbone.vit.state_dict())
    assert len(set(ours)) == len(ours)
    left = set(parts["weight"]) - set(ours) - set(backbone)
    assert not {name for name in left if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "name",
    [
        "pos_embed",
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.11.attn.qkv.bias",
        "blocks.3.norm1.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
        "m_embeddings.0",
        "m_embeddings.7",
        "T_Bridge_1.weight",
        "T_Bridge_4.weight",
        "T_Bridge_2.bias",
        "m_block1.0.mlp.fc1.weight",
        "m_block3.2.attn.q.bias",
        "m_proj_norm12.weight",
        "m_patch_embed1.conv.1.running_var",
        "m_patch_embed3.proj.weight",
        "m_norm2.weight",
        "fc_norm.running_mean",
    ],
)
def test_a_missing_tensor_is_named(name, hst):
    tensors = dict(hst[1]["weight"])
    del tensors[name]
    with pytest.raises(RequestError, match=f"'{name}' is missing"):
        reference.load("hst", tensors, num_heads=4)


def test_what_is_no_checkpoint_of_a_known_method(hst):
    with pytest.raises(RequestError, match=r"'hts'.*there is .*hst.*Did you mean 'hst'"):
        reference.load("hts", hst[1]["weight"], num_heads=4)
    with pytest.raises(RequestError, match="is missing"):
        reference.load("hst", {}, num_heads=4)
    with pytest.raises(RequestError, match="width 48 cannot be split into num_heads=5"):
        reference.load("hst", hst[1]["weight"], num_heads=5)
    with pytest.raises(RequestError, match="width 32 cannot be split into 3 heads"):
        reference.load("hst", hst[1]["weight"], num_heads=4, heads=(3, 4, 8, 12))


def test_the_model_that_comes_is_ours_to_save(hst):
    """Nothing of it depends on the checkpoint that was handed in."""
    model, parts, _ = hst
    again = reference.load("hst", parts["weight"], num_heads=4)
    before = parts["weight"]["T_Bridge_1.weight"].clone()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(parts["weight"]["T_Bridge_1.weight"], before)
    assert model.method.stages[0].bridge.weight.any()
