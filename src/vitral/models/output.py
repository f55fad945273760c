"""What a model gives back."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["EncoderOutput", "Level", "Pyramid"]


class EncoderOutput(NamedTuple):
    """Tokens of a picture and what a classifier made of them.

    Attributes:
        tokens: every token after the last norm (b n d): first the `prefix` tokens (class, distillation, registers), then
            the patches, or the cells of the last map of a network of maps, in reading order.
        grid: rows and columns of patches (i, j); n = prefix + i · j.
        prefix: how many tokens stand before the patches.
        pooled: one vector per picture, what the classifier reads (b e).
        logits: one number per picture and class, the mean over `heads` (b c); None for a model without classes.
        heads: the logits of every classifier on its own: of the class token and, for a distilled DeiT, of the
            distillation token.
    """

    tokens: Float[Tensor, "b n d"]
    grid: tuple[int, int]
    prefix: int
    pooled: Float[Tensor, "b e"]
    logits: Float[Tensor, "b c"] | None
    heads: tuple[Float[Tensor, "b c"], ...]

    @property
    def feature_map(self) -> Float[Tensor, "b d i j"]:
        """The patches' tokens laid out as a picture."""
        return self.tokens[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)


class Level(NamedTuple):
    """A place in a network where a map can be taken.

    Attributes:
        channels: of the map.
        stride: pixels of the picture from one of its cells to the next.
    """

    channels: int
    stride: int


class Pyramid(NamedTuple):
    """Maps of a picture, for whoever looks for small and for large things.

    Attributes:
        maps: from fine to coarse (b d i j), each with channels and a size of its own.
        strides: for each, pixels of the picture from one cell to the next.
    """

    maps: tuple[Float[Tensor, "b _ _ _"], ...]
    strides: tuple[int, ...]
