"""Known objects, shown to a decoder with noise for it to learn to take the noise away.

Matching predictions to objects is a lottery while a detector knows little: the same query is given another object at
every step. Queries that are made of an object, spoiled a little, have their answer from the start (Li et al. 2022, DN-DETR,
https://arxiv.org/abs/2203.01305). Beside each such query stands another one that is spoiled so much that it is to become
nothing, which teaches the decoder not to find an object twice (Zhang et al. 2023, DINO, https://arxiv.org/abs/2203.03605,
section 3.3, "contrastive denoising").

The queries of a picture, for M objects at most in a picture of the batch and G groups:

    group 1: M near their objects, M far from them | group 2: the same | … | group G | the ordinary queries
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitral.base.boxes import Objects, cxcywh_to_xyxy, xyxy_to_cxcywh
from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.models.network import check_ranges

__all__ = ["Noise", "NoisyObjects", "noisy_objects", "visibility"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much objects are spoiled.

    Attributes:
        queries: how many queries there are at most, near and far each; one group is made even if it is larger. 0: none.
        labels: twice the probability that an object is given a random class.
        boxes: how far an edge moves, in units of half the box's side: by less than this where the query is to become the
            object, by more, and less than twice as much, where it is to become nothing (λ1 and λ2 = 2 λ1 of DINO).
    """

    queries: int = 100
    labels: float = 0.5
    boxes: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, {"queries": (0, 1_000_000), "labels": (0.0, 2.0), "boxes": (0.0, 1.0)})


class NoisyObjects(NamedTuple):
    """Queries made of known objects.

    Attributes:
        labels: their classes; where a picture has fewer objects than another one, the number of classes itself.
        boxes: their places, cxcywh in [0, 1].
        rows: which of them are to become objects, for each picture.
        objects: for each of these, which of the picture's objects.
        groups: how often each object is shown.
    """

    labels: Int[Tensor, "b n"]
    boxes: Float[Tensor, "b n 4"]
    rows: tuple[Int[Tensor, " _"], ...]
    objects: tuple[Int[Tensor, " _"], ...]
    groups: int


def noisy_objects(targets: Sequence[Objects], num_classes: int, noise: Noise) -> NoisyObjects | None:
    """Show the objects of a batch with noise; None where there are none to be shown.

    Chance is PyTorch's, of the objects' device.

    Args:
        targets: what there is in each picture.
        num_classes: classes of objects; a random class is one of them.
        noise: how much.

    Raises:
        UsageError: a label that is no class.
    """
    counts = [len(one.labels) for one in targets]
    most = max(counts, default=0)
    if most == 0 or noise.queries <= 0:
        return None
    low, high = (int(side) for side in torch.cat([one.labels for one in targets]).aminmax())
    if low < 0 or high >= num_classes:
        raise UsageError(f"Labels of objects are from 0 to {num_classes - 1}; {low if low < 0 else high} came.")
    groups = max(1, noise.queries // most)
    labels = targets[0].labels.new_full((len(targets), most), num_classes)
    boxes = targets[0].boxes.new_zeros(len(targets), most, 4)
    for place, one in enumerate(targets):
        labels[place, : counts[place]] = one.labels
        boxes[place, : counts[place]] = one.boxes
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    far = torch.arange(2, device=boxes.device).repeat_interleave(most).repeat(groups)
    known = [torch.arange(count, device=boxes.device) for count in counts]
    first = 2 * most * torch.arange(groups, device=boxes.device)
    return NoisyObjects(
        labels=_spoiled_labels(labels, num_classes, noise.labels),
        boxes=_spoiled_boxes(boxes, far, noise.boxes),
        rows=tuple((first[:, None] + own).flatten() for own in known),
        objects=tuple(own.repeat(groups) for own in known),
        groups=groups,
    )


def _spoiled_labels(labels: Int[Tensor, "b n"], num_classes: int, noise: float) -> Int[Tensor, "b n"]:
    if noise <= 0:
        return labels
    chosen = torch.rand(labels.shape, device=labels.device) < noise / 2
    others = torch.randint(num_classes, labels.shape, device=labels.device, dtype=labels.dtype)
    return torch.where(chosen & (labels < num_classes), others, labels)


def _spoiled_boxes(boxes: Float[Tensor, "b n 4"], far: Int[Tensor, " n"], noise: float) -> Float[Tensor, "b n 4"]:
    """Every edge moved inwards or outwards; what leaves the picture is cut off, and where edges crossed nothing is left."""
    if noise <= 0:
        return boxes
    reach = (boxes[..., 2:] / 2).repeat(1, 1, 2) * noise
    signs = torch.randint(2, boxes.shape, device=boxes.device).to(boxes.dtype) * 2 - 1
    steps = torch.rand(boxes.shape, device=boxes.device, dtype=boxes.dtype) + far[:, None]
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + signs * steps * reach).clamp(0, 1)).clamp(min=0)


def visibility(noisy: int, groups: int, ordinary: int, device: torch.device) -> Bool[Tensor, "n n"]:
    """Which queries (rows) may see which: a group itself and the ordinary ones, these only each other.

    The ordinary queries must not learn what there is from those that were told, nor one group from another.

    Args:
        noisy: queries made of known objects.
        groups: in how many groups.
        ordinary: queries behind them.
        device: where to.
    """
    group = torch.arange(noisy, device=device) // max(1, noisy // max(1, groups))
    group = torch.cat([group, group.new_full((ordinary,), -1)])
    return (group[:, None] == group[None]) | (group[None] == -1)
