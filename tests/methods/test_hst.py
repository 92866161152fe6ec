"""HST's parts: the attention to few keys, the bridge, the stages' sizes, its errors, and the detached form."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitgraft import methods
from vitgraft.common.errors import RequestError
from vitgraft.contacts import Contacts
from vitgraft.kernels.batchnorm import BatchNorm
from vitgraft.methods.hst import SideBlock, Stage
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone, random_images


def filled(module, seed=0):
    torch.manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


def plain_attention(block, x, keys):
    q, k, v = (
        linear(t).unflatten(2, (block.heads, -1)).transpose(1, 2)
        for linear, t in ((block.q, x), (block.k, keys), (block.v, keys))
    )
    return block.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("K", [2, 5])
@pytest.mark.parametrize(("width", "heads"), [(32, 2), (48, 4), (72, 12), (24, 1)])
def test_few_key_attention_is_attention(K, width, heads):
    block = filled(SideBlock(width, heads, 4))
    x = torch.randn(3, 20, width, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(3, K, width, dtype=torch.float64, requires_grad=True)
    weights = [p for name, p in block.named_parameters() if name.split(".")[0] in ("q", "k", "v", "proj")]
    upstream = torch.randn(3, 20, width, dtype=torch.float64)
    results = []
    for attention in (block._attention, lambda x, keys: plain_attention(block, x, keys)):
        out = attention(x, keys)
        results.append((out, torch.autograd.grad(out, [x, keys, *weights], upstream)))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-10, atol=1e-10)
    assert all(g.any() for g in their_gradients[:2])


def test_two_keys_that_have_much_in_common_are_still_told_apart_in_bf16():
    """Only their difference matters, and eight bits would round it away."""
    block = filled(SideBlock(32, 2, 4)).float()
    with torch.no_grad():
        block.v.weight[:, :16] = 0  # values do not see what is common
    x = torch.randn(2, 20, 32)
    keys = torch.randn(2, 2, 32)
    keys[:, :, :16] += 100 * torch.randn(16)
    exact = block._attention(x, keys)
    with torch.autocast("cpu", torch.bfloat16):
        near = block._attention(x, keys).float()
    assert (near - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (16, 16)), ((3, 5), (6, 10)), ((4, 6), (2, 3)), ((5, 5), (4, 4))])
def test_linear_then_resize_is_resize_then_linear(grid, size):
    bridge = filled(torch.nn.Linear(48, 32))
    p = torch.randn(2, grid[0] * grid[1], 48, dtype=torch.float64)
    released = bridge(Stage._resize(p, grid, size))
    torch.testing.assert_close(Stage._resize(bridge(p), grid, size), released, rtol=1e-12, atol=1e-12)
    by_torch = F.interpolate(p.mT.unflatten(2, grid), size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(released, bridge(by_torch.flatten(2).mT), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("patch", "picture", "sizes"),
    [
        (16, (64, 64), [(16, 16), (8, 8), (4, 4), (2, 2)]),
        (16, (224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        (16, (48, 80), [(12, 20), (6, 10), (3, 5), (2, 3)]),
        (14, (56, 56), [(14, 14), (7, 7), (4, 4), (2, 2)]),
        (14, (70, 42), [(17, 10), (9, 5), (5, 3), (3, 2)]),
        (15, (45, 15), [(11, 4), (6, 2), (3, 1), (2, 1)]),
        (8, (8, 8), [(2, 2), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_stage_maps_follow_the_picture(patch, picture, sizes):
    backbone = random_backbone("cls", patch_size=patch, img_size=4 * patch)
    model = build(backbone, "hst", classes=3).eval()
    images = torch.randn(2, 3, *picture)
    with torch.no_grad():
        maps = model.method.features(backbone, images, model.method.read(backbone, images)).maps
    assert [tuple(map_.shape[2:]) for _, map_ in maps] == sizes
    assert [map_.shape[1] for _, map_ in maps] == [32, 48, 64, 72]
    assert [stride for stride, _ in maps] == [picture[0] / h for h, _ in sizes]
    assert all(map_.isfinite().all() for _, map_ in maps)


@pytest.mark.parametrize("depth", [4, 8])
def test_any_depth_that_four_divides_any_width_any_number_of_tokens(depth):
    backbone = random_backbone("dinov2", depth=depth)
    model = build(backbone, "hst", classes=3, widths=(8, 12, 16, 20), heads=(2, 3, 4, 5), mlp_ratio=2, meta_tokens=3)
    assert model(random_images(backbone)).shape == (3, 3)
    method: Any = model.method
    assert [len(stage.blocks) for stage in method.stages] == [depth // 4] * 4
    assert method.width == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (32, 48, 64)}, "four stages, but 3 widths and 4 numbers of heads"),
        ({"heads": (2, 4, 8, 12, 12)}, "four stages, but 4 widths and 5 numbers of heads"),
        ({"widths": (32, 50, 64, 72)}, "width 50 cannot be split into 4 heads"),
        ({"heads": (0, 4, 8, 12)}, "width 32 cannot be split into 0 heads"),
        ({"meta_tokens": 0}, "at least one meta token, but 0"),
    ],
)
def test_sizes_that_cannot_be(arguments, message):
    with pytest.raises(RequestError, match=message):
        methods.create("hst", **arguments)


def test_a_depth_that_four_does_not_divide():
    model = build(random_backbone("cls", depth=7), "hst", classes=3).eval()
    assert [list(blocks) for blocks in model.method.reads] == [[0], [1, 2], [3, 4], [5, 6]]
    assert [len(stage.blocks) for stage in model.method.stages] == [1, 2, 2, 2]
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 3)


def test_a_backbone_of_fewer_blocks_than_stages():
    with pytest.raises(RequestError, match=r"HST has 4 stages, .* but tiny cls has 3: take a backbone of at least 4"):
        build(random_backbone("cls", depth=3), "hst", classes=3)


def test_detached_reads_without_autograd_and_takes_what_was_read(backbone, images):
    model = build(backbone, "hst", classes=3, detached=True).eval()
    assert not model.method.crosses_backbone
    assert model.method.contacts.kinds == ("tap",)
    read = model.method.read(backbone, images)
    assert not any(t.requires_grad for t in (read.tokens, *read.taps.values()))
    assert torch.equal(model(images, None, read), model(images))
    assert "train" in build(backbone, "hst", classes=3).method.contacts.kinds


def test_detached_reads_every_block_normalised(backbone, images):
    taps = build(backbone, "hst", classes=3, detached=True).method.read(backbone, images).taps
    plain = Contacts()
    for i in range(backbone.depth):
        plain.tap(backbone, i)
    for i, tap in backbone(images, plain).taps.items():
        torch.testing.assert_close(taps[i], F.layer_norm(tap, tap.shape[-1:]))


def test_the_published_form_reads_them_normalised_where_asked(backbone, images):
    """With gradients."""
    method, plain = (build(backbone, "hst", classes=3, taps=each).method for each in ("normalised", "raw"))
    taps = method.read(backbone, images).taps
    for i, tap in plain.read(backbone, images).taps.items():
        torch.testing.assert_close(taps[i], F.layer_norm(tap, tap.shape[-1:]))
        assert taps[i].requires_grad == tap.requires_grad


@pytest.mark.parametrize(
    ("family", "arguments", "normalised"),
    [
        ("cls", {}, False),  # as published
        ("dinov2", {}, True),  # has LayerScale
        ("cls", {"detached": True}, True),
        ("cls", {"taps": "normalised"}, True),
        ("dinov2", {"taps": "raw"}, False),
        ("dinov2", {"taps": "raw", "detached": True}, False),
    ],
)
def test_taps_are_normalised_behind_layerscale_unless_told(family, arguments, normalised):
    taps = build(random_backbone(family), "hst", classes=3, **arguments).method.contacts.taps
    assert set(taps.values()) == {normalised}


def test_detached_puts_the_cls_token_or_the_mean_patch_in_the_meta_tokens_place(backbone, images):
    """Moves what should be the key of block 3, and what should not be."""
    model = build(backbone, "hst", classes=3, detached=True).eval()
    plain = model(images)

    def moved(where, by):
        read = model.method.read(backbone, images)
        tap = read.taps[3].clone()
        tap[:, where] += by
        read.taps[3] = tap
        return model(images, None, read)

    torch.manual_seed(0)
    by = torch.randn(backbone.width)
    if backbone.has_cls:
        assert not torch.equal(moved(slice(0, 1), by), plain)
        assert torch.equal(moved(slice(1, backbone.prefix), by), plain), "registers are not looked at"


@pytest.mark.parametrize("detached", [False, True])
def test_drop_path_is_active_in_training_only(cls, detached):
    images = random_images(cls, batch=6)
    model = build(cls, "hst", classes=3, detached=detached).eval()
    with torch.no_grad():
        plain = model(images)
        model.method.contacts.in_training.drop_path = 0.9
        assert torch.equal(model(images), plain)
        model.train()
        # Batch statistics aside: only chance may tell two passes apart.
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        assert not torch.equal(model(images), model(images))
        model.method.contacts.in_training.drop_path = 0.0
        assert torch.equal(model(images), plain)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("cells", [1, 4])
def test_a_batch_of_one_trains(detached, cells):
    """One picture has one pooled vector, of which there are no batch statistics."""
    backbone = random_backbone("cls")
    model = build(backbone, "hst", classes=3, detached=detached).train()
    images = random_images(backbone, (cells, cells), batch=1)
    optimiser = torch.optim.AdamW(model.trained().values(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = sum(model(images, torch.tensor([1])).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert all(t.isfinite().all() for t in model.state().values())
