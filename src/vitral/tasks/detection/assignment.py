"""What dense detectors are trained to make small, once it is settled which place is to become which object.

Detectors of queries find out by matching one to one; here, rules say it: the overlap of anchors and regions with objects
(Ren et al. 2015, Faster R-CNN, section 3.1.2), or where a point lies in an object, and how large that is (Tian et al. 2019,
FCOS, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.boxes import Objects, area_of, cxcywh_to_xyxy, iou, paired_generalized_iou
from vitral.errors import TrainingError
from vitral.models.detection.anchors import (
    BETWEEN,
    NOTHING,
    corrected,
    correction,
    edge_distances,
    matched,
    sampled,
    within_edges,
)
from vitral.models.detection.faster_rcnn import OVERLAP
from vitral.models.output import DenseOutput, RegionOutput
from vitral.tasks.detection.matching import check_labels

__all__ = ["assign_anchors", "assign_points", "dense_loss", "focal_loss"]

_PROPOSING = (0.7, 0.3)  # Ren et al. 2015, section 3.1.2: an anchor holds an object from here on, and nothing below
_DETECTING = (0.5, 0.4)  # Lin et al. 2017, RetinaNet, section 4.1
_DRAWN, _DRAWN_SHARE = 256, 0.5  # anchors of a picture in a step of training (Ren et al. 2015, section 3.1.3)
_ROUND = 1 / 9  # where the distance of offsets begins to count linearly, of both looks of Faster R-CNN
_RADIUS = 1.5  # a point holds an object only within so many strides of its middle (Tian et al. 2020, section 3.2)
_NEAREST, _FARTHEST = 4, 8  # how many strides away the farthest edge of a map's objects is (Tian et al. 2019, section 3.2)


def assign_anchors(
    boxes: Float[Tensor, "k 4"], anchors: Float[Tensor, "n 4"], *, proposing: bool = False
) -> Int[Tensor, " n"]:
    """Which object each anchor is to become: the one it overlaps most, if enough; and for every object, the best anchors.

    Args:
        boxes: of the objects, xyxy in pixels.
        anchors: likewise.
        proposing: by the rule of a first look (from 0.7, nothing below 0.3), and not by RetinaNet's (from 0.5, below 0.4).

    Returns:
        The object's number, `NOTHING`, or `BETWEEN` for those that learn nothing.
    """
    above, below = _PROPOSING if proposing else _DETECTING
    return matched(iou(boxes, anchors), above=above, below=below, best_at_least=True)


def assign_points(boxes: Float[Tensor, "k 4"], anchors: Float[Tensor, "n 4"], counts: Sequence[int]) -> Int[Tensor, " n"]:
    """Which object each point is to become: the smallest of those it lies in, near the middle, and whose size suits its map.

    Tian et al. 2019, FCOS, section 3.2, with the sampling of middles of Tian et al. 2020, https://arxiv.org/abs/2006.09214.

    Args:
        boxes: of the objects, xyxy in pixels.
        anchors: squares around the points, a stride wide, xyxy in pixels.
        counts: how many of them each map has, the finest first.

    Returns:
        The object's number, or `NOTHING`.
    """
    if not len(boxes):
        return torch.full((len(anchors),), NOTHING, device=anchors.device)
    sides = anchors[:, 2] - anchors[:, 0]
    points, middles = (anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    central = (points[:, None] - middles).abs().amax(-1) < _RADIUS * sides[:, None]
    distances = edge_distances(boxes, anchors[:, None])
    least, most = sides * _NEAREST, sides * _FARTHEST
    least[: counts[0]] = 0
    most[len(anchors) - counts[-1] :] = torch.inf
    farthest = distances.amax(-1)
    fits = central & (distances.amin(-1) > 0) & (farthest > least[:, None]) & (farthest < most[:, None])
    areas, objects = torch.where(fits, area_of(boxes), torch.inf).min(1)
    return objects.where(areas < torch.inf, NOTHING)


def dense_loss(
    output: DenseOutput | RegionOutput, targets: Sequence[Objects], generator: torch.Generator | None = None
) -> dict[str, Float[Tensor, ""]]:
    """Every term of the loss, and as "total" their sum.

    Args:
        output: the model's; of a Faster R-CNN, one that was shown the targets.
        targets: the objects of each picture.
        generator: where chance comes from, of the CPU, for the anchors a first look learns from; None for PyTorch's own.

    Returns:
        Of RetinaNet "class" and "box"; of FCOS "class", "box" and "centerness"; of Faster R-CNN "class" and "box" of the
        second look, "objectness" and "proposal" of the first; and "total".

    Raises:
        TrainingError: targets for another number of pictures, a class that the model does not have, or a box that is not
            finite.
    """
    classes = output.logits.shape[2] - isinstance(output, RegionOutput)
    _check(targets, len(output.logits), classes)
    boxes = [_in_pixels(one, size) for one, size in zip(targets, output.sizes, strict=True)]
    labels = [one.labels for one in targets]
    if isinstance(output, RegionOutput):
        terms = _region_loss(output, boxes, labels) | _proposal_loss(output.proposing, boxes, generator)
    elif output.coding == "edges":
        terms = _point_loss(output, boxes, labels)
    else:
        terms = _anchor_loss(output, boxes, labels)
    return {"total": torch.stack(list(terms.values())).sum(), **terms}


def focal_loss(
    logits: Float[Tensor, "*n"], wanted: Float[Tensor, "*n"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Cross-entropy in which what is right already counts little, summed up (Lin et al. 2017, RetinaNet, equation 5).

    Args:
        logits: of each class on its own.
        wanted: 1 where the class is there, 0 where not.
        alpha: the share of what is there, against 1 − alpha.
        gamma: how much less counts what is right.
    """
    found = logits.sigmoid()
    wrong = found + wanted - 2 * found * wanted
    balance = 1 - alpha + (2 * alpha - 1) * wanted
    return (balance * wrong**gamma * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()


def _anchor_loss(
    output: DenseOutput, boxes: Sequence[Float[Tensor, "_ 4"]], labels: Sequence[Int[Tensor, " _"]]
) -> dict[str, Float[Tensor, ""]]:
    """RetinaNet's: each picture's sums over its anchors that hold an object; the mean of pictures (section 4.1)."""
    by_class, by_box = [], []
    for place, (wanted_boxes, wanted_labels) in enumerate(zip(boxes, labels, strict=True)):
        held = assign_anchors(wanted_boxes, output.anchors)
        holding = (held >= 0).nonzero()[:, 0]
        objects, count = held[holding], max(1, len(holding))
        logits, offsets = output.logits[place].float(), output.offsets[place][holding].float()
        wanted = torch.zeros_like(logits)
        wanted[holding, wanted_labels[objects]] = 1.0
        clear = held != BETWEEN
        by_class.append(focal_loss(logits[clear], wanted[clear]) / count)
        anchors, target = output.anchors[holding], wanted_boxes[objects]
        if output.taught == "l1":
            by_box.append((offsets - correction(target, anchors)).abs().sum() / count)
        else:
            by_box.append((1 - paired_generalized_iou(corrected(offsets, anchors), target)).sum() / count)
    return {"class": torch.stack(by_class).mean(), "box": torch.stack(by_box).mean()}


def _point_loss(
    output: DenseOutput, boxes: Sequence[Float[Tensor, "_ 4"]], labels: Sequence[Int[Tensor, " _"]]
) -> dict[str, Float[Tensor, ""]]:
    """FCOS's: sums over the points of the batch that hold an object (Tian et al. 2019, equation 2)."""
    held = torch.stack([assign_points(one, output.anchors, output.counts) for one in boxes])
    pictures, rows = (held >= 0).nonzero(as_tuple=True)
    count = max(1, len(rows))
    starts = torch.tensor([0, *(len(one) for one in boxes)], device=held.device).cumsum(0)
    objects = held[pictures, rows] + starts[pictures]
    target, anchors = torch.cat(list(boxes))[objects], output.anchors[rows]
    logits = output.logits.float()
    wanted = torch.zeros_like(logits)
    wanted[pictures, rows, torch.cat(list(labels))[objects]] = 1.0
    found = within_edges(output.offsets[pictures, rows].float(), anchors)
    distances = edge_distances(target, anchors)
    across, down = distances[:, 0::2], distances[:, 1::2]
    middle = (across.amin(1) / across.amax(1) * down.amin(1) / down.amax(1)).sqrt()  # equation 3
    terms = {
        "class": focal_loss(logits, wanted) / count,
        "box": (1 - paired_generalized_iou(found, target)).sum() / count,
    }
    if output.centerness is not None:
        said = output.centerness[pictures, rows].float()
        terms["centerness"] = F.binary_cross_entropy_with_logits(said, middle, reduction="sum") / count
    return terms


def _proposal_loss(
    output: DenseOutput, boxes: Sequence[Float[Tensor, "_ 4"]], generator: torch.Generator | None
) -> dict[str, Float[Tensor, ""]]:
    """That of a first look, over anchors drawn by chance from the whole batch (Ren et al. 2015, equation 1)."""
    logits, offsets, wanted, target = [], [], [], []
    for place, wanted_boxes in enumerate(boxes):
        held = assign_anchors(wanted_boxes, output.anchors, proposing=True)
        holding, empty = sampled(held, count=_DRAWN, share=_DRAWN_SHARE, generator=generator)
        logits += [output.logits[place, holding, 0], output.logits[place, empty, 0]]
        wanted += [torch.ones_like(logits[-2]), torch.zeros_like(logits[-1])]
        offsets.append(output.offsets[place, holding])
        target.append(correction(wanted_boxes[held[holding]], output.anchors[holding]))
    said = torch.cat(logits).float()
    distance = F.smooth_l1_loss(torch.cat(offsets).float(), torch.cat(target), beta=_ROUND, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(said, torch.cat(wanted).float(), reduction="sum")
    return {"objectness": entropy / max(1, len(said)), "proposal": distance / max(1, len(said))}


def _region_loss(
    output: RegionOutput, boxes: Sequence[Float[Tensor, "_ 4"]], labels: Sequence[Int[Tensor, " _"]]
) -> dict[str, Float[Tensor, ""]]:
    """That of a second look, over all regions of the batch (Girshick 2015, Fast R-CNN, equation 1)."""
    nothing = output.logits.shape[2] - 1
    classes, offsets, target = [], [], []
    for place, (wanted_boxes, wanted_labels) in enumerate(zip(boxes, labels, strict=True)):
        valid = output.valid[place]
        regions = output.regions[place][valid]
        held = matched(iou(wanted_boxes, regions), above=OVERLAP, below=OVERLAP, best_at_least=False)
        holding = (held >= 0).nonzero()[:, 0]
        objects = held[holding]
        of = held.new_full((len(held),), nothing)
        of[holding] = wanted_labels[objects]
        classes.append(of)
        offsets.append(output.offsets[place][valid][holding, of[holding]])
        target.append(correction(wanted_boxes[objects], regions[holding], output.weights))
    logits, count = output.logits[output.valid].float(), max(1, int(output.valid.sum()))
    distance = F.smooth_l1_loss(torch.cat(offsets).float(), torch.cat(target), beta=_ROUND, reduction="sum")
    entropy = F.cross_entropy(logits, torch.cat(classes), reduction="sum")
    return {"class": entropy / count, "box": distance / count}


def _in_pixels(objects: Objects, size: Float[Tensor, " 2"]) -> Float[Tensor, "k 4"]:
    """The boxes of objects, xyxy in pixels of the input."""
    return cxcywh_to_xyxy(objects.boxes.float()) * size.flip(0).repeat(2)


def _check(targets: Sequence[Objects], pictures: int, classes: int) -> None:
    """Refuse targets that do not fit the output."""
    if len(targets) != pictures:
        raise TrainingError(f"There are objects for {len(targets)} pictures, but the model answered for {pictures}.")
    check_labels(targets, classes)
    for place, one in enumerate(targets):
        if not torch.isfinite(one.boxes).all():
            raise TrainingError(f"Picture {place} of the batch has boxes that are not finite numbers.")
