"""Non-maximum suppression: of boxes that lie upon each other, the one with the best score is kept."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["nms", "nms_per_class"]

# Boxes compared with each other at once: all pairs of so many are made faster than one looks at them one by one.
_BLOCK = 512


def nms(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], threshold: float) -> Int[Tensor, " k"]:
    """Boxes that no better box overlaps, best first.

    From the best score to the worst, a box is kept unless its IoU with one that was kept is above the threshold (Girshick et
    al. 2014, R-CNN, section 2.2). Of equal scores the first comes first. A box without area overlaps nothing.

    Args:
        boxes: xyxy, in any unit.
        scores: of each.
        threshold: from 0 to 1; an IoU of exactly so much is allowed.

    Returns:
        The places of those that are kept.
    """
    order = scores.argsort(descending=True, stable=True)
    left, kept = boxes[order], []
    while len(order):
        block = left[:_BLOCK]
        good = _kept_of(_overlap(block, block, threshold))
        kept.append(order[:_BLOCK][good])
        rest = ~_overlap(block[good], left[_BLOCK:], threshold).any(0)
        order, left = order[_BLOCK:][rest], left[_BLOCK:][rest]
    return torch.cat(kept) if kept else order


def nms_per_class(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], classes: Int[Tensor, " n"], threshold: float
) -> Int[Tensor, " k"]:
    """Boxes that no better box of the same class overlaps, best first; see `nms`.

    Boxes are compared where they are. A widespread trick moves each class to a place of its own and suppresses all at once,
    which rounds the corners of small boxes: at a threshold, the answer may be another.

    Args:
        boxes: xyxy, in any unit.
        scores: of each.
        classes: of each; any whole numbers, of levels of a pyramid as well.
        threshold: from 0 to 1.

    Returns:
        The places of those that are kept.
    """
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes, sorted_classes = boxes[order], classes[order]
    if len(order) <= _BLOCK:
        over = _overlap(sorted_boxes, sorted_boxes, threshold) & (sorted_classes[:, None] == sorted_classes[None])
        return order[_kept_of(over)]
    good = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    falling = scores[order]
    for one in sorted_classes.unique():
        places = (sorted_classes == one).nonzero()[:, 0]
        good[places[nms(sorted_boxes[places], falling[places], threshold)]] = True
    return order[good]


def _overlap(one: Float[Tensor, "n 4"], other: Float[Tensor, "m 4"], threshold: float) -> Bool[Tensor, "n m"]:
    """Which boxes overlap more than they may.

    `boxes.iou` says how much, for any boxes; here there are millions of pairs, and numbers side by side in memory are
    compared eight times as fast as corners.
    """
    left, top, right, bottom = one.t().contiguous()[:, :, None]
    low, up, high, down = other.t().contiguous()[:, None]
    width = torch.minimum(right, high).sub_(torch.maximum(left, low)).clamp_(min=0)
    height = torch.minimum(bottom, down).sub_(torch.maximum(top, up)).clamp_(min=0)
    shared = width.mul_(height)
    union = ((right - left) * (bottom - top) + (high - low) * (down - up)).sub_(shared)
    return shared.div_(union) > threshold  # 0 / 0 is above nothing


def _kept_of(over: Bool[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """Which of boxes, best first, are kept, from which of them overlap too much.

    A box is kept if none before it that is kept overlaps it. Said of all boxes at once and repeated, this is true of the
    first box after one step, of the first two after two, and so of all as soon as a step changes nothing.
    """
    before = over.triu(1).float()
    kept = before.new_ones(len(over))
    while True:
        now = (kept @ before == 0).float()
        if torch.equal(now, kept):
            return kept > 0
        kept = now
