"""EoMT: queries that enter the last blocks; outputs equal transformers' with the same weights."""

from __future__ import annotations

import pytest
import torch
from helpers_heads import objects
from transformers import EomtConfig, EomtForUniversalSegmentation

from vitgraft import build
from vitgraft.backbones import Backbone
from vitgraft.backbones.weights import Loaded
from vitgraft.common.errors import RequestError
from vitgraft.features import Features
from vitgraft.testing.backbones import random_backbone, random_vit
from vitgraft.testing.methods import shaken

CLASSES, QUERIES, BLOCKS, D = 3, 12, 2, 48
OPTIONS = {"queries": QUERIES, "blocks": BLOCKS}
SIZES = [(64, 64), (60, 40)]


def model_of(method="linear", task="segment", family="cls", **options):
    backbone = family if isinstance(family, Backbone) else random_backbone(family)
    return build(backbone, method, classes=CLASSES, task=task, head="eomt", head_options=OPTIONS | options)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def targets_of(model):
    if model.head.instances:
        return objects(Features(torch.zeros(2, D), [], (64, 64), SIZES))
    return torch.randint(CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def theirs_and_ours():
    """A random model of transformers, in float64, and ours with its tensors."""
    config = EomtConfig(
        hidden_size=D,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        num_blocks=BLOCKS,
        num_queries=QUERIES,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = EomtForUniversalSegmentation(config).double()
        for tensor in theirs.parameters():
            torch.nn.init.normal_(tensor, 0.02, 0.2)
    state = theirs.state_dict()
    vit = random_vit("dinov2", patch_size=16, img_size=64).double()
    own = {
        "cls_token": state["embeddings.cls_token"],
        "reg_token": state["embeddings.register_tokens"],
        "pos_embed": state["embeddings.position_embeddings.weight"][None],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    own |= {f"patch_embed.proj.{t}": state[f"embeddings.patch_embeddings.projection.{t}"] for t in ("weight", "bias")}
    for i in range(4):
        there, here = f"layers.{i}", f"blocks.{i}"
        for t in ("weight", "bias"):
            own[f"{here}.attn.qkv.{t}"] = torch.cat([state[f"{there}.attention.{r}_proj.{t}"] for r in "qkv"])
            own[f"{here}.attn.proj.{t}"] = state[f"{there}.attention.out_proj.{t}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                own[f"{here}.{name}.{t}"] = state[f"{there}.{name}.{t}"]
        for n in "12":
            own[f"{here}.ls{n}.gamma"] = state[f"{there}.layer_scale{n}.lambda1"]
    vit.load_state_dict(own)
    half = (0.5, 0.5, 0.5)
    backbone = Backbone.of(Loaded(vit, "vit", "random", "vit", half, half, "bicubic", (64, 64)))
    ours = model_of(family=backbone).double()
    head = {"queries": state["query.weight"]}
    for t in ("weight", "bias"):
        head[f"classify.{t}"] = state[f"class_predictor.{t}"]
        for k in range(3):
            head[f"embed.{2 * k}.{t}"] = state[f"mask_head.fc{k + 1}.{t}"]
        for k in range(2):
            block = f"upscale_block.block.{k}"
            head[f"upscale.{k}.0.{t}"] = state[f"{block}.conv1.{t}"]
            head[f"upscale.{k}.3.{t}"] = state[f"{block}.layernorm2d.{t}"]
            head[f"upscale.{k}.2.weight"] = state[f"{block}.conv2.weight"]
    ours.head.load_state_dict(head)
    return theirs, ours


def test_it_predicts_what_transformers_predicts(theirs_and_ours, images):
    theirs, ours = theirs_and_ours
    theirs.eval()
    theirs.attn_mask_probs.zero_()
    with torch.no_grad():
        expected = theirs(images.double())
        features = ours.eval().features(images.double())
        logits, masks = ours.head.predicted(features.queries, features.maps[-1][1])
    torch.testing.assert_close(logits, expected.class_queries_logits)
    torch.testing.assert_close(masks, expected.masks_queries_logits)


def test_in_training_its_queries_see_what_transformers_lets_them_see(theirs_and_ours, images, monkeypatch):
    """Every prediction, the later ones behind attention that the earlier ones masked."""
    theirs, ours = theirs_and_ours
    expected, predict = [], theirs.predict
    monkeypatch.setattr(theirs, "predict", lambda x: expected.append(predict(x)) or expected[-1])
    theirs.train()
    theirs.attn_mask_probs.fill_(1.0)
    theirs(images.double())
    found = []
    monkeypatch.setattr(ours.head, "told", lambda outcomes, features, targets: found.extend(outcomes) or {})
    ours.train().head.share = 0.0
    ours(images.double(), torch.zeros(2, 64, 64, dtype=torch.uint8))
    assert len(found) == len(expected) == BLOCKS + 1
    for (logits, masks), (their_masks, their_logits) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, their_logits)
        torch.testing.assert_close(masks, their_masks)
    theirs.attn_mask_probs.zero_()
    theirs.eval()
    with torch.no_grad():
        unmasked = theirs(images.double()).masks_queries_logits
    assert not torch.allclose(unmasked, found[-1][1]), "the masks are seen"


@pytest.mark.parametrize("family", ["cls", "dinov2", "dinov3", "eva02", "pe"])
@pytest.mark.parametrize("task", ["segment", "instance"])
@pytest.mark.parametrize("method", ["linear", "lora", "consolidator", "lora+layernorm"])
def test_queries_and_what_adapts_train_and_the_backbone_does_not(method, task, family, images):
    model = shaken(model_of(method, task, family)).train()
    before = {name: t.clone() for name, t in model.backbone.state_dict().items()}
    loss = sum(model(images, targets_of(model)).values())
    loss.backward()
    trained = model.trained()
    assert "head.queries" in trained
    assert not [name for name, p in trained.items() if p.grad is None]
    assert all(torch.equal(t, before[name]) for name, t in model.backbone.state_dict().items())
    assert model.method.crosses_backbone
    answers = model.eval()(images)
    assert len(answers) == 2
    model.method.consolidate()
    again = model(images)
    if task == "segment":
        torch.testing.assert_close(again, answers, rtol=1e-3, atol=1e-4)


def test_only_the_last_blocks_keep_something_for_backward(images):
    """Of a frozen backbone the blocks before those that queries enter are passed without autograd's memory."""
    model = model_of().train()
    seen = {}
    entering = model.method.contacts.entering

    def look(i, x, grid):
        seen[i] = x.requires_grad
        return None

    model.method.contacts.entering = dict.fromkeys((1, 2, 3), look) if entering else {}
    model.method.read(model.backbone, images)
    assert seen == {1: False, 2: True, 3: True}


def test_masks_end_block_after_block():
    """The authors' steps for four blocks, as shares: 2/15 to 4/15 of the first, 11/15 to 13/15 of the last."""
    head = model_of(blocks=4).head
    chances = []
    for share in (0, 2 / 15, 4 / 15, 5 / 15, 7 / 15, 11 / 15, 13 / 15, 1):
        head.share = share
        chances.append([round(head.chance(i), 6) for i in range(4)])
    assert chances == [[1, 1, 1, 1], [1, 1, 1, 1], *[[0, 1, 1, 1]] * 2, [0, 0, 1, 1], [0, 0, 0, 1], *[[0, 0, 0, 0]] * 2]
    head.share = 3 / 15
    assert head.chance(0) == pytest.approx(0.5**0.9)


def test_its_parameters_are_those_of_the_formula():
    K, M = CLASSES, QUERIES
    count = M * D + (D + 1) * (K + 1) + 3 * (D * D + D) + 2 * (4 * D * D + 12 * D)
    assert sum(p.numel() for p in model_of().head.parameters()) == count


def test_panoptic(images):
    model = shaken(model_of("lora", "panoptic", things=(0,))).eval()
    with torch.no_grad():
        assert [set(record) for record in model(images)] == [{"boxes", "labels", "scores", "masks"}] * 2


def test_what_cannot_be_is_refused():
    with pytest.raises(RequestError, match=r"last 5 blocks, but .* has 4"):
        model_of(blocks=5)
    with pytest.raises(RequestError, match="reads the last map of a backbone, but 4 came"):
        model_of("hst")
    with pytest.raises(RequestError, match="reads the last map of a backbone, but 4 came"):
        model_of(family="swin")
    with pytest.raises(RequestError, match=r"hst[+]lora adds maps of its own"):
        model_of("hst+lora")
    with pytest.raises(RequestError, match="tokens in block 2"):
        model_of("vpt")
