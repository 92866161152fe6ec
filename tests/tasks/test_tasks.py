"""Every method with every dense head, and the commands on tiny data sets of the dense tasks."""

import json
import os

import numpy as np
import pytest
import torch
from helpers_cli import adapter_of, call, free_port, metrics_of, result_of, same, start
from helpers_dense_fits import CLASSES, DATA, SMALL, make_dense_ground, words_of
from PIL import Image
from torch import nn

from vitgraft import heads, methods, tasks
from vitgraft.adapters import file as adapter
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import WHOLE, Settings
from vitgraft.data import Preprocess
from vitgraft.data.segmentations import sample
from vitgraft.engine import devices
from vitgraft.model import build
from vitgraft.tasks.segment import highest
from vitgraft.testing.backbones import random_backbone

DENSE = [(task, head) for task in tasks.names() if task not in WHOLE for head in heads.names(task)]
SIZE = (64, 96)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone("dinov2")  # whose patches are not those that dense pictures have


def method_names():
    return [name for name in methods.names() if not methods.find(name).missing()]


def targets_of(task):
    generator = torch.Generator().manual_seed(3)
    if task == "segment":
        masks = torch.randint(0, 3, (2, *SIZE), generator=generator, dtype=torch.uint8)
        masks[:, :, 90:] = 255
        return masks
    target = {"boxes": torch.tensor([[4.0, 4.0, 60.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), "labels": torch.tensor([1, 2])}
    if task in ("instance", "panoptic"):
        target["masks"] = torch.randint(0, 2, (2, *SIZE), generator=generator, dtype=torch.uint8)
    nothing = {name: tensor[:0] for name, tensor in target.items()}
    return [target, nothing]


def flat(predictions):
    if isinstance(predictions, torch.Tensor):
        return [predictions]
    return [tensor for each in predictions for tensor in each.values()]


def test_every_dense_head_is_here():
    assert set(SMALL) == set(DENSE)


@pytest.mark.parametrize(("task", "head"), DENSE)
@pytest.mark.parametrize("method", method_names())
def test_every_method_trains_every_head_and_loads_again(method, task, head, backbone, tmp_path):
    options = SMALL[task, head]
    if head == "eomt" and method in ("hst", "vpt", "e2vpt"):  # maps, or tokens in its blocks, of their own
        with pytest.raises(RequestError, match=r"one place takes one|last map of a backbone, but 4 came"):
            build(backbone, method, classes=3, task=task, head=head, head_options=options)
        return
    model = build(backbone, method, classes=3, task=task, head=head, head_options=options)
    model.method.ready = True
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    losses = model.train()(images, targets_of(task), sizes=[SIZE, (50, 70)])
    assert all(loss.isfinite() for loss in losses.values())
    optimizer = torch.optim.AdamW(model.trained().values(), lr=1e-3)
    sum(losses.values()).backward()
    assert [name for name, p in model.trained().items() if p.grad is None] == []
    optimizer.step()

    model.method.consolidate()
    tensors = adapter.compact(model.state())
    model.load_state(tensors)
    header = {
        "task": task,
        "head": {"name": head, "options": options, "neck_blocks": 0, "neck_width": 0},
        "method": method,
        "arguments": model.method.arguments(),
        "backbone": {"name": backbone.name, "source": "", "fingerprint": backbone.fingerprint},
        "classes": ["a", "b", "c"],
        "preprocess": Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3, fit=True).to_dict(),
    }
    adapter.write(tmp_path / "adapter.safetensors", tensors, header)
    again = adapter.load(tmp_path / "adapter.safetensors", backbone).model
    with torch.no_grad():
        expected, found = flat(model.eval()(images)), flat(again(images))
    assert len(expected) == len(found) > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_maps_lie_at_the_same_strides_for_every_patch():
    for family, seen in (("cls", (64, 96)), ("dinov2", (56, 84))):
        model = build(random_backbone(family), "lora", classes=2, task="segment", head="linear")
        images = torch.randn(1, 3, *SIZE)
        assert model.seen(images).shape[-2:] == seen
        features = model.method.features(model.backbone, images, model.read(images))
        assert [(stride, tuple(x.shape[-2:])) for stride, x in features.maps] == [(16.0, (4, 6))]
        hst = build(random_backbone(family), "hst", classes=2, task="segment", head="fpn")
        features = hst.method.features(hst.backbone, images, hst.read(images))
        assert [stride for stride, _ in features.maps] == [4, 8, 16, 32]
        assert not hst.neck
        assert hst.method.map_channels == (64, 128, 256, 384)


def test_hst_for_dense_tasks_has_its_published_size():
    """Spec of arXiv 2310.05393: widths 64 128 256 384 on ViT-B."""
    backbone = random_backbone("cls", embed_dim=768, depth=12, num_heads=12)
    made = methods.create("hst", dense=True)
    made.attach(backbone)
    assert made.size == 10_404_096


# The commands


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_dense_ground(tmp_path_factory.mktemp("ground"))


def test_the_method_of_a_dense_task_that_names_none(ground, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(*words_of(ground, "segment", run, "--epochs", 1, "--rank", 2)) == 0
    result = result_of(run)
    assert result["method"] == tasks.find("segment").method == "lora"
    assert (result["arguments"]["rank"], result["arguments"]["targets"]) == (2, ["qkv", "proj", "fc1", "fc2"])
    assert tasks.find("classify").method == "hst"
    assert call(*words_of(ground, "segment", tmp_path / "other", "--bottleneck", 2)) == 2
    assert "no option '--bottleneck' with the method lora" in capsys.readouterr().err


@pytest.mark.parametrize("task", DATA)
def test_a_fit_in_bf16(task, ground, tmp_path):
    run = tmp_path / "run"
    assert call(*words_of(ground, task, run, "--method", "hst", "--precision", "bf16", "--epochs", 1)) == 0
    assert result_of(run)["protocol"]["precision"] == "bf16"


def test_bf16_rounds_neither_pictures_nor_boxes():
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, images, targets):
            self.seen = images, targets[0]["boxes"]
            return self.linear(images)

    fabric = devices.fabric(Settings(precision="bf16"))
    module = Seen()
    wrapped, _ = fabric.setup(module, torch.optim.SGD(module.parameters()))
    images, boxes = torch.rand(2, 3), torch.tensor([[100.3, 200.6, 300.9, 401.2]])
    made = wrapped(images, [{"boxes": boxes}])
    assert made.dtype == torch.float32  # what a loss is made of
    for seen, given in zip(module.seen, (images, boxes), strict=True):
        assert torch.equal(seen, given)
    assert not torch.equal(made, module.linear(images))  # it did compute in bf16


@pytest.mark.parametrize("task", DATA)
def test_fit_evaluate_predict(task, ground, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(*words_of(ground, task, run, "--method", "hst", "--detached", "--lr", "1e-3")) == 0
    said = capsys.readouterr().out
    result = result_of(run)
    metric = tasks.find(task).metric
    assert result["metric"] == metric
    assert metric in said
    assert 0 <= result["value"] <= 1
    numbers = result["numbers"]
    kinds = {"segment": ["mIoU", "pixel_accuracy"], "detect": ["box"], "instance": ["box", "mask"]}
    assert sorted(numbers) == sorted(kinds[task])
    assert result["value"] == (numbers["mIoU"] if task == "segment" else numbers[kinds[task][-1]]["AP"])
    assert metrics_of(run)[-1]["val"] == pytest.approx(result["value"], abs=0.1)  # before the file's rounding
    assert metric in (run / "report.html").read_text()

    assert call("evaluate", run, ground / DATA[task], "--split", "val", "--json") == 0
    assert json.loads(capsys.readouterr().out)["value"] == result["value"]
    page = tmp_path / "pages" / "again.html"
    assert call("evaluate", run, ground / DATA[task], "--split", "val", "--out", page) == 0
    said = capsys.readouterr().out
    assert metric.split()[-1] in said
    assert str(page) in said
    shown = page.read_text()
    assert metric in shown
    assert "<h2>Training</h2>" not in shown
    assert f"vitgraft predict {run}" in shown
    assert call("info", run) == 0

    capsys.readouterr()
    pictures = sorted((ground / DATA[task] / "images" / "val").iterdir())
    assert call("predict", run, *pictures, "--json", "--out", tmp_path / "drawn") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert {row["picture"] for row in rows} <= {str(picture) for picture in pictures}
    assert all(row["category"] in (*CLASSES, "ground") for row in rows)
    for picture in pictures:
        with Image.open(tmp_path / "drawn" / f"{picture.stem}.jpg") as drawn:
            assert drawn.width >= 40
    assert call("predict", run, *pictures, "--out", tmp_path / "drawn") == 2
    assert "not empty" in capsys.readouterr().err


def test_a_segmenter_names_every_pixel(ground, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(*words_of(ground, "segment", run, "--method", "linear", "--epochs", 1)) == 0
    capsys.readouterr()
    assert call("predict", run, ground / "segment/images/val/0.png", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    everywhere = np.arange(64), np.arange(40)
    masks = [sample(row["segmentation"], (64, 40), *everywhere) for row in rows]
    assert np.array_equal(sum(mask.astype(int) for mask in masks), np.ones((64, 40)))


def test_the_highest_of_many_classes_in_little_memory():
    logits = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0)).round()  # with ties: the first one counts
    whole = torch.nn.functional.interpolate(logits[None], (20, 18), mode="bilinear")[0].argmax(0)
    for most in (1, 720, 1100, 10**6):
        assert torch.equal(highest(logits, (20, 18), most), whole)


@pytest.mark.parametrize("task", DATA)
def test_two_processes_measure_what_one_does(task, ground, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*words_of(ground, task, run, "--method", "bitfit", "--batch-size", 2), "--devices", 2]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    others = [
        start([str(w) for w in words], tmp_path / f"log{rank}", **shared, LOCAL_RANK=str(rank)) for rank in (0, 1)
    ]
    assert [other.ends() for other in others] == [0, 0], [other.said() for other in others]
    assert call("evaluate", run, ground / DATA[task], "--split", "val", "--json") == 0
    assert json.loads(capsys.readouterr().out)["value"] == result_of(run)["value"]


class StopError(BaseException):
    pass


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_a_stopped_fit_goes_on_exactly(task, ground, tmp_path, monkeypatch):
    """The random views of an epoch depend on nothing that came before it."""
    words = ["--method", "bitfit", "--epochs", 3, "--precision", "32"]
    assert call(*words_of(ground, task, tmp_path / "plain", *words)) == 0
    replace, times = os.replace, []

    def stop(source, target):
        times.append(str(target).endswith("metrics.jsonl"))
        if sum(times) == 2:
            raise StopError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(StopError):
            call(*words_of(ground, task, tmp_path / "run", *words))
    assert call(*words_of(ground, task, tmp_path / "run", *words, "--resume")) == 0
    assert same(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "plain"))


def test_sct_chooses_its_channels_on_dense_pictures(ground, tmp_path):
    words = words_of(ground, "segment", tmp_path / "run", "--method", "sct", "--epochs", 1, head="linear")
    assert call(*words) == 0
    chosen = [tensor for name, tensor in adapter_of(tmp_path / "run").items() if name.endswith("indices")]
    assert len(chosen) == 4
    assert any(not torch.equal(indices, torch.arange(len(indices))) for indices in chosen)


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        (
            "segment",
            ["--head", "mask"],
            ["no head 'mask' for the task segment", "belongs to the task instance", "upernet"],
        ),
        ("segment", ["--image-size", 60], ["image size (60, 60)", "multiples of 32", "64"]),
        ("segment", ["--label-smoothing", 0.1], ["label_smoothing is for the task classify", "leave it out"]),
        ("segment", ["--jitter", 2, 0.5], ["jitter is 2.0 0.5", "0.5 2"]),
        ("detect", ["--head-options", "sample=3"], ["no option 'sample'", "samples"]),
        ("detect", ["--head-options", "samples"], ["'samples' is no option of a head", "NAME=VALUE"]),
        ("detect", ["--task", "segment"], ["not arranged so", "masks/SPLIT"]),
        ("segment", ["--task", "detection"], ["no task 'detection'", "detect"]),
    ],
)
def test_bad_requests(task, words, said, ground, tmp_path, capsys):
    assert call(*words_of(ground, task, tmp_path / "run"), *words) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert not (tmp_path / "run").exists()


def test_the_task_is_recognised(ground, tmp_path):
    words = words_of(ground, "segment", tmp_path / "run", "--epochs", 1, "--method", "linear")
    at = words.index("--task")
    del words[at : at + 2]
    assert call(*words) == 0
    assert result_of(tmp_path / "run")["task"] == "segment"


def test_check_lists_what_is_wrong(ground, tmp_path, capsys):
    assert call("check", ground / "segment") == 0
    assert "no problem found" in capsys.readouterr().out
    (ground / "segment" / "images" / "val" / "more.png").write_bytes(b"no picture")
    try:
        assert call("check", ground / "segment") == 1
        streams = capsys.readouterr()
        assert "more.png" in streams.out
        assert "1 problem" in streams.err
        assert call("check", ground / "segment", "--json") == 1
        assert [row["file"] for row in json.loads(capsys.readouterr().out)["problems"]]
    finally:
        (ground / "segment" / "images" / "val" / "more.png").unlink()


def test_merge_is_for_classifiers(ground, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(*words_of(ground, "segment", run, "--method", "lora", "--epochs", 1, head="linear")) == 0
    assert call("merge", run, "--out", tmp_path / "model.safetensors") == 2
    assert "ends in a classifier" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
