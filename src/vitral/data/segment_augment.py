"""What may happen to the pictures that a segmenter learns from, with the maps and masks of them.

Each step is an `Augment`: a pure function of an example and a generator. Maps and masks follow the picture pixel by pixel;
what is brought in from outside is ignored in maps and in no mask. Large-scale jitter, which segmenters of objects and of
panoptic segments learn with, is `vitral.data.object_augment.ObjectAugmentation(resize="jitter")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Integer
from PIL import Image

from vitral.base.config import check_choices
from vitral.base.numbers import whole_number
from vitral.data.augment.colour import ColourJitter
from vitral.data.augment.example import Augment, Chain, Example
from vitral.data.augment.geometry import Filter, Flip, Resized, checked_probability, checked_range, fill_of, moved
from vitral.errors import UsageError

__all__ = ["CategoryCrop", "PaddedTo", "RandomScale", "SegmentAugmentation"]

_STRETCH = 4  # times the shorter side that the longer one may have (ADE20K's 2048 × 512)


@dataclass(frozen=True, kw_only=True)
class RandomScale:
    """The picture made larger or smaller, its shape kept.

    Args:
        scale: lowest and highest factor, drawn evenly.
        side: the length of the shorter side at factor 1, in pixels, unless the longer one would have more than four times
            as many; None: the picture's own size.
        interpolation: how it is resized, antialiased.

    Raises:
        UsageError: a field out of its range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    side: int | None = None
    interpolation: Filter = "bilinear"

    def __post_init__(self) -> None:
        check_choices(self)
        checked_range("scale of a RandomScale", self.scale, 0)
        if self.side is not None:
            whole_number("side of a RandomScale", self.side)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example at a size drawn."""
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * float(rng.random())
        if self.side is not None:
            factor *= min(self.side / min(example.size), _STRETCH * self.side / max(example.size))
        height, width = (max(1, round(side * factor)) for side in example.size)
        return Resized(size=(height, width), interpolation=self.interpolation)(example, rng)


@dataclass(frozen=True, kw_only=True)
class CategoryCrop:
    """A window in which no class takes up almost all: of some windows drawn, the first that will do, else the last.

    Chen et al. 2017, "Rethinking Atrous Convolution", and what trained its successors since: at most 0.75 of the pixels of
    which the class is known, and at least two classes. Without a class map any window will do.

    Args:
        size: (height, width) of the window, in pixels; a side that the picture has not is the picture's.
        most: the most that one class may take up, of the pixels of which the class is known; 1: any window will do.
        trials: windows drawn.

    Raises:
        UsageError: a field out of its range.
    """

    size: tuple[int, int]
    most: float = 0.75
    trials: int = 10

    def __post_init__(self) -> None:
        _check_size("size of a CategoryCrop", self.size)
        checked_probability("most of a CategoryCrop", self.most)
        whole_number("trials of a CategoryCrop", self.trials)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """A part of the example, or all of it where it is no larger."""
        height, width = (min(wanted, side) for wanted, side in zip(self.size, example.size, strict=True))
        if (height, width) == example.size:
            return example
        top = left = 0
        for down, across in rng.random((self.trials, 2)).tolist():
            top, left = int(down * (example.size[0] - height + 1)), int(across * (example.size[1] - width + 1))
            if example.class_map is None or self.most == 1:
                break
            if _share(example.class_map[top : top + height, left : left + width], example.ignore) < self.most:
                break
        image = example.image.crop((left, top, left + width, top + height))
        return moved(example, image, (1.0, 0.0, float(left), 0.0, 1.0, float(top)))


def _share(class_map: Integer[np.ndarray, "y x"], ignore: int) -> float:
    """How much of the known pixels the commonest class takes up; 1 where none is known."""
    counts = np.unique(class_map[class_map != ignore], return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else 1.0


@dataclass(frozen=True, kw_only=True)
class PaddedTo:
    """The picture in the left top corner of a ground of one colour, where it is smaller; no chance in it.

    Args:
        size: (height, width) that the result has at least, in pixels.
        fill: the RGB colour of the ground.

    Raises:
        UsageError: a size that is none.
    """

    size: tuple[int, int]
    fill: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        _check_size("size of a PaddedTo", self.size)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, filled up."""
        height, width = (max(wanted, side) for wanted, side in zip(self.size, example.size, strict=True))
        if (height, width) == example.size:
            return example
        image = Image.new(example.image.mode, (width, height), fill_of(example.image, self.fill))
        image.paste(example.image, (0, 0))
        return moved(example, image, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))


def _check_size(name: str, size: tuple[int, int]) -> None:
    if len(size) != 2:
        raise UsageError(f"{name} must be (height, width) in pixels, but is {size!r}.")
    for side in size:
        whole_number(name, side)


@dataclass(frozen=True, kw_only=True)
class SegmentAugmentation:
    """All that may happen to a segmenter's training pictures, in the order in which it happens.

    The defaults are those that SegFormer, UPerNet, SETR and Segmenter were trained with on ADE20K (Xie et al. 2021,
    "SegFormer", sec. 4.1). For Cityscapes, whose pictures all have one size, `relative="picture"`.

    Args:
        scale: lowest and highest factor of `RandomScale`.
        relative: what factor 1 is. "input": the shorter side has the length of the input's. "picture": its own size.
        most: the most that one class may take up of a window; see `CategoryCrop`.
        flip: probability that left and right change places.
        flip_vertical: probability that top and bottom do.
        brightness: jitter of brightness, see `ColourJitter`.
        contrast: jitter of contrast.
        saturation: jitter of saturation.
        hue: jitter of hue, at most 0.5.
        colour: how often colours are jittered at all.
        interpolation: how pictures are resized; "random" is bilinear or bicubic.

    Raises:
        UnknownNameError: no such choice.
        UsageError: a field out of its range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    relative: Literal["input", "picture"] = "input"
    most: float = 0.75
    flip: float = 0.5
    flip_vertical: float = 0.0
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05
    colour: float = 0.5
    interpolation: Filter = "bilinear"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("most", "flip", "flip_vertical", "colour"):
            checked_probability(name, getattr(self, name))
        self.chain((1, 1))  # each step checks its own fields

    @property
    def sized(self) -> bool:
        """Whether the input's size is the caller's to say: it always is."""
        return True

    def chain(self, size: tuple[int, int] | None, fill: tuple[int, int, int] = (128, 128, 128)) -> Chain:
        """What happens to a picture before it becomes a tensor.

        Args:
            size: (height, width) of the input.
            fill: the RGB colour of what fills a smaller picture up.

        Raises:
            UsageError: no size came.
        """
        if size is None:
            raise UsageError("A SegmentAugmentation needs the size of the input, (height, width) in pixels.")
        side = min(size) if self.relative == "input" else None
        steps: list[Augment] = [
            RandomScale(scale=self.scale, side=side, interpolation=self.interpolation),
            CategoryCrop(size=size, most=self.most),
        ]
        if self.flip:
            steps.append(Flip(probability=self.flip))
        if self.flip_vertical:
            steps.append(Flip(probability=self.flip_vertical, axis="vertical"))
        jitter = ColourJitter(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            probability=self.colour,
        )
        if self.colour and (self.brightness or self.contrast or self.saturation or self.hue):
            steps.append(jitter)
        return Chain((*steps, PaddedTo(size=size, fill=fill)))
