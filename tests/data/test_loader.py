"""Decoding in worker processes, what happens to bad pictures, and which pictures make a batch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitgraft.common.errors import RequestError, WorkError
from vitgraft.data import BadPicture, Pictures, Preprocess, Split, epoch_batches, even_batches, read
from vitgraft.data.loader import GIVEN

pytestmark = pytest.mark.usefixtures("workers_at_once")
PREPROCESS = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Seven pictures of two classes, of different sizes and contents."""
    generator = np.random.default_rng(0)
    for index in range(7):
        path = tmp_path / "train" / ("cat" if index < 4 else "dog") / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)).save(path)
    return read(tmp_path).split("train")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def collect(pictures: Pictures, batches: list[list[int]]) -> list[tuple[torch.Tensor, ...]]:
    return [(batch.pixels, batch.targets, batch.indices) for batch in pictures.batches(batches)]


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_kept(split: Split, workers: int) -> None:
    batches = [[6, 0, 3], [1], [2, 5]]
    kept = Pictures(split, PREPROCESS, workers=0)
    streamed = Pictures(split, PREPROCESS, workers=workers, keep_bytes=0)
    assert len(kept) == len(streamed) == 7
    assert kept.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert kept.labels.dtype == torch.int64
    for _ in range(2):
        for one, other, batch in zip(collect(kept, batches), collect(streamed, batches), batches, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
            pixels, labels, indices = one
            assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (len(batch), 3, 16, 16))
            assert indices.tolist() == batch
            assert torch.equal(labels, kept.labels[indices])
            assert torch.equal(pixels[0], PREPROCESS.load(split.paths[batch[0]]))


def test_workers_change_nothing_and_progress_counts_up(split: Split) -> None:
    seen: list[tuple[int, int]] = []
    alone = Pictures(split, PREPROCESS, workers=0)
    helped = Pictures(split, PREPROCESS, workers=2, progress=lambda done, total: seen.append((done, total)))
    (a,), (b,) = collect(alone, [list(range(7))]), collect(helped, [list(range(7))])
    assert torch.equal(a[0], b[0])
    assert seen[-1] == (7, 7)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_the_global_generator_is_left_alone(split: Split, keep_bytes: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    collect(Pictures(split, PREPROCESS, workers=0, keep_bytes=keep_bytes), [[0, 1], [2]])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_named_before_any_training(split: Split, workers: int) -> None:
    cut(split.paths[1])
    split.paths[5].write_text("a text file")
    with pytest.raises(WorkError) as caught:
        Pictures(split, PREPROCESS, workers=workers)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("7 pictures", "but 2 cannot", "1.jpg (", "truncated", "5.jpg (", "no picture format", "--skip-bad"):
        assert part in message


def test_many_bad_pictures_are_counted(split: Split) -> None:
    for path in split.paths:
        path.write_text("")
    with pytest.raises(WorkError, match=r"but 7 cannot be: .*, and 2 more; "):
        Pictures(split, PREPROCESS, workers=0)


def test_of_pictures_that_were_given_no_split_is_named(split: Split) -> None:
    split.paths[1].write_text("")
    with pytest.raises(WorkError, match=r"^7 pictures were to be read, but 1 cannot be: "):
        Pictures(replace(split, name=GIVEN), PREPROCESS, workers=0)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_skip_bad_leaves_them_out(split: Split, keep_bytes: int) -> None:
    cut(split.paths[1])
    split.paths[5].write_text("a text file")
    pictures = Pictures(split, PREPROCESS, workers=2, skip_bad=True, keep_bytes=keep_bytes)
    assert [path for path, _ in pictures.skipped] == [split.paths[1], split.paths[5]]
    assert [path.name for path in pictures.paths] == ["0.jpg", "2.jpg", "3.jpg", "4.jpg", "6.jpg"]
    assert pictures.labels.tolist() == [0, 0, 0, 1, 1]
    ((pixels, _, _),) = collect(pictures, [[4, 1]])
    assert torch.equal(pixels[0], PREPROCESS.load(split.paths[6]))
    assert torch.equal(pixels[1], PREPROCESS.load(split.paths[2]))


def test_skip_bad_must_leave_every_class_a_picture(split: Split) -> None:
    for path in split.paths[4:]:
        cut(path)
    with pytest.raises(WorkError, match=r"none is left of the class of .*4\.jpg \(label 1, 3 bad\)"):
        Pictures(split, PREPROCESS, workers=0, skip_bad=True)


def test_a_file_that_changes_while_it_is_streamed(split: Split) -> None:
    pictures = Pictures(split, PREPROCESS, workers=2, keep_bytes=0)
    cut(split.paths[2])
    with pytest.raises(BadPicture, match="truncated"):
        collect(pictures, [[0, 1], [2, 3], [4, 5]])


def test_negative_workers(split: Split) -> None:
    with pytest.raises(RequestError, match="give 0 or more"):
        Pictures(split, PREPROCESS, workers=-1)


class Deadly(Preprocess):
    """Stands for a worker process that the system ends, as it does when memory runs out."""

    def load(self, path: str | os.PathLike[str]) -> torch.Tensor:
        os._exit(1)


def test_a_worker_that_dies_is_reported_in_a_sentence(split: Split) -> None:
    with pytest.raises(WorkError, match=r"one was killed .* --workers 0"):
        Pictures(split, Deadly(PREPROCESS.size, PREPROCESS.mean, PREPROCESS.std), workers=1)


# --- batches


def test_epoch_batches_shuffle_by_seed_and_epoch() -> None:
    batches = epoch_batches(1000, 64, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [64] * 15
    assert len({index for batch in batches for index in batch}) == 960
    assert batches == epoch_batches(1000, 64, seed=0, epoch=0)
    assert batches != epoch_batches(1000, 64, seed=0, epoch=1)
    assert batches != epoch_batches(1000, 64, seed=1, epoch=0)
    assert epoch_batches(1000, 64, seed=1, epoch=0) != epoch_batches(1000, 64, seed=0, epoch=1)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("n", [50, 8, 5])
def test_ranks_share_the_batches_of_one_process(world: int, n: int) -> None:
    whole = epoch_batches(n, 8, seed=5, epoch=2)
    shares = [epoch_batches(n, 8, seed=5, epoch=2, rank=rank, world=world) for rank in range(world)]
    assert all(len(share) == len(whole) for share in shares)
    for k, batch in enumerate(whole):
        assert sorted(index for share in shares for index in share[k]) == sorted(batch)


def test_few_pictures_make_one_batch() -> None:
    (batch,) = epoch_batches(5, 64, seed=0, epoch=0)
    assert sorted(batch) == [0, 1, 2, 3, 4]
    assert epoch_batches(0, 64, seed=0, epoch=0) == []


@pytest.mark.parametrize(("n", "size", "world"), [(100, 10, 4), (100, 0, 1), (3, 8, 4)])
def test_batches_that_cannot_be_shared(n: int, size: int, world: int) -> None:
    with pytest.raises(RequestError, match="; "):
        epoch_batches(n, size, seed=0, epoch=0, world=world)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_even_batches_show_every_picture_once(world: int) -> None:
    shares = [even_batches(9, 4, rank=rank, world=world) for rank in range(world)]
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(9))
    assert all(batch for share in shares for batch in share)
    assert even_batches(9, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert even_batches(0, 4) == []
    with pytest.raises(RequestError, match="1 or more"):
        even_batches(9, 0)


# --- real pictures


@pytest.mark.real
@pytest.mark.parametrize("name", ["caltech101", "cifar10", "rsscn7", "nlvr_count", "nlvr_xloc"])
def test_real_sets_decode(name: str) -> None:
    root = Path(os.environ.get("VITGRAFT_SHARED", "")) / "data" / name
    if not os.environ.get("VITGRAFT_SHARED") or not root.is_dir():
        pytest.skip(f"data/{name} is not in the folder that VITGRAFT_SHARED names")
    data = read(root)
    assert list(data.splits) == ["train", "val", "test"]
    pictures = Pictures(data.split("val"), PREPROCESS, workers=2)
    assert len(pictures) == len(data.split("val"))
    assert pictures.labels.unique().tolist() == list(range(len(data.classes)))
