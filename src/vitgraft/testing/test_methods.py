"""The behaviour matrix: what every method promises, on every kind of backbone, on square and other pictures.

A method that is added to `methods/` is found by itself, and so are the other forms that it names as its `variants`; of
one outside the package: `python -m vitgraft.testing FILE`.
"""

import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
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
from vitgraft.testing.backbones import FAMILIES, GRIDS, random_backbone, random_images, vit_arguments
from vitgraft.testing.methods import (
    CLASSES,
    TESTED,
    VARIANTS,
    every_variant,
    header_of,
    model_of,
    refusal,
    shaken,
    steps,
    variant_id,
)

# Gradients that are zero by construction, whatever the tensors' values: (method -> pattern).
ZERO = {"hst": r"stages\.\d\.blocks\.\d+\.k\.bias"}  # it adds the same to the score of every key


@every_variant
def test_starts_where_the_backbone_is(variant, backbone, images):
    model = model_of(variant, backbone)
    plain, found = backbone(images), model.method.read(backbone, images)
    if set(model.method.contacts.kinds) <= {"tap"}:
        assert torch.equal(found.tokens, plain.tokens)
    only_adds = set(model.method.contacts.kinds) <= {"train", "weight", "branch"}
    starts_here = not any(methods.find(one).starts_elsewhere for one in variant[0].split("+"))
    if only_adds and starts_here and type(model.method).features is Method.features:
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


# A form of each method, the one that adds most to the first; tracing takes seconds, and `test_exported` has the others.
@pytest.mark.parametrize("variant", VARIANTS if TESTED else list({v[0]: v for v in VARIANTS}.values()), ids=variant_id)
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
            whole: Any = WholeTimm(backbone.vit)
            kept["timm"] = cost.kept_bytes(whole, images, labels)
            backbone.vit.requires_grad_(False).eval()
            return kept


@every_variant
def test_backward_keeps_no_more_than_the_budget(variant, kept_on_vit_b16):
    full = kept_on_vit_b16["timm"]
    assert 880 < full / 2**20 < 920
    assert kept_on_vit_b16[variant_id(variant)] <= methods.find(variant[0]).keeps * full


@pytest.mark.skipif(bool(TESTED), reason="it is of methods of the package")
def test_a_method_beside_the_backbone_keeps_far_less(kept_on_vit_b16):
    assert kept_on_vit_b16["hst detached=True"] < 0.22 * kept_on_vit_b16["timm"]
    assert kept_on_vit_b16["linear"] < 0.001 * kept_on_vit_b16["timm"]


@every_variant
def test_its_arguments_make_it_again(variant, cls):
    made = methods.create(variant[0], **variant[1])
    arguments = json.loads(json.dumps(made.arguments()))
    again = methods.create(variant[0], **arguments)
    assert again.arguments() == made.arguments()
    assert variant[1].items() <= made.arguments().items()
