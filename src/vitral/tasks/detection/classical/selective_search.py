"""Selective search: boxes where an object may be, from segments of the picture that are grouped until one is left.

Uijlings, van de Sande, Gevers and Smeulders 2013, "Selective Search for Object Recognition", IJCV 104. The picture is cut
into small segments (Felzenszwalb and Huttenlocher 2004); the two neighbours that are most alike become one, again and again,
and the box around every segment there ever was is a proposal. Several colour spaces, sizes of first segments and notions of
likeness make several hierarchies, since no single one is right for all objects.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from numpy import ndarray

from vitral.base.image import Picture
from vitral.base.numbers import whole_number
from vitral.errors import MissingExtraError, UnknownNameError

__all__ = ["Likeness", "SearchMode", "selective_search"]

SearchMode = Literal["single", "fast", "quality"]
"""How many hierarchies: 1, 8 or 80 (Uijlings et al. 2013, table 5)."""

_COLOUR_BINS, _TEXTURE_BINS, _ANGLES = 25, 10, 8  # section 3.2


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What makes two neighbours alike; the likenesses named are added (section 3.2, equation 7).

    Attributes:
        colour: the intersection of their histograms of colours.
        texture: that of their histograms of gradients.
        size: small segments first.
        fill: those first that fill each other's gaps.
    """

    colour: bool = True
    texture: bool = True
    size: bool = True
    fill: bool = True


_ALL = Likeness()
_NO_COLOUR = Likeness(colour=False)
_FILL, _SIZE = Likeness(colour=False, texture=False, size=False), Likeness(colour=False, texture=False, fill=False)

_MODES: dict[str, tuple[tuple[str, ...], tuple[Likeness, ...], tuple[int, ...]]] = {
    "single": (("hsv",), (_ALL,), (100,)),
    "fast": (("hsv", "lab"), (_ALL, _NO_COLOUR), (50, 100)),
    "quality": (("hsv", "lab", "rgi", "hue", "grey"), (_ALL, _NO_COLOUR, _FILL, _SIZE), (50, 100, 150, 300)),
}
"""Colour spaces, likenesses, and the constant k of the first segments (table 5)."""


def selective_search(
    picture: Picture, *, mode: SearchMode = "fast", longest: int = 500, least: int = 8, seed: int = 0
) -> Float32[ndarray, "k 4"]:
    """Boxes where an object may be.

    Args:
        picture: any.
        mode: how many hierarchies are made: more find more, and take longer.
        longest: larger pictures are searched at this length of their longer side, in pixels.
        least: pixels; boxes with a side below this, in the picture that is searched, are left out.
        seed: fixes the order of the boxes.

    Returns:
        xyxy in pixels of the picture, each box once, the likelier objects first: a box stands by its place in its hierarchy,
        the largest first, times a random number (section 3.3).

    Raises:
        MissingExtraError: scikit-image is not installed.
        UnknownNameError: no such mode.
        UsageError: a number out of its range.
    """
    if mode not in get_args(SearchMode):
        raise UnknownNameError("mode of selective search", mode, get_args(SearchMode))
    whole_number("longest", longest, least=16)
    whole_number("least", least, least=2)
    colour, segmentation, _ = _scikit_image()
    image, (height, width) = picture.image, picture.size
    ratio = min(1.0, longest / max(image.size))
    if ratio < 1:
        image = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), reducing_gap=3.0)
    if min(image.size) < least:
        return np.zeros((0, 4), dtype=np.float32)
    rgb = np.asarray(image, dtype=np.float64) / 255
    chance = np.random.default_rng(whole_number("seed", seed, least=0))
    spaces, likenesses, scales = _MODES[mode]
    found, weights = [], []
    for space in spaces:
        values = _in_space(rgb, space, colour)
        for scale in scales:
            labels = segmentation.felzenszwalb(values, scale=scale, sigma=0.8, min_size=scale, channel_axis=-1)
            segments = _segments(labels.astype(np.int64), values)
            for likeness in likenesses:
                boxes = _group(segments, likeness)
                found.append(boxes[::-1])  # the whole picture first
                weights.append(chance.random(len(boxes)) * np.arange(1, len(boxes) + 1))
    boxes, weight = np.concatenate(found), np.concatenate(weights)
    boxes = boxes[np.argsort(weight, kind="stable")]
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)]
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(1) >= least]
    return (boxes * (np.array([width, height] * 2) / np.array([*image.size] * 2))).astype(np.float32)


def _scikit_image() -> tuple[Any, Any, Any]:
    try:
        from skimage import color, filters, segmentation
    except ImportError as error:
        raise MissingExtraError("scikit-image", "classical", "cut pictures into segments") from error
    return color, segmentation, filters


def _in_space(rgb: Float64[ndarray, "y x 3"], space: str, colour: Any) -> Float64[ndarray, "y x c"]:
    """A picture's colours in another space, every channel from 0 to 1."""
    if space == "hsv":
        return colour.rgb2hsv(rgb)
    if space == "lab":
        return ((colour.rgb2lab(rgb) + np.array([0, 128, 128])) / [100, 255, 255]).clip(0, 1)
    if space == "hue":
        return colour.rgb2hsv(rgb)[..., :1]
    grey = rgb.mean(-1, keepdims=True)
    if space == "grey":
        return grey
    total = rgb.sum(-1, keepdims=True)
    share = np.divide(rgb, total, out=np.full_like(rgb, 1 / 3), where=total > 0)
    return np.concatenate([share[..., :2], grey], axis=-1)  # rgI: normalised red and green, and intensity


# -- segments and how alike they are ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Segments:
    """The first segments of a picture.

    Attributes:
        boxes: around each, xyxy in pixels.
        sizes: pixels of each.
        colour: histograms, each of sum 1.
        texture: likewise.
        neighbours: pairs that touch, the lower number first.
        area: pixels of the picture.
    """

    boxes: Int64[ndarray, "n 4"]
    sizes: Int64[ndarray, " n"]
    colour: Float[ndarray, "n c"]
    texture: Float[ndarray, "n d"]
    neighbours: Int64[ndarray, "m 2"]
    area: int


def _segments(labels: Int64[ndarray, "y x"], values: Float64[ndarray, "y x c"]) -> _Segments:
    height, width = values.shape[:2]
    labels = np.unique(labels, return_inverse=True)[1].reshape(height, width)
    count = int(labels.max()) + 1
    rows, columns = np.divmod(np.arange(labels.size), width)
    flat = labels.ravel()
    low, high = np.full((count, 2), max(height, width)), np.zeros((count, 2), dtype=np.int64)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[:, axis], flat, places)
        np.maximum.at(high[:, axis], flat, places + 1)
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    pairs = np.concatenate([np.stack([one.ravel(), other.ravel()], 1) for one, other in sides])
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    return _Segments(
        boxes=np.concatenate([low, high], axis=1).astype(np.int64),
        sizes=np.bincount(flat, minlength=count),
        colour=_histograms(flat, values.reshape(-1, values.shape[2]), count, _COLOUR_BINS),
        texture=_histograms(flat, _gradients(values), count, _TEXTURE_BINS),
        neighbours=pairs,
        area=labels.size,
    )


def _gradients(values: Float64[ndarray, "y x c"]) -> Float64[ndarray, "p d"]:
    """How steep each channel is in each of eight directions, behind a Gaussian of σ = 1, from 0 to 1."""
    smooth = _scikit_image()[2].gaussian(values, sigma=1.0, channel_axis=-1)
    steep = []
    for channel in np.moveaxis(smooth, -1, 0):
        down, across = np.gradient(channel)
        for angle in np.arange(_ANGLES) * (2 * np.pi / _ANGLES):
            steep.append((np.cos(angle) * across + np.sin(angle) * down).clip(0).ravel())
    found = np.stack(steep, axis=1)
    return found / max(float(found.max()), 1e-12)


def _histograms(
    labels: Int64[ndarray, " p"], values: Float64[ndarray, "p c"], count: int, bins: int
) -> Float64[ndarray, "n d"]:
    """One histogram for each segment: of every channel so many bins, all of them of sum 1."""
    places = (values * bins).astype(np.int64).clip(0, bins - 1)
    parts = [np.bincount(labels * bins + one, minlength=count * bins).reshape(count, bins) for one in places.T]
    counts = np.concatenate(parts, axis=1).astype(np.float64)
    return counts / counts.sum(1, keepdims=True)


def _measure(
    likeness: Likeness, boxes: ndarray, sizes: ndarray, colour: ndarray, texture: ndarray, area: int
) -> Callable[[int, ndarray], ndarray]:
    """How alike a segment is to each of several others (equations 2 to 6)."""

    def alike(one: int, others: ndarray) -> ndarray:
        total = np.zeros(len(others))
        if likeness.colour:
            total += np.minimum(colour[one], colour[others]).sum(1)
        if likeness.texture:
            total += np.minimum(texture[one], texture[others]).sum(1)
        both = sizes[one] + sizes[others]
        if likeness.size:
            total += 1 - both / area
        if likeness.fill:
            low, high = np.minimum(boxes[one, :2], boxes[others, :2]), np.maximum(boxes[one, 2:], boxes[others, 2:])
            total += 1 - ((high - low).prod(1) - both) / area
        return total

    return alike


def _group(segments: _Segments, likeness: Likeness) -> Int64[ndarray, "k 4"]:
    """The boxes around all segments there ever are while the two most alike neighbours become one (algorithm 1).

    Args:
        segments: the first ones.
        likeness: what makes two alike.

    Returns:
        xyxy in pixels: the first segments, then each that came of two, in the order in which they came.
    """
    count = len(segments.sizes)
    room = 2 * count - 1
    boxes, sizes = np.zeros((room, 4), dtype=np.int64), np.zeros(room, dtype=np.int64)
    colour, texture = np.zeros((room, segments.colour.shape[1])), np.zeros((room, segments.texture.shape[1]))
    boxes[:count], sizes[:count], colour[:count], texture[:count] = (
        segments.boxes,
        segments.sizes,
        segments.colour,
        segments.texture,
    )
    alike = _measure(likeness, boxes, sizes, colour, texture, segments.area)
    touching: list[set[int]] = [set() for _ in range(room)]
    queue: list[tuple[float, int, int]] = []
    for one, other in segments.neighbours.tolist():
        touching[one].add(other)
        touching[other].add(one)
    for one in range(count):
        later = np.array(sorted(other for other in touching[one] if other > one), dtype=np.int64)
        queue += zip((-alike(one, later)).tolist(), [one] * len(later), later.tolist(), strict=True)
    heapq.heapify(queue)
    alive, new = np.zeros(room, dtype=bool), count
    alive[:count] = True
    while queue and new < room:
        _, one, other = heapq.heappop(queue)
        if not (alive[one] and alive[other]):
            continue  # one of them is part of a larger segment by now
        alive[[one, other]], alive[new] = False, True
        boxes[new, :2] = np.minimum(boxes[one, :2], boxes[other, :2])
        boxes[new, 2:] = np.maximum(boxes[one, 2:], boxes[other, 2:])
        sizes[new] = sizes[one] + sizes[other]
        for histograms in (colour, texture):  # equation 3: no pixel is looked at again
            histograms[new] = (sizes[one] * histograms[one] + sizes[other] * histograms[other]) / sizes[new]
        touching[new] = (touching[one] | touching[other]) - {one, other}
        others = np.array(sorted(touching[new]), dtype=np.int64)
        for place in others.tolist():
            touching[place] -= {one, other}
            touching[place].add(new)
        for score, place in zip((-alike(new, others)).tolist(), others.tolist(), strict=True):
            heapq.heappush(queue, (score, place, new))
        new += 1
    return boxes[:new]
