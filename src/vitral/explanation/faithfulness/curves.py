"""What becomes of a class when the hottest or the coldest parts of its picture are taken away, or put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, SupportsIndex, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.numbers import real_number, whole_number
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.explain import target_class
from vitral.explanation.prepares import Prepares
from vitral.explanation.result import Explanation
from vitral.tasks.classification.result import scores_of

__all__ = ["Curve", "Fill", "InsertionDeletion", "Perturbation", "best_class", "insertion_deletion", "perturbation"]

Fill = Literal["mean", "black"]
"""What stands where pixels were taken away: the mean of the preprocessing (grey; zero after normalisation), or black."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What became of a class while a picture was changed.

    Attributes:
        fractions: the share of the picture that was changed, ascending.
        values: the class's probability (or, of a perturbation, 1.0 while it was the best class), one for each.
    """

    fractions: Float[np.ndarray, " s"]
    values: Float[np.ndarray, " s"]

    @property
    def auc(self) -> float:
        """The area under the curve by the trapezoid rule; at most the last fraction less the first."""
        return float((np.diff(self.fractions) * (self.values[1:] + self.values[:-1])).sum() / 2)


class InsertionDeletion(NamedTuple):
    """The two curves of a picture: more area under the first and less under the second speak for the explanation."""

    insertion: Curve
    deletion: Curve


class Perturbation(NamedTuple):
    """The two curves of a picture: less area under the first and more under the second speak for the explanation."""

    positive: Curve
    negative: Curve


def insertion_deletion(
    predictor: Prepares,
    explanation: Explanation,
    *,
    target: SupportsIndex | str | None = None,
    steps: int = 32,
    fill: Fill = "mean",
    blur: float | None = None,
    pixels: Float[Tensor, "c y x"] | None = None,
    batch_size: int = 32,
) -> InsertionDeletion:
    """Insertion and deletion (Petsiuk et al. 2018, "RISE", section 4.1).

    Deletion takes pixels of the model's input away, hottest first; insertion puts them, hottest first, onto a blurred copy.
    Pixels of equal heat go in reading order. The authors change 224 pixels of 224 × 224 a step, which is `steps=224`.

    Args:
        predictor: the model that was explained.
        explanation: heat to be judged.
        target: the class that is watched; by default the one that was explained, or the model's best.
        steps: how often the class's probability is asked for while the picture changes.
        fill: what stands where pixels were deleted.
        blur: standard deviation of the Gaussian that blurs, in input pixels; by default a twentieth of the shorter side. (At
            the authors' 5 pixels of 224, DeiT-Tiny still gives a shepherd dog 0.43: too little is left to be inserted.)
        pixels: the model's input, where it is at hand; by default prepared from the explanation's picture.
        batch_size: changed pictures computed at once.

    Raises:
        UsageError: heat that is no finite number, or a picture that was not kept.
    """
    steps, batch_size = whole_number("steps", steps), whole_number("batch_size", batch_size)
    if blur is not None and not real_number("blur", blur) > 0:
        raise UsageError(f"blur must be above 0; {blur!r} came.")
    pixels = _pixels(predictor, explanation, pixels)
    target = _target(predictor, explanation, pixels, target)
    order = _order(explanation.on_input(), hottest_first=True)
    counts = [round(step * order.numel() / steps) for step in range(steps + 1)]
    empty, blurred = _filled(predictor, pixels, fill), _blurred(pixels, blur or min(pixels.shape[1:]) / 20)
    curves = []
    for before, after in ((blurred, pixels), (pixels, empty)):
        scores = _scores(predictor, before, after, order, counts, batch_size)
        curves.append(Curve(np.linspace(0, 1, steps + 1), scores[:, target].numpy().astype(np.float64)))
    return InsertionDeletion(*curves)


def perturbation(
    predictor: Prepares,
    explanation: Explanation,
    *,
    target: SupportsIndex | str | None = None,
    fill: Fill = "black",
    pixels: Float[Tensor, "c y x"] | None = None,
    batch_size: int = 32,
) -> Perturbation:
    """Positive and negative perturbation (Chefer et al. 2021, CVPR, "Transformer Interpretability Beyond Attention
    Visualization", section 4, "Perturbation tests").

    Nothing, then 10 % to 90 % of the input's pixels are masked, the hottest first (positive) or the coldest first
    (negative): is the best class still the target? The published figures are the area under the accuracy over 0 to 0.9, so
    at most 0.9. What the text leaves open is taken from the authors' code (hila-chefer/Transformer-Explainability,
    baselines/ViT/pertubation_eval_from_hdf5.py): heat carried to pixels, masked pixels black, their number rounded down; and
    from their answer in its issue 31: the area by the trapezoid rule, with the untouched picture at 0.

    Args:
        predictor: the model that was explained.
        explanation: heat to be judged.
        target: the class that is watched; by default the one that was explained, or the model's best.
        fill: what masked pixels become.
        pixels: the model's input, where it is at hand; by default prepared from the explanation's picture.
        batch_size: changed pictures computed at once.

    Raises:
        UsageError: heat that is no finite number, or a picture that was not kept.
    """
    batch_size = whole_number("batch_size", batch_size)
    pixels = _pixels(predictor, explanation, pixels)
    target = _target(predictor, explanation, pixels, target)
    heat, empty = explanation.on_input(), _filled(predictor, pixels, fill)
    counts = [step * heat.size // 10 for step in range(10)]
    curves = []
    for hottest_first in (True, False):
        scores = _scores(predictor, pixels, empty, _order(heat, hottest_first), counts, batch_size)
        curves.append(Curve(np.arange(10) / 10, (scores.argmax(1) == target).numpy().astype(np.float64)))
    return Perturbation(*curves)


def _order(heat: Float[np.ndarray, "y x"], hottest_first: bool) -> Int[Tensor, "y x"]:
    """The place of each pixel in the queue; pixels of equal heat stand in reading order."""
    queue = np.argsort(-heat if hottest_first else heat, axis=None, kind="stable")
    places = np.empty(heat.size, dtype=np.int64)
    places[queue] = np.arange(heat.size)
    return torch.from_numpy(places.reshape(heat.shape))


@torch.no_grad()
def _scores(
    predictor: Prepares,
    before: Float[Tensor, "c y x"],
    after: Float[Tensor, "c y x"],
    order: Int[Tensor, "y x"],
    counts: Sequence[int],
    batch_size: int,
) -> Float[Tensor, "s k"]:
    """Scores of all classes where the first so many pixels of an order have changed."""
    found = []
    for some in torch.tensor(counts).view(-1, 1, 1).split(batch_size):
        variants = torch.where((order < some)[:, None], after, before)
        logits = predictor.model(variants.to(predictor.device, predictor.dtype)).logits
        found.append(scores_of(logits, "default", predictor.record).cpu())
    return torch.cat(found)


def _filled(predictor: Prepares, pixels: Float[Tensor, "c y x"], fill: Fill) -> Float[Tensor, "c y x"]:
    if fill not in ("mean", "black"):
        raise UnknownNameError("fill", fill, ("mean", "black"))
    if fill == "mean":
        return torch.zeros_like(pixels)
    return predictor.preprocessing.black.expand_as(pixels)


def _blurred(pixels: Float[Tensor, "c y x"], deviation: float) -> Float[Tensor, "c y x"]:
    """Pixels behind a Gaussian of a deviation in pixels, cut off at twice of it; the border's pixels go on beyond it."""
    reach = max(1, round(2 * deviation))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = (line / line.sum()).to(pixels).view(1, 1, -1, 1)
    padded = F.pad(pixels[None], (reach, reach, reach, reach), mode="replicate").transpose(0, 1)
    return F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0]


def _pixels(predictor: Prepares, explanation: Explanation, pixels: Float[Tensor, "c y x"] | None) -> Float[Tensor, "c y x"]:
    """The input that was explained, after a look at whether the heat can be judged."""
    if pixels is None:
        if explanation.picture is None:
            raise UsageError(f"The picture of {explanation.name} was not kept. Pass the model's input as pixels.")
        pixels = predictor.prepare(explanation.picture)[0]
    expected = explanation.geometry.frame.input
    if tuple(pixels.shape[1:]) != expected:
        raise UsageError(f"The explanation is of an input of {expected} pixels; one of {tuple(pixels.shape[1:])} came.")
    return pixels.float().cpu()


def _target(
    predictor: Prepares, explanation: Explanation, pixels: Float[Tensor, "c y x"], target: SupportsIndex | str | None
) -> int:
    """The class that is watched."""
    classes = _classes(predictor)
    if target is None:
        target = explanation.target
    return best_class(predictor, pixels) if target is None else target_class(predictor.record, classes, target)


@torch.no_grad()
def best_class(predictor: Prepares, pixels: Float[Tensor, "c y x"]) -> int:
    """The best class of an input."""
    _classes(predictor)
    logits = predictor.model(pixels[None].to(predictor.device, predictor.dtype)).logits
    return int(scores_of(logits, "default", predictor.record).argmax())


def _classes(predictor: Prepares) -> int:
    """How many classes the model has."""
    classes: int = cast(Any, predictor.model).config.num_classes
    if not classes:
        raise UsageError("The model has no classes, so nothing can be watched while its picture changes.")
    return classes
