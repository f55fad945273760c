"""Which query is to become which object: the matching that makes a set of queries comparable with a set of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vitral.base.boxes import Objects, cxcywh_to_xyxy, paired_generalized_iou
from vitral.base.numbers import real_number
from vitral.errors import TrainingError, UsageError

__all__ = ["Costs", "Paired", "Pairs", "cheapest", "check_labels", "check_targets", "match", "paired"]

Pairs = list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]
"""For each picture: queries, in ascending order, and which object each of them is to become."""


class Paired(NamedTuple):
    """The queries of a batch that are to become objects, in the order of pictures and then of queries, and these objects.

    No query stands here twice, so that the gradient of what is picked out of a tensor is put back without adding up, and is
    the same in every run.

    Attributes:
        pictures: which picture of the batch each query is of.
        rows: which of the picture's queries it is.
        objects: which object it is to become, counted through the whole batch.
        labels: this object's class.
        boxes: this object's box, cxcywh in [0, 1] of the picture.
    """

    pictures: Int[Tensor, " k"]
    rows: Int[Tensor, " k"]
    objects: Int[Tensor, " k"]
    labels: Int[Tensor, " k"]
    boxes: Float[Tensor, "k 4"]


_LEAST = 1e-8  # of a probability, for its logarithm; as published


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What it costs to make a query an object: three ways in which they differ, weighted.

    Attributes:
        classes: the weight of the class. Of "softmax" scores the cost is −p(class) (Carion et al. 2020, DETR, equation 1);
            of "sigmoid" scores what the focal loss would fall by (Zhu et al. 2021, Deformable DETR, as published in code).
        l1: the weight of the boxes' distance, the sum over cxcywh in [0, 1].
        giou: the weight of minus their generalized IoU.
        alpha: of the focal cost: the share of what is an object.
        gamma: of the focal cost: how much less counts what is right already.

    Raises:
        UsageError: a weight below 0, or none above.
    """

    classes: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        for name in ("classes", "l1", "giou", "alpha", "gamma"):
            if real_number(f"{name} of Costs", getattr(self, name)) < 0:
                raise UsageError(f"{name} of Costs must be at least 0; {getattr(self, name)!r} came.")
        if self.alpha > 1:
            raise UsageError(f"alpha of Costs must be from 0 to 1; {self.alpha!r} came.")
        if self.classes == self.l1 == self.giou == 0:
            raise UsageError("All weights of Costs are 0, so any query would do for any object. Give at least one.")


@torch.no_grad()
def match(
    logits: Float[Tensor, "b q c"],
    boxes: Float[Tensor, "b q 4"],
    targets: Sequence[Objects],
    costs: Costs,
    scoring: Literal["softmax", "sigmoid"],
) -> Pairs:
    """The cheapest assignment of queries to the objects of each picture (Kuhn 1955; Carion et al. 2020, DETR, section 3.1).

    Every object gets exactly one query, and no query gets two objects; the other queries get none. No other such assignment
    is cheaper. Nothing is learned through it: it has no gradient.

    Args:
        logits: of every query.
        boxes: of every query, cxcywh in [0, 1] of each picture.
        targets: the objects of each picture; there may be none.
        costs: what counts how much.
        scoring: how logits become scores, as a `SetOutput` says.

    Returns:
        For each picture, on the device of the logits: queries in ascending order, and the object of each.

    Raises:
        TrainingError: a picture with more objects than there are queries, an object of a class that the logits do not know,
            or a cost that is not finite: the network, or the objects' boxes, hold NaN or infinity.
        UsageError: objects came for another number of pictures.
    """
    pictures, queries, columns = logits.shape
    check_targets(targets, pictures, queries, columns - (scoring == "softmax"))
    counts = [len(objects.labels) for objects in targets]
    labels = pad_sequence([objects.labels for objects in targets], batch_first=True)
    wanted = pad_sequence([objects.boxes.float() for objects in targets], batch_first=True)
    # One copy for the whole batch: on a GPU every one of them waits for all that went before.
    tables = _table(logits.float(), boxes.float(), labels, wanted, costs, scoring).cpu()
    finite = tables.isfinite().all(1)
    pairs: Pairs = []
    for place, count in enumerate(counts):
        if not bool(finite[place, :count].all()):
            raise TrainingError(_not_finite(place, logits[place], boxes[place]))
        pairs.append(cheapest(tables[place, :, :count], logits.device))
    return pairs


def cheapest(table: Float[Tensor, "q k"], device: torch.device) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """The cheapest way to give every object a query of its own (Kuhn 1955).

    Args:
        table: what each query would cost as each object, finite and on the CPU; at least as many queries as objects.
        device: where the answer is to lie.

    Returns:
        Queries in ascending order, and the object of each.
    """
    rows, chosen = linear_sum_assignment(table.numpy())
    return torch.from_numpy(rows).to(device), torch.from_numpy(chosen).to(device)


def paired(pairs: Pairs, targets: Sequence[Objects]) -> Paired:
    """Pairs picture by picture as pairs of the batch."""
    counts = [len(one.labels) for one in targets]
    starts = [sum(counts[:place]) for place in range(len(counts))]
    return Paired(
        pictures=torch.cat([torch.full_like(rows, place) for place, (rows, _) in enumerate(pairs)]),
        rows=torch.cat([rows for rows, _ in pairs]),
        objects=torch.cat([chosen + start for start, (_, chosen) in zip(starts, pairs, strict=True)]),
        labels=torch.cat([one.labels[chosen] for one, (_, chosen) in zip(targets, pairs, strict=True)]),
        boxes=torch.cat([one.boxes[chosen] for one, (_, chosen) in zip(targets, pairs, strict=True)]),
    )


def check_targets(targets: Sequence[Objects], pictures: int, queries: int, classes: int) -> None:
    """Refuse objects that the queries of a batch cannot all become.

    Args:
        targets: the objects of each picture.
        pictures: of the batch.
        queries: of the model.
        classes: of the model, without nothing.

    Raises:
        UsageError: objects came for another number of pictures.
        TrainingError: a picture with more objects than there are queries, or an object of a class that the model does not
            have.
    """
    if len(targets) != pictures:
        raise UsageError(f"The objects of {len(targets)} pictures came for a batch of {pictures}.")
    for place, objects in enumerate(targets):
        if len(objects.labels) > queries:
            raise TrainingError(
                f"Picture {place} of the batch shows {len(objects.labels)} objects, but the model has {queries} queries, "
                "and each can be one object. Take a model of more queries, or pictures of fewer objects."
            )
    check_labels(targets, classes)


def check_labels(targets: Sequence[Objects], classes: int) -> None:
    """Refuse objects of classes that a model does not have.

    Raises:
        TrainingError: naming the first of them.
    """
    labels = torch.cat([objects.labels for objects in targets])
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise TrainingError(
            f"An object is of class {int(wrong[0])}, but the model knows {classes} classes, from 0 to {classes - 1}."
        )


def _table(
    logits: Float[Tensor, "b q c"],
    boxes: Float[Tensor, "b q 4"],
    labels: Int[Tensor, "b k"],
    wanted: Float[Tensor, "b k 4"],
    costs: Costs,
    scoring: Literal["softmax", "sigmoid"],
) -> Float[Tensor, "b q k"]:
    """What every query would cost as every object of its picture; behind the last object of a picture, anything."""
    by_label = labels[:, None].expand(-1, logits.shape[1], -1)
    if scoring == "softmax":
        by_class = -logits.softmax(-1).gather(2, by_label)
    else:
        found = logits.gather(2, by_label).sigmoid()
        as_nothing = (1 - costs.alpha) * found**costs.gamma * -(1 - found + _LEAST).log()
        as_object = costs.alpha * (1 - found) ** costs.gamma * -(found + _LEAST).log()
        by_class = as_object - as_nothing
    by_distance = torch.cdist(boxes, wanted, p=1)
    by_overlap = -paired_generalized_iou(cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(wanted)[:, None])
    return costs.classes * by_class + costs.l1 * by_distance + costs.giou * by_overlap


def _not_finite(place: int, logits: Tensor, boxes: Tensor) -> str:
    """Why a cost is not finite."""
    wrong = [name for name, one in (("logits", logits), ("boxes", boxes)) if not torch.isfinite(one).all()]
    if not wrong:
        return f"The boxes of the objects in picture {place} of the batch are not finite numbers. Check the annotations."
    return (
        f"The model's {' and '.join(wrong)} for picture {place} of the batch are not finite numbers (NaN or infinity), so "
        "nothing can be matched. Lower the learning rate, clip the gradient, or compute in float32."
    )
