"""Segmentation heads: equal to independent ones, right losses, any batch, and heads found by name."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers_heads import CHANNELS, HST, HST_SIDE, check_gradients, features, made, one_of, parameters, shaken

from vitgraft import heads
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import WHOLE
from vitgraft.heads.segment import Linear, SemanticFPN, UPerNet, cross_entropy

K = 5
DENSE = [(task, name) for task in heads.HEADS if task not in WHOLE for name in heads.HEADS[task]]
SMALL = {Linear: {}, SemanticFPN: {"neck": 16, "width": 64}, UPerNet: {"width": 16, "auxiliary_width": 8}}


@pytest.fixture(params=SMALL, ids=lambda cls: cls.__name__)
def head(request):
    return made(request.param, CHANNELS, K, **SMALL[request.param])


def masks(size=(64, 96), batch=2, seed=0):
    """About a fifth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(K + 1, (batch, *size), generator=generator, dtype=torch.uint8)
    return found.masked_fill_(found == K, 255)


# ------------------------------------------------------------------------------------------------ parity


def transformers_upernet():
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.ConvNextConfig(hidden_sizes=list(CHANNELS), depths=[1, 1, 1, 1], out_features=stages)
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        pool_scales=[1, 2, 3, 6],
        auxiliary_channels=8,
        auxiliary_in_channels=CHANNELS[2],
        num_labels=K,
    )
    return shaken(transformers.UperNetForSemanticSegmentation(config).eval())


NAMES = {
    "decode_head.psp_modules": "pools",
    "decode_head.bottleneck": "pooled",
    "decode_head.lateral_convs": "laterals",
    "decode_head.fpn_convs": "outputs",
    "decode_head.fpn_bottleneck": "fuse",
    "decode_head.classifier": "classify",
    "auxiliary_head.convs.0": "auxiliary.0",
    "auxiliary_head.classifier": "auxiliary.2",
}


def upernet_of(theirs):
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in NAMES.items():
            if name.startswith(old + ".") and not name.endswith("num_batches_tracked"):
                name = new + name.removeprefix(old)
                tensors[name.replace(".conv.", ".0.").replace(".batch_norm.", ".1.")] = tensor
    ours = UPerNet(CHANNELS, K, width=16, auxiliary_width=8)
    ours.load_state_dict(tensors)
    return ours.eval()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_upernet_equals_transformers(dtype, most):
    theirs = transformers_upernet().to(dtype)
    ours = upernet_of(theirs).to(dtype)
    pixels, truth = torch.randn(2, 3, 64, 96, dtype=dtype), masks()
    with torch.no_grad():
        expected = theirs(pixels, labels=truth.long())
        maps = theirs.backbone(pixels).feature_maps
        given = features(dtype=dtype)
        given.maps = [(stride, x) for (stride, _), x in zip(given.maps, maps, strict=True)]
        logits, losses = ours(given), ours(given, truth)
        auxiliary = ours.auxiliary(maps[2]), theirs.auxiliary_head(maps)
    assert (logits - expected.logits).abs().max() < most
    assert (auxiliary[0] - auxiliary[1]).abs().max() < most
    assert abs(sum(losses.values()) - expected.loss) < most
    assert expected.logits.std() > 0.1


def test_semantic_fpn_is_the_papers():
    head = shaken(made(SemanticFPN, CHANNELS, K, **SMALL[SemanticFPN])).double().eval()
    given = features(dtype=torch.float64)
    t = head.state_dict()
    laterals = [
        F.conv2d(x, t[f"neck.fpn.inner_blocks.{i}.0.weight"], t[f"neck.fpn.inner_blocks.{i}.0.bias"])
        for i, (_, x) in enumerate(given.maps)
    ]
    for i in (2, 1, 0):
        laterals[i] = laterals[i] + laterals[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    total = 0
    for i, x in enumerate(laterals):
        name = f"neck.fpn.layer_blocks.{i}.0"
        x = F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], padding=1)
        for j in range(max(i, 1)):
            layer = f"branches.{i}.{2 * j}"
            x = F.conv2d(x, t[f"{layer}.0.weight"], padding=1)
            x = F.group_norm(x, 32, t[f"{layer}.1.weight"], t[f"{layer}.1.bias"]).relu()
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear")
        total = total + x
    logits = F.conv2d(total, t["classify.weight"], t["classify.bias"])
    expected = F.interpolate(logits, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(head(given), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [CHANNELS, (16,)])
def test_linear_is_one_matrix_on_all_maps_at_the_finest(channels):
    """Here the maps are brought to one size and joined first."""
    head = shaken(made(Linear, channels, K)).double().eval()
    given = features(channels=channels, dtype=torch.float64)
    size = given.maps[0][1].shape[-2:]
    joined = torch.cat([F.interpolate(x, size=size, mode="bilinear") for _, x in given.maps], dim=1)
    mean, variance, scale, shift = (
        torch.cat([getattr(norm, name) for norm in head.norms])
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    x = (joined.movedim(1, -1) - mean) / (variance + 1e-5).sqrt() * scale + shift
    matrix = torch.cat([each.weight[:, :, 0, 0] for each in head.classify], dim=1)
    logits = (x @ matrix.T + sum(each.bias for each in head.classify)).movedim(-1, 1)
    expected = F.interpolate(logits, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(head(given), expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ losses


def test_loss_is_the_mean_over_pixels_that_count():
    logits, truth = torch.randn(2, K, 16, 24, dtype=torch.float64), masks((16, 24))
    counted = truth != 255
    found = logits.log_softmax(1).movedim(1, -1)[counted]
    expected = -found[torch.arange(len(found)), truth[counted].long()].mean()
    assert 0 < (~counted).sum() < counted.sum()
    torch.testing.assert_close(cross_entropy(logits, truth), expected)


def test_a_batch_that_is_ignored_costs_nothing(head):
    given = features()
    losses = head(given, torch.full((2, 64, 96), 255, dtype=torch.uint8))
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all((p.grad == 0).all() for p in head.parameters())


def test_gradients_reach_every_parameter(head):
    check_gradients(head, head(features(), masks()))


def test_one_small_picture_trains(head):
    """Of one cell at stride 32, where BatchNorm has one value per channel."""
    losses = head(features((32, 32), batch=1), masks((32, 32), batch=1))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_learns_one_batch(head):
    given, truth = features(), masks()
    blocks = truth[:, ::32, ::32].repeat_interleave(32, 1).repeat_interleave(32, 2)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    torch.manual_seed(0)
    history = []
    for _ in range(40):
        loss = sum(head(given, blocks).values())
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < history[0] / 2
    counted = blocks != 255
    assert (head.eval()(given).argmax(1) == blocks)[counted].float().mean() > 0.7


# ------------------------------------------------------------------------------------------------ behaviour


def test_a_prediction_does_not_depend_on_its_neighbours(head):
    head = shaken(head).eval()
    given = features(batch=3)
    both = head(given)
    assert both.shape == (3, K, 64, 96)
    for i in range(3):
        torch.testing.assert_close(head(one_of(given, i))[0], both[i], rtol=1e-5, atol=1e-5)


def test_autocast(head):
    given, truth = features(), masks()
    head.eval()
    expected = head(given), sum(head(given, truth).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(given), sum(head(given, truth).values())
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.train()(given, truth)
    check_gradients(head, losses)


@pytest.mark.parametrize("C", [(8, 12, 16, 24), HST])
def test_parameters(C):
    n, m, w, a, p = 16, 32, 20, 12, 3
    assert parameters(Linear(C, K)) == 2 * sum(C) + sum(c + 1 for c in C) * K
    neck = n * sum(c + 1 for c in C) + 4 * n * (9 * n + 1)
    fpn = neck + 36 * n * m + 27 * m**2 + 14 * m + (m + 1) * K
    assert parameters(SemanticFPN(C, K, neck=n, width=m)) == fpn
    decode = w * (sum(C[:3]) + (9 + p) * C[3]) + (63 + 9 * p) * w**2 + 2 * (8 + p) * w + (w + 1) * K
    auxiliary = 9 * C[2] * a + 2 * a + (a + 1) * K
    assert parameters(UPerNet(C, K, width=w, auxiliary_width=a, scales=(1, 2, 4))) == decode + auxiliary


def test_parameters_of_hst_are_the_published_ones():
    with torch.device("meta"):
        upernet, fpn = UPerNet(HST, 150, **UPerNet.published), SemanticFPN(HST, 150, **SemanticFPN.published)
    assert round((parameters(upernet) + HST_SIDE) / 1e6, 1) == 39.9
    assert math.isclose(parameters(fpn) + HST_SIDE, 14.62e6, rel_tol=1e-3)


# ------------------------------------------------------------------------------------------------ by name


@pytest.mark.parametrize(("task", "name"), DENSE)
def test_every_head_is_found_and_says_how_many_maps_it_reads(task, name):
    assert heads.find(task, name).levels == (1 if name in ("linear", "query", "eomt") else 4)
    assert not {"channels", "classes", "masks"} & set(heads.options(task, name))


def test_options_are_handed_on():
    assert heads.options("segment", "fpn") == {"neck": 96, "width": 96, "dropout": 0.1}
    head = heads.create("segment", "fpn", CHANNELS, K, neck=8, width=32)
    assert head.classify.weight.shape == (K, 32, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("segmant", "linear", CHANNELS, K), "no task 'segmant'.*Did you mean 'segment'"),
        (("segment", "upnet", CHANNELS, K), "no head 'upnet' for the task segment.*Did you mean 'upernet'"),
        (("segment", "mask", CHANNELS, K), "'mask' belongs to the task instance"),
        (("segment", "upernet", (16,), K), "reads 4 maps, but was given 1: put a heads.pyramid.Pyramid"),
    ],
)
def test_what_there_is_not(call, message):
    with pytest.raises(RequestError, match=message):
        heads.create(*call)


def test_an_option_that_there_is_not():
    with pytest.raises(RequestError, match=r"no option 'widht': it has width, scales.*Did you mean 'width'"):
        heads.create("segment", "upernet", CHANNELS, K, widht=8)


def test_a_width_that_groups_do_not_divide():
    with pytest.raises(RequestError, match=r"width of fpn is 48.*give a multiple of 32"):
        SemanticFPN(CHANNELS, K, width=48)
