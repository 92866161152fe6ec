"""Few-shot episodes: what is drawn, what is learned, what is told; stopped and continued."""

import json

import numpy as np
import pytest
import torch
from helpers_cli import call, make_backbone
from PIL import Image

from vitgraft.bench import episodes
from vitgraft.bench.episodes import Episodes, interval
from vitgraft.common.errors import RequestError
from vitgraft.features import Features
from vitgraft.heads.prototypes import Cosine, Prototypes


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of four colours, twelve pictures each, in splits."""
    root, random = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name in ("one", "two"):
        for k, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40)]):
            for i in range(12):
                folder = root / name / ("train" if i < 8 else "test") / f"class{k}"
                folder.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(random.normal(colour, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbone") / "vit.safetensors")


LABELS = [k for k in range(6) for _ in range(10)] + [9, 9]


def test_an_episode_is_drawn_from_its_number():
    what = Episodes(ways=3, shots=2, queries=5)
    shots, queries = what.draw(LABELS, 0, 7)
    assert (len(shots), len(queries)) == (6, 15)
    assert not set(shots) & set(queries)
    of_shots, of_queries = ([LABELS[i] for i in of] for of in (shots, queries))
    assert [*dict.fromkeys(of_shots)] == [*dict.fromkeys(of_queries)], "class by class, in one order"
    assert of_shots == [label for label in dict.fromkeys(of_shots) for _ in range(2)]
    assert 9 not in of_shots, "it has too few pictures"
    assert what.draw(LABELS, 0, 7) == (shots, queries)
    assert len({tuple(what.draw(LABELS, seed, k)[0]) for seed in (0, 1) for k in range(4)}) == 8


def test_the_interval_is_of_the_mean_over_episodes():
    mean, low, high = interval([0.2, 0.4, 0.6, 0.8])
    assert mean == pytest.approx(0.5)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(1.96 * np.std([0.2, 0.4, 0.6, 0.8], ddof=1) / 2)
    assert interval([0.3]) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ways": 1}, "ways of an episode is 1"),
        ({"shots": 0}, "shots of an episode is 0"),
        ({"number": 0}, "number of an episode is 0"),
        ({"steps": -1}, "steps of an episode is -1"),
        ({"head": "closest"}, "no head 'closest': there are nearest, cosine, linear"),
    ],
)
def test_what_an_episode_cannot_be(given, said):
    with pytest.raises(RequestError, match=said):
        Episodes(**given)


def test_fewer_pictures_than_shots_is_said_with_what_there_is():
    with pytest.raises(RequestError, match=r"7 classes with 5 \+ 5 pictures .* 6 of 7 classes have 10 .* has 2"):
        Episodes(ways=7, shots=5, queries=5).draw(LABELS, 0, 0)


def test_the_nearest_mean_by_cosine():
    head = Prototypes(3, 2)
    pooled = torch.tensor([[2.0, 0, 0], [4.0, 0, 0], [0, 0, 5.0]])
    head.take(pooled, torch.tensor([0, 0, 1]))
    assert head.means.tolist() == [[3, 0, 0], [0, 0, 5]]
    logits = head(Features(torch.tensor([[1.0, 0, 1.0], [0, 0, 0.1]]), []))
    torch.testing.assert_close(logits, torch.tensor([[10 / 2**0.5] * 2, [0.0, 10.0]]))
    assert not list(head.parameters())
    assert head(Features(pooled, []), torch.tensor([0, 0, 1]))["cross_entropy"] < 1e-3


def test_a_cosine_head_trains_its_means():
    head = Cosine(3, 2)
    head.take(torch.eye(3)[:2], torch.tensor([0, 1]))
    head(Features(torch.rand(4, 3), []), torch.tensor([0, 1, 1, 0]))["cross_entropy"].backward()
    assert head.means.grad is not None
    assert head.means.grad.any()


@pytest.mark.parametrize("head", ["nearest", "cosine", "linear"])
@pytest.mark.parametrize("method", ["linear", "ett", "lora", "heart_lora", "hst"])
def test_every_head_with_methods_of_every_kind(sets, weights_file, tmp_path, head, method):
    what = Episodes(ways=3, shots=2, queries=4, number=2, head=head, steps=2)
    options = {"detached": True} if method == "hst" else {}
    result = what(
        sets / "one", out=tmp_path, backbone=str(weights_file), method=method, seed=0, lr=1e-3, **options
    ).result
    assert 0 <= result["value"] <= 1
    assert result["interval"][0] <= result["value"] <= result["interval"][1]
    width = 72 if method == "hst" else 48
    assert result["head_parameters"] == {"nearest": 0, "cosine": 3 * width, "linear": 3 * width + 3}[head]
    assert result["protocol"]["ways"] == 3


def words(sets, weights_file, out, *more):
    given = [
        "bench",
        "episodes",
        "--data",
        sets,
        "--backbone",
        weights_file,
        "--out",
        out,
        "--methods",
        "linear",
        "lora",
    ]
    return [*given, "--ways", 2, "--shots", 1, 2, "--queries", 3, "--number", 3, "--steps", 2, *more]


def test_by_the_command_line_and_twice_the_same(sets, weights_file, tmp_path, capsys):
    assert call(*words(sets, weights_file, tmp_path / "a")) == 0
    assert call("bench", "show", tmp_path / "a") == 0
    shown = capsys.readouterr().out
    assert "lora 1-shot" in shown
    assert "linear 2-shot" in shown
    assert call(*words(sets, weights_file, tmp_path / "b", "--workers", 2)) == 0
    told = [
        {r["key"]: r["value"] for r in map(json.loads, (f.read_text() for f in (tmp_path / x / "records").iterdir()))}
        for x in "ab"
    ]
    assert len(told[0]) == 8
    assert told[0] == told[1]
    capsys.readouterr()
    assert call(*words(sets, weights_file, tmp_path / "a")) == 0, "all is done"
    assert "lora on one" not in capsys.readouterr().err


def test_it_continues_with_the_next_episode(sets, weights_file, tmp_path, monkeypatch):
    what = Episodes(ways=2, queries=3, number=4, steps=1)
    given = {"backbone": str(weights_file), "method": "lora", "seed": 0}
    whole = what(sets / "one", out=tmp_path / "whole", **given).result
    monkeypatch.setattr(episodes, "OFTEN", 2)
    one, seen = episodes._Run.episode, []

    def stopped(self, k):
        seen.append(k)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return one(self, k)

    monkeypatch.setattr(episodes._Run, "episode", stopped)
    with pytest.raises(KeyboardInterrupt):
        what(sets / "one", out=tmp_path / "run", **given)
    assert what(sets / "one", out=tmp_path / "run", **given).result["value"] == whole["value"]
    assert seen == [0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ways", 5], "4 of 4 classes"),
        (["--methods", "lora:rnk=3"], "has no option 'rnk'"),
        (["--tasks", "three"], "'three'"),
    ],
)
def test_bad_requests_are_one_sentence_and_leave_nothing(sets, weights_file, tmp_path, capsys, more, said):
    assert call(*words(sets, weights_file, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
