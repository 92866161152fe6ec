"""Segmentations of single objects, as COCO has them: polygons and run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np


def fault_of(segmentation: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a COCO segmentation in a picture of `size` (h, w), in a sentence; None where all is well."""
    h, w = size
    if isinstance(segmentation, dict):
        given = segmentation.get("size")
        if not isinstance(given, list) or given != [h, w]:
            return (
                f"its run lengths are for a size of {given} (h, w), but the picture has {[h, w]}; correct or remove it"
            )
        runs = _runs(segmentation.get("counts"))
        if runs is None or (runs < 0).any() or runs.sum() != h * w:
            covered = "no lengths" if runs is None else f"{runs.sum()} pixels"
            return f"its run lengths hold {covered}, but the picture has {h * w} pixels; correct or remove it"
        return None
    if not isinstance(segmentation, list) or not segmentation:
        return "it has no segmentation, which instance masks need; add one, remove it, or fit with --task detect"
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and all(type(n) in (int, float) for n in polygon)
        if not numbers or len(polygon) % 2 or len(polygon) < 6:
            points = f"{len(polygon) / 2:g} points" if numbers else "something else than points"
            return f"a polygon of it has {points}, but needs x, y of 3 or more; correct or remove it"
        # Far points would make the rasteriser take all memory.
        for name, values, extent in (("x", polygon[::2], w), ("y", polygon[1::2], h)):
            if far := [n for n in values if not -extent <= n <= 2 * extent]:
                return (
                    f"a polygon of it has a point at {name} {far[0]:g}, far from its picture of {w} x {h}; correct it"
                )
    return None


def _runs(counts: Any) -> np.ndarray | None:
    """Run lengths int64 [r], from a list or from COCO's text; None where they are neither.

    In the text a number has 5 bits per character (+ 48), the lowest first; 32 says that more follow, 16 in the last
    one that it is negative; from the fourth number on it is the difference to the one two before.
    """
    if isinstance(counts, list) and all(type(n) is int and abs(n) < 1 << 40 for n in counts):  # no picture has more
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str | bytes):
        return None
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    code = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    last = code & 32 == 0
    if not len(code) or code.min() < 0 or code.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.r_[0, ends[:-1] + 1]
    lengths = ends - starts + 1
    if lengths.max() > 8:  # no picture has 2 ** 40 pixels
        return None
    place = np.arange(len(code)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((code & 31) << 5 * place, starts)
    runs -= (code[ends] & 16 > 0) * (1 << 5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def sample(segmentation: Any, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The pixels of an object's mask at these rows and columns of its picture: bool [len(rows), len(columns)].

    `columns` ascend. No mask of the picture's own `size` (h, w) is made: large ones with many objects fit in memory.
    """
    h, w = size
    if isinstance(segmentation, list):
        from faster_coco_eval import mask

        segmentation = mask.segmToRle(segmentation, w, h)
    ends = _runs(segmentation["counts"]).cumsum()  # type: ignore[union-attr]
    found = np.zeros((len(columns), len(rows)), dtype=bool)
    if len(ends) > 1:
        first, last = ends[0] // h, (ends[len(ends) // 2 * 2 - 1] - 1) // h  # columns that hold the mask
        inside = slice(*columns.searchsorted([first, last + 1]))
        found[inside] = ends.searchsorted(columns[inside, None] * h + rows, side="right") & 1
    return found.T


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], as COCO's compressed run lengths, ready for JSON."""
    from faster_coco_eval import mask as run_lengths

    found = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode("ascii")}
