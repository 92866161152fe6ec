"""What single methods promise beside the behaviour matrix, which is in `vitgraft.testing`: sizes, options, names."""

import inspect
import re

import pytest
import torch

from vitgraft import methods
from vitgraft.model import build
from vitgraft.pages import catalogue
from vitgraft.testing.backbones import random_backbone
from vitgraft.testing.methods import (
    VARIANTS,
    model_of,
    shaken,
    variant_id,
)

# What it costs


def full_count(L, D, P, N):
    """ViT with CLS, patches of P pixels, N of them, MLP ratio 4."""
    return D * (3 * P * P + 1) + D + (N + 1) * D + L * (12 * D * D + 13 * D) + 2 * D


def hst_count(L, D, *, detached=False, widths=(32, 48, 64, 72), M=1, r=4):
    d = (None, *widths)
    count = 27 * d[1] + 2 * d[1] + 4 * d[1] ** 2 + d[1] + 2 * d[1]
    count += sum(9 * d[s - 1] * d[s] + 3 * d[s] for s in (2, 3, 4))
    count += sum(L // 4 * ((4 + 2 * r) * x**2 + (9 + r) * x) for x in widths)
    count += sum((D + 1) * x + L // 4 * 2 * x + 2 * x for x in widths)
    return count + (0 if detached else L * M * D + 4 * L * D)


FORMULAS = {
    "adapter": lambda L, D, N: L * (2 * D * 8 + 8 + D),
    "adapter form=houlsby": lambda L, D, N: 2 * L * (2 * D * 8 + 8 + D),
    "apt": lambda L, D, N: L * (50 * D + 8 * D + 1),
    "apt form=softmax prompts=7": lambda L, D, N: L * (7 * D + 8 * D + 1),
    "apt gate=True prompts=5 rank=2": lambda L, D, N: L * (5 * D + 4 * D + 2),
    "adaptformer": lambda L, D, N: L * (2 * D * 8 + 8 + D),
    "bapat": lambda L, D, N: L * (3 * D * 8 + 8 + 2 * D + 2 * D * 8 + 8 + D),
    "bapat where=qkv rank=5 mlp_rank=0": lambda L, D, N: L * (4 * D * 5 + 5 + 3 * D),
    "bapat where=qv rank=3 scale=2.0": lambda L, D, N: L * (3 * D * 3 + 3 + 2 * D + 2 * D * 8 + 8 + D),
    "bitfit": lambda L, D, N: 11 * L * D + 2 * D,
    "consolidator": lambda L, D, N: 12 * L * D**2 // (D // 2) + 9 * L * D,
    "consolidator split_qkv=True originals=()": lambda L, D, N: 12 * L * D**2 // (D // 2) + 9 * L * D,
    "convpass": lambda L, D, N: 2 * L * (17 * D + 9 * 64 + 16),
    "convpass sublayers=('attn',)": lambda L, D, N: L * (17 * D + 9 * 64 + 16),
    "e2vpt": lambda L, D, N: L * D * 15,
    "e2vpt prompts=3 key_value=2 shared=False": lambda L, D, N: L * D * (3 + 4),
    "e2vpt prompts=4 pieces=8 drop_tokens=0.5 drop_pieces=0.4 first_epochs=1": (
        lambda L, D, N: L * D // 8 * 2 * 5 + L * D * 5  # 2 prompts of 5 pieces
    ),
    "ett": lambda L, D, N: 2 * L * D * 10 + 2 * L * D + D * D,
    "ett hidden=5 transform=False regulariser=0.0": lambda L, D, N: 2 * L * D * 10 + 2 * L * D,
    "fact": lambda L, D, N: 2 * D * 16 + 12 * L * 16**2,
    "fact form=tk scale=10.0": lambda L, D, N: 2 * D * 16 + 12 * L * 16 + 16**3,
    "full": lambda L, D, N: full_count(L, D, 16, N),
    "heart_lora": lambda L, D, N: 2 * L * 8 * D + 2 * L * 8 * (D - D // 64 // 5 * 64),
    "heart_lora form=head leave_out=0.25 score=picture": lambda L, D, N: 4 * L * 8 * D,
    "hst": lambda L, D, N: hst_count(L, D),
    "hst detached=True": lambda L, D, N: hst_count(L, D, detached=True),
    "layernorm": lambda L, D, N: 4 * L * D + 2 * D,
    "linear": lambda L, D, N: 0,
    "lora": lambda L, D, N: 4 * L * 8 * D,
    "lst": lambda L, D, N: (
        (L + 1) * (D + 1) * D // 8 + L * (12 * (D // 8) ** 2 + 13 * D // 8 + 1) + D // 4 + (D // 8 + 1) * D
    ),
    "pro_tuning": lambda L, D, N: 4 * ((2 * D + 27) * 64 + D + 1),
    "pro_tuning rank=6 kernel=3 places=2": lambda L, D, N: 2 * ((2 * D + 11) * 6 + D + 1),
    "repadapter": lambda L, D, N: 2 * L * (D * 8 + 8 + D * 4 + D),
    "sct": lambda L, D, N: L * ((D // 8) ** 2 + D // 8),
    "sct mode=qkv scale=0.5 scale_x=True": lambda L, D, N: 2 * L * ((D // 8) ** 2 + D // 8),
    "ssf": lambda L, D, N: 22 * L * D + 4 * D,
    "vpt": lambda L, D, N: L * 10 * D,
    "vpt form=shallow": lambda L, D, N: 10 * D,
}
SIZES = {"tiny": (12, 192), "small": (12, 384), "base": (12, 768), "large": (24, 1024)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if variant_id(v) in FORMULAS], ids=variant_id)
def test_parameters_are_as_the_formula_says(variant, size):
    method = catalogue.attached(variant[0], catalogue.shape_of(f"vit_{size}_patch16_224"), **variant[1])
    assert method.size == FORMULAS[variant_id(variant)](*SIZES[size], 196)


def test_the_sizes_on_swin():
    """On Swin-B, whose 24 blocks have widths of 128 to 1,024, 12,032 together."""
    shape = catalogue.shape_of("swin_base_patch4_window7_224")
    total = sum(block.width for block in shape.blocks)
    assert total == 12_032
    expected = [
        ("convpass", {}, 437_504),
        ("convpass", {"sublayers": ("attn",)}, 218_752),
        ("sct", {}, 110_560),
        ("sct", {"channels": 96}, 223_488),
        ("lora", {}, 32 * total),
        ("consolidator", {}, 24 * total + 9 * total),
        ("adaptformer", {}, 17 * total + 24 * 8),
        ("adapter", {}, 17 * total + 24 * 8),
        ("repadapter", {}, 313_216),
        ("vpt", {}, 10 * total),
        ("e2vpt", {}, 15 * total),
        ("apt", {}, 58 * total + 24),
        ("bapat", {}, 517_760),
        ("bapat", {"rank": 128, "mlp_rank": 64}, 6_201_088),
        ("heart_lora", {"leave_out": 0}, 32 * total),
        ("pro_tuning", {}, 254_596),
        ("full", {}, 86_743_224),
        ("linear", {}, 0),
    ]
    for name, arguments, size in expected:
        assert catalogue.attached(name, shape, **arguments).size == size, name


def test_the_published_sizes():
    """On ViT-B/16, without the head: the four papers' tables and the common sizes of the baselines."""
    shape = catalogue.shape_of(catalogue.VIT_B16)
    sizes = {name: catalogue.attached(name, shape).size for name in ("convpass", "sct", "consolidator", "hst", "lora")}
    assert sizes == {"convpass": 327_552, "sct": 111_744, "consolidator": 304_128, "hst": 764_840, "lora": 294_912}
    assert catalogue.attached("convpass", shape, sublayers=("attn",)).size == 163_776
    assert catalogue.attached("consolidator", shape, originals=("bias", "norm")).size == 304_128 + 38_400
    # Three nested branches, without reorder: what they share is stored once (32,256 train in qkv, 18,432 are left).
    several = catalogue.attached("consolidator", shape, groups=(96, 192, 384))
    assert several.size == catalogue.attached("consolidator", shape, groups=(96,)).size
    reordered = catalogue.attached("consolidator", shape, groups=(96, 192, 384), reorder=True)
    qkv = reordered.contacts.change_at["blocks.0.attn.qkv"]
    assert (sum(w.numel() for w in qkv.weights), int(qkv.support.sum())) == (32_256, 32_076)


def test_what_consolidator_stores_is_its_size(cls):
    for form in ({}, *methods.find("consolidator").variants):
        method = model_of(("consolidator", form), cls).method
        size, trains = method.size, sum(p.numel() for p in method.parameters())
        method.consolidate()
        assert sum(p.numel() for p in method.parameters()) == method.size == size
        assert size == trains if form.get("originals") == () else size < trains


@pytest.mark.parametrize(
    ("family", "given", "scale"), [("cls", {}, 1), ("dinov2", {}, 0.1), ("dinov2", {"scale": 2}, 2)]
)
def test_convpass_does_not_drown_what_stands_behind_layerscale(family, given, scale):
    backbone = random_backbone(family)
    method = model_of(("convpass", given), backbone).method
    assert {branch.scale for branch in method.modules() if hasattr(branch, "conv")} == {scale}
    assert method.arguments()["scale"] == given.get("scale"), "an adapter file says what was asked for"


@pytest.mark.parametrize("name", sorted({*methods.names()} - {"full", "lst"}))
def test_it_is_a_small_part_of_the_backbone(name):
    shape = catalogue.shape_of(catalogue.VIT_B16)
    ours = catalogue.attached(name, shape).size
    assert ours < 0.02 * sum(p.numel() for p in shape.parameters())


@pytest.mark.parametrize("name", methods.names())
def test_its_page_states_the_parameters(name):
    text = inspect.getdoc(methods.find(name)) or ""
    assert "Parameters" in text
    method = catalogue.attached(name, catalogue.shape_of(catalogue.VIT_B16))
    stated = re.findall(r"([\d,]+) on ViT-B/16", text)
    assert stated or name in FORMULAS, "state the number on ViT-B/16"
    assert [int(number.replace(",", "")) for number in stated[:1]] in (
        [],
        [method.size],
    )


def test_hst_is_as_large_as_published():
    shape = catalogue.shape_of(catalogue.VIT_B16)
    counts = [
        sum(p.numel() for p in catalogue.attached("hst", shape, **more).parameters())
        for more in ({}, {"detached": True}, {"widths": (64, 128, 256, 384)}, {"meta_tokens": 4})
    ]
    assert counts == [764_840, 718_760, 10_404_096, 764_840 + 3 * 12 * 768]
    ten, eleven = (
        sum(p.numel() for p in build(random_backbone(), "hst", classes=K).head.parameters()) for K in (10, 11)
    )
    assert eleven - ten == 73


@pytest.mark.parametrize("form", [{}, *methods.find("consolidator").variants], ids=str)
def test_consolidator_evaluates_what_it_trains(form, backbone, images):
    """Branches side by side, as they train; folded into the layer, as they are measured; summed, as they are stored."""
    model = shaken(model_of(("consolidator", {**form, "branch_drop": 1e-9}), backbone))
    evaluated = model(images)
    torch.testing.assert_close(model.train()(images), evaluated)
    model.eval().method.consolidate()
    torch.testing.assert_close(model(images), evaluated)


# Finding methods


def test_every_method_describes_itself():
    for row in catalogue.table():
        assert row["title"], row["name"]
        assert set(row["contacts"]) <= {"train", "weight", "branch", "tokens", "prefix", "tap"}
        assert catalogue.describe(row["name"]).startswith(row["title"])
    assert [row["name"] for row in catalogue.table()] == methods.names()
    assert all(row["name"] in catalogue.text() for row in catalogue.table())


def test_methods_together():
    """Arguments, parameters, recipe and description are those of all; what cannot be is said."""
    cls = methods.find("hst+lora+bitfit")
    assert cls is methods.find("hst+lora+bitfit")
    shape = catalogue.shape_of(catalogue.VIT_B16)
    both = catalogue.attached("hst+lora", shape, rank=4)
    assert both.name() == "hst+lora"
    assert both.size == 718_760 + 294_912 // 2
    assert both.size == sum(p.numel() for p in both.parameters())
    assert both.width == 72
    assert (both.map_channels, both.side_channels) == ((768,), (32, 48, 64, 72))
    assert both.crosses_backbone
    assert "side network" in both.obstacle
    assert both.recipe == {"lr": 2e-3}
    described = catalogue.describe("hst+lora")
    assert described.startswith("HST, hierarchical side-tuning and LoRA, low-rank adaptation")
    assert "--meta-tokens" in described
    assert "--rank" in described
    shared = methods.find("lora+convpass").defaults()
    assert {"lora_dropout", "convpass_dropout", "rank", "bottleneck"} <= shared.keys()
    assert "dropout" not in shared
    for name, said in [
        ("lora+lora", "has a method twice"),
        ("hst+lst", "reads one side network, but hst and lst"),
        ("hst+lorra", "There is no method 'lorra'.* Did you mean 'lora'"),
        ("hst+", "There is no method ''"),
    ]:
        with pytest.raises(methods.RequestError, match=said):
            methods.find(name)
    with pytest.raises(methods.RequestError, match=r"has no option 'ranks'.* Did you mean 'rank'"):
        methods.create("hst+lora", ranks=4)
    with pytest.raises(methods.RequestError, match="cannot be 'w'"):
        methods.create("hst+lora", targets=("w",))


@pytest.mark.parametrize(
    ("name", "given", "place"),
    [
        ("lora+consolidator", {}, r"blocks\.0\.attn\.qkv and 11 places more"),
        ("bitfit+layernorm", {}, r"blocks\.0\.norm1\.bias and 24 places more"),
        ("convpass+adaptformer", {}, r"blocks\.0\.mlp and 11 places more"),
        ("hst+vpt", {"detached": False}, "tokens in block 0"),
    ],
)
def test_one_place_takes_one_method(name, given, place):
    with pytest.raises(methods.RequestError, match=f"Two of the methods want {place}"):
        catalogue.attached(name, catalogue.shape_of(catalogue.VIT_B16), **given)


def test_an_unknown_method_or_option_is_said_with_the_near_misses():
    with pytest.raises(
        methods.RequestError, match=r"'hts'.*fact, full, heart_lora, hst, layernorm.*Did you mean 'hst'"
    ):
        methods.create("hts")
    with pytest.raises(methods.RequestError, match=r"'width'.*widths, heads, .*Did you mean 'widths'"):
        methods.create("hst", width=3)
    with pytest.raises(methods.RequestError, match=r"'widths'; it has none|'widths'.*belongs to hst"):
        methods.create("linear", widths=(1, 2, 3, 4))
