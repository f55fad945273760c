"""What may happen to the pictures that a detector learns from, with the boxes (and masks) in them.

Each step is an `Augment`: a pure function of an example and a generator. Objects of which nothing is left are dropped, and
the example's `kept` tells which rows of the original are there still; see `vitral.data.augment.example`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image

from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.data.augment.colour import ColourJitter
from vitral.data.augment.example import Augment, Chain, Example
from vitral.data.augment.geometry import Filter, Flip, Resized, checked_probability, checked_range, fill_of, moved
from vitral.errors import UsageError

__all__ = [
    "Either",
    "IoUCrop",
    "LeastSide",
    "ObjectAugmentation",
    "ScaleJitter",
    "ShortestSide",
    "SizeCrop",
    "ZoomOut",
]

_DETR_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def _chosen(example: Example, stays: Bool[np.ndarray, " k"]) -> Example:
    """The example with some of its objects."""
    if example.kept is None or stays.all():
        return example
    return Example(
        image=example.image,
        boxes=None if example.boxes is None else example.boxes[stays],
        masks=None if example.masks is None else example.masks[stays],
        class_map=example.class_map,
        points=example.points,
        kept=example.kept[stays],
        ignore=example.ignore,
    )


def _cut(example: Example, top: int, left: int, height: int, width: int) -> Example:
    """A window of the example, in whole pixels."""
    image = example.image.crop((left, top, left + width, top + height))
    return moved(example, image, (1.0, 0.0, float(left), 0.0, 1.0, float(top)))


# -- sizes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShortestSide:
    """The picture resized so that its shorter side has one of some lengths, unless the longer one would be too long.

    DETR's `RandomResize` (Carion et al. 2020, sec. A.4), with the roundings of the published image processors.

    Args:
        sides: the lengths, in pixels, all as likely.
        longest: the most that the longer side may have; None: any.
        interpolation: how it is resized, antialiased.

    Raises:
        UsageError: a field out of its range.
    """

    sides: tuple[int, ...] = _DETR_SIDES
    longest: int | None = 1333
    interpolation: Filter = "bilinear"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_sides("sides of a ShortestSide", self.sides)
        if self.longest is not None:
            whole_number("longest of a ShortestSide", self.longest)

    def size(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """(height, width) that a picture of a (height, width) is resized to for one of the lengths."""
        short, long = min(size), max(size)
        exact: float = side
        if self.longest is not None and long / short * side > self.longest:
            exact = self.longest * short / long
            side = max(1, round(exact))
        if short == side:
            return size
        other = max(1, int(exact * long / short))
        return (side, other) if size[0] <= size[1] else (other, side)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example at a size drawn."""
        side = self.sides[int(rng.random() * len(self.sides))]
        return Resized(size=self.size(example.size, side), interpolation=self.interpolation)(example, rng)


@dataclass(frozen=True, kw_only=True)
class SizeCrop:
    """A window whose sides are drawn each for itself (DETR's `RandomSizeCrop`, Carion et al. 2020, sec. A.4).

    Args:
        least: the shortest that a side may be, in pixels; a picture that is smaller keeps its own.
        most: the longest.

    Raises:
        UsageError: a field out of its range.
    """

    least: int = 384
    most: int = 600

    def __post_init__(self) -> None:
        if whole_number("least of a SizeCrop", self.least) > whole_number("most of a SizeCrop", self.most):
            raise UsageError(f"least of a SizeCrop must not exceed most, but they are {self.least} and {self.most}.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """A part of the example."""
        tall, wide, down, across = rng.random(4).tolist()
        height, width = (
            min(side, self.least) + int(draw * (min(side, self.most) - min(side, self.least) + 1))
            for side, draw in zip(example.size, (tall, wide), strict=True)
        )
        top, left = int(down * (example.size[0] - height + 1)), int(across * (example.size[1] - width + 1))
        return _cut(example, top, left, height, width)


@dataclass(frozen=True, kw_only=True)
class ScaleJitter:
    """Large-scale jitter: fitted into a size, made larger or smaller by a wide range, and cut to the size again.

    Ghiasi et al. 2021, "Simple Copy-Paste", sec. 3: (0.1, 2.0) is their large jitter, (0.8, 1.25) the standard one. What is
    smaller than the size stays smaller: a batch fills it up, and its mask says so.

    Args:
        size: (height, width) that the result has at most, in pixels.
        scale: lowest and highest factor, drawn evenly.
        interpolation: how it is resized, antialiased.

    Raises:
        UsageError: a field out of its range.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.1, 2.0)
    interpolation: Filter = "bilinear"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_sides("size of a ScaleJitter", self.size)
        checked_range("scale of a ScaleJitter", self.scale, 0)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example at a size drawn, cut."""
        draw, down, across = rng.random(3).tolist()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * draw
        ratio = factor * min(whole / side for whole, side in zip(self.size, example.size, strict=True))
        size = max(1, int(example.size[0] * ratio)), max(1, int(example.size[1] * ratio))
        example = Resized(size=size, interpolation=self.interpolation)(example, rng)
        height, width = (min(side, most) for side, most in zip(size, self.size, strict=True))
        if (height, width) == size:
            return example
        return _cut(example, int(down * (size[0] - height + 1)), int(across * (size[1] - width + 1)), height, width)


# -- crops --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class IoUCrop:
    """A window that shares enough with some object; objects whose centres are outside it are dropped.

    Liu et al. 2016, "SSD", sec. 2.2, with the trials and ranges of torchvision's `RandomIoUCrop`: how much must be shared is
    drawn first, then up to `trials` windows are; where none will do, all is drawn again. "The picture as it is" is one of
    the choices, so this ends. A picture without objects stays as it is.

    Args:
        probability: how often anything happens at all.
        overlaps: the shares (IoU of the window and an object's box) to choose from; 1 or more: the picture as it is.
        scale: shortest and longest side of the window, in parts of the picture's.
        ratio: lowest and highest width / height of it.
        trials: windows drawn for a choice.

    Raises:
        UsageError: a field out of its range; no choice that leaves the picture as it is.
    """

    probability: float = 0.8
    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.5, 2.0)
    trials: int = 40

    def __post_init__(self) -> None:
        check_choices(self)
        checked_probability("probability of an IoUCrop", self.probability)
        checked_range("scale of an IoUCrop", self.scale, 0, 1)
        checked_range("ratio of an IoUCrop", self.ratio, 0)
        whole_number("trials of an IoUCrop", self.trials)
        for one in self.overlaps:
            if real_number("overlaps of an IoUCrop", one) < 0:
                raise UsageError(f"overlaps of an IoUCrop must not be negative, but are {self.overlaps!r}.")
        if not any(one >= 1 for one in self.overlaps):
            raise UsageError(f"overlaps of an IoUCrop must hold 1, the picture as it is, but are {self.overlaps!r}.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, or a part of it."""
        boxes = example.boxes
        if rng.random() >= self.probability or boxes is None or not len(boxes):
            return example
        height, width = example.size
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        while (least := self.overlaps[int(rng.random() * len(self.overlaps))]) < 1:
            for draws in rng.random((self.trials, 4)).tolist():
                tall, wide = (
                    int((self.scale[0] + (self.scale[1] - self.scale[0]) * draw) * side)
                    for draw, side in zip(draws[:2], (height, width), strict=True)
                )
                if not tall or not wide or not self.ratio[0] <= wide / tall <= self.ratio[1]:
                    continue
                top, left = int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1))
                window = np.array([left, top, left + wide, top + tall], dtype=np.float32)
                inside = ((middles > window[:2]) & (middles < window[2:])).all(1)
                if inside.any() and _overlap(boxes[inside], window).max() >= least:
                    return _cut(_chosen(example, inside), top, left, tall, wide)
        return example


def _overlap(boxes: Float32[np.ndarray, "k 4"], window: Float32[np.ndarray, " four"]) -> Float[np.ndarray, " k"]:
    """Intersection over union of boxes and a window."""
    low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
    shared = (high - low).clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas + (window[2:] - window[:2]).prod() - shared)


@dataclass(frozen=True, kw_only=True)
class ZoomOut:
    """The picture somewhere on a larger ground of one colour, so that objects become small (Liu et al. 2016, SSD, sec. 3.6).

    Args:
        probability: how often.
        factor: lowest and highest length of the ground's sides, in parts of the picture's; at least 1.
        fill: the RGB colour of the ground.

    Raises:
        UsageError: a field out of its range.
    """

    probability: float = 0.5
    factor: tuple[float, float] = (1.0, 4.0)
    fill: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        checked_probability("probability of a ZoomOut", self.probability)
        checked_range("factor of a ZoomOut", self.factor, 0)
        if self.factor[0] < 1:
            raise UsageError(f"factor of a ZoomOut must be at least 1, but is {self.factor!r}.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, or the example on a ground."""
        chosen, draw, down, across = rng.random(4).tolist()
        if chosen >= self.probability:
            return example
        factor = self.factor[0] + (self.factor[1] - self.factor[0]) * draw
        height, width = (int(side * factor) for side in example.size)
        top, left = int(down * (height - example.size[0] + 1)), int(across * (width - example.size[1] + 1))
        image = Image.new(example.image.mode, (width, height), fill_of(example.image, self.fill))
        image.paste(example.image, (left, top))
        return moved(example, image, (1.0, 0.0, -float(left), 0.0, 1.0, -float(top)))


# -- choices ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Either:
    """One of two augmentations.

    Args:
        first: happens with `probability`.
        second: happens otherwise.
        probability: how often the first.

    Raises:
        UsageError: no probability.
    """

    first: Augment
    second: Augment
    probability: float = 0.5

    def __post_init__(self) -> None:
        checked_probability("probability of an Either", self.probability)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example after one of them."""
        return self.first(example, rng) if rng.random() < self.probability else self.second(example, rng)


@dataclass(frozen=True, kw_only=True)
class LeastSide:
    """Objects of which too little is left are dropped; no chance in it.

    Args:
        side: width and height that a box must have, in pixels.

    Raises:
        UsageError: less than 0.
    """

    side: float = 1.0

    def __post_init__(self) -> None:
        if real_number("side of a LeastSide", self.side) < 0:
            raise UsageError(f"side of a LeastSide must not be negative, but is {self.side!r}.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with the objects that are large enough."""
        if example.boxes is None:
            return example
        return _chosen(example, (example.boxes[:, 2:] - example.boxes[:, :2] >= self.side).all(1))


def _check_sides(name: str, sides: Sequence[int]) -> None:
    if not sides:
        raise UsageError(f"{name} must hold at least one length in pixels.")
    for side in sides:
        whole_number(name, side)


# -- the configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ObjectAugmentation:
    """All that may happen to a detector's training pictures, in the order in which it happens.

    The defaults are DETR's (Carion et al. 2020, sec. A.4). SSD's and RT-DETR's (Zhao et al. 2024, tab. of app. A) are
    `ObjectAugmentation(resize="exact", zoom_out=0.5, iou_crop=0.8, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05,
    colour=0.5)`; large-scale jitter is `ObjectAugmentation(resize="jitter")`.

    Args:
        brightness: jitter of brightness, see `ColourJitter`.
        contrast: jitter of contrast.
        saturation: jitter of saturation.
        hue: jitter of hue, at most 0.5.
        colour: how often colours are jittered at all.
        zoom_out: how often `ZoomOut` happens.
        zoom_out_factor: lowest and highest length of its ground's sides.
        iou_crop: how often `IoUCrop` happens.
        flip: probability that left and right change places.
        flip_vertical: probability that top and bottom do.
        resize: "exact": to the input's size, whatever the shape. "shortest": `ShortestSide`. "select": `ShortestSide`, or
            with `crop` odds first to one of `crop_sides`, then a `SizeCrop`, then `ShortestSide`. "jitter": `ScaleJitter`.
        sides: lengths of the shorter side.
        longest: the most that the longer side may have; None: any.
        crop: how often "select" cuts.
        crop_sides: lengths of the shorter side before it cuts.
        crop_range: shortest and longest side of what it cuts out, in pixels.
        jitter: lowest and highest factor of "jitter".
        least_side: an object of which less than this is left along either axis is dropped, in pixels of the input.
        interpolation: how pictures are resized; "random" is bilinear or bicubic.

    Raises:
        UnknownNameError: no such resize or interpolation.
        UsageError: a field out of its range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    colour: float = 1.0
    zoom_out: float = 0.0
    zoom_out_factor: tuple[float, float] = (1.0, 4.0)
    iou_crop: float = 0.0
    flip: float = 0.5
    flip_vertical: float = 0.0
    resize: Literal["exact", "shortest", "select", "jitter"] = "select"
    sides: tuple[int, ...] = _DETR_SIDES
    longest: int | None = 1333
    crop: float = 0.5
    crop_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    jitter: tuple[float, float] = (0.1, 2.0)
    least_side: float = 1.0
    interpolation: Filter = "bilinear"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("colour", "zoom_out", "iou_crop", "flip", "flip_vertical", "crop"):
            checked_probability(name, getattr(self, name))
        self.chain((1, 1))  # each step checks its own fields

    @property
    def sized(self) -> bool:
        """Whether the input's size is the caller's to say; otherwise it depends on the picture."""
        return self.resize in ("exact", "jitter")

    def chain(self, size: tuple[int, int] | None, fill: tuple[int, int, int] = (128, 128, 128)) -> Chain:
        """What happens to a picture before it becomes a tensor.

        Args:
            size: (height, width) of the input, for "exact" and "jitter".
            fill: the RGB colour of a ground that is zoomed out to.

        Raises:
            UsageError: a size is needed, and none came.
        """
        steps: list[Augment] = []
        jitter = ColourJitter(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            probability=self.colour,
        )
        if self.colour and (self.brightness or self.contrast or self.saturation or self.hue):
            steps.append(jitter)
        if self.zoom_out:
            steps.append(ZoomOut(probability=self.zoom_out, factor=self.zoom_out_factor, fill=fill))
        if self.iou_crop:
            steps.append(IoUCrop(probability=self.iou_crop))
        if self.flip:
            steps.append(Flip(probability=self.flip))
        if self.flip_vertical:
            steps.append(Flip(probability=self.flip_vertical, axis="vertical"))
        return Chain((*steps, self._resized(size), LeastSide(side=self.least_side)))

    def _resized(self, size: tuple[int, int] | None) -> Augment:
        """How a picture gets its size."""
        if self.sized:
            if size is None:
                raise UsageError(f'resize="{self.resize}" needs the size of the input, (height, width) in pixels.')
            if self.resize == "exact":
                return Resized(size=size, interpolation=self.interpolation)
            return ScaleJitter(size=size, scale=self.jitter, interpolation=self.interpolation)
        whole = ShortestSide(sides=self.sides, longest=self.longest, interpolation=self.interpolation)
        if self.resize == "shortest":
            return whole
        least, most = self.crop_range
        first = ShortestSide(sides=self.crop_sides, longest=None, interpolation=self.interpolation)
        cut = Chain((first, SizeCrop(least=least, most=most), whole))
        return Either(first=cut, second=whole, probability=self.crop)
