"""A checkpoint of the authors' released code gives the numbers that their code gave (float64, tests/golden)."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vitgraft.adapters import reference
from vitgraft.adapters.authors import READERS, pooled
from vitgraft.common.errors import RequestError
from vitgraft.methods.e2vpt import chosen, piece_gradients
from vitgraft.methods.sct import class_aware_scores

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
SWIN = [name for name in FILES if "swin" in name]
ANSWERED = [name for name in FILES if name != "ett"]  # its numbers are those of an episode: see there
every_file = pytest.mark.parametrize("name", FILES)
every_answered = pytest.mark.parametrize("name", ANSWERED)
every_sct = pytest.mark.parametrize("name", [name for name in FILES if name.startswith("sct")])
every_consolidator = pytest.mark.parametrize("name", [name for name in FILES if name.startswith("consolidator")])


@cache
def read(name):
    """{"weight", "in", "out", "grad"} -> their tensors by name, and the file's metadata."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    parts: dict[str, dict[str, Any]] = {"weight": {}, "in": {}, "out": {}, "grad": {}}
    for key, tensor in found.items():
        kind, _, rest = key.partition(".")
        parts[kind][rest] = tensor.double() if tensor.is_floating_point() else tensor
    return parts, facts


def settings(name):
    """What the tensors of this file don't tell."""
    parts, facts = read(name)
    if name.startswith("convpass"):
        return {"scale": float(facts["scale"])}
    if name.startswith("consolidator"):
        return {"reorder": facts["shuffle"] == "True"}
    if name.startswith("bapat"):
        return {
            "scale": float(facts["patt_scale"]),
            "where": facts["mode"].removeprefix("patt_"),
            "mlp_scale": float(facts["mlp_scale"]),
        }
    if name == "ett":
        return {"support": (parts["in"]["image"], parts["in"]["label"])}
    if not name.startswith("sct"):
        return {}
    found = {key.removeprefix("index."): t for key, t in parts["out"].items() if key.startswith("index.")}
    if facts["mode"] == "sct_qkv":
        return {"mode": "qkv", "indices": [{part: found[f"{i}.{part}"] for part in "qv"} for i in range(3)]}
    return {"mode": facts["mode"].removeprefix("sct_"), "indices": [found[str(i)] for i in range(3)]}


def load(name, tensors=None, **changes):
    tensors = read(name)[0]["weight"] if tensors is None else tensors
    return reference.load(name.partition("_")[0], tensors, num_heads=4, **{**settings(name), **changes})


@cache
def model_of(name):
    """For the tests that leave its tensors as they are."""
    return load(name)


def near(ours, theirs, by=1e-9):
    """Relative to the tensor's own size, yet fair to elements that nearly cancel."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).abs().max() <= by * theirs.abs().max()


# What the authors' code gave


@every_answered
def test_logits_and_loss(name):
    parts, model = read(name)[0], model_of(name)
    images, labels = parts["in"]["image"], parts["in"]["label"]
    with torch.no_grad():
        near(model(images), parts["out"]["logits"])
        near(model(images, labels)["cross_entropy"], parts["out"]["loss"])


@every_answered
def test_gradients(name):
    parts, model = read(name)[0], model_of(name)
    model.zero_grad()
    model(parts["in"]["image"], parts["in"]["label"])["cross_entropy"].backward()
    ours = {theirs: name for name, theirs in reference.names(model).items()}
    gradients = READERS[model.method.name()].convert({k: t for k, t in parts["grad"].items() if "_mask_" not in k})
    ones = {key: torch.ones_like(t) for key, t in parts["weight"].items()}
    kept = READERS[model.method.name()].convert(ones | masks(name))
    assert len(gradients) >= 3
    for theirs, gradient in gradients.items():
        assert gradient.any()
        found = model.trained()[ours[theirs]].grad
        if theirs.startswith("inputs."):  # what is masked is zero to them, and a number like any to us
            found = found * kept[theirs]
        near(found, gradient.view_as(found))  # a convolution with a kernel of 1 has one dimension more


def masks(name):
    return {key: t for key, t in read(name)[0]["weight"].items() if "_mask_" in key}


def test_stages_and_the_pooled_vector_of_hst():
    parts, model = read("hst")[0], model_of("hst")
    images = parts["in"]["image"]
    with torch.no_grad():
        features = model.method.features(model.backbone, images, model.method.read(model.backbone, images))
        for stage, (_, map_) in enumerate(features.maps, 1):
            near(map_.flatten(2).mT, parts["out"][f"stage{stage}"])
        last = features.maps[-1][1].mean((2, 3))
        near(last, parts["out"]["pooled"])
        near(features.pooled, model.method.pooled_norm(parts["out"]["pooled"]))


@pytest.mark.parametrize("name", SWIN)
def test_stages_and_the_pooled_vector_of_swin(name):
    parts, model = read(name)[0], model_of(name)
    backbone, contacts = model.backbone, model.method.contacts
    with torch.no_grad():
        if "pooled" in parts["out"]:
            near(backbone.pool(backbone(parts["in"]["image"], contacts).tokens), parts["out"]["pooled"])
        if "stage0" in parts["out"]:
            for stage, blocks in enumerate(backbone.stages):
                contacts.taps[blocks[-1]] = False
                near(backbone(parts["in"]["image"], contacts).taps[blocks[-1]], parts["out"][f"stage{stage}"])
            contacts.taps.clear()


def test_an_episode_of_ett():
    """The prototypes, keys and values, six steps, and what the queries are then."""
    parts, facts = read("ett")
    model, out, (images, labels) = load("ett"), parts["out"], settings("ett")["support"]
    method, steps = model.method, range(int(facts["steps"]))
    prefix = torch.stack([torch.stack(method.contacts.prefixes[f"blocks.{i}.attn"]()) for i in range(3)])
    near(prefix.detach(), out["prefix"])
    near(pooled(model, images), out["features.support"])  # the transform is the identity yet

    method.calibrate(model.backbone, [(images, labels)])
    near(method.prototypes.detach(), out["prototypes"])
    method.start(parts["weight"]["prefix_weight"])  # the same, rounded as the file has it

    method.train()
    rest = [p for p in method.parameters() if p is not method.T]
    groups = [{"params": [method.T], "lr": float(facts["lr"])}, {"params": rest, "lr": float(facts["lr"]) / 2}]
    optimiser = torch.optim.AdamW(groups, eps=1e-4, weight_decay=0.01)
    names = reference.names(model)
    for step in steps:
        losses = model(images, labels)
        loss = sum(losses.values())
        near(loss.detach(), out[f"loss.{step}"])
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            near(losses["cross_entropy"].detach(), out["loss.prototype"])
            near(losses["prototypes"].detach(), method.regulariser * out["loss.regulariser"])
            found = {names[name]: p.grad for name, p in model.named_parameters() if name in names}
            for theirs, gradient in parts["grad"].items():
                near(found[theirs], gradient)
        optimiser.step()
    method.eval()
    model.head.take(pooled(model, images), labels)
    with torch.no_grad():
        near(model(parts["in"]["query_image"]), out["logits"])
        consolidated = model.method
        consolidated.consolidate()
        near(model(parts["in"]["query_image"]), out["logits"])
    loss = torch.nn.functional.cross_entropy(out["logits"], parts["in"]["query_label"])
    near(loss, out["loss"])


def test_scores_and_pruning_of_e2vpt():
    parts, model = read("e2vpt")[0], load("e2vpt")
    out, Q = parts["out"], 16
    pictures = list(zip(parts["in"]["score_images"], parts["in"]["score_labels"], strict=True))
    labels = list(range(5))
    found = piece_gradients(model.method, model.head.fc, model.backbone, pictures, labels)
    near(found, out["score.piece"])
    near(found.sum(1), out["score.token"], by=1e-6)  # pieces cancel: a prompt is seen through a LayerNorm alone
    for n in (1, 3, 4, 6, 8, 9, 11, 12):
        kept = chosen(found, 5, Q - n, "released")
        assert torch.equal(kept, out[f"keep.piece.{n}"].bool())
    for n in range(5):
        kept = chosen(out["score.token"][:, None].expand(-1, Q) / Q, 5 - n, Q, "released")
        assert torch.equal(kept.any(1), out[f"keep.token.{n}"].bool())


@every_sct
def test_scores_and_indices_of_sct(name):
    parts, model = read(name)[0], load(name)
    method = model.method
    chosen = [{part: salient.indices.clone() for part, salient in parts.items()} for parts in method.salient]
    pictures = list(
        zip(parts["in"]["selection_images"].split(7), parts["in"]["selection_labels"].split(7), strict=True)
    )
    for i, score in enumerate(class_aware_scores(model.backbone, method.mode, pictures)):
        q_k_v = parts["out"][f"score.{i}"].chunk(3)
        near(score, torch.cat([q_k_v[0], q_k_v[2]]) if method.mode == "qkv" else parts["out"][f"score.{i}"])
    for salient in (salient for parts in method.salient for salient in parts.values()):
        salient.indices.zero_()
    method.calibrate(model.backbone, pictures)
    for parts, expected in zip(method.salient, chosen, strict=True):
        for part, salient in parts.items():
            assert torch.equal(salient.indices, expected[part])


@every_consolidator
def test_merged_weights_of_consolidator(name):
    out, model = read(name)[0]["out"], model_of(name)
    merged = {key.removeprefix("merged."): tensor for key, tensor in out.items() if key.startswith("merged.")}
    assert len(merged) == 4
    for key, tensor in merged.items():
        path, _, leaf = key.rpartition(".")
        layer = model.backbone.linear(path)
        assert not torch.equal(getattr(layer, leaf), tensor)
        with torch.no_grad():
            near(model.method.contacts.tensors(path, layer)[leaf], tensor, by=1e-5)  # theirs were taken in float32


@every_consolidator
def test_the_stored_form_of_consolidator_gives_the_same_logits(name):
    parts, model = read(name)[0], load(name)
    model.method.consolidate()
    with torch.no_grad():
        near(model(parts["in"]["image"]), parts["out"]["logits"])


# Which tensor becomes what


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hst", {"widths": (32, 48, 64, 72), "heads": (2, 4, 8, 12), "mlp_ratio": 4, "meta_tokens": 1}),
        ("convpass", {"sublayers": ("attn", "mlp"), "bottleneck": 8, "scale": 0.1}),
        ("convpass_attn", {"sublayers": ("attn",), "bottleneck": 8, "scale": 1.0}),
        ("convpass_swin", {"sublayers": ("attn", "mlp"), "bottleneck": 8, "scale": 0.5}),
        ("convpass_swin_attn", {"sublayers": ("attn",), "bottleneck": 8, "scale": 2.0}),
        ("sct_attn", {"mode": "attn", "channels": 6}),
        ("sct_mlp", {"mode": "mlp", "channels": 6}),
        ("sct_qkv", {"mode": "qkv", "channels": 6}),
        ("consolidator", {"groups": (24,), "reorder": False, "originals": ("bias", "norm")}),
        ("consolidator_reorder", {"groups": (6, 12), "reorder": True, "originals": ("bias", "norm")}),
        ("e2vpt", {"prompts": 5, "key_value": 3}),
        ("e2vpt_separate", {"prompts": 3, "key_value": 2, "shared": False}),
        ("bapat_swin", {"rank": 6, "mlp_rank": 5}),
        ("bapat_swin_qkv", {"rank": 6, "mlp_rank": 5, "where": "qkv", "scale": 0.5}),
        ("ett", {"hidden": 24}),
    ],
)
def test_sizes_come_from_the_tensors(name, arguments):
    model, facts = model_of(name), read(name)[1]
    backbone = model.backbone
    if name in SWIN:
        assert [(b.width, b.heads) for b in backbone.blocks] == [(32, 2), (32, 2), (64, 4), (64, 4)]
        assert (backbone.patch, backbone.native.size) == ((4, 4), (32, 32))
    else:
        p = int(facts.get("patch", 16))
        assert (backbone.depth, backbone.width, backbone.patch) == (12 if name == "hst" else 3, 48, (p, p))
        assert backbone.native.size == (4 * p, 4 * p)
    assert model.method.arguments() == {**model.method.defaults(), **arguments}
    assert model.method.ready
    assert not model.training
    if "trainable" in facts:
        assert sum(p.numel() for p in model.trained().values()) == int(facts["trainable"])


@every_file
def test_every_tensor_of_theirs_is_used_once(name):
    model = model_of(name)
    ours = list(reference.names(model).values())
    assert len(set(ours)) == len(ours)
    rename = READERS[model.method.name()].rename
    backbone = {rename(tensor, model.backbone.depth) for tensor in model.backbone.vit.state_dict()}
    theirs = READERS[model.method.name()].convert(read(name)[0]["weight"])
    left = set(theirs) - set(ours) - backbone
    assert not {tensor for tensor in left if not tensor.endswith("num_batches_tracked")}


@every_file
def test_the_model_that_comes_is_ours_to_save(name):
    """Nothing of it depends on the checkpoint that was handed in."""
    tensors = read(name)[0]["weight"]
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    with torch.no_grad():
        for tensor in load(name).state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("convpass", {"scale": 0.2}),
        ("sct_attn", {"indices": torch.arange(18).view(3, 6)}),
        ("consolidator_reorder", {"reorder": False}),
    ],
)
def test_the_settings_matter(name, changes):
    """So the golden numbers do tell whether the settings arrive."""
    parts = read(name)[0]
    with torch.no_grad():
        logits = load(name, **changes)(parts["in"]["image"])
    assert (logits - parts["out"]["logits"]).abs().max() > 1e-3


# What cannot be read


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("hst", "pos_embed"),
        ("hst", "cls_token"),
        ("hst", "patch_embed.proj.weight"),
        ("hst", "blocks.0.mlp.fc1.weight"),
        ("hst", "blocks.11.attn.qkv.bias"),
        ("hst", "blocks.3.norm1.weight"),
        ("hst", "norm.bias"),
        ("hst", "head.weight"),
        ("hst", "head.bias"),
        ("hst", "m_embeddings.0"),
        ("hst", "m_embeddings.7"),
        ("hst", "T_Bridge_1.weight"),
        ("hst", "T_Bridge_4.weight"),
        ("hst", "T_Bridge_2.bias"),
        ("hst", "m_block1.0.mlp.fc1.weight"),
        ("hst", "m_block3.2.attn.q.bias"),
        ("hst", "m_proj_norm12.weight"),
        ("hst", "m_patch_embed1.conv.1.running_var"),
        ("hst", "m_patch_embed3.proj.weight"),
        ("hst", "m_norm2.weight"),
        ("hst", "fc_norm.running_mean"),
        ("convpass", "head.weight"),
        ("convpass", "blocks.0.adapter_attn.adapter_down.weight"),
        ("convpass", "blocks.2.adapter_mlp.adapter_conv.bias"),
        ("convpass_attn", "blocks.1.adapter_attn.adapter_up.weight"),
        ("convpass_swin", "layers.1.blocks.0.attn.relative_position_bias_table"),
        ("convpass_swin", "layers.0.downsample.reduction.weight"),
        ("convpass_swin", "layers.1.blocks.1.adapter_attn.adapter_up.weight"),
        ("sct_attn", "blocks.0.sct_attn.adapt_linear.weight"),
        ("sct_mlp", "blocks.2.sct_mlp.adapt_linear.bias"),
        ("sct_qkv", "blocks.0.attn.q_l.weight"),
        ("sct_qkv", "blocks.1.attn.v_l.weight"),
        ("consolidator", "blocks.0.mlp.fc1.fc_origin.weight"),
        ("consolidator", "blocks.1.attn.proj.fc_origin.bias"),
        ("consolidator", "blocks.0.attn.qkv.fc_rep_branches.0.group_fc.weight"),
        ("consolidator_reorder", "blocks.0.attn.qkv.fc_rep_branches.1.group_fc.weight"),
        ("consolidator_reorder", "blocks.2.mlp.fc2.fc_rep_branches.1.group_fc.bias"),
    ],
)
def test_a_missing_tensor_is_named(file, name):
    tensors = dict(read(file)[0]["weight"])
    del tensors[name]
    with pytest.raises(RequestError, match=f"'{name}' is missing"):
        load(file, tensors)


@every_file
def test_a_tensor_of_another_shape_is_named(name):
    tensors, one = dict(read(name)[0]["weight"]), "control_trans.2.bias" if name == "ett" else "head.bias"
    tensors[one] = tensors[one][:4]
    with pytest.raises(RequestError, match=rf"'{one}' .* is \[4\], but the others call for \[\d+\]"):
        load(name, tensors)


def test_an_episode_without_pictures_and_parts_that_do_not_fit():
    with pytest.raises(RequestError, match=r"ett .* none came: give support="):
        load("ett", support=None)
    with pytest.raises(RequestError, match=r"adds to 2 of q, k and v, but where='qkv' came"):
        load("bapat_swin", where="qkv")


@every_file
def test_a_checkpoint_of_another_method(name):
    theirs = name.partition("_")[0]
    for method in READERS.keys() - {theirs}:
        with pytest.raises(RequestError, match=rf"^{method} was asked for.* a checkpoint of {theirs}: .*load it as"):
            reference.load(method, read(name)[0]["weight"], num_heads=4)


@pytest.mark.parametrize("method", READERS)
def test_a_checkpoint_of_no_known_method(method):
    tensors = model_of("convpass").backbone.vit.state_dict()
    for given in ({}, tensors, {**tensors, "head.weight": torch.zeros(5, 48)}):
        with pytest.raises(RequestError, match=f"no whole checkpoint of {method}: '.*' is missing"):
            reference.load(method, given, num_heads=4, **({"scale": 1.0} if method == "convpass" else {}))


def test_what_is_no_known_method():
    with pytest.raises(
        RequestError,
        match=r"'hts'.*there is hst, convpass, sct, consolidator, apt, bapat, e2vpt, ett;.*Did you mean 'hst'",
    ):
        reference.load("hts", read("hst")[0]["weight"], num_heads=4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hst", {"heads": (3, 4, 8, 12)}, "width 32 cannot be split into 3 heads"),
        ("hst", {"head": (2, 4, 8, 12)}, "hst has no setting 'head': it has heads; .*Did you mean 'heads'"),
        ("convpass", {"scale": None}, "don't tell its scale.*give scale="),
        ("convpass", {"scale": 0}, "scale of convpass is 0, but must be above 0"),
        ("convpass", {"reorder": True}, "convpass has no setting 'reorder': it has scale; leave it out"),
        ("sct_attn", {"mode": "mlp"}, "mode='mlp' came.* of mode 'attn'.*give mode='attn'"),
        ("sct_mlp", {"mode": "attn"}, "mode='attn' came.* of mode 'mlp'.*give mode='mlp'"),
        ("sct_qkv", {"mode": "qvk"}, "mode='qvk' came.* of mode 'qkv'.*give mode='qkv'"),
        ("sct_attn", {"scale": 1.0}, "sct has no setting 'scale': it has mode, indices"),
        ("consolidator", {"groups": (24,)}, "consolidator has no setting 'groups': it has reorder"),
    ],
)
def test_a_setting_that_is_wrong_or_missing(name, changes, message):
    with pytest.raises(RequestError, match=message):
        load(name, **changes)


SIX = torch.arange(6)


@pytest.mark.parametrize(
    ("name", "indices", "message"),
    [
        ("sct_attn", None, "indices of no blocks came.*each of its 3 blocks"),
        ("sct_attn", [SIX, SIX], "indices of 2 blocks came.*each of its 3 blocks"),
        ("sct_attn", SIX, "indices of 6 blocks came.*each of its 3 blocks"),
        ("sct_attn", [SIX, SIX[:5], SIX], r"block 1 hold 5 numbers.*6 different channels from 0 to 47"),
        ("sct_attn", [SIX, SIX, SIX + 43], "block 2 hold channel 48,"),
        ("sct_attn", [SIX - 1, SIX, SIX], "block 0 hold channel -1,"),
        ("sct_attn", [[0, 1, 2, 3, 4, 1], SIX, SIX], "block 0 hold channel 1 twice,"),
        ("sct_attn", [SIX.double(), SIX, SIX], "block 0 hold something else than whole numbers"),
        ("sct_attn", [SIX[None], SIX, SIX], "block 0 hold something else than whole numbers"),
        ("sct_attn", [None, SIX, SIX], "block 0 hold something else than whole numbers"),
        ("sct_attn", [{"q": SIX, "v": SIX}] * 3, "block 0 came as 'q' and 'v', but mode 'attn' .*give one tensor"),
        ("sct_qkv", [SIX] * 3, r"block 0 came as one tensor, but mode 'qkv' .*give \{'q': \.\.\., 'v': \.\.\.\}"),
        ("sct_qkv", [{"q": SIX, "k": SIX}] * 3, "block 0 came as 'q' and 'k', but"),
        ("sct_qkv", [{"q": SIX, "v": SIX + 48}] * 3, "block 0 hold channel 48,"),
    ],
)
def test_indices_of_sct_that_are_wrong_or_missing(name, indices, message):
    with pytest.raises(RequestError, match=message):
        load(name, indices=indices)


@pytest.mark.parametrize("heads", [5, 0])
def test_a_number_of_heads_that_does_not_divide(heads):
    with pytest.raises(RequestError, match=f"width 48 cannot be split into num_heads={heads}"):
        reference.load("sct", read("sct_attn")[0]["weight"], num_heads=heads, **settings("sct_attn"))
