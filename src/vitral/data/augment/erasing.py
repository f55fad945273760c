"""Random erasing (Zhong et al. 2020): a rectangle of a model's input is overwritten, so that no single part suffices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.config import check_choices
from vitral.data.augment.geometry import checked_probability, checked_range

__all__ = ["Erasing"]


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """A rectangle of random area, shape and place overwritten ("Random Erasing Data Augmentation", alg. 1).

    It works on the normalised input, where 0 is the training set's mean and noise of variance 1 looks like a picture's.
    The area is uniform in its range and the logarithm of height / width in that of `aspect`, as timm draws it (the paper
    draws height / width itself); a rectangle that does not fit is drawn again, ten times at most, and then left out.

    Args:
        probability: how often.
        area: lowest and highest share of the input's area.
        aspect: lowest and highest height / width.
        mode: "pixel": Gaussian noise, a value per pixel and channel; "constant": zeros, the mean.

    Raises:
        UsageError: a field out of its range.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mode: Literal["pixel", "constant"] = "pixel"

    def __post_init__(self) -> None:
        check_choices(self)
        checked_probability("probability of an Erasing", self.probability)
        checked_range("area of an Erasing", self.area, 0, 1)
        checked_range("aspect of an Erasing", self.aspect, 0)

    def window(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of the rectangle in an input of a (height, width), in pixels; None if none fitted."""
        height, width = size
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for _ in range(10):
            share, shape, down, across = rng.random(4).tolist()
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * share)
            aspect = math.exp(low + (high - low) * shape)
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall < height and wide < width:
                return int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide
        return None

    def __call__(self, pixels: Float[Tensor, "c y x"], rng: np.random.Generator) -> Float[Tensor, "c y x"]:
        """The input, or a copy with a rectangle erased."""
        if rng.random() >= self.probability:
            return pixels
        window = self.window((pixels.shape[1], pixels.shape[2]), rng)
        if window is None:
            return pixels
        top, left, tall, wide = window
        erased = pixels.clone()
        hole = erased[:, top : top + tall, left : left + wide]
        if self.mode == "pixel":
            hole.copy_(torch.from_numpy(rng.standard_normal(tuple(hole.shape), dtype=np.float32)))
        else:
            hole.zero_()
        return erased
