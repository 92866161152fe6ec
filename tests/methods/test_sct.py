"""SCT's choice of channels, against the formula written out over timm's own modules."""

import pytest
import torch

from vitgraft.methods.sct import class_aware_scores
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone, random_images, random_vit

LABELS = torch.tensor([2, 0, 2, 2, 0, 7, 2])
every_mode = pytest.mark.parametrize("mode", ["attn", "mlp", "qkv"])


@pytest.fixture(params=["cls", "dinov2"])
def scene(request):
    """A backbone in float64 with one or five prefix tokens, its twin of timm, seven pictures."""
    backbone = random_backbone(request.param).double()
    return backbone, random_vit(request.param).double(), random_images(backbone, batch=len(LABELS)).double()


def by_the_formula(vit, images, mode):
    """L2 norm over all pictures and patch tokens of a class, averaged over classes, from all features at once."""
    seen = []
    for block in vit.blocks:
        if mode == "attn":  # what the second norm receives is the residual stream after the attention
            block.norm2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        else:
            watched = block if mode == "mlp" else block.attn.qkv
            watched.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        vit(images)
    patches = [x[:, vit.num_prefix_tokens :] for x in seen]
    if mode == "qkv":  # it tunes q and v
        patches = [torch.cat([x.chunk(3, -1)[i] for i in (0, 2)], -1) for x in patches]
    return [
        torch.stack([torch.linalg.vector_norm(x[k == LABELS].flatten(0, 1), dim=0) for k in (0, 2, 7)]).mean(0)
        for x in patches
    ]


@every_mode
def test_scores_are_the_formula_whatever_the_batches(scene, mode):
    backbone, vit, images = scene
    expected = by_the_formula(vit, images, mode)
    shuffled = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    for order, size in ((torch.arange(7), 7), (torch.arange(7), 1), (shuffled, 3)):
        batches = zip(images[order].split(size), LABELS[order].split(size), strict=True)
        scores = class_aware_scores(backbone, mode, batches)
        assert len(scores) == backbone.depth == len(expected)
        for ours, theirs in zip(scores, expected, strict=True):
            assert ours.shape == ((2 if mode == "qkv" else 1) * backbone.width,)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@every_mode
def test_the_first_among_equals_and_always_k(cls, mode):
    method = build(cls, "sct", classes=3, mode=mode, channels=4).method
    D, parts = cls.width, 2 if mode == "qkv" else 1
    flat = torch.ones(parts * D)
    tied = flat.clone()
    tied[[3, 9, 20]] = 2.0
    tied[[-1, -2, -3, -4, -5]] = 3.0  # five for four places; in mode qkv they are v's
    tied[5] = 0.0
    method.choose([flat, tied] * (cls.depth // 2))
    last = [D - 5, D - 4, D - 3, D - 2]
    for i, block in enumerate(method.salient):
        for part, salient in block.items():
            expected = [0, 1, 2, 3] if i % 2 == 0 else [0, 3, 9, 20] if part == "q" else last
            assert salient.indices.tolist() == expected
    assert method.ready


def test_channels_that_were_not_chosen_pass_to_the_bit(cls):
    """And without W and b, all of them."""
    salient = build(cls, "sct", classes=3).method.salient[0]["all"]
    x = random_images(cls).new_tensor(range(2 * 3 * 48)).view(2, 3, 48) / 7
    rest = torch.ones(48, dtype=torch.bool).index_fill(0, salient.indices, False)
    with torch.no_grad():
        assert torch.equal(salient(x)[..., rest], x[..., rest])
        assert not torch.equal(salient(x), x)
        salient.linear.weight.zero_()
        assert torch.equal(salient(x), x)
