"""Cascade and Cascade Mask R-CNN (Cai & Vasconcelos 2018; 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from ..common.errors import RequestError
from ..features import Features
from ..kernels.batchnorm import BatchNorm
from .detect import ANCHORS, Proposals, Record, predictions, roi_heads, with_background

# Of each stage: the overlap (IoU) that makes a box an object's, the box coder's weights, the weight of its losses.
STAGES = (
    (0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    (0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    (0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)
GIOU_WEIGHT = 10.0  # a GIoU loss is far smaller than the smooth-L1 of weighted offsets


class CascadeRCNN(nn.Module):
    """Cascade R-CNN; with masks Cascade Mask R-CNN. Three box heads, each on the boxes that the one before has refined.

    Each box head has four 3x3 convolutions with BatchNorm and one linear layer, and regresses every class by itself, as
    in the configurations of ViT-Adapter (Chen et al. 2023); HST's published number of parameters says it has the same.
    Boxes are sampled once, before the first stage; the later ones assign the same boxes, refined, by their own overlap.
    Scores are the mean of the three stages'.

    box_loss: "giou" (Rezatofighi et al. 2019) or "smooth-l1"; mask_every_stage: a mask head for each stage, whose masks
    are averaged, as that number also says, instead of one, trained on the first stage's boxes because most objects are
    found there. Other options as `RCNN`.

    Parameters, n = width, h = hidden: FPN, RPN and each mask head as `RCNN`; each of the three box heads
    4 (9 n^2 + 2 n) + 49 n h + h + 5 (K + 1) (h + 1).
    """

    levels: ClassVar[int] = 4
    published: ClassVar[dict[str, int]] = {"width": 256, "hidden": 1024}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"box_loss": ("giou", "smooth-l1")}

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        masks: bool = False,
        mask_every_stage: bool = True,
        box_loss: str = "giou",
        width: int = 96,
        hidden: int = 256,
        anchors: Sequence[int] = ANCHORS,
        proposals: int = 1000,
        samples: int = 512,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if box_loss not in (words := self.choices["box_loss"]):
            raise RequestError(f"The box_loss cannot be {box_loss!r}: there is {', '.join(words)}; choose one of them.")
        self.box_loss = box_loss
        self.proposals = Proposals(channels, width, anchors, proposals)
        self.stages = nn.ModuleList(
            roi_heads(
                FastRCNNConvFCHead((width, 7, 7), [width] * 4, [hidden], norm_layer=BatchNorm),
                (hidden, classes),
                mask_width=width if masks and (i == 0 or mask_every_stage) else 0,
                samples=samples,
                keep=(score_threshold, overlap, detections),
                iou=iou,
                weights=weights,
            )
            for i, (iou, weights, _) in enumerate(STAGES)
        )

    def forward(self, features: Features, targets: list[Record] | None = None) -> list[Record] | Record:
        """Predictions, or with targets a dict of losses, each already weighted; both as `RCNN` has them."""
        targets = with_background(targets)
        maps, boxes, losses = self.proposals(features, targets)
        if targets is None:
            return predictions(self._detect(maps, boxes, features.inside), features.inside)
        return {**losses, **self._losses(maps, boxes, features.inside, targets)}

    def _losses(self, maps: Record, boxes: list[Tensor], sizes: list[tuple[int, int]], targets: list[Record]) -> Record:
        stages: list[RoIHeads] = list(self.stages)
        boxes, matched, labels, _ = stages[0].select_training_samples(boxes, targets)
        true_boxes = [target["boxes"].to(boxes[0]) for target in targets]
        losses: Record = {}
        for i, (stage, (_, _, weight)) in enumerate(zip(stages, STAGES, strict=True), start=1):
            if i > 1:
                matched, labels = stage.assign_targets_to_proposals(boxes, true_boxes, [t["labels"] for t in targets])
            logits, deltas = box_outputs(stage, maps, boxes, sizes)
            found = {
                "classifier": F.cross_entropy(logits, torch.cat(labels)),
                "box_reg": self._box_loss(stage, deltas, boxes, labels, matched, true_boxes),
            }
            if stage.has_mask():
                found["mask"] = mask_loss(stage, maps, boxes, sizes, labels, matched, targets)
            losses |= {f"loss_{name}_{i}": weight * loss for name, loss in found.items()}
            boxes = refine(stage, logits, deltas, boxes, sizes, torch.cat(labels))
        return losses

    def _box_loss(
        self,
        stage: RoIHeads,
        deltas: Tensor,
        boxes: list[Tensor],
        labels: list[Tensor],
        matched: list[Tensor],
        true_boxes: list[Tensor],
    ) -> Tensor:
        """Of the boxes that are an object's, each by its class's regression, over the number of all boxes."""
        start = torch.cat([b[of > 0] for b, of in zip(boxes, labels, strict=True)])
        goal = torch.cat([t[m[of > 0]] for t, m, of in zip(true_boxes, matched, labels, strict=True)])
        given = torch.cat(labels)
        deltas = of_class(deltas, given)[given > 0]
        if self.box_loss == "giou":
            moved = stage.box_coder.decode_single(deltas, start)
            loss = GIOU_WEIGHT * generalized_box_iou_loss(moved, goal, reduction="sum")
        else:
            loss = F.smooth_l1_loss(deltas, stage.box_coder.encode_single(goal, start), reduction="sum")
        return loss / len(given)

    def _detect(self, maps: Record, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> list[Record]:
        stages: list[RoIHeads] = list(self.stages)
        *earlier, last = stages
        scores = []
        for stage in earlier:
            logits, deltas = box_outputs(stage, maps, boxes, sizes)
            scores.append(logits.softmax(1))
            boxes = refine(stage, logits, deltas, boxes, sizes)
        logits, deltas = box_outputs(last, maps, boxes, sizes)
        mean = torch.stack([*scores, logits.softmax(1)]).mean(0)
        # It takes the softmax of what it is given, which for the logarithm of probabilities is these.
        placed, chances, labels = last.postprocess_detections(mean.log(), deltas, boxes, sizes)
        records = [{"boxes": b, "labels": of, "scores": p} for b, of, p in zip(placed, labels, chances, strict=True)]
        if masking := [stage for stage in stages if stage.has_mask()]:
            logits_of = [mask_logits(stage, maps, placed, sizes) for stage in masking]
            masks = [maskrcnn_inference(logits, labels) for logits in logits_of]
            for record, of in zip(records, zip(*masks, strict=True), strict=True):
                record["masks"] = torch.stack(of).mean(0)
        return records


def box_outputs(
    stage: RoIHeads, maps: Record, boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """A stage's class logits [n, K+1], the background first, and box offsets [n, 4 (K+1)] for boxes of all pictures."""
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(maps, boxes, sizes)))


def mask_logits(stage: RoIHeads, maps: Record, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
    """A stage's mask logits [n, K+1, 28, 28] for boxes of all pictures."""
    return stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(maps, boxes, sizes)))


def mask_loss(
    stage: RoIHeads,
    maps: Record,
    boxes: list[Tensor],
    sizes: list[tuple[int, int]],
    labels: list[Tensor],
    matched: list[Tensor],
    targets: list[Record],
) -> Tensor:
    """Binary cross entropy of the masks of the boxes that are an object's, each in its class's map; 0 without any."""
    boxes = [b[of > 0] for b, of in zip(boxes, labels, strict=True)]
    matched = [m[of > 0] for m, of in zip(matched, labels, strict=True)]
    logits = mask_logits(stage, maps, boxes, sizes)
    return maskrcnn_loss(logits, boxes, [t["masks"] for t in targets], [t["labels"] for t in targets], matched)


def of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """Box offsets [n, 4 (K+1)] of each box's own class, labels [n]: [n, 4]."""
    return deltas.unflatten(1, (-1, 4)).gather(1, labels[:, None, None].expand(-1, 1, 4)).squeeze(1)


@torch.no_grad()
def refine(
    stage: RoIHeads,
    logits: Tensor,
    deltas: Tensor,
    boxes: list[Tensor],
    sizes: list[tuple[int, int]],
    labels: Tensor | None = None,
) -> list[Tensor]:
    """Boxes moved as the stage says and clipped to their pictures, for the next one; no gradient.

    Each by its label's regression where it has one above 0, otherwise by that of the object class it scores highest.
    """
    classes = logits[:, 1:].argmax(1) + 1
    if labels is not None:
        classes = torch.where(labels > 0, labels, classes)
    moved = stage.box_coder.decode_single(of_class(deltas, classes), torch.cat(boxes))
    parts = moved.split([len(b) for b in boxes]) if len(boxes) > 1 else [moved]  # a graph does not know how many
    return [clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]
