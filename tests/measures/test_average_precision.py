"""COCO's numbers against COCO's own tools, and what is said of each picture."""

import contextlib
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitgraft.common.errors import WorkError
from vitgraft.data.objects import Objects
from vitgraft.data.segmentations import encode
from vitgraft.measures import average_precision as detection
from vitgraft.measures import coco
from vitgraft.measures.average_precision import NUMBERS, DetectEvaluation, DetectScores

CLASSES = ("cat", "dog", "unicorn")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own


def ellipse(size, box):
    """A mask, bool [H, W], that fills a box xyxy as an ellipse does."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x0, y0, x1, y1 = box
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1


def scene(rng, size, n):
    """n boxes xyxy float32 of every size of COCO's, inside a picture."""
    H, W = size
    edge = rng.choice([14, 50, 150], n)
    w, h = np.minimum(edge * rng.uniform(0.7, 1.4, n), W - 2), np.minimum(edge * rng.uniform(0.7, 1.4, n), H - 2)
    x, y = rng.uniform(0, W - w), rng.uniform(0, H - h)
    return np.stack([x, y, x + w, y + h], axis=1).astype(np.float32).reshape(-1, 4)


def truths(n=12, seed=0, masks=True, crowds=True):
    """The objects of n pictures: none in some, crowds in others, segmentations in COCO's three forms."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        size = [(240, 320), (300, 200)][i % 2]
        boxes = scene(rng, size, 0 if i % 5 == 4 else int(rng.integers(1, 9)))
        segmentations = []
        for k, box in enumerate(boxes):
            rle = reference.encode(np.asfortranarray(ellipse(size, box), dtype=np.uint8))
            x0, y0, x1, y1 = map(float, box)
            runs = {"size": list(size), "counts": [0, 0]}
            flat = ellipse(size, box).flatten(order="F")
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
            runs["counts"] = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
            polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            segmentations.append([{"size": list(size), "counts": rle["counts"].decode()}, runs, polygon][k % 3])
        labels = rng.integers(0, 2, len(boxes))  # nobody sees a unicorn
        crowd = (rng.random(len(boxes)) < 0.2) & crowds
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * rng.uniform(0.6, 1, len(boxes))
        found.append(Objects(size, boxes, labels, crowd, area, tuple(segmentations) if masks else None))
    return found


def perturbed(objects, seed=0, masks=True, noise=0.06, mistakes=3, classes=3):
    """A head's prediction in pixels of a picture half as large: the truth moved a little, and mistakes besides."""
    rng = np.random.default_rng(seed)
    h, w = objects.size[0] // 2, objects.size[1] // 2
    real = np.asarray(objects.boxes) / 2
    sides = np.concatenate([real[:, 2:] - real[:, :2]] * 2, axis=1)
    boxes = np.concatenate([real + rng.normal(0, noise, real.shape) * sides, scene(rng, (h, w), mistakes)])
    boxes = np.clip(boxes, 0, [w, h, w, h])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.concatenate([np.asarray(objects.labels), rng.integers(0, classes, mistakes)])
    scores = np.round(rng.random(len(boxes)), 1)  # with ties
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    if masks:
        shapes = np.array([ellipse((h, w), box) for box in boxes], dtype=np.float32).reshape(-1, 1, h, w)
        found["masks"] = torch.from_numpy(shapes)
    return found, (h, w)


def evaluate(truth, masks=True, classes=CLASSES, **how):
    scores = DetectScores(truth, masks=masks)
    for index, objects in enumerate(truth):
        scores.add(index, *perturbed(objects, index, masks, classes=len(classes), **how))
    return scores.evaluation("val", classes, [f"{i}.jpg" for i in range(len(truth))])


def decode(segmentation, size):
    """A COCO segmentation as a mask, bool [H, W]."""
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = reference.frPyObjects(segmentation, *size)
    return reference.decode(segmentation).reshape(*size, -1).any(axis=2)


def fed_back(truth, masks, classes=CLASSES):
    """The truth as if it had been found, crowds left out, with a score of 0.9."""
    found = []
    for i, objects in enumerate(truth, start=1):
        x0, y0, x1, y1 = np.asarray(objects.boxes, dtype=np.float64).reshape(-1, 4).T
        boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
        there = [k for k in range(len(boxes)) if not objects.crowd[k]]
        rows = [
            {"image_id": i, "category_id": int(objects.labels[k]) + 1, "bbox": boxes[k], "score": 0.9} for k in there
        ]
        for k, row in zip(there, rows, strict=True) if masks else ():
            row["segmentation"] = encode(decode(objects.segmentations[k], objects.size))
        found.append(rows)
    paths = [f"{i}.jpg" for i in range(len(truth))]
    return DetectEvaluation("val", classes, paths, tuple(truth), tuple(found), masks)


def reference_numbers(record, kind):
    """The same evaluation by pycocotools: its twelve numbers and the AP of each class."""
    annotations = []
    for i, objects in enumerate(record.truth, start=1):
        for k, (x0, y0, x1, y1) in enumerate(np.asarray(objects.boxes, dtype=np.float64).reshape(-1, 4).tolist()):
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": int(objects.labels[k]) + 1,
                                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(objects.area[k]),
                                "iscrowd": int(objects.crowd[k])})  # fmt: skip
            if objects.segmentations is not None:
                annotations[-1]["segmentation"] = objects.segmentations[k]
    truth, found = COCO(), [dict(row) for rows in record.rows for row in rows]
    truth.dataset = {
        "images": [{"id": i, "height": o.size[0], "width": o.size[1]} for i, o in enumerate(record.truth, 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(record.classes, 1)],
        "annotations": annotations,
    }
    for row in found:
        row.pop("bbox" if kind == "segm" else "segmentation", None)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats, run.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))


def check_parity(record):
    for kind, numbers in record.numbers.items():
        stats, by_class = reference_numbers(record, detection.KINDS[kind])
        for name, place in NUMBERS.items():
            assert (-1 if numbers[name] is None else numbers[name]) == pytest.approx(stats[place], abs=1e-6)
        for (_, values, _), expected in zip(record.per_class, by_class, strict=True):
            assert (-1 if values[kind] is None else values[kind]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("masks", [False, True])
def test_equal_to_cocos_tools_on_random_objects(seed, masks):
    record = evaluate(truths(seed=seed, masks=masks), masks)
    check_parity(record)
    assert record.numbers.keys() == ({"box", "mask"} if masks else {"box"})
    assert 0.05 < record.value < 0.95
    assert record.metric == ("mask AP" if masks else "box AP")


def real(name):
    """The truth of a real set's validation split."""
    root = Path(os.environ.get("VITGRAFT_SHARED") or "") / "data" / name
    if not root.is_dir():
        pytest.skip(f"VITGRAFT_SHARED names no folder with data/{name}")
    given = json.loads((root / "instances_val.json").read_text())
    truth = []
    for picture in given["images"]:
        mine = [a for a in given["annotations"] if a["image_id"] == picture["id"]]
        boxes = np.array([a["bbox"] for a in mine], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        segmentations = tuple(a["segmentation"] for a in mine)
        truth.append(
            Objects(
                (picture["height"], picture["width"]),
                boxes,
                np.array([a["category_id"] - 1 for a in mine], dtype=np.int64),
                np.array([bool(a["iscrowd"]) for a in mine]),
                np.array([a["area"] for a in mine]),
                segmentations if any(segmentations) else None,
            )
        )
    return truth, tuple(c["name"] for c in given["categories"])


@pytest.mark.real
@pytest.mark.parametrize(("name", "masks"), [("pennfudan", True), ("bccd", False)])
def test_equal_to_cocos_tools_on_real_objects(name, masks):
    truth, classes = real(name)
    record = evaluate(truth, masks, classes)
    check_parity(record)
    assert 0.02 < record.value < 0.9
    assert fed_back(truth, masks, classes).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("masks", [False, True])
def test_the_truth_is_right(masks):
    record = fed_back(truths(masks=masks), masks)
    for numbers in record.numbers.values():
        assert all(value == pytest.approx(1, abs=1e-12) for value in numbers.values())
    assert record.value == pytest.approx(1, abs=1e-12)
    assert record.picture_f1.tolist() == [1.0] * 12
    assert record.at_threshold == (1.0, 1.0, 1.0)
    assert record.threshold == 0.9
    found = record.tallies[:, 0].tolist()
    assert [found[i] for i in record.ranking] == sorted(found, reverse=True)


def test_what_is_absent_is_not_measured():
    small = Objects((90, 90), np.array([[5.0, 5, 25, 30]]), np.array([0]), np.array([False]), np.array([500.0]), None)
    record = fed_back([small], False)
    assert record.numbers["box"] == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "AP small": 1, "AR": 1} | {
        "AP medium": None, "AP large": None})  # fmt: skip
    assert [(name, n) for name, _, n in record.per_class] == [("cat", 1), ("dog", 0), ("unicorn", 0)]
    assert record.per_class[1][1] == {"box": None}
    assert "AP large" not in record.lines()[0]


def test_nothing_found_and_nothing_to_find():
    truth = truths(masks=False, crowds=False)
    record = DetectEvaluation("val", CLASSES, ["x"] * 12, tuple(truth), ((),) * 12, False)
    assert record.value == 0
    empty = [i for i, objects in enumerate(truth) if not len(objects.labels)]
    assert [i for i in range(12) if record.picture_f1[i] == 1] == empty
    assert set(record.ranking[: len(empty)]) == set(empty)
    assert record.to_dict()["threshold"]["recall"] == 0
    with pytest.raises(WorkError, match="show no object"):
        evaluate([truth[i] for i in empty], masks=False)


def test_a_crowd_counts_neither_way():
    def objects(*crowd):
        boxes = np.array([[0.0, 0, 100, 100], [200, 0, 240, 40]])[: len(crowd)]
        return Objects((240, 320), boxes, np.array([0, 1])[: len(crowd)], np.array(crowd), np.full(len(crowd), 1600.0),
                       None)  # fmt: skip

    row = {"image_id": 1, "score": 0.8}
    in_crowd = {**row, "category_id": 1, "bbox": [10, 10, 20, 20]}
    right = {**row, "category_id": 2, "bbox": [200, 0, 40, 40]}
    record = DetectEvaluation("val", CLASSES, ["x"], (objects(True, False),), ([in_crowd, right],), False)
    assert record.matches[0].found.tolist() == [-2, 1]
    assert record.tallies.tolist() == [[1, 0, 0]]
    assert record.per_class[0][1:] == ({"box": None}, 0)
    check_parity(record)


def test_matching_takes_the_surest_first_and_each_object_once():
    truth = Objects((100, 100), np.array([[0.0, 0, 40, 40], [50, 50, 90, 90]]), np.array([0, 1]),
                    np.zeros(2, bool), np.full(2, 1600.0), None)  # fmt: skip
    said = [
        (0.6, 1, [0, 0, 40, 40]),  # right, but the next is surer
        (0.9, 1, [2, 2, 40, 40]),
        (0.8, 1, [50, 50, 40, 40]),  # of another class
        (0.3, 2, [50, 50, 40, 40]),
    ]
    rows = [{"image_id": 1, "category_id": k, "bbox": box, "score": score} for score, k, box in said]
    record = DetectEvaluation("val", CLASSES, ["x"], (truth,), (rows,), False)
    assert record.matches[0].found.tolist() == [-1, 0, -1, 1]
    assert record.matches[0].found_by.tolist() == [1, 3]
    # F1 with scores from 0.9: 2/3, from 0.8: 2/4, from 0.6: 2/5, from 0.3: 4/6; the first of equals is taken.
    assert record.threshold == 0.9
    assert record.tallies.tolist() == [[1, 1, 0]]
    assert record.at_threshold == (1.0, 0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_has_the_highest_f1_of_all(seed):
    record = evaluate(truths(seed=seed), mistakes=6)
    objects = sum(int((~truth.crowd).sum()) for truth in record.truth)

    def f1(score):
        kept = [
            who
            for rows, match in zip(record.rows, record.matches, strict=True)
            for row, who in zip(rows, match.found.tolist(), strict=True)
            if row["score"] >= score and who != -2
        ]
        return 2 * sum(who >= 0 for who in kept) / (len(kept) + objects)

    best = max(f1(row["score"]) for rows in record.rows for row in rows)
    assert f1(record.threshold) == pytest.approx(best)
    assert record.at_threshold[2] == pytest.approx(best)


def test_rows_are_in_pixels_of_the_file():
    mask = torch.zeros(1, 1, 10, 20)
    mask[..., 2:6, 5:15] = 1
    box = torch.tensor([[5.0, 2.0, 15.0, 6.0]])
    found = {"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.5]), "masks": mask}
    (row,) = coco.results(found, 7, (10, 20), (30, 40))
    assert json.loads(json.dumps(row)) == row
    assert (row["image_id"], row["category_id"], row["score"]) == (7, 2, 0.5)
    assert row["bbox"] == [10, 6, 20, 12]
    assert reference.toBbox(row["segmentation"]).tolist() == [10, 6, 20, 12]
    whole = decode(row["segmentation"], (30, 40))
    assert whole.shape == (30, 40)
    inside = np.zeros((30, 40), bool)
    inside[6:18, 10:30] = True
    assert not (whole & ~inside).any()
    assert inside.sum() - whole.sum() <= 4  # smooth corners


def test_parts_of_several_processes_are_the_whole():
    truth = truths()
    whole, parts = evaluate(truth), []
    for rank in range(2):
        part = DetectScores(truth, masks=True)
        for index in range(rank, len(truth), 2):
            part.add(index, *perturbed(truth[index], index))
        parts.append(pickle.loads(pickle.dumps(part)))  # as it travels between the processes
    parts[0].merge(parts[1])
    joined = parts[0].evaluation("val", CLASSES, whole.paths)
    assert joined.rows == whole.rows
    assert joined.to_dict() == whole.to_dict()
    with pytest.raises(ValueError, match="in common"):
        parts[0].merge(parts[1])
    with pytest.raises(ValueError, match="6 of 12 pictures were not added"):
        parts[1].evaluation("val", CLASSES, whole.paths)
    with pytest.raises(ValueError, match="came twice"):
        parts[1].add(1, *perturbed(truth[1]))
    with pytest.raises(ValueError, match="without masks"):
        parts[1].add(0, *perturbed(truth[0], masks=False))


def test_numbers_as_json_and_as_text():
    record = evaluate(truths())
    told = json.loads(json.dumps(record.to_dict()))
    assert (told["metric"], told["value"], told["interval"]) == ("mask AP", record.value, None)
    assert told["mask"]["AP"] == record.value
    assert told["per_class"][2] == ["unicorn", {"box": None, "mask": None}, 0]
    lines = record.lines()
    assert lines[0].startswith(f"box AP {record.numbers['box']['AP']:.2%} (AP50 ")
    assert lines[1].startswith(f"mask AP {record.value:.2%} (AP50 ")
    assert "12 pictures of val" in lines[1]
    assert [line.split()[0] for line in lines[3:5]] == ["cat", "dog"]
    assert "1 more of 3 classes" in lines[5]


def test_masks_that_are_not_there():
    truth = truths(n=2, masks=False)
    with pytest.raises(ValueError, match="some true objects have none"):
        DetectEvaluation("val", CLASSES, ["a", "b"], tuple(truth), ([], []), True)
