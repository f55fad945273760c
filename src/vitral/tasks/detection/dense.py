"""From what a dense detector says of thousands of places to the few objects that it found.

Most places say nothing; those that say something say it with their neighbours. So what is unsure is dropped, of the rest the
best of each map are turned into boxes, and of boxes that lie upon each other the best one of a class is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.boxes import clipped, xyxy_to_cxcywh
from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.base.suppression import nms_per_class
from vitral.errors import UsageError
from vitral.models.detection.anchors import corrected, within_edges
from vitral.models.output import DenseOutput, RegionOutput

__all__ = ["DenseOptions", "Found", "read_dense", "usual_options"]

_SMALLEST = 1e-2  # sides, in pixels, of the box of a region


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """How places become objects. None stands for what the network's authors chose; see `usual_options`.

    Attributes:
        threshold: a place counts for a class where its score is above this, from 0 to 1.
        overlap: of two boxes of a class with an IoU above this, from 0 to 1, the better one is kept.
        top_k: how many objects to keep at most, the best ones.
        candidates: how many pairs of a place and a class to take from each map at most, the best ones; regions are not
            limited.

    Raises:
        UsageError: a number out of its range.
    """

    threshold: float | None = None
    overlap: float | None = None
    top_k: int | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("threshold", "overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= real_number(name, value) <= 1:
                raise UsageError(f"{name} must be from 0 to 1; {value!r} came.")
        for name in ("top_k", "candidates"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name))


class Found(NamedTuple):
    """The objects of a picture, best first.

    Attributes:
        scores: how sure the network is of each, from 0 to 1.
        labels: the class of each.
        boxes: cxcywh in [0, 1] of the picture without what fills it up, and within it.
        rows: which row of the output each was read from.
    """

    scores: Float[Tensor, " k"]
    labels: Int[Tensor, " k"]
    boxes: Float[Tensor, "k 4"]
    rows: Int[Tensor, " k"]


class _Chosen(NamedTuple):
    """Options of which none is left open."""

    threshold: float
    overlap: float
    top_k: int
    candidates: int


_AS_USUAL = DenseOptions()
_OF_REGIONS = DenseOptions(threshold=0.05, overlap=0.5, top_k=100, candidates=1000)  # Faster R-CNN
_OF_ANCHORS = DenseOptions(threshold=0.05, overlap=0.5, top_k=300, candidates=1000)  # RetinaNet
_OF_POINTS = DenseOptions(threshold=0.2, overlap=0.6, top_k=100, candidates=1000)  # FCOS


def usual_options(output: DenseOutput | RegionOutput) -> DenseOptions:
    """How such an output is read by the code that the published weights are evaluated with."""
    if isinstance(output, RegionOutput):
        return _OF_REGIONS
    return _OF_ANCHORS if output.centerness is None else _OF_POINTS


def read_dense(output: DenseOutput | RegionOutput, options: DenseOptions = _AS_USUAL) -> list[Found]:
    """The objects of every picture.

    Args:
        output: the model's.
        options: how places become objects.

    Raises:
        UsageError: the model's numbers are not finite.
    """
    numbers = [output.logits, output.offsets]
    if isinstance(output, RegionOutput):  # a first look that says nothing proposes nothing, and there would be no second
        numbers += [output.proposing.logits, output.proposing.offsets]
    elif output.centerness is not None:
        numbers.append(output.centerness)
    if not all(torch.isfinite(one).all() for one in numbers):
        raise UsageError("The model's logits or offsets are not finite numbers (NaN or infinity). Try dtype='float32'.")
    told = {name: value for name, value in vars(options).items() if value is not None}
    chosen = _Chosen(**{**vars(usual_options(output)), **told})
    found = []
    for place, size in enumerate(output.sizes):
        read = _of_regions if isinstance(output, RegionOutput) else _of_places
        scores, labels, boxes, rows = read(output, place, chosen)  # type: ignore[arg-type]
        height, width = size.tolist()
        boxes = clipped(boxes, (height, width))
        if isinstance(output, RegionOutput):
            large = ((boxes[:, 2:] - boxes[:, :2]) >= _SMALLEST).all(1)
            scores, labels, boxes, rows = scores[large], labels[large], boxes[large], rows[large]
        kept = nms_per_class(boxes, scores, labels, chosen.overlap)[: chosen.top_k]
        relative = xyxy_to_cxcywh(boxes[kept]) / boxes.new_tensor([width, height, width, height])
        found.append(Found(scores[kept], labels[kept], relative, rows[kept]))
    return found


def _of_regions(
    output: RegionOutput, place: int, options: _Chosen
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, "k 4"], Int[Tensor, " k"]]:
    """Scores, classes, boxes xyxy in pixels and rows of one picture's regions: each may be an object of several classes."""
    valid = output.valid[place]
    scores = output.logits[place][valid].float().softmax(-1)[:, :-1]
    rows, labels = (scores > options.threshold).nonzero(as_tuple=True)
    offsets = output.offsets[place][valid][rows, labels].float()
    boxes = corrected(offsets, output.regions[place][valid][rows], output.weights)
    return scores[rows, labels], labels, boxes, valid.nonzero()[rows, 0]


def _of_places(
    output: DenseOutput, place: int, options: _Chosen
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, "k 4"], Int[Tensor, " k"]]:
    """Scores, classes, boxes xyxy in pixels and rows of one picture's best places, map by map."""
    logits, classes, start = output.logits[place], output.logits.shape[2], 0
    found: list[tuple[Tensor, Tensor]] = []
    # What the class alone rules out (with centerness, by the square of the threshold) is passed over uncomputed: nearly all.
    least = _logit(options.threshold if output.centerness is None else options.threshold**2)
    for count in output.counts:
        level = logits[start : start + count].flatten()
        sure = (level > least).nonzero()[:, 0]
        pairs = level[sure].float().sigmoid()
        if output.centerness is not None:
            pairs = (pairs * output.centerness[place, start + sure // classes].float().sigmoid()).sqrt()
        above = pairs > options.threshold
        sure, pairs = sure[above], pairs[above]
        best, chosen = pairs.topk(min(options.candidates, len(sure)))
        found.append((best, sure[chosen] + start * classes))
        start += count
    scores, pairs = (torch.cat(parts) for parts in zip(*found, strict=True))
    rows, labels = pairs // classes, pairs % classes
    made = corrected if output.coding == "corrections" else within_edges
    return scores, labels, made(output.offsets[place][rows].float(), output.anchors[rows]), rows


def _logit(score: float) -> float:
    """The logit of a score, or a little less, so that rounding passes nothing over."""
    return math.log(score / (1 - score)) - 0.05 if 0 < score < 1 else -math.inf if score <= 0 else math.inf
