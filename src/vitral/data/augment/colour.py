"""Colours: brightness, contrast, saturation and hue in any order, grey, blur, and inverted highlights. Nothing moves.

Grey pictures stay grey: saturation and hue leave them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vitral.base.numbers import real_number, whole_number
from vitral.data.augment.example import Example
from vitral.data.augment.geometry import checked_probability, checked_range
from vitral.errors import UsageError

__all__ = [
    "ColourJitter",
    "GaussianBlur",
    "Grayscale",
    "Solarize",
    "with_brightness",
    "with_contrast",
    "with_hue",
    "with_saturation",
    "with_solarized",
]


def with_brightness(image: Image.Image, factor: float) -> Image.Image:
    """All levels times a factor: 0 is black, 1 the picture itself."""
    return Image.blend(Image.new(image.mode, image.size, 0), image, factor)


def with_contrast(image: Image.Image, factor: float) -> Image.Image:
    """All levels moved away from the picture's mean grey: 0 is that grey, 1 the picture itself."""
    grey = image if image.mode == "L" else image.convert("L")
    mean = int(float(np.asarray(grey).mean()) + 0.5)
    return Image.blend(Image.new(image.mode, image.size, mean if image.mode == "L" else (mean,) * 3), image, factor)


def with_saturation(image: Image.Image, factor: float) -> Image.Image:
    """All colours moved away from their own grey: 0 is grey, 1 the picture itself."""
    return ImageEnhance.Color(image).enhance(factor)


def with_hue(image: Image.Image, shift: float) -> Image.Image:
    """All hues turned by a part of the circle, from -0.5 to 0.5 (to whole 255ths, towards 0)."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(int(shift * 255) % 256))  # hues wrap round, as bytes do
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def with_solarized(image: Image.Image, threshold: int) -> Image.Image:
    """Levels from a threshold on inverted: 0 inverts all of them, 256 none."""
    return image.point(_solarized(threshold) * len(image.getbands()))


@cache
def _solarized(threshold: int) -> list[int]:
    return [level if level < threshold else 255 - level for level in range(256)]


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue changed by uniform amounts, in a random order.

    The rule of torchvision's `ColorJitter`, which "A Simple Framework for Contrastive Learning" (Chen et al. 2020, app. A)
    and most recipes mean.

    Args:
        brightness: its factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: turned by up to this part of the circle, either way; at most 0.5.
        probability: how often anything happens at all.

    Raises:
        UsageError: a field out of its range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            if real_number(f"{name} of a ColourJitter", getattr(self, name)) < 0:
                raise UsageError(f"{name} of a ColourJitter must not be negative, but is {getattr(self, name)!r}.")
        if self.hue > 0.5:
            raise UsageError(f"hue of a ColourJitter is a part of the circle, at most 0.5 either way, but is {self.hue!r}.")
        checked_probability("probability of a ColourJitter", self.probability)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example in other colours."""
        if self.probability < 1 and rng.random() >= self.probability:
            return example
        image = example.image
        for part in rng.permutation(4).tolist():
            amount = (self.brightness, self.contrast, self.saturation, self.hue)[part]
            if not amount:
                continue
            if part == 3:
                image = with_hue(image, amount * (2 * rng.random() - 1))
            else:
                low = max(0.0, 1 - amount)
                image = _FACTORS[part](image, low + (1 + amount - low) * rng.random())
        return example.with_image(image)


_FACTORS = (with_brightness, with_contrast, with_saturation)


@dataclass(frozen=True, kw_only=True)
class Grayscale:
    """The picture without its colours, with some probability; its mode stays as it was.

    Args:
        probability: how often.

    Raises:
        UsageError: a field out of its range.
    """

    probability: float = 0.2

    def __post_init__(self) -> None:
        checked_probability("probability of a Grayscale", self.probability)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, or its grey form."""
        if rng.random() >= self.probability:
            return example
        return example.with_image(example.image.convert("L").convert(example.image.mode))


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """The picture blurred by a Gaussian of uniform width, with some probability (Chen et al. 2020, app. A).

    Args:
        probability: how often.
        sigma: lowest and highest standard deviation, in pixels.

    Raises:
        UsageError: a field out of its range.
    """

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        checked_probability("probability of a GaussianBlur", self.probability)
        checked_range("sigma of a GaussianBlur", self.sigma, 0)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, or its blurred form."""
        chosen, width = rng.random(2).tolist()
        if chosen >= self.probability:
            return example
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * width
        return example.with_image(example.image.filter(ImageFilter.GaussianBlur(sigma)))


@dataclass(frozen=True, kw_only=True)
class Solarize:
    """All levels from a threshold on inverted, with some probability (Grill et al. 2020, BYOL, app. B).

    Args:
        probability: how often.
        threshold: the first level that is inverted, from 0 (all are) to 256 (none is).

    Raises:
        UsageError: a field out of its range.
    """

    probability: float = 0.2
    threshold: int = 128

    def __post_init__(self) -> None:
        checked_probability("probability of a Solarize", self.probability)
        if whole_number("threshold of a Solarize", self.threshold, least=0) > 256:
            raise UsageError(f"threshold of a Solarize must be from 0 to 256, but is {self.threshold!r}.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, or its solarised form."""
        if rng.random() >= self.probability:
            return example
        return example.with_image(with_solarized(example.image, self.threshold))
