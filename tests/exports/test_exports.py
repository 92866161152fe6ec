"""A run in the forms of others answers as the run does: every method, every head, dynamic batches."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers_bank import write_adapter
from helpers_cli import call, make_backbone, make_pictures
from helpers_dense import object_set, segment_set
from PIL import Image
from safetensors.torch import load_file

import vitgraft
from vitgraft.backbones import Backbone
from vitgraft.common.errors import RequestError, WorkError
from vitgraft.exports.files import _difference, export
from vitgraft.exports.graph import Whole, as_graph, traced
from vitgraft.exports.peft import from_peft
from vitgraft.testing.backbones import FAMILIES, random_backbone
from vitgraft.testing.methods import VARIANTS, variant_id

onnxruntime = pytest.importorskip("onnxruntime")
ON_ONNX = [("hst", {}), ("convpass", {}), ("consolidator", {}), ("vpt", {})]


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "variant", [variant for variant in VARIANTS if not variant[1] and variant not in ON_ONNX], ids=variant_id
)
def test_every_method_is_one_graph_with_a_free_batch(variant, tmp_path):
    backbone = random_backbone("cls")
    whole = Whole(vitgraft.Run(write_adapter(tmp_path / "a", backbone, variant), backbone))
    ask = traced(whole, (whole.pixels(2),), free=True).module()
    for n in (1, 5):
        pixels = whole.pixels(n, seed=n)
        with torch.no_grad():
            assert torch.allclose(ask(pixels), whole(pixels), atol=1e-6)


@pytest.mark.parametrize("variant", ON_ONNX, ids=variant_id)
def test_methods_of_all_contacts_as_onnx(variant, tmp_path):
    backbone = random_backbone("cls")
    run = vitgraft.Run(write_adapter(tmp_path / "a", backbone, variant), backbone)
    before = {name: tensor.clone() for name, tensor in backbone.tensors().items()}
    told = export([run], tmp_path / "it.onnx", decode=True)
    assert told["relative"] < 1e-5
    assert told["merged"] == (run.adapter.model.method.mergeable and variant[0] != "linear")
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.tensors().items())
    ask = session(tmp_path / "it.onnx")
    assert json.loads(ask.get_modelmeta().custom_metadata_map["vitgraft"])["classes"] == list(run.classes)
    pixels = Whole(run).pixels(7, seed=3)
    (found,) = ask.run(["probabilities"], {"pixels": pixels.numpy()})
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]
    run.adapter.header["protocol"]["precision"] = "32"
    expected = [list(each.rows[0]["probabilities"].values()) for each in run.predict(pictures)]
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"cls"}))
def test_every_family_is_one_graph(family, tmp_path):
    backbone = random_backbone(family)
    whole = Whole(vitgraft.Run(write_adapter(tmp_path / "a", backbone, ("lora", {})), backbone))
    ask, pixels = traced(whole, (whole.pixels(2),), free=True).module(), whole.pixels(3)
    with torch.no_grad():
        assert torch.allclose(ask(pixels), whole(pixels), atol=1e-6)


def test_rotary_and_windows_as_onnx(tmp_path):
    for family in ("dinov3", "swinv2"):
        backbone = random_backbone(family)
        run = vitgraft.Run(write_adapter(tmp_path / family, backbone, ("lora", {})), backbone)
        assert export([run], tmp_path / f"{family}.onnx")["relative"] < 1e-4


def test_as_torch_export(tmp_path):
    backbone = random_backbone("cls")
    run = vitgraft.Run(write_adapter(tmp_path / "a", backbone, ("hst", {})), backbone)
    told = export([run], tmp_path / "it.pt2", format="torch-export")
    assert (told["relative"] < 1e-6, told["gives"], told["merged"]) == (True, ["logits"], False)
    module = torch.export.load(tmp_path / "it.pt2").module()
    pixels = Whole(run).pixels(9)
    with torch.no_grad():
        assert torch.allclose(module(pixels), Whole(run)(pixels), atol=1e-6)


def test_as_timm(tmp_path):
    backbone = random_backbone("cls")
    run = vitgraft.Run(write_adapter(tmp_path / "a", backbone, ("consolidator", {})), backbone)
    assert export([run], tmp_path / "it.safetensors", format="timm")["relative"] < 1e-4
    assert load_file(tmp_path / "it.safetensors").keys() > {"head.weight"}


def timm_model(backbone, classes):
    """timm's own, with a classifier of random numbers."""
    vit = copy.deepcopy(backbone.vit)
    backbone.put_head(vit, torch.nn.Linear(backbone.width, classes))
    return vit


@pytest.mark.parametrize("arguments", [{"alpha": 3.0}, {"targets": ("qkv", "proj", "fc1", "fc2"), "rank": 3}])
@pytest.mark.parametrize("family", ["cls", "eva02"])
def test_to_peft_and_back(arguments, family, tmp_path):
    peft = pytest.importorskip("peft")
    backbone = random_backbone(family)
    run = vitgraft.Run(write_adapter(tmp_path / "a", backbone, ("lora", arguments)), backbone)
    told = export([run], tmp_path / "folder", format="peft")
    assert told["relative"] < 1e-5
    base = timm_model(backbone, 5)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "folder")).eval()
    images = torch.randn(3, 3, *backbone.native.size)
    with torch.no_grad():
        assert torch.allclose(theirs(images), run.adapter.model(images), atol=1e-5)
    back = from_peft(tmp_path / "folder", backbone, tmp_path / "back.safetensors")
    assert back["classes"] == list(run.classes)
    again = vitgraft.Run(tmp_path / "back.safetensors", backbone)
    with torch.no_grad():
        # the adapter file holds float16 where that suffices
        assert torch.allclose(again.adapter.model(images), run.adapter.model(images), atol=5e-3)


def test_an_adapter_that_peft_alone_has_made(tmp_path):
    peft = pytest.importorskip("peft")
    backbone = random_backbone("cls")
    base = timm_model(backbone, 4)
    config = peft.LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["head"], init_lora_weights=False)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "theirs")
    from_peft(tmp_path / "theirs", backbone, tmp_path / "it.safetensors", classes=["a", "b", "c", "d"])
    run = vitgraft.Run(tmp_path / "it.safetensors", backbone)
    images = torch.randn(3, 3, *backbone.native.size)
    with torch.no_grad():
        assert torch.allclose(run.adapter.model(images), model(images), atol=5e-3)
    with pytest.raises(RequestError, match="3 class names came"):
        from_peft(tmp_path / "theirs", backbone, tmp_path / "other.safetensors", classes=["a", "b", "c"])
    with pytest.raises(RequestError, match="is no adapter of peft"):
        from_peft(tmp_path, backbone, tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    root = tmp_path_factory.mktemp("dense")
    backbone = make_backbone(root / "backbone.safetensors")
    data = {"segment": segment_set(root / "masks"), "detect": object_set(root / "objects")}
    data["instance"] = data["detect"]

    def fit(task, head, method="linear", **head_options):
        out = root / "runs" / f"{task}-{head}-{method}-{len(head_options)}"
        if not out.exists():
            vitgraft.fit(
                data[task], task=task, head=head, method=method, backbone=str(backbone), out=out, epochs=1,
                batch_size=2, image_size=64, workers=0, quiet=True, train_split="train", lr=1e-4,
                head_options=head_options,
            )  # fmt: skip
        return vitgraft.Run(out), data[task]

    return fit


@pytest.mark.parametrize(
    ("task", "head", "method"),
    [
        ("segment", "upernet", "linear"),
        ("segment", "query", "lora"),
        ("detect", "cascade", "lora"),
        ("instance", "mask", "linear"),
        ("instance", "query", "linear"),
        ("segment", "eomt", "lora"),
    ],
)
def test_dense_heads_as_onnx(dense, task, head, method, tmp_path):
    run, data = dense(task, head, method)
    split = "val" if task != "segment" else "train"
    told = export([run], tmp_path / "it.onnx", data=data, split_of_data=split)
    assert told["relative"] < 1e-3
    assert told["takes"][2][0] == ("batch" if task == "segment" else 1)
    if task == "segment":
        ask = session(tmp_path / "it.onnx")
        pixels = Whole(run).pixels(4)
        (found,) = ask.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            assert np.allclose(found, Whole(run)(pixels).numpy(), atol=1e-3)


def test_objects_that_are_sure_alike_come_either_way():
    names = ["boxes", "labels", "scores"]
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 40, 9], [0, 30, 9, 40]])
    theirs = [boxes, torch.tensor([1, 1, 2]), torch.tensor([0.5, 0.5, 0.2])]
    swapped = [each[[1, 0, 2]] for each in theirs]
    assert _difference([swapped], [theirs], names)["difference"] == 0
    for other in ([boxes + torch.tensor([1.0, 0, 0, 0]), *theirs[1:]], [boxes, torch.tensor([1, 2, 1]), theirs[2]]):
        with pytest.raises(WorkError, match="The graph's answers differ"):
            _difference([other], [theirs], names)


@pytest.mark.parametrize(("task", "head"), [("detect", "cascade"), ("instance", "mask")])
def test_a_picture_may_show_nothing(task, head, dense, tmp_path):
    run, data = dense(task, head, score_threshold=1.0)
    export([run], tmp_path / "it.onnx", data=data, split_of_data="val")
    found = session(tmp_path / "it.onnx").run(None, {"pixels": Whole(run).pixels(1).numpy()})
    assert [len(each) for each in found] == [0] * len(found)


def test_boxes_are_suppressed_and_pooled_as_torchvision_does(dense):
    run, _ = dense("detect", "faster", "linear")
    whole = Whole(run)
    pixels = whole.pixels(1)
    with torch.no_grad():
        expected = whole(pixels)
        with as_graph():
            found = whole(pixels)
    assert len(expected[0]) > 5
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_backbone_once_and_a_file_for_each_task(tmp_path):
    backbone = random_backbone("cls")
    variants = {"linear": ("linear", {}), "hst": ("hst", {"detached": True}), "lst": ("lst", {})}
    runs = [
        vitgraft.Run(write_adapter(tmp_path / f"{name}.safetensors", backbone, variant), backbone)
        for name, variant in variants.items()
    ]
    told = export(runs, tmp_path / "split", split=True, decode=True)
    assert told["difference"] < 1e-5
    half = session(tmp_path / "split" / "backbone.onnx")
    pixels = Whole(runs[0]).pixels(4)
    images = Whole(runs[0]).normalised(pixels)
    names = [output.name for output in half.get_outputs()]
    given = dict(zip(names, half.run(None, {"images": images.numpy()}), strict=True))
    for run, name in zip(runs, variants, strict=True):
        task = session(tmp_path / "split" / f"{name}.onnx")
        wanted = {entry.name for entry in task.get_inputs()}
        (found,) = task.run(None, {k: v for k, v in {"pixels": pixels.numpy(), **given}.items() if k in wanted})
        with torch.no_grad():
            assert np.allclose(found, Whole(run, decode=True)(pixels).numpy(), atol=1e-5)
    lora = vitgraft.Run(write_adapter(tmp_path / "lora.safetensors", backbone, ("lora", {})), backbone)
    with pytest.raises(RequestError, match="works inside the backbone"):
        export([lora], tmp_path / "other", split=True)
    assert not (tmp_path / "other").exists()


def test_int8_is_measured_before_and_after(tmp_path):
    data = make_pictures(tmp_path / "pictures", train=4, test=3)
    backbone = make_backbone(tmp_path / "backbone.safetensors")
    run = vitgraft.fit(data, method="lora", backbone=str(backbone), out=tmp_path / "run", epochs=2, quiet=True)
    told = export([run], tmp_path / "it.onnx", int8=True, data=data)
    assert told["float32"] == pytest.approx(run.evaluate(data).value, abs=0.12)
    assert 0 <= told["int8"] <= 1
    assert told["bytes"] < 0.6 * told["float32_bytes"]
    assert (tmp_path / "it.onnx").stat().st_size == told["bytes"]


def test_wrong_requests(tmp_path, refused):
    backbone = make_backbone(tmp_path / "backbone.safetensors")
    loaded = Backbone.load(str(backbone))
    run = write_adapter(tmp_path / "a.safetensors", loaded, ("hst", {}))
    here = ("--backbone", backbone)
    for words, said in (
        (("--format", "caffe"), "no format 'caffe': there are onnx"),
        (("--format", "timm", "--decode"), "--decode is of onnx and torch-export"),
        (("--format", "torch-export", "--split"), "--split is of onnx"),
        (("--int8",), "What int8 costs is measured"),
        ((run,), "2 runs came"),
        (("--out", tmp_path / "x.pt"), "end in .onnx"),
        (("--format", "timm", "--out", run), "exists already"),
        (("--format", "peft", "--out", tmp_path / "p"), "peft's format holds LoRA"),
    ):
        out = () if "--out" in words else ("--out", tmp_path / ("x.pt2" if "torch-export" in words else "x.onnx"))
        assert said in refused("export", run, *words, *out, *here)
    assert "name it with --backbone" in refused("import", tmp_path, "--out", tmp_path / "y.safetensors")


def test_the_commands(tmp_path, capsys):
    backbone = make_backbone(tmp_path / "backbone.safetensors")
    loaded = Backbone.load(str(backbone))
    run = write_adapter(tmp_path / "a.safetensors", loaded, ("lora", {}))
    assert call("export", run, "--backbone", backbone, "--out", tmp_path / "it.onnx") == 0
    assert "difference" in capsys.readouterr().out
    assert call("export", run, "--backbone", backbone, "--format", "peft", "--out", tmp_path / "p", "--json") == 0
    assert json.loads(capsys.readouterr().out)["method"] == "lora"
    assert call("import", tmp_path / "p", "--backbone", backbone, "--out", tmp_path / "back.safetensors") == 0
