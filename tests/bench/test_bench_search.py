"""Settings chosen on val: the spaces, both ways to search, what is kept, and `bench search` with real fits."""

import importlib.util
import json
import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
from helpers_bench import TINY, make_data, make_grid, result
from helpers_cli import call, make_backbone, make_pictures, start, wait_for

from vitgraft import methods
from vitgraft.bench import grid, locks, protocols, record, search, shipped, suites, work
from vitgraft.bench.search import Choices, Space
from vitgraft.common.errors import RequestError, WorkError
from vitgraft.common.settings import Settings

CHOOSING = {"train_split": "train", "eval_split": "val", "epochs": 1}


def choosing(method, task):
    return CHOOSING


@pytest.fixture
def base(tmp_path):
    data = make_data(tmp_path / "data")
    return make_grid({"pets": data["pets"]}, methods={"linear": {}}, seeds=(0,), options=choosing)


class Fits:
    """A fit whose value is a function of its options; counts its calls. stop: raises at that call, as a kill would."""

    def __init__(self, value, stop=None):
        self.value, self.stop, self.calls = value, stop, []

    def __call__(self, root, *, out, **options):
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append(out.name)
        return SimpleNamespace(result=result(self.value(options), split="val"))


def chosen(base, out, value, trials=None, **more):
    """The choice for the one method and task, and the calls of the fit."""
    fits = Fits(value, **more)
    made = search.search(base, search.studies(base, trials), out, fit=fits)
    return made.get("linear", {}).get("pets"), fits.calls


# The spaces that are shipped


@pytest.mark.parametrize("name", shipped.names("spaces"))
def test_spaces_cite_their_source_and_name_options_that_exist(name):
    space = search.load(shipped.HERE / "spaces" / f"{name}.json")
    assert space.name == name
    assert len(space.source) > 20
    arguments = [] if name == search.OTHERS else methods.find(name).defaults()
    assert set(space.options) <= {*Settings.names(), *arguments}
    if space.size < 1000:
        for point in space.points():
            Settings(**{n: v for n, v in point.items() if n in Settings.names()})
            if name != search.OTHERS:
                methods.create(name, **{n: v for n, v in point.items() if n in arguments})


def test_sizes_are_those_of_the_published_grids():
    sizes = {name: search.find(name).size for name in ("hst", "convpass", "consolidator", "full", "lora", "linear")}
    assert sizes == {"hst": 27, "convpass": 10, "consolidator": 100, "full": 16, "lora": 4, "linear": 4}
    assert search.find("sct").size == float("inf")
    assert (search.find("hst").name, search.find("lora").name) == ("hst", "others")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": []}, "lr of .* has no value"),
        ({"lr": {"low": 1}}, "lacks high"),
        ({"lr": {"low": 2, "high": 1}}, "from 2 to 1"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "from 0 to 1"),
        ([1], "as its options"),
    ],
)
def test_a_broken_space(options, said, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"name": "s", "source": "x", "options": options}))
    with pytest.raises(RequestError, match=said):
        search.load(tmp_path / "s.json")


# The whole grid


def test_the_mean_over_seeds_decides(base, tmp_path):
    """One that is lucky once loses to one that is good twice; one that fails once has failed."""
    values = {0.1: (0.9, 0.1), 0.2: (0.6, 0.6), 0.3: (0.99, None)}

    def value(options):
        found = values[options["lr"]][options["seed"]]
        if found is None:
            raise WorkError("The loss became nan.")
        return found

    two = make_grid(base.data, methods={"linear": {}}, seeds=(0, 1), options=choosing)
    over, out, fits = search.given({"lr": list(values)}), tmp_path / "out", Fits(value)
    [study] = search.studies(two, None, over)
    assert (study.planned, len(study.pending)) == (3, 6)
    choice = search.search(two, [study], out, fit=fits)["linear"]["pets"]
    assert (choice.options, choice.value, choice.seeds) == ({"lr": 0.2}, 0.6, [0, 1])
    seen = [record.read(out / "search" / "records" / f"{run}.json", TINY).job for run in choice.runs]
    assert [(job.seed, job.settings["lr"]) for job in seen] == [(0, 0.2), (1, 0.2)]
    assert [trial["value"] for trial in choice.trials] == [0.5, 0.6, None]
    assert choice.trials[2]["reason"] == "The loss became nan."
    one = Fits(value)
    alone = search.search(base, search.studies(base, None, over), out, fit=one)["linear"]["pets"]
    assert (alone.options, alone.seeds, one.calls) == ({"lr": 0.3}, [0], []), "the same runs serve a search of one seed"


def test_grid_keeps_all_trials_and_takes_the_best(base, tmp_path):
    out = tmp_path / "out"
    best, calls = chosen(base, out, lambda options: 0.9 if options["lr"] == 0.01 else 0.5)
    assert len(calls) == len(set(calls)) == 4
    assert best.options == {"lr": 0.01, "weight_decay": 0.0001}  # of equals that which came first
    told = json.loads((out / "choices.json").read_text())["choices"]["linear"]["pets"]
    assert [trial["value"] for trial in told["trials"]] == [0.5, 0.5, 0.9, 0.9]
    assert (told["value"], told["split"], told["runs"]) == (0.9, "val", told["trials"][2]["runs"])
    assert "Mai et al." in told["space"]["source"]
    assert (told["seeds"], len(told["runs"])) == ([0], 1)
    kept = record.read(out / "search" / "records" / f"{told['runs'][0]}.json", TINY)
    assert kept.job.settings == {**CHOOSING, **best.options}
    assert kept.split == "val"
    assert chosen(base, out, lambda options: 1 / 0) == (best, [])  # nothing is run twice


def test_of_equal_values_the_smaller_learning_rate(base, tmp_path):
    found, _ = chosen(base, tmp_path / "out", lambda options: 0.5 + options["weight_decay"])
    assert found.options == {"lr": 0.001, "weight_decay": 0.001}


def test_a_trial_that_fails_is_kept_with_its_reason(base, tmp_path):
    def value(options):
        if options["lr"] == 0.01:
            raise WorkError("The loss became nan.")
        return 0.4

    found, _ = chosen(base, tmp_path / "out", value)
    assert found.options["lr"] == 0.001
    assert [trial["reason"] for trial in found.trials] == ["", "", "The loss became nan.", "The loss became nan."]
    assert [trial["value"] for trial in found.trials] == [0.4, 0.4, None, None]


def test_nothing_is_chosen_where_all_fail(base, tmp_path):
    found, calls = chosen(base, tmp_path / "out", lambda options: 1 / 0)
    assert (found, len(calls)) == (None, 4)
    assert not (tmp_path / "out" / "choices.json").exists()


def test_a_trial_that_another_process_is_at_leaves_the_search_open(base, tmp_path):
    out = tmp_path / "out"
    [study] = search.studies(base, None)
    work.prepare(base.suite, out / "search")
    with locks.held(out / "search" / "locks" / study.pending[0].key):
        assert chosen(base, out, lambda options: 0.5)[0] is None
    found, calls = chosen(base, out, lambda options: 0.5)
    assert found is not None
    assert len(calls) == 1


def test_an_earlier_choice_of_another_method_stays(base, tmp_path):
    out = tmp_path / "out"
    chosen(base, out, lambda options: 0.5)
    more = make_grid(base.data, methods={"lora": {}}, seeds=(0,), options=choosing)
    search.search(more, search.studies(more, None), out, fit=Fits(lambda options: 0.6))
    assert list(json.loads((out / "choices.json").read_text())["choices"]) == ["linear", "lora"]


def test_a_choice_that_another_search_makes_meanwhile_stays(base, tmp_path):
    out = tmp_path / "out"
    more = make_grid(base.data, methods={"lora": {}}, seeds=(0,), options=choosing)

    def meanwhile(root, *, out, **options):
        if not (tmp_path / "out" / "choices.json").exists():
            search.search(more, search.studies(more, None), tmp_path / "out", fit=Fits(lambda options: 0.6))
        return SimpleNamespace(result=result(0.5, split="val"))

    search.search(base, search.studies(base, None), out, fit=meanwhile)
    assert set(json.loads((out / "choices.json").read_text())["choices"]) == {"linear", "lora"}


# Optuna


@pytest.fixture
def wide(base, monkeypatch):
    pytest.importorskip("optuna")
    lr = {"low": 1e-4, "high": 1.0, "log": True}
    monkeypatch.setattr(search, "find", lambda method: Space("wide", "made up", {"lr": lr, "drop_path": [0, 0.1]}))
    return base


def closeness(options):
    """Best at lr 1e-2 without drop path."""
    return max(0.0, 0.9 - abs(options["lr"] - 0.01) - options["drop_path"])


def test_tpe_tries_so_many_different_settings_in_the_space(wide, tmp_path):
    found, calls = chosen(wide, tmp_path / "out", closeness, trials=20)
    assert len(calls) == len(set(calls)) == 20
    assert all(1e-4 <= trial["options"]["lr"] <= 1 for trial in found.trials)
    assert {trial["options"]["drop_path"] for trial in found.trials} == {0, 0.1}
    assert found.value == max(trial["value"] for trial in found.trials)
    assert "TPE" in found.sampler
    early, late = found.trials[:10], found.trials[10:]  # the first ten are drawn at random
    assert sum(trial["value"] for trial in late) > sum(trial["value"] for trial in early)


def test_tpe_goes_on_where_it_was_stopped(wide, tmp_path):
    whole, calls = chosen(wide, tmp_path / "whole", closeness, trials=14)
    with pytest.raises(KeyboardInterrupt):
        chosen(wide, tmp_path / "out", closeness, trials=14, stop=12)
    assert len(list((tmp_path / "out" / "search" / "records").iterdir())) == 12
    again, rest = chosen(wide, tmp_path / "out", closeness, trials=14)
    assert again == whole
    assert rest == calls[12:]


def test_tpe_on_a_grid_that_is_larger_than_its_trials(base, tmp_path):
    pytest.importorskip("optuna")
    found, calls = chosen(base, tmp_path / "out", lambda options: options["lr"], trials=3)
    assert len(calls) == len(set(calls)) == 3
    assert chosen(base, tmp_path / "all", lambda options: options["lr"], trials=4)[0].sampler == "grid of 4"
    assert found.options["lr"] in (0.001, 0.01)


def test_without_optuna(base, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"not installed: run pip install 'vitgraft\[search\]'"):
        search.studies(base, 3)
    assert len(search.studies(base, None)) == 1


# What cannot be searched


def test_requests_that_are_refused(base, tmp_path):
    def of(methods, options=choosing):
        return make_grid(base.data, methods=methods, seeds=(0,), options=options)

    for split in ({"eval_split": "test"}, {"train_split": "train+val"}):
        with pytest.raises(RequestError, match="measuring on val"):
            search.studies(of({"linear": split}), None)
    with pytest.raises(RequestError, match="nothing to choose: lr, weight_decay"):
        search.studies(of({"linear": {"lr": 1.0, "weight_decay": 0}}), None)
    with pytest.raises(RequestError, match=r"continuous options \(lr, weight_decay, scale\).*--trials"):
        search.studies(of({"sct": {}}), None)
    with pytest.raises(RequestError, match="trials is 0"):
        search.studies(base, 0)


@pytest.mark.parametrize("name", protocols.names())
def test_every_protocol_can_be_searched(name, tmp_path):
    protocol = protocols.find(name)
    suite = suites.find(protocol.suites[0] if protocol.suites else "vtab-1k")
    task = suite.tasks[0].name
    data = make_data(tmp_path, suite)
    options = partial(protocol.options, choosing=True)
    found = make_grid({task: data[task]}, suite=suite, protocol=name, methods={"hst": {}}, seeds=(0,), options=options)
    [study] = search.studies(found, None)
    assert (study.planned, [job.seed for job in study.jobs]) == (27, [0])


def test_what_is_given_is_not_searched(base, tmp_path):
    given = make_grid(base.data, methods={"linear": {"lr": 0.5}}, seeds=(0,), options=choosing)
    found, calls = chosen(given, tmp_path / "out", lambda options: options["lr"] + options["weight_decay"])
    assert len(calls) == 2
    assert found.options == {"weight_decay": 0.001}
    assert found.value == 0.501


def test_values_that_the_request_gives_take_the_place_of_the_published_ones(base, tmp_path):
    over = search.given({"lr": [0.1, 0.2]})
    fits = Fits(lambda options: 1 - options["lr"])
    made = search.search(base, search.studies(base, None, over), tmp_path, fit=fits)
    choice = made["linear"]["pets"]
    assert (len(fits.calls), choice.options) == (2, {"lr": 0.1})
    assert (choice.space["name"], choice.space["options"]) == ("given", {"lr": [0.1, 0.2]})
    with pytest.raises(RequestError, match=r"lr was to be tried at 0.1 twice"):
        search.given({"lr": [0.1, 0.2, 0.1]})


# From choices to runs


@pytest.fixture
def choices(base, tmp_path):
    chosen(base, tmp_path / "out", lambda options: options["lr"])
    return Choices.read(tmp_path / "out" / "choices.json")


def test_a_tuned_run_says_where_its_settings_come_from(base, choices, tmp_path):
    made = make_grid(base.data, methods={"linear": {}}, seeds=(0, 1), tune=choices.tune)
    job = made.jobs[1]
    assert (job.label, job.seed) == ("linear tuned", 1)
    assert job.settings["lr"] == 0.01
    assert job.chosen["options"] == {"lr": 0.01, "weight_decay": 0.0001}
    assert (job.chosen["split"], job.chosen["value"], job.chosen["trials"]) == ("val", 0.01, 4)
    [run] = job.chosen["runs"]
    assert (tmp_path / "out" / "search" / "records" / f"{run}.json").is_file()
    assert job.chosen["file"] == str(tmp_path / "out" / "choices.json")
    grid.run(made, tmp_path / "out", fit=Fits(lambda options: 0.5))
    assert record.read(tmp_path / "out" / "records" / f"{job.key}.json").job == job


def test_a_record_of_a_run_that_nothing_was_chosen_for(base, tmp_path):
    grid.run(base, tmp_path / "out", fit=Fits(lambda options: 0.5))
    [path] = (tmp_path / "out" / "records").iterdir()
    assert record.read(path).job.chosen == {}
    told = json.loads(path.read_text())
    del told["job"]["chosen"]  # as records were before there was a search
    path.write_text(json.dumps(told))
    assert record.read(path).job == base.jobs[0]


def test_choices_for_other_weights_or_pictures(base, choices):
    with pytest.raises(RequestError, match="made with other weights"):
        make_grid(base.data, methods={"linear": {}}, tune=choices.tune, fingerprint="0" * 64).jobs  # noqa: B018
    (base.data["pets"] / "train.txt").write_text("pets.jpg 1\n")
    with pytest.raises(RequestError, match="made with other pictures"):
        make_grid(base.data, methods={"linear": {}}, tune=choices.tune).jobs  # noqa: B018


def test_choices_that_are_not_there(choices):
    choices.check("tiny", {"linear": {}}, ["pets"])
    with pytest.raises(RequestError, match=r"none for 'liner'.*Did you mean 'linear'"):
        choices.check("tiny", {"liner": {}}, ["pets"])
    with pytest.raises(RequestError, match="choices of 'linear' for pets, but none for svhn"):
        choices.check("tiny", {"linear": {}}, ["pets", "svhn"])
    with pytest.raises(RequestError, match=r"lr of 'linear' is given, but .* has it chosen"):
        choices.check("tiny", {"linear": {"lr": 1}}, ["pets"])
    with pytest.raises(RequestError, match="suite tiny, but the suite is fgvc"):
        choices.check("fgvc", {"linear": {}}, ["pets"])


def test_a_broken_choices_file(choices, tmp_path):
    whole = choices.file.read_text()
    file = tmp_path / "c.json"
    for text, said in (
        (whole[:200], "cannot be"),
        (json.dumps({**choices.told, "format": "2"}), "format '2'"),
        (json.dumps({**choices.told, "choices": {"linear": {"pets": {}}}}), "lacks options"),
        (json.dumps({**choices.told, "choices": {"linear": 3}}), "'linear'"),
    ):
        file.write_text(text)
        with pytest.raises(RequestError, match=said):
            Choices.read(file)
    with pytest.raises(RequestError, match=r"gone\.json"):
        Choices.read(tmp_path / "gone.json")


# The command, with real fits


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    make_backbone(folder / "vit.safetensors")
    make_pictures(folder / "sets" / "easy", train=8, val=4, test=4)
    return folder


def words_of(ground, out, part, *more):
    words = ["bench", part, "--data", ground / "sets", "--backbone", ground / "vit.safetensors", "--out", out]
    return [str(w) for w in (*words, "--methods", "linear", "--set", "epochs=1", "batch_size=12", "workers=0", *more)]


def test_search_then_run(ground, tmp_path, capsys):
    out = tmp_path / "out"
    tests = list((ground / "sets" / "easy" / "test").glob("*/*.png"))
    pictures = [path.read_bytes() for path in tests]
    for path, content in zip(tests, pictures, strict=True):
        path.write_bytes(b"\0" * len(content))  # a search that opened one would fail; the digest is of names and sizes
    assert call(*words_of(ground, out, "search")) == 0
    for path, content in zip(tests, pictures, strict=True):
        path.write_bytes(content)
    said = capsys.readouterr()
    assert "linear, easy: lr" in said.out
    assert "best of 4" in said.out
    assert said.err.count("done ") == 4
    assert call(*words_of(ground, tmp_path / "over", "search", "--over", "lr=1e-3,5e-3")) == 0
    assert "best of 2" in capsys.readouterr().out
    assert call(*words_of(ground, out, "search")) == 0
    assert "done " not in capsys.readouterr().err
    assert call(*words_of(ground, out, "run", "--choices", out / "choices.json", "--seeds", 2)) == 0
    told = json.loads((out / "choices.json").read_text())["choices"]["linear"]["easy"]
    records = [record.read(path) for path in (out / "records").iterdir()]
    assert {r.job.seed for r in records} == {0, 1}
    for r in records:
        assert (r.split, r.job.settings["train_split"]) == ("test", "train+val")
        assert {name: r.resolved["protocol"][name] for name in told["options"]} == told["options"]
        assert r.job.chosen["runs"] == told["runs"]
    capsys.readouterr()
    assert call("bench", "show", out) == 0
    assert "linear tuned" in capsys.readouterr().out


def test_search_that_is_killed(ground, tmp_path):
    out = tmp_path / "out"
    words = words_of(ground, out, "search")
    other = start(words, tmp_path / "log")
    records = out / "search" / "records"
    wait_for(lambda: records.is_dir() and len(list(records.glob("*.json"))) >= 1)
    os.kill(other.process.pid, signal.SIGKILL)
    assert other.ends() == -9
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert not (out / "choices.json").exists()
    assert call(*words) == 0
    after = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert len(after) == 4
    assert before.items() <= after.items()


def test_commands_that_are_refused(ground, tmp_path, capsys):
    out = tmp_path / "out"
    for part, more, said in (
        ("search", ["--set", "eval_split=test"], "measuring on val"),
        ("search", ["--trials", "0"], "trials is 0"),
        ("search", ["--workers", "0"], "workers is 0"),
        ("search", ["--over", "lr"], "'lr' is no option of --over"),
        ("search", ["--over", "lr=1e-3,"], "lr"),
        ("search", ["--over", "lr=1e-3,1e-3"], "lr was to be tried at 0.001 twice"),
        ("search", ["--over", "speed=1,2"], "speed"),
        ("run", ["--choices", tmp_path / "none.json"], "none.json"),
    ):
        assert call(*words_of(ground, out, part, *more)) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()
    make_pictures(tmp_path / "sets" / "novel", train=4, test=4)
    words = words_of(ground, out, "search", "--data", tmp_path / "sets")
    assert call(*words) == 2
    assert "val" in capsys.readouterr().err
    assert not out.exists()
