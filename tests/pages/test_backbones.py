"""The table of timm's weights."""

import json

import pytest

from vitgraft.commands.cli import main
from vitgraft.common.errors import RequestError
from vitgraft.pages import backbones


def test_how_many_of_each_family_are_taken():
    """All of Eva, Swin and DeiT; of the plain ones those with ordinary blocks."""
    rows = backbones.table()
    of = {family: [row for row in rows if row["family"] == family] for family in backbones.FAMILIES.values()}
    taken = {family: sum(row["refused"] is None for row in rows) for family, rows in of.items()}
    every = {family: len(rows) for family, rows in of.items()}
    for family in ("DeiT", "Eva", "Swin", "Swin-V2"):
        assert taken[family] == every[family] > 0
    assert taken["ViT"] >= every["ViT"] - 7
    assert taken["BEiT"] == taken["Hiera"] == 0
    assert every["Eva"] >= 83
    assert every["Swin"] + every["Swin-V2"] >= 31
    assert every["DeiT"] >= 24


def test_a_part_of_the_table(capsys):
    main(["backbones", "small_patch16_dinov3.", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "name": "vit_small_patch16_dinov3.lvd1689m",
        "family": "Eva",
        "parameters": 21_586_944,
        "licence": "dinov3-license",
        "tried": "random weights",
        "refused": None,
    }
    main(["backbones", "beit_base*"])
    shown = capsys.readouterr().out
    assert "refused: it is a Beit, which needs relative positions in every block" in shown
    assert "0 of   3 are taken" in shown
    with pytest.raises(RequestError, match=r"None of timm's \d+ weights of these families is called like 'resnet'"):
        backbones.table("resnet")
