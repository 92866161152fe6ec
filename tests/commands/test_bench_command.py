"""`vitgraft bench` from the command line, with real fits of a tiny ViT."""

import json
import shutil

import pytest
from helpers_cli import call, make_backbone, make_pictures

HST = "hst:detached=true,lr=2e-3"
WORDS = ["--methods", "linear", HST, "--seeds", "2", "--set", "epochs=2", "batch_size=12", "workers=0"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    make_backbone(folder / "vit.safetensors")
    for name, tint in (("easy", 0.125), ("hard", 0.02)):
        make_pictures(folder / "sets" / name, tint=tint, train=8, val=4, test=4)
    return folder


@pytest.fixture(scope="module")
def bench(ground, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    assert call("bench", "run", *words_of(ground, out)) == 0
    return out


def words_of(ground, out):
    return ["--data", ground / "sets", "--backbone", ground / "vit.safetensors", "--out", out, *WORDS]


def test_the_table(bench, capsys):
    assert call("bench", "show", bench) == 0
    said = capsys.readouterr().out
    for part in ("linear", HST, "easy", "hard", "mean of 2", "±", "protocol strict"):
        assert part in said
    assert call("bench", "show", bench, "--csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("linear,") for line in lines].count(True) == 3  # two tasks, one average
    assert call("bench", "show", bench, "--latex") == 0
    assert "tabular" in capsys.readouterr().out
    assert call("bench", "show", bench, "--against", "linear") == 0
    assert "linear" in capsys.readouterr().out


def test_results_are_read_where_the_data_are_not_and_added_to_from_another_place(bench, ground, tmp_path, capsys):
    out, moved = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(bench, out)
    shutil.copytree(ground / "sets", moved)
    make_pictures(moved / "more", train=8, val=4, test=4)
    words = ["--data", moved, "--backbone", ground / "vit.safetensors", "--out", out, *WORDS]
    assert call("bench", "run", *words, "--tasks", "easy", "--methods", "linear") == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    assert {file.name for file in (out / "records").iterdir()} == {file.name for file in (bench / "records").iterdir()}
    shutil.rmtree(moved)
    assert call("bench", "show", out) == 0
    assert "mean of 3" in capsys.readouterr().out
    (out / "bench.json").write_text((out / "bench.json").read_text()[:40])
    assert call("bench", "show", out) == 2
    assert "bench.json was to be read" in capsys.readouterr().err


def test_a_second_start_does_nothing(bench, ground, capsys):
    before = {file.name: file.stat().st_mtime_ns for file in (bench / "records").iterdir()}
    assert len(before) == 8
    assert call("bench", "plan", *words_of(ground, bench)) == 0
    assert "8 done, 0 running, 0 failed, 0 waiting" in capsys.readouterr().out
    assert call("bench", "run", *words_of(ground, bench)) == 0
    assert before == {file.name: file.stat().st_mtime_ns for file in (bench / "records").iterdir()}


def test_what_a_record_holds(bench):
    records = [json.loads(file.read_text()) for file in sorted((bench / "records").iterdir())]
    assert {record["job"]["task"] for record in records} == {"easy", "hard"}
    assert {record["job"]["seed"] for record in records} == {0, 1}
    assert all(record["split"] == "test" for record in records)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "vtab"], ["vtab-1k"]),
        (["--suite", "vtab-1k"], ["sets"]),
        (["--protocol", "strikt"], ["strict"]),
        (["--protocol", "hst"], ["is for vtab-1k", "strict"]),
        (["--methods", "hts"], ["hst"]),
        (["--methods", "hst:detached"], ["'detached'", "NAME=VALUE"]),
        (["--set", "epoch=3"], ["epoch"]),
        (["--tasks", "easi"], ["easy"]),
        (["--seeds", "0"], ["seeds"]),
        (["--workers", "0"], ["workers is 0"]),
    ],
)
def test_bad_requests(words, said, ground, tmp_path, capsys):
    assert call("bench", "run", *words_of(ground, tmp_path / "out"), *words) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_said_and_the_others_are_done(ground, tmp_path, capsys):
    for name in ("good", "bad"):
        make_pictures(tmp_path / "sets" / name, train=8, val=4, test=4)
    (tmp_path / "sets" / "bad" / "train" / "dots" / "0.png").write_bytes(b"no picture")
    words = ["--data", tmp_path / "sets", "--backbone", ground / "vit.safetensors", "--out", tmp_path / "out"]
    words += ["--methods", "linear", "--seeds", 1, "--set", "epochs=1", "batch_size=12", "workers=0"]
    assert call("bench", "run", *words) == 1
    streams = capsys.readouterr()
    assert "1 done, 0 running, 1 failed" in streams.out
    assert "0.png" in streams.out
    assert "1 of 2 runs" in streams.err


def test_another_benchmark_is_not_mixed_in(bench, ground, tmp_path, capsys):
    (tmp_path / "sets").mkdir()
    make_pictures(tmp_path / "sets" / "more", train=8, val=4, test=4)
    words = ["--data", tmp_path / "sets", "--backbone", ground / "vit.safetensors", "--out", bench, *WORDS]
    assert call("bench", "run", *words) == 2
    assert "another" in capsys.readouterr().err
    assert call("bench", "show", tmp_path) == 2
    assert "no results of a benchmark" in capsys.readouterr().err
    assert call("bench", "show", bench, "--against", "published") == 2
    assert "No published table" in capsys.readouterr().err
