"""What is asked of a model when an answer is to be explained: which pictures, and which score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.models.output import EncoderOutput

__all__ = ["Heat", "Question", "ScoreOf", "all_finite", "read_back", "reading_weights", "whole_number"]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Pictures of one size, and the score of each that is to be explained.

    Attributes:
        model: the network, in evaluation mode.
        pixels: its input.
        grid: rows and columns of patches of that input.
        patch_size: height and width of a patch in pixels.
        prefix: how many tokens stand before the patches.
        target: the class of each picture, or a score of the caller's own, or nothing for methods that know no class.
        problem: how logits become probabilities; see `models.record.Record`.
        black: the input's values of a black pixel.
    """

    model: nn.Module
    pixels: Float[Tensor, "b c y x"]
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    prefix: int
    target: Int[Tensor, " b"] | ScoreOf | None = None
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    black: Float[Tensor, "1 c 1 1"] = field(default_factory=lambda: torch.zeros(1, 3, 1, 1))

    @property
    def tokens(self) -> int:
        """How many tokens a picture has."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def classes(self) -> Int[Tensor, " b"]:
        """The class of each picture.

        Raises:
            UsageError: what is asked for is no class.
        """
        if not isinstance(self.target, Tensor):
            raise UsageError("This method explains a class of the model; its target cannot be a score of your own.")
        return self.target

    def differentiable(self) -> Float[Tensor, "b c y x"]:
        """The input as something to differentiate by, so that everything behind it is in the graph."""
        return self.pixels.detach().requires_grad_()

    def logit(self, output: EncoderOutput) -> Float[Tensor, " n"]:
        """The score before it becomes a probability, in single precision: what gradients are taken of."""
        return self.target(output).float() if callable(self.target) else self._of_class(cast(Tensor, output.logits).float())

    def probable(self, logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Logits as probabilities, where they are logits of classes."""
        if self.problem == "regression":
            return logits
        return logits.softmax(-1) if self.problem == "single_label" and logits.shape[-1] > 1 else logits.sigmoid()

    def probability(self, output: EncoderOutput) -> Float[Tensor, " n"]:
        """The score as a probability, where there are classes: what is watched when a picture is changed."""
        if callable(self.target):
            return self.logit(output)
        return self._of_class(self.probable(cast(Tensor, output.logits).float()))

    def _of_class(self, of_classes: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The target's column; the class of a single picture is also that of every variant of it."""
        return of_classes.gather(1, self.classes.expand(len(of_classes))[:, None])[:, 0]

    @torch.no_grad()
    def probabilities(self, seen: Float[Tensor, "s y x"]) -> Float[Tensor, " s"]:
        """Probabilities for the one picture asked about when only a part of it is seen.

        Args:
            seen: for each variant what share of each pixel is seen; the rest is grey (zero after normalisation). Pixels
                beyond it, at the bottom and at the right, and everything if it is a single pixel, are seen.
        """
        height, width = self.pixels.shape[2:]
        beyond = (0, width - seen.shape[2], 0, height - seen.shape[1])
        whole = F.pad(seen, beyond, value=1.0).to(self.pixels)[:, None]
        return self.probability(self.model(self.pixels * whole)).cpu()

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """Logits of tokens of the residual stream, read one by one as if each were pooled."""
        logits: Tensor = cast(Any, self.model).read_tokens(tokens)
        return logits

    def alone(self, place: int) -> Question:
        """The question about one picture of the batch."""
        target = self.target[place : place + 1] if isinstance(self.target, Tensor) else self.target
        return replace(self, pixels=self.pixels[place : place + 1], target=target)

    def patches(self, of_tokens: Float[Tensor, "b n"]) -> Float[Tensor, "b i j"]:
        """Values of all tokens as a map over the patches, in single precision."""
        return of_tokens[:, self.prefix :].float().unflatten(1, self.grid)


def reading_weights(model: nn.Module, tokens: int) -> Float[Tensor, " n"] | None:
    """From which tokens of the last block the answer is read, as weights that sum to one; None for attention pooling."""
    config: Any = cast(Any, model).config
    if config.pool == "attention":
        return None
    weights = torch.zeros(tokens)
    if config.pool in ("mean", "class_and_mean"):
        weights[config.prefix :] = 1 / (tokens - config.prefix)
    if config.pool in ("class", "class_and_mean"):
        weights[0] = 1.0
    if config.distillation_head:
        weights[1] = 1.0
    return weights / weights.sum()


def read_back(model: nn.Module, flow: Float[Tensor, "b n n"], pool: Float[Tensor, "b 1 m"] | None) -> Float[Tensor, "b n"]:
    """What the answer took from each token of the input.

    Args:
        model: it knows which tokens it reads.
        flow: what each token of the last block (rows) took from each of the input (columns).
        pool: how attention pooling reads the last block's tokens, where a model does; of all tokens, or the patches alone.
    """
    weights = reading_weights(model, flow.shape[1])
    if weights is not None:
        return weights.to(flow) @ flow
    if pool is None:
        raise UsageError("The model pools by attention, but the map of its pool was not captured.")
    return (pool.to(flow) @ flow[:, flow.shape[1] - pool.shape[2] :])[:, 0]


def whole_number(name: str, number: Any) -> None:
    """Refuse what is no whole number of at least one."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UsageError(f"{name} must be a whole number of at least 1; {number!r} came.")


def all_finite(what: str, *arrays: np.ndarray) -> None:
    """Refuse numbers that are NaN or infinite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise UsageError(f"The {what} are not all finite (NaN or infinity).")
