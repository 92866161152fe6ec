"""The demo's pictures: balanced, repeatable, and with nothing shared between train and test."""

import sys

import numpy as np
import pytest
from PIL import Image

from vitgraft.commands import digits
from vitgraft.common.errors import RequestError

pytest.importorskip("sklearn", reason="scikit-learn carries the digits")


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.mark.parametrize("task", digits.TASKS)
def test_an_image_folder_is_written(task, tmp_path):
    root = tmp_path / "new" / task
    classes = digits.write(root, task, size=32, train=45, test=20)
    assert classes == tuple(sorted(classes)) == tuple(sorted(path.name for path in (root / "train").iterdir()))
    for split, count in {"train": 45, "test": 20}.items():
        per_class = [len(list((root / split / name).glob("*.png"))) for name in classes]
        assert sum(per_class) == count
        assert max(per_class) - min(per_class) <= 1
    for path in root.rglob("*.png"):
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((32, 32), "RGB")
            assert np.ptp(np.asarray(picture).astype(int)) > 100  # ink on paper
    assert [path.name for path in root.parent.iterdir()] == [task]


def test_the_seed_decides(tmp_path):
    for name, seed in {"one": 3, "two": 3, "other": 4}.items():
        digits.write(tmp_path / name, "place", size=24, train=16, test=16, seed=seed)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert files(tmp_path / "one") != files(tmp_path / "other")


@pytest.mark.parametrize("seed", [0, 1])
def test_train_and_test_share_no_digit(seed):
    splits = digits._handwriting(seed)
    train, test = ({digit.tobytes() for value in splits[name] for digit in value} for name in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert not train & test


def test_no_digit_repeats_before_all_have_come():
    pool = [np.full((3, 8, 8), 0.0) + np.arange(3)[:, None, None]] * 10
    hand = digits._Hand(pool, np.random.default_rng(0))
    assert {hand(7)[0, 0] for _ in range(3)} == {0, 1, 2}


def test_the_tasks_ask_about_the_same_pictures(tmp_path):
    """So that a backbone reads them once; and what one question is answered with tells nothing of the other."""
    asked = {}
    for task in digits.TASKS:
        digits.write(tmp_path / task, task, size=16, train=800, test=160)
        paths = sorted((tmp_path / task).rglob("*.png"), key=lambda path: (path.parents[1].name, path.name))
        asked[task] = [(path.read_bytes(), path.parent.name) for path in paths]
    assert [content for content, _ in asked["digits"]] == [content for content, _ in asked["place"]]
    both = {(value, cell) for (_, value), (_, cell) in zip(asked["digits"][160:], asked["place"][160:], strict=True)}
    assert len(both) > 0.9 * 160


def test_a_digit_lies_in_its_cell():
    for glyph in digits._glyphs(np.random.default_rng(0), 64):
        row, column = (int((centre - 0.15) / 0.7 * 4) for centre in (glyph.y, glyph.x))
        assert glyph.cell == 4 * row + column
        assert digits.TASKS["place"].classes[glyph.cell] == "abcd"[row] + "1234"[column]
        assert digits.TASKS["digits"].classes[digits.TASKS["digits"].answer(glyph)] == str(glyph.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "digit"}, "there are digits, .* Did you mean 'digits'"),
        ({"task": "digits", "test": 9}, "has 10 classes"),
        ({"task": "digits", "size": 8}, "shows no digits"),
    ],
)
def test_requests_that_cannot_be_met(arguments, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        digits.write(tmp_path / "new", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RequestError, match="already holds something"):
        digits.write(tmp_path, "digits")
    (tmp_path / "empty").mkdir()
    digits.write(tmp_path / "empty", "digits", size=16, train=10, test=10)
    assert len(files(tmp_path / "empty")) == 20


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        digits.write(tmp_path / "new", "digits")
    assert not list(tmp_path.iterdir())


def test_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RequestError, match=r"pip install 'vitgraft\[demo\]'"):
        digits.write(tmp_path / "new" / "pictures", "digits")
    assert not list(tmp_path.iterdir()), "what is left would stand in the way of the next attempt"
