"""Query masks: a set of learned queries, each of which says one class and one mask; segments and instances alike.

What their heads share: what a query's vector and the patches give, the losses of Mask2Former (Cheng et al. 2022,
arXiv 2112.01527), and what is predicted of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..common.errors import RequestError
from ..features import Features
from .detect import Record
from .fpn import widen
from .segment import IGNORED, resize

COSTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}  # in the matching, and weights of the losses
NOTHING = 0.1  # weight of a query that is no object's, in the cross entropy
QUERIES = 100  # of objects, unless said otherwise


class QueryMasks(nn.Module):
    """M queries of width E; a head says how they come to know the picture.

    queries: more than a picture has objects, all matched to what it shows (Mask2Former). 0: a class that is not
    countable has a query of its own (MaskFormer's fixed matching, Cheng et al. 2021, arXiv 2107.06278, section 3.2),
    which learns it in a few hundred steps (docs/results.md#query-masks), and 100 more are matched to objects of the
    others, if there are any. M is the sum. score_threshold, detections (per picture): what is predicted of instances.
    things: where every pixel is to be told its class and its object, the labels of the classes that are countable;
    segments are then what is predicted, of which no two share a pixel, from queries of a chance of `sure`, which keep
    `overlap` of their mask against the others (Mask2Former: 0.8 both).

    Parameters: M E + (E + 1) (K + 1) + 3 (E^2 + E) + 2 (4 E^2 + 12 E).
    """

    def __init__(
        self,
        E: int,
        classes: int,
        *,
        masks: bool,
        queries: int,
        score_threshold: float,
        detections: int,
        things: Sequence[int] | None,
        sure: float,
        overlap: float,
    ) -> None:
        super().__init__()
        self.things = None if things is None else tuple(things)
        countable = range(classes) if masks and things is None else self.things or ()
        own = [] if queries else [k for k in range(classes) if k not in countable]
        self.own = len(own)  # the first queries: each of one class
        queries = self.own + (queries or (QUERIES if countable else 0))
        self.sure, self.overlap = sure, overlap
        self.instances, self.classes = masks, classes
        self.score_threshold, self.detections = score_threshold, detections
        self.queries = nn.Parameter(torch.empty(queries, E))
        nn.init.normal_(self.queries)
        self.classify = nn.Linear(E, classes + 1)  # the last one: nothing
        self.embed = nn.Sequential(nn.Linear(E, E), nn.GELU(), nn.Linear(E, E), nn.GELU(), nn.Linear(E, E))
        self.upscale = nn.Sequential(upscaled(E), upscaled(E))
        self.weights: Tensor
        weights = torch.ones(classes + 1)
        weights[-1] = NOTHING
        self.register_buffer("weights", weights, persistent=False)
        self.query_of: Tensor  # of each class: the query of its own, or -1
        query_of = torch.full((classes,), -1)
        query_of[own] = torch.arange(self.own)
        self.register_buffer("query_of", query_of, persistent=False)

    def balance(self, counts: Sequence[int], power: float = 1.0) -> None:
        """RequestError: its losses are of whole masks, however large, and so know no rare pixels."""
        raise RequestError(
            "Query masks count a class once in a picture, however few its pixels, and take no class_weights: leave "
            "them out, or take another head."
        )

    def told(self, outcomes: list[tuple[Tensor, Tensor]], features: Features, targets: Any) -> Any:
        """outcomes: logits [B, M, K+1] and mask logits [B, M, h, w] of each prediction.

        Segmentations: scores [B, K, H, W] of the last, or with targets [B, H, W] losses. Instances: predictions, or
        with targets losses, both as `RCNN` has them. Losses are weighted, of all predictions together.
        """
        if targets is None:
            logits, masks = outcomes[-1]
            return (
                self._instances(logits, masks, features) if self.instances else self._segments(logits, masks, features)
            )
        wanted = self._wanted(targets, outcomes[0][1].shape[-2:])
        losses: dict[str, Tensor] = {}
        for logits, masks in outcomes:
            for name, loss in self._losses(logits, masks, wanted).items():
                losses[name] = losses.get(name, 0.0) + loss
        return losses

    def predicted(self, queries: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """queries [B, M, E] and patches [B, E, h, w], both normalised -> logits [B, M, K+1] and mask logits
        [B, M, 4 h, 4 w]: the product of what three layers make of a query with the patches, upscaled."""
        masks = torch.einsum("bme,behw->bmhw", self.embed(queries), self.upscale(patches))
        return widen(self.classify(queries)), widen(masks)

    # Training

    def _wanted(self, targets: Any, size: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each picture the labels [n], the share of each cell that belongs to each object [n, h, w], and the share
        of each cell that counts [h, w]."""
        found = []
        for target in targets:
            if self.instances:
                labels, masks = self._whole(target["labels"], target["masks"].float())
                counts = torch.ones_like(masks[0]) if len(masks) else target["masks"].new_ones(size).float()
            else:
                there = target.unique()
                labels = there[there != IGNORED].long()
                masks = (target == labels[:, None, None]).float()
                counts = (target != IGNORED).float()
            objects, free = int((self.query_of[labels] < 0).sum()), len(self.queries) - self.own
            if objects > free:
                raise RequestError(
                    f"A picture has {objects} objects, but there are {free} queries, each of which finds one: give the "
                    f"head queries={2 * objects}."
                )
            masks, counts = (F.adaptive_avg_pool2d(each[None], size)[0] for each in (masks, counts[None]))
            found.append((labels, masks, counts[0]))
        return found

    def _whole(self, labels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The same, where what there is of a class that has a query of its own is one mask."""
        if self.own:
            countable = self.query_of[labels] < 0
            there = labels[~countable].unique()
            of_each = [masks[labels == label].amax(0) for label in there]
            labels = torch.cat([there, labels[countable]])
            masks = torch.cat([torch.stack(of_each) if of_each else masks[:0], masks[countable]])
        return labels, masks

    def _losses(self, logits: Tensor, masks: Tensor, wanted: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
        """Of one prediction: every object is given the query of its class or the one that suits it best; all others
        are to say nothing."""
        number = max(sum(len(labels) for labels, _, _ in wanted), 1)
        goals = torch.full(logits.shape[:2], self.classes, device=logits.device)
        mask_loss, dice_loss = masks.sum() * 0.0, masks.sum() * 0.0
        for b, (labels, truth, counts) in enumerate(wanted):
            if not len(labels):
                continue
            flat, true = (masks[b].flatten(1), truth.flatten(1))
            rows, columns = self._pairs(logits[b], flat, labels, true, counts.flatten())
            goals[b, rows] = labels[columns]
            mask_loss = mask_loss + cross_entropy(flat[rows], true[columns], counts.flatten()).sum()
            dice_loss = dice_loss + dice(flat[rows], true[columns], counts.flatten()).sum()
        return {
            "class": COSTS["class"] * F.cross_entropy(logits.mT, goals, self.weights.to(logits.dtype)),
            "mask": COSTS["mask"] * mask_loss / number,
            "dice": COSTS["dice"] * dice_loss / number,
        }

    def _pairs(
        self, logits: Tensor, masks: Tensor, labels: Tensor, truth: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and objects that belong together, as `match` has them, of all queries."""
        own = self.query_of[labels]
        fixed, free = (own >= 0).nonzero()[:, 0], (own < 0).nonzero()[:, 0]
        rows, columns = match(logits[self.own :], masks[self.own :], labels[free], truth[free], counts)
        return torch.cat([own[fixed], self.own + rows]), torch.cat([fixed, free[columns]])

    # Predictions

    def _segments(self, logits: Tensor, masks: Tensor, features: Features) -> Tensor:
        """The classes' chances of each query, weighted by its mask, summed over queries: [B, K, H, W]."""
        scores = torch.einsum("bmk,bmhw->bkhw", logits.softmax(-1)[..., :-1], masks.sigmoid())
        return resize(scores, features.size)

    def _instances(self, logits: Tensor, masks: Tensor, features: Features) -> list[Record]:
        """Of each picture the pairs of query and class of the highest score: the class's chance times the mean chance
        of the pixels in the mask; or its segments."""
        one = self._picture if self.things is None else self._panoptic
        return [
            one(chances, own, features.size, size)
            for chances, own, size in zip(logits.softmax(-1)[..., :-1], masks, features.inside, strict=True)
        ]

    def _picture(self, chances: Tensor, masks: Tensor, size: tuple[int, int], own: tuple[int, int]) -> Record:
        scores, index = chances.flatten().topk(min(self.detections, chances.numel()))
        queries, labels = index // self.classes, index % self.classes
        surest = scores > self.score_threshold
        if not torch.compiler.is_compiling():  # a graph leaves them out at the end: it does not know how many there are
            scores, queries, labels, surest = scores[surest], queries[surest], labels[surest], surest[surest]
        whole = resize(masks[queries][None], size)[0] if len(queries) else masks.new_zeros(0, *size)
        pixels = whole[:, : own[0], : own[1]].sigmoid()
        inside = pixels > 0.5
        scores = scores * (pixels * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        there = inside.any(2).any(1) & surest
        scores, order = scores[there].sort(descending=True)
        pixels, inside, labels = (each[there][order] for each in (pixels, inside, labels))
        boxes = boxes_of(inside)
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": pixels[:, None]}

    def _panoptic(self, chances: Tensor, masks: Tensor, size: tuple[int, int], own: tuple[int, int]) -> Record:
        """Segments of one picture, none of which shares a pixel with another: each pixel goes to the query of the
        highest chance of its class and of the pixel; what keeps too little of its mask is left out, and stuff of one
        class is one segment (Mask2Former's merging)."""
        scores, labels = chances.max(-1)
        surest = scores > self.sure
        scores, labels, masks = scores[surest], labels[surest], masks[surest]
        whole = resize(masks[None], size)[0] if len(masks) else masks.new_zeros(0, *size)
        pixels = whole[:, : own[0], : own[1]].sigmoid()
        winner = (scores[:, None, None] * pixels).argmax(0) if len(masks) else pixels.new_zeros(own)
        found: dict[int, tuple[float, int, Tensor]] = {}  # of stuff by its label, of things by a number of their own
        for k, (score, label) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
            wanted = pixels[k] >= 0.5
            inside = wanted & (winner == k)
            if not inside.any() or inside.sum() < self.overlap * wanted.sum():
                continue
            is_thing = label in (self.things or ())
            key = len(chances[0]) + k if is_thing else label
            before = found.get(key, (0.0, label, torch.zeros_like(inside)))
            found[key] = (max(score, before[0]), label, before[2] | inside)
        order = sorted(found.values(), key=lambda each: -each[0])
        whole = torch.stack([inside for _, _, inside in order]) if order else masks.new_zeros(0, *own, dtype=torch.bool)
        boxes = boxes_of(whole) if order else masks.new_zeros(0, 4)
        return {
            "boxes": boxes,
            "labels": labels.new_tensor([label for _, label, _ in order]),
            "scores": scores.new_tensor([score for score, _, _ in order]),
            "masks": whole[:, None].float(),
        }


def boxes_of(masks: Tensor) -> Tensor:
    """Around masks bool [n, h, w], none empty, to the far edges of their pixels: [n, 4] xyxy."""
    sides = []
    for along in (masks.any(1), masks.any(2)):
        places = torch.arange(along.shape[1], device=masks.device)
        sides.append(torch.where(along, places, along.shape[1]).amin(1))
        sides.append(torch.where(along, places + 1, 0).amax(1))
    left, right, top, bottom = sides
    return torch.stack([left, top, right, bottom], 1).float()


def kept_from(masks: Tensor, grid: tuple[int, int], share: float) -> Tensor:
    """Which patches a query is not to see, bool [B, M, h w]: by chance, in this share of all cases, those that its mask
    [B, M, H, W] so far does not cover. A query whose mask is empty sees all."""
    hidden = resize(masks.detach(), grid).flatten(2) <= 0
    hidden &= ~hidden.all(-1, keepdim=True)
    return hidden & (torch.rand(*hidden.shape[:2], 1, device=masks.device) < share)


def upscaled(E: int) -> nn.Sequential:
    """A map twice as large: transposed convolution, GELU, depth-wise 3x3, LayerNorm over channels."""
    return nn.Sequential(
        nn.ConvTranspose2d(E, E, 2, stride=2),
        nn.GELU(),
        nn.Conv2d(E, E, 3, padding=1, groups=E, bias=False),
        LayerNorm2d(E),
    )


@torch.no_grad()
def match(logits: Tensor, masks: Tensor, labels: Tensor, truth: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and objects that belong together, int64 [n] each, at the least sum of costs (Kuhn 1955).

    logits [M, K+1], masks [M, P] of P cells, labels [n], truth [n, P], counts [P].
    """
    cost = -COSTS["class"] * logits.softmax(-1)[:, labels]
    cost = cost + COSTS["mask"] * pairwise_cross_entropy(masks, truth, counts)
    cost = cost + COSTS["dice"] * pairwise_dice(masks, truth, counts)
    rows, columns = linear_sum_assignment(cost.float().nan_to_num(1e4, 1e4, -1e4).cpu().numpy())
    return (torch.as_tensor(each, device=logits.device) for each in (rows, columns))  # type: ignore[return-value]


def pairwise_cross_entropy(masks: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Mean over the cells that count, [M, P], [n, P] -> [M, n]."""
    where, where_not = F.softplus(-masks) * counts, F.softplus(masks) * counts
    return (where @ truth.mT + where_not @ (1 - truth).mT) / counts.sum().clamp(min=1)


def pairwise_dice(masks: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """1 less twice the common part over the sum of both, with 1 added to each (Milletari et al. 2016): [M, n]."""
    chances = masks.sigmoid() * counts
    both, sum_of_both = chances @ truth.mT, chances.sum(-1)[:, None] + (truth * counts).sum(-1)
    return 1 - (2 * both + 1) / (sum_of_both + 1)


def cross_entropy(masks: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Of pairs, [n, P] each: the mean over the cells that count, [n]."""
    loss = F.binary_cross_entropy_with_logits(masks, truth, reduction="none")
    return (loss * counts).sum(-1) / counts.sum().clamp(min=1)


def dice(masks: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Of pairs, [n, P] each: [n]."""
    chances, truth = masks.sigmoid() * counts, truth * counts
    return 1 - (2 * (chances * truth).sum(-1) + 1) / (chances.sum(-1) + truth.sum(-1) + 1)
