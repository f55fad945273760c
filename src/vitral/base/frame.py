"""The way back: from a model's input to the coordinates of the picture it was made from.

Coordinates are continuous: pixel `i` covers the interval [i, i + 1) and its centre lies at i + 0.5. In these
coordinates resizing is a multiplication and cropping a subtraction, so both directions are exact at any size:

    input = picture * scale - offset          picture = (input + offset) / scale
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Shaped

from vitral.base.image import Picture
from vitral.errors import UsageError

__all__ = ["Frame", "Seen"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Where a model's input lies in the picture it was made from: resized by `scale`, then cut out at `offset`.

    Args:
        picture: (height, width) of the original picture, upright, in pixels.
        input: (height, width) of the model's input, in pixels.
        scale: input pixels per picture pixel, along (y, x).
        offset: (y, x) of the input's corner in the resized picture, in input pixels; negative where the input was
            padded.

    Raises:
        UsageError: a size or a scale that is not positive.
    """

    picture: tuple[int, int]
    input: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for field in ("picture", "input", "scale"):
            value = getattr(self, field)
            if len(value) != 2 or not 0 < min(value) <= max(value) < float("inf"):
                raise UsageError(f"{field} of a Frame must be two positive numbers (y, x), but is {value!r}.")

    @property
    def window(self) -> tuple[float, float, float, float]:
        """The input's outline in the picture, (x0, y0, x1, y1) in pixels; beyond the picture where it was padded."""
        height, width = self.input
        (x0, y0), (x1, y1) = self.to_picture(np.array([[0, 0], [width, height]])).tolist()
        return x0, y0, x1, y1

    def to_picture(self, points_xy: Shaped[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Points (x, y) of the model's input, in pixels, as points of the picture."""
        return np.divide(np.asarray(points_xy, dtype=np.float64) + self.offset[::-1], self.scale[::-1])

    def to_input(self, points_xy: Shaped[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Points (x, y) of the picture, in pixels, as points of the model's input."""
        return np.subtract(np.asarray(points_xy, dtype=np.float64) * self.scale[::-1], self.offset[::-1])

    def boxes_to_picture(self, boxes_xyxy: Shaped[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Boxes (x0, y0, x1, y1) of the model's input, in pixels, as boxes of the picture; not clipped to it."""
        boxes = np.asarray(boxes_xyxy)
        return self.to_picture(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    def boxes_to_input(self, boxes_xyxy: Shaped[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
        """Boxes (x0, y0, x1, y1) of the picture, in pixels, as boxes of the model's input; not clipped to it."""
        boxes = np.asarray(boxes_xyxy)
        return self.to_input(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    def resized(self, picture: tuple[int, int]) -> Frame:
        """The frame of the same input in a copy of the picture of another (height, width)."""
        down, across = (one * (old / new) for one, old, new in zip(self.scale, self.picture, picture, strict=True))
        return replace(self, picture=picture, scale=(down, across))

    def map_to_picture(
        self, values: Shaped[np.ndarray, "i j"], cell: tuple[int, int] = (1, 1), *, outside: float = 0.0
    ) -> Float[np.ndarray, "y x"]:
        """A map over the model's input as a map over the picture, interpolated linearly between the cells' centres.

        Args:
            values: one for each cell, the first at the input's top left corner.
            cell: (height, width) of a cell in input pixels: 1 for a value per pixel, the patch size for one per patch.
            outside: the value where the picture was cropped away, or where no cell reaches.
        """
        lines = [
            _interpolation(self.picture[axis], self.scale[axis] / cell[axis], self.offset[axis] / cell[axis], count)
            for axis, count in enumerate(values.shape)
        ]
        (rows, row_inside), (columns, column_inside) = lines
        mapped = rows @ np.asarray(values, dtype=np.float32) @ columns.T
        mapped[~row_inside] = outside
        mapped[:, ~column_inside] = outside
        return mapped


def _interpolation(
    length: int, scale: float, offset: float, count: int
) -> tuple[Float[np.ndarray, "y i"], Bool[np.ndarray, " y"]]:
    """Weights of `count` cells for each of `length` pixels along one axis, and which pixels any cell covers.

    Where a pixel is wider than a cell, the triangle of weights is as wide as the pixel, so that no cell is skipped.
    """
    places = (np.arange(length) + 0.5) * scale - offset
    inside = (places >= 0) & (places <= count)
    away = np.abs(places.clip(0.5, count - 0.5)[:, None] - (np.arange(count) + 0.5))
    weights = np.maximum(0.0, 1 - away / max(1.0, scale))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32), inside


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture as the model saw it: what a decoding needs to speak of the original.

    Attributes:
        name: the picture's path, address or description.
        frame: the way from the model's input back to the picture; `frame.picture` is the picture's size.
        picture: the picture itself, where it was kept.
    """

    name: str
    frame: Frame
    picture: Picture | None = None
