"""Heat that knows nothing of the model, which every method must beat."""

from __future__ import annotations

import zlib
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitral.base.frame import Seen
from vitral.base.image import PictureSource
from vitral.base.numbers import real_number
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.prepares import Prepares
from vitral.explanation.result import Explanation

__all__ = ["BASELINES", "baseline", "centred_gaussian", "random_heat"]

BASELINES: tuple[str, ...] = ("random", "random_pixels", "centred_gaussian")
"""Heat that knows nothing of the model, which `evaluate` always holds the methods against."""


def baseline(name: str, predictor: Prepares, picture: PictureSource, seed: int) -> Explanation:
    """The heat of one of `BASELINES`."""
    if name == "centred_gaussian":
        return centred_gaussian(predictor, picture)
    return random_heat(predictor, picture, seed=seed, per="pixel" if name == "random_pixels" else "patch")


def random_heat(
    predictor: Prepares, picture: PictureSource, *, seed: int = 0, per: Literal["patch", "pixel"] = "patch"
) -> Explanation:
    """Heat of chance, another for every picture and seed, the same whenever asked again.

    Pixels taken away here and there break a picture sooner than patches do, whatever they showed: heat per pixel must be
    held against chance per pixel, or it seems to know something.

    Args:
        predictor: its preprocessing says what the picture's input is.
        picture: what would be explained.
        seed: of the numbers drawn, beside the picture's pixels.
        per: what a number covers.
    """
    if per not in ("patch", "pixel"):
        raise UnknownNameError("cell of random heat", per, ("patch", "pixel"))
    pixels, seen = predictor.prepare(picture)
    numbers = np.random.default_rng([seed, zlib.crc32(pixels.numpy().tobytes())])
    geometry = _geometry(predictor, pixels, seen)
    shape, cell = (geometry.grid, geometry.patch_size) if per == "patch" else (tuple(pixels.shape[1:]), (1, 1))
    heat = numbers.random(shape, dtype=np.float32)
    method = "random" if per == "patch" else "random_pixels"
    return Explanation(seen.name, method, heat, cell, geometry, picture=seen.picture)


def centred_gaussian(predictor: Prepares, picture: PictureSource, *, spread: float = 0.25) -> Explanation:
    """Heat that is greatest in the middle of the input, where photographers put things.

    Args:
        predictor: its preprocessing says what the picture's input is.
        picture: what would be explained.
        spread: the Gaussian's standard deviation, as a share of either side.
    """
    if not real_number("spread", spread) > 0:
        raise UsageError(f"spread must be above 0; {spread!r} came.")
    pixels, seen = predictor.prepare(picture)
    geometry = _geometry(predictor, pixels, seen)
    down, across = (
        np.exp(-0.5 * (((np.arange(count) + 0.5) * cell / side - 0.5) / spread) ** 2)
        for count, cell, side in zip(geometry.grid, geometry.patch_size, pixels.shape[1:], strict=True)
    )
    heat = np.outer(down, across).astype(np.float32)
    return Explanation(seen.name, "centred_gaussian", heat, geometry.patch_size, geometry, picture=seen.picture)


def _geometry(predictor: Prepares, pixels: Float[Tensor, "c y x"], seen: Seen) -> TokenGeometry:
    grid: tuple[int, int] = cast(Any, predictor.model).config.grid_of(tuple(pixels.shape[1:]))
    return TokenGeometry.of(predictor.model, grid, seen.frame)
