"""A CLIP model's classifier from class names, a fit that starts from it, and weights between the two."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers_cli import call
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn

import vitgraft
from vitgraft.adapters.zero_shot import SEVEN, OpenClip, zero_shot
from vitgraft.backbones import weights
from vitgraft.common.errors import RequestError
from vitgraft.training.wise import Between

open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
CLASSES = ["red", "green", "dark_blue"]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A tiny CLIP model with numbers from nowhere, and its image tower as timm has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = open_clip.CLIPVisionCfg(image_size=64, layers=4, width=64, head_width=16, patch_size=16)
        text = open_clip.CLIPTextCfg(layers=2, width=32, heads=2)
        clip = open_clip.model.CLIP(24, vision, text, quick_gelu=True).eval()
    arguments = {"embed_dim": 64, "depth": 4, "num_heads": 4, "img_size": 64}
    name = "vit_base_patch16_clip_quickgelu_224"
    vit = timm.create_model(name, num_classes=24, **arguments)
    vit.load_state_dict(checkpoint_filter_fn(dict(clip.state_dict()), vit))
    vit.reset_classifier(0)
    file = tmp_path_factory.mktemp("tower") / "image.safetensors"
    weights.save(vit, file, architecture=name, source="random", model_args=arguments)
    return clip, file


def texts(clip):
    return OpenClip("tiny", model=clip, tokenizer=open_clip.get_tokenizer("ViT-B-16"))


@pytest.fixture(scope="module")
def made(tower, tmp_path_factory):
    clip, file = tower
    return zero_shot(CLASSES, texts(clip), tmp_path_factory.mktemp("made") / "zero.safetensors", backbone=str(file))


def by_clip(clip, images, templates):
    """open_clip's own answers."""
    tokens = open_clip.get_tokenizer("ViT-B-16")
    with torch.no_grad():
        rows = []
        for name in ("red", "green", "dark blue"):
            each = F.normalize(clip.encode_text(tokens([t.format(name) for t in templates])), dim=-1)
            rows.append(F.normalize(each.mean(0), dim=0))
        return clip.logit_scale.exp() * F.normalize(clip.encode_image(images), dim=-1) @ torch.stack(rows).T


@pytest.mark.parametrize("templates", [("a photo of a {}.",), SEVEN])
def test_its_answers_are_those_of_the_two_towers(tower, tmp_path, templates):
    clip, file = tower
    path = zero_shot(CLASSES, texts(clip), tmp_path / "zero.safetensors", backbone=str(file), templates=templates)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        answers = vitgraft.Run(path).adapter.model(images)
    torch.testing.assert_close(answers, by_clip(clip, images, templates), rtol=1e-4, atol=1e-4)
    assert answers.std() > 0.01


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three colours in splits, under the names of the classes."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, colour in zip(CLASSES, [(200, 40, 40), (40, 200, 40), (20, 20, 120)], strict=True):
        for split, n in (("train", 8), ("val", 4)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(random.normal(colour, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def test_it_is_an_adapter_as_any(made, pictures):
    found = vitgraft.Run(made).predict(next((pictures / "val").rglob("*.png")))
    assert set(found.rows[0]["probabilities"]) == set(CLASSES)
    assert vitgraft.Run(made).result["method"] == "linear"


@pytest.fixture(scope="module")
def run(made, pictures, tower, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    how = {"method": "convpass", "start": made, "epochs": 3, "lr": 3e-3, "precision": "32", "quiet": True}
    return vitgraft.fit(pictures, out=out, **how)


def test_a_fit_starts_as_the_zero_shot_model(run, made):
    assert run.result["head"]["name"] == "text"
    assert run.result["protocol"]["start"]["method"] == "linear"
    between = Between(vitgraft.Run(run.path))
    start, images = between.at(0.0), torch.randn(4, 3, 64, 64)
    zero = vitgraft.Run(made).adapter
    order = [zero.header["classes"].index(name) for name in start.classes]
    with torch.no_grad():
        torch.testing.assert_close(start.adapter.model(images), zero.model(images)[:, order], rtol=1e-4, atol=1e-4)


def test_only_head_and_method_train_and_the_projection_stays(run, made):
    ours, theirs = (vitgraft.Run(path).adapter.model.state() for path in (run.path, made))
    torch.testing.assert_close(ours["head.projection"], theirs["head.projection"], rtol=1e-2, atol=1e-3)
    assert not torch.allclose(ours["head.fc.weight"], theirs["head.fc.weight"], rtol=1e-3)


def test_between_start_and_end(run):
    between = Between(vitgraft.Run(run.path))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        start, middle, end = (between.at(share).adapter.model(images) for share in (0.0, 0.5, 1.0))
        torch.testing.assert_close(end, vitgraft.Run(run.path).adapter.model(images))
    assert not torch.allclose(start, end, atol=1e-2)
    assert (middle - start).norm() < (end - start).norm()
    half = between.at(0.5).adapter.model.state()["head.fc.weight"]
    ends = between.first["head.fc.weight"], between.last["head.fc.weight"]
    torch.testing.assert_close(half, torch.lerp(*ends, 0.5))
    with pytest.raises(RequestError, match=r"wise is 1\.5, but is a share"):
        between.at(1.5)


def test_the_curve_and_a_file_by_the_command_line(run, pictures, tmp_path, capsys):
    assert call("wise", run.path, pictures, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["share"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    assert rows[-1]["value"] == pytest.approx(run.result["value"])
    assert call("wise", run.path, "--shares", 0.5, "--out", tmp_path / "half.safetensors") == 0
    half = vitgraft.Run(tmp_path / "half.safetensors")
    assert half.adapter.header["protocol"]["wise"] == 0.5
    assert half.evaluate(pictures, "val").value == pytest.approx(rows[2]["value"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shares", 0.5, 1, "--out", "x"], "--out takes one share, but 2 came"),
        ([], "Neither data to measure on nor a file to write came"),
    ],
)
def test_what_cannot_be_asked_of_the_curve(run, words, said, capsys):
    assert call("wise", run.path, *words) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_did_not_start_anywhere(made):
    with pytest.raises(RequestError, match="did not start from another run"):
        Between(vitgraft.Run(made))


def test_bad_requests(tower, tmp_path):
    clip, file = tower
    out, text = tmp_path / "zero.safetensors", texts(clip)
    with pytest.raises(RequestError, match="1 class names came"):
        zero_shot(["red"], text, out, backbone=str(file))
    with pytest.raises(RequestError, match=r"template 'a photo' has no place"):
        zero_shot(CLASSES, text, out, backbone=str(file), templates=["a photo"])
    other = vitgraft.Backbone.load(str(file))
    other.exchange({"patch_embed.proj.weight": torch.zeros_like(other.tensor("patch_embed.proj.weight"))})
    with pytest.raises(RequestError, match="has other numbers than the image tower"):
        zero_shot(CLASSES, text, out, backbone=other)
    assert not out.exists()
    with pytest.raises(RequestError, match=r"open_clip has no ViT-B-16 with weights 'nowhere'.*openai"):
        OpenClip("ViT-B-16", "nowhere")
    model = vitgraft.Run(zero_shot(CLASSES, text, out, backbone=str(file))).adapter.model
    with pytest.raises(RequestError, match="no linear layer does"):
        model.head.layer()


def test_without_a_start_the_head_says_where_it_comes_from(pictures, tower, tmp_path):
    with pytest.raises(RequestError, match="make them with `vitgraft zero-shot`"):
        vitgraft.fit(pictures, out=tmp_path / "run", backbone=str(tower[1]), head="text", quiet=True)


def test_a_side_network_has_features_of_its_own(made, pictures, tmp_path):
    with pytest.raises(RequestError, match=r"head\.projection would be of shape \[24, 72\]"):
        vitgraft.fit(pictures, out=tmp_path / "run", start=made, method="hst", epochs=1, quiet=True)


def test_a_class_that_was_not_named(made, pictures, tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    for name, kind in (("red", "red"), ("violet", "green")):
        (tmp_path / "set" / "train" / name).symlink_to(pictures / "train" / kind)
    with pytest.raises(RequestError, match=r"3 classes apart by their names, but 'violet' is not among them: make"):
        vitgraft.fit(tmp_path / "set", out=tmp_path / "run", start=made, method="lora", epochs=1, quiet=True)
