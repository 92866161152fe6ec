"""A fit from the first picture to the files that it leaves, and what it looks at on the way."""

import json

import pytest
import torch
from helpers_cli import (
    CLASSES,
    adapter_of,
    call,
    fit,
    fit_words,
    make_pictures,
    metrics_of,
    result_of,
    same,
)

import vitgraft
from vitgraft.adapters import file as adapter
from vitgraft.backbones import Backbone
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings
from vitgraft.engine import cost
from vitgraft.measures.accuracy import Evaluation
from vitgraft.tasks.classify import Classify
from vitgraft.training import fitting
from vitgraft.training.loop import learning_rate

FILES = {
    "adapter.safetensors",
    "checkpoint.safetensors",
    "metrics.jsonl",
    "report.html",
    "result.json",
    "settings.json",
}
KEYS = {
    "task",
    "method",
    "arguments",
    "backbone",
    "metric",
    "value",
    "parameters",
    "head_parameters",
    "adapter_bytes",
    "seconds",
    "seed",
    "protocol",
    "versions",
}
METHODS = {
    "linear": ["--method", "linear"],
    "bitfit": ["--method", "bitfit"],
    "full": ["--method", "full", "--lr", "1e-3"],
    "hst": ["--method", "hst"],
    "detached": ["--method", "hst", "--detached"],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name, ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--lr", "3e-3", *METHODS[name], "--epochs", 8)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert {file.name for file in run.iterdir()} == FILES
    result, metrics = result_of(run), metrics_of(run)
    assert result.keys() >= KEYS
    assert result["value"] > 0.8  # chance is 1/3
    assert metrics[-1]["loss"] < 0.75 * metrics[0]["loss"]
    assert [record["epoch"] for record in metrics] == list(range(1, 9))
    assert (result["method"], result["split"], result["metric"]) == (METHODS[name][1], "val", "top-1 accuracy")
    assert result["arguments"].get("detached", False) == (name == "detached")
    assert result["adapter_bytes"] == (run / "adapter.safetensors").stat().st_size
    assert f"{result['value']:.2%}" in shown.out
    assert f"{result['parameters']:,}" in shown.out
    assert f"{result['value']:.1%}" in (run / "report.html").read_text().replace("\u202f", "").replace("\u00a0", "")
    model = adapter.load(run / "adapter.safetensors").model
    counts = cost.parameters(model)
    assert (result["parameters"], result["head_parameters"]) == (counts["method"], counts["head"])
    assert not any(name.startswith("backbone.") for name in adapter_of(run))
    page = tmp_path / "again.html"
    assert call("evaluate", run, ground.easy, "--split", "val", "--json", "--out", page) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["value"]
    assert "on easy</bdi></h1>" in page.read_text()
    assert call("evaluate", run, ground.easy, "--out", page) == 2
    assert "exists already" in capsys.readouterr().err
    assert call("evaluate", run, ground.easy, "--out", tmp_path / "again.csv") == 2
    assert "ends in .html" in capsys.readouterr().err


def test_the_three_lines_of_python(ground, tmp_path, capsys):
    backbone = vitgraft.Backbone.load(str(ground.backbone))
    run = vitgraft.fit(
        str(ground.easy), method="linear", backbone=backbone, out=tmp_path / "run", epochs=3, batch_size=12, workers=0
    )
    answers = [each.rows[0] for each in run.predict([ground.easy / "test" / "dots" / "0.png"])]
    assert [answer["class"] in CLASSES for answer in answers] == [True]
    assert run.evaluate(ground.easy, "val").value == run.result["value"] == result_of(run.path)["value"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 3/3: 100%" in shown.err
    same_again = fit(ground, tmp_path / "cli", "--method", "linear")
    assert same(adapter_of(run.path), adapter_of(same_again))


@pytest.mark.parametrize("precision", ["32", "bf16", "64"])
def test_evaluate_gives_the_value_in_the_result(precision, ground, tmp_path, capsys):
    for words in (["--detached"], ["--method", "bitfit"]):
        run = fit(ground, tmp_path / words[-1], *words, "--precision", precision, data=ground.hard)
        value = result_of(run)["value"]
        assert value < 1  # else it would be no test
        assert metrics_of(run)[-1]["val"] == pytest.approx(value, abs=0.1)  # before the file's rounding
        capsys.readouterr()
        assert call("evaluate", run, ground.hard, "--split", "val", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["accuracy"], found["interval"]) == (value, result_of(run)["interval"])


def test_the_memory_at_hand_changes_nothing(ground, tmp_path):
    """Kept activations are rounded to bfloat16: so must be those without room, and those of a later evaluation."""
    options = {"method": "hst", "detached": True, "lr": 3e-3, "precision": "bf16", "epochs": 3, "batch_size": 12}
    options |= {"backbone": str(ground.backbone), "workers": 0, "quiet": True}
    much, none = (vitgraft.fit(ground.hard, out=tmp_path / str(m), memory=m, **options) for m in (4.0, 0.0))
    assert same(adapter_of(much.path), adapter_of(none.path))
    answers = [much.evaluation, none.evaluation, much.evaluate(ground.hard, "val"), none.evaluate(ground.hard, "val")]
    for other in answers[1:]:
        assert torch.equal(other.probabilities, answers[0].probabilities)


def test_measuring_the_cost_changes_nothing(ground, tmp_path, monkeypatch):
    run = fit(ground, tmp_path / "measured", "--precision", "32", "--epochs", 1)
    monkeypatch.setattr(cost, "kept_bytes", lambda *_: 0)
    other = fit(ground, tmp_path / "not measured", "--precision", "32", "--epochs", 1)
    assert same(adapter_of(run), adapter_of(other))
    assert result_of(run)["cost"]["bytes_kept_for_backward"] > 0


def test_one_backbone_for_runs_of_two_precisions(ground, tmp_path):
    backbone = Backbone.load(str(ground.backbone))
    options = {"backbone": backbone, "epochs": 1, "batch_size": 12, "workers": 0, "quiet": True, "method": "linear"}
    double = fitting.fit(ground.easy, out=tmp_path / "64", precision="64", **options)
    single = fitting.fit(ground.easy, out=tmp_path / "32", precision="32", **options)
    for run in (double, single, double):
        assert run.evaluate(ground.easy, "val").value == run.result["value"]


# What is looked at


def test_only_val_is_looked_at_before_the_end(ground, tmp_path, monkeypatch):
    seen = []
    measure = Classify.measure
    monkeypatch.setattr(Classify, "measure", lambda *a, **k: seen.append(k["split"]) or measure(*a, **k))
    run = fit(ground, tmp_path / "test", "--method", "linear", "--eval-split", "test")
    assert seen == ["test"]
    assert result_of(run)["split"] == "test"
    assert not any("val" in record for record in metrics_of(run))
    seen.clear()
    run = fit(ground, tmp_path / "val", "--method", "linear")
    assert seen == ["val"] * 4
    assert all("val" in record for record in metrics_of(run))


def test_the_reported_epoch_is_the_last(ground, tmp_path, monkeypatch):
    """Even where an earlier one was better on val."""
    found = iter([0.9, 0.5, 0.4, 0.3])
    measure = Classify.measure

    def claiming(*a, **k):
        claims = type("Claims", (Evaluation,), {"value": next(found)})
        return claims(**vars(measure(*a, **k)))

    monkeypatch.setattr(Classify, "measure", claiming)
    run = fit(ground, tmp_path / "run", "--method", "linear")
    assert result_of(run)["value"] == 0.3
    assert result_of(run)["protocol"]["epoch_reported"] == "last"


def test_train_and_val_together(ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--method", "linear", "--train-split", "train+val")
    result = result_of(run)
    assert (result["value"], result["interval"], result["split"]) == (None, None, None)
    assert metrics_of(run)[0]["step"] == (36 + 18) // 12
    assert not any("val" in record for record in metrics_of(run))
    assert "not measured" in capsys.readouterr().out
    assert "Not measured" in (run / "report.html").read_text()
    run = fit(ground, tmp_path / "both", "--method", "linear", "--train-split", "train+val", "--eval-split", "test")
    assert result_of(run)["split"] == "test"
    assert result_of(run)["value"] > 0.5


def test_folders_of_classes_and_lists(ground, tmp_path, capsys):
    plain = make_pictures(tmp_path / "plain")
    run = fit(ground, tmp_path / "run", "--method", "linear", data=plain)
    assert result_of(run)["data"]["pictures"] == {"train": 24, "val": 6}
    capsys.readouterr()
    assert call("evaluate", run, plain, "--split", "val", "--json") == 0  # the same pictures are held out again
    assert json.loads(capsys.readouterr().out)["accuracy"] == result_of(run)["value"]
    for split, numbers in {"train": range(8), "test": range(8, 10)}.items():
        lines = [f"{kind}/{i}.png {label}" for label, kind in enumerate(CLASSES) for i in numbers]
        (plain / f"{split}.txt").write_text("\n".join(lines))
    run = fit(ground, tmp_path / "lists", "--method", "linear", "--eval-split", "test", data=plain)
    assert result_of(run)["data"]["pictures"] == {"train": 24, "test": 6}
    assert result_of(run)["data"]["classes"] == ["0", "1", "2"]


# Settings


def test_settings_reach_the_run(ground, tmp_path):
    words = ["--epochs", 1, "--lr", "2e-3", "--weight-decay", 0.5, "--image-size", 16, 24, "--seed", 7]
    words += ["--warmup", 0, "--drop-path", 0.1, "--label-smoothing", 0.2, "--precision", "32", "--meta-tokens", 2]
    run = fit(ground, tmp_path / "run", *words)
    result = result_of(run)
    told = {
        "lr": 2e-3,
        "weight_decay": 0.5,
        "image_size": [16, 24],
        "warmup": 0,
        "drop_path": 0.1,
        "label_smoothing": 0.2,
    }
    assert told.items() <= result["protocol"].items()
    assert (result["seed"], result["arguments"]["meta_tokens"], result["protocol"]["precision"]) == (7, 2, "32")
    assert adapter.load(run / "adapter.safetensors").preprocess.size == (16, 24)
    assert metrics_of(run)[0]["loss"] > 0.2  # the smoothed loss has a floor


def test_each_setting_changes_the_weights(ground, tmp_path):
    """An option that is taken and then forgotten would leave the same adapter."""
    base = ["--precision", "32", "--epochs", 2]
    plain = adapter_of(fit(ground, tmp_path / "plain", *base))
    assert same(plain, adapter_of(fit(ground, tmp_path / "again", *base)))
    changes = {"lr": "2e-3", "weight-decay": 0.5, "warmup": 0.9, "drop-path": 0.5, "label-smoothing": 0.2, "seed": 1}
    changes |= {"batch-size": 6, "image-size": 24, "precision": "bf16"}
    for name, value in changes.items():
        assert not same(plain, adapter_of(fit(ground, tmp_path / name, *base, f"--{name}", value))), name


def test_a_method_has_its_own_learning_rate(ground, tmp_path):
    run = fit(ground, tmp_path / "run", "--method", "full", "--epochs", 1)
    assert result_of(run)["protocol"]["lr"] == 1e-4
    run = fit(ground, tmp_path / "given", "--method", "full", "--epochs", 1, "--lr", "2e-4")
    assert result_of(run)["protocol"]["lr"] == 2e-4


def test_warm_up_and_cosine():
    settings = Settings(lr=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 1e-3
    assert learning_rate(0, 100, Settings(lr=1.0, warmup=0)) == 1.0


def test_a_precision_may_be_given_as_a_number():
    assert Settings(precision=32).precision == "32"
    with pytest.raises(RequestError, match="There is no precision '33'"):
        Settings(precision=33)


def test_image_sizes():
    assert Settings(image_size=112).image_size == (112, 112)
    assert Settings(image_size=(112,)).image_size == (112, 112)
    assert Settings(image_size=[96, 112]).image_size == (96, 112)
    with pytest.raises(RequestError, match="3 numbers came"):
        Settings(image_size=(1, 2, 3))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": "fast"}, "lr is 'fast', but must be a number"),
        ({"epochs": 2.5}, "epochs is 2.5, but must be a whole number"),
        ({"epochs": True}, "epochs is True, but must be a whole number"),
        ({"cache": 1}, "cache is 1, but must be true or false"),
    ],
)
def test_settings_of_another_kind(given, said):
    with pytest.raises(RequestError, match=said):
        Settings(**given)


def test_an_option_of_python_that_does_not_exist(ground, tmp_path):
    with pytest.raises(RequestError, match=r"'epoch'.*Did you mean 'epochs'"):
        fitting.fit(ground.easy, out=tmp_path / "run", backbone=str(ground.backbone), epoch=3)
    with pytest.raises(RequestError, match=r"linear has no option 'detached'.*belongs to hst"):
        fitting.fit(ground.easy, out=tmp_path / "run", backbone=str(ground.backbone), method="linear", detached=True)
    assert not (tmp_path / "run").exists()


def test_words_in_any_order(ground, tmp_path):
    words = fit_words(ground, tmp_path / "run", "--meta-tokens", 3, "--epochs", 1)
    assert call("fit", *words[2:], words[1]) == 0
    assert result_of(tmp_path / "run")["arguments"]["meta_tokens"] == 3
