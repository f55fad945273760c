"""What a network of queries is trained to make small: wrong classes and wrong boxes of queries matched with objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitral.base.boxes import Objects, area_of, cxcywh_to_xyxy, intersection, paired_generalized_iou
from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.errors import UsageError
from vitral.models.output import Denoised, Predicted, SetOutput
from vitral.tasks.detection.matching import Costs, Paired, Pairs, check_labels, match, paired

__all__ = ["DEFORMABLE_LOSS", "DETR_LOSS", "RTDETR_LOSS", "ClassLoss", "SetLoss", "box_errors", "class_entropy"]

ClassLoss = Literal["cross_entropy", "focal", "varifocal"]
"""Whether the classes and nothing compete for one probability, or each class is a question of its own; and then, whether
the answer is yes, or how well the box fits."""


class _Share(NamedTuple):
    """What of a whole batch these losses belong to.

    Attributes:
        objects: of the whole batch.
        pictures: of the whole batch; None where this is all of it.
    """

    objects: float
    pictures: int | None


@dataclass(frozen=True, kw_only=True)
class SetLoss:
    """The loss of a set of queries against a set of objects (Carion et al. 2020, DETR, section 3.1 and equation 2).

    Queries and objects are matched (see `matching.match`); then, of what is matched, the distance of the boxes and their
    generalized IoU, and of all queries the class:

    - "cross_entropy": over the classes and nothing; what is to be nothing counts by `nothing` (DETR).
    - "focal": every class on its own, easy ones counting less (Lin et al. 2017, equation 5; Zhu et al. 2021, Deformable
      DETR).
    - "varifocal": likewise, and what is to be an object is to say how well its box fits, its IoU (Zhang et al. 2021,
      VarifocalNet, equation 2, as Zhao et al. 2024, RT-DETR, use it: what is nothing counts by alpha · p^gamma).

    Earlier layers and the encoder's proposals are matched for themselves and learn the same. Proposals with one column only
    learn that there is an object. Noisy objects know which object they come from (Li et al. 2022, DN-DETR, section 4).

    Attributes:
        classes: the loss of the classes.
        class_weight: its weight.
        l1_weight: the weight of the distance of boxes, the sum over cxcywh in [0, 1].
        giou_weight: the weight of 1 − the generalized IoU.
        costs: what matching rests on.
        nothing: of "cross_entropy": how much a query counts that is to become nothing.
        alpha: of "focal": the share of what is an object, against 1 − alpha. Of "varifocal": of what is nothing.
        gamma: of "focal" and "varifocal": how much less counts what is right already.

    Raises:
        UnknownNameError: a choice that is none.
        UsageError: a number out of its range.
    """

    classes: ClassLoss = "cross_entropy"
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    costs: Costs = field(default_factory=Costs)
    nothing: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("class_weight", "l1_weight", "giou_weight", "nothing", "alpha", "gamma"):
            if real_number(name, getattr(self, name)) < 0:
                raise UsageError(f"{name} must be at least 0; {getattr(self, name)!r} came.")
        if self.alpha > 1:
            raise UsageError(f"alpha must be from 0 to 1; {self.alpha!r} came.")

    def __call__(
        self, output: SetOutput, targets: Sequence[Objects], normaliser: float, pictures: int | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Every term of the loss, weighted, and as "total" their sum.

        Args:
            output: the model's.
            targets: the objects of each of its pictures.
            normaliser: how many objects the whole batch has, those of other pieces and processes included; at least 1 is
                taken. Of a batch in several processes whose gradients are averaged: their mean.
            pictures: how many pictures this batch has, where `output` is a piece of it (likewise their mean over
                processes). The losses of all pieces then add up to the loss of the batch. Of "cross_entropy" this is what
                it is divided by; the others ask only for objects.

        Returns:
            "total"; "class", "l1" and "giou" of the last layer; and those of "auxiliary.0", …, "proposals" and
            "denoising.0", …, as in "auxiliary.0.class".

        Raises:
            TrainingError: see `matching.match`.
            UsageError: the loss does not fit how the model scores, or numbers out of their range.
        """
        wanted = "softmax" if self.classes == "cross_entropy" else "sigmoid"
        if output.scoring != wanted:
            raise UsageError(
                f"The class loss {self.classes!r} is for {wanted} scores, but the model's are {output.scoring}."
            )
        if real_number("normaliser", normaliser) < 0:
            raise UsageError(f"normaliser must be at least 0; {normaliser!r} came.")
        share = _Share(float(normaliser), None if pictures is None else whole_number("pictures", pictures))
        layers = {"": Predicted(output.logits, output.boxes)}
        layers |= {f"auxiliary.{place}.": layer for place, layer in enumerate(output.auxiliary)}
        terms: dict[str, Tensor] = {}
        for name, layer in layers.items():
            terms |= self._matched(name, layer, targets, share)
        if output.proposals is not None:
            known = targets
            if output.proposals.logits.shape[-1] == 1:
                known = [one._replace(labels=torch.zeros_like(one.labels)) for one in targets]
            terms |= self._matched("proposals.", output.proposals, known, share)
        if output.denoising is not None:
            terms |= self._denoised(output.denoising, targets, share)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def _matched(
        self, name: str, layer: Predicted, targets: Sequence[Objects], share: _Share
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of one layer, its queries matched with the objects."""
        layer = _precise(layer)
        scoring: Any = "softmax" if self.classes == "cross_entropy" else "sigmoid"
        pairs = match(layer.logits.detach(), layer.boxes.detach(), targets, self.costs, scoring)
        return self._terms(name, layer, paired(pairs, targets), share)

    def _denoised(self, denoised: Denoised, targets: Sequence[Objects], share: _Share) -> dict[str, Float[Tensor, ""]]:
        """The terms of noisy objects, of every layer. Which object each of them is, is known; each was shown `groups` times.

        Raises:
            UsageError: the same query is to become two objects, or an object is named that is none of the picture's.
        """
        pairs: Pairs = []
        for place, (rows, objects) in enumerate(zip(denoised.rows, denoised.objects, strict=True)):
            order = rows.argsort()
            rows, objects = rows[order], objects[order]
            if len(rows) and (bool((rows.diff() <= 0).any()) or int(objects.max()) >= len(targets[place].labels)):
                raise UsageError(
                    f"The noisy queries of picture {place} of the batch do not fit its {len(targets[place].labels)} objects."
                )
            pairs.append((rows, objects))
        terms: dict[str, Tensor] = {}
        shown = share._replace(objects=max(share.objects, 1.0) * denoised.groups)
        for number, layer in enumerate(map(_precise, denoised.layers)):
            check_labels(targets, layer.logits.shape[-1] - (self.classes == "cross_entropy"))
            terms |= self._terms(f"denoising.{number}.", layer, paired(pairs, targets), shown)
        return terms

    def _terms(self, name: str, layer: Predicted, chosen: Paired, share: _Share) -> dict[str, Float[Tensor, ""]]:
        """Class, distance and overlap of one layer, weighted."""
        number = max(share.objects, 1.0)
        boxes = layer.boxes[chosen.pictures, chosen.rows]
        if self.classes == "cross_entropy":
            objects, pictures = (len(chosen.rows), None) if share.pictures is None else share
            by_class = class_entropy(layer.logits, chosen, self.nothing, objects, pictures)
        elif self.classes == "focal":
            by_class = self._focal(layer.logits, chosen) / number
        else:
            fit = _fit(cxcywh_to_xyxy(boxes.detach()), cxcywh_to_xyxy(chosen.boxes))
            by_class = self._varifocal(layer.logits, chosen, fit) / number
        distance, overlap = box_errors(boxes, chosen.boxes)
        return {
            f"{name}class": self.class_weight * by_class,
            f"{name}l1": self.l1_weight * distance / number,
            f"{name}giou": self.giou_weight * overlap / number,
        }

    def _focal(self, logits: Float[Tensor, "b q c"], chosen: Paired) -> Float[Tensor, ""]:
        """Lin et al. 2017, equation 5, the sum over queries and classes."""
        wanted = torch.zeros_like(logits)
        wanted[chosen.pictures, chosen.rows, chosen.labels] = 1.0
        found = logits.sigmoid()
        wrong = found + wanted - 2 * found * wanted
        balance = 1 - self.alpha + (2 * self.alpha - 1) * wanted
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (balance * wrong**self.gamma * entropy).sum()

    def _varifocal(self, logits: Float[Tensor, "b q c"], chosen: Paired, fit: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        """Zhang et al. 2021, equation 2, the sum over queries and classes; the weights are not learned through."""
        wanted = torch.zeros_like(logits)
        wanted[chosen.pictures, chosen.rows, chosen.labels] = fit
        weights = self.alpha * logits.detach().sigmoid() ** self.gamma
        weights[chosen.pictures, chosen.rows, chosen.labels] = fit
        return F.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="sum")


def class_entropy(
    logits: Float[Tensor, "b q c"], chosen: Paired, nothing: float, objects: float, pictures: float | None = None
) -> Float[Tensor, ""]:
    """The weighted mean of the cross-entropy over the queries of a whole batch (Carion et al. 2020, DETR, section 3.1).

    Args:
        logits: of the classes and, behind them, nothing.
        chosen: the queries that are to become objects; all others are to become nothing.
        nothing: how much a query counts that is to become nothing.
        objects: of the whole batch.
        pictures: of the whole batch, where `logits` are of a piece of it; None where they are all.
    """
    count, queries, columns = logits.shape
    classes = chosen.labels.new_full((count, queries), columns - 1)
    classes[chosen.pictures, chosen.rows] = chosen.labels
    weights = logits.new_ones(columns)
    weights[-1] = nothing
    # Flat: the form for maps of pixels adds up in another order in every run on a GPU.
    summed = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights, reduction="sum")
    weight = objects + nothing * ((count if pictures is None else pictures) * queries - objects)
    return summed / weight if weight > 0 else summed


def box_errors(boxes: Float[Tensor, "k 4"], wanted: Float[Tensor, "k 4"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The sums over pairs of boxes cxcywh of their distance, all four numbers added up, and of 1 − their generalized IoU."""
    overlap = paired_generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
    return (boxes - wanted).abs().sum(), (1 - overlap).sum()


def _precise(layer: Predicted) -> Predicted:
    """At least single precision: half of it cannot add up thousands of queries."""
    return Predicted(*(one.to(torch.promote_types(one.dtype, torch.float32)) for one in layer))


def _fit(one: Float[Tensor, "k 4"], other: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    """Intersection over union, pair by pair; 0 for two empty boxes."""
    shared = intersection(one, other)
    union = area_of(one) + area_of(other) - shared
    return torch.where(union > 0, shared / union.where(union > 0, 1.0), 0.0)


DETR_LOSS = SetLoss()
"""Carion et al. 2020, DETR, appendix A.4; YOLOS (Fang et al. 2021) learns by it too."""

DEFORMABLE_LOSS = SetLoss(classes="focal", class_weight=2.0, costs=Costs(classes=2.0))
"""Zhu et al. 2021, Deformable DETR, section 5; the class weighs 2 in the matching too, as in the published code."""

RTDETR_LOSS = SetLoss(classes="varifocal", costs=Costs(classes=2.0), alpha=0.75)
"""Zhao et al. 2024, RT-DETR, and its published code; RT-DETRv2 learns by it too."""
