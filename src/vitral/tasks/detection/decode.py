"""From what a network says of a picture to the objects in it: one reading for each kind of output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.boxes import cxcywh_to_xyxy
from vitral.base.frame import Seen
from vitral.errors import UsageError
from vitral.models.output import DenseOutput, MaskOutput, RegionOutput, SetOutput
from vitral.models.record import Record
from vitral.tasks.detection.dense import DenseOptions, read_dense
from vitral.tasks.detection.result import Detections, Options

__all__ = ["READINGS", "decode", "in_picture", "read_masked", "read_places", "read_set"]

_AS_USUAL = Options()


def decode(output: Any, seen: Sequence[Seen], record: Record, options: Options = _AS_USUAL) -> list[Detections]:
    """Results of a batch.

    Args:
        output: the model's, of one of the kinds in `READINGS`.
        seen: what the model saw, one for each row of the output.
        record: the model's.
        options: how what the network says becomes an answer.

    Raises:
        UsageError: the output is of no kind that tells of objects, or holds a number that is not finite.
    """
    reading = READINGS.get(type(output))
    if reading is None:
        known = ", ".join(kind.__name__ for kind in READINGS)
        raise UsageError(f"Objects are read from a {known}; the model gave a {type(output).__name__}.")
    return reading(output, seen, record, options)


def read_set(output: SetOutput, seen: Sequence[Seen], record: Record, options: Options) -> list[Detections]:
    """The objects among the queries; see `decode`.

    "softmax": every query is at most one object, of its best class; the last logit, nothing, only takes probability away
    (Carion et al. 2020, DETR, section 3.1). "sigmoid": every query is asked for every class, and the best answers count,
    so that a query may be two objects (Zhu et al. 2021, Deformable DETR, as in the published code). Nothing is suppressed
    afterwards: a network of queries learns to find every object once.
    """
    logits, boxes = output.logits.float(), output.boxes.float()
    if not (torch.isfinite(logits).all() and torch.isfinite(boxes).all()):
        raise UsageError("The model's logits or boxes are not finite numbers (NaN or infinity). Try dtype='float32'.")
    queries = logits.shape[1]
    if output.scoring == "softmax":
        best, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, rows = best.sort(dim=1, descending=True, stable=True)
        scores, rows = scores[:, : options.top_k], rows[:, : options.top_k]
        classes = classes.gather(1, rows)
    else:
        pairs = logits.flatten(1)
        values, places = pairs.topk(min(options.top_k or queries, pairs.shape[1]), dim=1)
        scores, rows, classes = values.sigmoid(), places // logits.shape[2], places % logits.shape[2]
    corners = cxcywh_to_xyxy(boxes).gather(1, rows[..., None].expand(-1, -1, 4))
    answers = zip(seen, corners.cpu(), scores.cpu(), classes.cpu(), rows.cpu(), strict=True)
    return [
        in_picture(one, record, box, score, kind, threshold=options.threshold, rows=row)
        for one, box, score, kind, row in answers
    ]


def read_masked(output: MaskOutput, seen: Sequence[Seen], record: Record, options: Options) -> list[Detections]:
    """The objects among queries that have masks and boxes, by their boxes; see `read_set`.

    Raises:
        UsageError: the network says no boxes.
    """
    if output.boxes is None:
        raise UsageError(
            "The model draws masks and no boxes. Ask it for segmentation, which gives the box around each mask."
        )
    return read_set(SetOutput(output.logits, output.boxes, "softmax", output.queries), seen, record, options)


def read_places(
    output: DenseOutput | RegionOutput, seen: Sequence[Seen], record: Record, options: Options
) -> list[Detections]:
    """The objects among the places of a map, or among regions; see `decode` and `dense.read_dense`.

    What is not above the threshold is dropped before boxes that lie upon each other are weighed, not afterwards: only a
    better box puts one aside, so that the objects are the same.
    """
    found = read_dense(output, DenseOptions(threshold=options.threshold, top_k=options.top_k))
    return [
        in_picture(
            one,
            record,
            cxcywh_to_xyxy(objects.boxes).cpu(),
            objects.scores.cpu(),
            objects.labels.cpu(),
            threshold=options.threshold,
            rows=objects.rows.cpu(),
        )
        for one, objects in zip(seen, found, strict=True)
    ]


def in_picture(
    seen: Seen,
    record: Record,
    boxes: Float[Tensor, "k 4"],
    scores: Float[Tensor, " k"],
    classes: Int[Tensor, " k"],
    *,
    threshold: float,
    rows: Int[Tensor, " k"] | None = None,
) -> Detections:
    """What was found in a model's input as objects of the picture it was made from.

    Args:
        seen: the picture.
        record: the model's.
        boxes: xyxy in [0, 1] of the input; what lies beyond the picture is cut off.
        scores: of each.
        classes: of each.
        threshold: only scores above it count.
        rows: of the model's output, from which they were read.
    """
    kept = scores > threshold
    height, width = seen.frame.input
    pixels = seen.frame.boxes_to_picture(boxes[kept].numpy() * np.array([width, height, width, height]))
    down, across = seen.frame.picture
    inside = pixels.clip(0, [across, down, across, down]).astype(np.float32)
    indices = classes[kept].numpy()
    labels = tuple(map(record.label, indices.tolist()))
    queries = None if rows is None else rows[kept].numpy()
    return Detections(seen.name, seen.frame.picture, inside, scores[kept].numpy(), labels, indices, seen.picture, queries)


READINGS: dict[type, Callable[[Any, Sequence[Seen], Record, Options], list[Detections]]] = {
    SetOutput: read_set,
    MaskOutput: read_masked,
    DenseOutput: read_places,
    RegionOutput: read_places,
}
"""Kind of output → how objects are read from it."""
