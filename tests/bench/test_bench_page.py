"""The page of a benchmark and our rows beside published ones: what they show, and what must not be said."""

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace

import pytest
from helpers_bench import TINY, make_record
from helpers_cli import call
from helpers_pages import Dom, check_whole

from vitgraft.bench import beside, layout, page, protocols, published, reading, record, suites
from vitgraft.commands import bench as command
from vitgraft.common.errors import RequestError, WorkError
from vitgraft.pages.charts import Dots, dots, floor
from vitgraft.pages.page import percent
from vitgraft.pages.scatter import Point, log_ticks, scatter

VALUES = {  # label: {task: values of seeds 0, 1, ...}
    "linear": {"pets": [0.50, 0.54], "svhn": [0.40, 0.40], "clevr": [0.30, 0.32]},
    "lora": {"pets": [0.80, 0.84], "svhn": [0.90, 0.92], "clevr": [0.60, 0.70]},
    "hst": {"pets": [0.81, 0.83], "svhn": [0.92, 0.92], "clevr": [0.80, 0.70]},
}
SIZES = {"linear": 0, "lora": 300_000, "hst": 764_840}
VTAB = suites.find("vtab-1k")
ORIG = "vit_base_patch16_224.orig_in21k"


def records_of(values=VALUES, **changes):
    return [
        make_record(
            value, {"parameters": SIZES.get(label, 1)}, label=label, method=label, task=task, seed=seed, **changes
        )
        for label, tasks in values.items()
        for task, of_seeds in tasks.items()
        for seed, value in enumerate(of_seeds)
    ]


def keep(records, out, suite=TINY):
    """A folder as `vitgraft bench run` leaves it."""
    (out / "records").mkdir(parents=True)
    (out / "failures").mkdir()
    for found in records:
        record.write(found, out / "records" / f"{found.job.key}.json")
    (out / command.IDENTITY).write_text(json.dumps({"suite": asdict(suite), "protocol": "strict"}))
    return out


def fail(out, reason, **changes):
    job = make_record(0.5, **changes).job
    told = {"key": job.key, "reason": reason, "time": 0, "job": vars(job)}
    (out / "failures" / f"{job.key}.json").write_text(json.dumps(told))


def vtab_records(
    label="lora", method="lora", values=None, epoch="last", backbone=ORIG, size=224, prepared=None, **changes
):
    """Records of VTAB-1k with the published values of a row, or others; {task: per cent}."""
    values = values or published.find("mai-vtab-1k").row("lora").of_tasks(VTAB)
    protocol = {"epoch_reported": epoch, "image_size": [size, size], "normalisation": "own", "augmentation": "none"}
    return [
        make_record(
            value / 100,
            {"protocol": {**protocol, **(prepared or {})}},
            **{
                "suite": "vtab-1k",
                "label": label,
                "method": method,
                "arguments": {},
                "backbone": backbone,
                "task": task,
            }
            | changes,
        )
        for task, value in values.items()
    ]


# What is missing.


def test_gaps_are_named_with_their_reasons(tmp_path):
    values = {**VALUES, "lora": {"pets": [0.8], "svhn": [0.9, 0.9]}}
    out = keep(records_of(values), tmp_path / "out")
    fail(out, "The loss is not finite.", label="lora", task="pets", seed=1)
    fail(out, "No memory.", label="full", method="full", task="svhn", seed=0)
    fail(out, "Of another protocol.", label="full", method="full", task="pets", protocol="hst")
    (out / "failures" / "cut.json").write_text('{"job"')
    made = reading.table(reading.read(out, TINY), TINY)
    assert reading.gap_lines(reading.gaps(made, out)) == [
        "failed: lora, pets, seed 1: The loss is not finite.",
        "failed: full, svhn, seed 0: No memory.",
        "not run: lora, clevr, seeds 0, 1",
    ]
    whole = reading.table(records_of(), TINY)
    assert reading.gaps(whole, tmp_path / "nowhere") == []


# The charts.


def test_an_axis_begins_at_the_lowest_value_unless_it_is_far_below():
    assert floor([3.0, 1.0, 2.0, 4.0]) == 1.0
    assert floor([65.0, 80.0, 81.0, 82.0, 83.0]) == 80.0
    assert floor([65.0, 66.0, 81.0, 82.0, 83.0]) == 65.0  # two of five are not few
    assert floor([65.0, 82.0, 83.0]) == 65.0
    assert floor([7.0] * 5) == 7.0


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(0.9, 30) == pytest.approx([1, 2, 5, 10, 20])
    assert log_ticks(0.05, 100) == pytest.approx([0.1, 0.3, 1, 3, 10, 30, 100])
    assert log_ticks(1e-4, 1e3) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100, 1000])


def drawn(figure):
    return ET.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])


def plot(points):
    return drawn(scatter("t", points, percent, percent, str, "x", "y"))


def test_a_scatter_chart_has_every_point_where_it_belongs():
    points = [Point("a", 1, 0.5), Point("b", 10, 0.6, 0.01, True), Point("c", 100, 0.7)]
    found = plot(points)
    circles = sorted((float(c.get("cx")), -float(c.get("cy"))) for c in found.iter("circle"))
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # a logarithmic axis
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert [c.get("class") for c in found.iter("circle")].count("point front") == 1
    assert len([e for e in found.iter("line") if e.get("class") == "whisker"]) == 1


def test_no_parameters_have_a_place_on_a_logarithmic_axis():
    found = plot([Point("none", 0, 0.5), Point("few", 0.1, 0.6), Point("many", 86, 0.7)])
    circles = sorted(float(c.get("cx")) for c in found.iter("circle"))
    assert circles[0] < circles[1] - 20
    assert "0" in [text.text for text in found.iter("text")]


def test_a_point_far_below_is_an_arrow_with_its_value():
    points = [Point(name, 1 + k, 0.8 + 0.01 * k) for k, name in enumerate("abcd")]
    found = plot([*points, Point("linear", 2, 0.2)])
    assert len(list(found.iter("circle"))) == 4
    assert len(list(found.iter("polygon"))) == 1
    assert any((text.text or "").startswith("linear 20.0") for text in found.iter("text"))


def test_labels_of_points_do_not_cover_each_other():
    points = [Point(f"method {k}", 0.3 + 0.002 * k, 0.8 + 0.0005 * k) for k in range(8)]
    boxes = []
    for text in plot([*points, Point("full", 86, 0.9), Point("worst", 0.1, 0.7)]).iter("text"):
        if "name" in (text.get("class") or ""):
            x, y, width = float(text.get("x")), float(text.get("y")), 6.3 * len(text.text)
            left = x - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
            boxes.append((left, y - 10, left + width, y))
    assert len(boxes) == 10
    for k, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:k])


def test_dots_tell_above_from_below_and_sure_from_unsure():
    rows = [
        Dots("up", [0.01, 0.02], 0.015, (0.01, 0.02)),
        Dots("down", [-0.03, -0.01], -0.02, (-0.03, -0.01)),
        Dots("either", [-0.01, 0.02], 0.005, (-0.01, 0.02)),
    ]
    found = drawn(dots("t", rows, percent, percent, zero=True))
    assert [g.get("class") for g in found.iter("g")] == ["row", "row below", "row unsure"]
    assert len(list(found.iter("circle"))) == 6


# The page.


def test_the_page_shows_what_was_measured(tmp_path):
    made = reading.table(records_of(), TINY, labels=list(VALUES))
    page.write(tmp_path / "page.html", made, against="lora", pictures=tmp_path / "svg")
    dom = check_whole(tmp_path / "page.html")
    for words in ("a suite for tests", "strict", "vit.safetensors", "2 (0, 1)", "18 done", "top-1 accuracy on test"):
        assert words in dom.text
    for words in ("79.33 ±3.77", "75.75 ±4.60", "mean of 3", "mean of groups", "0.765", "hst minus lora", "+3.67"):
        assert words in dom.text
    assert "failed" not in dom.text
    # four costs; the means of two methods, and each of them; three tasks
    assert len(dom.find("svg")) == 4 + 1 + 2 + 3
    assert all(svg[1]["aria-label"] for svg in dom.find("svg"))
    names = sorted(path.name for path in (tmp_path / "svg").iterdir())
    assert len(names) == 10
    assert {"cost-parameters.svg", "difference.svg", "difference-hst.svg", "seeds-pets.svg"} <= set(names)
    for name in names:
        root = ET.parse(tmp_path / "svg" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_front_is_the_same_as_that_of_the_table(tmp_path):
    made = reading.table(records_of(), TINY, labels=list(VALUES))
    page.write(tmp_path / "page.html", made)
    first = Dom((tmp_path / "page.html").read_text("utf-8")).find("svg")[0][1]["aria-label"]
    for row in made.rows:
        said = next(part for part in first.split("; ") if f"{row.label} " in part)
        assert ("on the front" in said) == (row in reading.pareto(made))


def test_the_page_names_what_is_missing(tmp_path):
    values = {**VALUES, "lora": {"pets": [0.8, 0.8], "svhn": [0.9]}}
    made = reading.table(records_of(values, flags=["best epoch on test"]), TINY)
    gaps = [reading.Gap("lora", "svhn", 1, "The loss is not finite."), reading.Gap("lora", "clevr", 0)]
    page.write(tmp_path / "page.html", made, gaps=gaps)
    text = check_whole(tmp_path / "page.html").text
    assert "What flatters these numbers:best epoch on test" in text
    assert "15 done, 1 failed, 1 not run" in text
    assert "failed: lora, svhn, seed 1: The loss is not finite." in text
    assert "not run: lora, clevr, seed 0" in text
    assert "for lack of an average: lora" in text


def test_a_page_without_an_average_and_with_one_seed(tmp_path):
    made = reading.table(records_of({"lora": {"pets": [0.8]}, "hst": {"svhn": [0.9]}}), TINY)
    page.write(tmp_path / "page.html", made, against="lora")
    dom = check_whole(tmp_path / "page.html")
    assert "No picture: no row has every task of the suite" in dom.text
    assert "No other row shares a task and a seed with it." in dom.text
    assert len(dom.find("svg")) == 2


def test_what_a_search_chose_is_shown(tmp_path):
    told = {
        "options": {"lr": 0.003, "scale": 0.1},
        "split": "val",
        "value": 0.348,
        "trials": 4,
        "runs": ["0", "1"],
        "seeds": [0, 1],
        "file": "f",
    }
    tuned = records_of({"lora tuned": VALUES["lora"]}, chosen=told)
    page.write(tmp_path / "page.html", reading.table([*tuned, *records_of({"hst": VALUES["hst"]})], TINY))
    found = check_whole(tmp_path / "page.html").text
    assert "Chosen settings" in found
    assert found.count("lr 0.003, scale 0.1") == found.count("34.8, best of 4, 2 seeds each") == 3  # tasks
    page.write(tmp_path / "page.html", reading.table(records_of(), TINY))
    assert "Chosen settings" not in check_whole(tmp_path / "page.html").text


def test_labels_chosen_by_others_stay_text(tmp_path):
    hostile = '<script>alert(1)</script>"&\u202e'
    made = reading.table(records_of({hostile: VALUES["lora"], "hst": VALUES["hst"]}), TINY)
    page.write(tmp_path / "page.html", made, against="hst", pictures=tmp_path / "svg")
    assert hostile in check_whole(tmp_path / "page.html").text
    for path in (tmp_path / "svg").iterdir():
        ET.parse(path)


def test_nothing_is_left_of_a_page_that_cannot_be(tmp_path):
    made = reading.table(records_of(), TINY)
    with pytest.raises(RequestError, match="no row 'loar'"):
        page.write(tmp_path / "page.html", made, against="loar")
    with pytest.raises(WorkError, match="could not be written"):
        page.write(tmp_path / "none" / "page.html", made)
    assert list(tmp_path.iterdir()) == []


# Beside published rows.


def test_like_with_like(tmp_path):
    """Mai's LoRA is of the last epoch on the original weights: raw inputs alone keep it from being like ours."""
    found = beside.beside(reading.table(vtab_records(), VTAB))
    mai = next(theirs for theirs in found.of_row["lora"] if theirs.source.startswith("Mai"))
    assert mai.differs == ("normalisation: unit, ours inception",)
    assert mai.mean == pytest.approx(0.7291, abs=1e-4)
    assert found.table.row("lora").mean.mean == pytest.approx(mai.mean)
    others = {theirs.source.split(",")[0]: theirs for theirs in found.of_row["lora"]}
    assert "epoch: best on test, ours last" in others["Jie and Deng 2022"].differs
    assert found.paired() == []
    assert not {"LoRA", "lora"} & {theirs.method for theirs in found.rest}


def test_how_pictures_were_prepared_is_compared():
    raw = beside.beside(reading.table(vtab_records(prepared={"normalisation": "unit"}), VTAB))
    assert next(theirs for theirs in raw.of_row["lora"] if theirs.source.startswith("Mai")).alike
    sct = published.find("sct-vtab-1k").row("SCT").of_tasks(VTAB)
    options = {task: protocols.find("sct").options("sct", task) for task in sct}
    records = [
        record
        for task, value in sct.items()
        for record in vtab_records("sct", "sct", {task: value}, "best on test", prepared=options[task])
    ]
    found = beside.beside(reading.table(records, VTAB))
    assert found.conditions.augmentation == "RandAugment and flip on 11 tasks"
    assert found.conditions.normalisation == "imagenet"
    assert any(theirs.alike for theirs in found.of_row["sct"])
    whole = beside.beside(reading.table(vtab_records(prepared={"augmentation": "crop"}), VTAB))
    assert whole.conditions.augmentation == "random resized crop and flip"
    mixed = vtab_records() + vtab_records("other", prepared={"augmentation": "flip", "normalisation": "unit"})
    unlike = beside.beside(reading.table(mixed, VTAB)).conditions
    assert (unlike.augmentation, unlike.normalisation) == ("unknown", "unknown")


def test_what_is_alike_is_compared(monkeypatch, tmp_path):
    row = published.find("hst-vtab-1k").row("HST")
    table = replace(published.find("hst-vtab-1k"), rows=(replace(row, epoch="last", flags=("one flag",)),))
    monkeypatch.setattr(published, "rows", lambda suite: iter([(table, table.rows[0])]))
    values = {task: value - 1 for task, value in row.of_tasks(VTAB).items()}
    augreg = "vit_base_patch16_224.augreg_in21k"
    found = beside.beside(reading.table(vtab_records("hst", "hst", values, backbone=augreg), VTAB))
    (pair,) = found.paired()
    assert pair.mean == pytest.approx(-0.01)
    assert "= HST [1]" in layout.beside_text(found)
    assert "one flag" in layout.beside_text(found)
    for change, reason in [
        ({"epoch": "unknown"}, "epoch: ours is not known"),
        ({"size": 112}, "ours on pictures of 112 x 112 pixels"),
        ({"backbone": ORIG}, f"checkpoint: {augreg}, ours {ORIG}"),
        ({"backbone": f"{augreg}=weights.npz"}, "checkpoint: ours is not known"),
        ({"arguments": {"detached": True}}, "ours has detached=true"),
    ]:
        other = vtab_records("hst", "hst", values, **{"backbone": augreg, **change})
        (theirs,) = beside.beside(reading.table(other, VTAB)).of_row["hst"]
        assert theirs.differs == (reason,)


def test_both_sides_are_averaged_over_the_same_tasks():
    tasks = ("cifar", "dtd", "eurosat")
    values = dict.fromkeys(tasks, 50.0)
    found = beside.beside(reading.table(vtab_records(values=values), VTAB))
    mai = next(theirs for theirs in found.of_row["lora"] if theirs.source.startswith("Mai"))
    assert set(mai.values) == set(tasks)
    assert mai.mean == pytest.approx((0.702 + 0.69 + 0.944) / 3)
    assert mai.mean_of_groups == pytest.approx(((0.702 + 0.69) / 2 + 0.944) / 2)
    assert found.table.row("lora").mean.mean == pytest.approx(0.5)
    text = layout.beside_text(found)
    assert "mean of 3" in text
    assert "svhn" not in text


def test_a_row_that_tables_copied_is_there_once():
    found = beside.beside(reading.table(vtab_records("hst", "hst"), VTAB))
    (theirs,) = found.of_row["hst"]
    assert theirs.source.count("; also ") == 1
    sources = [theirs.source for theirs in found.rest if theirs.method == "NOAH"]
    assert len(sources) == 1


def test_a_suite_that_nothing_is_published_of():
    with pytest.raises(RequestError, match=r"No published table is about the suite tiny: .*vtab-1k"):
        beside.beside(reading.table(records_of(), TINY))


# From the command line.


def test_the_command(tmp_path, capsys):
    records = [*vtab_records(), *vtab_records("hst", "hst")]
    out, html = keep(records, tmp_path / "out", VTAB), tmp_path / "page.html"
    words = ["--against", "published", "--against", "lora", "--html", html, "--svg", tmp_path / "svg"]
    assert call("bench", "show", out, *words) == 0
    said = capsys.readouterr()
    assert "hst - lora: +0.00 points" in said.out
    assert "≠ LoRA [" in said.out
    assert "epoch: best on test, ours last" in said.out
    assert str(html) in said.err
    dom = check_whole(html)
    for part in ("Beside published numbers", "Task by task", "Not run here", "epoch: best on test, ours last"):
        assert part in dom.text
    assert len(list((tmp_path / "svg").glob("seeds-*.svg"))) == 19
    assert call("bench", "show", out, "--csv", "--html", html) == 0
    assert capsys.readouterr().out.startswith("method,")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "page.html", "--against", "loar"], "Did you mean 'lora'"),
        (["--html", "page.html", "--against", "lora", "--against", "hst"], "published, but lora and hst came"),
        (["--html", "none/page.html"], "could not be written"),
        (["--svg", "pictures"], "give --html PAGE too"),
    ],
)
def test_bad_requests(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [*vtab_records(values={"cifar": 50.0}), *vtab_records("hst", "hst", {"cifar": 60.0})]
    out = keep(records, tmp_path / "out", VTAB)
    assert call("bench", "show", out, *words) in (1, 2)
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
