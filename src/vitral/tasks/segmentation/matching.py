"""Which query is to draw which object's mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vitral.base.boxes import Objects
from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.errors import TrainingError, UsageError
from vitral.models.output import PredictedMasks
from vitral.tasks.detection.matching import Pairs, cheapest, check_targets
from vitral.tasks.segmentation.points import Draw, random_points, sampled, sampled_masks

__all__ = ["MaskCosts", "MaskError", "masks_of", "match_masks"]

MaskError = Literal["cross_entropy", "focal"]
"""How wrong a mask is, pixel by pixel: its binary cross-entropy; or the same where easy pixels count less."""


@dataclass(frozen=True, kw_only=True)
class MaskCosts:
    """What it costs to make a query an object: three ways in which they differ, weighted.

    Attributes:
        classes: the weight of the class; the cost is −p(class).
        mask: the weight of the mean error of the mask's pixels.
        dice: the weight of 1 − the dice of the masks, 2 · what they share over the sum of both, with 1 added above and below
            (Cheng et al. 2021, MaskFormer, section 4.1, as published in code).
        error: how wrong a pixel is.
        points: at how many points of each picture masks are compared, the same for all its queries and objects; None: at
            every cell of the network's map.
        alpha: of "focal": the share of what is the object, against 1 − alpha.
        gamma: of "focal": how much less counts what is right already.

    Raises:
        UnknownNameError: a choice that is none.
        UsageError: a number out of its range, or no weight above 0.
    """

    classes: float = 1.0
    mask: float = 20.0
    dice: float = 1.0
    error: MaskError = "focal"
    points: int | None = None
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("classes", "mask", "dice", "alpha", "gamma"):
            if real_number(f"{name} of MaskCosts", getattr(self, name)) < 0:
                raise UsageError(f"{name} of MaskCosts must be at least 0; {getattr(self, name)!r} came.")
        if self.alpha > 1:
            raise UsageError(f"alpha of MaskCosts must be from 0 to 1; {self.alpha!r} came.")
        if self.classes == self.mask == self.dice == 0:
            raise UsageError("All weights of MaskCosts are 0, so any query would do for any object. Give at least one.")
        if self.points is not None:
            whole_number("points of MaskCosts", self.points)


def masks_of(targets: Sequence[Objects]) -> Bool[Tensor, "n y x"]:
    """The masks of all objects of a batch, picture after picture.

    Raises:
        UsageError: a picture whose objects have no masks, or masks of different sizes.
    """
    masks = [one.masks for one in targets if one.masks is not None]
    if len(masks) < len(targets):
        place = next(place for place, one in enumerate(targets) if one.masks is None)
        raise UsageError(
            f"The objects of picture {place} of the batch have no masks to learn from. Take annotations with outlines, or "
            "train a detector."
        )
    sizes = sorted({tuple(one.shape[-2:]) for one in masks})
    if len(sizes) > 1:
        raise UsageError(
            f"The masks of the pictures of a batch must all be of the batch's size; {sizes[0]} and {sizes[-1]} (height, "
            "width) came. Fill them up on the right and below, as the pictures are."
        )
    return torch.cat(masks)


@torch.no_grad()
def match_masks(
    layers: Sequence[PredictedMasks], targets: Sequence[Objects], costs: MaskCosts, draw: Draw = random_points
) -> list[Pairs]:
    """The cheapest assignment of queries to the objects of each picture (Cheng et al. 2021, MaskFormer, section 3.2).

    Every object gets exactly one query, and no query gets two objects; the other queries get none. No other such assignment
    is cheaper at the points looked at. Nothing is learned through it: it has no gradient.

    All layers look at the same points of a picture, so that one product compares all their masks with all its objects.

    Args:
        layers: what each layer says; they are matched each for itself.
        targets: the objects of each picture, with masks; there may be none.
        costs: what counts how much.
        draw: how points are drawn.

    Returns:
        For each layer and picture, on the device of the logits: queries in ascending order, and the object of each.

    Raises:
        TrainingError: a picture with more objects than there are queries, an object of a class that the logits do not know,
            or logits or masks that are not finite.
        UsageError: objects came for another number of pictures, or without masks, or with masks of different sizes.
    """
    if len({layer.masks.shape for layer in layers}) > 1:
        return [pairs for layer in layers for pairs in match_masks([layer], targets, costs, draw)]
    pictures, queries, columns = layers[0].logits.shape
    device = layers[0].logits.device
    check_targets(targets, pictures, queries, columns - 1)
    masks_of(targets)
    points = None if costs.points is None else draw(pictures, costs.points, device)
    # Sums instead of looks at every number: they are finite where all numbers are, and cost a tenth.
    sums = torch.stack([one.float().sum() for layer in layers for one in (layer.logits, layer.masks)])
    tables = [
        _table(layers, place, one, costs, None if points is None else points[place : place + 1])
        for place, one in enumerate(targets)
    ]
    # One copy for the whole batch: on a GPU every one of them waits for all that went before.
    told = torch.cat([sums, *(table.flatten() for table in tables)]).cpu()
    if not bool(told.isfinite().all()):
        _refuse(layers)
    of_pictures = told[len(sums) :].split([table.numel() for table in tables])
    by_picture = [
        [cheapest(layer, device) for layer in table.view(len(layers), queries, -1)]
        if len(one.labels)
        else [(torch.zeros(0, dtype=torch.int64, device=device),) * 2] * len(layers)
        for table, one in zip(of_pictures, targets, strict=True)
    ]
    return [list(pairs) for pairs in zip(*by_picture, strict=True)]


def _table(
    layers: Sequence[PredictedMasks],
    place: int,
    objects: Objects,
    costs: MaskCosts,
    points: Float[Tensor, "1 p 2"] | None,
) -> Float[Tensor, "n k"]:
    """What the queries of all layers would cost as every object of a picture."""
    count, masks = len(objects.labels), objects.masks
    if not count or masks is None:
        return layers[0].masks.new_zeros((len(layers) * layers[0].masks.shape[1], 0), dtype=torch.float32)
    said = torch.cat([layer.masks[place] for layer in layers]).float()
    if points is None:
        size = (said.shape[-2], said.shape[-1])
        wanted = F.interpolate(masks.view(torch.uint8)[None], size=size, mode="nearest")[0].flatten(1).float()
        said = said.flatten(1)
    else:
        wanted = sampled_masks(masks, points, torch.arange(count, device=masks.device))
        said = sampled(said[None], points)[0]
    chances = torch.cat([layer.logits[place] for layer in layers]).float().softmax(-1)
    found = said.sigmoid()
    if costs.error == "cross_entropy":
        as_nothing, gain = F.softplus(said), -said
    else:
        as_nothing = (1 - costs.alpha) * found**costs.gamma * F.softplus(said)
        gain = costs.alpha * (1 - found) ** costs.gamma * F.softplus(-said) - as_nothing
    # The error where a pixel is nothing, and what it changes by where it is the object's: one product instead of two.
    by_mask = (gain @ wanted.T + as_nothing.sum(1)[:, None]) / said.shape[1]
    by_dice = 1 - (2 * (found @ wanted.T) + 1) / (found.sum(1)[:, None] + wanted.sum(1) + 1)
    return costs.mask * by_mask + costs.dice * by_dice - costs.classes * chances[:, objects.labels]


def _refuse(layers: Sequence[PredictedMasks]) -> None:
    """Say what is not finite."""
    for place in range(len(layers[0].logits)):
        wrong = [
            name
            for name in ("logits", "masks")
            if not all(bool(getattr(layer, name)[place].isfinite().all()) for layer in layers)
        ]
        if wrong:
            raise TrainingError(
                f"The model's {' and '.join(wrong)} for picture {place} of the batch are not finite numbers (NaN or "
                "infinity), so nothing can be matched. Lower the learning rate, clip the gradient, or compute in float32."
            )
    raise TrainingError(
        "The model's logits or masks are so large that what they cost is not finite. Lower the learning rate or clip the "
        "gradient."
    )
