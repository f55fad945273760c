"""RandAugment (Cubuk et al. 2020): a few operations drawn at random from fifteen, at one magnitude for all of them.

Whose ranges: those of timm's "increasing" set, which DeiT and most vision transformers since were trained with (timm writes
`rand-m9-mstd0.5-inc1`). A magnitude m from 0 to 10 becomes, with s either sign at even odds:

| operation | its argument |
| --- | --- |
| auto_contrast, equalize, invert | none |
| rotate | 3 s m degrees, counter-clockwise |
| shear_x, shear_y | a slant of 0.03 s m |
| translate_x, translate_y | 4.5 s m per cent of the picture's side |
| colour, contrast, brightness, sharpness | a factor of 1 + 0.09 s m, at least 0.1 |
| posterize | 4 - ⌊0.4 m⌋ bits are kept, at least one |
| solarize | levels from 256 - ⌊25.6 m⌋ on are inverted |
| solarize_add | ⌊11 m⌋ is added to levels below 128 |

Two things in timm's form are not in the paper: each drawn operation is left out with even odds (the paper has an identity
among its fourteen instead), and the magnitude is Gaussian about its mean. Both are arguments here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageEnhance

from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.data.augment.colour import with_brightness, with_contrast, with_saturation, with_solarized
from vitral.data.augment.example import Example
from vitral.data.augment.geometry import Filter, Matrix, checked_probability, resampling, turned
from vitral.errors import UnknownNameError, UsageError

__all__ = ["OPERATIONS", "Operation", "RandAugment", "argument_of", "operated"]

Operation = Literal[
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
]

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
"""All fifteen, in timm's order."""


# -- what a magnitude means ---------------------------------------------------------------------------------------------


def _factor(magnitude: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.09 * magnitude)


_ARGUMENTS: dict[str, Callable[[float, int], float]] = {
    "auto_contrast": lambda magnitude, sign: 0.0,
    "equalize": lambda magnitude, sign: 0.0,
    "invert": lambda magnitude, sign: 0.0,
    "rotate": lambda magnitude, sign: sign * 3.0 * magnitude,
    "posterize": lambda magnitude, sign: max(1, 4 - int(magnitude / 10 * 4)),  # without any bit, all is black
    "solarize": lambda magnitude, sign: 256 - int(magnitude / 10 * 256),
    "solarize_add": lambda magnitude, sign: int(magnitude / 10 * 110),
    "colour": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
    "shear_x": lambda magnitude, sign: sign * 0.03 * magnitude,
    "shear_y": lambda magnitude, sign: sign * 0.03 * magnitude,
    "translate_x": lambda magnitude, sign: sign * 0.045 * magnitude,
    "translate_y": lambda magnitude, sign: sign * 0.045 * magnitude,
}


def argument_of(operation: Operation, magnitude: float, sign: int = 1) -> float:
    """What a magnitude means to an operation, by the table above.

    Args:
        operation: which.
        magnitude: from 0 to 10.
        sign: 1 or -1, for operations that go two ways.

    Raises:
        UnknownNameError: no such operation.
    """
    if operation not in _ARGUMENTS:
        raise UnknownNameError("operation of RandAugment", operation, OPERATIONS)
    return _ARGUMENTS[operation](magnitude, sign)


# -- what an operation does ---------------------------------------------------------------------------------------------


def _auto_contrast(image: Image.Image, _: float) -> Image.Image:
    """Each channel stretched to all levels."""
    extrema = image.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return image.point([level for low, high in pairs for level in _stretched(int(low), int(high))])


@cache
def _stretched(low: int, high: int) -> list[int]:
    if high <= low:
        return list(range(256))
    scale = 255.0 / (high - low)
    offset = -low * scale
    return [max(0, min(255, int(level * scale + offset))) for level in range(256)]


def _equalize(image: Image.Image, _: float) -> Image.Image:
    """Each channel's levels spread so that all are about as frequent."""
    counts = np.array(image.histogram()).reshape(-1, 256)
    table = np.tile(np.arange(256), (len(counts), 1))
    for row, count in enumerate(counts):
        present = count[count > 0]
        step = int(count.sum() - present[-1]) // 255
        if len(present) > 1 and step:
            table[row] = np.minimum((step // 2 + np.cumsum(count) - count) // step, 255)
    return image.point(table.ravel().tolist())


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return image.point(_posterized(int(bits)) * len(image.getbands()))


@cache
def _posterized(bits: int) -> list[int]:
    return [level & ~(2 ** (8 - bits) - 1) for level in range(256)]


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    return image.point(_brightened_darks(int(added)) * len(image.getbands()))


@cache
def _brightened_darks(added: int) -> list[int]:
    return [min(255, level + added) if level < 128 else level for level in range(256)]


_PIXELS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda image, _: with_solarized(image, 0),
    "posterize": _posterize,
    "solarize": lambda image, threshold: with_solarized(image, int(threshold)),
    "solarize_add": _solarize_add,
    "colour": with_saturation,
    "contrast": with_contrast,
    "brightness": with_brightness,
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}


def _rotation(degrees: float, height: int, width: int) -> Matrix:
    """Counter-clockwise about the middle, to fifteen digits, as Pillow's `rotate` has it."""
    angle = -math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


_PLACES: dict[str, Callable[[float, int, int], Matrix]] = {
    "rotate": _rotation,
    "shear_x": lambda slant, height, width: (1.0, slant, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda slant, height, width: (1.0, 0.0, 0.0, slant, 1.0, 0.0),
    "translate_x": lambda share, height, width: (1.0, 0.0, share * width, 0.0, 1.0, 0.0),
    "translate_y": lambda share, height, width: (1.0, 0.0, 0.0, 0.0, 1.0, share * height),
}


def operated(
    example: Example,
    operation: Operation,
    argument: float,
    *,
    filter: Image.Resampling = Image.Resampling.BICUBIC,
    fill: tuple[int, int, int] = (128, 128, 128),
) -> Example:
    """The example after one operation; rotate, shear and translate move boxes, masks, class map and points along.

    Args:
        example: before.
        operation: which.
        argument: how much, in the operation's own unit (see `argument_of`).
        filter: how the moved are resampled: bilinear, bicubic or nearest.
        fill: the RGB colour of what they bring in from outside.

    Raises:
        UnknownNameError: no such operation.
    """
    if operation in _PIXELS:
        return example.with_image(_PIXELS[operation](example.image, argument))
    if operation not in _PLACES:
        raise UnknownNameError("operation of RandAugment", operation, OPERATIONS)
    return turned(example, _PLACES[operation](argument, *example.size), filter=filter, fill=fill)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """A few operations drawn at random, with replacement, at one magnitude (Cubuk et al. 2020; ranges as timm's).

    Args:
        operations: how many are drawn for a picture.
        magnitude: how strong they are, from 0 to 10.
        magnitude_std: the standard deviation of a Gaussian about it, one draw per operation; cut off at 0 and 10.
        probability: how often a drawn operation is applied. 0.5 is timm's; the paper's is 1.
        interpolation: how turned pixels are resampled.
        fill: the RGB colour of what is turned in from outside; recipes take the training set's mean.

    Raises:
        UsageError: a field out of its range.
    """

    operations: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    probability: float = 0.5
    interpolation: Filter = "bicubic"
    fill: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        check_choices(self)
        whole_number("operations of a RandAugment", self.operations, least=0)
        if not 0 <= real_number("magnitude of a RandAugment", self.magnitude) <= 10:
            raise UsageError(f"magnitude of a RandAugment must be from 0 to 10, but is {self.magnitude!r}.")
        if real_number("magnitude_std of a RandAugment", self.magnitude_std) < 0:
            raise UsageError(f"magnitude_std of a RandAugment must not be negative, but is {self.magnitude_std!r}.")
        checked_probability("probability of a RandAugment", self.probability)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example after the drawn operations."""
        draws = rng.random((self.operations, 4)).tolist()
        strengths = rng.normal(self.magnitude, self.magnitude_std, self.operations).tolist()
        for (which, applied, sign, filter), strength in zip(draws, strengths, strict=True):
            if applied < self.probability:
                operation = OPERATIONS[int(which * len(OPERATIONS))]
                argument = _ARGUMENTS[operation](min(max(strength, 0.0), 10.0), 1 if sign < 0.5 else -1)
                chosen = resampling(self.interpolation, filter)
                example = operated(example, operation, argument, filter=chosen, fill=self.fill)
        return example
