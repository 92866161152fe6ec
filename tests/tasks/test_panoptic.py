"""The task panoptic, from its folder to a page and to drawings."""

import json

from helpers_cli import call, make_backbone, result_of
from helpers_dense import panoptic_set
from PIL import Image

import vitgraft


def test_it_is_fitted_measured_and_drawn(tmp_path, capsys):
    root = panoptic_set(tmp_path / "set")
    backbone = make_backbone(tmp_path / "vit.safetensors", img_size=32, patch_size=8)
    words = ["fit", root, "--backbone", backbone, "--out", tmp_path / "run", "--image-size", 64, 96, "--batch-size", 2]
    words += ["--epochs", 2, "--workers", 0, "--quiet", "--neck-width", 32, "--lr", "1e-3"]
    words += ["--head-options", "queries=12", "blocks=1", "mlp=32", "sure=0.01", "overlap=0.1"]
    assert call(*words) == 0
    result = result_of(tmp_path / "run")
    assert (result["task"], result["method"], result["metric"]) == ("panoptic", "lora", "PQ")
    assert result["head"]["options"]["things"] == [0, 1]
    assert result["data"]["classes"] == ["car", "person", "sky"]
    assert result["data"]["counts"]["train"]["sky"] == {"pictures": 2, "objects": 2}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Panoptic quality" in page
    run = vitgraft.Run(tmp_path / "run")
    again = run.evaluate(root, "val")
    assert again.value == result["value"]
    pictures = sorted((root / "val2017").glob("*.jpg"))
    found = run.predict(pictures)
    assert all({"category", "segmentation", "score"} <= row.keys() for each in found for row in each.rows)
    masks = found[0].masks
    assert masks.ndim == 3
    assert masks.sum(0).max() <= 1, "no two share a pixel"
    assert isinstance(found[0].draw(), Image.Image)
    capsys.readouterr()
    assert call("predict", tmp_path / "run", *pictures, "--out", tmp_path / "drawn", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) >= 1
    assert len(list((tmp_path / "drawn").glob("*.jpg")) + list((tmp_path / "drawn").glob("*.png"))) == 2
    assert call(*words, "--resume") == 0
    # Things are those of the data, not of the run that a fit starts from, nor of the one whose settings it takes.
    for split in ("train2017", "val2017"):
        file = root / "annotations" / f"panoptic_{split}.json"
        file.write_text(file.read_text().replace('"name": "car", "isthing": 1', '"name": "tree", "isthing": 0'))
    for more in (["--start", tmp_path / "run"], ["--config", tmp_path / "run" / "settings.json"]):
        out = tmp_path / more[0].strip("-")
        assert call("fit", root, *more, "--backbone", backbone, "--out", out, "--epochs", 1, "--quiet") == 0
        assert result_of(out)["head"]["options"]["things"] == [1]
        assert result_of(out)["data"]["classes"] == ["tree", "person", "sky"]
