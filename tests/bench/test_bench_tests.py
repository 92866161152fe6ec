"""Domain generalisation: one model, fitted once, is tested on every task that is trained on its own."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers_bench import calls, counts, make_data, make_grid, result, suite_of, task_of
from helpers_bench import fit as fake_fit
from helpers_cli import CLASSES, call, make_backbone, make_pictures

import vitgraft
from vitgraft.bench import reading, record, work
from vitgraft.bench.grid import run
from vitgraft.bench.suites import Suite, TaskOf
from vitgraft.commands import bench as command
from vitgraft.common.errors import RequestError
from vitgraft.measures.accuracy import among

SOURCE = TaskOf("source", (), 3, "source", "top-1 accuracy", sizes={"train": 24, "test": 12})
FULL = TaskOf("sketch", (), 3, "shift", "top-1 accuracy", sizes={"test": 9}, trained_on="source")
SOME = TaskOf("some", (), 2, "shift", "top-1 accuracy", sizes={"test": 10}, trained_on="source")
SHIFTS = Suite("shifts", "shifts for tests", "made up", (FULL, SOURCE, SOME))  # the source need not be the first


@pytest.fixture(autouse=True)
def no_backbone_is_left():
    yield
    work._loaded.cache_clear()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A backbone, and three sets of which one shows two of the three classes."""
    folder = tmp_path_factory.mktemp("ground")
    make_backbone(folder / "vit.safetensors")
    make_pictures(folder / "sets" / "source", train=8, test=4)
    make_pictures(folder / "sets" / "sketch", tint=0.05, test=3)
    make_pictures(folder / "sets" / "some", tint=0.02, test=5)
    shutil.rmtree(folder / "sets" / "some" / "test" / CLASSES[0])
    return folder


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    find = command.suites.find
    monkeypatch.setattr(
        command.suites, "find", lambda name, root=None: SHIFTS if name == "shifts" else find(name, root)
    )


def words_of(ground, out, *more, part="run"):
    words = ["bench", part, "--suite", "shifts", "--data", ground / "sets", "--backbone", ground / "vit.safetensors"]
    settings = ["--set", "epochs=2", "batch_size=12", "workers=0", "train_split=train"]
    return [*words, "--out", out, "--methods", "linear", "bitfit", "--seeds", 2, *settings, *more]


@pytest.fixture(scope="module")
def bench(ground, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.suites, "find", lambda name, root=None: SHIFTS)
        assert call(*words_of(ground, out)) == 0
    return out


def records_of(out):
    return reading.read(out, SHIFTS)


# With real fits.


def test_every_task_has_a_value_of_the_one_fit(bench, ground, capsys):
    records = records_of(bench)
    assert len(records) == 2 * 2 * 3
    assert len(list((bench / "runs").iterdir())) == 4
    fits = {r.job.key: r for r in records if not r.job.source}
    assert {r.job.task for r in fits.values()} == {"source"}
    for r in records:
        fit = fits[r.job.source or r.job.key]
        assert (r.parameters, r.seconds, r.resolved, r.job.settings) == (
            fit.parameters, fit.seconds, fit.resolved, fit.job.settings
        )  # fmt: skip
        assert r.split == "test"
        made = vitgraft.Run(bench / "runs" / fit.job.key, str(ground / "vit.safetensors"))
        found = made.evaluate(ground / "sets" / r.job.task, "test", shown_only=True)
        assert (r.value, tuple(r.interval)) == (found.value, found.interval)


def test_the_table_has_all_columns_and_both_averages(bench, capsys):
    assert call("bench", "show", bench) == 0
    said = capsys.readouterr().out
    for part in ("sketch", "source", "some", "mean of 3", "mean of groups"):
        assert part in said
    assert "lacks" not in said
    row = reading.table(records_of(bench), SHIFTS).row("linear")
    means = {name: spread.mean for name, spread in row.tasks.items()}
    assert row.mean.mean == pytest.approx(sum(means.values()) / 3)
    assert row.mean_of_groups.mean == pytest.approx((means["source"] + (means["sketch"] + means["some"]) / 2) / 2)
    assert call("bench", "show", bench, "--csv") == 0
    assert capsys.readouterr().out.count("linear,") == 5
    assert call("bench", "show", bench, "--html", bench / "page.html") == 0


def test_a_second_start_measures_nothing(bench, ground, capsys, monkeypatch):
    monkeypatch.setattr(work, "test_here", None)
    assert call(*words_of(ground, bench)) == 0
    assert "4 runs and 8 tests of their models: 12 done, 0 running, 0 failed, 0 waiting" in capsys.readouterr().out


def test_killed_between_the_fit_and_its_tests(bench, ground, tmp_path, monkeypatch, capsys):
    """Neither where the record of the fit is lost, nor where those of tests are, is there a second training."""
    from vitgraft.training import fitting

    shutil.copytree(bench, tmp_path / "out")
    before = {r.job.key: r for r in records_of(bench)}
    for r in before.values():
        if r.job.source or r.job.seed:
            (tmp_path / "out" / "records" / f"{r.job.key}.json").unlink()
    monkeypatch.setattr(fitting, "train", None)
    assert call(*words_of(ground, tmp_path / "out")) == 0
    assert {r.job.key: r.value for r in records_of(tmp_path / "out")} == {k: r.value for k, r in before.items()}


def test_a_task_that_comes_later_is_tested_with_the_model_that_is_there(ground, tmp_path, monkeypatch):
    from vitgraft.training import fitting

    out = tmp_path / "out"
    more = ["--methods", "linear", "--seeds", 1]
    assert call(*words_of(ground, out, *more, "--tasks", "source")) == 0
    monkeypatch.setattr(fitting, "train", None)
    for tasks in (["source", "some"], ["source", "sketch"]):
        assert call(*words_of(ground, out, *more, "--tasks", *tasks)) == 0
    assert {r.job.task for r in records_of(out)} == {"source", "some", "sketch"}


def test_the_plan_counts_one_fit(bench, ground, tmp_path, capsys):
    more = ["--methods", "linear", "--seeds", 1]
    assert call(*words_of(ground, tmp_path / "out", *more, part="plan")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 runs and 2 tests of their models: 0 done, 0 running, 0 failed, 3 waiting"
    assert lines[3].split()[:2] == ["linear", "1"]
    alone = [*more, "--tasks", "source"]
    assert call(*words_of(ground, tmp_path / "out", *alone, part="plan")) == 0
    fewer = capsys.readouterr().out.splitlines()
    assert fewer[3].split()[:4] == lines[3].split()[:4]  # a step costs the same
    assert fewer[3] != lines[3]  # and the tests are in all of it


def test_a_class_that_the_source_does_not_have(ground, tmp_path, capsys):
    shutil.copytree(ground / "sets", tmp_path / "sets")
    (tmp_path / "sets" / "some" / "test" / "rings").rename(tmp_path / "sets" / "some" / "test" / "wings")
    words = words_of(ground, tmp_path / "out", "--data", tmp_path / "sets")
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert "holds the class 'wings'" in error
    assert "Did you mean 'rings'" in error
    assert error.count("\n") <= 2  # and the protocol's line
    assert not (tmp_path / "out").exists()  # said before anything is fitted


def test_a_search_is_for_what_is_fitted(ground, tmp_path, capsys):
    make_pictures(tmp_path / "sets" / "source", train=8, val=4, test=4)
    for name in ("sketch", "some"):
        shutil.copytree(ground / "sets" / name, tmp_path / "sets" / name)
    words = ["bench", "search", "--suite", "shifts", "--data", tmp_path / "sets", "--methods", "linear"]
    words += ["--backbone", ground / "vit.safetensors", "--out", tmp_path / "out", "--trials", 1]
    assert call(*words, "--set", "epochs=1", "batch_size=12", "workers=0") == 0
    assert "linear, source: " in capsys.readouterr().out
    more = ["--data", tmp_path / "sets", "--methods", "linear", "--seeds", 1]
    assert call(*words_of(ground, tmp_path / "out", *more, "--choices", tmp_path / "out" / "choices.json")) == 0
    records = records_of(tmp_path / "out")
    assert {r.job.task for r in records} == {"source", "some", "sketch"}
    assert len({str(r.job.chosen) for r in records}) == 1
    assert records[0].job.chosen


# Answers among the classes that a set shows.


def test_answers_are_among_the_shown_classes():
    logits = torch.tensor([[9.0, 1.0, 2.0], [-400.0, -300.0, 0.0]])
    asked = among(lambda *given: logits, {0, 1})
    assert asked("model", "images").argmax(1).tolist() == [0, 1]
    assert logits.argmax(1).tolist() == [0, 2]
    assert asked().softmax(1)[1].tolist() == pytest.approx([0, 1, 0])
    assert asked()[:, :2].equal(logits[:, :2])


def test_a_restricted_set_is_not_answered_with_a_class_that_it_does_not_show(ground, tmp_path):
    """The head is made to prefer the class that the set does not show, whatever the picture."""
    options = {"backbone": str(ground / "vit.safetensors"), "epochs": 2, "batch_size": 12, "workers": 0, "quiet": True}
    made = vitgraft.fit(ground / "sets" / "source", out=tmp_path / "run", method="linear", **options)
    model = made.adapter.model
    with torch.no_grad():
        next(p for name, p in model.head.named_parameters() if name.endswith("bias"))[0] += 1e4
    any_, shown = (made.evaluate(ground / "sets" / "some", shown_only=only) for only in (False, True))
    assert set(any_.predicted.tolist()) == {0}
    assert any_.value == 0
    assert set(shown.predicted.tolist()) <= {1, 2}
    assert shown.value > 0
    assert len(shown.classes) == 3


# With fits of the tests' own.


TASKS = suite_of(replace(task_of("clevr"), trained_on="pets"), task_of("pets"), task_of("svhn"))


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data", TASKS)


@pytest.fixture
def grid(data):
    return make_grid(data, suite=TASKS, seeds=(0,))


@pytest.fixture
def tested(monkeypatch):
    """The keys of the fits whose models were tested, in order."""
    found = []

    def look(job, run):
        found.append(run.name)
        return result(0.25)

    monkeypatch.setattr(work, "test_here", look)
    return found


def test_a_test_follows_its_fit(grid, data, tmp_path, tested):
    titles = [job.title.removesuffix(", seed 0") for job in grid.jobs]
    assert titles == ["linear, pets", "linear, clevr", "lora, pets", "lora, clevr", "linear, svhn", "lora, svhn"]
    done = run(grid, tmp_path / "out", fit=fake_fit)
    assert counts(done)["done"] == 6
    fits = [job.key for job in grid.jobs if not job.source]
    assert calls(tmp_path / "data") == fits
    assert tested == [grid.jobs[0].key, grid.jobs[2].key]
    test = grid.jobs[1]
    assert (test.source, test.settings, test.root) == (grid.jobs[0].key, grid.jobs[0].settings, str(data["clevr"]))
    assert record.read(tmp_path / "out" / "records" / f"{test.key}.json", TASKS).value == 0.25
    assert len({job.key for job in grid.jobs}) == 6


def test_a_test_whose_fit_failed_waits_for_it(grid, tmp_path, tested):
    def failing(root, *, method, **options):
        if method == "lora":
            raise ValueError("no")
        return fake_fit(root, method=method, **options)

    out = tmp_path / "out"
    done = run(grid, out, fit=failing)
    assert counts(done) == {"done": 3, "running": 0, "failed": 2, "waiting": 1}
    assert len(tested) == 1
    assert not work.is_open(done.waiting[0], out, 0)
    assert counts(run(grid, out, fit=fake_fit))["done"] == 6
    assert len(tested) == 2


def test_workers(grid, tmp_path):
    """They end though a test cannot begin, and try each whose fit is done; here it leaves no folder."""
    out = tmp_path / "out"
    assert counts(run(grid, out, fit=lacking_fit, workers=2)) == {"done": 0, "running": 0, "failed": 4, "waiting": 2}
    assert counts(run(grid, out, fit=fake_fit, workers=2)) == {"done": 4, "running": 0, "failed": 2, "waiting": 0}


def lacking_fit(root, **options):
    raise ValueError("no")


def test_a_failing_test_is_noted_and_the_fit_stays(grid, tmp_path, monkeypatch):
    def failing(job, run):
        raise RequestError("The pictures are gone: bring them back.")

    monkeypatch.setattr(work, "test_here", failing)
    done = run(grid, tmp_path / "out", fit=fake_fit)
    assert counts(done) == {"done": 4, "running": 0, "failed": 2, "waiting": 0}
    assert "The pictures are gone" in "\n".join(done.lines())


def test_a_model_that_is_gone(grid, tmp_path):
    out = tmp_path / "out"
    done = run(grid, out, fit=fake_fit)  # which leaves no folder
    reason = done.reasons[done.failed[0].key]
    assert "that folder is gone: delete" in reason
    assert f"{done.failed[0].source}.json" in reason


def test_a_task_without_the_one_that_it_is_trained_on(data):
    with pytest.raises(RequestError, match="clevr is tested with the model of pets, but that is not among the tasks"):
        make_grid({"clevr": data["clevr"]}, suite=TASKS)
