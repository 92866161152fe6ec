"""Several labels and numbers from the command line: red, green and blue patches to name, brightness to tell."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers_cli import adapter_of, call, make_backbone, result_of
from PIL import Image

import vitgraft
from vitgraft import build
from vitgraft.features import Features
from vitgraft.heads.regress import Regress
from vitgraft.testing.backbones import random_backbone


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    make_backbone(folder / "vit.safetensors", img_size=32, patch_size=8)
    rng = np.random.default_rng(0)
    for task in ("multilabel", "regress"):
        for split, n in (("train", 12), ("test", 6)):
            rows = [("path", "tags" if task == "multilabel" else "brightness")]
            (folder / task / "images").mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                own = [c for c in range(3) if rng.random() < 0.5]
                for c in own:
                    pixels[8 * c : 8 * c + 8, :, c] = 255
                Image.fromarray(pixels).save(folder / task / "images" / f"{split}{i}.png")
                told = "|".join(["red", "green", "blue"][c] for c in own) if task == "multilabel" else pixels.mean() / 7
                rows.append((f"{split}{i}.png", told))
            with open(folder / task / f"{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
    return folder


@pytest.mark.parametrize(("task", "metric", "method"), [("multilabel", "mAP", "lora"), ("regress", "R2", "linear")])
def test_a_fit_is_measured_told_and_shown(task, metric, method, ground, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["fit", ground / task, "--method", method, "--backbone", ground / "vit.safetensors", "--epochs", 2]
    words += ["--batch-size", 4, "--eval-split", "test", "--out", run]
    assert call(*words) == 0
    result = result_of(run)
    assert (result["task"], result["metric"]) == (task, metric)
    assert result["numbers"][metric] == result["value"]
    assert "<section" in (run / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert call("evaluate", run, ground / task, "--json", "--out", tmp_path / "again.html") == 0
    assert metric in (tmp_path / "again.html").read_text(encoding="utf-8")
    assert json.loads(capsys.readouterr().out)[metric] == pytest.approx(result["value"])
    assert call("info", run) == 0
    assert call("predict", run, ground / task / "images" / "test0.png", "--out", tmp_path / "said.json") == 0
    (row,) = json.loads((tmp_path / "said.json").read_text())
    if task == "multilabel":
        assert set(row["probabilities"]) == {"red", "green", "blue"}
        assert row["labels"] == [n for n in row["labels"] if row["probabilities"][n] >= 0.5]
        found = vitgraft.Run(run).predict(row["picture"])
        assert found.labels == row["labels"]
        assert found.label == ""
        assert [name for name, _ in found.top(2)] == sorted(
            row["probabilities"], key=lambda n: -row["probabilities"][n]
        )[:2]
    else:
        assert row["name"] == "brightness"
        assert vitgraft.Run(run).predict(row["picture"]).value == pytest.approx(row["value"], rel=1e-4)
        head = result["head"]["options"]
        assert head["std"] > 0
        assert adapter_of(run)["head.fc.weight"].shape == (1, 48)


def test_a_regression_counts_in_standard_deviations():
    head = Regress((4,), 1, mean=10.0, std=2.0)
    pooled = torch.randn(5, 4)
    numbers = head(Features(pooled, []))
    torch.testing.assert_close(numbers, head.fc(pooled) * 2 + 10)
    near = head(Features(pooled, []), numbers + 1.0)["huber"]  # half a deviation off
    torch.testing.assert_close(near, torch.tensor(0.125))
    torch.testing.assert_close(head.layer()(pooled), numbers)  # as `vitgraft merge` writes it
    far = head(Features(pooled, []), numbers + 6.0)["huber"]  # three off
    torch.testing.assert_close(far, torch.tensor(2.5))


def test_labels_are_independent_of_each_other():
    model = build(random_backbone("cls"), "linear", classes=3, task="multilabel")
    images, targets = torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    loss = model(images, targets)["binary_cross_entropy"]
    p = model(images).sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(loss, expected)
