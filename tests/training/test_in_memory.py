"""Data sets that lie in memory: torch's, Hugging Face's, pairs."""

import json

import datasets
import numpy as np
import pytest
import torch
from helpers_cli import CLASSES, adapter_of, call, fit_words, picture, result_of, same
from PIL import Image

import vitgraft
from vitgraft import tasks
from vitgraft.common.errors import RequestError
from vitgraft.data import in_memory, open_picture
from vitgraft.data.recognise import read_dense, recognise
from vitgraft.data.segmentations import sample


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    return [(picture(kind, rng), k) for _ in range(n) for k, kind in enumerate(CLASSES)]


class Torch(torch.utils.data.Dataset):
    """A data set of torch's, which raises no IndexError at its end, with names for its classes."""

    classes = list(CLASSES)

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index % len(self.items)]


def hugging_face(items):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [image for image, _ in items], "label": [label for _, label in items]}
    return datasets.Dataset.from_dict(rows, features=features)


OPTIONS = {"method": "linear", "batch_size": 12, "epochs": 3, "workers": 0, "quiet": True}


@pytest.mark.parametrize("kind", ["torch", "subset", "hugging face", "pairs", "iterable"])
def test_a_data_set_is_fitted_as_its_folder_is(kind, ground, tmp_path):
    train, val = pairs(6), pairs(4, seed=1)
    given = {
        "torch": lambda: {"train": Torch(train), "val": Torch(val)},
        "subset": lambda: {"train": torch.utils.data.Subset(Torch(train), range(len(train))), "val": Torch(val)},
        "hugging face": lambda: datasets.DatasetDict(train=hugging_face(train), validation=hugging_face(val)),
        "pairs": lambda: {"train": [(image, CLASSES[k]) for image, k in train], "val": Torch(val)},
        "iterable": lambda: {"train": iter([(image, CLASSES[k]) for image, k in train]), "val": Torch(val)},
    }[kind]()
    run = vitgraft.fit(given, out=tmp_path / "run", backbone=str(ground.backbone), **OPTIONS)
    assert run.classes == CLASSES
    assert run.result["data"]["pictures"] == {"train": 18, "val": 12}
    found = run.evaluation.to_dict()
    for path, (image, label) in zip(run.evaluation.paths, val, strict=True):
        assert np.array_equal(open_picture(path), image)
        assert CLASSES[run.evaluation.labels[run.evaluation.paths.index(path)]] == CLASSES[label]
    # The folder is one like any other, and a data set alone is evaluated as the split that it is meant to be.
    again = tmp_path / "again"
    assert call(*fit_words(ground, again, "--method", "linear", data=tmp_path / "run" / "pictures")) == 0
    assert same(adapter_of(tmp_path / "run"), adapter_of(again))
    assert run.evaluate(Torch(val), "val").to_dict() == found


def test_one_alone_has_a_fifth_held_out(ground, tmp_path):
    run = vitgraft.fit(hugging_face(pairs(10)), out=tmp_path / "run", backbone=str(ground.backbone), **OPTIONS)
    assert run.result["data"]["pictures"] == {"train": 24, "val": 6}


def test_a_fit_goes_on_with_what_it_began_with(ground, tmp_path):
    given = {**OPTIONS, "backbone": str(ground.backbone), "out": tmp_path / "run"}
    with pytest.raises(RequestError, match="There is no method"):
        vitgraft.fit(pairs(5), **{**given, "method": "nothing"})
    vitgraft.fit(pairs(6), **given)
    before = adapter_of(tmp_path / "run")
    assert result_of(tmp_path / "run")["data"]["counts"]["train"]["0"]["pictures"] == 5, "not those of the first call"
    with pytest.raises(RequestError, match="already holds a run"):
        vitgraft.fit(pairs(8), **given)
    again = vitgraft.fit(pairs(6), **given, resume=True)
    assert again.result["data"]["pictures"]["train"] == 15
    assert same(adapter_of(tmp_path / "run"), before)


def test_several_labels_and_numbers(tmp_path):
    images = [image for image, _ in pairs(2)]
    several = [["a", "b"], ["b"], [], ["c"], ["a", "c"], ["b"]]
    assert in_memory.as_folder(list(zip(images, several, strict=True)), tmp_path / "m", alone="train") == "multilabel"
    found = tasks.find("multilabel").read(tmp_path / "m")
    assert found.classes == ("a", "b", "c")
    assert found.splits["train"].labels == ((0, 1), (1,), (), (2,), (0, 2), (1,))
    flags = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.float32)
    data = Torch(list(zip(images, flags, strict=True)))
    assert in_memory.as_folder({"train": data}, tmp_path / "f") == "multilabel"
    found = tasks.find("multilabel").read(tmp_path / "f")
    assert [tuple(CLASSES.index(found.classes[k]) for k in own) for own in found.splits["train"].labels] == [
        (0, 1), (1,), (), (2,), (0, 2), (1,),
    ]  # fmt: skip
    data = [(image, float(k)) for k, image in enumerate(images)]
    assert in_memory.as_folder({"train": data}, tmp_path / "v") == "regress"
    assert tasks.find("regress").read(tmp_path / "v").splits["train"].labels == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("form", [np.asarray, Image.fromarray, torch.from_numpy], ids=["array", "PIL", "tensor"])
def test_masks(tmp_path, form):
    rng = np.random.default_rng(0)
    data = Torch([(image, form(rng.integers(0, 3, (32, 32), dtype=np.uint8))) for image, _ in pairs(2)])
    assert in_memory.as_folder({"train": data, "val": data}, tmp_path / "set") == "segment"
    assert recognise(tmp_path / "set") == "segment"
    found = read_dense(tmp_path / "set", "segment")
    assert (found.classes, len(found.splits["val"])) == (CLASSES, 6)
    for path, (_, mask) in zip(found.splits["train"].masks, data.items, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(mask))


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_as_torchvision_has_them(tmp_path, masks):
    mask = torch.zeros(2, 32, 32, dtype=torch.uint8)
    mask[0, 4:20, 2:10], mask[1, 8:12, 20:30] = 1, 1
    target = {"boxes": torch.tensor([[2.0, 4, 10, 20], [20, 8, 30, 12]]), "labels": torch.tensor([2, 0])}
    target |= {"masks": mask} if masks else {}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    images = [image for image, _ in pairs(1)]
    data = Torch([(images[0], target), (images[1], empty)])
    task = "instance" if masks else "detect"
    assert in_memory.as_folder({"train": data}, tmp_path / "set") == task
    assert recognise(tmp_path / "set") == task
    found = read_dense(tmp_path / "set", task)
    one, other = found.splits["train"].objects
    assert found.classes == CLASSES
    assert one.boxes.tolist() == target["boxes"].tolist()
    assert one.labels.tolist() == [2, 0]
    assert len(other) == 0
    if masks:
        every = np.arange(32)
        assert all(np.array_equal(sample(s, (32, 32), every, every), m) for s, m in zip(one.segmentations, mask.bool()))  # noqa: B905


def test_pictures_are_kept_as_they_are_stored(tmp_path):
    """A Hugging Face data set is not decoded and encoded again: a JPEG stays the file that it was."""
    path = tmp_path / "a.jpg"
    picture("dots", np.random.default_rng(0)).save(path)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"img": [str(path)] * 2, "fine_label": ["a", "b"]}, features=features)
    in_memory.as_folder({"train": data}, tmp_path / "set")
    assert [p.read_bytes() for p in sorted((tmp_path / "set").glob("images/train/*.jpeg"))] == [path.read_bytes()] * 2
    rows = [json.loads(line) for line in (tmp_path / "set" / "train.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == ["a", "b"]


IMAGE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "The data set holds no picture: give pairs"),
        (7, "A int is no data set: give a folder, or pairs"),
        ([IMAGE], "Item 0 is a Image, but a picture with its truth is wanted"),
        ([(IMAGE, None)], "Item 0 of the data set: a NoneType says nothing of a picture"),
        ([(IMAGE, 1), (IMAGE, 1.5)], "Item 1 of the data set has a value, but those before it have a class"),
        ([(torch.randn(3, 8, 8), 1)], "before it is normalised"),
        ([(IMAGE, {"box": 1})], "a dict of box says nothing"),
        ([("none.png", 1)], "There is no picture none.png"),
        ([{"image": IMAGE, "a": 1, "b": 2}], "has the columns image, a, b"),
        ({"trian": [(IMAGE, 1)]}, "'trian' is no split"),
        ({"train": [(IMAGE, 1)], "val": [(IMAGE, 1.5)]}, "The splits are of different kinds"),
        (Torch([(IMAGE, 5)]), "the label 5 is none of the classes, which are 0 to 2"),
        ([(IMAGE, np.full((8, 8), -1))], "a mask of int64 from -1 to -1 has no classes"),
    ],
)
def test_what_is_no_data_set_is_said_and_leaves_nothing(data, said, tmp_path):
    with pytest.raises(RequestError) as error:
        in_memory.as_folder(data, tmp_path / "set")
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())
