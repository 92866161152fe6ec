"""How a run looks at a picture: in windows, in tiles, at its mirror image."""

import json

import pytest
import torch
from helpers_cli import call, result_of
from helpers_dense_fits import DATA, make_dense_ground, words_of
from torchvision.ops import masks_to_boxes

from vitgraft.adapters.run import Run
from vitgraft.engine.answers import ask
from vitgraft.model import build
from vitgraft.tasks.detect import tiled
from vitgraft.tasks.segment import mirrored, windows
from vitgraft.testing.backbones import random_backbone

SIZE = (64, 96)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone("dinov2")  # whose patches are not those that dense pictures have


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_dense_ground(tmp_path_factory.mktemp("ground"))


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
