"""Training a classifier: one configuration of all augmentation, and a picture's way through it to the model's input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from vitral.base.config import check_choices
from vitral.base.image import Picture
from vitral.base.numbers import real_number, whole_number
from vitral.data.augment.colour import ColourJitter
from vitral.data.augment.erasing import Erasing
from vitral.data.augment.example import Augment, Chain, Example
from vitral.data.augment.geometry import (
    Filter,
    Flip,
    PaddedCrop,
    RandomAffine,
    RandomResizedCrop,
    Resized,
    checked_probability,
    checked_range,
)
from vitral.data.augment.rand_augment import RandAugment
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError

__all__ = ["Augmentation", "TrainingInput", "fill_colour", "input_of", "levels_of"]


# -- the configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """All that may happen to a classifier's training pictures, in the order in which it happens.

    The defaults are the least that ImageNet training does: a resized crop and a flip. DeiT's (Touvron et al. 2021, tab. 9)
    are `Augmentation(rand_augment=2, erase=0.25, mixup=0.8, cutmix=1.0, repeats=3)`.

    Args:
        crop: "resized": `RandomResizedCrop`; "padded": resized whole if need be, then `PaddedCrop`; "none": resized whole.
        crop_scale: lowest and highest share of the picture's area in a resized crop.
        crop_ratio: lowest and highest width / height of it.
        padding: margin of a padded crop, in pixels.
        interpolation: how pictures are resized and turned; "random" is bilinear or bicubic.
        flip: probability that left and right change places.
        flip_vertical: probability that top and bottom do.
        turn: turned by up to this angle in degrees, either way.
        shift: moved by up to this share of each side, either way.
        fill: what comes in from outside where pictures are turned or moved: the colour that becomes zero, or black.
        brightness: jitter of brightness, see `ColourJitter`; after RandAugment.
        contrast: jitter of contrast.
        saturation: jitter of saturation.
        hue: jitter of hue, at most 0.5.
        rand_augment: operations of `RandAugment` drawn for a picture; 0 for none.
        magnitude: how strong they are, from 0 to 10.
        magnitude_std: the magnitude's standard deviation.
        operation_probability: how often a drawn operation is applied; 0.5 in timm and DeiT, 1 in the paper.
        erase: probability of `Erasing` a rectangle, with noise.
        mixup: α of mixup, 0 for none; see `mix`.
        cutmix: α of CutMix, 0 for none.
        mix_probability: how often a pair of pictures is mixed.
        cutmix_share: how often by CutMix where both are on.
        repeats: how often a picture appears in a batch, each time differently (Hoffer et al. 2020); for the loader.

    Raises:
        UnknownNameError: no such crop or interpolation.
        UsageError: a field out of its range.
    """

    crop: Literal["resized", "padded", "none"] = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    interpolation: Filter = "bicubic"
    flip: float = 0.5
    flip_vertical: float = 0.0
    turn: float = 0.0
    shift: float = 0.0
    fill: Literal["mean", "black"] = "mean"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rand_augment: int = 0
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    operation_probability: float = 0.5
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    cutmix_share: float = 0.5
    repeats: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        checked_range("crop_scale", self.crop_scale, 0, 1)
        checked_range("crop_ratio", self.crop_ratio, 0)
        for name in ("flip", "flip_vertical", "operation_probability", "erase", "mix_probability", "cutmix_share"):
            checked_probability(name, getattr(self, name))
        for name, most in _HIGHEST.items():
            if not 0 <= real_number(name, getattr(self, name)) <= most:
                limit = "must not be negative" if most == float("inf") else f"must be from 0 to {most:g}"
                raise UsageError(f"{name} {limit}, but is {getattr(self, name)!r}.")
        whole_number("padding", self.padding, least=0)
        whole_number("rand_augment", self.rand_augment, least=0)
        whole_number("repeats", self.repeats)

    @property
    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def chain(self, size: tuple[int, int], fill: tuple[int, int, int] = (128, 128, 128)) -> Chain:
        """What happens to the picture itself, before it becomes a tensor.

        Args:
            size: (height, width) of the model's input.
            fill: the RGB colour of what is turned in from outside.
        """
        steps: list[Augment] = []
        if self.crop == "resized":
            steps.append(
                RandomResizedCrop(size=size, scale=self.crop_scale, ratio=self.crop_ratio, interpolation=self.interpolation)
            )
        else:
            steps.append(Resized(size=size, interpolation=self.interpolation))
        if self.crop == "padded" and self.padding:
            steps.append(PaddedCrop(padding=self.padding))
        if self.flip:
            steps.append(Flip(probability=self.flip))
        if self.flip_vertical:
            steps.append(Flip(probability=self.flip_vertical, axis="vertical"))
        if self.turn or self.shift:
            steps.append(
                RandomAffine(degrees=self.turn, translate=(self.shift,) * 2, interpolation=self.interpolation, fill=fill)
            )
        if self.rand_augment:
            steps.append(
                RandAugment(
                    operations=self.rand_augment,
                    magnitude=self.magnitude,
                    magnitude_std=self.magnitude_std,
                    probability=self.operation_probability,
                    interpolation=self.interpolation,
                    fill=fill,
                )
            )
        if self.brightness or self.contrast or self.saturation or self.hue:
            steps.append(
                ColourJitter(brightness=self.brightness, contrast=self.contrast, saturation=self.saturation, hue=self.hue)
            )
        return Chain(tuple(steps))


_HIGHEST = {
    "brightness": float("inf"),
    "contrast": float("inf"),
    "saturation": float("inf"),
    "hue": 0.5,
    "turn": 180.0,
    "shift": 1.0,
    "magnitude": 10.0,
    "magnitude_std": float("inf"),
    "mixup": float("inf"),
    "cutmix": float("inf"),
}


# -- from a picture to the input ----------------------------------------------------------------------------------------


def levels_of(preprocessing: Preprocessing) -> Float32[np.ndarray, "c 256"]:
    """The normalised value of each of the 256 levels: looking it up takes a third of computing it for small pictures."""
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, -1, 1)
    levels: Tensor = torch.arange(256, dtype=torch.float32).mul(preprocessing.scale).sub(mean).div(std)
    return levels.numpy()


def input_of(image: Image.Image, levels: Float32[np.ndarray, "c 256"]) -> Float[Tensor, "c y x"]:
    """A picture's pixels, normalised.

    Args:
        image: RGB, or grey where there is one channel.
        levels: see `levels_of`.
    """
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    values = np.empty((len(levels), image.height, image.width), dtype=np.float32)
    for channel, table in enumerate(levels):
        # Unlike "raise", "clip" writes straight to `out`.
        table.take(pixels[:, :, channel], out=values[channel], mode="clip")
    return torch.from_numpy(values)


def fill_colour(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The RGB colour that becomes zero."""
    mean = preprocessing.mean
    red, green, blue = (min(255, max(0, round(one / preprocessing.scale))) for one in mean * (3 // len(mean)))
    return red, green, blue


@dataclass(frozen=True)
class TrainingInput:
    """A picture as a model's input, augmented.

    Values are normalised exactly as `preprocessing` does it; how it resizes and crops is for evaluation and plays no part
    here. A picture read at reduced size is taken as it was decoded. It travels to other processes (it can be pickled).

    Args:
        augmentation: what may happen.
        preprocessing: whose mean, std and scale are taken; one mean for a model that sees grey.
        size: (height, width) of the input, in pixels.

    Raises:
        UsageError: a size that is none.
    """

    augmentation: Augmentation
    preprocessing: Preprocessing
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if len(self.size) != 2:
            raise UsageError(f"size of a TrainingInput must be (height, width) in pixels, but is {self.size!r}.")
        for side in self.size:
            whole_number("size of a TrainingInput", side)

    @cached_property
    def chain(self) -> Chain:
        """What happens to the picture itself."""
        black = self.augmentation.fill == "black"
        return self.augmentation.chain(self.size, (0, 0, 0) if black else fill_colour(self.preprocessing))

    @cached_property
    def _erasing(self) -> Erasing | None:
        return Erasing(probability=self.augmentation.erase) if self.augmentation.erase else None

    @cached_property
    def _levels(self) -> Float32[np.ndarray, "c 256"]:
        return levels_of(self.preprocessing)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Float[Tensor, "c y x"]:
        """The input: a pure function of the picture and of the generator, which it draws from."""
        levels = self._levels
        image = picture.image if len(levels) == 3 else picture.image.convert("L")
        tensor = input_of(self.chain(Example(image=image), rng).image, levels)
        return tensor if self._erasing is None else self._erasing(tensor, rng)
