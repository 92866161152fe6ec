"""The store of activations: computed once per picture, the same every time, within its limit."""

import pytest
import torch
from lightning_fabric import Fabric

from vitgraft.common.settings import Settings
from vitgraft.data.batch import Batch
from vitgraft.engine.activations import MemoryStore, activation_store, fill, recall
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone, random_images


@pytest.fixture
def model(cls):
    return build(cls, "hst", classes=3, detached=True).eval()


class Reading:
    """Reads pictures out of a set, and counts how often."""

    def __init__(self, model, images):
        self.model, self.images, self.calls = model, images, []

    def __call__(self, indices):
        def compute():
            self.calls.append(indices.tolist())
            return self.model.method.read(self.model.backbone, self.images[indices])

        return compute


def flat(activations):
    return [activations.tokens, *activations.taps.values(), *activations.extra.values()]


class Seven:
    """Stands for seven loaded pictures."""

    def __init__(self, *views):
        self.views = views

    def __len__(self):
        return 7


class Ready(Seven):
    """The same with pixels, which are their numbers."""

    def __init__(self, images):
        super().__init__("")
        self.images = images

    def batches(self, order, *, epoch=None):
        for batch in order:
            indices = torch.tensor(batch)
            yield Batch(self.images[indices], [], indices, indices)


BYTES = 5 * 17 * 48 * 4  # of one picture: the tokens and four taps, each [1 + 16, 48], in float32


def test_hits_and_misses(model):
    images = random_images(model.backbone, batch=6)
    reading = Reading(model, images)
    store = MemoryStore(6, 6 * BYTES, torch.float32)
    batches = [torch.tensor(b) for b in ([0, 1, 2], [3, 4], [4, 2, 0], [4, 5], [5, 3, 1, 0])]
    for indices in batches:
        found = store.get(indices, reading(indices))
        direct = model.method.read(model.backbone, images[indices])
        for ours, theirs in zip(flat(found), flat(direct), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert found.grid == (4, 4)
        assert list(found.taps) == [0, 1, 2, 3]
    assert reading.calls == [[0, 1, 2], [3, 4], [4, 5]]
    assert not store.full


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [True, False])
def test_the_first_use_is_bitwise_every_later_one(model, dtype, room):
    """A fit that was killed and resumed computes again what the other took from the store."""
    images = random_images(model.backbone, batch=4)
    indices = torch.tensor([2, 0, 3])
    store = MemoryStore(4, 10**9 if room else 0, dtype)
    first, second = (store.get(indices, Reading(model, images)(indices)) for _ in range(2))
    assert store.full == (not room)
    for a, b in zip(flat(first), flat(second), strict=True):
        assert a.dtype == b.dtype == dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize(("bytes_", "kept"), [(6 * BYTES, True), (6 * BYTES - 1, False), (0, False)])
def test_the_limit_is_for_the_whole_set(model, bytes_, kept):
    reading = Reading(model, random_images(model.backbone, batch=6))
    store = MemoryStore(6, bytes_, torch.float32)
    indices = torch.tensor([0, 1])
    for _ in range(3):
        store.get(indices, reading(indices))
    assert store.full == (not kept)
    assert len(reading.calls) == (1 if kept else 3)


def test_bf16_takes_half_the_room(model):
    reading = Reading(model, random_images(model.backbone, batch=6))
    store = MemoryStore(6, 3 * BYTES, torch.bfloat16)
    indices = torch.tensor([0, 1])
    store.get(indices, reading(indices))
    assert not store.full


def test_what_is_handed_out_is_not_the_store(model):
    reading = Reading(model, random_images(model.backbone, batch=2))
    store = MemoryStore(2, 10**9, torch.float32)
    indices = torch.tensor([0, 1])
    first = store.get(indices, reading(indices))
    kept = first.tokens.clone()
    first.tokens.zero_()
    second = store.get(indices, reading(indices))
    assert torch.equal(second.tokens, kept)
    second.tokens.zero_()
    assert torch.equal(store.get(indices, reading(indices)).tokens, kept)
    assert len(reading.calls) == 1


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)],
)
def test_the_store_has_the_precision_of_the_run(precision, dtype):
    backbone, fabric = random_backbone(), Fabric(accelerator="cpu", devices=1, precision=precision)
    given = (backbone.preprocess(), Settings(memory=0.5), fabric)
    store = activation_store(build(backbone, "linear", classes=3), Seven(""), *given)
    assert (store.n, store.limit, store.dtype) == (7, 2**29, dtype)
    assert (
        activation_store(build(backbone, "hst", classes=3), Seven(""), *given) is None
    )  # gradients cross the backbone
    assert activation_store(build(backbone, "linear", classes=3), Seven("a", "b"), *given).n == 14
    drawn = activation_store(build(backbone, "linear", classes=3), Seven(), *given)
    assert (drawn.limit, drawn.dtype) == (0, dtype)  # rounds, and keeps nothing


@pytest.mark.parametrize("method", ["linear", "hst"])
def test_a_model_answers_the_same_from_the_store(method):
    backbone = random_backbone("siglip")
    arguments = {"detached": True} if method == "hst" else {}
    model = build(backbone, method, classes=3, **arguments).eval()
    images = random_images(backbone, batch=4)
    indices = torch.tensor([3, 1])
    store = MemoryStore(4, 10**9, torch.float32)
    assert recall(model, None, indices, images[indices]) is None
    for _ in range(2):
        kept = recall(model, store, indices, images[indices])
        torch.testing.assert_close(model(images[indices], None, kept), model(images[indices]))


def test_nothing_random_is_kept(model):
    """Drop path in training must not enter a pass that is computed once."""
    model.method.contacts.in_training.drop_path = 0.9
    images = random_images(model.backbone, batch=4)
    one = model.train().method.read(model.backbone, images)
    two = model.eval().method.read(model.backbone, images)
    assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(two), strict=True))


def test_all_pictures_are_read_once_in_batches_of_one_size(model, monkeypatch):
    """The last batch is filled up: a picture's activations may depend on how many stand beside it, in the last bit."""
    pictures, told, passed = Ready(random_images(model.backbone, batch=7)), [], []
    store = MemoryStore(7, 7 * BYTES, torch.float32)
    read = model.read
    monkeypatch.setattr(model, "read", lambda images: passed.append(len(images)) or read(images))
    for _ in range(2):
        fill(model, store, pictures, lambda batch: batch.pixels, 3, tell=lambda *numbers: told.append(numbers))
    assert passed == [3, 3, 3]
    assert told == [(3, 7), (6, 7), (7, 7)]
    for indices in torch.arange(7)[:, None]:
        assert not store.lacks(indices)
        torch.testing.assert_close(store.get(indices, None).tokens, read(pictures.images[indices]).tokens)


@pytest.mark.parametrize("limit", [0, 7 * BYTES - 1])
def test_what_has_no_room_is_not_read_in_advance(model, limit, monkeypatch):
    pictures, passed = Ready(random_images(model.backbone, batch=7)), []
    read = model.read
    monkeypatch.setattr(model, "read", lambda images: passed.append(len(images)) or read(images))
    store = MemoryStore(7, limit, torch.float32)
    for _ in range(2):
        fill(model, store, pictures, lambda batch: batch.pixels, 2)
    assert len(passed) == (1 if limit else 0)  # from one batch follows that all would not fit
