"""Where things are: crops, flips and turns, which move the picture and everything that is known of places in it.

All of them are affine. One matrix of six numbers (a, b, c, d, e, f) leads from a place in the new picture to its place in
the old one, in continuous coordinates, as Pillow's `Image.transform` wants it:

    x_old = a x + b y + c          y_old = d x + e y + f

The picture itself is made by Pillow (antialiased where it is resized); masks and class maps take the value of the pixel that
a new pixel's centre falls into, boxes and points go the other way by the inverse matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped
from PIL import Image

from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.data.augment.example import Example
from vitral.errors import UsageError

__all__ = [
    "Filter",
    "Flip",
    "Matrix",
    "PaddedCrop",
    "RandomAffine",
    "RandomResizedCrop",
    "Resized",
    "checked_probability",
    "checked_range",
    "fill_of",
    "moved",
    "resampling",
    "turned",
]

Filter = Literal["bilinear", "bicubic", "random"]
"""How pixels are resampled; "random" is one of the two, with even odds, each time."""

Matrix: TypeAlias = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): from a place in the new picture to its place in the old one."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_GREY = (128, 128, 128)


# -- what all of them share ---------------------------------------------------------------------------------------------


def checked_probability(name: str, value: float) -> None:
    """Refuse what is no probability.

    Raises:
        UsageError: naming the field.
    """
    if not 0 <= real_number(name, value) <= 1:
        raise UsageError(f"{name} must be a probability from 0 to 1, but is {value!r}.")


def checked_range(name: str, pair: Sequence[float], least: float, most: float = math.inf) -> None:
    """Refuse what is no (lowest, highest) with least < lowest <= highest <= most.

    Raises:
        UsageError: naming the field.
    """
    right = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    if not right or not least < real_number(name, pair[0]) <= real_number(name, pair[1]) <= most:
        limit = f" and at most {most:g}" if most < math.inf else ""
        raise UsageError(f"{name} must be (lowest, highest), both above {least:g}{limit}, but is {pair!r}.")


def _check_size(name: str, size: tuple[int, int]) -> None:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise UsageError(f"{name} must be (height, width) in pixels, but is {size!r}.")
    for side in size:
        whole_number(name, side)


def fill_of(image: Image.Image, fill: tuple[int, int, int]) -> int | tuple[int, int, int]:
    """An RGB colour as a picture's mode has it: grey is its luma (ITU-R BT.601), as Pillow converts."""
    return fill if image.mode == "RGB" else round((299 * fill[0] + 587 * fill[1] + 114 * fill[2]) / 1000)


def resampling(filter: Filter, draw: float) -> Image.Resampling:
    """Pillow's filter; where it is "random", `draw` from [0, 1) chooses."""
    if filter == "random":
        return Image.Resampling.BILINEAR if draw < 0.5 else Image.Resampling.BICUBIC
    return _FILTERS[filter]


def moved(example: Example, image: Image.Image, matrix: Matrix) -> Example:
    """The example of a moved picture: everything else follows it.

    Args:
        example: before.
        image: the picture after it was moved, at any size.
        matrix: from a place in it to its place in `example.image`. It must be invertible.
    """
    if example.kept is None and example.class_map is None and example.points is None:
        return Example(image=image, ignore=example.ignore)
    size = (image.height, image.width)
    boxes, masks, kept = example.boxes, example.masks, example.kept
    if kept is not None:
        stays = np.ones(len(kept), dtype=bool)
        if masks is not None:
            masks = _sampled(masks, matrix, size, False)
            stays &= masks.any((1, 2))
        if boxes is not None:
            level = (matrix[1], matrix[3]) == (0, 0)
            boxes = _boxes_moved(boxes, matrix, size) if level or masks is None else _outlines(masks)
            stays &= (boxes[:, 2:] > boxes[:, :2]).all(1)
        if not stays.all():
            boxes, masks, kept = (None if rows is None else rows[stays] for rows in (boxes, masks, kept))
    class_map = example.class_map
    return Example(
        image=image,
        boxes=boxes,
        masks=masks,
        class_map=None if class_map is None else _sampled(class_map, matrix, size, example.ignore),
        points=None if example.points is None else _points_moved(example.points, matrix),
        kept=kept,
        ignore=example.ignore,
    )


def turned(
    example: Example,
    matrix: Matrix,
    *,
    filter: Image.Resampling = Image.Resampling.BILINEAR,
    fill: tuple[int, int, int] = _GREY,
) -> Example:
    """The example under any affine map, at the size it had.

    Args:
        example: before.
        matrix: from a place in the new picture to its place in the old one. It must be invertible.
        filter: bilinear, bicubic or nearest; not antialiased, as Pillow's `transform` never is.
        fill: the RGB colour of what is turned in from outside.
    """
    image = example.image
    new = image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=filter,
        fillcolor=fill_of(image, fill),
    )
    return moved(example, new, matrix)


def _inverse(matrix: Matrix) -> Matrix:
    """From a place in the old picture to its place in the new one."""
    a, b, c, d, e, f = matrix
    area = a * e - b * d
    return e / area, -b / area, (b * f - c * e) / area, -d / area, a / area, (c * d - a * f) / area


def _points_moved(points: Float[np.ndarray, "*n 2"], matrix: Matrix) -> Float32[np.ndarray, "*n 2"]:
    a, b, c, d, e, f = _inverse(matrix)
    x, y = points[..., 0].astype(np.float64), points[..., 1].astype(np.float64)
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1).astype(np.float32)


def _boxes_moved(boxes: Float32[np.ndarray, "k 4"], matrix: Matrix, size: tuple[int, int]) -> Float32[np.ndarray, "k 4"]:
    """The tightest boxes around what is visible of the old ones; zeros where nothing is."""
    height, width = size
    x0, y0, x1, y1 = boxes.T
    corners = _points_moved(np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).reshape(-1, 4, 2), matrix)
    if (matrix[1], matrix[3]) == (0, 0):  # boxes stay boxes
        bounds = np.concatenate([corners.min(1), corners.max(1)], axis=1)
        return np.clip(bounds, 0, np.array([width, height, width, height], dtype=np.float32))
    visible = np.zeros_like(boxes)
    for row, polygon in enumerate(corners.tolist()):
        for axis, limit in ((0, width), (1, height)):
            polygon = _cut(_cut(polygon, axis, 0.0, 1.0), axis, float(limit), -1.0)
        if polygon:
            across, down = zip(*polygon, strict=True)
            visible[row] = min(across), min(down), max(across), max(down)
    return visible


def _outlines(masks: Bool[np.ndarray, "k y x"]) -> Float32[np.ndarray, "k 4"]:
    """The tightest boxes around masks; zeros around empty ones."""
    _, height, width = masks.shape
    rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
    first = np.stack([columns.argmax(1), rows.argmax(1)], axis=1)
    last = np.stack([width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1)], axis=1)
    return (np.concatenate([first, last], axis=1) * np.any(rows, axis=1)[:, None]).astype(np.float32)


def _cut(polygon: list[list[float]], axis: int, at: float, side: float) -> list[list[float]]:
    """What of a convex polygon lies on one side of a line (Sutherland and Hodgman 1974): side 1 is above `at`, -1 below."""
    left: list[list[float]] = []
    for start, end in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside, reaches = side * (start[axis] - at) >= 0, side * (end[axis] - at) >= 0
        if inside:
            left.append(start)
        if inside != reaches:
            share = (at - start[axis]) / (end[axis] - start[axis])
            crossing = [one + share * (other - one) for one, other in zip(start, end, strict=True)]
            crossing[axis] = at  # exactly, whatever the rounding
            left.append(crossing)
    return left


def _sampled(
    values: Shaped[np.ndarray, "*k y x"], matrix: Matrix, size: tuple[int, int], outside: int
) -> Shaped[np.ndarray, "*k v u"]:
    """For each new pixel the value of the old pixel that its centre falls into."""
    a, b, c, d, e, f = matrix
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    if b == 0 and d == 0:  # rows and columns go their own ways
        columns, rows = np.floor(a * x + c).astype(np.intp)[None], np.floor(e * y + f).astype(np.intp)
    else:
        columns, rows = np.floor(a * x + b * y + c).astype(np.intp), np.floor(d * x + e * y + f).astype(np.intp)
    height, width = values.shape[-2:]
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    taken = values[..., rows.clip(0, height - 1), columns.clip(0, width - 1)]
    taken[..., ~inside] = outside
    return taken


# -- crops --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A part of the picture of random area and shape, resized (Szegedy et al. 2015, GoogLeNet, sec. 6).

    The area is uniform in `scale`, the logarithm of width / height uniform in that of `ratio`, and the place uniform among
    those where the part fits. After ten parts that do not fit, the largest one in the middle whose shape is allowed is
    taken: the rule of torchvision's `RandomResizedCrop`, roundings included.

    Args:
        size: (height, width) of the result, in pixels.
        scale: lowest and highest share of the picture's area.
        ratio: lowest and highest width / height.
        interpolation: how it is resized, antialiased.

    Raises:
        UsageError: a field out of its range.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Filter = "bicubic"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_size("size of a RandomResizedCrop", self.size)
        checked_range("scale of a RandomResizedCrop", self.scale, 0, 1)
        checked_range("ratio of a RandomResizedCrop", self.ratio, 0)

    def window(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part of a picture of a (height, width), in pixels."""
        height, width = size
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            share, shape, down, across = rng.random(4).tolist()
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
            ratio = math.exp(low + (high - low) * shape)
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                return int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide
        wide, tall = width, height
        if width / height < self.ratio[0]:
            tall = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            wide = max(1, round(height * self.ratio[1]))
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """A part of the example, at `size`."""
        top, left, tall, wide = self.window(example.size, rng)
        filter = resampling(self.interpolation, rng.random() if self.interpolation == "random" else 0.0)
        height, width = self.size
        # Cut first, then resize: resizing a window of the whole would look beyond the window's edges.
        image = example.image.crop((left, top, left + wide, top + tall)).resize((width, height), filter)
        return moved(example, image, (wide / width, 0.0, left, 0.0, tall / height, top))


@dataclass(frozen=True, kw_only=True)
class Resized:
    """The whole picture at another size, whatever its shape. No chance but in a "random" interpolation.

    Args:
        size: (height, width) of the result, in pixels.
        interpolation: how it is resized, antialiased. A picture that has the size already stays as it is.

    Raises:
        UsageError: a field out of its range.
    """

    size: tuple[int, int]
    interpolation: Filter = "bicubic"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_size("size of a Resized", self.size)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example at `size`."""
        if example.size == self.size:
            return example
        filter = resampling(self.interpolation, rng.random() if self.interpolation == "random" else 0.0)
        (height, width), (tall, wide) = self.size, example.size
        image = example.image.resize((width, height), filter)
        return moved(example, image, (wide / width, 0.0, 0.0, 0.0, tall / height, 0.0))


@dataclass(frozen=True, kw_only=True)
class PaddedCrop:
    """A margin is added on all sides and a part of the old size cut out: small shifts (He et al. 2015, sec. 4.2, CIFAR).

    Args:
        padding: the margin's width, in pixels; the picture moves by up to as much along each axis.
        mode: what the margin holds. "zero": black. "reflect": the picture mirrored at its outer pixels' centres, as numpy's
            `pad` does; only the picture is: nothing is known of places in a margin.

    Raises:
        UsageError: a field out of its range; a picture too small to be reflected that far.
    """

    padding: int = 4
    mode: Literal["zero", "reflect"] = "zero"

    def __post_init__(self) -> None:
        check_choices(self)
        whole_number("padding of a PaddedCrop", self.padding, least=0)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, moved by up to `padding` pixels."""
        down, across = rng.random(2).tolist()
        top, left = (int(draw * (2 * self.padding + 1)) - self.padding for draw in (down, across))
        return moved(example, self._shifted(example.image, top, left), (1.0, 0.0, left, 0.0, 1.0, top))

    def _shifted(self, image: Image.Image, top: int, left: int) -> Image.Image:
        if self.mode == "zero":
            return image.crop((left, top, left + image.width, top + image.height))  # Pillow adds black
        if self.padding >= min(image.size):
            raise UsageError(
                f"A picture of {image.height} x {image.width} is too small to be reflected {self.padding} pixels."
            )
        rows, columns = (_reflected(length, first) for length, first in ((image.height, top), (image.width, left)))
        return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def _reflected(length: int, first: int) -> Shaped[np.ndarray, " n"]:
    """The pixels from `first` on along one side, those beyond it mirrored at the outer pixels' centres."""
    places = np.abs(np.arange(first, first + length))
    return np.where(places < length, places, 2 * (length - 1) - places)


# -- flips and turns ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Flip:
    """The picture mirrored, with some probability.

    Args:
        probability: how often.
        axis: "horizontal": left and right change places; "vertical": top and bottom.

    Raises:
        UsageError: a field out of its range.
    """

    probability: float = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __post_init__(self) -> None:
        check_choices(self)
        checked_probability("probability of a Flip", self.probability)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, or its mirror image."""
        if rng.random() >= self.probability:
            return example
        image = example.image
        if self.axis == "horizontal":
            return moved(example, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (-1.0, 0.0, image.width, 0.0, 1.0, 0.0))
        return moved(example, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), (1.0, 0.0, 0.0, 0.0, -1.0, image.height))


@dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """The picture turned, shifted, scaled and slanted about its middle, each by a uniform amount.

    Args:
        degrees: turned by up to this angle, either way.
        translate: shifted by up to these shares of (height, width), either way.
        scale: lowest and highest factor of size; above 1 things grow.
        shear: slanted along x by up to this angle in degrees, either way; below 90.
        interpolation: how pixels are resampled; not antialiased.
        fill: the RGB colour of what comes in from outside.

    Raises:
        UsageError: a field out of its range.
    """

    degrees: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    interpolation: Filter = "bilinear"
    fill: tuple[int, int, int] = _GREY

    def __post_init__(self) -> None:
        check_choices(self)
        checked_range("scale of a RandomAffine", self.scale, 0)
        for name, value in (("degrees", self.degrees), *(("translate", part) for part in self.translate)):
            if real_number(f"{name} of a RandomAffine", value) < 0:
                raise UsageError(f"{name} of a RandomAffine must not be negative, but is {value!r}.")
        if not 0 <= real_number("shear of a RandomAffine", self.shear) < 90:
            raise UsageError(f"shear of a RandomAffine must be from 0 to below 90 degrees, but is {self.shear!r}.")

    def matrix(self, size: tuple[int, int], rng: np.random.Generator) -> Matrix:
        """From a place in the new picture of a (height, width) to its place in the old one."""
        angle, down, across, shear = (2 * rng.random(4) - 1).tolist()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random()
        height, width = size
        turn, slant = math.radians(angle * self.degrees), math.tan(math.radians(shear * self.shear))
        # new = R(turn) scale S(slant) old about the middle, then shifted; the inverse of it is wanted.
        cos, sin = math.cos(turn) / factor, math.sin(turn) / factor
        a, b, d, e = cos - slant * sin, sin + slant * cos, -sin, cos
        x, y = width / 2, height / 2
        to_x, to_y = x + across * self.translate[1] * width, y + down * self.translate[0] * height
        return a, b, x - a * to_x - b * to_y, d, e, y - d * to_x - e * to_y

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, turned."""
        filter = resampling(self.interpolation, rng.random() if self.interpolation == "random" else 0.0)
        return turned(example, self.matrix(example.size, rng), filter=filter, fill=self.fill)
