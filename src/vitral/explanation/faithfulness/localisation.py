"""Whether heat lies on the thing: pointing game, energy, segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Shaped

from vitral.base.numbers import all_finite, real_number
from vitral.errors import UsageError
from vitral.explanation.result import Explanation

__all__ = ["SegmentationScores", "average_precision", "energy_inside", "pointing_game", "segmentation_scores"]


@dataclass(frozen=True)
class SegmentationScores:
    """Heat as a segmentation of a picture.

    Attributes:
        pixel_accuracy: share of the pixels on the right side of the threshold.
        miou: mean of the intersections over unions of foreground and background.
        average_precision: see `segmentation_scores`.
    """

    pixel_accuracy: float
    miou: float
    average_precision: float


def pointing_game(
    explanation: Explanation,
    *,
    mask: Bool[np.ndarray, "y x"] | None = None,
    boxes: Shaped[np.ndarray, "n 4"] | None = None,
    tolerance: float = 15.0,
) -> bool:
    """Whether the hottest point lies on the thing (Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop",
    section 4, "The pointing game").

    Args:
        explanation: heat to be judged.
        mask: which pixels of the picture show the thing, or
        boxes: where it is, (x0, y0, x1, y1) in pixels of the picture.
        tolerance: how far beside it still counts, in pixels of the picture; they take 15.

    Raises:
        UsageError: neither or both of mask and boxes, or such as do not fit the picture.
    """
    _check_truth(explanation, mask, boxes)
    if not real_number("tolerance", tolerance) >= 0:
        raise UsageError(f"tolerance must be at least 0 pixels; {tolerance!r} came.")
    if boxes is None:
        rows, columns = np.nonzero(cast(np.ndarray, mask))
        boxes = np.stack([columns, rows, columns + 1, rows + 1], axis=1)
    point = np.array(explanation.peak)
    beside = np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0)
    return bool((np.hypot(*beside.T) <= tolerance).any())


def energy_inside(
    explanation: Explanation,
    *,
    mask: Bool[np.ndarray, "y x"] | None = None,
    boxes: Shaped[np.ndarray, "n 4"] | None = None,
) -> float:
    """The share of heat that lies on the thing (Wang et al. 2020, "Score-CAM", section 4.3, energy-based pointing game).

    Of signed heat the positive part counts; heat that only ranks is counted from its least, as in their code, which
    brings it to [0, 1] first. Only what the model saw of the picture counts. Heat that is flat has no energy anywhere: 0.0.

    Args:
        explanation: heat to be judged.
        mask: which pixels of the picture show the thing, or
        boxes: where it is, (x0, y0, x1, y1) in pixels of the picture: a pixel is inside if its centre is.

    Raises:
        UsageError: neither or both of mask and boxes, such as do not fit the picture, or a thing the model did not see.
    """
    _check_truth(explanation, mask, boxes)
    heat, seen = explanation.on_picture().astype(np.float64), _seen(explanation)
    inside = (_inside(boxes, explanation.size) if boxes is not None else cast(np.ndarray, mask))[seen]
    _check_seen(explanation, inside)
    heat = np.maximum(heat[seen], 0) if explanation.signed else heat[seen] - heat[seen].min()
    return float(heat[inside].sum() / heat.sum()) if heat.sum() > 0 else 0.0


def segmentation_scores(explanation: Explanation, mask: Bool[np.ndarray, "y x"]) -> SegmentationScores:
    """Heat as a segmentation (Chefer et al. 2021, CVPR, section 4, "Segmentation tests").

    Heat is brought to [0, 1], and what is above its mean is foreground. As in the authors' code (baselines/ViT/
    imagenet_seg_eval.py and utils/metrices.py), average precision is of both classes' pixels in one list, heat for the
    foreground and one minus heat for the background: chance is one half, whatever the thing's size. Unlike theirs, these
    are scores of one picture (their accuracy and mIoU add up the pixels of all pictures first), at the picture's own
    size, of the part of it that the model saw.

    Args:
        explanation: heat to be judged.
        mask: which pixels of the picture show the thing.

    Raises:
        UsageError: a mask that does not fit the picture, or a thing that the model did not see.
    """
    _check_truth(explanation, mask, None)
    seen = _seen(explanation)
    heat, truth = explanation.on_picture()[seen].astype(np.float64), mask[seen]
    _check_seen(explanation, truth)
    heat = heat - heat.min()  # before the mean is taken, so that flat heat has no foreground by rounding
    found = heat > heat.mean()
    heat = heat / (heat.max() or 1.0)
    overlaps = [(side & true).sum() / (side | true).sum() for side, true in ((found, truth), (~found, ~truth))]
    both = average_precision(np.concatenate([heat, 1 - heat]), np.concatenate([truth, ~truth]))
    return SegmentationScores(float((found == truth).mean()), float(np.mean(overlaps)), both)


def average_precision(scores: Shaped[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """The mean of the precisions at every true item, each threshold taking in all items of equal score.

    Raises:
        UsageError: no item is true, or scores that are not finite.
    """
    all_finite("scores", scores)
    if not truth.any():
        raise UsageError("Average precision needs at least one true item.")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    return float((hits[last] / (last + 1) * np.diff(hits[last], prepend=0)).sum() / hits[-1])


def _check_truth(
    explanation: Explanation, mask: Shaped[np.ndarray, "y x"] | None, boxes: Shaped[np.ndarray, "n 4"] | None
) -> None:
    """Refuse heat, masks and boxes that cannot be held against each other."""
    height, width = explanation.size
    if (mask is None) == (boxes is None):
        raise UsageError("Where the thing is must be given once: as mask=… or as boxes=….")
    if mask is not None and mask.dtype != bool:
        raise UsageError(f"A mask is boolean; one of {mask.dtype} came. Pass a comparison such as mask > 0.")
    if mask is not None and (mask.shape != (height, width) or not mask.any()):
        said = "is empty" if mask.shape == (height, width) else f"is of {mask.shape[0]} × {mask.shape[1]} pixels"
        raise UsageError(f"The mask {said}; the picture {explanation.name} is of {height} × {width} pixels.")
    if boxes is not None:
        for x0, y0, x1, y1 in boxes.tolist():
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise UsageError(
                    f"The box {(x0, y0, x1, y1)} does not lie in the picture {explanation.name} of {height} × {width} "
                    "pixels (height × width). Boxes are (x0, y0, x1, y1) in pixels of the original picture."
                )


def _check_seen(explanation: Explanation, inside: Bool[np.ndarray, " n"]) -> None:
    if not inside.any():
        raise UsageError(f"The model saw nothing of the thing in {explanation.name}: preprocessing cuts it off.")


def _seen(explanation: Explanation) -> Bool[np.ndarray, "y x"]:
    """Which pixels of the picture any number of the heat covers."""
    ones = np.ones(explanation.heat.shape)
    return explanation.geometry.frame.map_to_picture(ones, explanation.cell, outside=0.0) > 0.5


def _inside(boxes: Shaped[np.ndarray, "n 4"], size: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """The pixels of a picture whose centres lie in any of some boxes."""
    y, x = (np.arange(side) + 0.5 for side in size)
    inside = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in boxes.tolist():
        inside |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return inside
