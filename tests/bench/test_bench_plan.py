"""`bench plan`: what is left costs so many FLOPs, so much time and memory."""

import json
from dataclasses import replace

import pytest
import torch
from helpers_cli import VIT, call, make_backbone, make_pictures

from vitgraft import methods
from vitgraft.backbones import Backbone
from vitgraft.bench import cost, suites
from vitgraft.bench.cost import Estimate, PerPicture, Row
from vitgraft.bench.grid import Grid
from vitgraft.engine import cost as model_cost
from vitgraft.model import build

SETTINGS = {"epochs": 3, "batch_size": 10, "workers": 0, "train_split": "train+val", "eval_split": "test"}


def settings(method, task):
    return SETTINGS


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    make_backbone(folder / "vit.safetensors")
    make_pictures(folder / "sets" / "easy", train=8, val=4, test=4)  # of each of three classes
    words = ["bench", "run", *words_of(folder), "--methods", "linear", "bitfit", "--seeds", 1]
    assert call(*words) == 0
    return folder


def words_of(ground):
    words = ["--data", ground / "sets", "--backbone", ground / "vit.safetensors", "--out", ground / "out"]
    return [*words, "--set", "epochs=2", "batch_size=12", "workers=0"]


def grid_of(ground, methods, **more):
    suite = suites.find("local", ground / "sets")
    file = ground / "vit.safetensors"
    given = {"options": settings, "seeds": (0,), **more}
    data = suites.locate(suite, ground / "sets")
    return Grid(suite, data, str(file), Backbone.load(str(file)).fingerprint, methods, "strict", **given)


def estimate(ground, grid, **more):
    records = cost.records_in(ground / "out")
    return Estimate(grid, Backbone.load(str(ground / "vit.safetensors")), records, **more)


def test_what_a_fit_counts():
    crossing, frozen = PerPicture(10, 12, 40, True), PerPicture(10, 12, 16, False)
    assert crossing.training(25, 10, 3) == 40 * 20 * 3  # the last five pictures of an epoch are dropped
    assert crossing.training(5, 10, 3) == 40 * 5 * 3
    assert frozen.training(25, 10, 3) == 10 * 25 + 6 * 20 * 3  # each picture passes the backbone once
    assert frozen.training(25, 10, 3, views=0) == 16 * 20 * 3
    assert frozen.training(25, 10, 3, views=2) == 10 * 25 * 2 + 6 * 20 * 3
    assert frozen.training(25, 10, 3, views=4) == 10 * 25 * 3 + 6 * 20 * 3  # three epochs see three of the four
    assert crossing.measuring(7, 4) == 12 * 7 * 4
    assert frozen.measuring(7, 4) == 10 * 7 + 2 * 7 * 4


@pytest.mark.parametrize("name", [name for name in methods.names() if name != "peft"])
def test_flops_grow_with_the_batch_and_backward_costs(name, ground):
    model = build(Backbone.load(str(ground / "vit.safetensors")), name, classes=3).train()
    images, targets = torch.randn(2, 3, 32, 32), torch.arange(2)
    if not model.method.ready:
        model.method.calibrate(model.backbone, [(images[[0, 1, 1]], torch.arange(3))])
    read, step = model_cost.step_flops(model, images, targets)
    # What is done once a step, as forming a merged weight or keys of prompts is, weighs most on a tiny ViT.
    once = 0.15 if name in ("lora", "heart_lora", "consolidator", "apt", "ett") else 0
    assert (read, step) == pytest.approx(
        [2 * n for n in model_cost.step_flops(model, images[:1], targets[:1])], rel=once
    )
    forward = model_cost.flops(model, images)
    assert read <= forward < step <= read + 3.1 * (forward - read) + 2.1 * read * model.method.crosses_backbone


def test_flops_of_the_linear_probe_by_hand(ground):
    model = build(Backbone.load(str(ground / "vit.safetensors")), "linear", classes=3)
    D, L, N = VIT["embed_dim"], VIT["depth"], (VIT["img_size"] // VIT["patch_size"]) ** 2
    T = N + 1
    block = 2 * T * D * 12 * D + 2 * 2 * T * T * D  # qkv, proj, fc1, fc2; and both products of the attention
    read, step = model_cost.step_flops(model, torch.randn(1, 3, 32, 32), torch.tensor([0]))
    last = 2 * T * D * 3 * D + 2 * 2 * T * D + 2 * D * 9 * D  # of the last block, where CLS alone is asked for
    assert read == 2 * N * D * 3 * VIT["patch_size"] ** 2 + (L - 1) * block + last
    assert step == read + 2 * 2 * D * 3  # forward, and the gradient of the weights


def test_time_follows_the_records_of_the_same_method(ground):
    grid = grid_of(ground, {"bitfit": {}, "lora": {}})
    found = estimate(ground, grid)
    [told] = [r for r in found.records if r.job.method == "bitfit"]
    bitfit, lora = found.rows(grid.jobs)
    counted = found._per_picture(grid.jobs[0])
    assert bitfit.flops == counted.step
    assert bitfit.total == counted.step * 30 * 3 + counted.forward * 12  # 36 pictures of train and val, 12 of test
    of_record = counted.step * 36 * 2  # two epochs in batches of 12
    assert bitfit.seconds == pytest.approx(told.seconds * bitfit.total / of_record)
    assert bitfit.memory == told.peak_memory
    assert (lora.seconds, lora.memory) == (None, None)


def test_val_is_measured_after_every_epoch(ground):
    choosing = {**SETTINGS, "train_split": "train", "eval_split": "val"}
    grid = grid_of(ground, {"bitfit": {}}, options=lambda method, task: choosing)
    found = estimate(ground, grid)
    counted = found._per_picture(grid.jobs[0])
    assert found.rows(grid.jobs)[0].total == counted.step * 20 * 3 + counted.forward * 12 * 4


def test_records_of_the_same_arguments_come_first(ground):
    grid = grid_of(ground, {"bitfit": {}})
    found = estimate(ground, grid)
    [told] = [r for r in found.records if r.job.method == "bitfit"]
    slow = replace(told, seconds=1000 * told.seconds, job=replace(told.job, arguments={"other": 1}))
    assert Estimate(grid, found.backbone, [slow, told]).rows(grid.jobs) == found.rows(grid.jobs)


def test_records_of_other_machines_and_other_pictures_tell_nothing(ground):
    grid = grid_of(ground, {"bitfit": {}})
    found = estimate(ground, grid)
    for changes in ({"machine": {"gpu": "another"}}, {"job": replace(found.records[0].job, digest="0" * 64)}):
        others = [replace(r, **changes) for r in found.records]
        assert Estimate(grid, found.backbone, others).rows(grid.jobs)[0].seconds is None


def test_time_of_a_step_where_no_record_tells(ground):
    for name in ("lora", "sct"):
        grid = grid_of(ground, {name: {}})
        [row] = estimate(ground, grid, timed=True).rows(grid.jobs)
        assert 0 < row.seconds < 600


def test_the_command(ground, capsys):
    words = ["bench", "plan", *words_of(ground), "--methods", "linear", "bitfit", "lora", "--seeds", 2]
    before = sorted(path for path in (ground / "out").rglob("*"))
    assert call(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 runs: 2 done, 0 running, 0 failed, 4 waiting"
    rows = {line.split()[0]: line for line in lines[3:7]}
    assert list(rows) == ["linear", "bitfit", "lora", "all"]
    assert "FLOP" in rows["bitfit"]
    assert "GB" in rows["bitfit"]
    assert rows["lora"].count("unknown") == 2
    assert rows["lora"].split()[1] == "2"
    assert "more than" in rows["all"]
    assert any("--time" in line for line in lines)
    assert call(*words, "--time") == 0
    timed = capsys.readouterr().out
    assert timed.count("unknown") == 1  # the memory of lora: none has run
    assert before == sorted(path for path in (ground / "out").rglob("*"))


def test_nothing_left(ground, capsys):
    assert call("bench", "plan", *words_of(ground), "--methods", "linear", "--seeds", 1) == 0
    assert capsys.readouterr().out == "1 runs: 1 done, 0 running, 0 failed, 0 waiting\n"


def test_a_record_that_was_cut_off_tells_nothing(ground, tmp_path):
    (tmp_path / "records").mkdir()
    for path in (ground / "out" / "records").iterdir():
        (tmp_path / "records" / path.name).write_text(json.dumps({"cut": "off"}))
    assert cost.records_in(tmp_path) == []


def test_units():
    rows = [Row("hst", 2, 36_400_000_000, 5 * 10**15, 7200 * 36, 3_210_000_000), Row("linear", 1, 5, 5, None, None)]
    lines = cost.lines(rows)
    assert lines[1].split() == ["hst", "2", "36.4", "GFLOP", "5", "PFLOP", "3.0", "days", "3.21", "GB"]
    assert lines[3].startswith("all")
    assert "more than 3.0 days" in lines[3]
    assert cost.lines([]) == []
