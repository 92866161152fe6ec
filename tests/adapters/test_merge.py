"""Merging: the same answers from timm's own model, the very bytes after it, and a file that timm alone loads.

Methods and their variants are found by themselves; one that cannot be merged has to say why.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers_cli import CLASSES, call, environment, fit
from PIL import Image
from safetensors.torch import load_file, save_file

import vitgraft
from vitgraft import Backbone, methods
from vitgraft.adapters import file as adapter
from vitgraft.adapters.merge import export, merge, unmerge
from vitgraft.backbones import stored, weights
from vitgraft.common.errors import RequestError, WorkError
from vitgraft.testing.backbones import FAMILIES, GRIDS, random_backbone, random_images, random_vit, vit_arguments
from vitgraft.testing.methods import every_variant, header_of, model_of, shaken


def model_for(variant, backbone):
    if needed := methods.find(variant[0]).needs:
        pytest.importorskip(needed)
    return shaken(model_of(variant, backbone))


def lora(backbone, **arguments):
    return shaken(model_of(("lora", arguments), backbone))


def bytes_of(backbone):
    return {name: tensor.numpy().tobytes() for name, tensor in backbone.tensors().items()}


def answers(model, images):
    with torch.no_grad():
        return model(images)


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# In Python


def gives_a_bias_without_a_place(model):
    """To a layer that has none; or to k, though q and v alone have one."""
    everywhere = not {*model.method.name().split("+")}.isdisjoint({"consolidator", "repadapter"})
    biases = [model.backbone.bias_names(path) for path in model.method.contacts.change_at]
    return any(not names or (everywhere and not all(names)) for names in biases) and (
        everywhere or model.method.name() == "sct"
    )


@every_variant
def test_a_method_merges_and_unmerges_or_says_why_not(variant, backbone):
    model = model_for(variant, backbone)
    if not model.method.mergeable:
        with pytest.raises(
            RequestError, match=f"{re.escape(variant[0])} cannot be merged: {model.method.obstacle}; use it"
        ):
            merge(model)
        return
    images = random_images(backbone, GRIDS["wide"])
    fingerprint, before, unmerged = backbone.fingerprint, bytes_of(backbone), answers(model, images)
    if gives_a_bias_without_a_place(model):
        with pytest.raises(
            RequestError, match=f"{re.escape(variant[0])} gives .* a bias, but this layer of .* has none"
        ):
            merge(model)
        return
    merged = merge(model, images, in_place=True)

    assert type(merged.vit) is type(backbone.vit)
    found = answers(merged.vit, images)
    assert error(found, unmerged) == pytest.approx(merged.relative, rel=1e-3, abs=1e-9)
    assert merged.relative < 1e-5 < merged.tolerance == 1e-4
    assert merged.difference == pytest.approx((found - unmerged).abs().max().item(), rel=1e-3)
    torch.testing.assert_close(answers(model, images), found)  # in place, without its contacts
    shapes = {name: tensor.shape for name, tensor in backbone.vit.state_dict().items()}
    assert {n: t.shape for n, t in merged.vit.state_dict().items()} == {
        **shapes,
        f"{head_of(backbone)}.weight": (unmerged.shape[1], backbone.width),
        f"{head_of(backbone)}.bias": (unmerged.shape[1],),
    }
    now = bytes_of(backbone)
    assert {name for name in before if now[name] != before[name]} == set(merged.changed)
    assert (backbone.fingerprint == fingerprint) == (not merged.changed) == (variant[0] == "linear")

    unmerge(model)
    assert bytes_of(backbone) == before
    assert backbone.fingerprint == fingerprint
    assert torch.equal(answers(model, images), unmerged)
    assert torch.equal(answers(merged.vit, images), found)


@every_variant
@pytest.mark.parametrize("family", ["clip"])
def test_in_float64_it_is_exact(variant, backbone):
    model = model_for(variant, backbone).double()
    if model.method.mergeable:
        before = bytes_of(backbone)
        images = random_images(backbone, GRIDS["wide"]).double()
        merged = merge(model, images)
        assert error(answers(merged.vit, images), answers(model, images)) < 1e-13 < merged.tolerance == 1e-10
        assert bytes_of(backbone) == before, "only a merge in place touches the backbone"


@pytest.mark.parametrize("variant", [("consolidator", form) for form in ({}, *methods.find("consolidator").variants)])
def test_consolidators_branches_merge_before_and_after_their_consolidation(variant, cls):
    model = model_for(variant, cls)
    first = merge(model)
    model.method.consolidate()
    second = merge(model)
    assert first.changed == second.changed
    torch.testing.assert_close(first.vit.state_dict(), second.vit.state_dict(), rtol=1e-6, atol=1e-8)


def test_what_did_not_change_is_shared_and_yet_apart(cls):
    model = lora(cls)
    before = bytes_of(cls)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    merged = merge(model.train())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert merged.changed == tuple(f"blocks.{i}.attn.qkv.weight" for i in range(4))
    own = cls.tensors()
    for name, tensor in merged.vit.named_parameters():
        assert not tensor.requires_grad
        if name in own:
            assert (tensor.data_ptr() == own[name].data_ptr()) == (name not in merged.changed)
    merged.vit.half()
    assert bytes_of(cls) == before
    assert {tensor.dtype for tensor in own.values()} == {torch.float32}


def test_a_merged_backbone_holds_one_method_at_a_time(cls):
    images = random_images(cls)
    model, other, probe = lora(cls), lora(cls, rank=2), model_of(("linear", {}), cls)
    merge(model, in_place=True)
    for refused in (
        lambda: merge(other),
        lambda: merge(model),
        lambda: merge(probe, in_place=True),
        lambda: other(images),
        lambda: probe(images),
        lambda: unmerge(other),
    ):
        with pytest.raises(RequestError, match=r"tiny cls.*unmerge|tiny cls, so nothing can be taken back"):
            refused()
    assert set(model.state()) == set(lora(random_backbone()).state())  # its tensors are still there
    unmerge(model)
    with pytest.raises(RequestError, match="nothing can be taken back"):
        unmerge(model)
    merge(other, in_place=True)
    unmerge(other)


def test_a_merge_that_changes_the_answers_is_refused(cls, monkeypatch):
    model = lora(cls)
    change = model.method.contacts.change_at["blocks.1.attn.qkv"]
    right = type(change).forward
    before = bytes_of(cls)
    for wrong in (1.01, float("nan")):
        monkeypatch.setattr(type(change), "forward", lambda *given, by=wrong: by * right(*given))
        with pytest.raises(WorkError, match=r"merged logits of lora differ .* 1e-04 is allowed.*use it unmerged"):
            merge(model, in_place=True)
        assert cls.merged is None
        assert bytes_of(cls) == before


def test_a_bias_that_the_layer_has_not_cannot_be_held():
    backbone = random_backbone(qkv_bias=False)
    assert merge(lora(backbone, targets=("qkv", "fc1"))).relative < 1e-5
    model = shaken(model_of(("repadapter", {}), backbone))
    with pytest.raises(RequestError, match=r"repadapter gives blocks\.0\.attn\.qkv a bias, but .* tiny cls has none"):
        merge(model)


def test_bfloat16_is_held_to_what_it_can(cls):
    merged = merge(lora(cls).bfloat16())
    assert {tensor.dtype for tensor in merged.vit.parameters()} == {torch.bfloat16}
    assert 0 < merged.relative < merged.tolerance < 0.1


def test_it_is_there_without_an_import_of_its_own():
    assert vitgraft.merge is merge


def head_of(backbone):
    """Where timm has the classifier."""
    return "head.fc" if len(backbone.stages) > 1 else "head"


# From the command line, for timm alone

# family, or timm's rarer settings -> the method, and the size of its pictures in patches: not the weights' own
EXPORTED = {
    "cls": ("lora", (2, 3), {}),
    "dinov2": ("ssf", (5, 3), {}),
    "siglip": ("bitfit", (4, 6), {}),
    "clip": ("repadapter", (3, 3), {}),
    "dinov3": ("ssf", (5, 3), {}),
    "eva02": ("lora", (3, 5), {}),
    "pe": ("consolidator", (2, 6), {}),
    "swin": ("consolidator", (12, 20), {}),
    "swinv2": ("bitfit", (20, 8), {}),
    "cls tokens": ("fact", (4, 4), {"global_pool": ""}),
    "cls mean": ("full", (3, 4), {"global_pool": "avg", "qk_norm": True, "img_size": (32, 64)}),
}

TIMM_ALONE = """
import json, sys
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
folder = sys.argv[1]
answers = {}
for name, lines in json.load(open(f"{folder}/lines.json")).items():
    exec("\\n".join(lines))
    with torch.no_grad():
        answers[f"{name} logits"] = model(load_file(f"{folder}/{name}.images")["images"])
    answers[f"{name} picture"] = transform(Image.open(f"{folder}/picture.png"))
save_file(answers, f"{folder}/answers")
assert "vitgraft" not in sys.modules
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file per family, written by `vitgraft merge`, with what the adapter says and what timm alone makes of it."""
    folder = tmp_path_factory.mktemp("exported")
    noise = np.random.default_rng(0).integers(0, 256, (71, 93, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    expected, lines = {}, {}
    for name, (method, grid, more) in EXPORTED.items():
        family = name.split()[0]
        weights.save(
            random_vit(family, **more),
            folder / f"{name} backbone.safetensors",
            architecture=FAMILIES[family][0],
            source="random",
            model_args=vit_arguments(family, **more),
        )
        backbone = Backbone.load(str(folder / f"{name} backbone.safetensors"))
        model = shaken(model_of((method, {}), backbone))
        model.method.consolidate()
        preprocess = backbone.preprocess(tuple(n * p for n, p in zip(grid, backbone.patch, strict=True)))
        header = {**header_of(model), "preprocess": preprocess.to_dict()}
        adapter.write(folder / f"{name} adapter.safetensors", model.state(), header)
        lines[name] = export(vitgraft.Run(folder / f"{name} adapter.safetensors"), folder / f"{name}.safetensors")[
            "python"
        ]
        images = random_images(backbone, grid)
        save_file({"images": images}, folder / f"{name}.images")
        expected[f"{name} logits"] = answers(model, images)
        expected[f"{name} picture"] = preprocess.normalise(preprocess.load(folder / "picture.png")[None])[0]
    (folder / "lines.json").write_text(json.dumps(lines))
    subprocess.run([sys.executable, "-c", TIMM_ALONE, str(folder)], check=True, timeout=300, env=environment())
    return folder, expected, load_file(folder / "answers")


@pytest.mark.parametrize("name", EXPORTED)
def test_timm_alone_loads_the_file_and_answers_the_same(name, exported):
    _, expected, found = exported
    assert error(found[f"{name} logits"], expected[f"{name} logits"]) < 1e-5
    torch.testing.assert_close(found[f"{name} picture"], expected[f"{name} picture"])


@pytest.mark.parametrize("name", EXPORTED)
def test_the_file_is_a_backbone_of_ours_too(name, exported):
    folder, expected, _ = exported
    backbone = Backbone.load(str(folder / f"{name}.safetensors"))
    assert backbone.native.size == Backbone.load(str(folder / f"{name} backbone.safetensors")).native.size
    tensors = load_file(folder / f"{name}.safetensors")
    with torch.no_grad():
        pooled = backbone.pool(backbone(load_file(folder / f"{name}.images")["images"]).tokens)
        logits = F.linear(pooled, *(tensors[f"{head_of(backbone)}.{kind}"] for kind in ("weight", "bias")))
    assert error(logits, expected[f"{name} logits"]) < 1e-5


@pytest.fixture(scope="module")
def run(ground, tmp_path_factory):
    size = ("--image-size", 24, 40)  # the weights' own is 32 x 32
    exact = ("--precision", 32)  # what timm answers is held to what the run answers
    return fit(ground, tmp_path_factory.mktemp("runs") / "lora", "--method", "lora", *size, *exact, "--epochs", 1)


def said(capsys, code, *words):
    capsys.readouterr()
    assert call(*words) == code
    out, err = capsys.readouterr()
    assert (out == "") == (code != 0)
    assert err == "" if code == 0 else err.count("\n") == 1
    return out or err


def test_a_run_becomes_one_file_that_says_what_it_knows(run, ground, tmp_path, capsys):
    file = tmp_path / "new" / "model.safetensors"
    out = said(capsys, 0, "merge", run, "--out", file)
    about, _, lines = out.partition("\n\nIn Python, without vitgraft:\n\n")
    assert [line.split()[0] for line in about.splitlines()] == ["method", "merged", "check", "merged", "file"]
    assert "4 of 54 tensors, and a head of 3" in about
    assert "1e-04 allowed" in about
    assert "on 4 random pictures of 24 x 40" in about
    assert f"{file}, {file.stat().st_size:,} bytes" in about
    assert os.listdir(file.parent) == [file.name]

    known = {}
    exec(lines, known)
    pictures = [ground.easy / "test" / kind / "0.png" for kind in CLASSES]
    rows = json.loads(said(capsys, 0, "predict", run, *pictures, "--json"))
    images = torch.stack([known["transform"](Image.open(picture).convert("RGB")) for picture in pictures])
    assert images.shape == (3, 3, 24, 40)
    expected = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(answers(known["model"], images).softmax(1), expected, rtol=1e-4, atol=1e-6)
    assert stored.read(file).facts.keys() == {"architecture", "model_args", "pretrained_cfg", "source", "license"}
    shown = json.loads(stored.read(file).facts["pretrained_cfg"])
    assert shown["label_names"] == list(CLASSES)
    assert shown["input_size"] == [3, 24, 40]
    plain = timm.create_model(
        "vit_tiny_patch16_224", **json.loads(stored.read(file).facts["model_args"]), checkpoint_path=file
    )
    assert torch.equal(plain.head.weight, known["model"].head.weight)


def test_as_json_with_another_name_of_the_backbone(run, ground, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    found = json.loads(said(capsys, 0, "merge", run, "--out", file, "--backbone", ground.backbone, "--json"))
    assert (found["file"], found["bytes"]) == (str(file), file.stat().st_size)
    assert (found["method"], found["classes"], found["tensors"]) == ("lora", list(CLASSES), 54)
    assert found["changed"] == [f"blocks.{i}.attn.qkv.weight" for i in range(4)]
    assert 0 < found["relative"] < found["tolerance"]


def test_a_file_that_exists_is_left_alone(run, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"mine")
    assert "exists already: choose another --out" in said(capsys, 2, "merge", run, "--out", file)
    assert file.read_bytes() == b"mine"


def test_bad_requests_are_said_and_leave_nothing(run, ground, tmp_path, capsys):
    backbone = Backbone.load(str(ground.backbone))
    unmergeable = tmp_path / "adapter.safetensors"
    model = model_of(("hst", {}), backbone)
    adapter.write(unmergeable, model.state(), header_of(model))
    (tmp_path / "a file").touch()
    for words, answer in {
        (unmergeable, "--out", tmp_path / "m.safetensors"): f"hst cannot be merged: {model.method.obstacle}; use it",
        (run, "--out", tmp_path / "m.pth"): "m.pth was to be written, but timm tells a safetensors file",
        (run, "--out", tmp_path / "a file" / "m.safetensors"): "a file is a file: choose another --out",
        (tmp_path / "none", "--out", tmp_path / "m.safetensors"): "There is no run",
        (run,): "--out",
    }.items():
        assert answer in said(capsys, 2, "merge", *words)
    assert sorted(os.listdir(tmp_path)) == ["a file", "adapter.safetensors"]


def test_a_disk_that_fills_up_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", half)
    answer = said(capsys, 1, "merge", run, "--out", tmp_path / "model.safetensors")
    assert "could not be written (No space left on device)" in answer
    assert not os.listdir(tmp_path)


def test_every_family_is_exported():
    assert {name.split()[0] for name in EXPORTED} == set(FAMILIES)
