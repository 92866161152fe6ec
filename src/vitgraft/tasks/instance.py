"""Instance segmentation: detection with a mask for every object."""

from __future__ import annotations

from .detect import Detect


class Instance(Detect):
    """COCO's average precision of masks; that of boxes is measured too."""

    metric = "mask AP"
    masks = True
