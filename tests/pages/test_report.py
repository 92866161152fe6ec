"""The run's page and the comparison page: what they show, that they hold together, what they survive."""

import json
import math
import os
import subprocess

import pytest
import torch
from helpers_pages import BROWSER, SWITCHES, Dom, check_whole, plain
from PIL import Image, ImageDraw

from vitgraft.common.errors import WorkError
from vitgraft.measures.accuracy import Evaluation
from vitgraft.pages import page, report
from vitgraft.pages.charts import Bar, Curve, curves, ticks
from vitgraft.tasks.classify import Classify

CLASSES = (
    "apple",
    "banana",
    "cherry",
    "dragon fruit",
    "elderberry",
    "fig",
    "grape",
    "honeydew melon",
    "jujube",
    "kiwi",
)


def draw(folder, classes, n):
    """n pictures of coloured shapes, of several sizes; their paths and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, labels = [], []
    for i in range(n):
        label = i % len(classes)
        image = Image.new("RGB", [(224, 224), (320, 200), (150, 260), (8, 8)][i % 4], (235, 230, 215))
        w, h = image.size
        colour = tuple(int(128 + 110 * math.cos(label * 0.63 + k * 2.1 + i * 0.002)) for k in range(3))
        ImageDraw.Draw(image).ellipse((w * 0.15, h * 0.15, w * 0.85, h * 0.85), fill=colour)
        path = folder / f"{i:03}.png"
        image.save(path)
        paths.append(str(path))
        labels.append(label)
    return paths, torch.tensor(labels)


def evaluate(paths, labels, classes, *, strength=3.5, seed=0):
    noise = torch.randn(len(paths), len(classes), generator=torch.Generator().manual_seed(seed))
    logits = 1.4 * noise + strength * torch.nn.functional.one_hot(labels, len(classes))
    return Evaluation("val", classes, paths, labels, logits.softmax(dim=1))


def results(evaluation, **changes):
    """What result.json holds after a realistic run."""
    return {
        "task": "classify",
        "method": "hst",
        "arguments": {"meta": 1, "side_width": 96, "blocks": [2, 5, 8, 11], "alpha": 0.1, "bias": False},
        "backbone": {
            "name": "vit_base_patch16_224.augreg_in21k",
            "source": "file weights.safetensors",
            "fingerprint": "9f2c",
        },
        "metric": "top-1 accuracy",
        "value": evaluation.value if evaluation else None,
        "interval": list(evaluation.interval) if evaluation else None,
        "split": "val" if evaluation else None,
        "parameters": 764840,
        "head_parameters": 7690,
        "backbone_parameters": 85798656,
        "adapter_bytes": 3061234,
        "seconds": 412.3,
        "seed": 0,
        "data": {
            "root": "data/fruit",
            "layout": "train/class/file and val/class/file",
            "classes": list(CLASSES),
            "pictures": {"train": 800, "val": 300},
            "skipped": 0,
        },
        "preprocess": "RGB, squash to 224 x 224 (bicubic), mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        "protocol": {
            "epochs": 50,
            "lr": 1e-3,
            "weight_decay": 0.05,
            "batch_size": 32,
            "image_size": [224, 224],
            "warmup_epochs": 5,
            "precision": "bf16",
            "train_split": "train",
            "eval_split": "val",
            "epoch_reported": "last",
        },
        "cost": {
            "gflops_per_picture": 36.4,
            "bytes_kept_for_backward": 77594624,
            "bytes_kept_batch": 8,
            "peak_memory_bytes": 1932735283,
            "seconds_per_epoch": 8.1,
        },
        "versions": {"vitgraft": "0.1.0", "torch": "2.8.0", "timm": "1.0.20", "python": "3.11.7"},
    } | changes


def write(path, evaluation, metrics):
    sections = Classify().sections(evaluation)
    report.write(path, result=results(evaluation), metrics=metrics, evaluation=evaluation, sections=sections)


def epochs(n, last=0.9):
    return [
        {
            "epoch": e,
            "step": 25 * e,
            "loss": 0.12 + 2.2 * math.exp(-e / 9) + 0.05 * math.sin(3 * e),
            "lr": 1e-3 * min(e / 5, 0.5 + 0.5 * math.cos(math.pi * e / max(n, 2))),
            "seconds": 8.1,
            "train_accuracy": 0.99 - 0.8 * math.exp(-e / 7),
            "val": last - 0.75 * math.exp(-e / 6) + 0.01 * math.sin(5 * e),
        }
        for e in range(1, n + 1)
    ]


@pytest.fixture(scope="module")
def fruit(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("fruit"), CLASSES, 300)


@pytest.fixture
def evaluation(fruit):
    return evaluate(*fruit, CLASSES)


def test_run_page_shows_what_was_measured(tmp_path, evaluation):
    path = tmp_path / "report.html"
    write(path, evaluation, epochs(50))
    dom = check_whole(path)
    assert dom.find("p", "value")[0][2] == page.percent(evaluation.value)
    assert plain(page.interval_text(evaluation.interval)) in dom.text
    for words in (
        "hst on fruit",
        "300 pictures",
        "last epoch",
        "764,840",
        "0.891 %",
        "2.92 MiB",
        "6 min 52",
        "36.4",
        "9f2c",
    ):
        assert words in dom.text
    wrong = int((evaluation.predicted != evaluation.labels).sum())
    assert len(dom.find("img")) == min(16, wrong) + 8
    cells = dom.find("td", "hit") + dom.find("td", "miss")
    assert sum(int(cell[2]) for cell in cells) == 300
    assert sum(int(cell[2]) for cell in dom.find("td", "hit")) == 300 - wrong
    assert len(dom.find("svg")) == 3
    assert all(svg[1]["aria-label"] for svg in dom.find("svg"))
    assert f"vitgraft predict {tmp_path} picture.jpg" in dom.text
    assert path.stat().st_size < 600_000


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
def test_run_page_in_a_browser(tmp_path, evaluation):
    path = tmp_path / "report.html"
    write(path, evaluation, epochs(50))
    # A copy that may run one script of ours, which writes what the browser made of the page into its title.
    probe = """<script>addEventListener("load", () => {
      const pictures = [...document.images], whole = pictures.filter(i => i.complete && i.naturalWidth > 0);
      const cells = document.querySelectorAll(".heat tbody td").length;
      const fits = document.documentElement.scrollWidth <= innerWidth;
      document.title = JSON.stringify([pictures.length, whole.length, cells, fits]);
    })</script>"""
    shown = path.read_text("utf-8").replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    probed = tmp_path / "probed.html"
    probed.write_text(shown.replace("</head>", probe + "</head>"), "utf-8")
    command = [
        BROWSER,
        *(f"--{s}" for s in SWITCHES.split()),
        f"--user-data-dir={tmp_path / 'browser'}",
        "--dump-dom",
        probed.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    dom = Dom(done.stdout)
    wrong = int((evaluation.predicted != evaluation.labels).sum())
    pictures = min(16, wrong) + 8
    assert json.loads(dom.find("title")[0][2]) == [pictures, pictures, 100, True]
    assert dom.find("p", "value")[0][2] == page.percent(evaluation.value)


def test_without_evaluation_it_says_how_to_get_a_number(tmp_path):
    path = tmp_path / "report.html"
    metrics = [{k: v for k, v in line.items() if k != "val"} for line in epochs(5)]
    report.write(path, result=results(None), metrics=metrics, evaluation=None)
    dom = check_whole(path)
    assert "no validation split" in dom.text
    assert f"vitgraft evaluate {tmp_path} DATA" in dom.text
    assert not dom.find("img")
    assert len(dom.find("svg")) == 3


def test_a_number_without_the_evaluation_is_still_shown(tmp_path, evaluation):
    path = tmp_path / "report.html"
    report.write(path, result=results(evaluation), metrics=[], evaluation=None)
    dom = check_whole(path)
    assert dom.find("p", "value")[0][2] == page.percent(evaluation.value)
    assert "300 pictures" in dom.text
    assert not dom.find("svg")


def test_names_chosen_by_others_stay_text(tmp_path, fruit):
    hostile = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "a & b's",
        "猫 🐈",
        "قطة\u202e",
        "</style>",
        "{x}",
        "\ud800",
        "",
        "x" * 500,
    )
    record = evaluate(*fruit, hostile)
    result = results(record, method="<b>hst</b>", preprocess="<i>", split="<u>", seed=7)
    result["data"]["root"] = "data/<fruit> & 'co'"
    result["data"]["classes"] = list(hostile)
    path = tmp_path / "runs & 'more'" / "report.html"
    path.parent.mkdir()
    report.write(path, result=result, metrics=epochs(3), evaluation=record, sections=Classify().sections(record))
    dom = check_whole(path)
    assert not dom.find("u")
    assert {e[1]["src"][:10] for e in dom.find("img")} == {"data:image"}
    for label in (*hostile[:4], "<b>hst</b>"):
        assert plain(label) in dom.text


def test_a_hundred_classes(tmp_path):
    classes = tuple(f"class {k}" for k in range(100))
    paths, labels = draw(tmp_path / "data", classes[:50], 250)
    record = evaluate(paths, labels, classes, strength=2.5)
    path = tmp_path / "report.html"
    write(path, record, epochs(2))
    dom = check_whole(path)
    assert not dom.find("table", "heat")
    assert "50 of the 100 classes have no picture there" in dom.text
    assert "Most confused classes" in dom.text
    assert len(dom.find("div", "strip")) == 1 + 20 + 10


def test_no_wrong_predictions_and_a_picture_that_went_away(tmp_path):
    paths, labels = draw(tmp_path / "data", CLASSES[:2], 12)
    (tmp_path / "data" / "000.png").unlink()
    record = Evaluation("val", CLASSES[:2], paths, labels, torch.eye(2)[labels])
    path = tmp_path / "report.html"
    write(path, record, epochs(1))
    dom = check_whole(path)
    assert "No wrong prediction among the 12 pictures." in dom.text
    assert len(dom.find("img")) == 7
    assert "cannot be read any more" in dom.text
    assert dom.find("p", "value")[0][2] == page.percent(1.0)


def test_almost_nothing_known(tmp_path):
    report.write(tmp_path / "report.html", result={}, metrics=[], evaluation=None)
    check_whole(tmp_path / "report.html")
    bare = results(None, cost=None, versions=None, protocol={}, backbone=None, data=None, arguments=None)
    metrics = [{"epoch": 1, "loss": float("nan"), "lr": None}, {"epoch": 2, "loss": 1.5}, {"step": 3}]
    report.write(tmp_path / "report.html", result=bare, metrics=metrics, evaluation=None)
    assert len(check_whole(tmp_path / "report.html").find("svg")) == 1


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorkError, match="no space"):
        report.write(path, result={}, metrics=[], evaluation=None)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_comparison_page(tmp_path, fruit):
    records = {
        m: evaluate(*fruit, CLASSES, strength=s, seed=i)
        for i, (m, s) in enumerate([("linear", 2.0), ("lora", 3.2), ("hst", 4.0)])
    }
    rows = [
        report.Row("fruit", method, results(record, method=method, parameters=p), f"fruit {method}/report.html")
        for (method, record), p in zip(records.items(), (7690, 294912, 764840), strict=True)
    ]
    rows.append(report.Row("dig<its", "linear", {"value": None}))
    path = tmp_path / "index.html"
    sections = [report.Section("fruit", "Ten kinds of <fruit>.", records)]
    report.comparison(
        path, title="One backbone, two tasks", intro="First & foremost.\n\nSecond.", rows=rows, sections=sections
    )
    dom = check_whole(path)
    assert [a[1]["href"] for a in dom.find("a")] == [f"fruit%20{m}/report.html" for m in records]
    for record in records.values():
        assert plain(page.percent(record.value)) in dom.text
    assert "dig<its" in dom.text
    assert "not measured" in dom.text
    assert len(dom.find("img")) == 12
    assert len(dom.find("p", "good")) + len(dom.find("p", "bad")) == 12 * 3


def test_ticks_are_round_and_enclose():
    assert ticks(0.13, 0.87) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1, 3, whole=True) == [1, 2, 3]
    assert max(ticks(1.0, 1.0)) == 1.0
    for low, high in [(0, 0), (1, 1), (-3, 7), (1e-5, 1e-3), (0.1, 0.3), (2.0, 2.0000001)]:
        found = ticks(low, high)
        assert found[0] <= low + 1e-9
        assert found[-1] >= high - 1e-9
        assert 2 <= len(found) <= 8


def test_curve_writes_its_last_value_and_bars_keep_their_order():
    drawn = curves("Loss", [Curve("loss", [(1, 2.5), (2, 1.25)])], "{:g}".format, "{:g}".format)
    assert ">1.25</text>" in drawn
    assert "epoch 1: loss 2.5" in drawn
    assert curves("Loss", [Curve("loss", [])], str, str) == ""
    table = Dom(page.macro("macros.html", "bars", [Bar("b", 0.5, (0.4, 0.6), 10), Bar("a", None)], "class"))
    assert [th[2] for th in table.find("th")] == ["class", "accuracy", "n", "b", "a"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (page.size(3061234), "2.92 MiB"), (page.size(512), "512 bytes"), (page.size(1932735283), "1.8 GiB"),
        (page.duration(8.14), "8.1 s"), (page.duration(412.3), "6 min 52 s"), (page.duration(59.97), "1 min 0 s"),
        (page.duration(3905), "1 h 05 min"), (page.duration(0.004), "4 ms"), (page.small_share(0.0089), "0.89 %"),
    ],
)  # fmt: skip
def test_numbers_read_well(shown, expected):
    assert shown.replace(page.SPACE, " ") == expected
