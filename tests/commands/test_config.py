"""`--config` and `--print-config`: the options of a command as a file."""

import json

import pytest
import yaml
from helpers_cli import adapter_of, call, fit, fit_words, result_of, same


def written(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def printed(capsys, *words):
    capsys.readouterr()
    assert call(*words, "--print-config") == 0
    return capsys.readouterr().out


def test_a_file_gives_options_and_the_command_line_overrides_them(ground, tmp_path):
    content = f"""
data: {ground.easy}
model: {ground.backbone}
method: lora
rank: 2
targets: [q, fc1]
lr: 1e-3  # a text in YAML 1.1
batch-size: 12
epochs: 5
workers: 0
quiet: true
seed: null
"""
    file = written(tmp_path / "fit.yaml", content)
    assert call("fit", "--config", file, "--out", tmp_path / "run", "--epochs", 1) == 0
    result = result_of(tmp_path / "run")
    assert result["arguments"]["rank"] == 2
    assert result["arguments"]["targets"] == ["q", "fc1"]
    assert [result["protocol"][name] for name in ("lr", "batch_size", "epochs", "seed")] == [1e-3, 12, 1, 0]


def test_the_settings_of_a_run_are_such_a_file(ground, tmp_path):
    first = fit(ground, tmp_path / "first", "--method", "hst+lora", "--rank", 2, "--label-smoothing", 0.1)
    assert call("fit", "--config", first / "settings.json", "--out", tmp_path / "again") == 0
    assert same(adapter_of(first), adapter_of(tmp_path / "again"))
    kept = json.loads((first / "settings.json").read_text())
    assert (kept["method"], kept["rank"], kept["label_smoothing"]) == ("hst+lora", 2, 0.1)
    assert kept["head_options"] == {}, "what follows from settings and data is no option of its own"
    assert result_of(first)["head"]["options"] == {"label_smoothing": 0.1}


def test_what_is_printed_says_everything_and_asks_for_the_same(ground, tmp_path, capsys):
    words = fit_words(ground, tmp_path / "run", "--method", "lora")
    out = printed(capsys, *words)
    assert not (tmp_path / "run").exists()
    told = yaml.safe_load(out)
    assert (told["task"], told["rank"], told["epochs"], told["out"]) == ("classify", 8, 3, str(tmp_path / "run"))
    file = written(tmp_path / "fit.yaml", out)
    assert printed(capsys, "fit", "--config", file) == out


def test_other_commands_have_it_too(ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--epochs", 1)
    pictures = sorted((ground.easy / "test").glob("*/*"))[:2]
    file = written(tmp_path / "predict.yaml", {"run": str(run), "pictures": [str(path) for path in pictures]})
    capsys.readouterr()
    assert call("predict", "--config", file, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    words = ["bench", "plan", "--data", "sets", "--methods", "hst", "--backbone", "vit", "--out", "results"]
    grid = yaml.safe_load(printed(capsys, *words))
    assert (grid["methods"], grid["protocol"]) == (["hst"], "strict")
    file = written(tmp_path / "bench.yaml", grid)
    assert yaml.safe_load(printed(capsys, "bench", "plan", "--config", file, "--seeds", 2)) == {**grid, "seeds": 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epochs: ten", "gives epochs as 'ten', but it must be a whole number"),
        ("epochs: 1.5", "gives epochs as 1.5, but it must be a whole number"),
        ("epochs: [1, 2]", "gives epochs as [1, 2], but it must be a whole number"),
        ("lr: fast", "gives lr as 'fast', but it must be a number"),
        ("quiet: 3", "gives quiet as 3, but it must be true or false"),
        ("epoch: 3", "gives 'epoch', but that is no option: see `vitgraft fit --help`. Did you mean 'epochs'"),
        ("method: lora\nmeta_tokens: 3", "gives 'meta_tokens', but that is no option"),
        ("- epochs", "holds no options by name"),
        ("epochs: [", "cannot be read as YAML or JSON"),
        ("head_options: {widths: 3}", "has no option 'widths'"),
        ("head_options: {label_smoothing: 0.3}", "label_smoothing of the head follows from the settings and the data"),
    ],
)
def test_what_a_file_cannot_mean_is_said(tmp_path, refused_fit, content, said):
    assert said in refused_fit("--config", written(tmp_path / "fit.yaml", content))


def test_a_file_that_is_not_there(tmp_path, refused_fit):
    assert "none.yaml cannot be read" in refused_fit("--config", tmp_path / "none.yaml")
