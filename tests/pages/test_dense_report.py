"""The dense sections of a page: the numbers, the classes, and pictures that are whole, small and beside their truth."""

import base64
import io
import json
import re
import subprocess

import numpy as np
import pytest
import torch
from helpers_pages import BROWSER, SWITCHES, Dom, plain
from PIL import Image

from vitgraft.data.objects import Objects
from vitgraft.measures.average_precision import DetectScores
from vitgraft.measures.miou import SegmentScores
from vitgraft.pages import dense as dense_report
from vitgraft.pages import page, report
from vitgraft.pages.palette import colour

CLASSES = ("background", "circle", "square", "unicorn")
NOISE = np.random.default_rng(0).integers(0, 256, (240, 360, 3), dtype=np.uint8)  # no picture makes a larger JPEG


def save(folder, n, names="{:02}.png"):
    """n pictures of noise, the worst case for a page's size; their paths."""
    paths = []
    for i in range(n):
        path = folder / names.format(i)
        Image.fromarray(NOISE[:, : 360 - 10 * i]).save(path)
        paths.append(str(path))
    return paths


def segmented(folder, n=12, classes=CLASSES, names="{:02}.png"):
    """Rectangles; the later a picture, the more pixels are wrong."""
    scores, rng = SegmentScores(n, len(classes)), np.random.default_rng(1)
    for i in range(n):
        truth = np.zeros((120, 180 - 5 * i), np.uint8)
        truth[20:100, 20:80] = 1 + i % (len(classes) - 2)
        truth[:5] = 255
        said = np.where(truth == 255, 0, truth)
        said[:, : 8 * i] = rng.integers(0, len(classes) - 1)
        scores.add(i, torch.from_numpy(said), torch.from_numpy(truth))
    return scores.evaluation("val", classes, save(folder, n, names))


def detected(folder, n=12, classes=CLASSES[1:], masks=True, names="{:02}.png"):
    """Two squares, a crowd and a mistake in each picture; the later a picture, the worse the squares are found."""
    truth = []
    for i in range(n):
        boxes = np.array([[20, 20, 80, 80], [120, 100, 200, 180], [210, 20, 240, 60]], dtype=np.float32)
        parts = tuple([[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist())
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        labels = np.array([0, i % (len(classes) - 1), 0])
        truth.append(
            Objects((240, 360 - 10 * i), boxes, labels, np.array([0, 0, 1], bool), area, parts if masks else None)
        )
    scores = DetectScores(truth, masks=masks)
    for i, objects in enumerate(truth):
        boxes = np.array([objects.boxes[0] + 2 * i, objects.boxes[1] + 6 * i, [5, 150, 60, 220]])
        found = {
            "boxes": torch.tensor(boxes),
            "labels": torch.tensor([*objects.labels[:2].tolist(), 0]),
            "scores": torch.tensor([0.9, 0.8, 0.3 + 0.05 * i]),
        }
        if masks:
            found["masks"] = torch.zeros(3, 1, *objects.size)
            for k, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
                found["masks"][k, 0, y0:y1, x0:x1] = 1
        scores.add(i, found, objects.size)
    return scores.evaluation("val", classes, save(folder, n, names))


MADE = {"segment": segmented, "instance": detected}


def check(text):
    """The sections' elements; every tag closes, every drawing decodes and is small, nothing points outside."""
    dom = Dom(text)
    assert dom.open == []
    assert "http" not in text
    assert not dom.find("script")
    assert not re.search(r"\b(nan|None)\b", dom.text)
    total = 0
    for _, attributes, _ in dom.find("img"):
        kind, data = attributes["src"].split(",", 1)
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (kind, image.format) == ("data:image/jpeg;base64", "JPEG")
        assert max(image.size) <= dense_report.EDGE
        assert image.size == (int(attributes["width"]), int(attributes["height"]))
        assert attributes["alt"]
        assert len(data) * 3 / 4 <= dense_report.BYTES + 2
        total += len(data)
    assert total < 600_000
    return dom


def alts(dom):
    return [attributes["alt"] for _, attributes, _ in dom.find("img")]


def test_segmentation(tmp_path):
    record = segmented(tmp_path)
    dom = check(dense_report.sections(record))
    for number in (record.value, record.pixel_accuracy, *(iou for _, iou, _ in record.per_class if iou is not None)):
        assert plain(page.percent(number)) in dom.text
    assert plain(page.interval_text(record.interval)) in dom.text
    assert "1 of the 4 classes are not there" in dom.text
    worst, best = record.ranking[::-1][:6], record.ranking[:4]
    expected = [f"{what} of {i:02}.png" for i in [*worst, *best] for what in ("truth", "prediction")]
    assert alts(dom) == expected
    assert [plain(page.percent(float(record.picture_iou[i]))) for i in [*worst, *best]] == [
        plain(b[2]) for b in dom.find("b") if b[2]
    ]
    legend = [li[2] for li in dom.find("li")]
    assert legend == ["circle", "square", "ignored"] * 2  # the background has no colour
    assert [i[1].get("style") for i in dom.find("i") if "hatched" not in i[1].values()][-2:] == [
        f"background:#{bytes(colour(k)).hex()}" for k in (1, 2)
    ]


def test_the_most_confused_classes_are_those_of_the_confusion(tmp_path):
    record = segmented(tmp_path)
    cells = dense_report._confused(record)[0]
    i, j = divmod(int(record.confusion.clone().fill_diagonal_(0).argmax()), len(CLASSES))
    assert cells[:2] == (CLASSES[i], CLASSES[j])
    share = float(record.confusion[i, j] / record.confusion[i].sum())
    assert plain(cells[2]) == plain(page.percent(share))


@pytest.mark.parametrize("masks", [True, False])
def test_detection(tmp_path, masks):
    record = detected(tmp_path, masks=masks)
    dom = check(dense_report.sections(record))
    assert record.numbers.keys() == ({"box", "mask"} if masks else {"box"})
    for numbers in record.numbers.values():
        for value in numbers.values():
            assert value is None or plain(page.percent(value)) in dom.text
    assert "–" in dom.text  # there is no small object
    assert f"{record.threshold:.2f}" in dom.text
    assert all(plain(page.percent(number)) in dom.text for number in record.at_threshold)
    assert len(dom.find("table", "bars")) == len(record.numbers)
    worst, best = record.ranking[::-1][:6], record.ranking[:4]
    assert alts(dom) == [f"{what} of {i:02}.png" for i in [*worst, *best] for what in ("truth", "prediction")]
    for i in (*worst, *best):
        found, missed, false = record.tallies[i]
        assert f"{found} found, {missed} missed, {false} false {i:02}.png" in dom.text


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_pictures_are_shown_once(tmp_path, made, n):
    dom = check(dense_report.sections(made(tmp_path, n)))
    assert sorted(alts(dom)) == sorted(f"{what} of {i:02}.png" for i in range(n) for what in ("truth", "prediction"))


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_picture_that_went_away(tmp_path, made):
    record = made(tmp_path, 4)
    (tmp_path / "00.png").unlink()
    (tmp_path / "01.png").write_bytes(b"no picture")
    dom = check(dense_report.sections(record))
    assert len(dom.find("img")) == 2 * 2
    assert len(dom.find("div", "missing")) == 2


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_names_chosen_by_others_stay_text(tmp_path, made):
    hostile = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b's", "猫 🐈", "قطة\u202e", "")
    dom = check(dense_report.sections(made(tmp_path, 6, hostile, names='{:02}"<b>&.png')))
    assert {e[1]["src"][:10] for e in dom.find("img")} == {"data:image"}
    assert not [b for b in dom.find("b") if "png" in b[2]]
    assert plain(hostile[0]) in dom.text


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_hundred_classes_are_shown_by_their_ends(tmp_path, made):
    classes = tuple(f"class {k}" for k in range(100))
    record = made(tmp_path, 12, classes)
    check(dense_report.sections(record))
    many = dense_report.lowest_first([dense_report.Bar(name, k / 100) for k, name in enumerate(classes)])
    dom = Dom(page.macro("dense.html", "columns", many, "IoU"))
    assert len(dom.find("div", "strip")) == 20 + 10
    assert "The 20 lowest" in dom.text
    assert "class 99" in dom.text


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_in_a_browser(tmp_path, made):
    path = tmp_path / "report.html"
    report.write(path, result={}, metrics=[], evaluation=None, sections=dense_report.sections(made(tmp_path)))
    text = path.read_text("utf-8")
    probe = """<script>addEventListener("load", () => {
      const pictures = [...document.images], whole = pictures.filter(i => i.complete && i.naturalWidth > 0);
      const fits = document.documentElement.scrollWidth <= innerWidth;
      document.title = JSON.stringify([pictures.length, whole.length, fits]);
    })</script>"""
    shown = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    probed = tmp_path / "probed.html"
    probed.write_text(shown.replace("</head>", probe + "</head>"), "utf-8")
    switches = [f"--{switch}" for switch in SWITCHES.split()]
    command = [BROWSER, *switches, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(Dom(done.stdout).find("title")[0][2]) == [20, 20, True]


def test_the_title_names_the_head_where_a_task_has_several(tmp_path):
    result = {"method": "lora", "parameters": 5, "head_parameters": 1234, "backbone_parameters": 1000}
    for task, head, title in (("segment", "fpn", "lora with fpn on"), ("classify", "linear", "lora on")):
        said = {**result, "task": task, "head": {"name": head}}
        report.write(tmp_path / "page.html", result=said, metrics=[], evaluation=None)
        text = plain(Dom((tmp_path / "page.html").read_text()).text)
        assert title in text
        assert "and a head of 1,234." in text
