"""What is asked of a model when an answer is to be explained: which pictures, and which score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import EncoderOutput
from vitral.models.record import Record
from vitral.tasks.classification.result import scores_of

__all__ = ["Heat", "Question", "ScoreOf", "gradients", "read_from", "reading_weights"]

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
        record: the model's; it says how logits become probabilities.
        black: the input's values of a black pixel.
    """

    model: nn.Module
    pixels: Float[Tensor, "b c y x"]
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    prefix: int
    target: Int[Tensor, " b"] | ScoreOf | None = None
    record: Record = field(default_factory=Record)
    black: Float[Tensor, "c 1 1"] = field(default_factory=lambda: torch.zeros(3, 1, 1))

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
        """The score before it becomes a probability, in single precision: what gradients are taken of.

        Raises:
            UsageError: the caller's own score is not one number per picture.
        """
        if not callable(self.target):
            return self.of_class(cast(Tensor, output.logits).float())
        score: Any = self.target(output)
        if not isinstance(score, Tensor) or score.shape != output.tokens.shape[:1]:
            came = f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else repr(score)
            raise UsageError(f"A score of your own must be one number per picture, here {len(output.tokens)}; {came} came.")
        return score.float()

    def probability(self, output: EncoderOutput) -> Float[Tensor, " n"]:
        """The score as a probability, where there are classes: what is watched when a picture is changed."""
        if callable(self.target):
            return self.logit(output)
        return self.of_class(self.probabilities(cast(Tensor, output.logits)))

    def probabilities(self, logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Logits as probabilities, where they are logits of classes, in single precision."""
        return scores_of(logits, "default", self.record)

    def of_class(self, of_classes: Float[Tensor, "n ... c"]) -> Float[Tensor, "n ..."]:
        """The number of each picture's class; the class of a single picture is also that of every variant of it."""
        places = self.classes.view(-1, *[1] * (of_classes.ndim - 1))
        return of_classes.take_along_dim(places, dim=-1)[..., 0]

    @torch.no_grad()
    def probability_seen(self, seen: Float[Tensor, "s y x"]) -> Float[Tensor, " s"]:
        """The probability for the one picture asked about when only a part of it is seen.

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

    def read_out(self, tokens: Float[Tensor, "b n d"]) -> EncoderOutput:
        """What the model would answer, were these the tokens behind its last block."""
        output: EncoderOutput = cast(Any, self.model).read_out(tokens, self.grid)
        return output

    def reading(self, pool: Float[Tensor, "b 1 m"] | None) -> Float[Tensor, "b n"]:
        """What the answer takes from each token behind the last block; for `pool` see `read_from`."""
        return read_from(self.model, self.tokens, pool).to(self.pixels.device).expand(len(self.pixels), -1)

    def alone(self, place: int) -> Question:
        """The question about one picture of the batch."""
        target = self.target[place : place + 1] if isinstance(self.target, Tensor) else self.target
        return replace(self, pixels=self.pixels[place : place + 1], target=target)

    def token(
        self,
        asked: SupportsIndex | str | tuple[SupportsIndex, SupportsIndex],
        grid: tuple[int, int] | None = None,
        prefix: int | None = None,
    ) -> int:
        """The number of a token: of a number, of a name, or of row and column of a patch.

        Args:
            asked: which.
            grid: rows and columns of a layer's tokens; by default those of the patches.
            prefix: how many tokens stand before them.

        Raises:
            UnknownNameError: no token before the patches is called so.
            UsageError: it is none of these, or there is no such patch.
        """
        grid, prefix = grid or self.grid, self.prefix if prefix is None else prefix
        names: tuple[str, ...] = cast(Any, self.model).config.prefix_names[:prefix]
        if isinstance(asked, str):
            if asked not in names:
                raise UnknownNameError("token", asked, names)
            return names.index(asked)
        number = as_integer(asked)
        if number is not None:
            return number
        place = [as_integer(one) for one in asked] if isinstance(asked, tuple) else []
        if len(place) != 2 or not all(one is not None and 0 <= one < side for one, side in zip(place, grid, strict=True)):
            rows, columns = grid
            raise UsageError(
                f"A token is a number, a name, or (row, column) in the grid of {rows} × {columns} patches; {asked!r} came."
            )
        return prefix + cast(int, place[0]) * grid[1] + cast(int, place[1])

    def patches(self, of_tokens: Float[Tensor, "b n"], grid: tuple[int, int] | None = None) -> Float[Tensor, "b i j"]:
        """Values of all tokens, or of the patches alone, as a map over the patches, in single precision.

        Args:
            of_tokens: a value for each.
            grid: rows and columns of a layer's tokens; by default those of the patches.
        """
        grid = grid or self.grid
        return of_tokens[:, -grid[0] * grid[1] :].float().unflatten(1, grid)


def reading_weights(model: nn.Module, tokens: int, prefix: int | None = None) -> Float[Tensor, " n"] | None:
    """From which tokens of the last block the answer is read, as weights that sum to one; None for attention pooling.

    Args:
        model: it knows what its classifier reads.
        tokens: how many there are.
        prefix: how many of them stand before the patches, where it is an earlier stage's tokens that are asked about; a
            stage without the class token is read as one whose mean is.
    """
    config: Any = cast(Any, model).config
    if config.pool == "attention":
        return None
    prefix = config.prefix if prefix is None else prefix
    weights = torch.zeros(tokens)
    if prefix == 0 or config.pool not in ("class",):
        weights[prefix:] = 1 / (tokens - prefix)
    if prefix and config.pool in ("class", "class_and_mean"):
        weights[0] = 1.0
    if prefix > 1 and getattr(config, "distillation_head", False):
        weights[1] = 1.0
    return weights / weights.sum()


def read_from(model: nn.Module, tokens: int, pool: Float[Tensor, "b 1 m"] | None) -> Float[Tensor, "#b n"]:
    """What the answer takes from each token behind the last block.

    Args:
        model: it knows which tokens it reads.
        tokens: how many there are.
        pool: how attention pooling reads them, where a model does; all of them, or the patches alone.
    """
    weights = reading_weights(model, tokens)
    if weights is not None:
        return weights[None]
    if pool is None:
        raise UsageError("The model pools by attention, but the map of its pool was not captured.")
    return F.pad(pool[:, 0], (tokens - pool.shape[2], 0))


def gradients(score: Float[Tensor, " b"], by: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
    """Gradients of each picture's score by some tensors, in single precision; no picture's score depends on another.

    Args:
        score: one number per picture, in the graph.
        by: tensors that it was computed from.
        keep: whether the graph is needed again.

    Raises:
        UsageError: a score that cannot be differentiated by them, or numbers that are not finite.
    """
    if not score.requires_grad:
        raise UsageError("The score to be explained leads back to nothing that can be differentiated.")
    found = torch.autograd.grad(score.sum(), by, retain_graph=keep, allow_unused=True)
    if any(one is None for one in found):
        raise UsageError("The score to be explained does not depend on everything that this method looks at in the model.")
    if not all(torch.isfinite(one).all() for one in (score, *found)):
        raise UsageError("The score to be explained, or its gradient, is not a finite number. Try dtype='float32'.")
    return [one.float() for one in found]
