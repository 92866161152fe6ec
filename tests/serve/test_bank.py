"""A bank answers as its runs do, and each task the same to the bit whatever else it holds and is asked."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers_bank import write_adapter
from helpers_cli import make_backbone, make_pictures
from helpers_dense import object_set, segment_set
from PIL import Image

import vitgraft
from vitgraft.common.errors import RequestError, WorkError
from vitgraft.serve.bank import Bank
from vitgraft.testing.backbones import random_backbone
from vitgraft.testing.methods import VARIANTS, refusal

FAMILIES = ("cls", "swin")
KINDS = [(task, head, method) for task, head, method in (
    ("segment", "linear", "lora"), ("segment", "upernet", "hst"), ("segment", "fpn", "linear"),
    ("segment", "query", "hst+lora"), ("detect", "faster", "linear"), ("instance", "mask", "convpass"),
    ("segment", "eomt", "lora"),
)]  # fmt: skip


def write(folder, backbone, variant, seed=0):
    return write_adapter(folder / f"{len(list(folder.iterdir()))}.safetensors", backbone, variant, seed)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for k, size in enumerate([(48, 64), (64, 48), (80, 80), (30, 90)]):
        paths.append(folder / f"{k}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def said(prediction):
    return json.dumps(prediction.rows)


def same(given, expected):
    return {name: said(each) for name, each in given.items()} == {name: said(each) for name, each in expected.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def everyone(request, tmp_path_factory):
    """A backbone, and an adapter of every method in every form on it."""
    family = request.param
    backbone, folder = random_backbone(family), tmp_path_factory.mktemp("adapters")
    variants = [variant for variant in VARIANTS if not refusal(variant, family)]
    names = [f"{k}-{variant[0].replace('+', '-')}" for k, variant in enumerate(variants)]
    files = {name: write(folder, backbone, variant) for name, variant in zip(names, variants, strict=True)}
    return backbone, files


def test_each_answer_is_the_runs(everyone, pictures):
    backbone, files = everyone
    with Bank(backbone, files, precision="32") as bank:
        found = bank.predict(pictures)
    for name, file in files.items():
        run = vitgraft.Run(file, backbone)
        run.adapter.header["protocol"]["precision"] = "32"
        for given, expected in zip(found, run.predict(pictures, batch_size=1), strict=True):
            ours, theirs = (each.rows[0]["probabilities"] for each in (given[name], expected))
            assert ours.keys() == theirs.keys()
            assert [*ours.values()] == pytest.approx([*theirs.values()], abs=1e-5)
            assert given[name].picture == expected.picture


@pytest.mark.parametrize(("batch", "precision"), [(1, "32"), (3, "bf16")])
def test_no_answer_depends_on_who_else_is_there(everyone, pictures, batch, precision):
    backbone, files = everyone
    how = {"batch": batch, "precision": precision}
    alone = {}
    for name, file in files.items():
        with Bank(backbone, {name: file}, **how) as bank:
            alone[name] = [said(bank.predict(path, name)) for path in pictures]
    with Bank(backbone, files, **how) as bank:
        for k, found in enumerate(bank.predict(pictures)):  # all tasks of all pictures
            assert {name: said(each) for name, each in found.items()} == {name: of[k] for name, of in alone.items()}
        names = list(files)
        for first, second in zip(names, names[1:] + names[:1], strict=True):  # pairs of methods in one batch
            one, two = bank.predict(pictures[:2], [first, second])
            assert (said(one), said(two)) == (alone[first][0], alone[second][1])


def test_eight_threads_at_once(everyone, pictures):
    backbone, files = everyone
    with Bank(backbone, files, batch=3, wait=0.002) as bank:
        expected = bank.predict(pictures)
        jobs = [(k % len(pictures), name) for k, name in enumerate([*files] * 3)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda job: said(bank.predict(pictures[job[0]], job[1])), jobs))
    assert found == [said(expected[k][name]) for k, name in jobs]


def test_detached_tasks_share_one_pass_and_others_do_not(pictures, tmp_path, monkeypatch):
    backbone = random_backbone("cls")
    detached = [("linear", {}), ("hst", {"detached": True}), ("lst", {})]
    touching = [("lora", {}), ("hst", {}), ("convpass", {})]
    files = {f"task{k}": write(tmp_path, backbone, of) for k, of in enumerate(detached + touching)}
    passed = []
    forward = type(backbone).forward
    monkeypatch.setattr(
        type(backbone), "forward", lambda self, x, *a, **k: passed.append(len(x)) or forward(self, x, *a, **k)
    )
    with Bank(backbone, files) as bank:
        bank.predict(pictures[0], ["task0", "task1", "task2"])
        assert passed == [1]
        bank.predict(pictures[0])
        assert passed == [1] * 5  # one for those three, one for each of the others
        shares = {row["name"]: row["shares_pass"] for row in bank.table()}
        assert shares == {name: name in ("task0", "task1", "task2") for name in files}
    passed.clear()
    with Bank(backbone, files, batch=4) as bank:
        bank.predict(pictures[0], ["task0", "task1", "task2", "task3", "task5"])
        assert passed == [4]  # three places, filled up


def test_what_is_asked_of_which_picture(pictures, tmp_path):
    backbone = random_backbone("cls")
    files = {name: write(tmp_path, backbone, (name, {})) for name in ("linear", "lora")}
    with Bank(backbone, files) as bank:
        assert bank.tasks == ("linear", "lora")
        one = bank.predict(pictures[0], "lora")
        assert one.label.startswith("lora ")
        assert said(bank.predict(pictures[:2], "lora")[0]) == said(one)
        each = bank.predict(pictures[:2], ["lora", "linear"])
        assert [prediction.label.split()[0] for prediction in each] == ["lora", "linear"]
        mixed = bank.predict(pictures[:2], ["lora", ["lora", "linear"]])
        assert said(mixed[0]) == said(one)
        assert mixed[1].keys() == {"lora", "linear"}
        assert bank.predict(pictures[0], ["lora", "linear"]).keys() == {"lora", "linear"}
        assert all(of.keys() == {"lora", "linear"} for of in bank.predict(pictures))
        assert same(bank.predict(pictures, {"lora"})[0], {"lora": one})
        assert bank.predict(Image.open(pictures[0]), "lora").label == one.label
        with pytest.raises(RequestError, match="4 pictures came with 1 entries of tasks"):
            bank.predict(pictures, ["lora"])
        with pytest.raises(RequestError, match=r"no task 'lore': there are linear, lora; .* Did you mean 'lora'"):
            bank.predict(pictures, "lore")
        with pytest.raises(RequestError, match="none was named"):
            bank.predict(pictures, [[], [], [], []])


def test_tasks_come_and_go_while_it_answers(pictures, tmp_path):
    backbone = random_backbone("cls")
    first, second = (write(tmp_path, backbone, ("lora", {}), seed=seed) for seed in (0, 1))
    expected = []
    for file in (first, second):
        with Bank(backbone, {"it": file}) as bank:
            expected.append(said(bank.predict(pictures[0], "it")))
    assert expected[0] != expected[1]
    with Bank(backbone, {"it": first, "other": second}) as bank:
        wrong, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                if (found := said(bank.predict(pictures[0], "it"))) not in expected:
                    wrong.append(found)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for k in range(30):
            bank.replace("it", (second, first)[k % 2])
            bank.add("more", first)
            bank.drop("more")
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert said(bank.predict(pictures[0], "it")) == expected[0]
        with pytest.raises(RequestError, match="has a task 'it' already"):
            bank.add("it", first)
        with pytest.raises(RequestError, match=r"no task 'nobody'"):
            bank.replace("nobody", first)
        with pytest.raises(RequestError, match="is no name of a task"):
            bank.add("../it", first)
        assert bank.tasks == ("it", "other")
    with pytest.raises(RequestError, match="closed"):
        bank.predict(pictures[0], "it")


def test_within_its_memory_the_least_used_go_and_come_back(pictures, tmp_path):
    backbone = random_backbone("cls")
    files = {f"task{k}": write(tmp_path, backbone, ("lora", {}), seed=k) for k in range(4)}
    with Bank(backbone, files) as bank:
        expected = bank.predict(pictures[0])
        size = bank.table()[0]["bytes"]
    with Bank(backbone, files, memory=2.5 * size / 2**30) as bank:

        def there():
            return [row["name"] for row in bank.table() if row["in_memory"]]

        assert there() == ["task2", "task3"]
        for name in ("task0", "task3", "task0", "task1"):
            assert said(bank.predict(pictures[0], name)) == said(expected[name])
        assert there() == ["task0", "task1"]
        assert same(bank.predict(pictures[0]), expected)  # more at once than there is room for
        files["task2"].write_bytes(files["task1"].read_bytes())
        bank.predict(pictures[0], ["task0", "task1"])
        with pytest.raises(WorkError, match="another file than when task 'task2' was added"):
            bank.predict(pictures[0], "task2")


def test_a_bad_picture_and_a_wrong_backbone(pictures, tmp_path):
    backbone = random_backbone("cls")
    file = write(tmp_path, backbone, ("lora", {}))
    bad = tmp_path / "bad.png"
    bad.write_bytes(pictures[0].read_bytes()[:200])
    with Bank(backbone, {"it": file}) as bank:
        with pytest.raises(WorkError, match=r"bad\.png cannot be read as a picture"):
            bank.predict([pictures[0], bad], "it")
        assert [each.index for each in bank.predict([bad, *pictures[:2]], "it", skip_bad=True)] == [1, 2]
    with pytest.raises(RequestError, match="fingerprint"):
        Bank(random_backbone("cls", seed=1), {"it": file})
    with pytest.raises(RequestError, match="needs a backbone"):
        Bank()
    with pytest.raises(RequestError, match="none can be below 0"):
        Bank(backbone, batch=-1)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Runs of the dense tasks and one of whole pictures on one backbone."""
    root = tmp_path_factory.mktemp("dense")
    backbone = make_backbone(root / "backbone.safetensors")
    masks, objects = segment_set(root / "masks"), object_set(root / "objects")

    data = {
        "segment": masks,
        "detect": objects,
        "instance": objects,
        "classify": make_pictures(root / "whole", train=2),
    }
    files = {}
    for k, (task, head, method) in enumerate([*KINDS, ("classify", "linear", "hst")]):
        out = root / "runs" / f"{task}{k}"
        size = 64 if task != "classify" else 32
        vitgraft.fit(
            data[task], task=task, head=head, method=method, backbone=str(backbone), out=out, epochs=1, batch_size=2,
            image_size=size, workers=0, quiet=True,
        )  # fmt: skip
        files[out.name] = out
    return files, next((masks / "images").rglob("*.png")), next(objects.rglob("*.png"))


@pytest.mark.parametrize("batch", [1, 4])
def test_every_kind_of_task_side_by_side(dense, batch):
    files, *given = dense
    with Bank(adapters=files, precision="32", batch=batch) as bank:
        for picture in given:
            together = bank.predict(picture)
            for name, path in files.items():
                with Bank(bank.backbone, {name: path}, precision="32", batch=batch) as alone:
                    assert said(alone.predict(picture, name)) == said(together[name])
                run = vitgraft.Run(path, bank.backbone)
                run.adapter.header["protocol"]["precision"] = "32"
                expected = run.predict(picture)
                assert together[name].labels == expected.labels
                assert np.allclose(together[name].scores, expected.scores, atol=1e-4)
                assert np.allclose(together[name].boxes, expected.boxes, atol=1e-2)
                assert together[name].draw().size == expected.draw().size
