"""Drawings: what is where in them, that colours can be told apart, and that labels can be read."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as reference

from vitgraft.data.objects import Objects
from vitgraft.pages import drawing, lettering
from vitgraft.pages.drawing import Shape, beside, draw_objects, draw_segments
from vitgraft.pages.lettering import Labels, Text, around, font_size, size_of
from vitgraft.pages.palette import GREY, PALETTE, bright, colour, shade

CLASSES = ("background", "sky", "road", "car")
GROUND = (100, 100, 100)


def photo(width=320, height=240):
    return Image.new("RGB", (width, height), GROUND)


def tinted(label, share=drawing.FILL):
    """The ground below a class's colour."""
    return np.array(GROUND) * (1 - share) + np.array(colour(label)) * share


def near(found, expected, by=3):
    return np.abs(np.asarray(found, dtype=float) - np.asarray(expected, dtype=float)).max(axis=-1) <= by


# --- colours ---------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), Table 1: severity 1, on linear RGB.
SIGHT = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Oklab (Ottosson 2020): distances in it are about as large as they look; black to white is 1.
TO_LMS = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
          [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
TO_LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip


@pytest.mark.parametrize(("sight", "least"), [("all", 0.1), ("protan", 0.07), ("deutan", 0.07), ("tritan", 0.06)])
def test_colours_differ_for_every_kind_of_sight(sight, least):
    rgb = np.array([colour(k) for k in range(len(PALETTE))]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(SIGHT[sight]), 0, 1)
    lab = np.cbrt(seen @ np.transpose(TO_LMS)) @ np.transpose(TO_LAB)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > least


def test_sixty_classes_have_sixty_colours():
    assert len({colour(k) for k in range(60)}) == 60
    assert colour(60) == colour(0)


@pytest.mark.parametrize("k", range(60))
def test_letters_on_a_colour_can_be_read(k):
    def luminance(tint):
        return sum(share * (part / 255) ** 2.2 for share, part in zip((0.2126, 0.7152, 0.0722), tint, strict=True))

    letters = lettering.DARK if bright(colour(k)) else (255, 255, 255)
    low, high = sorted((luminance(colour(k)), luminance(letters)))
    assert (high + 0.05) / (low + 0.05) > 4


# --- masks of classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 32), (240, 320), (960, 1280)])
def test_classes_are_tinted_where_they_are(size):
    h, w = size
    mask = np.zeros(size, np.uint8)
    mask[: h // 2, w // 2 :] = 1
    mask[h // 2 :, : w // 2] = 2
    mask[h // 2 :, w // 2 :] = 255
    drawn = np.asarray(draw_segments(photo(), mask, CLASSES))
    assert drawn.shape == (240, 320, 3)
    assert near(drawn[4:100, 4:140], GROUND).all()  # the background stays as it is
    assert near(drawn[4:30, 180:310], tinted(1)).all()
    assert near(drawn[220:236, 10:150], tinted(2)).all()
    ignored = drawn[140:230, 180:300].reshape(-1, 3)
    assert near(ignored, GREY, by=25).all()  # neither colour: greys, in stripes
    assert ignored.max() - ignored.min() > 8
    border = drawn[20, 150:170].max(axis=0)
    assert (border > 150).all()  # white, though thin
    written = near(drawn[30:90, 180:310], colour(1)).sum()
    assert written > 100  # the label's ground


def test_a_class_without_room_has_no_label_and_one_with_room_has(monkeypatch):
    seen = []
    monkeypatch.setattr(Labels, "put", lambda _, text, *__: seen.append(text.text))
    mask = np.ones((240, 320), np.uint8)
    mask[100:104] = 2
    mask[150:, 100:] = 3
    draw_segments(photo(), mask, CLASSES)
    assert seen == ["sky", "car"]


def test_pictures_of_every_size():
    for size, expected in [
        ((20, 20), (200, 200)),
        ((1, 1), (200, 200)),
        ((3, 400), (3, 400)),
        ((3000, 1500), (640, 320)),
    ]:
        mask = np.full((size[1], size[0]), 2, np.uint8)
        shape = Shape((0, 0, *size), 1, 0.5, mask == 2)
        assert draw_segments(photo(*size), mask, CLASSES, edge=640).size == expected
        assert draw_objects(photo(*size), [shape], CLASSES, edge=640).size == expected


# --- objects ---------------------------------------------------------------------------------------------------------


def test_boxes_masks_and_what_lies_outside():
    mask = np.zeros((480, 640), bool)
    mask[200:400, 200:400] = True
    drawn = np.asarray(draw_objects(photo(640, 480), [Shape((180, 180, 420, 420), 2, mask=mask)], CLASSES, edge=320))
    assert drawn.shape == (240, 320, 3)
    assert near(drawn[115:185, 115:185], tinted(2, drawing.FILL_OBJECT)).all()
    outline = drawn[150, 99:103]
    assert near(outline, tinted(2, 0.95), by=8).any()
    assert near(drawn[150, 88:93], colour(2), by=12).any()  # the box
    assert near(drawn[95:98, 110:190], GROUND).all()  # between box and mask
    assert near(drawn[215:, :], GROUND).all()


@pytest.mark.parametrize("faulty", [False, True])
def test_a_faulty_object_is_dashed(faulty):
    shape = Shape((40, 60, 280, 200), 3, faulty=faulty)
    drawn = np.asarray(draw_objects(photo(), [shape], ("a", "b", "c", "")))
    for side in (drawn[197:201, 41:279], drawn[61:199, 277:281].swapaxes(0, 1)):
        covered = near(side, colour(3), by=12).any(axis=0)
        assert covered.any()
        assert covered.all() != faulty
        if faulty:
            assert 0.3 < covered.mean() < 0.8
            assert covered[:5].all()  # corners are drawn
            assert covered[-5:].all()


def test_a_crowd_is_grey_and_the_surest_lies_on_top():
    crowd = Shape((10, 20, 90, 220), 1, crowd=True)
    below, above = Shape((120, 20, 300, 220), 2, 0.3), Shape((120, 20, 300, 220), 3, 0.9)
    drawn = np.asarray(draw_objects(photo(), [above, below, crowd], CLASSES))
    inside = drawn[60:200, 20:80].reshape(-1, 3)
    assert np.ptp(inside, axis=1).max() <= 2
    assert inside.max() - inside.min() > 8
    assert near(drawn[217:221, 150:250], colour(3), by=12).any(axis=0).all()


def test_objects_of_one_class_that_overlap_have_shades_of_their_own():
    """The surest has the class's own colour; what does not overlap, or is of another class, has its own too."""
    boxes = [(20, 20, 120, 120), (80, 20, 180, 120), (140, 20, 240, 120), (250, 20, 310, 120), (80, 20, 180, 110)]
    shapes = [Shape(box, int(k == 4), 0.9 - k / 10) for k, box in enumerate(boxes)]
    drawn = np.asarray(draw_objects(photo(), shapes, CLASSES))
    left_sides = [drawn[60:80, x - 2 : x + 3] for x in (20, 80, 140, 250)]
    for side, number in zip(left_sides, (0, 1, 0, 0), strict=True):
        assert near(side, shade(0, number), by=12).any(axis=1).all()
    assert near(drawn[106:111, 100:120], colour(1), by=12).any(axis=0).all()
    assert len({shade(0, k) for k in range(5)}) == 5
    many = [Shape((0, 0, 300, 200), 0, 0.5)] * 12
    assert draw_objects(photo(), many, CLASSES).size == photo().size


def test_many_objects_have_no_names(monkeypatch):
    seen = []
    monkeypatch.setattr(Labels, "put", lambda _, text, *__: seen.append(text.text))
    few = [Shape((20, 40, 100, 100), 1, 0.75), Shape((150, 40, 200, 100), 2, 0.5), Shape((5, 5, 9, 9), 1, crowd=True)]
    draw_objects(photo(), few, CLASSES)
    assert seen == ["sky 0.75", "road 0.50", "crowd"]
    seen.clear()
    draw_objects(photo(), few * 15, CLASSES)
    assert set(seen) == {"0.75", "0.50", "crowd"}
    seen.clear()
    draw_objects(photo(), [Shape((20, 40, 100, 100), 0, 0.75)], ("only",))
    assert seen == ["0.75"]  # with one class its name tells nothing


def test_shapes_of_predictions_and_of_the_truth():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 300, 400)) < 0.5
    masks[:, :, :200] = [[[True]], [[False]]]
    runs = [reference.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    runs = [{**run, "counts": run["counts"].decode()} for run in runs]
    row = {"image_id": 1, "category_id": 3, "bbox": [10.0, 20.0, 30.0, 40.0], "segmentation": runs[0]}
    results = [{**row, "score": 0.4}, {**row, "score": 0.5}, {**row, "score": 0.9, "segmentation": runs[1]}]
    first, second = drawing.found_shapes(results, (300, 400), least=0.5, false=[True, False, True])
    assert (first.box, first.label, first.score, first.faulty) == ((10, 20, 40, 60), 2, 0.5, False)
    assert (second.score, second.faulty) == (0.9, True)
    assert np.array_equal(first.mask, masks[0])
    assert np.array_equal(second.mask, masks[1])
    small = drawing.reduced(runs[0], (300, 400), edge=100)
    assert small.shape == (75, 100)
    assert small[:, :50].all()
    assert 0.4 < small[:, 50:].mean() < 0.6
    boxes = np.array([[0, 0, 9, 9], [5, 5, 8, 8]], dtype=np.float32)
    truth = Objects((300, 400), boxes, np.array([1, 0]), np.array([False, True]), np.full(2, 9.0), tuple(runs))
    real, crowd = drawing.true_shapes(truth, missed=[True, True])
    assert (real.label, real.faulty, real.crowd, real.score) == (1, True, False, None)
    assert (crowd.faulty, crowd.crowd) == (False, True)
    assert np.array_equal(real.mask, masks[0])


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_cover_each_other_and_stay_inside(seed):
    rng = np.random.default_rng(seed)
    picture = photo()
    labels = Labels(picture)
    for k in range(60):
        x, y = rng.uniform(-20, 320), rng.uniform(-20, 240)
        text = Text(f"label {k}", 12)
        labels.put(text, colour(k), around((x, y, x + rng.uniform(1, 90), y + rng.uniform(1, 90)), text))
    assert 10 < len(labels.taken) < 60
    cover = np.zeros((240, 320), int)
    for x0, y0, x1, y1 in labels.taken:
        assert 0 <= x0 < x1 <= 320
        assert 0 <= y0 < y1 <= 240
        cover[y0:y1, x0:x1] += 1
    assert cover.max() == 1
    assert not near(np.asarray(picture)[cover == 1], GROUND).all()
    assert near(np.asarray(picture)[cover == 0], GROUND).all()


def test_text_is_as_large_as_it_says():
    for size, words in [(12, "Agjy|"), (30, "WWWW"), (17, "a longer name")]:
        text = Text(words, size)
        image = Image.new("L", (600, 100))
        text.draw(ImageDraw.Draw(image), 50, 50, 255)
        x0, y0, x1, y1 = image.getbbox()
        assert x0 >= 50 - 2
        assert x1 <= 50 + text.width + 2
        assert (y0 + y1) / 2 == pytest.approx(50, abs=size * 0.25)
        assert y1 - y0 <= size_of(text)[1]


@pytest.mark.parametrize(
    "name", ["Straße", "Überführung", "собака", "猫 🐈", "قطة\u202e", "\ud800", "a\nb\t c", "", "x" * 500]
)
def test_names_in_any_letters(name, monkeypatch):
    text = Text(name, 14)
    assert len(text.text) <= 41
    assert text.text.isprintable()
    monkeypatch.setattr(lettering, "FONTS", ())  # as on a machine without any font
    lettering._written.cache_clear()
    plain = Text(name, 14)
    assert plain.text.isascii()
    drawn = draw_objects(photo(), [Shape((50, 50, 200, 200), 1, 0.5)], ("other", name))
    beside({"truth": drawn, "prediction": drawn}, [0, 1], ("other", name))
    lettering._written.cache_clear()


# --- sheets ----------------------------------------------------------------------------------------------------------


def test_a_sheet_has_its_panels_and_a_legend_of_what_is_in_them():
    left, right = Image.new("RGB", (300, 200), (10, 20, 30)), Image.new("RGB", (300, 200), (40, 50, 60))
    classes = ("background", *(f"class number {k}" for k in range(1, 30)))
    sheet = np.asarray(beside({"truth": left, "prediction": right}, range(12), classes, ignored=True))
    assert near(sheet, (10, 20, 30)).sum() >= 300 * 200
    assert near(sheet, (40, 50, 60)).sum() >= 300 * 200
    below = sheet[-sheet.shape[0] + 200 + 2 * font_size(300) :]
    swatch = font_size(300) ** 2 * 0.7
    assert all(near(below, colour(k), by=1).sum() > swatch for k in range(1, 12))
    assert not any(near(below, colour(k), by=1).sum() > swatch for k in (0, 12, 13))
    assert near(below, GREY, by=1).sum() > swatch * 0.3
    bare = beside({"": left}, [], classes)
    assert bare.height < 200 + 40
    assert beside({"": left}, [], classes).width == 300 + 2 * 6
