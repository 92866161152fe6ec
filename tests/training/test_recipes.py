"""How the pictures of a fit are normalised and augmented: settings that hold for training, and what becomes of them."""

import json
import random

import numpy as np
import pytest
import torch
from helpers_cli import adapter_of, call, fit, fit_words, picture, result_of, same, start, wait_for
from helpers_dense import segment_set
from PIL import Image
from safetensors import safe_open

import vitgraft
from vitgraft import tasks
from vitgraft.adapters import file as adapter
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import AUGMENTATIONS, NORMALISATIONS, Settings
from vitgraft.data import Pictures, Preprocess, read
from vitgraft.data.loader import AS_THEY_ARE
from vitgraft.data.recipes import Recipe
from vitgraft.engine.activations import MemoryStore

pytestmark = pytest.mark.usefixtures("workers_at_once")
PREPROCESS = Preprocess((24, 32), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
DRAWN = [name for name in AUGMENTATIONS if name != "none"]


@pytest.fixture(scope="module")
def split(ground):
    return read(ground.easy).split("train")


def drawn(split, epoch, *, name="crop-randaugment", seed=0, workers=0, order=((3, 0), (7,))):
    """{index: pixels} as an epoch of training sees them."""
    pictures = Pictures(split, PREPROCESS, workers=workers, recipe=Recipe(name, PREPROCESS, seed))
    batches = list(pictures.batches(order, epoch=epoch))
    return {i: pixels for batch in batches for i, pixels in zip(batch.indices.tolist(), batch.pixels, strict=True)}


def equal(one, other):
    assert one.keys() == other.keys()
    return [torch.equal(one[index], other[index]) for index in one]


# Augmentation.


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_follows_from_seed_epoch_and_index(name, split):
    first = drawn(split, 5, name=name)
    again = drawn(split, 5, name=name, workers=2, order=([7, 1], [0], [3]))  # whatever is beside it, and where
    again.pop(1)
    assert all(equal(dict(sorted(first.items())), dict(sorted(again.items()))))
    others = [drawn(split, epoch, name=name, seed=seed) for epoch, seed in [(6, 0), (7, 0), (5, 1), (5, 2)]]
    assert not all(all(equal(first, other)) for other in others)
    assert all((pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 24, 32)) for pixels in first.values())


def test_every_picture_is_another_one_in_every_epoch(split):
    epochs = [drawn(split, epoch, name="crop") for epoch in range(3)]
    assert not any(equal(epochs[0], epochs[1]) + equal(epochs[1], epochs[2]))


def test_evaluation_and_calibration_see_pictures_as_they_are(split):
    pictures = Pictures(split, PREPROCESS, workers=0, recipe=Recipe("crop-randaugment", PREPROCESS, 0))
    ((batch),) = pictures.batches([[4, 2]])
    assert torch.equal(batch.pixels[1], PREPROCESS.load(split.paths[2]))
    assert pictures.views == ()
    assert Pictures(split, PREPROCESS, workers=0).views == AS_THEY_ARE


@pytest.mark.parametrize("training", [True, False])
def test_only_a_training_split_is_augmented(training, split):
    task = tasks.find("classify")
    settings = Settings(workers=0, augmentation="crop")
    loaded = task.load(split, PREPROCESS, classes=3, settings=settings, training=training)
    assert loaded.views == (() if training else AS_THEY_ARE)


def test_what_a_flip_is():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    recipe, plain = Recipe("flip", PREPROCESS, 0), PREPROCESS.pixels(image)
    found = [recipe.pixels(image, str(key)) for key in range(40)]
    kept, mirrored = (sum(torch.equal(pixels, to) for pixels in found) for to in (plain, plain.flip(2)))
    assert kept + mirrored == 40
    assert 10 < mirrored < 30


def test_a_crop_is_a_part_of_the_file_at_its_own_resolution():
    """The left half is black, the right one white: some crops lie in one of them."""
    image = Image.fromarray(np.repeat([[0] * 200 + [255] * 200], 300, 0).astype(np.uint8))
    found = [Recipe("crop", PREPROCESS, 0).pixels(image, str(key)) for key in range(60)]
    assert sum(int(pixels.max()) == 0 or int(pixels.min()) == 255 for pixels in found) > 10
    assert sum(int(pixels.min()) == 0 and int(pixels.max()) == 255 for pixels in found) > 10


def test_randaugment_holds_at_its_strongest():
    """timm's posterising at full strength keeps no bit, which newer Pillow refuses."""
    image = picture("rings", np.random.default_rng(0))
    recipe = Recipe("randaugment", PREPROCESS, 0)
    assert len({recipe.pixels(image, str(key)).sum().item() for key in range(600)}) > 300


def test_the_shared_generators_are_left_alone(split):
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    drawn(split, 0)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    "words", [["--method", "bitfit"], ["--method", "sct"], ["--views", 2, "--detached"]], ids=lambda w: w[-1]
)
def test_a_killed_fit_ends_in_the_same_weights(words, ground, tmp_path):
    words = [*words, "--precision", "32", "--epochs", 4, "--lr", "3e-3", "--augmentation", "crop-randaugment"]
    whole = fit(ground, tmp_path / "whole", *words)
    other = start(fit_words(ground, tmp_path / "killed", *words), tmp_path / "log")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    wait_for(lambda: not other.process.is_alive() or (metrics.exists() and metrics.read_text().count("\n") >= 2))
    other.process.kill()
    other.process.join()
    fit(ground, tmp_path / "killed", *words, "--resume")
    assert same(adapter_of(whole), adapter_of(tmp_path / "killed"))
    plain = fit(ground, tmp_path / "plain", *words, "--augmentation", "none", "--views", 0)
    assert not same(adapter_of(whole), adapter_of(plain))


def test_a_detached_method_reads_every_picture_in_every_epoch(ground, tmp_path, monkeypatch):
    seen, get = [], MemoryStore.get

    def look(self, indices, compute):
        return get(self, indices, lambda: (seen.extend(indices.tolist()), compute())[1])

    monkeypatch.setattr(MemoryStore, "get", look)
    for words, passes in ((["none"], 1), (["flip"], 3), (["flip", "--views", 2], 2)):
        seen.clear()
        fit(ground, tmp_path / str(passes), "--method", "linear", "--epochs", 3, "--augmentation", *words)
        assert len(seen) == passes * 36 + 18  # and once the pictures of val


# Views.


def test_epochs_take_turns_at_the_views(split):
    recipe = Recipe("crop-randaugment", PREPROCESS, 0, views=2)
    pictures = Pictures(split, PREPROCESS, workers=0, recipe=recipe)
    first, second, third = (next(pictures.batches([[3, 0, 7]], epoch=epoch)).pixels for epoch in range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    assert len(set(pictures.views)) == 2


VIEWS = ("--method", "hst", "--detached", "--epochs", 4, "--augmentation", "crop", "--views", 2)


def test_kept_views_give_what_views_that_are_read_anew_give(ground, tmp_path):
    kept, anew = (fit(ground, tmp_path / memory, *VIEWS, "--memory", memory) for memory in ("1", "0"))
    assert same(adapter_of(kept), adapter_of(anew))


def test_views_on_disk_are_found_again(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
    first = fit(ground, tmp_path / "first", *VIEWS, "--cache")
    parts = sorted((tmp_path / "cache").rglob("*.safetensors"))
    digests = {d for part in parts for d in json.loads(safe_open(part, "pt").metadata()["digests"])}
    assert len([d for d in digests if "crop" in d]) == 2 * 36
    again = fit(ground, tmp_path / "again", *VIEWS, "--cache")
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == parts
    assert same(adapter_of(first), adapter_of(again))
    other = fit(ground, tmp_path / "other", *VIEWS, "--cache", "--seed", 1)  # other views
    assert len(sorted((tmp_path / "cache").rglob("*.safetensors"))) > len(parts)
    assert not same(adapter_of(first), adapter_of(other))


# Normalisation.


def normalised(ground, run, **options):
    """What the model is shown of the first training batch, and the run."""
    return vitgraft.fit(
        str(ground.easy), out=run, backbone=str(ground.backbone), method="linear", epochs=2, batch_size=12, workers=0,
        quiet=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_fit_normalises_as_it_is_told(name, ground, tmp_path, monkeypatch):
    shown, normalise = [], Preprocess.normalise

    def look(self, pixels):
        shown.append((pixels.clone(), normalise(self, pixels)))
        return shown[-1][1]

    monkeypatch.setattr(Preprocess, "normalise", look)
    run = normalised(ground, tmp_path / "run", normalisation=name)
    own = vitgraft.Backbone.load(str(ground.backbone)).native
    mean, std = NORMALISATIONS[name] or (own.mean, own.std)
    wanted = (shown[0][0] / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert len(shown) > 3  # in training and in evaluation
    torch.testing.assert_close(shown[0][1], wanted)
    if name == "unit":
        torch.testing.assert_close(shown[-1][1], shown[-1][0] / 255)
    loaded = adapter.load(run.path / "adapter.safetensors")
    assert (loaded.preprocess.mean, loaded.preprocess.std) == (mean, std)
    assert result_of(run.path)["protocol"]["normalisation"] == name


def test_a_saved_adapter_predicts_as_it_was_measured(ground, tmp_path):
    run = normalised(ground, tmp_path / "run", normalisation="unit", augmentation="flip")
    later = vitgraft.Run(tmp_path / "run" / "adapter.safetensors", str(ground.backbone))
    assert torch.equal(later.evaluate(ground.easy, "val").probabilities, run.evaluation.probabilities)
    one = next(iter((ground.easy / "val").rglob("*.png")))
    row = run.evaluation.paths.index(str(one))
    told = later.predict(one).rows[0]["probabilities"]
    assert list(told.values()) == pytest.approx(run.evaluation.probabilities[row].tolist(), abs=1e-5)
    other = normalised(ground, tmp_path / "other", normalisation="own")
    assert not same(adapter_of(run.path), adapter_of(other.path))


def test_activations_on_disk_are_of_one_normalisation(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
    kept = [normalised(ground, tmp_path / name, normalisation=name, cache=True) for name in ("own", "unit")]
    fresh = normalised(ground, tmp_path / "fresh", normalisation="unit", cache=True)
    assert same(adapter_of(kept[1].path), adapter_of(fresh.path))
    assert not same(adapter_of(kept[0].path), adapter_of(fresh.path))


def test_a_merged_model_says_how_its_pictures_are_normalised(ground, tmp_path):
    run = fit(ground, tmp_path / "run", "--method", "lora", "--normalisation", "imagenet", "--precision", "32")
    assert call("merge", run, "--backbone", ground.backbone, "--out", tmp_path / "model.safetensors") == 0
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["pretrained_cfg"])
    assert (tuple(told["mean"]), tuple(told["std"])) == NORMALISATIONS["imagenet"]


def test_a_dense_task_is_normalised_too(ground, tmp_path):
    """Every picture is padded with the mean colour, which is 0 there."""
    options = {"backbone": str(ground.backbone), "method": "linear", "head": "linear", "image_size": 32, "epochs": 1}
    options |= {"batch_size": 2, "workers": 0, "quiet": True, "precision": "32", "normalisation": "unit"}
    run = vitgraft.fit(segment_set(tmp_path / "set"), out=tmp_path / "run", task="segment", **options)
    assert run.adapter.preprocess.mean == (0, 0, 0)
    assert run.adapter.preprocess.fit


# What is refused.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--normalisation", "imagnet"], "no normalisation 'imagnet': there are own, imagenet, inception, unit"),
        (["--augmentation", "randaugmnt"], "Did you mean 'randaugment'"),
        (["--augmentation", "flip", "--cache"], "with the augmentation flip a picture is another one in every epoch"),
        (["--views", 2], "2 views of each picture were asked for, but without augmentation all are the same"),
        (["--views", -1, "--augmentation", "flip"], "views is -1, but must be at least 0"),
    ],
)
def test_bad_requests(words, said, ground, tmp_path, capsys):
    assert call(*fit_words(ground, tmp_path / "run", *words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_dense_task_has_views_of_its_own():
    from vitgraft.training.request import sort_options

    with pytest.raises(
        RequestError, match="augmentation is for the task classify or multilabel or regress, but this one is segment"
    ):
        sort_options(tasks.find("segment"), "linear", "upernet", {"augmentation": "flip"})
