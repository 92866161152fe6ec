"""Methods, heads, tasks and layouts from outside the package."""

import json
import os
import subprocess
import sys

import pytest
from helpers_cli import call, fit, fit_words, result_of

from vitgraft import Run, methods, tasks
from vitgraft.common import plugins

METHOD = '''
"""Mine: bottlenecks of two beside every MLP."""

from torch import nn

from vitgraft import Method


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 2), nn.Linear(2, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, inputs, outputs, grid):
        return self.up(self.down(inputs))


class Mine(Method):
    """Small."""

    title = "Mine"

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def attach(self, backbone):
        super().attach(backbone)
        for block in backbone.blocks:
            self.contacts.add_branch(backbone, f"{block.path}.mlp", Branch(block.width))
'''

HEAD = """
from torch import nn


class Double(nn.Module):
    tasks, levels = ("classify",), 0

    def __init__(self, channels, classes, *, label_smoothing=0.0):
        super().__init__()
        self.one, self.two = nn.Linear(channels[0], 7), nn.Linear(7, classes)

    def forward(self, features, targets=None, sizes=None):
        answer = self.two(self.one(features.pooled).relu())
        return answer if targets is None else {"loss": nn.functional.cross_entropy(answer, targets)}
"""

LAYOUT = """
from pathlib import Path

from vitgraft.data import DataSet, Split


def recognise(root):
    return "classify" if (root / "colours.lst").is_file() else ""


def read(root, task, *, seed, classes):
    rows = [line.split("|") for line in (root / "colours.lst").read_text().splitlines()]
    known = classes or tuple(sorted({name for _, name, _ in rows}))
    splits = {}
    for split in ("train", "val"):
        own = [(root / path, known.index(name)) for path, name, of in rows if of == split]
        splits[split] = Split(split, tuple(p for p, _ in own), tuple(k for _, k in own))
    return DataSet(root, known, splits, "a list of my own", ("read by my own reader",))
"""

TASK = """
from vitgraft.tasks.classify import Classify
from vitgraft.heads.classify import Classify as Linear


class Grades(Classify):
    pass


class GradesHead(Linear):
    tasks, levels = ("grades",), 0
"""


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    """What a test takes in is forgotten after it."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield
    for name in [name for name in sys.modules if name.startswith("vitgraft_plugins.")]:
        del sys.modules[name]


def plugin(tmp_path, name, text):
    (tmp_path / "mine").mkdir(exist_ok=True)
    path = tmp_path / "mine" / f"{name}.py"
    path.write_text(text)
    return path


def test_a_method(ground, tmp_path, capsys, monkeypatch):
    file = plugin(tmp_path, "mymethod", METHOD)
    assert call("--plugin", file, "methods", "mymethod") == 0
    assert "--strength" in capsys.readouterr().out
    run = fit(ground, tmp_path / "run", "--method", "mymethod+bitfit", "--strength", 2, f"--plugin={file}")
    result = result_of(run)
    assert (result["method"], result["arguments"]["strength"]) == ("mymethod+bitfit", 2.0)
    picture = next((ground.easy / "test").glob("*/*"))
    # Another process knows nothing of it, until it is told.
    command = [sys.executable, "-m", "vitgraft.commands.cli", "predict", str(run), str(picture)]
    bare = {name: value for name, value in os.environ.items() if name != plugins.VARIABLE}
    found = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert found.returncode == 2
    assert "There is no method 'mymethod'" in found.stderr
    assert "--plugin" in found.stderr
    found = subprocess.run([*command, "--plugin", str(file), "--json"], env=bare, capture_output=True, text=True)
    assert json.loads(found.stdout)[0]["class"] == Run(run).predict(picture).label


def test_a_head_with_its_options(ground, tmp_path):
    words = ["--method", "linear", "--plugin", plugin(tmp_path, "double", HEAD)]
    run = fit(ground, tmp_path / "run", *words, "--head", "double")
    assert result_of(run)["head"]["name"] == "double"
    assert result_of(run)["head_parameters"] == 48 * 7 + 7 + 7 * 3 + 3
    assert call(*fit_words(ground, tmp_path / "other", *words, "--head", "duoble")) == 2


def test_a_task(ground, tmp_path):
    run = fit(
        ground, tmp_path / "run", "--method", "linear", "--plugin", plugin(tmp_path, "grades", TASK), "--task", "grades"
    )
    assert result_of(run)["task"] == "grades"
    assert result_of(run)["head"]["name"] == "grades"


def test_a_layout(ground, tmp_path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    rows = []
    for k, path in enumerate(sorted((ground.easy / "train").glob("*/*"))):
        (root / f"{k}.png").write_bytes(path.read_bytes())
        rows.append(f"{k}.png|{path.parent.name}|{'val' if k % 3 == 0 else 'train'}")
    (root / "colours.lst").write_text("\n".join(rows))
    file = plugin(tmp_path, "colours", LAYOUT)
    assert call("check", root) != 0, "unknown without"
    capsys.readouterr()
    assert call("check", root, "--plugin", file) == 0
    assert "read by my own reader" in capsys.readouterr().out
    run = fit(ground, tmp_path / "run", "--method", "linear", "--plugin", file, data=root)
    assert result_of(run)["data"]["pictures"] == {"train": 24, "val": 12}
    assert call("evaluate", run, root, "--split", "val") == 0


def test_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(METHOD)
    (tmp_path / "theirs-1.0.dist-info").mkdir()
    (tmp_path / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (tmp_path / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[vitgraft.methods]\ntheirs = theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._entry_points.cache_clear()
    try:
        assert "theirs" in methods.names()
        assert methods.find("theirs").title == "Mine"
        assert "theirs" not in tasks.names()
        (tmp_path / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[vitgraft.heads]\nnone = not_there\n")
        plugins._entry_points.cache_clear()
        with pytest.raises(methods.RequestError, match="The plugin not_there, of an installed package"):
            methods.names()
    finally:
        plugins._entry_points.cache_clear()


def test_the_behaviour_matrix_runs_on_it(tmp_path):
    """One promise of all, on all kinds of backbones; and one that is broken is found."""
    words = [sys.executable, "-m", "vitgraft.testing", "-q", "-p", "no:xdist", "-o", "addopts="]
    words += ["-k", "test_every_declared_tensor"]

    def run(file):
        return subprocess.run([*words[:3], str(file), *words[3:]], capture_output=True, text=True, cwd=tmp_path)

    found = run(plugin(tmp_path, "mymethod", METHOD))
    assert found.returncode == 0, found.stdout
    broken = METHOD.replace("return self.up(self.down(inputs))", "return self.up(self.down(inputs)).detach()")
    assert run(plugin(tmp_path, "broken", broken)).returncode == 1
    assert "Name the file of a method" in subprocess.run(words[:3], capture_output=True, text=True).stderr
    assert "holds no subclass" in run(plugin(tmp_path, "none", "x = 1")).stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("wrong", "import nothing_such", "cannot be imported (ModuleNotFoundError"),
        ("wrong", "def f(:", "cannot be imported (SyntaxError"),
        ("lora", METHOD, "holds a method called 'lora', but there is one of that name already"),
        ("not-a-name", METHOD, "is no file of Python that could be imported"),
    ],
)
def test_what_is_wrong_with_one_is_said(tmp_path, refused_fit, name, text, said):
    assert said in refused_fit("--plugin", plugin(tmp_path, name, text))


def test_one_that_is_not_there(tmp_path, refused_fit):
    assert "is no file of Python" in refused_fit("--plugin", tmp_path / "none.py")
