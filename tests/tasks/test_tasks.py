"""Every method with every dense head, and the commands on tiny data sets of the dense tasks."""

import json
import os

import numpy as np
import pytest
import torch
from helpers_cli import adapter_of, call, free_port, make_backbone, metrics_of, result_of, same, start
from PIL import Image
from torch import nn
from torchvision.ops import masks_to_boxes

from vitgraft import heads, methods, tasks
from vitgraft.adapters import file as adapter
from vitgraft.adapters.run import Run
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import WHOLE, Settings
from vitgraft.data import Preprocess
from vitgraft.data.segmentations import sample
from vitgraft.engine import devices
from vitgraft.engine.answers import ask
from vitgraft.model import build
from vitgraft.tasks.detect import tiled
from vitgraft.tasks.segment import highest, mirrored, windows
from vitgraft.testing.backbones import random_backbone

CLASSES = ("box", "disc")
RCNN = {"width": 8, "hidden": 12, "samples": 16, "proposals": 20}
QUERY = {"queries": 12, "blocks": 2, "mlp": 16}
EOMT = {"queries": 12, "blocks": 2}
SMALL = {
    ("segment", "upernet"): {"width": 16, "auxiliary_width": 8},
    ("segment", "fpn"): {"neck": 16, "width": 32},
    ("segment", "linear"): {},
    ("segment", "query"): QUERY,
    ("segment", "eomt"): EOMT,
    ("detect", "faster"): RCNN,
    ("detect", "cascade"): RCNN,
    ("instance", "mask"): RCNN,
    ("instance", "cascade-mask"): RCNN,
    ("instance", "query"): QUERY,
    ("instance", "eomt"): EOMT,
    ("panoptic", "query"): {**QUERY, "things": [0]},
    ("panoptic", "eomt"): {**EOMT, "things": [0]},
}
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
    """A backbone, and pictures of red boxes and blue discs in the layouts of the three tasks."""
    folder = tmp_path_factory.mktemp("ground")
    make_backbone(folder / "vit.safetensors", img_size=32, patch_size=8)
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 3)):
        images, annotations = [], []
        for i in range(n):
            h, w = (40, 56) if i % 2 else (64, 40)
            pixels = rng.normal(120, 10, (h, w, 3))
            mask = np.full((h, w), 255 if i == 0 else 2, dtype=np.uint8)
            y, x = np.mgrid[:h, :w]
            for label in range(2 if i % 3 else 1):
                top, left, side = int(rng.integers(0, h - 20)), int(rng.integers(0, w - 20)), 18
                inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
                if label:
                    inside &= np.hypot(y - top - 9, x - left - 9) < 9
                pixels[inside] = (200, 40, 40) if label == 0 else (40, 40, 200)
                mask[inside] = label
                corners = [left, top, left + side, top, left + side, top + side, left, top + side]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": [left, top, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            for kind in ("segment", "objects"):
                (folder / kind / "images" / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / kind / f"images/{split}/{i}.png")
            (folder / "segment" / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(folder / "segment" / f"masks/{split}/{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "width": w, "height": h})
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "objects" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / "segment" / "classes.txt").write_text("box\ndisc\nground\n")
    return folder


DATA = {"segment": "segment", "detect": "objects", "instance": "objects"}


def words_of(ground, task, run, *more, head=None):
    """A short fit with a small head, the task's first unless given; a later option wins over an earlier one."""
    words = ["fit", ground / DATA[task], "--backbone", ground / "vit.safetensors", "--out", run, "--epochs", 2]
    words += ["--image-size", 64, "--batch-size", 3, "--workers", 0, "--task", task, "--quiet"]
    if head:
        words += ["--head", head]
    options = [f"{name}={value}" for name, value in SMALL[task, head or heads.names(task)[0]].items()]
    return [*words, *(["--head-options", *options] if options else []), *more]


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


def test_the_mean_of_both_ways_knows_no_left_and_right(backbone):
    model = build(backbone, "linear", classes=3, task="segment", head="linear").eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        plain, both = model(images), mirrored(ask, model, images, None, [SIZE] * 2)
        turned = mirrored(ask, model, images.flip(-1), None, [SIZE] * 2)
    torch.testing.assert_close(turned.flip(-1), both)
    assert not torch.allclose(both, plain)


class Finder:
    """Finds every rectangle of one value in a picture; surer of what it sees cut."""

    def __init__(self, masks):
        self.masks = masks

    def __call__(self, images, targets, activations, sizes):
        assert all(image.shape[1:] == (64, 96) for image in images)
        return [
            self.found(image[0, :h, :w], (h, w), image.shape[1:]) for image, (h, w) in zip(images, sizes, strict=True)
        ]

    def found(self, values, inside, padded):
        boxes, labels, scores, masks = [], [], [], []
        for value in values.unique().tolist():
            if value:
                there = torch.zeros(padded, dtype=torch.bool)
                there[: inside[0], : inside[1]] = values == value
                boxes.append(masks_to_boxes(there[None])[0] + torch.tensor([0, 0, 1, 1]))
                labels.append(int(value) % 2)
                scores.append(0.5 + 0.4 / there.sum())
                masks.append(there[None].float())
        record = {"boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4)}
        record |= {"labels": torch.tensor(labels, dtype=torch.int64), "scores": torch.tensor(scores)}
        masks = torch.stack(masks) if masks else torch.zeros(0, 1, *padded)
        return {**record, "masks": masks} if self.masks else record


@pytest.mark.parametrize("masks", [False, True])
def test_tiles_find_each_object_once_and_whole(masks):
    """Objects no larger than the overlap, a third of a tile, wherever they lie; the second picture is narrower."""
    images, wanted = torch.zeros(2, 3, 128, 224), {0: {}, 1: {}}
    sizes = [(128, 224), (120, 200)]
    for b, (h, w) in enumerate(sizes):
        value = 1
        for top in range(2, h - 20, 22):
            for left in range(3, w - 30, 33):
                images[b, :, top : top + 20, left : left + 30] = value
                wanted[b][value] = [left, top, left + 30, top + 20]
                value += 1
    found = tiled(Finder(masks), images, None, sizes, size=(64, 96))
    for b, record in enumerate(found):
        assert sorted(record["boxes"].tolist()) == sorted(map(list, wanted[b].values()))
        assert record["scores"].tolist() == sorted(record["scores"].tolist(), reverse=True)
        if masks:
            assert record["masks"].shape == (len(wanted[b]), 1, *sizes[b])
            for box, mask in zip(record["boxes"], record["masks"], strict=True):
                assert torch.equal(masks_to_boxes(mask > 0.5)[0] + torch.tensor([0, 0, 1, 1]), box)
                assert mask.sum() == 600


def test_tiles_of_nothing():
    (found,) = tiled(Finder(True), torch.zeros(1, 3, 64, 200), None, [(64, 200)], size=(64, 96))
    assert (len(found["boxes"]), found["masks"].shape[1:]) == (0, (1, 64, 200))


@pytest.mark.parametrize("head", ["faster", "mask", "query"])
def test_detectors_slide_too(head, ground, tmp_path):
    task = {"faster": "detect"}.get(head, "instance")
    words = words_of(
        ground, task, tmp_path / "run", "--method", "linear", "--sliding", "--image-size", 32, 32, head=head
    )
    assert call(*words) == 0
    result = result_of(tmp_path / "run")
    assert result["protocol"]["sliding"]
    assert Run(tmp_path / "run").evaluate(ground / DATA[task], "val").value == result["value"]


@pytest.mark.parametrize("way", ["--sliding", "--mirror"])
def test_a_run_remembers_how_it_looks(way, ground, tmp_path, capsys):
    assert call(*words_of(ground, "segment", tmp_path / "run", "--method", "linear", way, head="linear")) == 0
    value = result_of(tmp_path / "run")["value"]
    capsys.readouterr()
    assert call("evaluate", tmp_path / "run", ground / "segment", "--split", "val", "--json") == 0
    assert json.loads(capsys.readouterr().out)["value"] == value


@pytest.mark.parametrize(("way", "task", "head"), [
    ("sliding", "segment", "linear"), ("mirror", "segment", "linear"), ("sliding", "detect", "faster"),
])  # fmt: skip
def test_how_a_run_looks_may_be_chosen_anew(way, task, head, ground, tmp_path, capsys):
    runs = {}
    for name, more in (("plain", ()), ("other", (f"--{way}",))):
        words = words_of(ground, task, tmp_path / name, "--method", "linear", *more, "--image-size", 32, 32, head=head)
        assert call(*words) == 0
        runs[name] = result_of(tmp_path / name)["value"]
    plain, other = Run(tmp_path / "plain"), Run(tmp_path / "other")
    assert plain.evaluate(ground / DATA[task], "val", **{way: True}).value == runs["other"]
    assert other.evaluate(ground / DATA[task], "val", **{way: False}, batch_size=1).value == pytest.approx(
        runs["plain"]
    )
    capsys.readouterr()
    words = ("evaluate", tmp_path / "other", ground / DATA[task], "--split", "val", "--json", f"--no-{way}")
    assert call(*words, "--device", "cpu", "--workers", 0) == 0
    assert json.loads(capsys.readouterr().out)["value"] == runs["plain"]
    picture = next((ground / DATA[task]).rglob("images/val/*.png"))
    assert repr(other.predict(picture, **{way: False})) == repr(plain.predict(picture))


@pytest.mark.parametrize("size", [(64, 96), (96, 160), (64, 64)])
def test_windows_average_what_the_model_says_of_each(size):
    """Against pixels that know their place: a model that answers with them is given them back."""

    class Echo:
        def __call__(self, images):
            seen.append(images.shape[-2:])
            return images[:, :2] * 2

    seen = []
    images = torch.randn(2, 3, *size)
    found = windows(Echo(), images, None, [], size=(64, 64))
    torch.testing.assert_close(found, images[:, :2] * 2)
    assert set(seen) == {(64, 64)}
    assert len(seen) == {(64, 96): 2, (96, 160): 8, (64, 64): 1}[size]
