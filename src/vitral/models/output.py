"""What a model gives back."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitral.base.boxes import xyxy_to_cxcywh
from vitral.models.detection.anchors import corrected, within_edges

__all__ = [
    "Denoised",
    "DenseOutput",
    "EncoderOutput",
    "Level",
    "MapOutput",
    "MaskOutput",
    "Predicted",
    "PredictedMasks",
    "Pyramid",
    "RegionOutput",
    "SetOutput",
]


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
        auxiliary: in training, the logits of classifiers that read maps further down, so that learning reaches them.
    """

    tokens: Float[Tensor, "b n d"]
    grid: tuple[int, int]
    prefix: int
    pooled: Float[Tensor, "b e"]
    logits: Float[Tensor, "b c"] | None
    heads: tuple[Float[Tensor, "b c"], ...]
    auxiliary: tuple[Float[Tensor, "b c"], ...] = ()

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


class DenseOutput(NamedTuple):
    """What is said of every anchor of every map (Lin et al. 2017, RetinaNet; Tian et al. 2019, FCOS).

    Attributes:
        logits: of each class on its own (b q c); nothing is where all are low.
        offsets: how an anchor becomes a box (b q 4), in the terms of `coding`.
        anchors: xyxy in pixels of the input (q 4), the same for all pictures; those of the finest map first.
        counts: how many of them each map has.
        sizes: height and width of each picture in pixels, without what fills it up (b 2).
        coding: "corrections" of centre and size, or distances of the "edges" from the anchor's middle, in its sides.
        taught: how boxes are taught: by the distance of the offsets ("l1"), or the generalized IoU of the boxes ("giou").
        centerness: how near to the middle of its object an anchor says it is, as a logit (b q); where the network says it.
    """

    logits: Float[Tensor, "b q c"]
    offsets: Float[Tensor, "b q 4"]
    anchors: Float[Tensor, "q 4"]
    counts: tuple[int, ...]
    sizes: Float[Tensor, "b 2"]
    coding: Literal["corrections", "edges"]
    taught: Literal["l1", "giou"]
    centerness: Float[Tensor, "b q"] | None = None

    @property
    def boxes(self) -> Float[Tensor, "b q 4"]:
        """The boxes, cxcywh in [0, 1] of the picture without what fills it up; they may reach beyond it."""
        made = corrected if self.coding == "corrections" else within_edges
        return _relative(made(self.offsets.float(), self.anchors), self.sizes[:, None])


class RegionOutput(NamedTuple):
    """What is said of the regions that were proposed for a closer look (Ren et al. 2015, Faster R-CNN).

    Pictures have different numbers of regions. Where one has fewer, rows are filled up: `valid` is False there, and logits
    say that there is nothing.

    Attributes:
        logits: of the classes and, behind them, nothing (b q c), which exclude each other.
        offsets: how the region becomes a box, if it is of this class (b q c 4): corrections of centre and size, times
            `weights`.
        regions: xyxy in pixels of the input (b q 4).
        valid: which rows are regions (b q).
        sizes: height and width of each picture in pixels, without what fills it up (b 2).
        weights: of the corrections of the centre and of the size.
        proposing: what the first look says of the anchors; its single class is that of all objects.
    """

    logits: Float[Tensor, "b q c"]
    offsets: Float[Tensor, "b q c 4"]
    regions: Float[Tensor, "b q 4"]
    valid: Bool[Tensor, "b q"]
    sizes: Float[Tensor, "b 2"]
    weights: tuple[float, float]
    proposing: DenseOutput

    @property
    def boxes(self) -> Float[Tensor, "b q 4"]:
        """The boxes that regions become as what they most likely are, cxcywh in [0, 1] of the picture."""
        best = self.logits[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
        chosen = self.offsets.gather(2, best)[:, :, 0]
        return _relative(corrected(chosen.float(), self.regions, self.weights), self.sizes[:, None])


class MapOutput(NamedTuple):
    """What every cell of a map shows; the map may be coarser than the picture (Long et al. 2015, FCN).

    Attributes:
        logits: of the classes, which exclude each other (b c i j). The map covers the whole input, whatever its size.
        auxiliary: in training, the logits of heads that read maps further down (b c _ _), so that learning reaches them.
    """

    logits: Float[Tensor, "b c i j"]
    auxiliary: tuple[Float[Tensor, "b c _ _"], ...] = ()


class PredictedMasks(NamedTuple):
    """What is said of every query's mask.

    Attributes:
        logits: a number for each class and, behind them, nothing (b q c).
        masks: the logits of every query's pixels (b q i j).
    """

    logits: Float[Tensor, "b q c"]
    masks: Float[Tensor, "b q i j"]


class MaskOutput(NamedTuple):
    """A set of masks: every query is one thing, one kind of stuff, or nothing (Cheng et al. 2021, MaskFormer, section 3.2).

    Attributes:
        logits: of the last layer, of the classes and, behind them, nothing (b q c).
        masks: the logits of every query's pixels (b q i j). The map covers the whole input, and may be coarser.
        queries: what the queries are behind the last layer (b q d).
        auxiliary: in training, what the layers before the last one say, the first layer first; taught as the last one is.
        boxes: of every query, cxcywh in [0, 1] of the picture without what fills the batch up (b q 4), where the network
            says them.
        canvas: (height, width) to which masks are brought before anything is decided from them; None: as they are.
        instances: how single objects are read from it. "pairs": every query is asked for every class, and its mask may lie
            over others' (Mask2Former); "partition": a query is one object, and every pixel is of one query (DETR).
    """

    logits: Float[Tensor, "b q c"]
    masks: Float[Tensor, "b q i j"]
    queries: Float[Tensor, "b q d"]
    auxiliary: tuple[PredictedMasks, ...] = ()
    boxes: Float[Tensor, "b q 4"] | None = None
    canvas: tuple[int, int] | None = None
    instances: Literal["pairs", "partition"] = "pairs"


def _relative(boxes: Float[Tensor, "b q 4"], sizes: Float[Tensor, "b 1 2"]) -> Float[Tensor, "b q 4"]:
    """Boxes xyxy in pixels as cxcywh in [0, 1] of pictures of these heights and widths."""
    return xyxy_to_cxcywh(boxes) / torch.cat([sizes, sizes], dim=-1).flip(-1)
