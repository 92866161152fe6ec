"""The programs of benchmarks/: each runs on a tiny model, and what it tells and writes is what it measured.

No test looks at how long anything took.
"""

import json
import math
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from vitgraft import build
from vitgraft.backbones import ViT
from vitgraft.common.errors import RequestError
from vitgraft.data.pictures import open_picture
from vitgraft.data.reader import Reader
from vitgraft.engine import cost
from vitgraft.testing.backbones import random_backbone, random_images

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of the package

from benchmarks import (  # noqa: E402
    contenders,
    dense_table,
    dense_time,
    fit_time,
    inference,
    kept,
    measure,
    memory,
    methods_table,
    on_gpu,
    prefix,
    scaling,
    size,
    startup,
    step_time,
)

TINY = ("--model", "vit_tiny_patch16_224")
needs_peft = pytest.mark.skipif("peft" not in contenders.names(), reason="peft is not installed")


@pytest.fixture
def told(tmp_path, capsys):
    """Runs a program with these words and --json: the table's rows by their first cell, and the record."""

    def run(program, *words):
        path = tmp_path / "out.json"
        program.main([*map(str, words), "--json", str(path)])
        lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
        record = json.loads(path.read_text())
        assert {"settings", "machine", "versions", "commit", "changed"} < record.keys()
        assert str(tmp_path) not in path.read_text()  # no path of this machine
        return {cells[0]: cells for cells in lines}, record

    return run


def positive(seconds, turns):
    return len(seconds) == turns and all(0 < each < math.inf for each in seconds)


# What they share


def test_turns_go_round_and_the_first_do_not_count():
    order = []
    found = measure.turns({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 2, warm=1)
    assert order == list("ababab")
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_a_ratio_is_the_median_of_the_turns_ratios():
    assert measure.ratio([1.0, 20.0, 4.0], [2.0, 10.0, 1.0]) == 2.0  # of the medians it would be 4 / 2


def test_a_table_is_markdown():
    assert measure.table(["", "s"], [["a", "1"], ["b", "2"]]).splitlines() == [
        "|  | s |",
        "|---|---|",
        "| a | 1 |",
        "| b | 2 |",
    ]


def test_the_same_backbone_each_time():
    one, other = (contenders.random_backbone(TINY[1], 32) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert one.native.size == (32, 32)


def test_pictures_of_all_classes_and_of_the_size_that_was_asked_for(tmp_path):
    root = contenders.make_pictures(tmp_path / "p", 12, 40, 64)
    files = sorted(root.glob("train/*/*.jpg"))
    assert len(files) == 12
    assert len({file.parent.name for file in files}) == contenders.CLASSES
    assert {open_picture(file).size for file in files} == {(64, 40)}


@pytest.mark.parametrize(("method", "passes"), [("linear", 1), ("hst-detached", 1), ("bitfit", 3)])
def test_several_tasks_share_a_pass_where_gradients_do_not_cross(method, passes):
    backbone = random_backbone("cls")
    images, models = random_images(backbone), [contenders.ours(method, backbone, seed).eval() for seed in range(3)]
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        answers = contenders.several(models)(images)
        assert len(calls) == passes
        for answer, model in zip(answers, models, strict=True):
            torch.testing.assert_close(answer, model(images))
    assert not torch.equal(answers[0], answers[1])


WRONG = {
    "method": ("knows no 'convpas'.*Did you mean 'convpass'", "--method", "lora,convpas"),
    "model": ("timm has no model 'vit_tiny'", "--model", "vit_tiny"),
    "no ViT": ("'resnet50' cannot be a backbone", "--model", "resnet50"),
    "repeat": ("'0' was given, but it takes a whole number of 1 or more", "--repeat", "0"),
    "there": ("it is there already", "--json", __file__),
    "no folder": ("there is no", "--json", "nowhere/out.json"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_options_are_said_before_anything_is_measured(wrong, capsys):
    message, *words = WRONG[wrong]
    with pytest.raises(SystemExit) as end:
        step_time.main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, said)


@pytest.mark.parametrize("program", [step_time, inference, fit_time, scaling])
def test_a_size_that_the_patch_does_not_divide_is_one_sentence(program, capsys):
    with pytest.raises(SystemExit) as end:
        measure.run(lambda: program.main([*TINY, "--image-size", "50"]))
    assert end.value.code == 2
    assert "the nearest sizes are 48 or 64" in capsys.readouterr().err


# The programs


@needs_peft
def test_step_time(told):
    words = ("--image-size", 32, "--batch-size", 2, "--repeat", 3)
    rows, record = told(step_time, *TINY, *words, "--method", "hst-detached,lora", "--against", "full", "peft-lora")
    assert list(record["seconds"]) == ["full", "peft-lora", "hst-detached", "lora"]
    assert all(positive(seconds, 3) for seconds in record["seconds"].values())
    assert rows["full"][2] == rows["peft-lora"][3] == "1.00"
    assert record["settings"]["batch_size"] == 2
    assert "peft" in record["versions"]


def test_where_the_time_of_a_step_goes(told):
    words = ("--image-size", 32, "--batch-size", 2, "--repeat", 2, "--profile")
    rows, record = told(step_time, *TINY, *words, "--method", "hst", "--against", "full")
    parts = record["parts"]
    assert list(parts) == ["full", "hst"]
    assert sum(parts["full"].values()) == pytest.approx(1)
    for kind in ("products", "GELU, LayerNorm", "convolutions, BatchNorm, ReLU", "AdamW"):
        assert parts["full"][kind] > 0
        assert rows[kind][2] == f"{parts['hst'][kind]:.3f}"


@needs_peft
def test_inference(told):
    words = ("--image-size", 32, "--batch-size", 1, 2, "--repeat", 2, "--tasks", 1, 3)
    rows, record = told(inference, *TINY, *words, "--method", "hst", "lora", "full", "peft-lora", "--precision", "bf16")
    tasks = ["hst-detached, T = 1", "hst-detached, T = 3"]
    names = ["timm", "hst", "lora", "lora merged", "full", "full merged", "peft-lora", "peft-lora merged", *tasks]
    assert list(record["seconds"]) == ["1", "2"]
    for by_name in record["seconds"].values():
        assert list(by_name) == names
        assert all(positive(seconds, 2) for seconds in by_name.values())
    assert rows["timm"][2] == "1.000"
    ratio, each = map(float, rows[tasks[1]][2:])
    assert each == pytest.approx((ratio - 1) / 3, abs=1e-3)


def test_prefix(told):
    rows, record = told(prefix, "--repeat", 1, "--keys", 3)
    assert list(rows) == ["precision", "float32", "bf16"]
    assert all(one["keys"] == 3 and one["ratio"] > 0 for one in record["prefix"])


def test_what_is_merged_is_not_the_plain_backbone():
    backbone = contenders.random_backbone(TINY[1], 32)
    model = inference.trained("lora", backbone)
    assert inference.merge(model).changed


@needs_peft
def test_size(told):
    rows, record = told(size, *TINY, "--method", "linear", "lora", "consolidator", "peft")
    backbone = contenders.random_backbone(TINY[1])
    for name, found in record["adapters"].items():
        model = contenders.ours(name, backbone)
        model.method.consolidate()
        counted = cost.parameters(model)
        assert found["parameters"] == counted["method"] + counted["head"]
        assert 2 * found["parameters"] < found["bytes"] < 4 * found["parameters"] + 2**15
    rivals = record["rivals"]
    vit, lora = rivals["timm's whole model"], rivals["peft's save_pretrained"]
    assert vit["bytes"] > 4 * vit["parameters"] > 20e6
    assert lora["parameters"] == record["adapters"]["peft"]["parameters"]  # the same method, and the same head
    assert lora["bytes"] > 4 * lora["parameters"]
    assert rows["lora"][2] == f"{record['adapters']['lora']['bytes']:,}"


@needs_peft
def test_fit_time(told):
    words = ("--pictures", 12, "--jpeg-size", 40, 48, "--image-size", 32, 48, "--batch-size", 5, "--epochs", 2)
    rows, record = told(fit_time, *TINY, *words, "--workers", 0, "--method", "hst-detached", "--precision", "32")
    names = [f"hst-detached, {keep}" for keep in ("memory", "disk", "disk again", "pixels")]
    assert list(record["fits"]) == ["32", "48"]
    for by_name in record["fits"].values():
        assert list(by_name) == [*names, "peft"]
        for (one,) in by_name.values():
            assert positive(one["epochs"], 2)
            assert one["seconds"] > sum(one["epochs"])
    assert record["pictures_an_epoch"] == 10
    assert all(positive(rates, 1) for rates in record["pictures_decoded_a_second"].values())
    assert rows["peft"][4] == rows["peft"][6] == "1.000"
    assert rows["48"][-1] in ("decoding", "training")


def test_a_fit_of_more_epochs_is_projected_from_the_later_ones():
    one = fit_time.Fit(20.0, [8.0, 2.0, 3.0, 2.0])
    assert one.later == 2.0
    assert one.projected(4) == 20.0
    assert one.projected(100) == 20.0 + 96 * 2.0
    assert fit_time.Fit(5.0, [3.0]).later == 3.0


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """The fits of a linear probe on ten pictures for two epochs, and what they did: pictures that passed the backbone,
    and times that the loader went to the files."""
    root = contenders.make_pictures(tmp_path / "p", 10, 32, 32)
    given = Namespace(model=TINY[1], pictures=10, epochs=2, batch_size=5, workers=0, precision="32", memory=4.0)
    given.method, given.against, given.keep = ["hst-detached"], [], fit_time.KEEP
    done = {"passed": 0, "decoded": 0}
    forward, read = ViT.forward, Reader.__call__

    def count(name, number, value):
        done[name] += number
        return value

    monkeypatch.setattr(ViT, "forward", lambda *a, **more: count("passed", len(a[1]), forward(*a, **more)))
    monkeypatch.setattr(Reader, "__call__", lambda *a: count("decoded", 1, read(*a)))
    found = {}
    for name, one in fit_time.all_fits(given, root, 32, tmp_path / "cache"):
        done.update(passed=0, decoded=0)
        one()
        found[name.removeprefix("hst-detached, ")] = dict(done)
    return found


def test_what_a_fit_keeps_is_what_was_asked_for(counted):
    passed = {keep: done["passed"] - counted["memory"]["passed"] for keep, done in counted.items()}
    # The second epoch passes the backbone again, or not even the first does. One picture more tells the size on disk,
    # and a batch more, of five, that there is no room in memory; without any memory that is known beforehand.
    assert passed == {"memory": 0, "disk": 1, "disk again": 1 - 10, "pixels": 10 + 5, "nothing": 10}
    decoded = {keep: done["decoded"] for keep, done in counted.items()}
    assert decoded["memory"] == decoded["disk"] == decoded["disk again"] == decoded["pixels"] == 1
    assert decoded["nothing"] >= 1 + 2  # to check them, and in each epoch


def test_the_bottleneck_is_the_slower_of_loader_and_fastest_fit():
    given = Namespace(pictures=100, batch_size=50, epochs=3)
    fits = {"a": [fit_time.Fit(9.0, [4.0, 1.0, 1.0])], "b": [fit_time.Fit(9.0, [2.0, 2.0, 2.0])]}
    lines = fit_time.loading(given, {64: fits}, {64: [75.0]}).splitlines()[2:]
    assert lines[0] == "| 64 | first | 75 | 50 | b | 1.50 | training |"
    assert lines[1] == "| 64 | later | 75 | 100 | a | 0.75 | decoding |"


@needs_peft
def test_scaling(told):
    points = {"pictures": [10, 20], "tasks": [1, 3], "side": [32, 48], "width": [64, 128]}
    words = [word for axis, given in points.items() for word in (f"--{axis}", *given)]
    names = ["hst-detached", "full", "peft-lora"]
    more = ("--method", *names, "--image-size", 32, "--batch-size", 5, "--epochs", 1, "--repeat", 1)
    rows, record = told(scaling, *TINY, *words, *more)
    assert {axis: list(found) for axis, found in record["axes"].items()} == dict.fromkeys(points, names)
    for axis, found in record["axes"].items():
        for growth in found.values():
            assert growth["points"] == points[axis]
            assert all(positive(seconds, 1) for seconds in growth["seconds"])
            assert math.isfinite(growth["exponent"])
            assert growth["residual"] == pytest.approx(0, abs=1e-6)  # two points, one line
    assert rows["full"][3] == f"{record['axes']['width']['full']['exponent']:.2f}"


def test_the_exponent_and_what_the_line_misses():
    points = [10, 100, 1000]
    growth = scaling.along(points, [[0.1 * n**1.5, 1e9, 0.0] for n in points])  # medians, so outliers do not count
    assert growth["exponent"] == pytest.approx(1.5)
    assert growth["residual"] == pytest.approx(0, abs=1e-9)
    # Logarithms 0, 3, 0 over equal steps: the line is flat at 1 and misses 1, 2, 1.
    bent = scaling.along(points, [[1.0], [math.exp(3)], [1.0]])
    assert bent["exponent"] == pytest.approx(0, abs=1e-9)
    assert bent["residual"] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--axis", "side", "--side", "32"), "--side has one point"),
        (("--axis", "width", "--width", "64", "100"), "100"),
    ],
)
def test_points_that_cannot_be(words, message):
    with pytest.raises(RequestError, match=message):
        scaling.main([*TINY, "--image-size", "32", "--batch-size", "2", "--method", "linear", *words])


@pytest.mark.parametrize(("name", "heads"), [("bccd", ["faster"]), ("pets3", ["upernet", "eomt"])])
def test_dense_time(told, name, heads):
    rows, record = told(dense_time, *TINY, "--sets", name, "--heads", *heads, "--method", "frozen", "--repeat", 2)
    assert set(rows) == {name} | {f"{method}, {head}" for method in ("full", "frozen") for head in heads}
    assert [rows[f"full, {heads[0]}"][i] for i in (2, 4)] == ["1.00", "1.00"]
    for times in record["seconds"][name].values():
        assert positive(times, 2)


def test_memory(told):
    _, record = told(memory, *TINY, "--task", "segment", "--method", "linear", "--image-size", 64, 64)
    found = {name: record[name] for name in record if name.startswith(("bytes", "seconds", "peak"))}
    assert len(found) == 4
    assert all(value > 0 for value in found.values())


def test_startup(told, monkeypatch):
    monkeypatch.setattr(startup, "STARTS", {name: startup.STARTS[name] for name in ("interpreter", "vitgraft --help")})
    rows, record = told(startup, "--repeat", 2)
    assert all(positive(seconds, 2) for seconds in record["seconds"].values())
    assert rows["`interpreter`"][1] == "0.00"


def test_kept(told):
    _, record = told(kept, *TINY, "--image-size", 32, "--batch-size", 2, "--method", "convpass", "linear")
    found = record["bytes"]
    assert list(found) == ["full", "convpass", "linear"]
    assert 0 < found["convpass"]["32, checkpointing"] < found["convpass"]["32"] < found["full"]["32"]
    assert found["convpass"]["bf16"] < found["convpass"]["32"]


def test_each_row_of_the_tables_is_a_model():
    backbone = random_backbone()
    for options in methods_table.ROWS.values():
        if options["method"] != "peft":
            build(backbone, classes=3, **options)
    for of in dense_table.SETS.values():
        for method, head, options in dense_table.chosen(of, list(dense_table.METHODS)):
            task = of.settings["task"]
            build(backbone, classes=3, task=task, head=head, head_options=options, **dense_table.METHODS[method])


def test_a_row_of_the_dense_table():
    result = {
        "numbers": {"box": {"AP": 0.25, "AP50": 0.5}, "mask": {"AP": None, "AP50": 0.125}},
        "parameters": 1000,
        "head_parameters": 2,
        "cost": {"bytes_kept_for_backward": 2**23, "bytes_kept_batch": 4, "peak_memory_bytes": 2**30},
    }
    row = dense_table.row(dense_table.SETS["pennfudan"], "hst", "mask", result)
    assert row == "| hst | mask | 25.0 | 50.0 | 0.0 | 12.5 | 1,000 | 2 | 2.0 MiB | 1.00 GiB |"


WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")


@WITHOUT_GPU
def test_without_a_gpu_it_is_told_what_would_be_done(capsys):
    on_gpu.main([])
    said = capsys.readouterr().out
    assert "no GPU here" in said
    assert all(f"  {name} " in said and part.words in said for name, part in on_gpu.PARTS.items())
    assert sum(part.seconds for part in on_gpu.PARTS.values()) <= 8 * 60


@WITHOUT_GPU
def test_what_needs_a_gpu_runs_on_a_processor(told):
    small = ("--image-size", 32, "--batch-size", 2, "--repeat", 1, "--anyway")
    rows, record = told(on_gpu, *TINY, *small, "--parts", "norms", "steps", "dense")
    assert rows["128 x 32"]
    assert {"full", *on_gpu.STEPS, "hst, torch's norms", "lora"} <= rows.keys()
    assert record["norms"]["difference"] < 1e-4
    assert record["steps"]["vtab minutes"].keys() == record["steps"]["steps"].keys()
    assert record["dense"]["steps"].keys() == on_gpu.DENSE.keys()


def test_a_part_that_fails_or_has_no_time_ends_no_other(tmp_path, monkeypatch, capsys):
    def fails(given):
        raise RuntimeError("no memory\nat all")

    parts = {
        "one": on_gpu.Part("one", 1, fails),
        "two": on_gpu.Part("two", 10**6, fails),
        "three": on_gpu.Part("three", 1, lambda given: {"found": 3}),
    }
    monkeypatch.setattr(on_gpu, "PARTS", parts)
    on_gpu.main(["--anyway", "--json", str(tmp_path / "gpu.json")])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["one"]["failed"] == "no memory"
    assert "it takes 1000000" in record["two"]["skipped"]
    assert record["three"]["found"] == 3
    with pytest.raises(RequestError, match="--backbone and --out"):
        on_gpu.main(["--sets", "somewhere"])
