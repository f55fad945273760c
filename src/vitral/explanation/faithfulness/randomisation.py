"""Whether heat changes at all when a model forgets what it learned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import nn

from vitral.base.image import PictureSource
from vitral.base.numbers import all_finite
from vitral.errors import UsageError
from vitral.explanation.explain import explain
from vitral.explanation.methods import DEFAULT
from vitral.explanation.prepares import Prepares

__all__ = ["Randomisation", "randomisation_sensitivity", "ranks", "spearman"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Randomisation:
    """How heat changes while a model forgets what it learned.

    Attributes:
        method: whose heat.
        stages: what was randomised, from the head down, each beside all before it; first "nothing".
        correlations: Spearman's rank correlation with the trained model's heat, one for each stage; from 1 towards 0 for a
            method that explains the model rather than the picture's edges.
    """

    method: str
    stages: tuple[str, ...]
    correlations: Float[np.ndarray, " s"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = zip(self.stages, self.correlations.tolist(), strict=True)
        return {"method": self.method, "stages": [{"stage": stage, "correlation": value} for stage, value in rows]}


def randomisation_sensitivity(
    predictor: Prepares,
    picture: PictureSource,
    *,
    method: str = DEFAULT,
    target: SupportsIndex | str | None = None,
    seed: int = 0,
    **options: Any,
) -> Randomisation:
    """Cascading randomisation (Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3).

    A copy of the model forgets, from the classifier down to the patches, and after each part the same class is explained
    anew. Each tensor is drawn again from a normal distribution of its own mean and deviation: a network's usual start would
    not do, since some classifiers start at zero, where every heat is flat.

    Args:
        predictor: the model that is explained; it is not changed.
        picture: what is explained.
        method: a key of `explanation.methods.METHODS`.
        target: the class; by default the trained model's best.
        seed: of the numbers drawn.
        **options: see `explanation.explain.explain`.
    """
    trained = explain(predictor, picture, method=method, target=target, **options)
    forgetful = copy.copy(predictor)
    forgetful.model = copy.deepcopy(predictor.model)
    generator = torch.Generator().manual_seed(seed)
    stages, correlations = ["nothing"], [1.0]
    for stage, parameters in _from_the_head_down(forgetful.model):
        with torch.no_grad():
            for parameter in parameters:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(parameter.mean() + parameter.std(unbiased=False) * noise)
        found = explain(forgetful, picture, method=method, target=trained.target, **options)
        stages.append(stage)
        correlations.append(spearman(trained.heat.ravel(), found.heat.ravel()))
    return Randomisation(method=method, stages=tuple(stages), correlations=np.array(correlations))


def _from_the_head_down(model: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """A model's parts with parameters, the last first, lists of modules one by one, then what it holds itself."""
    parts: list[tuple[str, list[nn.Parameter]]] = []
    for name, child in model.named_children():
        inside = [(f"{name}.{number}", one) for number, one in child.named_children()]
        for path, one in inside if isinstance(child, nn.ModuleList) else [(name, child)]:
            parts.append((path, list(one.parameters())))
    own = list(model.parameters(recurse=False))
    return [part for part in (*reversed(parts), ("tokens and positions", own)) if part[1]]


def spearman(first: Shaped[np.ndarray, " n"], second: Shaped[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal numbers sharing their mean rank.

    0.0 where all numbers on one side are equal: there is no order to have in common.
    """
    if first.shape != second.shape or not len(first):
        raise UsageError(
            f"A rank correlation is of two rows as long, and not empty; {len(first)} and {len(second)} numbers came."
        )
    all_finite("numbers to be ranked", first, second)
    one, other = (ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    length = np.sqrt((one**2).sum() * (other**2).sum())
    return float(np.clip((one * other).sum() / length, -1, 1)) if length else 0.0


def ranks(values: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The place of each number from the least, counted from 1; equal numbers share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse.reshape(-1)]
