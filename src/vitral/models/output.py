"""What a model gives back."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Denoised", "EncoderOutput", "Level", "Predicted", "Pyramid", "SetOutput"]


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


class Predicted(NamedTuple):
    """What is said of every query, or of every place that is asked.

    Attributes:
        logits: a number for each class (b q c).
        boxes: cxcywh in [0, 1] of the picture without what fills the batch up (b q 4).
    """

    logits: Float[Tensor, "b q c"]
    boxes: Float[Tensor, "b q 4"]


class Denoised(NamedTuple):
    """What became of known objects that were shown to a decoder with noise, for it to learn to take the noise away.

    Li et al. 2022 (DN-DETR, section 4), Zhang et al. 2023 (DINO, section 3.3).

    Attributes:
        layers: what every layer of the decoder says of the noisy queries, the first layer first.
        rows: which queries are to become objects, for each picture.
        objects: for each of these rows, which of the picture's objects; all other queries are to become nothing.
        groups: how often each object was shown.
    """

    layers: tuple[Predicted, ...]
    rows: tuple[Int[Tensor, " _"], ...]
    objects: tuple[Int[Tensor, " _"], ...]
    groups: int


class SetOutput(NamedTuple):
    """A set of objects: every query is one of them, or nothing (Carion et al. 2020, DETR, section 3).

    Attributes:
        logits: of the last layer (b q c).
        boxes: of the last layer, cxcywh in [0, 1] of the picture without what fills the batch up (b q 4).
        scoring: how logits become scores. "softmax": over the classes and, behind them, nothing; "sigmoid": of each class
            on its own, nothing being where all are low.
        queries: what the queries are behind the last layer (b q d).
        auxiliary: what the layers before the last one say, the first layer first; they are taught as the last one is.
        proposals: what the encoder proposes for the queries to begin with, where it does. With a single class it only says
            whether there is an object.
        denoising: what became of known objects with noise; in training, where the network is taught so.
    """

    logits: Float[Tensor, "b q c"]
    boxes: Float[Tensor, "b q 4"]
    scoring: Literal["softmax", "sigmoid"]
    queries: Float[Tensor, "b q d"]
    auxiliary: tuple[Predicted, ...] = ()
    proposals: Predicted | None = None
    denoising: Denoised | None = None
