"""The simple feature pyramid: ViTDet's layers, each map where it belongs, and every head behind it."""

import pytest
import torch
import torch.nn.functional as F
from helpers_heads import check_gradients, features, made, objects, parameters, shaken

from vitgraft import build, heads
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import MASKED, WHOLE
from vitgraft.contacts import Contacts
from vitgraft.features import Activations, Features
from vitgraft.heads.pyramid import Beside, Mix, Pyramid
from vitgraft.testing.backbones import random_backbone, random_images

ALONE = Activations(torch.zeros(0), [])  # no other block is read


def layer_norm(x, weight, bias):
    mean = x.mean(1, keepdim=True)
    x = (x - mean) / (((x - mean) ** 2).mean(1, keepdim=True) + 1e-6).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


def test_is_the_papers():
    pyramid = shaken(made(Pyramid, 16)).double()
    given = features(channels=(16,), dtype=torch.float64)
    found = pyramid(given, ALONE)
    x = given.maps[0][1]
    t = dict(pyramid.state_dict())
    up = F.conv_transpose2d(x, t["scales.0.0.weight"], t["scales.0.0.bias"], stride=2)
    up = layer_norm(up, t["scales.0.1.weight"], t["scales.0.1.bias"])
    up = up * 0.5 * (1 + torch.erf(up / 2**0.5))
    expected = [
        F.conv_transpose2d(up, t["scales.0.3.weight"], t["scales.0.3.bias"], stride=2),
        F.conv_transpose2d(x, t["scales.1.weight"], t["scales.1.bias"], stride=2),
        x,
        x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)),
    ]
    assert [stride for stride, _ in found.maps] == [4, 8, 16, 32]
    assert tuple(m.shape[1] for _, m in found.maps) == pyramid.channels == (4, 8, 16, 16)
    torch.testing.assert_close([m for _, m in found.maps], expected, rtol=1e-12, atol=1e-12)
    assert found.size == given.size
    assert found.sizes == given.sizes
    assert found.pooled is given.pooled


def test_earlier_blocks_are_added_from_zero():
    mix = made(Mix, 16, reads=(16, 16)).double()
    assert parameters(mix) == 16 * 33
    given = features(channels=(16,), dtype=torch.float64)
    B, D, h, w = given.maps[0][1].shape
    blocks = [torch.randn(B, h * w, D, dtype=torch.float64) for _ in range(2)]
    read = Activations(torch.zeros(0), [(h, w)], patches=blocks)
    torch.testing.assert_close(mix(given, read).maps, given.maps)
    shaken(mix)
    W, b = mix.mix.weight, mix.mix.bias
    added = blocks[0] @ W[:, :16].T + blocks[1] @ W[:, 16:].T + b
    expected = given.maps[0][1] + added.mT.reshape(B, D, h, w)
    torch.testing.assert_close(mix(given, read).maps, [(16, expected)])


def test_which_blocks_are_read(cls):
    """The last is the map itself; the others lie at equal distances."""
    for n, patches in ((1, ()), (2, (1,)), (3, (0, 1)), (4, (0, 1, 2))):
        model = build(cls, "linear", classes=2, task="segment", neck_blocks=n)
        assert model.patches == patches
    images = random_images(cls)
    found = model.read(images)
    assert len(found.patches) == 3
    plain = Contacts()
    plain.tap(cls, 1)
    expected = F.layer_norm(cls(images, plain).taps[1][:, cls.prefix :], (48,))
    torch.testing.assert_close(found.patches[1], expected)
    assert model.patches == build(cls, "linear", classes=2, task="segment").patches  # which no gradient crosses
    assert build(cls, "lora", classes=2, task="segment").patches == ()
    assert build(cls, "linear", classes=2, task="segment", head="linear").patches == ()  # no neck
    assert build(cls, "hst", classes=2, task="segment").patches == ()
    assert build(cls, "linear", classes=2).patches == ()
    with pytest.raises(RequestError, match="made of 5 blocks, but tiny cls has 4: give neck_blocks from 1 to 4"):
        build(cls, "linear", classes=2, task="segment", neck_blocks=5)


def test_a_backbone_with_stages_gives_their_maps():
    swin = random_backbone("swin")
    model = build(swin, "linear", classes=2, task="segment")
    assert not model.neck
    assert model.patches == (1, 2, 4, 5)
    images = torch.randn(2, 3, 64, 96)
    maps = model.method.features(swin, images, model.read(images)).maps
    assert [(stride, m.shape[1:]) for stride, m in maps] == [
        (4, (24, 16, 24)),
        (8, (48, 8, 12)),
        (16, (96, 4, 6)),
        (32, (192, 2, 3)),
    ]


@pytest.mark.parametrize("where", ["cls", "dinov2", "swin"])
def test_a_side_network_is_added_from_zero(where):
    """It begins as the frozen backbone under the same head, and adds what its own maps are through one matrix each."""
    backbone = random_backbone(where)
    options = {"task": "segment", "head": "fpn", "head_options": {"neck": 8, "width": 32}, "neck_blocks": 1}
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    frozen = build(backbone, "linear", classes=3, **options).eval()
    model = build(backbone, "hst", classes=3, detached=True, maps="added", **options).eval()
    assert model.method.map_channels == frozen.method.map_channels
    *pyramid, beside = model.neck
    assert len(pyramid) == len(frozen.neck)
    assert parameters(beside) == sum((c + 1) * C for c, C in zip((64, 128, 256, 384), beside.channels, strict=True))
    same = {name: tensor for name, tensor in model.state().items() if name in frozen.state()}
    frozen.load_state(frozen.state() | same)
    torch.testing.assert_close(model(images), frozen(images))

    with torch.no_grad():
        for parameter in beside.parameters():
            parameter.normal_(std=0.1)
    read = model.read(images)
    own = build(backbone, "hst", classes=3, detached=True, task="segment", head="linear").method.eval()
    own.load_state_dict(model.method.state_dict())
    given = model.method.features(backbone, images, read)
    for part in pyramid:
        given = part(given, read)
    expected = [
        x + torch.einsum("bchw,Cc->bChw", y, lateral.weight[:, :, 0, 0]) + lateral.bias[:, None, None]
        for (_, x), (_, y), lateral in zip(
            given.maps, own.features(backbone, images, read).maps, beside.laterals, strict=True
        )
    ]
    found = beside(given, read).maps
    assert [stride for stride, _ in found] == [4, 8, 16, 32]
    torch.testing.assert_close([x for _, x in found], expected)
    sum(model(images, torch.ones(2, 64, 96, dtype=torch.uint8)).values()).backward()
    still = [name for name, p in model.trained().items() if p.grad is None or not p.grad.any()]
    assert all("k.bias" in name for name in still), still


def test_beside_another_method_the_side_network_is_small_and_added(cls):
    model = build(cls, "hst+lora", classes=2, task="segment")
    assert model.method.arguments()["widths"] == model.method.side_channels == (32, 48, 64, 72)
    assert model.method.arguments()["detached"]
    assert [type(part) for part in model.neck] == [Mix, Pyramid, Beside]
    assert build(cls, "hst", classes=2, task="segment").method.map_channels == (64, 128, 256, 384)


@pytest.mark.parametrize("head", ["linear", "query"])
def test_a_head_of_one_map_has_all_of_the_side_network_added_to_it(cls, head):
    options = {"queries": 6, "blocks": 1, "mlp": 16} if head == "query" else {}
    model = build(cls, "hst+lora", classes=3, task="segment", head=head, head_options=options)
    beside = model.neck[-1]
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for parameter in model.neck.parameters():
            parameter.normal_(std=0.1)
    read = model.read(images)
    given = model.method.features(cls, images, read)
    for part in model.neck[:-1]:
        given = part(given, read)
    [(_, x)] = given.maps
    [(_, found)] = beside(given, read).maps
    fine, half, same, coarse = (lateral(y) for lateral, (_, y) in zip(beside.laterals, given.side, strict=True))
    expected = x + F.avg_pool2d(fine, 4) + F.avg_pool2d(half, 2) + same
    expected = expected + F.interpolate(coarse, (4, 6), mode="bilinear")
    torch.testing.assert_close(found, expected)
    sum(model.train()(images, torch.ones(2, 64, 96, dtype=torch.uint8)).values()).backward()
    assert [name for name, p in model.trained().items() if p.grad is None] == []


def test_a_cell_reaches_only_its_own_place():
    pyramid = made(Pyramid, 8).double()
    x = torch.randn(1, 8, 6, 8, dtype=torch.float64)
    other = x.clone()
    other[:, :, 2, 5] += 1
    maps = [pyramid(Features(x.mean((2, 3)), [(16, each)], (96, 128)), ALONE).maps for each in (x, other)]
    for (stride, a), (_, b) in zip(*maps, strict=True):
        rows, columns = (a != b).any(1)[0].nonzero().T.double() * stride
        assert 32 <= rows.min() <= rows.max() < 48 if stride < 32 else set(rows.tolist()) == {32}
        assert 80 <= columns.min() <= columns.max() < 96 if stride < 32 else set(columns.tolist()) == {64}


@pytest.mark.parametrize("D", [8, 20, 192])
def test_parameters(D):
    assert parameters(made(Pyramid, D)) == 9 * D * D / 2 + 9 * D / 4
    assert parameters(made(Mix, D, 8)) == (D > 8) * (D + 1) * 8
    assert parameters(made(Mix, D, 8, (5, 7))) == (D > 8) * (D + 1) * 8 + 13 * 8


def test_it_is_narrower_than_the_backbone():
    mix = shaken(made(Mix, 16, 8)).double()
    given = features(channels=(16,), dtype=torch.float64)
    expected = torch.einsum("bchw,ec->behw", given.maps[0][1], mix.reduce.weight[:, :, 0, 0])
    torch.testing.assert_close(mix(given, ALONE).maps, [(16, expected + mix.reduce.bias[:, None, None])])
    wide = build(random_backbone("cls"), "lora", classes=2, task="segment", neck_width=0)
    assert wide.neck[1].channels == (12, 24, 48, 48)
    assert build(random_backbone("cls"), "lora", classes=2, task="segment", neck_width=16).neck[1].channels[2] == 16


DENSE = [(task, name) for task in heads.HEADS if task not in WHOLE for name in heads.HEADS[task]]


def test_of_odd_widths():
    with pytest.raises(RequestError, match="width 18 was asked for, which it halves twice"):
        Pyramid(18)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, name in DENSE if name != "eomt"])
def test_every_head_behind_it(task, name):
    small = {
        "upernet": {"width": 16, "auxiliary_width": 16},
        "fpn": {"neck": 8, "width": 32},
        "linear": {},
        "query": {"queries": 12, "blocks": 2, "mlp": 16},
    }
    options = small.get(
        name, {"width": 8, "hidden": 16, "proposals": 20, "samples": 40, "anchors": (8, 16, 32, 64, 96)}
    )
    pyramid = made(Pyramid, 16)
    head = made(heads.create, task, name, pyramid.channels, 3, **options)
    given = features(channels=(16,))
    targets = torch.randint(3, (2, 64, 96)) if task == "segment" else objects(given, masks=task in MASKED)
    torch.manual_seed(0)
    losses = head(pyramid(given, ALONE), targets)
    if name == "linear":
        pyramid = torch.nn.Identity()  # which reads the one map that was there before
    check_gradients(torch.nn.ModuleList([pyramid, head]), losses)


def test_features_know_their_pictures_sizes():
    pooled = torch.zeros(3, 4)
    assert Features(pooled, [], (64, 32)).inside == [(64, 32)] * 3
    assert Features(pooled, [], (64, 32), [(1, 2), (3, 4), (5, 6)]).inside == [(1, 2), (3, 4), (5, 6)]
    assert Features(pooled, []).sizes == []
