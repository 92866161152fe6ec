"""`Run.predict` and `vitgraft predict` take pictures in whatever form they come, and say the same about each."""

import csv
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_cli import call, fit, make_backbone
from helpers_dense import segment_set
from PIL import Image

import vitgraft
from vitgraft.common.errors import RequestError, WorkError


@pytest.fixture(scope="module")
def run(ground, tmp_path_factory):
    return vitgraft.Run(fit(ground, tmp_path_factory.mktemp("runs") / "linear", "--method", "linear"))


@pytest.fixture(scope="module")
def picture(ground):
    return ground.easy / "test" / "dots" / "0.png"


def array_of(path):
    return np.array(Image.open(path).convert("RGB"))


FORMS = {
    "text": str,
    "path": Path,
    "bytes": lambda path: path.read_bytes(),
    "Pillow": Image.open,
    "array": array_of,
    "tensor": lambda path: torch.from_numpy(array_of(path)).permute(2, 0, 1),
    "tensor of floats": lambda path: torch.from_numpy(array_of(path)).permute(2, 0, 1) / 255,
    "array with alpha": lambda path: np.array(Image.open(path).convert("RGBA")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_picture_in_every_form(run, picture, form):
    (expected,) = run.predict([picture])
    found = run.predict(form(picture))
    assert found.rows[0]["probabilities"] == expected.rows[0]["probabilities"]
    assert found.picture == (str(picture) if form in (str, Path) else "picture 1")
    assert (found.label, found.probability) == found.top(1)[0]
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["class"] == found.label
    assert found.label in repr(found)
    assert found.draw().size == Image.open(picture).size


def test_several_pictures_in_several_forms(run, ground, picture):
    folder = ground.easy / "test"
    everyone = run.predict(folder)
    assert len(everyone) == len(list(folder.rglob("*.png"))) == 18
    assert [each.index for each in everyone] == list(range(18))
    assert [each.picture for each in run.predict(str(folder / "*" / "0.png"))] == [
        str(folder / kind / "0.png") for kind in ("dots", "rings", "stripes")
    ]
    mixed = run.predict([picture, Image.open(picture), array_of(picture)], batch_size=2)
    assert len({each.label for each in mixed}) == 1
    assert [each.picture for each in mixed] == [str(picture), "picture 2", "picture 3"]
    batch = torch.stack([torch.from_numpy(array_of(picture)).permute(2, 0, 1)] * 3)
    assert [each.picture for each in run.predict(batch)] == ["picture 1", "picture 2", "picture 3"]
    assert len(run.predict(path for path in [picture, picture])) == 2


def test_settings_of_an_answer(run, picture, capsys):
    assert run.predict(picture, precision="64", device="cpu").label == run.predict(picture).label
    for how, said in (
        ({"epochs": 3}, "epochs cannot be chosen anew when a run answers: what can are sliding"),
        ({"devise": "cpu"}, "Did you mean 'device'"),
        ({"mirror": True}, "mirror is for the task segment, but this one is classify"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
    ):
        with pytest.raises(RequestError, match=said):
            run.predict(picture, **how)
    assert call("predict", run.path, picture, "--mirror") == 2
    assert "mirror is for the task segment" in capsys.readouterr().err


def test_an_address(run, picture):
    handler = partial(SimpleHTTPRequestHandler, directory=str(picture.parent))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        found = run.predict(f"{address}/0.png")
        assert found.rows[0]["probabilities"] == run.predict(picture).rows[0]["probabilities"]
        assert found.picture == f"{address}/0.png"
        with pytest.raises(WorkError, match="could not be fetched"):
            run.predict(f"{address}/gone.png")
        server.shutdown()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "A int is no picture: give a path"),
        ("nowhere.jpg", "no picture nowhere.jpg"),
        ([], "holds none"),
        (np.zeros((4, 4, 3)), "array float64 of the shape .4, 4, 3. is no picture"),
        (np.zeros((4, 4, 2), np.uint8), "of the shape .4, 4, 2. is no picture"),
        (torch.full((3, 4, 4), 7.0), "not all lie in 0..1"),
        (torch.zeros(5, 4, 4), "tensor of the shape .5, 4, 4. is no picture"),
    ],
)
def test_what_is_no_picture(run, given, said):
    with pytest.raises(RequestError, match=said):
        run.predict(given)


def test_bytes_that_are_no_picture(run, picture):
    with pytest.raises(WorkError, match="cannot be"):
        run.predict(b"no picture")
    (found,) = run.predict([b"no picture", picture], skip_bad=True)
    assert (found.index, found.picture) == (1, str(picture))


def test_a_run_tells_what_it_is(run):
    assert f"<Run {run.path}: classify with linear, top-1 accuracy" in repr(run)
    shown = run._repr_html_()
    assert all(part in shown for part in ("classify", f"{100 * run.result['value']:.1f}", "report.html"))
    assert "report.html" not in vitgraft.Run(run.file)._repr_html_(), "an adapter file alone has no page"


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_predictions_as_a_file(run, ground, tmp_path, capsys, ending):
    out = tmp_path / f"found{ending}"
    assert call("predict", run.path, ground.easy / "test", "--out", out) == 0
    rows = list(csv.DictReader(out.read_text().splitlines())) if ending == ".csv" else json.loads(out.read_text())
    assert [row["class"] for row in rows] == [each.label for each in run.predict(ground.easy / "test")]
    before = out.read_bytes()
    assert call("predict", run.path, ground.easy / "test", "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_masks_of_a_picture_in_memory(tmp_path, capsys):
    root = segment_set(tmp_path / "data")
    words = ["--backbone", make_backbone(tmp_path / "vit.safetensors"), "--method", "linear", "--head", "linear"]
    words += ["--epochs", 1, "--image-size", 64, "--workers", 0, "--quiet", "--out", tmp_path / "run"]
    assert call("fit", root, *words) == 0
    path = root / "images" / "val" / "0.png"
    found = vitgraft.Run(tmp_path / "run").predict(Image.open(path))
    assert found.masks.shape == (len(found.labels), *array_of(path).shape[:2])
    assert (found.masks.sum(0) == 1).all()
    assert found.draw().size
    # Two pictures of one name, and a third that has the name which the second would get.
    for name in ("a/x.png", "b/x.png", "c/x-2.png"):
        (tmp_path / name).parent.mkdir()
        Image.open(path).save(tmp_path / name)
    out = tmp_path / "drawn"
    assert call("predict", tmp_path / "run", tmp_path / "a", tmp_path / "b", tmp_path / "c", "--out", out) == 0
    assert len(list(out.glob("*.jpg"))) == 3
