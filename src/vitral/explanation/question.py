"""What is asked of a model when an answer is to be explained: which pictures, and which score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.models.output import EncoderOutput

__all__ = ["Heat", "Question", "ScoreOf", "reading_weights"]

ScoreOf = Callable[[EncoderOutput], Float[Tensor, " b"]]
"""A score of the caller's own: one number for each picture of a batch."""


@dataclass(frozen=True, eq=False)
class Heat:
    """What a method found.

    Attributes:
        values: per patch (b i j) or per pixel of the input (b y x), in single precision.
        notes: further numbers, one per picture.
    """

    values: Float[Tensor, "b i j"]
    notes: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Question:
    """Pictures of one size, and the score of each that is to be explained.

    Attributes:
        model: the network, in evaluation mode.
        pixels: its input.
        grid: rows and columns of patches of that input.
        target: the class of each picture, or a score of the caller's own, or nothing for methods that know no class.
        problem: how logits become probabilities; see `models.record.Record`.
    """

    model: nn.Module
    pixels: Float[Tensor, "b c y x"]
    grid: tuple[int, int]
    target: Int[Tensor, " b"] | ScoreOf | None = None
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    prefix: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", cast(Any, self.model).config.prefix)

    @property
    def classes(self) -> Int[Tensor, " b"]:
        """The class of each picture.

        Raises:
            UsageError: what is asked for is no class.
        """
        if not isinstance(self.target, Tensor):
            raise UsageError("This method explains classes of the model; give it one as target.")
        return self.target

    def logit(self, output: EncoderOutput) -> Float[Tensor, " b"]:
        """The score before it becomes a probability, in single precision: what gradients are taken of."""
        if callable(self.target):
            return self.target(output).float()
        return cast(Tensor, output.logits).float().gather(1, self.classes[:, None])[:, 0]

    def probability(self, output: EncoderOutput) -> Float[Tensor, " b"]:
        """The score as a probability, where there are classes: what is measured when pictures are changed."""
        if callable(self.target) or self.problem == "regression":
            return self.logit(output)
        logits = cast(Tensor, output.logits).float()
        scores = logits.softmax(1) if self.problem == "single_label" and logits.shape[1] > 1 else logits.sigmoid()
        return scores.gather(1, self.classes[:, None])[:, 0]

    @torch.no_grad()
    def probabilities(self, pixels: Float[Tensor, "n c y x"], place: int, batch_size: int) -> Float[Tensor, " n"]:
        """Probabilities of variants of the picture at one place in the batch, computed `batch_size` at a time."""
        alone = self.alone(place)
        found = []
        for part in pixels.split(batch_size):
            asked = alone if not isinstance(self.target, Tensor) else alone.repeated(len(part))
            found.append(asked.probability(self.model(part)))
        return torch.cat(found)

    def alone(self, place: int) -> Question:
        """The question about one picture of the batch."""
        target = self.target[place : place + 1] if isinstance(self.target, Tensor) else self.target
        return Question(self.model, self.pixels[place : place + 1], self.grid, target, self.problem)

    def repeated(self, times: int) -> Question:
        """The same question asked of each picture several times over."""
        target = self.target.repeat(times) if isinstance(self.target, Tensor) else self.target
        return Question(self.model, self.pixels.repeat(times, 1, 1, 1), self.grid, target, self.problem)

    def patches(self, of_tokens: Float[Tensor, "b n"]) -> Float[Tensor, "b i j"]:
        """Values of all tokens as a map over the patches."""
        return of_tokens[:, self.prefix :].float().unflatten(1, self.grid)


def reading_weights(model: nn.Module, tokens: int) -> Float[Tensor, " n"] | None:
    """From which tokens of the last block the answer is read, as weights that sum to one; None for attention pooling."""
    config: Any = cast(Any, model).config
    weights = torch.zeros(tokens)
    if config.pool == "attention":
        return None
    if config.pool in ("mean", "class_and_mean"):
        weights[config.prefix :] = 1 / (tokens - config.prefix)
    if config.pool in ("class", "class_and_mean"):
        weights[0] = 1.0
        if config.distillation_head:
            weights[1] = 1.0
    return weights / weights.sum()
