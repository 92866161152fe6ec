"""The methods' pages: every method has one, true to the code, with the figure that the code draws today."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from vitgraft import methods
from vitgraft.commands import cli
from vitgraft.kernels.linear import Change
from vitgraft.method import Method
from vitgraft.pages.catalogue import VIT_B16, attached, shape_of
from vitgraft.testing.backbones import random_backbone

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the figures are no part of the package

from docs.figures import figure, layers, places, shapes  # noqa: E402

PAGES = ROOT / "docs" / "methods"
SIZES = {"ViT-Ti/16": "tiny", "ViT-S/16": "small", "ViT-B/16": "base", "ViT-L/16": "large"}
AGAIN = "draw it again: python -m docs.figures.figure docs/methods"


def absent(name):
    """The package that a method needs, if it is not installed."""
    needed = methods.find(name).needs
    return needed if needed and find_spec(needed) is None else ""


every_method = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(bool(absent(name)), reason=f"{absent(name)} is not installed"))
        for name in methods.names()
    ],
)


@pytest.fixture(scope="module")
def vits():
    """ViT-Ti, S, B and L without numbers, by the names of the pages' columns."""
    return {column: shape_of(f"vit_{size}_patch16_224") for column, size in SIZES.items()}


def page(name):
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def shown(value):
    """A default as the pages write it; None is followed by what it stands for."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@every_method
def test_the_page_names_paper_size_and_every_option(name, vits):
    cls, text = methods.find(name), page(name)
    assert text.startswith(f"# {name}: ")
    for source in re.findall(r"\d{4}\.\d{4,5}|github\.com/[\w/-]+", cls.paper):
        assert source in text, f"the page cites {source}"
    assert re.search(rf"(?<![\d,]){attached(name, vits['ViT-B/16']).size:,}(?![\d,])", text), "the size on ViT-B/16"
    options = dict(re.findall(r"^\| `--([\w-]+)` \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE))
    defaults = {key.replace("_", "-"): value for key, value in cls.defaults().items()}
    assert options.keys() == defaults.keys()
    for option, value in defaults.items():
        found = options[option] if value is not None else options[option].partition(":")[0]
        assert found == shown(value), f"the default of --{option}"


@every_method
def test_the_sizes_in_the_page_are_the_code_s(name, vits):
    columns = "| | " + " | ".join(SIZES) + " |"
    rows = re.findall(r"^\| (parameters|`--[^`]+`) \|(( [\d,]+ \|){4})$", page(name), re.MULTILINE)
    assert not rows or columns in page(name)
    assert [row[0] for row in rows].count("parameters") == 1
    for row, numbers, _ in rows:
        words = shlex.split(row.strip("`")) if row != "parameters" else []
        given = vars(cli._parse(["fit", "data", "--method", name, "--out", "run", *words]))
        arguments = {key: given[key] for key in methods.find(name).defaults() if key in given}
        sizes = [f"{attached(name, vit, **arguments).size:,}" for vit in vits.values()]
        assert numbers.replace("|", "").split() == sizes, row


@every_method
def test_the_figures_are_what_the_code_draws_and_stand_in_the_page(name, vits):
    drawn = figure.figures(name, vits["ViT-B/16"])
    assert vits["ViT-B/16"].name == VIT_B16
    assert f"{name}.svg" in drawn
    for file, drawing in drawn.items():
        assert (PAGES / file).read_text(encoding="utf-8") == drawing, f"{file}: {AGAIN}"
        assert re.search(rf"!\[[^\]]+\]\({re.escape(file)}\)", page(name)), f"{file} is not in the page"


def test_no_figure_is_left_over():
    drawings = {f"{name}{ending}.svg" for name in methods.names() for ending, _ in figure.forms(methods.find(name))}
    assert {path.name for path in PAGES.glob("*.svg")} <= drawings


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_is_one_file_that_needs_nothing_else(path):
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{svg}svg"
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert root.get("width") == "800"
    kinds = {element.tag.removeprefix(svg) for element in root.iter()}
    assert kinds <= {"svg", "title", "style", "rect", "text", "polyline", "path", "circle"}
    words = path.read_text(encoding="utf-8")
    assert not re.search(r"href|url\(|@import|<script|\bon\w+=", words)
    for element in root.iter(f"{svg}text"):
        assert element.text, "an empty text"


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


# ---------------------------------------------------------------------------------------------- the drawing itself


class Doubling(Change):
    def __init__(self, size):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(size))

    def merged(self, weight, bias):
        return 2 * weight, bias


class Beside(nn.Module):
    def __init__(self, width, *, inputs, outputs):
        super().__init__()
        self.a, self.inputs, self.outputs = nn.Linear(width, width), inputs, outputs

    def forward(self, inputs, outputs, grid):
        x = 0
        if self.inputs:
            x = x + self.a(inputs)
        return x + self.a(outputs) if self.outputs else x


class Everything(Method):
    """All six contacts, each in some blocks of four only."""

    title = "Everything"

    def attach(self, backbone):
        super().attach(backbone)
        c, D = self.contacts, backbone.width
        for name in (
            "pos_embed",
            "patch_embed.proj.weight",
            "blocks.0.norm1.bias",
            "blocks.3.norm1.weight",
            "norm.bias",
        ):
            c.train_tensor(backbone, name)
        c.change(backbone, "blocks.1.attn.qkv", Doubling(5))
        c.change(backbone, "blocks.2.attn.qkv", Doubling(7))
        c.change(backbone, "norm", Doubling(3))
        for block in (0, 2):
            c.add_branch(backbone, f"blocks.{block}.attn", Beside(D, inputs=True, outputs=True))
        c.add_after(backbone, "blocks.1.mlp", nn.Linear(D, D))
        self.prompts = nn.ParameterList([torch.zeros(1, 3, D), torch.zeros(1, 12, D)])
        c.add_tokens(backbone, 0, self.prompts[0], until=2)
        c.add_tokens(backbone, 3, self.prompts[1])
        c.add_branch(backbone, "blocks.3.mlp.fc2", Beside(D, inputs=False, outputs=True))
        c.add_before(backbone, 2, nn.Linear(D, D))
        self.own = nn.ParameterList([torch.zeros(2, backbone.blocks[0].heads, 7, D // backbone.blocks[0].heads)])
        c.add_prefix(backbone, 1, lambda: (self.own[0][0], self.own[0][1]))
        self.side = nn.Linear(D, 11, bias=False)
        for block in (-1, 0, 3):
            c.tap(backbone, block)


@pytest.mark.parametrize("family", ["cls", "dinov2", "siglip", "clip"])
def test_every_contact_is_drawn_with_its_blocks_and_its_size(family):
    backbone, method = random_backbone(family), Everything()
    method.attach(backbone)
    D = backbone.width
    drawing = figure.svg(method, backbone)
    texts = [element.text for element in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    for words in (
        "Doubling", "5 to 7", "blocks 1 to 2", "bias", "weight", "blocks 0, 3", "Beside", "blocks 0, 2", "Linear",
        "block 1 only", "block 2 only", f"{D * D + D:,}",
        "7 keys, values", f"{14 * D:,}", "block 3 only", "side network", f"{11 * D:,}",
        "3 to 12 extra tokens, put in at blocks 0, 3",
        "the extra tokens after blocks 2 to 3", "output of blocks 0, 3, input of block 0", "one of 4 blocks",
    ):  # fmt: skip
        assert words in texts, words
    assert ("registers" in drawing) == (family == "dinov2")
    assert ("not in this backbone" in drawing) == (family != "dinov2"), "its LayerScale"
    inside = sum(sum(part.sizes.values()) for found in places.parts(method).values() for part in found)
    assert inside + 15 * D + 11 * D == method.size, "each parameter at one place"
    assert all(colour in drawing for colour, _ in shapes.COLOURS.values()), "each kind of contact has its colour"


@pytest.mark.parametrize(("inputs", "outputs"), [(True, False), (False, True), (True, True)])
def test_it_is_seen_what_a_branch_reads(cls, inputs, outputs):
    assert places.reads(Beside(cls.width, inputs=inputs, outputs=outputs), cls) == (inputs, outputs)


def test_blocks_in_words():
    assert places.where(range(12), 12) == "all 12 blocks"
    assert places.where([0], 12) == "block 0 only"
    assert places.where([4, 3, 5], 12) == "blocks 3 to 5"
    assert places.where([0, 2, 5], 12) == "blocks 0, 2, 5"
    assert places.where([0, 2, 4, 6, 8, 10], 12) == "6 of 12 blocks"


def test_the_layers_are_drawn_as_the_contract_has_them():
    drawn = (ROOT / "docs" / "layers.svg").read_text("utf-8")
    assert drawn == layers.svg(), "draw it again: python -m docs.figures.layers docs/layers.svg"
    rooms = {path.stem for path in (ROOT / "src" / "vitgraft").iterdir() if path.suffix in ("", ".py")}
    assert {room for floor in layers.layers() for room in floor} == rooms - {"__init__", "__pycache__"}


def test_what_the_pages_name_is_there():
    for page in ("architecture.md", "where.md"):
        text = (ROOT / "docs" / page).read_text("utf-8")
        for name in re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|md|json|css))?)`", text):
            assert any((folder / name).exists() for folder in (ROOT, ROOT / "src" / "vitgraft")), f"{page}: {name}"
