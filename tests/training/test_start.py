"""A fit that starts from a run: what it takes over, what is new, and what cannot be a start."""

import json
import shutil

import pytest
import torch
from helpers_cli import CLASSES, adapter_of, call, fit, fit_words, has, make_backbone, result_of, same

LORA = ["--method", "lora", "--rank", 2, "--image-size", 40]
STILL = ["--epochs", 1, "--lr", 1e-12, "--weight-decay", 0]  # what a fit ends with is what it began with


@pytest.fixture(scope="module")
def begun(ground, tmp_path_factory):
    return fit(ground, tmp_path_factory.mktemp("runs") / "lora", *LORA)


@pytest.fixture(scope="module")
def renamed(ground, tmp_path_factory):
    """The same pictures, with one class of another name."""
    root = tmp_path_factory.mktemp("renamed") / "data"
    shutil.copytree(ground.easy, root)
    for split in ("train", "val", "test"):
        (root / split / "stripes").rename(root / split / "waves")
    return root


def near(one, other, names):
    return all(torch.allclose(one[name].float(), other[name].float(), atol=1e-6) for name in names)


def test_of_the_same_classes_all_is_taken_over(ground, begun, tmp_path):
    """Method, options, size of pictures and backbone too, without being named."""
    words = fit_words(ground, tmp_path / "run", "--start", begun, *STILL)
    assert call(*words) == 0
    before, after = adapter_of(begun), adapter_of(tmp_path / "run")
    assert before.keys() == after.keys()
    assert near(before, after, before)
    result = result_of(tmp_path / "run")
    assert result["arguments"]["rank"] == 2
    assert result["protocol"]["image_size"] == [40, 40]
    assert result["protocol"]["start"] == {"run": str(begun), "method": "lora", "new": []}
    assert "start" in (tmp_path / "run" / "report.html").read_text()
    at_random = fit(ground, tmp_path / "random", *LORA, *STILL)
    assert not near(before, adapter_of(at_random), before)
    assert result["value"] > result_of(at_random)["value"]


def test_of_other_classes_their_layers_are_new(ground, begun, renamed, tmp_path, capsys):
    run = tmp_path / "run"
    fit(ground, run, "--start", begun, *STILL, data=renamed)
    before, after = adapter_of(begun), adapter_of(run)
    layers = {name for name in before if name.startswith("head.")}
    assert set(result_of(run)["protocol"]["start"]["new"]) == layers
    assert near(before, after, before.keys() - layers)
    assert after["head.fc.weight"].shape == (3, 48)
    assert not torch.equal(after["head.fc.weight"][:2], before["head.fc.weight"][:2])


def test_of_some_of_its_classes_their_rows_are_taken(ground, begun, tmp_path):
    data = shutil.copytree(ground.easy, tmp_path / "two")
    left = sorted(folder.name for folder in (data / "train").iterdir())
    for split in ("train", "val", "test"):
        shutil.rmtree(data / split / left[1])
    run = tmp_path / "run"
    fit(ground, run, "--start", begun, *STILL, data=data)
    before, after = adapter_of(begun), adapter_of(run)
    assert result_of(run)["protocol"]["start"]["new"] == []
    assert near({"fc": before["head.fc.weight"][[0, 2]]}, {"fc": after["head.fc.weight"]}, {"fc"})
    assert near(before, after, {name for name in before if not name.startswith("head.")})


def test_it_resumes_as_any_fit_does(ground, begun, tmp_path, capsys):
    words = fit_words(ground, tmp_path / "run", "--start", begun, "--epochs", 2)
    assert call(*words) == 0
    whole = adapter_of(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed at its end
    assert call(*words, "--resume") == 0
    assert same(adapter_of(tmp_path / "run"), whole)
    other = fit(ground, tmp_path / "other", *LORA, "--epochs", 1)
    assert call(*words, "--start", other, "--resume") == 2
    has(capsys.readouterr().err, "other settings", "start was", "and is now")


def test_an_adapter_file_is_a_start_too(ground, begun, tmp_path):
    fit(ground, tmp_path / "run", "--start", begun / "adapter.safetensors", *STILL)
    assert near(adapter_of(begun), adapter_of(tmp_path / "run"), adapter_of(begun))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "hst"], ["is a run of the method lora", "the method hst cannot start", "leave --method out"]),
        (["--task", "segment"], ["is a run of the task classify", "the task segment cannot start"]),
        (["--rank", 3], ["method.contacts.changes", "would be of shape [6, 48]", "has [4, 48]", "the run's"]),
        (["--backbone", "OTHER"], ["was trained on", "but the backbone here is"]),
        (["--start", "nowhere"], ["There is no run nowhere"]),
        (["--ranks", 3], ["no option '--ranks' with the method lora"]),
    ],
    ids=str,
)
def test_what_cannot_be_a_start(more, said, ground, begun, tmp_path, capsys):
    other = make_backbone(tmp_path / "other.safetensors", seed=1)
    more = [other if word == "OTHER" else word for word in more]
    assert call(*fit_words(ground, tmp_path / "run", "--start", begun, *more)) == 2
    has(capsys.readouterr().err, *said)
    assert not (tmp_path / "run").exists()


def test_what_is_consolidated_does_not_train_on(ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "first", "--method", "consolidator", "--epochs", 1)
    assert call(*fit_words(ground, tmp_path / "run", "--start", run)) == 2
    has(capsys.readouterr().err, "what is left after its consolidation", "another method")


def test_a_calibrated_method_keeps_its_channels(ground, tmp_path):
    run = fit(ground, tmp_path / "first", "--method", "sct", "--epochs", 1)
    fit(ground, tmp_path / "run", "--start", run, *STILL, data=ground.hard)
    before, after = adapter_of(run), adapter_of(tmp_path / "run")
    assert len(result_of(run)["data"]["classes"]) == len(CLASSES)
    assert near(before, after, before)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["start"] == str(run.resolve())
