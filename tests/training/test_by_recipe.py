"""A fit by how much time there is: a recipe chooses the method and its options, and says so."""

from __future__ import annotations

import pytest
from helpers_cli import call, fit_words, result_of

from vitgraft import heads, methods
from vitgraft.common.errors import RequestError
from vitgraft.common.recipes import RECIPES, find
from vitgraft.common.settings import DENSE, WHOLE, Settings
from vitgraft.tasks import find as task_of
from vitgraft.training.request import settle, sort_options


@pytest.mark.parametrize("task", [*WHOLE, *DENSE])
@pytest.mark.parametrize("name", RECIPES)
def test_each_is_one_that_can_be_fitted(name, task):
    recipe = find(name, task)
    settings, arguments = sort_options(task_of(task), recipe.method, heads.names(task)[0], dict(recipe.options))
    for option, value in recipe.options.items():
        assert (getattr(settings, option) if option in Settings.names() else arguments[option]) == value
    assert recipe.why


def test_quick_leaves_the_backbone_alone():
    for task in (*WHOLE, *DENSE):
        recipe = find("quick", task)
        own = {name: value for name, value in recipe.options.items() if name not in Settings.names()}
        made = methods.create(recipe.method, **own)
        assert recipe.method == "linear" or made.detached


def test_it_is_told_and_what_is_given_goes_before_it(ground, tmp_path, capsys):
    words = ("--recipe", "quick", "--epochs", 1, "--widths", 8, 8, 8, 8, "--heads", 1, 1, 1, 1)
    given = [word for word in fit_words(ground, tmp_path / "run", *words) if word != "--quiet"]
    assert call(*given) == 0
    said = capsys.readouterr()
    assert "recipe    quick: hst, detached True, epochs 10; each picture" in said.err + said.out
    result = result_of(tmp_path / "run")
    assert (result["method"], result["arguments"]["detached"]) == ("hst", True)
    assert result["arguments"]["widths"] == [8, 8, 8, 8]
    assert (result["protocol"]["recipe"], result["protocol"]["epochs"]) == ("quick", 1)


def test_what_cannot_be_is_refused(ground, tmp_path):
    with pytest.raises(RequestError, match=r"no recipe 'qick': .* Did you mean 'quick'"):
        settle(tmp_path, task="classify", recipe="qick")
    with pytest.raises(RequestError, match="recipe quick is one of the method hst, but lora was asked for as well"):
        settle(tmp_path, task="classify", recipe="quick", method="lora")
    assert settle(tmp_path, task="classify", recipe="quick", method="hst").recipe == "quick"


@pytest.mark.parametrize(
    ("task", "method", "expected"),
    [
        ("segment", "lora", 1e-3),
        ("instance", "hst", 1e-3),
        ("detect", "linear", 1e-3),
        ("segment", "full", 1e-4),
        ("classify", "hst", 5e-3),
        ("classify", "full", 1e-4),
        ("classify", "lora", 1e-3),
    ],
)
def test_the_rate_of_a_task_is_the_most_for_its_methods(task, method, expected):
    settings, _ = sort_options(task_of(task), method, heads.names(task)[0], {})
    assert settings.lr == expected
    assert sort_options(task_of(task), method, heads.names(task)[0], {"lr": 0.5})[0].lr == 0.5
