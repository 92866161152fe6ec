"""The demo from end to end, with a tiny backbone in the place of the real one."""

import pytest

from vitgraft.commands import cli, demo

pytest.importorskip("sklearn", reason="scikit-learn carries the digits")


@pytest.fixture
def small(monkeypatch, cls):
    monkeypatch.setattr(demo.Backbone, "load", lambda name, say: cls)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "PICTURES", {"train": 32, "test": 16})


def test_it_leaves_adapters_and_a_page(small, tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for task in ("digits", "place"):
        for method in ("linear", "hst"):
            assert (out / task / method / "adapter.safetensors").is_file()
            assert f'href="{task}/{method}/report.html"' in (out / "index.html").read_text()
            assert any(line.split()[:2] == [task, method] for line in printed.splitlines())
    assert str(out / "index.html") in printed


def test_a_folder_with_content_is_left_alone(small, tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
