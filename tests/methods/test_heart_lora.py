"""Which heads respond, against hooks; and that what is left out is left alone."""

import pytest
import torch
import torch.nn.functional as F

from vitgraft.common.errors import RequestError
from vitgraft.methods.heart_lora import taylor_scores
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone, random_images
from vitgraft.testing.methods import model_of, shaken


@pytest.fixture(scope="module")
def pictures():
    backbone = random_backbone("cls").double()
    images, labels = random_images(backbone, batch=9).double(), torch.tensor([4, 4, 7, 7, 7, 1, 1, 1, 4])
    return backbone, images, labels


def by_hooks(backbone, images, labels):
    """a dLoss/da of each block, [B, tokens, heads, e], from timm's model."""
    with torch.no_grad():
        frozen = backbone.pool(backbone(images).tokens)
    classes = labels.unique()
    means = F.normalize(torch.stack([frozen[labels == c].mean(0) for c in classes]), dim=-1)
    kept = []

    def keep(module, args):
        args[0].retain_grad()
        kept.append(args[0])

    hooks = [block.attn.proj.register_forward_pre_hook(keep) for block in backbone.vit.blocks]
    x = images.clone().requires_grad_()
    pooled = backbone.vit.forward_head(backbone.vit.forward_features(x), pre_logits=True)
    loss = F.cross_entropy(
        10 * F.normalize(pooled, dim=-1) @ means.T, torch.searchsorted(classes, labels), reduction="sum"
    )
    loss.backward()
    for hook in hooks:
        hook.remove()
    return [(a * a.grad).detach().unflatten(-1, (4, -1)) for a in kept]


@pytest.mark.parametrize("score", ["sum", "picture", "element"])
def test_scores_are_those_of_hooks_in_whatever_batches(pictures, score):
    backbone, images, labels = pictures
    expected = []
    for products in by_hooks(backbone, images, labels):
        if score == "element":
            products = products.abs()
        each = products.sum((1, 3))
        expected.append((each.abs() if score == "picture" else each).sum(0).abs())
    assert all(t.any() for t in expected)
    for n in (9, 4, 1):
        batches = list(zip(images.split(n), labels.split(n), strict=True))
        torch.testing.assert_close(taylor_scores(backbone, score, batches), expected, rtol=1e-10, atol=0)


def test_with_nothing_left_out_it_is_lora(cls):
    images = random_images(cls)
    ours = shaken(build(cls, "heart_lora", classes=5, leave_out=0))
    lora = shaken(build(cls, "lora", classes=5))
    assert torch.equal(ours(images), lora(images))


def test_rows_of_the_heads_that_are_left_out_are_the_backbone_s(cls):
    method = shaken(model_of(("heart_lora", {"leave_out": 1, "per": "each", "targets": ("q", "k")}), cls)).method
    lived = set()
    for i, block in enumerate(cls.blocks):
        path = f"{block.path}.attn.qkv"
        change, layer = method.contacts.change_at[path], cls.linear(path)
        merged = change.merged(layer.weight, layer.bias)[0].unflatten(0, (3, 4, -1))
        same = (merged == layer.weight.unflatten(0, (3, 4, -1))).flatten(2).all(-1)
        dead = sorted({*range(4)} - {*change.live.tolist()})
        assert len(dead) == 1
        for part in (0, 1):
            assert [h for h in range(4) if same[part, h]] == dead, i
        assert same[2].all(), "v is not among the targets"
        lived.add(tuple(dead))
    assert len(lived) > 1, "each layer has its own"


def test_all_layers_leave_out_the_same(cls):
    method = model_of(("heart_lora", {"leave_out": 2, "form": "head"}), cls).method
    live = {tuple(change.live.tolist()) for change in method.contacts.change_at.values() if len(change.live) < 4}
    assert len(live) == 1


def test_what_cannot_be(cls):
    with pytest.raises(RequestError, match=r"4 heads out, but blocks\.0 of .* has 4: give fewer"):
        build(cls, "heart_lora", classes=3, leave_out=4)
    with pytest.raises(RequestError, match="cannot leave -1 heads out"):
        build(cls, "heart_lora", classes=3, leave_out=-1)
    model = build(cls, "heart_lora", classes=3)
    with pytest.raises(RequestError, match="has not seen the training pictures"):
        model(random_images(cls))
    with pytest.raises(RequestError, match="classes of whole pictures, but 1 came"):
        model.method.calibrate(cls, [(random_images(cls), torch.zeros(3, dtype=torch.long))])
