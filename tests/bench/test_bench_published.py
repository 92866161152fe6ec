"""Published tables: their averages follow from their rows, both kinds, and a broken file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitgraft import methods
from vitgraft.bench import published, suites
from vitgraft.common.errors import RequestError

VTAB = suites.find("vtab-1k")
HERE = Path(published.__file__).parent / "published"
# Printed averages that do not follow from their own rows, and what does; each row has a flag that says so.
MISPRINTS = {
    ("convpass-vtab-1k", "Full", "groups"): 68.97,
    ("convpass-vtab-1k", "Linear", "groups"): 57.68,
    ("convpass-vtab-1k", "LoRA", "groups"): 74.60,
    ("fgvc", "RLRR", "mean"): 90.50,
    ("pace-domain-generalisation", "VPT", "mean"): 34.92,
}


def averages(table: str, method: str) -> tuple[float, float]:
    """Mean of 19 and mean of groups, in percent."""
    values = published.find(table).row(method).of_tasks(VTAB)
    return VTAB.mean(values), VTAB.mean_of_groups(values)


# The averages that the papers and their comparisons state, whichever of the two each of them prints.
@pytest.mark.parametrize(("table", "method", "mean", "of_groups"), [
    ("hst-vtab-1k", "HST", 75.99, 78.13),
    ("v-petl-vtab-1k", "HST", 75.99, 78.13),
    ("convpass-vtab-1k", "Convpass", 74.45, 76.56),
    ("convpass-vtab-1k", "Convpass_attn", 73.69, 75.85),
    ("convpass-readme", "Convpass", 74.45, 76.56),
    ("sct-vtab-1k", "SCT", 73.59, 76.00),
    ("consolidator-vtab-1k", "Consolidator", 74.16, 76.53),
    ("convpass-vtab-1k", "LoRA", 72.25, 74.60),
    ("consolidator-vtab-1k", "LoRA", 72.36, 74.64),
    ("v-petl-vtab-1k", "SSF", 73.10, 75.69),
    ("consolidator-vtab-1k", "SSF", 73.10, 75.69),
    ("consolidator-vtab-1k", "NOAH", 73.25, 75.48),
    ("v-petl-vtab-1k", "VPT-Deep", 69.43, 71.97),
    ("consolidator-vtab-1k", "Head", 52.94, 57.64),
    ("convpass-vtab-1k", "Linear", 52.99, 57.68),
    ("consolidator-vtab-1k", "Full", 65.57, 68.97),
    ("convpass-vtab-1k", "Adapter", 71.44, 73.86),
    ("convpass-vtab-1k", "AdaptFormer", 72.32, 74.75),
    ("v-petl-vtab-1k", "BitFit", 62.05, 65.22),
    ("v-petl-vtab-1k", "DTL", 74.58, 76.76),
    ("v-petl-vtab-1k", "LST", 71.70, 74.25),
    ("pace-vtab-1k", "PACE (LoRAmul+VPTadd)", 76.93, 79.0),
    ("mai-vtab-1k", "convpass", 74.23, 76.35),
    ("e2vpt-vtab-1k", "E2VPT", 71.42, 73.94),
])  # fmt: skip
def test_published_averages_follow_from_the_rows(table: str, method: str, mean: float, of_groups: float):
    assert averages(table, method) == pytest.approx((mean, of_groups), abs=0.01)


@pytest.mark.parametrize(("table", "method", "groups"), [
    ("hst-vtab-1k", "HST", (82.83, 87.12, 64.45)),
    ("convpass-vtab-1k", "Convpass", (81.71, 85.30, 62.66)),
    ("sct-vtab-1k", "SCT", (82.23, 85.90, 59.87)),
    ("consolidator-vtab-1k", "Consolidator", (82.43, 86.28, 60.88)),
    ("consolidator-vtab-1k", "Full", (75.89, 83.38, 47.64)),
])  # fmt: skip
def test_group_means(table: str, method: str, groups: tuple[float, ...]):
    means = VTAB.group_means(published.find(table).row(method).of_tasks(VTAB))
    assert tuple(means.values()) == pytest.approx(groups, abs=0.01)


@pytest.mark.parametrize("name", published.names())
def test_every_stated_average_follows_but_for_the_known_misprints(name: str):
    table = published.find(name)
    suite = suites.find(table.suite)
    for row in table.rows:
        values = row.of_tasks(suite)
        computed: dict[str, Any] = {"mean": suite.mean(values), "groups": suite.mean_of_groups(values)}
        for kind in row.stated.keys() & computed.keys():
            stated = row.stated[kind]
            if (true := MISPRINTS.get((name, row.method, kind))) is not None:
                assert computed[kind] == pytest.approx(true, abs=0.005)
                assert any("printed average" in flag for flag in row.flags)
            else:  # half a unit of the last digit, and what the rows' own rounding adds
                unit = 0.1 if round(stated, 1) == stated else 0.01
                assert computed[kind] == pytest.approx(stated, abs=unit / 2 + 0.012), row.method
        if "by_group" in row.stated:
            assert list(suite.group_means(values).values()) == pytest.approx(row.stated["by_group"], abs=0.05)


def test_both_averages_are_stated_as_the_papers_print_them():
    stated = {
        name: published.find(f"{name}-vtab-1k").row(name).stated for name in ("hst", "convpass", "consolidator", "sct")
    }
    assert stated == {
        "hst": {"mean": 75.99},
        "convpass": {"groups": 76.6},
        "consolidator": {"groups": 76.53},
        "sct": {"mean": 73.59},
    }


def test_a_row_that_two_sources_print_is_the_same_in_both():
    v_petl = published.find("v-petl-vtab-1k")
    for table, method, theirs in [
        ("convpass-vtab-1k", "LoRA", "LoRA"),
        ("convpass-vtab-1k", "Adapter", "Adapter"),
        ("convpass-vtab-1k", "AdaptFormer", "AdaptFormer"),
        ("consolidator-vtab-1k", "SSF", "SSF"),
        ("consolidator-vtab-1k", "NOAH", "NOAH"),
        ("consolidator-vtab-1k", "Head", "Linear"),
        ("consolidator-vtab-1k", "Bias", "BitFit"),
        ("convpass-vtab-1k", "VPT", "VPT-Deep"),
        ("hst-vtab-1k", "HST", "HST"),
        ("sct-vtab-1k", "SCT", "SCT"),
    ]:
        assert published.find(table).row(method).values == v_petl.row(theirs).values, method


def test_the_readme_of_convpass_rounds_to_its_table():
    table, readme = published.find("convpass-vtab-1k"), published.find("convpass-readme")
    for method in ("Convpass", "Convpass_attn"):
        assert readme.row(method).values == pytest.approx(table.row(method).values, abs=0.081)


def test_how_a_number_came_about():
    assert published.find("hst-vtab-1k").row("HST").checkpoint == "vit_base_patch16_224.augreg_in21k"
    convpass = published.find("convpass-vtab-1k").row("Convpass")
    assert (convpass.checkpoint, convpass.normalisation) == ("vit_base_patch16_224.orig_in21k", "imagenet")
    assert (convpass.epoch, convpass.parameters_m, convpass.ours) == ("best on test", 0.33, "convpass")
    ssf = published.find("consolidator-vtab-1k").row("SSF")
    assert ssf.checkpoint == "vit_base_patch16_224.augreg_in21k"  # not like the other rows of its table
    assert published.find("consolidator-vtab-1k").row("VPT").normalisation == "unit"
    assert published.find("mai-vtab-1k").row("lora").epoch == "last"


def test_the_best_epoch_on_test_is_worth_what_the_spec_says():
    row = published.find("mai-vtab-1k").row("convpass")
    assert row.stated["best_epoch_groups"] - row.stated["groups"] == pytest.approx(0.79)


@pytest.mark.parametrize("name", published.names())
def test_a_method_of_ours_exists(name: str):
    table = published.find(name)
    assert table.id == name
    assert {row.ours for row in table.rows} - {None} <= set(methods.names())
    assert len({row.method for row in table.rows}) == len(table.rows)


def test_rows_of_a_method_over_all_tables():
    found = {table.id: row.method for table, row in published.rows("vtab-1k", "linear")}
    assert found == {
        "consolidator-vtab-1k": "Head",
        "convpass-vtab-1k": "Linear",
        "mai-vtab-1k": "linear",
        "v-petl-vtab-1k": "Linear",
    }
    assert len(list(published.rows("vtab-1k"))) == 1 + 10 + 9 + 2 + 1 + 1 + 16 + 2 + 1 + 20


def test_an_unknown_table_and_an_unknown_row():
    with pytest.raises(RequestError, match=r"no published table 'hst-vtab'.*Did you mean 'hst-vtab-1k'"):
        published.find("hst-vtab")
    with pytest.raises(RequestError, match=r"table hst-vtab-1k has no row 'HTS'.*'HST'"):
        published.find("hst-vtab-1k").row("HTS")


def changed(tmp_path: Path, change: dict[str, Any], row: dict[str, Any]) -> Path:
    whole = json.loads((HERE / "hst-vtab-1k.json").read_text())
    whole["rows"][0] |= row
    (tmp_path / "mine.json").write_text(json.dumps({**whole, **change}))
    return tmp_path / "mine.json"


@pytest.mark.parametrize(("change", "row", "said"), [
    ({}, {"values": [1.0] * 18}, r"row 'HST' of .*mine\.json has 18 values, but vtab-1k has 19 tasks: give one"),
    ({}, {"values": [1.0] * 20}, r"has 20 values, but vtab-1k has 19"),
    ({}, {"values": 76}, r"row 'HST' of .* has 76, but vtab-1k has 19"),
    ({}, {"values": [1.0] * 18 + ["x"]}, r"has 'x' for smallnorb_ele, but a value is a number from 0 to 100"),
    ({}, {"values": [101.0] + [1.0] * 18}, r"has 101\.0 for cifar"),
    ({}, {"epoch": "best"}, r"has the epoch 'best', but there is last, best on test, unknown"),
    ({"normalisation": "imagnet"}, {}, r"normalisation 'imagnet'.*Did you mean 'imagenet'"),
    ({}, {"parameter_m": 1}, r"Row 1 of .* has a field 'parameter_m'.*Did you mean 'parameters_m'"),
    ({"suite": "vtab"}, {}, r"is of a suite that is not there: There is no suite 'vtab'"),
    ({"rows": []}, {}, r"has no row"),
    ({"rows": {"HST": 1}}, {}, r"has \{'HST': 1\} as its rows, but that is a list"),
    ({}, {"flags": "none"}, r"Row 1 of .* has 'none' as its flags, but that is a list"),
    ({"rows": [3]}, {}, r"Row 1 of .* is 3, but must be an object"),
])  # fmt: skip
def test_a_broken_table(tmp_path: Path, change: dict[str, Any], row: dict[str, Any], said: str):
    with pytest.raises(RequestError, match=said):
        published.load(changed(tmp_path, change, row))


def test_a_table_of_ones_own_with_a_gap(tmp_path: Path):
    row = published.load(changed(tmp_path, {}, {"values": [None] + [50.0] * 18})).rows[0]
    assert list(row.of_tasks(VTAB)) == list(VTAB.task_names[1:])
    with pytest.raises(RequestError, match=r"1 have no value \(cifar\)"):
        VTAB.mean(row.of_tasks(VTAB))
