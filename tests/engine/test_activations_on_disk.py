"""Activations on disk: found again by any later fit, never stale, never half there."""

import json

import pytest
import torch
from helpers_cli import adapter_of, call, fit, fit_words, make_backbone, metrics_of, result_of, same
from safetensors.torch import save_file

from vitgraft.backbones import ViT
from vitgraft.common.errors import RequestError
from vitgraft.engine import activations_on_disk as disk
from vitgraft.engine.activations_on_disk import DiskStore, picture_digests
from vitgraft.features import Activations

WAY = {"backbone": "abc", "taps": [0, 1]}
DIGESTS = [f"{i:032x}" for i in range(6)]


def activations(indices, shift=0.0):
    """Each picture's own, with numbers that bf16 holds."""
    base = torch.tensor(indices, dtype=torch.float32)[:, None, None] + shift
    return Activations(base.expand(-1, 3, 4), [(1, 2)], {0: base.expand(-1, 3, 4) + 8, 1: base.expand(-1, 3, 4) + 16})


class Computing:
    def __init__(self, shift=0.0):
        self.calls, self.shift = [], shift

    def __call__(self, indices):
        def compute():
            self.calls.append(indices)
            return activations(indices, self.shift)

        return compute


def made(root, way=WAY, digests=DIGESTS, limit=10**9):
    return DiskStore(root, way, digests, activations([0]), limit)


def get(store, indices, computing):
    found = store.get(torch.tensor(indices), computing(indices))
    expected = activations(indices, computing.shift)
    assert found.grid == (1, 2)
    assert torch.equal(found.tokens.float(), expected.tokens)
    assert {i: t.float().tolist() for i, t in found.taps.items()} == {i: t.tolist() for i, t in expected.taps.items()}
    assert found.tokens.dtype == torch.bfloat16


def test_what_was_written_is_found_by_the_next_one(tmp_path):
    first, computing = made(tmp_path), Computing()
    assert first.missing == 6
    for indices in ([0, 1], [2, 0], [1, 2], [3]):
        get(first, indices, computing)
    assert computing.calls == [[0, 1], [2, 0], [3]]
    first.write()
    get(first, [3, 1], computing)
    second, never = made(tmp_path), Computing()
    assert second.missing == 2
    get(second, [3, 0, 2, 1], never)
    assert never.calls == []
    get(second, [4, 1], never)
    assert never.calls == [[4, 1]]


def test_a_kill_loses_what_was_not_written(tmp_path, monkeypatch):
    first = made(tmp_path)
    get(first, [0, 1], Computing())
    first.write()
    get(first, [2], Computing())
    monkeypatch.setattr(disk, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.write()
    monkeypatch.undo()
    assert made(tmp_path).missing == 4
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_parts_are_written_as_they_fill(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "PART", 2 * 3 * 3 * 4 * 2)  # two pictures of three tensors [3, 4] in two bytes
    store = made(tmp_path)
    for i in range(5):
        get(store, [i], Computing())
    assert made(tmp_path).missing == 2


def test_two_processes_help_each_other(tmp_path):
    one, two, computing = made(tmp_path), made(tmp_path), Computing()
    get(one, [0, 1], computing)
    one.write()
    get(two, [1, 0], computing)
    assert computing.calls == [[0, 1]]
    get(two, [2, 3], computing)
    get(one, [2, 3], computing)  # both have computed them before either has written
    one.write()
    two.write()
    third = made(tmp_path)
    get(third, [0, 1, 2, 3], computing)
    assert computing.calls == [[0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("change", [{"backbone": "abd"}, {"taps": [0]}, {"more": 1}])
def test_another_way_of_reading_finds_nothing(change, tmp_path):
    store = made(tmp_path)
    get(store, [0], Computing())
    store.write()
    other = made(tmp_path, {**WAY, **change})
    assert other.missing == 6
    get(other, [0], Computing(shift=32.0))


def test_another_picture_is_not_found(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(file.name.encode())
    before = picture_digests(files)
    files[1].write_bytes(b"other")
    after = picture_digests(files)
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", None, "shape", "names"])
def test_what_is_no_part_goes(content, tmp_path):
    store = made(tmp_path)
    get(store, [0, 1], Computing())
    store.write()
    (part,) = store.folder.glob("*.safetensors")
    if content is None:
        part.write_bytes(part.read_bytes()[:-7])
    elif content in ("shape", "names"):
        shape = (2, 3, 5) if content == "shape" else (2, 3, 4)
        names = ("tokens", "taps.0", "taps.1") if content == "shape" else ("tokens", "taps.0", "taps.9")
        save_file({name: torch.zeros(shape) for name in names}, part, {"digests": json.dumps(DIGESTS[:2])})
    else:
        part.write_bytes(content)
    again, computing = made(tmp_path), Computing()
    assert again.missing == 6
    get(again, [0, 1], computing)
    assert computing.calls == [[0, 1]]
    assert not part.exists()


def test_the_limit_is_checked_before_anything_is_computed(tmp_path):
    need = 6 * 3 * 3 * 4 * 2
    with pytest.raises(RequestError, match=r"of 6 pictures take .* but may hold .*--cache-size"):
        made(tmp_path, limit=need - 1)
    assert not list(tmp_path.iterdir())
    store = made(tmp_path, limit=need)
    get(store, [0, 1, 2], Computing())
    store.write()
    made(tmp_path, limit=need + 2000)  # a part has a header, too
    with pytest.raises(RequestError, match="of 6 pictures"):
        made(tmp_path, {"other": 1}, limit=need)


# In a fit


@pytest.fixture
def passes(monkeypatch, tmp_path):
    """How many pictures have passed the backbone; the cache is empty."""
    counted, forward = [], ViT.forward

    def count(self, images, contacts=None, **more):
        counted.append(len(images))
        return forward(self, images, contacts, **more)

    monkeypatch.setattr(ViT, "forward", count)
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
    return counted


@pytest.mark.parametrize("words", [["--detached"], ["--method", "linear"], ["--method", "lst"]])
def test_the_second_fit_passes_no_picture_through_the_backbone(words, ground, passes, tmp_path):
    one = fit(ground, tmp_path / "one", *words, "--cache", "--lr", "1e-3")
    first = sum(passes)
    passes.clear()
    two = fit(ground, tmp_path / "two", *words, "--cache", "--lr", "1e-3")
    assert same(adapter_of(one), adapter_of(two))
    assert result_of(one)["value"] == result_of(two)["value"]
    measured = 3  # two sizes are probed, the cost is measured on a batch and on a picture
    assert sum(passes) <= 2 + 8 + measured < 36 + 18 <= first
    plain = fit(ground, tmp_path / "plain", *words, "--lr", "1e-3", "--precision", "32")
    losses = [[record["loss"] for record in metrics_of(run)] for run in (one, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_what_is_measured_later_is_the_same(ground, passes, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--detached", "--cache")
    capsys.readouterr()
    assert call("evaluate", run, ground.easy, "--split", "val", "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result_of(run)["value"]


def test_another_backbone_is_not_mixed_up(ground, passes, tmp_path):
    fit(ground, tmp_path / "one", "--detached", "--cache")
    passes.clear()
    other = make_backbone(tmp_path / "other.safetensors", seed=1)
    cached = fit(ground, tmp_path / "two", "--detached", "--cache", "--backbone", other)
    assert sum(passes) > 36
    fresh = tmp_path / "fresh"
    assert call(*fit_words(ground, fresh, "--detached", "--cache", "--backbone", other)) == 0
    assert same(adapter_of(cached), adapter_of(fresh))


def test_too_small_a_cache_is_said(ground, passes, tmp_path, capsys):
    words = fit_words(ground, tmp_path / "run", "--detached", "--cache", "--cache-size", "1e-6")
    assert call(*words) == 2
    assert "allow more with --cache-size" in capsys.readouterr().err
