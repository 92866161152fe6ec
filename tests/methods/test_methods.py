"""The behaviour matrix: what every method promises, on every kind of backbone, on square and other pictures.

A method that is added to `methods/` is found by itself, and so are the other forms that it names as its `variants`.
"""

import inspect
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from helpers_backbones import FAMILIES, GRIDS, random_backbone, random_images, vit_arguments
from helpers_methods import (
    CLASSES,
    VARIANTS,
    every_variant,
    header_of,
    model_of,
    refusal,
    shaken,
    steps,
    variant_id,
)
from safetensors import safe_open
from torch._subclasses.fake_tensor import FakeTensorMode

from vitgraft import methods
from vitgraft.adapters import file as adapter
from vitgraft.backbones import weights
from vitgraft.contacts import Contacts
from vitgraft.engine import cost
from vitgraft.method import Method
from vitgraft.model import build
from vitgraft.pages import catalogue

# Adapted features that do not start at the frozen ones, although the method only adds: (method -> why).
STARTS_ELSEWHERE = {
    "consolidator": "branches start within 1e-3 of zero (released code)",
    "sct": "W starts at a truncated normal of 0.02 (released code)",
    "ssf": "scale and shift start at a normal of 0.02 (released code)",
}
# Gradients that are zero by construction, whatever the tensors' values: (method -> pattern).
ZERO = {"hst": r"stages\.\d\.blocks\.\d+\.k\.bias"}  # it adds the same to the score of every key


@every_variant
def test_starts_where_the_backbone_is(variant, backbone, images):
    model = model_of(variant, backbone)
    plain, found = backbone(images), model.method.read(backbone, images)
    if set(model.method.contacts.kinds) <= {"tap"}:
        assert torch.equal(found.tokens, plain.tokens)
    only_adds = set(model.method.contacts.kinds) <= {"train", "weight", "branch"}
    if only_adds and type(model.method).features is Method.features and variant[0] not in STARTS_ELSEWHERE:
        features = model.method.features(backbone, images, found)
        torch.testing.assert_close(features.pooled, backbone.pool(plain.tokens))
        assert features.pooled.shape == (len(images), backbone.width)


@every_variant
def test_what_no_classifier_reads_need_not_be_computed(variant, backbone, images):
    """The last block for the pooled token alone, where there is one: the same answers and gradients."""
    model, images = shaken(model_of(variant, backbone)).double(), images.double()
    tensors = list(model.trained().values())
    short, whole = model.method.read(backbone, images, pooled_only=True), model.method.read(backbone, images)
    taken = short.tokens.shape[1] < whole.tokens.shape[1]
    assert taken == (backbone.pooling == "token" and backbone.depth - 1 not in model.method.contacts.taps)
    outcomes = []
    for read in (short, whole):
        answers = model(images, activations=read)
        grads = torch.autograd.grad(answers.square().sum(), tensors, allow_unused=True)
        outcomes.append([answers, *(torch.zeros(()) if g is None else g for g in grads)])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_variant
def test_features_have_their_declared_shapes(variant, backbone, images):
    model = model_of(variant, backbone)
    features = model.method.features(backbone, images, model.method.read(backbone, images))
    assert features.pooled.shape == (len(images), model.method.width)
    strides = [stride for stride, _ in features.maps]
    assert strides == sorted(strides)
    for stride, map_ in features.maps:
        assert len(map_) == len(images)
        assert map_.shape[2] == pytest.approx(images.shape[2] / stride, rel=1e-6)
        assert map_.shape[3] == pytest.approx(images.shape[3] / stride, abs=1)
    assert model(images).shape == (len(images), CLASSES)


@every_variant
def test_every_declared_tensor_trains_and_no_other(variant, backbone, images):
    model = shaken(model_of(variant, backbone))
    trained = model.trained()
    assert set(trained) == {n for n, _ in model.named_parameters() if not n.startswith("backbone.")}
    assert {n.partition(".")[0] for n in trained} <= {"method", "head"}
    assert set(trained) <= set(model.state()), "what trains is saved"
    sum(model(images, torch.arange(len(images))).values()).backward()  # in eval mode: no chance, no batch statistics
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if any(re.search(ZERO[one], name) for one in variant[0].split("+") if one in ZERO):
            assert parameter.grad.abs().max() < 1e-6, name
        else:
            assert parameter.grad.any(), f"{name} has no influence on the loss"
    assert all(p.grad is None for p in backbone.parameters())


@every_variant
def test_training_lowers_the_loss_and_leaves_the_backbone_alone(variant, backbone, images):
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    plain = backbone(images).tokens
    model = model_of(variant, backbone)
    start = {name: tensor.clone() for name, tensor in model.state().items()}
    losses = steps(model, images, 4, lr=5e-3)
    assert losses[-1] < losses[0]
    assert all(math.isfinite(loss) for loss in losses)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in model.state().items())
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())
    # Detached: without the method's contacts the backbone gives bitwise what it gave.
    assert torch.equal(backbone(images).tokens, plain)
    assert torch.equal(backbone(images, Contacts()).tokens, plain)


@every_variant
def test_two_adapters_on_one_backbone_do_not_see_each_other(variant, backbone, grid):
    images = random_images(backbone, grid)
    one, two = model_of(variant, backbone, seed=1), model_of(variant, backbone, seed=2)
    first, second = one(images), two(images)
    assert not torch.equal(first, second)
    steps(one, images)
    assert torch.equal(two(images), second)
    assert not torch.equal(one(images), first)
    trained = one(images)
    steps(two, images)
    assert torch.equal(one(images), trained)


@every_variant
def test_the_same_seed_makes_the_same_model_and_leaves_the_generator(variant, cls):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (model_of(variant, cls, seed).state() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


@every_variant
@pytest.mark.parametrize("family", ["cls", "dinov2"])
def test_bf16_stays_near_float32(variant, backbone, images):
    model = shaken(model_of(variant, backbone))
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            near = model(images).float()
    assert near.isfinite().all()
    assert (near - exact).norm() <= 0.05 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(model.train()(images, torch.arange(len(images))).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.trained().values())


@every_variant
@pytest.mark.parametrize(("family", "grid"), [("cls", "wide")], indirect=True)
def test_compiled_without_a_break(variant, backbone, images):
    torch.compiler.reset()
    model = shaken(model_of(variant, backbone))
    labels = torch.arange(len(images))
    expected = sum(model(images, labels).values())
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.trained().items()}
    model.zero_grad()
    loss = sum(torch.compile(model, backend="eager", fullgraph=True)(images, labels).values())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close({name: p.grad for name, p in model.trained().items()}, gradients)


@every_variant
@pytest.mark.parametrize(("family", "grid"), [("dinov2", "wide")], indirect=True)
def test_exported(variant, backbone, images):
    model = shaken(model_of(variant, backbone))
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        torch.testing.assert_close(program.module()(images), model(images))


# Saved, and loaded by another process

READ_ALL = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from vitgraft import Backbone, load_adapter

torch.set_num_threads(1)
folder = sys.argv[1]
answers = {}
for family, files in json.load(open(f"{folder}/what.json")).items():
    backbone = Backbone.load(f"{folder}/{family}.safetensors")
    images = load_file(f"{folder}/{family}.images")["images"]
    for file in files:
        with torch.no_grad():
            answers[file] = load_adapter(f"{folder}/{file}", backbone).model(images)
save_file(answers, f"{folder}/answers")
"""


@every_variant
@pytest.mark.parametrize("where", FAMILIES)
def test_it_attaches_or_says_why_not(variant, where):
    if reason := refusal(variant, where):
        with pytest.raises(methods.RequestError, match=reason):
            model_of(variant, random_backbone(where))
    else:
        assert model_of(variant, random_backbone(where)).method.ready


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Adapters of every variant on every backbone, exact and compact, and what a fresh process makes of them."""
    folder = tmp_path_factory.mktemp("saved")
    what: dict[str, list[str]] = {}
    expected = {}
    for family in FAMILIES:
        backbone = random_backbone(family)
        weights.save(
            backbone.vit,
            folder / f"{family}.safetensors",
            architecture=FAMILIES[family][0],
            source="random",
            model_args=vit_arguments(family),
        )
        images = random_images(backbone, GRIDS["wide"])
        adapter.write_bytes(folder / f"{family}.images", adapter.save({"images": images}))
        what[family] = []
        for variant in VARIANTS:
            if refusal(variant, family):
                continue
            model = shaken(model_of(variant, backbone))
            model.method.consolidate()
            for kind in ("exact", "compact"):
                tensors = model.state() if kind == "exact" else adapter.compact(model.state())
                file = f"{family} {variant_id(variant)} {kind}"
                adapter.write(folder / file, tensors, header_of(model))
                model.load_state(tensors)
                what[family].append(file)
                with torch.no_grad():
                    expected[file] = model(images)
    (folder / "what.json").write_text(json.dumps(what))
    subprocess.run([sys.executable, "-c", READ_ALL, str(folder)], check=True, timeout=300)
    with safe_open(folder / "answers", "pt") as file:
        answers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return folder, expected, answers


@every_variant
def test_saved_and_loaded_by_another_process_it_answers_the_same(variant, family, saved):
    _, expected, answers = saved
    for kind in ("exact", "compact"):
        name = f"{family} {variant_id(variant)} {kind}"
        assert torch.equal(answers[name], expected[name])
    assert not torch.equal(answers[name], answers[name.replace("compact", "exact")]), "it was rounded"


@every_variant
def test_the_file_holds_no_backbone(variant, family, saved):
    folder, _, _ = saved
    backbone = random_backbone(family)
    model = model_of(variant, backbone)
    model.method.consolidate()
    tensors, _ = adapter.read(folder / f"{family} {variant_id(variant)} exact")
    assert set(tensors) == set(model.state())
    assert all(name.startswith(("method.", "head.")) for name in tensors)
    ours = sum(t.numel() for t in model.state().values())
    assert sum(t.numel() for t in tensors.values()) == ours
    frozen = {t.numpy().tobytes() for n, t in backbone.tensors().items() if t.numel() > 1}
    assert not frozen & {t.numpy().tobytes() for t in tensors.values()}


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
    "adaptformer": lambda L, D, N: L * (2 * D * 8 + 8 + D),
    "bitfit": lambda L, D, N: 11 * L * D + 2 * D,
    "consolidator": lambda L, D, N: 12 * L * D**2 // (D // 2) + 9 * L * D,
    "consolidator split_qkv=True originals=()": lambda L, D, N: 12 * L * D**2 // (D // 2) + 9 * L * D,
    "convpass": lambda L, D, N: 2 * L * (17 * D + 9 * 64 + 16),
    "convpass sublayers=('attn',)": lambda L, D, N: L * (17 * D + 9 * 64 + 16),
    "fact": lambda L, D, N: 2 * D * 16 + 12 * L * 16**2,
    "fact form=tk scale=10.0": lambda L, D, N: 2 * D * 16 + 12 * L * 16 + 16**3,
    "full": lambda L, D, N: full_count(L, D, 16, N),
    "hst": lambda L, D, N: hst_count(L, D),
    "hst detached=True": lambda L, D, N: hst_count(L, D, detached=True),
    "layernorm": lambda L, D, N: 4 * L * D + 2 * D,
    "linear": lambda L, D, N: 0,
    "lora": lambda L, D, N: 4 * L * 8 * D,
    "lst": lambda L, D, N: (
        (L + 1) * (D + 1) * D // 8 + L * (12 * (D // 8) ** 2 + 13 * D // 8 + 1) + D // 4 + (D // 8 + 1) * D
    ),
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


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if "drop" in str(methods.find(v[0]).defaults())], ids=variant_id
)
def test_chance_is_for_training_alone(variant, cls):
    """Dropout and dropped branches change what training sees, and nothing else."""
    images = random_images(cls)
    name = next(a for a in methods.find(variant[0]).defaults() if "drop" in a)
    model = shaken(model_of((variant[0], {**variant[1], name: 0.5}), cls))
    assert torch.equal(model(images), model(images))
    plain = shaken(model_of((variant[0], {**variant[1], name: 0.0}), cls))
    torch.testing.assert_close(model(images), plain(images))
    assert not torch.allclose(model.train()(images), plain.train()(images))


class WholeTimm(torch.nn.Module):
    """timm's own model with every tensor trained."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit.requires_grad_(True).train()

    def forward(self, images, labels):
        return {"loss": torch.nn.functional.cross_entropy(self.vit(images), labels)}


@pytest.fixture(scope="module")
def kept_on_vit_b16():
    """Bytes kept for backward on ViT-B/16 at 224, batch 8, counted on tensors that have no memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # looks at numbers, of which none are
        patch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)  # torch cannot move such tensors
        shape = catalogue.shape_of(catalogue.VIT_B16)
        with FakeTensorMode():
            backbone = shape._apply(lambda tensor: torch.empty(tensor.shape))
            images, labels = torch.empty(8, 3, 224, 224), torch.zeros(8, dtype=torch.long)
            kept = {}
            for variant in VARIANTS:
                name, arguments = variant
                model = build(backbone, name, classes=CLASSES, **arguments).train()
                model.method.ready = True  # which channels are salient makes no difference
                kept[variant_id(variant)] = cost.kept_bytes(model, images, labels)
            kept["timm"] = cost.kept_bytes(WholeTimm(backbone.vit), images, labels)
            backbone.vit.requires_grad_(False).eval()
            return kept


@every_variant
def test_backward_keeps_no_more_than_the_budget(variant, kept_on_vit_b16):
    full = kept_on_vit_b16["timm"]
    assert 880 < full / 2**20 < 920
    assert kept_on_vit_b16[variant_id(variant)] <= methods.find(variant[0]).keeps * full


def test_a_method_beside_the_backbone_keeps_far_less(kept_on_vit_b16):
    assert kept_on_vit_b16["hst detached=True"] < 0.22 * kept_on_vit_b16["timm"]
    assert kept_on_vit_b16["linear"] < 0.001 * kept_on_vit_b16["timm"]


# Finding methods


def test_every_method_describes_itself():
    for row in catalogue.table():
        assert row["title"], row["name"]
        assert set(row["contacts"]) <= {"train", "weight", "branch", "tokens", "tap"}
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


@every_variant
def test_its_arguments_make_it_again(variant, cls):
    made = methods.create(variant[0], **variant[1])
    arguments = json.loads(json.dumps(made.arguments()))
    again = methods.create(variant[0], **arguments)
    assert again.arguments() == made.arguments()
    assert variant[1].items() <= made.arguments().items()


def test_an_unknown_method_or_option_is_said_with_the_near_misses():
    with pytest.raises(methods.RequestError, match=r"'hts'.*fact, full, hst, layernorm.*Did you mean 'hst'"):
        methods.create("hts")
    with pytest.raises(methods.RequestError, match=r"'width'.*widths, heads, .*Did you mean 'widths'"):
        methods.create("hst", width=3)
    with pytest.raises(methods.RequestError, match=r"'widths'; it has none|'widths'.*belongs to hst"):
        methods.create("linear", widths=(1, 2, 3, 4))
