"""Query masks: costs and losses equal transformers', the matching is the best there is, and what they predict."""

import itertools

import pytest
import torch
from helpers_heads import CHANNELS, CLASSES, check_gradients, features, made, objects, one_of, parameters, shaken
from transformers.models.mask2former import modeling_mask2former as theirs

from vitgraft import build
from vitgraft.common.errors import RequestError
from vitgraft.heads import masks as masks_of
from vitgraft.heads.query import Queries
from vitgraft.testing.backbones import random_backbone

SMALL = {"queries": 12, "blocks": 2, "mlp": 48}
SIZES = [(64, 96), (50, 70)]


@pytest.fixture(params=[False, True], ids=["segment", "instance"])
def head(request):
    return made(Queries, (32,), CLASSES, masks=request.param, **SMALL)


def one_map(**options):
    return features(channels=(32,), **options)


def targets_of(head, given):
    if head.instances:
        return objects(given)
    masks = torch.randint(CLASSES, (2, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks[:, 40:] = 255
    return masks


# ------------------------------------------------------------------------------------------------ parity


def pairs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(7, 60, generator=generator, dtype=torch.float64)
    truth = (torch.rand(4, 60, generator=generator) > 0.6).double()
    return masks, truth, torch.ones(60, dtype=torch.float64)


def test_costs_and_losses_are_those_of_mask2former():
    masks, truth, counts = pairs()
    torch.testing.assert_close(
        masks_of.pairwise_cross_entropy(masks, truth, counts),
        theirs.pair_wise_sigmoid_cross_entropy_loss(masks, truth),
    )
    torch.testing.assert_close(masks_of.pairwise_dice(masks, truth, counts), theirs.pair_wise_dice_loss(masks, truth))
    four = masks[:4]
    torch.testing.assert_close(
        masks_of.cross_entropy(four, truth, counts).sum() / 3, theirs.sigmoid_cross_entropy_loss(four, truth, 3)
    )
    torch.testing.assert_close(masks_of.dice(four, truth, counts).sum() / 3, theirs.dice_loss(four, truth, 3))
    for pairwise, single in (
        (masks_of.pairwise_cross_entropy, masks_of.cross_entropy),
        (masks_of.pairwise_dice, masks_of.dice),
    ):
        torch.testing.assert_close(pairwise(four, truth, counts).diagonal(), single(four, truth, counts))


def test_cells_that_do_not_count_change_nothing():
    masks, truth, counts = pairs()
    counts[40:] = 0
    for of in (masks_of.pairwise_cross_entropy, masks_of.pairwise_dice):
        expected = of(masks[:, :40], truth[:, :40], counts[:40])
        torch.testing.assert_close(of(masks, truth, counts), expected)


def test_the_matching_is_the_cheapest():
    masks, truth, counts = pairs()
    logits, labels = torch.randn(7, CLASSES + 1, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    rows, columns = masks_of.match(logits, masks, labels, truth, counts)
    cost = (
        -2 * logits.softmax(-1)[:, labels]
        + 5 * masks_of.pairwise_cross_entropy(masks, truth, counts)
        + 5 * masks_of.pairwise_dice(masks, truth, counts)
    )
    assert sorted(columns.tolist()) == [0, 1, 2, 3]
    best = min(sum(cost[q, k] for k, q in enumerate(chosen)) for chosen in itertools.permutations(range(7), 4))
    torch.testing.assert_close(cost[rows, columns].sum(), best)


def test_the_class_loss_is_mask2formers(head):
    head = head.double()
    logits = torch.randn(2, 12, CLASSES + 1, dtype=torch.float64)
    masks, nothing = torch.randn(2, 12, 16, 24).double(), torch.zeros(0, dtype=torch.int64)
    wanted = [(nothing, torch.zeros(0, 16, 24).double(), torch.ones(16, 24).double())] * 2
    weight = torch.tensor([1.0] * CLASSES + [0.1], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits.mT, torch.full((2, 12), CLASSES), weight)
    found = head._losses(logits, masks, wanted)
    torch.testing.assert_close(found["class"], 2 * expected)
    assert found["mask"] == found["dice"] == 0


# ------------------------------------------------------------------------------------------------ predictions


def test_a_prediction_does_not_depend_on_its_neighbours(head):
    head = shaken(head).eval().double()
    given = one_map(batch=3, sizes=[(64, 96), (33, 41), (60, 96)], dtype=torch.float64)
    together = head(given)
    for i in range(3):
        torch.testing.assert_close(head(one_of(given, i))[0], together[i], rtol=1e-9, atol=1e-9)


def test_instances_lie_inside_their_picture():
    head = shaken(made(Queries, (32,), CLASSES, masks=True, **SMALL)).eval()
    given = one_map(sizes=SIZES)
    for record, (h, w) in zip(head(given), SIZES, strict=True):
        n = len(record["boxes"])
        assert n > 3
        assert record["masks"].shape == (n, 1, h, w)
        assert (record["boxes"][:, :2] < record["boxes"][:, 2:]).all()
        assert (record["boxes"][:, 2:] <= torch.tensor([w, h])).all()
        assert (record["scores"].diff() <= 0).all()
        assert set(record["labels"].tolist()) <= set(range(CLASSES))
        for box, mask in zip(record["boxes"], record["masks"][:, 0] > 0.5, strict=True):
            x0, y0, x1, y1 = box.int().tolist()
            assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
            assert mask[y0].any() == mask[y1 - 1].any() == mask[:, x0].any() == mask[:, x1 - 1].any() == True  # noqa: E712
    head.score_threshold = 2.0
    assert head(given)[0]["masks"].shape == (0, 1, 64, 96)


def test_segments_are_chances_weighted_by_masks():
    head = shaken(made(Queries, (32,), CLASSES, **SMALL)).eval()
    given = one_map()
    logits, masks = head._decode(given.maps[0][1], all_of_them=False)[-1]
    chances, shares = logits.softmax(-1), masks.sigmoid()
    expected = sum(chances[:, m, :-1, None, None] * shares[:, m, None] for m in range(12))
    expected = torch.nn.functional.interpolate(expected, (64, 96), mode="bilinear")
    torch.testing.assert_close(head(given), expected)
    assert masks.shape == (2, 12, 16, 24)


# ------------------------------------------------------------------------------------------------ training


def test_gradients_reach_every_parameter(head):
    given = one_map(sizes=SIZES)
    torch.manual_seed(0)
    check_gradients(head, head(given, targets_of(head, given)))


@pytest.mark.parametrize("counts", [(0, 3), (0, 0)])
def test_pictures_without_objects(counts):
    head = made(Queries, (32,), CLASSES, masks=True, **SMALL)
    given = one_map(sizes=SIZES)
    losses = head(given, objects(given, counts))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_several_maps_are_all_read():
    head = made(Queries, CHANNELS, CLASSES, **SMALL)
    given = features()
    torch.manual_seed(0)
    check_gradients(head, head(given, targets_of(head, given)))
    assert head.eval()(given).shape == (2, CLASSES, 64, 96)


def test_a_query_sees_its_mask_alone_by_chance(head):
    """And all where its mask is empty; patches see all."""
    x, masks = torch.zeros(2, 12 + 24, 32), -torch.ones(2, 12, 16, 24)
    masks[:, 1, :8, :12] = 1.0  # a quarter
    head.masking = 1.0
    bias = head._seen(masks, (4, 6), x)[:, 0]
    assert bias.shape == (2, 36, 36)
    assert not bias[:, 12:].any()
    assert not bias[:, :, :12].any()
    assert not bias[:, 0].any(), "an empty mask"
    assert (bias[0, 1, 12:].reshape(4, 6) == 0).nonzero().tolist() == [[y, x] for y in (0, 1) for x in (0, 1, 2)]
    head.masking = 0.5
    torch.manual_seed(0)
    many = head._seen(masks.expand(-1, -1, -1, -1).repeat(200, 1, 1, 1), (4, 6), x.repeat(200, 1, 1))
    assert 0.4 < many[:, 0, 1].isinf().any(-1).float().mean() < 0.6


def test_learns_one_batch(head):
    given = one_map()
    targets = objects(given, (1, 1)) if head.instances else targets_of(head, given)
    if not head.instances:
        targets[:, :20], targets[:, 20:40] = 0, 2
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(120):
        optimizer.zero_grad()
        sum(head(given, targets).values()).backward()
        optimizer.step()
    found = head.eval()(given)
    if not head.instances:
        assert (found.argmax(1)[:, :40] == targets[:, :40]).float().mean() > 0.95
        return
    for record, target in zip(found, targets, strict=True):
        assert record["labels"][0] == target["labels"][0]
        assert record["scores"][0] > 0.5
        assert ((record["masks"][0, 0] > 0.5) == target["masks"][0]).float().mean() > 0.9


def test_autocast(head):
    head, given = shaken(head), one_map()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.train()(given, targets_of(head, given))
        head.eval()(given)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


# ------------------------------------------------------------------------------------------------ sizes and words


@pytest.mark.parametrize("E", [32, 48])
def test_parameters(E):
    M, K, b, m = 12, CLASSES, 2, 48
    count = M * E + b * (4 * E**2 + 2 * E * m + 9 * E + m) + 2 * E + (E + 1) * (K + 1)
    count += 3 * (E**2 + E) + 2 * (4 * E**2 + 12 * E)
    assert parameters(made(Queries, (E,), K, **SMALL)) == count


def test_it_reads_several_blocks():
    model = build(random_backbone(), "linear", classes=3, task="segment", head="query", head_options=SMALL)
    assert model.patches == (0, 1, 2)
    assert [type(part).__name__ for part in model.neck] == ["Mix"]
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_class_weights_are_refused():
    with pytest.raises(RequestError, match=r"Query masks .* take no class_weights"):
        made(Queries, (32,), CLASSES, **SMALL).balance([10, 20, 30])


def test_more_objects_than_queries():
    head = made(Queries, (32,), CLASSES, masks=True, **{**SMALL, "queries": 2})
    given = one_map()
    with pytest.raises(RequestError, match=r"has 3 objects, but there are 2 queries.* queries=6"):
        head(given, objects(given, (3, 1)))
    with pytest.raises(RequestError, match="map of width 18"):
        Queries((18,), CLASSES)


# ------------------------------------------------------------------------------------------------ panoptic


def test_segments_share_no_pixel_and_stuff_is_one():
    head = made(Queries, (32,), CLASSES, masks=True, things=(0,), sure=0.6, overlap=0.8, **SMALL)
    chances = torch.tensor([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.65, 0.2], [0.5, 0.3, 0.2]])
    masks = torch.full((5, 8, 8), -9.0)
    masks[0, :4, :4] = masks[1, :4, 2:8] = 9  # things that overlap: the surer has the common part
    masks[2, 4:, :4] = masks[3, 4:, 4:] = 9  # stuff of one class, in two pieces
    masks[4] = 9  # not sure enough
    found = head._panoptic(chances, masks, (8, 8), (8, 6))
    assert found["labels"].tolist() == [0, 1], "the second thing keeps too little of its mask"
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert found["masks"].shape == (2, 1, 8, 6)
    assert found["masks"].sum((1, 2, 3)).tolist() == [16, 24]
    assert found["masks"].sum(0).max() == 1
    assert found["boxes"].tolist() == [[0, 0, 4, 4], [0, 4, 6, 8]]
    masks[1, :4, 2:8] = -9
    masks[1, :4, 4:8] = 9
    assert head._panoptic(chances, masks, (8, 8), (8, 6))["labels"].tolist() == [0, 0, 1], "two things are two"
    empty = head._panoptic(chances * 0.1, masks, (8, 8), (8, 6))
    assert empty["masks"].shape == (0, 1, 8, 6)
    assert empty["boxes"].shape == (0, 4)


def test_with_queries_given_the_panoptic_form_trains_as_instances_do():
    options = {"masks": True, **SMALL}
    one, other = made(Queries, (32,), CLASSES, **options), made(Queries, (32,), CLASSES, things=(0, 2), **options)
    given = one_map(sizes=SIZES)
    losses = [head.eval()(given, targets_of(head, given)) for head in (one, other)]
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_stuff_has_queries_of_its_own_and_things_are_matched_to_the_others():
    head = made(Queries, (32,), CLASSES, masks=True, things=(1,), blocks=1, mlp=16)
    assert (head.own, len(head.queries)) == (2, 102)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 102, CLASSES + 1, generator=generator, requires_grad=True)
    masks = torch.randn(1, 102, 8, 12, generator=generator)
    cells = torch.zeros(4, 8, 12)
    cells[0, :3], cells[1, 5:], cells[2, 3:5, :6], cells[3, 3:5, 6:] = 1, 1, 1, 1
    masks[0, 70], masks[0, 40] = 9 * (2 * cells[2] - 1), 9 * (2 * cells[3] - 1)  # whom the two things suit
    masks[0, 1] = masks[0, 70]  # better than any, but it belongs to class 2
    masks.requires_grad_()
    # Class 2 is stuff, and lies in two pieces: it is one all the same.
    target = {"labels": torch.tensor([2, 2, 1, 1]), "masks": cells.to(torch.uint8)}
    losses = head.told([(logits, masks)], one_map(), [target])
    goals = torch.full((1, 102), CLASSES)
    goals[0, 1], goals[0, 70], goals[0, 40] = 2, 1, 1
    weights = torch.tensor([1.0] * CLASSES + [0.1])
    torch.testing.assert_close(losses["class"], 2 * torch.nn.functional.cross_entropy(logits.mT, goals, weights))
    truth = torch.stack([cells[0] + cells[1], cells[2], cells[3]]).flatten(1)
    rows = masks[0, [1, 70, 40]].flatten(1)
    expected = 5 * masks_of.dice(rows, truth, torch.ones(96)).mean()
    torch.testing.assert_close(losses["dice"], expected)
    assert made(Queries, (32,), CLASSES, masks=True, things=(), blocks=1, mlp=16).own == CLASSES


def test_of_segments_each_class_has_a_query_of_its_own():
    head = made(Queries, (32,), CLASSES, **{**SMALL, "queries": 0})
    assert len(head.queries) == CLASSES
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, CLASSES, CLASSES + 1, generator=generator, requires_grad=True)
    masks = torch.randn(1, CLASSES, 8, 12, generator=generator, requires_grad=True)
    target = torch.full((1, 32, 48), 2, dtype=torch.uint8)
    target[:, :10] = 0
    target[:, 30:] = 255
    losses = head.told([(logits, masks)], one_map(), target)
    goals = torch.full((1, CLASSES), CLASSES)
    goals[0, 0], goals[0, 2] = 0, 2
    weights = torch.tensor([1.0] * CLASSES + [0.1])
    expected = 2 * torch.nn.functional.cross_entropy(logits.mT, goals, weights)
    torch.testing.assert_close(losses["class"], expected)
    (losses["mask"] + losses["dice"]).backward()
    assert masks.grad[0].flatten(1).any(1).tolist() == [k in (0, 2) for k in range(CLASSES)]


def test_objects_have_a_hundred_queries_unless_more_are_asked_for():
    assert len(made(Queries, (32,), CLASSES, masks=True, blocks=1, mlp=16).queries) == 100
