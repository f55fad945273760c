"""What segmenters are trained to make small: wrong classes of pixels, or wrong classes and masks of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, Integer
from torch import Tensor

from vitral.base.boxes import Objects
from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.errors import UsageError
from vitral.models.output import MapOutput, MaskOutput, PredictedMasks
from vitral.tasks.detection.loss import box_errors, class_entropy
from vitral.tasks.detection.matching import Costs, Paired, match, paired
from vitral.tasks.segmentation.matching import MaskCosts, MaskError, masks_of, match_masks
from vitral.tasks.segmentation.points import Draw, random_points, sampled, sampled_masks, uncertain_points

__all__ = ["DETR_MASK_LOSS", "MASK2FORMER_LOSS", "MASKFORMER_LOSS", "LovaszOver", "MapLoss", "MaskLoss"]

LovaszOver = Literal["picture", "batch"]
"""Whether intersection over union is that of each picture, or of all pixels of a batch together."""


# -- pixels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MapLoss:
    """How wrong a map of classes is: a weighted sum of up to four losses. Pixels marked to be ignored count in none of them.

    A map coarser than the picture is first brought to its size, bilinearly (Long et al. 2015, FCN, section 3.3); then, with
    p the softmax over the classes:

    - `cross_entropy`: −log p(class), the mean over the labelled pixels.
    - `focal`: −(1 − p)^gamma · log p, likewise (Lin et al. 2017, equation 4, of classes that exclude each other).
    - `dice`: 1 − (2 · Σ p·t + 1) / (Σ p + Σ t + 1) over the labelled pixels of a picture, where t is 1 on a class and 0
      elsewhere (after Milletari et al. 2016, V-Net, section 3): the mean over all classes, and over the pictures.
    - `lovasz`: the Lovász extension of the Jaccard loss (Berman et al. 2018, equations 8 to 11): the mean over the classes
      that a picture shows, and over the pictures.

    Attributes:
        cross_entropy: its weight.
        focal: its weight.
        dice: its weight.
        lovasz: its weight.
        auxiliary: what all of it counts of each auxiliary head of a network (Zhao et al. 2017, PSPNet, section 3.3).
        class_weights: how much a pixel of each class counts, in cross-entropy and focal; None: all the same.
        gamma: of `focal`: how much less counts what is right already.
        lovasz_over: of `lovasz`: what IoU is taken over; over the batch only where that comes in one piece.
        ignore: what stands in a class map where nothing is to be learned.

    Raises:
        UnknownNameError: a choice that is none.
        UsageError: a number out of its range, or no loss at all.
    """

    cross_entropy: float = 1.0
    focal: float = 0.0
    dice: float = 0.0
    lovasz: float = 0.0
    auxiliary: float = 0.4
    class_weights: tuple[float, ...] | None = None
    gamma: float = 2.0
    lovasz_over: LovaszOver = "picture"
    ignore: int = 255

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("cross_entropy", "focal", "dice", "lovasz", "auxiliary", "gamma"):
            _at_least_zero(name, getattr(self, name))
        for place, weight in enumerate(self.class_weights or ()):
            _at_least_zero(f"the weight of class {place}", weight)
        if self.cross_entropy == self.focal == self.dice == self.lovasz == 0:
            raise UsageError("All weights of MapLoss are 0, so nothing would be learned. Give at least one.")

    def pixels_of(self, class_map: Integer[Tensor, "b y x"]) -> float:
        """How many labelled pixels class maps have; with `class_weights`, what they weigh together.

        Raises:
            UsageError: a class without a weight, or maps that are not of whole numbers.
        """
        class_map = _whole(class_map)
        labelled = class_map[class_map != self.ignore]
        if self.class_weights is None:
            return float(labelled.numel())
        self._check(class_map, len(class_map), len(self.class_weights))
        return float(labelled.new_tensor(self.class_weights, dtype=torch.float64)[labelled].sum())

    def __call__(
        self,
        output: MapOutput,
        class_map: Integer[Tensor, "b y x"],
        pixels: float | None = None,
        pictures: float | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Every term of the loss, weighted, and as "total" their sum.

        Args:
            output: the model's.
            class_map: what every pixel of its input shows, or `ignore`; whole numbers of any kind.
            pixels: what `pixels_of` says of the whole batch, other pieces and processes included; None where `class_map` is
                the whole batch. Of a batch in several processes whose gradients are averaged: their mean. Where it is 0
                there is nothing to learn, and the loss of pixels is 0.
            pictures: how many pictures this batch has, where `output` is a piece of it (likewise their mean over
                processes). The losses of all pieces then add up to the loss of the batch.

        Returns:
            "total"; of the losses that count "cross_entropy", "focal", "dice" and "lovasz"; and those of auxiliary heads, as
            in "auxiliary.0.dice".

        Raises:
            UsageError: a class that the model does not have; maps that are not of whole numbers; maps and pictures that
                differ in number, or none; weights for another number of classes; Lovász over a batch of which this is a
                piece, or a piece without the pixels of its batch.
        """
        count, classes = output.logits.shape[:2]
        class_map = _whole(class_map)
        if not count:
            raise UsageError("A batch without any picture came, of which nothing can be learned.")
        if pixels is None:
            _without_pieces("pixels", pictures)
            self._check(class_map, count, classes)
            pixels = self.pixels_of(class_map)
        if _at_least_zero("pixels", pixels) == 0:
            pixels = 1.0
        if pictures is not None and _at_least_zero("pictures", pictures) == 0:
            raise UsageError("pictures must be more than 0; 0 came.")
        self._check(class_map, count, classes)
        if self.lovasz and self.lovasz_over == "batch" and pictures not in (None, count):
            raise UsageError(
                f"IoU over a batch of {pictures} pictures cannot be had from a piece of {count}. Take "
                "lovasz_over='picture', or the batch in one piece."
            )
        terms: dict[str, Tensor] = {}
        for place, logits in enumerate((output.logits, *output.auxiliary)):
            name, weight = (f"auxiliary.{place - 1}.", self.auxiliary) if place else ("", 1.0)
            if weight or not place:
                told = self._terms(logits, class_map, pixels, count if pictures is None else pictures)
                terms |= {name + loss: weight * term for loss, term in told.items()}
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def _check(self, class_map: Int64[Tensor, "b y x"], pictures: int, classes: int) -> None:
        if len(class_map) != pictures:
            raise UsageError(f"{len(class_map)} class maps came for a batch of {pictures} pictures.")
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise UsageError(f"class_weights has {len(self.class_weights)} numbers, but the model knows {classes} classes.")
        wrong = ((class_map < 0) | (class_map >= classes)) & (class_map != self.ignore)
        if bool(wrong.any()):
            raise UsageError(
                f"A pixel is of class {int(class_map[wrong][0])}, but the model knows {classes} classes, from 0 to "
                f"{classes - 1}, and {self.ignore} is to be ignored. Number the classes of the maps so, or give the model "
                "as many."
            )

    def _terms(
        self, logits: Float[Tensor, "b c _ _"], class_map: Int64[Tensor, "b y x"], pixels: float, pictures: float
    ) -> dict[str, Float[Tensor, ""]]:
        """Every loss of one map, weighted."""
        logits = _precise(logits)
        if logits.shape[-2:] != class_map.shape[-2:]:
            size = (class_map.shape[-2], class_map.shape[-1])
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        logs = logits.log_softmax(1)
        labelled = class_map != self.ignore
        known = class_map.where(labelled, 0)
        own = logs.gather(1, known[:, None])[:, 0].where(labelled, 0.0)
        weights = 1.0 if self.class_weights is None else logs.new_tensor(self.class_weights)[known]
        terms: dict[str, Tensor] = {}
        if self.cross_entropy:
            terms["cross_entropy"] = -self.cross_entropy * (weights * own).sum() / pixels
        if self.focal:
            # Not quite 0 where all is right: of a power below 1 that has no slope.
            wrong = (-own.expm1()).clamp(min=1e-12) ** self.gamma
            terms["focal"] = -self.focal * (weights * wrong * own).sum() / pixels
        if self.dice:
            terms["dice"] = self.dice * _dice(logs.exp(), known, labelled) / pictures
        if self.lovasz:
            chances, told = logs.exp().flatten(2), class_map.flatten(1)
            if self.lovasz_over == "batch":
                whole = _lovasz(chances.transpose(0, 1).flatten(1), told.flatten(), self.ignore)
            else:
                each = [_lovasz(*one, self.ignore) for one in zip(chances, told, strict=True)]
                whole = torch.stack(each).sum() / pictures
            terms["lovasz"] = self.lovasz * whole
        return terms


def _at_least_zero(name: str, number: float) -> float:
    if real_number(name, number) < 0:
        raise UsageError(f"{name} must be at least 0; {number!r} came.")
    return float(number)


def _whole(class_map: Tensor) -> Int64[Tensor, "b y x"]:
    """A class map by which can be counted and looked up: numbers of eight bits without a sign would choose like a mask."""
    if class_map.is_floating_point() or class_map.is_complex() or class_map.dtype == torch.bool:
        raise UsageError(
            f"A class map holds the number of each pixel's class, so whole numbers; {class_map.dtype} came. If these are "
            "classes, turn them with .long()."
        )
    return class_map.long()


def _without_pieces(name: str, pictures: float | None) -> None:
    """Refuse a piece of a batch that does not say what the whole batch has."""
    if pictures is not None:
        raise UsageError(f"pictures= is for a piece of a batch, which needs the {name} of the whole batch too: {name}=….")


def _precise(numbers: Tensor) -> Tensor:
    """At least single precision: half of it cannot add up thousands of pixels."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _dice(
    chances: Float[Tensor, "b c y x"], known: Int[Tensor, "b y x"], labelled: Bool[Tensor, "b y x"]
) -> Float[Tensor, ""]:
    """The mean over classes, added up over pictures. A picture without labels gives 0."""
    count = chances.shape[1]
    found = (chances * labelled[:, None]).flatten(2).sum(-1)
    right = chances.gather(1, known[:, None])[:, 0] * labelled
    shared, there = (
        torch.zeros_like(found).scatter_add(1, known.flatten(1), one.flatten(1)) for one in (right, labelled.to(found))
    )
    return (1 - (2 * shared + 1) / (found + there + 1)).sum() / count


def _lovasz(chances: Float[Tensor, "c n"], labels: Int[Tensor, " n"], ignore: int) -> Float[Tensor, ""]:
    """The Lovász extension of the Jaccard loss of each class that is there (Berman et al. 2018, algorithm 1), their mean.

    Pixels are taken into the set of mistakes one by one, the worst first, and each weighs what the Jaccard loss rises by. A
    pixel of the class leaves the intersection: it rises by 1 / union. Any other enlarges the union by one: by the
    intersection / (the union before · the union after). Said so, nothing is lost by subtracting numbers close to each other.
    """
    labelled = labels != ignore
    chances, labels = chances[:, labelled], labels[labelled]
    there = labels.unique()
    if not len(there):
        return chances.sum()  # of nothing: 0, with a gradient
    own = labels == there[:, None]
    errors = (own.to(chances) - chances[there]).abs()
    order = errors.detach().argsort(dim=1, descending=True)
    own = own.gather(1, order)
    left = own.sum(1, keepdim=True) - own.cumsum(1)
    union = own.sum(1, keepdim=True) + (~own).cumsum(1)
    union, left = union.to(chances), left.to(chances)
    rises = torch.where(own, 1 / union, left / (union * (union - 1).clamp(min=1)))
    return (errors.gather(1, order) * rises).sum(1).mean()


# -- queries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MaskLoss:
    """The loss of a set of masks against a set of objects (Cheng et al. 2021, MaskFormer, section 3.2; 2022, Mask2Former).

    Queries and objects are matched; then, of what is matched, the error of the masks pixel by pixel and their dice, and,
    where the network says boxes, their distance and generalized IoU; of all queries the class. Earlier layers are matched
    for themselves and learn the same.

    Masks are compared at all pixels of the objects' masks, to which those of queries are brought bilinearly; or at some
    points of each, most of them where the query is in doubt (Cheng et al. 2022, section 3.3).

    Attributes:
        class_weight: the weight of the class, a cross-entropy over the classes and nothing.
        mask_weight: the weight of the mean error of a mask's pixels.
        dice_weight: the weight of 1 − the dice.
        l1_weight: the weight of the distance of boxes, the sum over cxcywh in [0, 1].
        giou_weight: the weight of 1 − the generalized IoU.
        error: how wrong a pixel is.
        costs: what matching rests on: masks (`MaskCosts`) or boxes (`Costs`).
        nothing: how much a query counts that is to become nothing.
        points: at how many points of each mask; None: at all pixels.
        oversample: how many times as many points are drawn, to choose the doubtful ones among them.
        importance: the share of the points that is chosen so; the rest is spread evenly.
        alpha: of "focal": the share of what is the object, against 1 − alpha.
        gamma: of "focal": how much less counts what is right already.
        draw: how points are drawn.

    Raises:
        UnknownNameError: a choice that is none.
        UsageError: a number out of its range.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    l1_weight: float = 0.0
    giou_weight: float = 0.0
    error: MaskError = "focal"
    costs: MaskCosts | Costs = field(default_factory=MaskCosts)
    nothing: float = 0.1
    points: int | None = None
    oversample: float = 3.0
    importance: float = 0.75
    alpha: float = 0.25
    gamma: float = 2.0
    draw: Draw = random_points

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("class_weight", "mask_weight", "dice_weight", "l1_weight", "giou_weight", "nothing", "gamma"):
            _at_least_zero(name, getattr(self, name))
        for name in ("alpha", "importance"):
            if _at_least_zero(name, getattr(self, name)) > 1:
                raise UsageError(f"{name} must be from 0 to 1; {getattr(self, name)!r} came.")
        if real_number("oversample", self.oversample) < 1:
            raise UsageError(f"oversample must be at least 1; {self.oversample!r} came.")
        if self.points is not None:
            whole_number("points", self.points)

    def __call__(
        self,
        output: MaskOutput,
        targets: Sequence[Objects],
        objects: float | None = None,
        pictures: float | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Every term of the loss, weighted, and as "total" their sum.

        Args:
            output: the model's.
            targets: the objects of each of its pictures, with masks of the batch's height and width.
            objects: how many objects the whole batch has, those of other pieces and processes included; at least 1 is
                taken. None where `targets` are the whole batch. Of a batch in several processes whose gradients are
                averaged: their mean.
            pictures: how many pictures this batch has, where `output` is a piece of it (likewise their mean over
                processes). The losses of all pieces then add up to the loss of the batch, where all pixels are compared; at
                points, where the same ones are drawn.

        Returns:
            "total"; "class", "mask" and "dice" of the last layer, and "l1" and "giou" where boxes are learned; and those of
            "auxiliary.0", …, as in "auxiliary.0.class".

        Raises:
            TrainingError: see `matching.match_masks` and `tasks.detection.matching.match`.
            UsageError: objects without masks, or with masks of different sizes; a network without the boxes to be learned;
                numbers out of their range; a piece of a batch without the objects of it.
        """
        if objects is None:
            _without_pieces("objects", pictures)
            objects = sum(len(one.labels) for one in targets)
        objects = _at_least_zero("objects", objects)
        if pictures is not None:
            _at_least_zero("pictures", pictures)
        layers = [PredictedMasks(_precise(output.logits), _precise(output.masks))]
        layers += [PredictedMasks(_precise(one.logits), _precise(one.masks)) for one in output.auxiliary]
        boxes = None if output.boxes is None else _precise(output.boxes)
        pairs = self._matched(layers, boxes, targets)
        wanted = masks_of(targets)
        terms: dict[str, Tensor] = {}
        for place, (layer, of_layer) in enumerate(zip(layers, pairs, strict=True)):
            name, chosen = f"auxiliary.{place - 1}." if place else "", paired(of_layer, targets)
            told = (len(chosen.rows), None) if pictures is None else (objects, pictures)
            by_class = class_entropy(layer.logits, chosen, self.nothing, *told)
            by_mask, by_dice = self._errors(layer.masks, chosen, wanted)
            number = max(objects, 1.0)
            terms[f"{name}class"] = self.class_weight * by_class
            terms[f"{name}mask"] = self.mask_weight * by_mask / number
            terms[f"{name}dice"] = self.dice_weight * by_dice / number
            if boxes is not None and not place and (self.l1_weight or self.giou_weight):
                distance, overlap = box_errors(boxes[chosen.pictures, chosen.rows], chosen.boxes)
                terms["l1"] = self.l1_weight * distance / number
                terms["giou"] = self.giou_weight * overlap / number
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def _matched(
        self, layers: list[PredictedMasks], boxes: Float[Tensor, "b q 4"] | None, targets: Sequence[Objects]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Which query becomes which object, in every layer."""
        if boxes is None and (self.l1_weight or self.giou_weight):
            raise UsageError("This loss is of boxes too, but the model says none. Give l1_weight and giou_weight as 0.")
        layers = [PredictedMasks(one.logits.detach(), one.masks.detach()) for one in layers]
        if isinstance(self.costs, MaskCosts):
            return match_masks(layers, targets, self.costs, self.draw)
        if boxes is None or len(layers) > 1:
            raise UsageError("A layer of the model says no boxes to be matched by. Match by masks: costs=MaskCosts().")
        return [match(layers[0].logits, boxes.detach(), targets, self.costs, "softmax")]

    def _errors(
        self, masks: Float[Tensor, "b q i j"], chosen: Paired, wanted: Bool[Tensor, "n y x"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The mean error of a mask's pixels and 1 − its dice, added up over the masks."""
        picked = masks[chosen.pictures, chosen.rows]
        if not len(picked):
            return picked.sum(), picked.sum()  # of nothing: 0, with a gradient
        if self.points is None:
            size = (wanted.shape[-2], wanted.shape[-1])
            said = F.interpolate(picked[:, None], size=size, mode="bilinear", align_corners=False).flatten(1)
            true = wanted[chosen.objects].flatten(1).to(said.dtype)
        else:
            points = uncertain_points(picked.detach(), self.points, self.oversample, self.importance, self.draw)
            said = sampled(picked[:, None], points)[:, 0]
            true = sampled_masks(wanted, points, chosen.objects)
        found = said.sigmoid()
        error = F.binary_cross_entropy_with_logits(said, true, reduction="none")
        if self.error == "focal":
            balance = 1 - self.alpha + (2 * self.alpha - 1) * true
            error = balance * (found + true - 2 * found * true) ** self.gamma * error
        dice = 1 - (2 * (found * true).sum(1) + 1) / (found.sum(1) + true.sum(1) + 1)
        return error.mean(1).sum(), dice.sum()


MASKFORMER_LOSS = MaskLoss()
"""Cheng et al. 2021, MaskFormer, section 4.1: focal 20, dice 1, nothing counting by 0.1."""

MASK2FORMER_LOSS = MaskLoss(
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=5.0,
    error="cross_entropy",
    points=12_544,
    costs=MaskCosts(classes=2.0, mask=5.0, dice=5.0, error="cross_entropy", points=12_544),
)
"""Cheng et al. 2022, Mask2Former, section 4.1; 112 · 112 points of each mask."""

DETR_MASK_LOSS = MaskLoss(class_weight=1.0, mask_weight=1.0, dice_weight=1.0, l1_weight=5.0, giou_weight=2.0, costs=Costs())
"""Carion et al. 2020, DETR, section 5 and its published code: matched by boxes, as the detector is."""
