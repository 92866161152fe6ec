"""The command line itself: quick to start, what it lists, where it speaks, and how it reads a run again."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from helpers_cli import CLASSES, call, fit, fit_words, result_of

import vitgraft
from vitgraft import methods
from vitgraft.commands import cli
from vitgraft.common.settings import Settings
from vitgraft.pages import catalogue

METHODS = ("bitfit", "full", "hst", "linear")  # there may be more
COMMANDS = ("fit", "evaluate", "predict", "merge", "info", "methods", "demo")
HEAVY = ("torch", "torchvision", "timm", "lightning_fabric", "numpy", "PIL", "safetensors", "sklearn")


def python(*words):
    """A new interpreter, of one thread; its exit code and what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120)


def heavy_after(*statements):
    """Which of the heavy packages are loaded in a new process after these statements."""
    show = f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = python("-c", "\n".join(["import sys", *statements, show]))
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("LOADED")[2].split()


# Start-up


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fit", "--help"]], ids=" ".join)
def test_help_and_version_load_nothing_heavy(words):
    run = ["from vitgraft.commands import cli", "try:", f"    cli.main({words!r})", "except SystemExit as end:"]
    assert heavy_after(*run, "    assert end.code in (0, None), end.code", "else:", "    assert False") == []


def test_importing_the_package_loads_nothing_heavy():
    assert heavy_after("import vitgraft", "vitgraft.__version__") == []


def test_the_packages_that_are_looked_for_are_found_when_they_load():
    """The two tests above could not fail otherwise."""
    assert "torch" in heavy_after("import vitgraft", "vitgraft.Run")


def test_the_public_names_are_there():
    for name in vitgraft.__all__:
        found = getattr(vitgraft, name)
        assert (found.__name__ if inspect.ismodule(found) else found.__module__).startswith("vitgraft."), name
    assert set(dir(vitgraft)) == {*vitgraft.__all__, "__version__"}
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = vitgraft.nothing_such


# What it lists


def shown(capsys, *words, bars=False):
    """Standard output of a command that ends well and, but for progress bars, says nothing on standard error."""
    try:
        code = call(*words)
    except SystemExit as end:  # argparse's way out of --help
        code = end.code
    out, err = capsys.readouterr()
    assert code == 0
    assert (err != "") == bars
    return out


def test_help_names_every_command(capsys):
    out = shown(capsys, "--help")
    assert all(f"\n    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert f"usage: vitgraft {command}" in shown(capsys, command, "--help")


def test_help_of_fit_names_every_setting_with_its_default(capsys):
    out = " ".join(shown(capsys, "fit", "--help").split())
    for setting in fields(Settings):
        assert f"--{setting.name.replace('_', '-')} " in out
        assert setting.metadata["help"].replace("%", "") in out.replace("%", "")
        assert setting.default is None or f"(default: {setting.default})" in out


def test_version(capsys):
    assert shown(capsys, "--version") == f"vitgraft {vitgraft.__version__}\n"


def test_methods_lists_every_file_of_the_folder(capsys):
    lines = shown(capsys, "methods").splitlines()
    listed = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert listed == methods.names()
    assert set(METHODS) <= set(listed)


def test_methods_as_json(capsys):
    rows = {row["name"]: row for row in json.loads(shown(capsys, "methods", "--json"))}
    assert list(rows) == methods.names()
    keys = {"name", "title", "paper", "contacts", "parameters_vit_b16", "crosses_backbone", "mergeable", "published"}
    assert all(set(row) == keys for row in rows.values())
    counts = {name: rows[name]["parameters_vit_b16"] for name in METHODS}
    assert counts == {"bitfit": 102_912, "full": 85_798_656, "hst": 764_840, "linear": 0}
    assert {name: rows[name]["crosses_backbone"] for name in METHODS} == {
        "bitfit": True,
        "full": True,
        "hst": True,
        "linear": False,
    }


def test_methods_of_one_method(capsys):
    out = shown(capsys, "methods", "hst")
    assert out.startswith(methods.find("hst").title)
    assert "arXiv 2310.05393" in out
    options = out.partition("options and defaults:")[2]
    for option, default in {"--detached": "False", "--meta-tokens": "1", "--widths": "32 48 64 72"}.items():
        (line,) = [line for line in options.splitlines() if option in line.split()]
        assert line.split(maxsplit=1)[1] == default
    assert "none" in shown(capsys, "methods", "linear").partition("options and defaults:")[2]
    (row,) = json.loads(shown(capsys, "methods", "hst", "--json"))
    assert row["name"] == "hst"
    (row,) = json.loads(shown(capsys, "methods", "bitfit+lora", "--json"))
    assert (row["parameters_vit_b16"], row["contacts"], row["mergeable"]) == (397_824, ["train", "weight"], True)


def test_two_methods_fit_and_predict_as_one_does(ground, tmp_path, capsys):
    words = ["--method", "hst+lora", "--rank", 2, "--lora-dropout", 0.1]
    assert call(*fit_words(ground, tmp_path / "wrong", *words)) == 2
    assert "There is no option '--lora-dropout' with the method hst+lora" in capsys.readouterr().err
    run = fit(ground, tmp_path / "run", *words[:-2])
    result = result_of(run)
    assert result["method"] == "hst+lora"
    assert (result["arguments"]["rank"], result["arguments"]["detached"]) == (2, True)
    (found,) = vitgraft.Run(run).predict([next((ground.easy / "test").glob("*/*"))])
    assert found.text


def test_the_count_of_a_method_comes_without_a_head_and_without_numbers():
    backbone = catalogue.shape_of("vit_tiny_patch16_224")
    made = catalogue.attached("bitfit", backbone)
    assert all(parameter.is_meta for parameter in made.parameters())
    assert sum(parameter.numel() for parameter in made.parameters()) == (11 * 12 + 2) * 192


# Options


def parsed(line):
    return cli._parse(line.split())


def test_an_option_of_a_method_is_one_of_fit():
    given = parsed("fit D --out R --method hst --detached --meta-tokens 4 --widths 8 16 24 32")
    assert (given.detached, given.meta_tokens, given.widths) == (True, 4, [8, 16, 24, 32])
    assert parsed("fit D --out R --no-detached").detached is False
    assert not hasattr(parsed("fit D --out R"), "detached")


def test_every_setting_is_an_option_of_fit_and_keeps_its_kind():
    words = "fit D --out R --epochs 3 --lr 1e-2 --image-size 96 --seed 7 --precision 32 --eval-split test --memory 0.5"
    given = vars(parsed(words))
    found = {name: value for name, value in given.items() if name in Settings.names()}
    assert found == {
        "epochs": 3,
        "lr": 0.01,
        "image_size": [96],
        "seed": 7,
        "precision": "32",
        "eval_split": "test",
        "memory": 0.5,
    }


# Where it speaks


@pytest.fixture(scope="module")
def run(ground, tmp_path_factory):
    return fit(ground, tmp_path_factory.mktemp("runs") / "linear", "--method", "linear")


def test_a_fit_reports_on_standard_output_and_shows_progress_on_standard_error(ground, tmp_path, capsys):
    words = fit_words(ground, tmp_path / "run", "--method", "linear")
    words.remove("--quiet")
    assert call(*words) == 0
    out, err = capsys.readouterr()
    labels = [line.split()[0] for line in out.splitlines()]
    assert labels == ["method", "backbone", "top-1", "parameters", "time", "adapter", "page"]
    assert str(tmp_path / "run" / "report.html") in out
    assert "random, seed 0" in err  # where the weights came from
    assert "epoch 3/3" in err


def test_quiet_keeps_the_result_and_drops_the_rest(ground, tmp_path, capsys):
    fit(ground, tmp_path / "run", "--method", "linear")
    out, err = capsys.readouterr()
    assert out.startswith("method")
    assert err == ""


def test_exit_codes_of_a_process():
    """What a shell sees: 2 and one line for a wrong request."""
    done = python("-m", "vitgraft.commands.cli", "fit", "nowhere", "--out", "run", "--epochs", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vitgraft: ")
    assert done.stderr.count("\n") == 1


# A run is read again


def predictions(source, *pictures, capsys):
    capsys.readouterr()
    return json.loads(shown(capsys, "predict", source, *pictures, "--json"))


def test_predict(run, ground, capsys):
    pictures = [ground.easy / "test" / kind / f"{i}.png" for kind in CLASSES for i in range(3)]
    rows = predictions(run, *pictures, capsys=capsys)
    assert [row["picture"] for row in rows] == [str(path) for path in pictures]
    for row in rows:
        assert list(row["probabilities"]) == list(CLASSES)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["class"]]
    right = [row["class"] == path.parent.name for row, path in zip(rows, pictures, strict=True)]
    assert sum(right) > 5  # of nine; chance is three


def test_predict_in_words(run, ground, capsys):
    picture = ground.easy / "test" / "rings" / "0.png"
    (row,) = predictions(run, picture, capsys=capsys)
    assert shown(capsys, "predict", run, picture, bars=True) == f"{picture}  {row['class']}  {row['probability']:.1%}\n"


@pytest.mark.parametrize("words", [["--method", "linear"], ["--detached"], ["--method", "bitfit"]], ids=" ".join)
def test_the_adapter_file_alone_predicts_the_same(words, ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", *words, "--epochs", 1)
    alone = shutil.copy(run / "adapter.safetensors", tmp_path / "mine.safetensors")
    pictures = [ground.easy / "test" / kind / "1.png" for kind in CLASSES]
    before = predictions(run, *pictures, capsys=capsys)
    shutil.rmtree(run)
    assert predictions(alone, *pictures, capsys=capsys) == before


def test_evaluate_in_words_has_a_line_per_class(run, ground, capsys):
    first, *rest = shown(capsys, "evaluate", run, ground.easy, "--split", "val", "--json").splitlines()
    found = json.loads(first)
    assert rest == []
    assert (found["accuracy"], found["pictures"]) == (result_of(run)["value"], 18)
    assert call("evaluate", run, ground.easy, "--split", "val") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"top-1 accuracy {found['accuracy']:.2%}")
    assert first.partition(",")[0].endswith("on 18 pictures of val")
    assert [line.split()[0] for line in rest] == list(CLASSES)
    assert [line.split()[2:] for line in rest] == [[str(right), "of", "6"] for _, right, _ in found["per_class"]]


def test_evaluate_takes_the_test_split_by_itself(run, ground, capsys):
    assert json.loads(shown(capsys, "evaluate", run, ground.easy, "--json"))["split"] == "test"


def test_info_of_a_folder_and_of_a_file(run, tmp_path, capsys):
    result = result_of(run)
    assert json.loads(shown(capsys, "info", run, "--json")) == result
    alone = shutil.copy(run / "adapter.safetensors", tmp_path / "mine.safetensors")
    found = json.loads(shown(capsys, "info", alone, "--json"))
    for key in ("task", "method", "arguments", "backbone", "metric", "value", "protocol", "versions", "adapter_bytes"):
        assert found[key] == result[key], key
    for source in (run, alone):
        out = shown(capsys, "info", source)
        for part in ("linear", f"{result['value']:.2%}", f"{result['adapter_bytes']:,} bytes"):
            assert part in out


def test_info_needs_no_backbone(ground, tmp_path, capsys):
    backbone = shutil.copy(ground.backbone, tmp_path / "first.safetensors")
    run = fit(ground, tmp_path / "run", "--method", "linear", "--backbone", backbone, "--epochs", 1)
    capsys.readouterr()
    (tmp_path / "first.safetensors").rename(tmp_path / "second.safetensors")
    assert str(tmp_path / "first.safetensors") in shown(capsys, "info", run)
    question = ["predict", run, ground.easy / "test" / "dots" / "0.png"]
    assert call(*question) == 2
    assert "Name it with --backbone" in capsys.readouterr().err
    assert shown(capsys, *question, "--backbone", tmp_path / "second.safetensors", bars=True)
