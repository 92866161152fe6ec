"""Classes of unequal size, and the device that a user names."""

import numpy as np
import pytest
import torch
from helpers_cli import call, make_backbone, make_pictures, result_of
from helpers_dense import segment_set
from PIL import Image

from vitgraft import tasks
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings
from vitgraft.data.audit import Shown, weights_by
from vitgraft.engine.devices import fabric, kind_of
from vitgraft.features import Features
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone
from vitgraft.training.request import sort_options


def test_balanced_every_class_counts_alike():
    model = build(random_backbone(), "linear", classes=3)
    labels = torch.tensor([0] * 8 + [1] * 2)
    features = Features(torch.randn(10, model.backbone.width), [])
    logits = model.head(features)
    model.head.balance([8, 2, 0])
    loss = model.head(features, labels)["cross_entropy"]
    own = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert loss.item() == pytest.approx((own[:8].mean() / 2 + own[8:].mean() / 2).item(), rel=1e-5)
    assert "class_weights" not in str(model.state().keys())


@pytest.mark.parametrize("head", ["linear", "fpn", "upernet"])
def test_pixels_count_by_the_rarity_of_their_class(head):
    torch.manual_seed(0)
    model = build(random_backbone(), "linear", classes=3, task="segment", head=head).eval()
    images, masks = torch.randn(2, 3, 64, 96), torch.randint(3, (2, 64, 96))
    masks[:, :, 90:] = 255
    logits = model(images)
    own = torch.nn.functional.cross_entropy(logits, masks, reduction="none", ignore_index=255)
    plain = model(images, masks)["cross_entropy"]
    torch.testing.assert_close(plain, own[masks != 255].mean(), rtol=1e-5, atol=1e-6)
    counts = [900, 90, 10]
    for power in (0.5, 1.0):
        model.head.balance(counts, power)
        weights = (1000 / (3 * torch.tensor(counts))) ** power
        of_pixels = weights[masks.where(masks != 255, 0)] * (masks != 255)
        loss = model(images, masks)["cross_entropy"]
        torch.testing.assert_close(loss, (own * of_pixels).sum() / of_pixels.sum(), rtol=1e-5, atol=1e-6)
    assert model(images, torch.full_like(masks, 255))["cross_entropy"] == 0


def test_balanced_from_the_command_line(tmp_path):
    ground = make_backbone(tmp_path / "vit.safetensors")
    data = make_pictures(tmp_path / "data", train=12, val=6)
    for i in range(2, 12):
        (data / "train" / "dots" / f"{i}.png").unlink()
    words = [
        "fit",
        data,
        "--model",
        ground,
        "--method",
        "linear",
        "--batch",
        8,
        "--epochs",
        2,
        "--workers",
        0,
        "--quiet",
    ]
    for weights in ("none", "balanced"):
        assert call(*words, "-o", tmp_path / weights, "--class-weights", weights, "--device", "cpu") == 0
    told = result_of(tmp_path / "balanced")
    assert told["protocol"]["class_weights"] == "balanced"
    assert told["numbers"].keys() >= {"accuracy", "balanced_accuracy", "macro_f1"}
    assert told["data"]["counts"]["train"]["dots"] == {"pictures": 2}


def test_devices(monkeypatch):
    assert kind_of("cpu") == "cpu"
    assert fabric(Settings(device="cpu")).device.type == "cpu"
    with pytest.raises(RequestError, match="There is no device 'gpu'"):
        Settings(device="gpu")
    with pytest.raises(RequestError, match="one device, but 2"):
        Settings(device="cuda:1", devices=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=r"device cuda:1 was asked for, but this machine has .*cpu"):
        kind_of("cuda:1")


@pytest.mark.parametrize(
    ("head", "expected"), [("upernet", "auto"), ("fpn", "auto"), ("linear", "auto"), ("query", "none")]
)
def test_what_heads_of_pixels_ask_for_unless_said_otherwise(head, expected):
    task = tasks.find("segment")
    assert sort_options(task, "linear", head, {})[0].class_weights == expected
    assert sort_options(task, "linear", head, {"class_weights": "none"})[0].class_weights == "none"


def test_pictures_count_alike_unless_said_otherwise():
    assert sort_options(tasks.find("classify"), "linear", "linear", {})[0].class_weights == "none"


@pytest.mark.parametrize(("things", "expected"), [([50, 40, 10], "none"), ([90, 9, 1], "root"), ([50, 50, 0], "none")])
def test_rare_classes_count_more_where_there_are_any(things, expected):
    shown = Shown("pixels", [1] * 3, things, [0] * 3)
    chosen, said = weights_by("auto", shown, ["sky", "road", "pole"])
    assert chosen == expected
    assert (len(said) == 1 and "'pole' has 3 %" in said[0]) if expected == "root" else not said
    assert weights_by("balanced", shown, ["sky", "road", "pole"]) == ("balanced", [])


def test_a_segmentation_with_a_rare_class_says_what_it_does(tmp_path, capsys):
    root, ground = segment_set(tmp_path / "data"), make_backbone(tmp_path / "vit.safetensors")
    for path in (root / "masks" / "train").glob("*.png"):
        values = np.array(Image.open(path))
        values[values == 2] = 0
        values[:2, :2] = 2
        Image.fromarray(values).save(path)
    words = ["fit", root, "--backbone", ground, "--image-size", 64, "--epochs", 1, "--workers", 0, "--head", "linear"]
    assert call(*words, "-o", tmp_path / "run", "--method", "linear") == 0
    assert "rare classes count more" in capsys.readouterr().err
    assert result_of(tmp_path / "run")["protocol"]["class_weights"] == "root"
