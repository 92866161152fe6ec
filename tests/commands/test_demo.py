"""The demo from end to end, with a tiny backbone in the place of the real one."""

import pytest

from vitgraft.commands import cli, demo

pytest.importorskip("sklearn", reason="scikit-learn carries the digits")


@pytest.fixture
def small(monkeypatch, cls, tmp_path):
    monkeypatch.setattr(demo.Backbone, "load", lambda name, say: cls)
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
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


def test_the_second_task_finds_what_the_first_has_kept(small, tmp_path, cls, monkeypatch):
    passed = []
    forward = type(cls).forward

    def counted(self, images, *more, **options):
        passed.append(len(images))
        return forward(self, images, *more, **options)

    monkeypatch.setattr(type(cls), "forward", counted)

    def pictures():
        """That have passed the backbone since, beside those that only say how large things are."""
        count = sum(n for n in passed if n > 8)
        passed.clear()
        return count

    demo.demo(tmp_path / "one", quiet=True)
    assert 2 * 48 <= pictures() < 3 * 48, "once for each method, not for each task too"
    demo.demo(tmp_path / "two", quiet=True)
    assert pictures() == 0


def test_a_folder_with_content_is_left_alone(small, tmp_path, capsys):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").touch()
    assert cli.main(["demo", "--out", str(folder)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
