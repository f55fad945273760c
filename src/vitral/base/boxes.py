"""Boxes: their formats, their areas, how much two of them share, and the objects they stand for.

Coordinates are continuous: pixel `i` covers [i, i + 1), and a box from 2 to 5 is three pixels wide.

- xyxy: left, top, right, bottom; results and annotations, in pixels of the picture.
- cxcywh: centre and size; models, in [0, 1] of their input.
- xywh: left, top and size; COCO's files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "Objects",
    "area_of",
    "clipped",
    "cxcywh_to_xyxy",
    "generalized_iou",
    "intersection",
    "iou",
    "paired_generalized_iou",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]


class Objects(NamedTuple):
    """What there is to be found in a picture, as a model is taught it.

    Attributes:
        labels: the class of each object.
        boxes: cxcywh in [0, 1] of the model's input, without what fills it up to the size of a batch.
        masks: the pixels of each, of the model's input, where they are known.
    """

    labels: Int[Tensor, " k"]
    boxes: Float[Tensor, "k 4"]
    masks: Bool[Tensor, "k y x"] | None = None

    def to(self, device: torch.device) -> Objects:
        """The same objects on a device."""
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Objects(self.labels.to(device, non_blocking=True), self.boxes.to(device, non_blocking=True), masks)


def cxcywh_to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Centre and size → corners, in the same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Corners → centre and size, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def xywh_to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Left top corner and size → corners, in the same unit."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_xywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Corners → left top corner and size, in the same unit."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def area_of(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """The areas of boxes xyxy, in the square of their unit."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clipped(boxes: Float[Tensor, "*n 4"], size: tuple[float, float]) -> Float[Tensor, "*n 4"]:
    """What of boxes xyxy lies within (height, width); one that lies outside becomes empty, at the edge."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def intersection(one: Float[Tensor, "*#n 4"], other: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*_"]:
    """The area that two boxes xyxy share, pair by pair; leading dimensions broadcast."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def iou(one: Float[Tensor, "n 4"], other: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Intersection over union of every box xyxy of one set with every one of the other; 0 for two empty ones."""
    # Column by column: corners of every pair would be four times as much to write.
    (left, top, right, bottom), (a, b, c, d) = one.T[..., None], other.T[:, None]
    width, height = torch.minimum(right, c) - torch.maximum(left, a), torch.minimum(bottom, d) - torch.maximum(top, b)
    shared = width.clamp(min=0) * height.clamp(min=0)
    union = area_of(one)[:, None] + area_of(other) - shared
    return torch.where(union > 0, shared / union.where(union > 0, 1.0), 0.0)


def generalized_iou(one: Float[Tensor, "n 4"], other: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Generalized intersection over union of every box xyxy with every one of the other set; see the paired form."""
    return paired_generalized_iou(one[:, None], other[None])


def paired_generalized_iou(one: Float[Tensor, "*#n 4"], other: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*_"]:
    """Generalized intersection over union, pair by pair, from -1 to 1 (Rezatofighi et al. 2019, algorithm 1).

    IoU, less the share of the smallest box around both that neither fills: boxes that do not meet still learn from it.
    Leading dimensions broadcast.
    """
    shared = intersection(one, other)
    union = area_of(one) + area_of(other) - shared
    low, high = torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])
    hull = (high - low).prod(-1)
    ratio = torch.where(union > 0, shared / union.where(union > 0, 1.0), 0.0)
    return ratio - torch.where(hull > 0, (hull - union) / hull.where(hull > 0, 1.0), 0.0)
