"""Suites: what they say, where a task's folder is found, and what is refused when it is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vitgraft.bench import suites
from vitgraft.bench.suites import Suite, TaskOf
from vitgraft.common.errors import RequestError
from vitgraft.data import read

VTAB = suites.find("vtab-1k")
ALIASES = [(task.name, alias) for task in VTAB.tasks for alias in task.aliases]
KITTI = VTAB.task("kitti")
SMALL = Suite("small", "", "", tuple(TaskOf(n, (), 2, g, "top-1 accuracy") for n, g in ("ax", "bx", "cx", "dy")))


def jpegs(folder: Path, count: int) -> list[str]:
    """Pictures as NOAH names them, `images/SPLIT/000000.jpg`; their paths from the task's folder."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (8, 6), (index % 256, 90, 200)).save(folder / f"{index:06d}.jpg")
    return [f"images/{folder.name}/{index:06d}.jpg" for index in range(count)]


def noah(root: Path, task: TaskOf, sizes: dict[str, int]) -> Path:
    """A task's folder as NOAH's get_vtab1k.py leaves it, with the labels 0, 1, ... in turn."""
    folder = root / task.name
    files = {"train800": "train", "val200": "val", "test": "test"}
    lines = {
        name: [f"{path} {i % task.classes}" for i, path in enumerate(jpegs(folder / "images" / name, sizes[split]))]
        for name, split in files.items()
    }
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    return noah(tmp_path, KITTI, dict(KITTI.sizes))


def empty(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def replace_line(file: Path, number: int, text: str) -> None:
    lines = file.read_text().splitlines()
    lines[number - 1] = text
    file.write_text("\n".join(lines) + "\n")


# What the files say


def test_vtab_is_what_its_source_says():
    assert Counter(task.group for task in VTAB.tasks) == {"natural": 7, "specialized": 4, "structured": 8}
    assert VTAB.groups == ("natural", "specialized", "structured")
    classes = [100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9]
    assert [task.classes for task in VTAB.tasks] == classes
    assert sum(classes) == 940
    assert all((task.sizes["train"], task.sizes["val"]) == (800, 200) for task in VTAB.tasks)
    assert (VTAB.task("kitti").sizes["test"], VTAB.task("dsprites_ori").sizes["test"]) == (711, 73728)


@pytest.mark.parametrize(
    ("name", "tasks", "groups"), [("few-shot", 25, 5), ("domain-generalisation", 5, 2), ("fgvc", 5, 1)]
)
def test_the_other_suites(name: str, tasks: int, groups: int):
    suite = suites.find(name)
    assert (len(suite.tasks), len(suite.groups)) == (tasks, groups)
    assert suite.name == name


def test_a_few_shot_task_has_its_shots_of_every_class():
    for task in suites.find("few-shot").tasks:
        assert task.sizes["train"] == task.classes * int(task.group.removesuffix("-shot"))


def test_a_model_is_tested_on_shifts_that_it_was_not_trained_on():
    suite = suites.find("domain-generalisation")
    assert {task.name for task in suite.tasks if task.trained_on == "imagenet"} == set(suite.task_names) - {"imagenet"}


def test_every_task_is_measured_as_classification_measures():
    from vitgraft.tasks.classify import Classify

    for name in set(suites.names()) - {"local"}:
        assert {task.metric for task in suites.find(name).tasks} == {Classify.metric}


def test_reading_them_needs_no_torch():
    code = (
        "import sys; from vitgraft.bench import suites, protocols, published\n"
        "suites.find('vtab-1k'), protocols.find('hst'), list(published.rows('vtab-1k'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Averages


def test_both_averages():
    values = {"a": 10.0, "b": 20.0, "c": 60.0, "d": 100.0}
    assert SMALL.mean(values) == pytest.approx(47.5)
    assert SMALL.mean_of_groups(values) == pytest.approx((30 + 100) / 2)
    assert SMALL.group_means(values) == pytest.approx({"x": 30, "y": 100})


@pytest.mark.parametrize("values", [{"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 2.0, "c": 3.0, "d": float("nan")}])
@pytest.mark.parametrize("average", ["mean", "mean_of_groups"])
def test_no_average_over_a_part_of_the_tasks(average: str, values: dict[str, float]):
    with pytest.raises(RequestError, match=r"over 4 tasks, but 1 have no value \(d\)"):
        getattr(SMALL, average)(values)


# Names


def test_an_unknown_suite_and_an_unknown_task():
    with pytest.raises(RequestError, match=r"no suite 'vtab1k'.*local.*Did you mean 'vtab-1k'"):
        suites.find("vtab1k")
    with pytest.raises(RequestError, match=r"no task 'kiti'.*Did you mean 'kitti'"):
        VTAB.task("kiti")


@pytest.mark.parametrize(("change", "said"), [
    ({"tasks": []}, "has no task"),
    ({"tasks": 3}, "has 3 as its tasks, but that is a list"),
    ({"tasks": [3]}, "Task 1 of .* is 3, but must be an object"),
    ({"tasks": [{"name": "a", "aliases": "b", "classes": 2, "group": "g", "metric": "m"}]}, "'b' as its aliases"),
    ({"colour": "red"}, "has a field 'colour'"),
    ({"title": None}, "lacks title"),
    ({"tasks": [{"name": "a", "aliases": ["a"], "classes": 2, "group": "g", "metric": "m"}]}, "'a' twice"),
    ({"tasks": [{"name": "a", "aliases": [], "group": "g", "metric": "m"}]}, "Task 1 of .* lacks classes"),
])  # fmt: skip
def test_a_broken_suite_file(tmp_path: Path, change: dict, said: str):
    task = {"name": "a", "aliases": [], "classes": 2, "group": "g", "metric": "m"}
    whole = {"name": "s", "title": "t", "source": "x", "tasks": [task], **change}
    (tmp_path / "s.json").write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))
    with pytest.raises(RequestError, match=said):
        suites.load(tmp_path / "s.json")


def test_a_suite_file_that_is_no_json(tmp_path: Path):
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(RequestError, match=r"s.json was to be read as a suite, but cannot be"):
        suites.load(tmp_path / "s.json")


# Folders


def test_all_19_folders_under_their_own_names(tmp_path: Path):
    empty(tmp_path, [*VTAB.task_names, "something-else"])
    assert suites.locate(VTAB, tmp_path) == {name: tmp_path / name for name in VTAB.task_names}


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_every_alias_is_found(tmp_path: Path, name: str, alias: str):
    empty(tmp_path, [alias if task == name else task for task in VTAB.task_names])
    assert suites.locate(VTAB, tmp_path)[name] == tmp_path / alias
    assert VTAB.task(alias).name == name


def test_the_names_of_the_papers_code_are_aliases():
    papers = {"cifar100": "cifar", "oxford_pet": "oxford_iiit_pet"}  # Consolidator and NOAH's scripts; SCT
    assert {alias: VTAB.task(alias).name for alias in papers} == papers


def test_a_few_shot_folder_inside_its_set(tmp_path: Path):
    empty(tmp_path, ["food101/4shot"])
    found = suites.locate(suites.find("few-shot"), tmp_path, ["food101-4shot"])
    assert found == {"food101-4shot": tmp_path / "food101/4shot"}


def test_a_folder_with_a_task_missing(tmp_path: Path):
    empty(tmp_path, [name for name in VTAB.task_names if name not in ("dtd", "cifar")] + ["dtd_"])
    with pytest.raises(RequestError) as error:
        suites.locate(VTAB, tmp_path)
    assert "2 of its 19 tasks have no folder there (cifar (or cifar100, cifar-100), dtd)" in str(error.value)
    assert suites.locate(VTAB, tmp_path, ["kitti", "pets"]) == {
        name: tmp_path / name for name in ("oxford_iiit_pet", "kitti")
    }


def test_two_folders_of_one_task(tmp_path: Path):
    empty(tmp_path, [*VTAB.task_names, "cifar100"])
    with pytest.raises(RequestError, match=r"cifar.* and cifar.* both mean it"):
        suites.locate(VTAB, tmp_path)


def test_a_link_is_the_same_folder(tmp_path: Path):
    empty(tmp_path, list(VTAB.task_names))
    (tmp_path / "cifar100").symlink_to(tmp_path / "cifar")
    assert suites.locate(VTAB, tmp_path)["cifar"] == tmp_path / "cifar"


def test_no_folder_at_all(tmp_path: Path):
    with pytest.raises(RequestError, match="that is no folder"):
        suites.locate(VTAB, tmp_path / "none")


# Reading


def test_vtab_as_noah_lays_it_out(tmp_path: Path):
    for task in VTAB.tasks:
        noah(tmp_path, task, dict(KITTI.sizes) if task is KITTI else {"train": 2, "val": 1, "test": 1})
    folder = suites.locate(VTAB, tmp_path)["kitti"]
    found = suites.read(KITTI, folder)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 800, "val": 200, "test": 711}
    assert found.classes == read(folder).classes == ("0", "1", "2", "3")
    assert len(found.split("train+val")) == 1000
    with Image.open(found.splits["test"].paths[0]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (8, 6))


def test_a_list_that_is_too_short(tmp_path: Path):
    folder = noah(tmp_path, KITTI, {"train": 800, "val": 200, "test": 710})
    with pytest.raises(RequestError, match=r"split test of .* has 710 pictures, but that of kitti has 711"):
        suites.read(KITTI, folder)


def test_a_list_that_is_not_there(kitti: Path):
    (kitti / "test.txt").unlink()
    with pytest.raises(
        RequestError, match=r"the splits train, val, but kitti has train, val, test: add the list of test"
    ):
        suites.read(KITTI, kitti)


def test_a_list_that_names_a_missing_picture(kitti: Path):
    (kitti / "images/test/000041.jpg").unlink()
    with pytest.raises(RequestError, match=r"test\.txt:42 names the picture 'images/test/000041\.jpg', but"):
        suites.read(KITTI, kitti)


@pytest.mark.parametrize("label", ["4", "-1", "1000000"])
def test_a_label_out_of_range(kitti: Path, label: str):
    replace_line(kitti / "test.txt", 7, f"images/test/000006.jpg {label}")
    with pytest.raises(RequestError, match=rf"test\.txt:7 has the label '{label}'"):
        suites.read(KITTI, kitti)


def test_a_class_that_no_list_shows(kitti: Path):
    for file in kitti.glob("*.txt"):
        file.write_text(file.read_text().replace(".jpg 3", ".jpg 2"))
    with pytest.raises(RequestError, match=r"shows 3 classes, but kitti has 4"):
        suites.read(KITTI, kitti)


def test_a_task_that_is_only_tested_needs_the_classes_of_its_model(tmp_path: Path):
    shift = TaskOf("shift", (), 2, "g", "top-1 accuracy", sizes={"test": 2}, trained_on="source")
    jpegs(tmp_path / "images" / "test", 2)
    (tmp_path / "test.txt").write_text("images/test/000000.jpg 1\nimages/test/000001.jpg 3\n")
    with pytest.raises(RequestError, match="only tested, with the model of source"):
        suites.read(shift, tmp_path)
    found = suites.read(shift, tmp_path, classes=["0", "1", "2", "3"])
    assert found.splits["test"].labels == (1, 3)


# Folders of one's own


def class_folders(root: Path, splits: list[str], classes: int = 2) -> None:
    for split in splits:
        for index in range(classes):
            jpegs(root / split / f"class{index}", 2)


def test_a_folder_of_data_sets_is_a_suite(tmp_path: Path):
    class_folders(tmp_path / "birds", ["train", "test"], classes=3)
    class_folders(tmp_path / "ants", ["."])
    jpegs(tmp_path / "boxes" / "images", 1)
    (tmp_path / "boxes" / "instances_train.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (tmp_path / "notes").mkdir()
    suite = suites.find("local", tmp_path)
    assert [(task.name, task.classes, task.group) for task in suite.tasks] == [
        ("ants", 2, "local"),
        ("birds", 3, "local"),
    ]
    assert suites.locate(suite, tmp_path) == {"ants": tmp_path / "ants", "birds": tmp_path / "birds"}
    grouped = suites.local(tmp_path, {"birds": "natural", "ants": "small"})
    assert grouped.groups == ("small", "natural")
    with pytest.raises(RequestError, match=r"no task 'bird'.*Did you mean 'birds'"):
        suites.local(tmp_path, {"bird": "natural"})


def test_a_broken_data_set_is_said_not_left_out(tmp_path: Path):
    class_folders(tmp_path / "birds", ["train", "test"])
    (tmp_path / "ants").mkdir()
    (tmp_path / "ants" / "train.txt").write_text("gone.jpg 0\n")
    with pytest.raises(RequestError, match=r"ants/train\.txt:1 names the picture 'gone.jpg'"):
        suites.local(tmp_path)


def test_local_needs_a_folder_of_data_sets(tmp_path: Path):
    with pytest.raises(RequestError, match="local is made from a folder of data sets, but none came"):
        suites.find("local")
    with pytest.raises(RequestError, match="it holds no folder"):
        suites.local(tmp_path)
    class_folders(tmp_path, ["train", "test"])
    with pytest.raises(RequestError, match="it is one data set itself"):
        suites.local(tmp_path)
