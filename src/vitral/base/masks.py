"""Masks: which pixels something covers, as pixels, as run lengths and as outlines, and how much two of them share.

A mask is bool (y, x), a map a whole number for every pixel. Run lengths and outlines are those of COCO's files (Lin et al.
2014): run lengths go down the columns, from left to right, and are written as text; points of outlines are x and y in
pixels, where pixel `i` covers [i, i + 1). Everything is done within the box around what is covered, so that many small
objects in a large picture are quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Integer

from vitral.base.image import MAX_PIXELS
from vitral.base.numbers import as_integer, real_number, whole_number
from vitral.errors import UsageError

__all__ = [
    "Regions",
    "RunLengths",
    "boundary_of",
    "boundary_thickness",
    "box_of",
    "boxes_of",
    "decode_rle",
    "encode_regions",
    "encode_rle",
    "eroded",
    "mask_iou",
    "mask_to_polygons",
    "polygons_to_mask",
    "regions_of",
]


class RunLengths(TypedDict):
    """A mask as COCO's files have it.

    Attributes:
        size: height and width in pixels.
        counts: how many pixels are outside, inside, outside, … in turn, as text.
    """

    size: list[int]
    counts: str


class Regions(NamedTuple):
    """The numbers that a map holds, from low to high.

    Attributes:
        values: the numbers.
        areas: how many pixels hold each.
        boxes: left, top, right and bottom of the pixels that hold it.
    """

    values: Int64[np.ndarray, " k"]
    areas: Int64[np.ndarray, " k"]
    boxes: Float32[np.ndarray, "k 4"]


# -- boxes --------------------------------------------------------------------------------------------------------------


def box_of(mask: Bool[np.ndarray, "y x"]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a mask covers, in pixels; four zeros where it covers nothing."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return int(columns[0]), top, int(columns[-1]) + 1, bottom


def boxes_of(masks: Bool[np.ndarray, "k y x"]) -> Float32[np.ndarray, "k 4"]:
    """Boxes xyxy around what masks cover, in pixels; four zeros for one that covers nothing."""
    return np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)


# -- run lengths --------------------------------------------------------------------------------------------------------


def encode_rle(mask: Bool[np.ndarray, "y x"]) -> RunLengths:
    """A mask as COCO's run lengths, as pycocotools writes them."""
    height, width = mask.shape
    left, top, right, bottom = box_of(mask)
    turned = np.zeros((right - left, bottom - top + 2), dtype=np.int8)
    turned[:, 1:-1] = mask[top:bottom, left:right].T
    turns = np.diff(turned, axis=1)
    columns, starts = np.nonzero(turns == 1)
    ends = np.nonzero(turns == -1)[1]  # as many, in the same columns
    return _written((columns + left) * height + top + starts, (columns + left) * height + top + ends, (height, width))


def decode_rle(rle: Mapping[str, Any], size: tuple[int, int] | None = None) -> Bool[np.ndarray, "y x"]:
    """COCO's run lengths as a mask.

    Args:
        rle: "size", and "counts" as text, as bytes or, as files have those of crowds, as numbers.
        size: (height, width) that the mask must have; None: any.

    Raises:
        UsageError: damaged counts, counts that do not add up to the size, another size, or one no picture has.
    """
    height, width = _size_of(rle)
    if size is not None and (height, width) != tuple(size):
        raise UsageError(f"Run lengths of {height} × {width} pixels came for a picture of {size[0]} × {size[1]}.")
    counts = _counts_of(rle.get("counts"))
    ends = np.cumsum(counts)
    if (counts < 0).any() or (ends[-1] if len(ends) else 0) != height * width:
        raise UsageError(
            f"Damaged run lengths: {len(counts)} counts that do not add up to the {height} × {width} pixels of their size."
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def encode_regions(numbers: Integer[np.ndarray, "y x"]) -> dict[int, RunLengths]:
    """The run lengths of every number that a map holds, in one pass."""
    values, starts, ends = _runs(numbers)
    order = np.argsort(values, kind="stable")
    values, starts, ends = values[order], starts[order], ends[order]
    firsts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    size, told = numbers.shape, {}
    for first, last in zip(firsts.tolist(), [*firsts.tolist(), len(values)][1:], strict=True):
        told[int(values[first])] = _written(starts[first:last], ends[first:last], (size[0], size[1]))
    return told


def regions_of(numbers: Integer[np.ndarray, "y x"]) -> Regions:
    """The numbers that a map holds, with the area and the box of each, in one pass."""
    values, starts, ends = _runs(numbers)
    order = np.argsort(values, kind="stable")
    values, starts, ends = values[order], starts[order], ends[order]
    firsts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    if not len(firsts):
        return Regions(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    height = numbers.shape[0]
    left, right, top, bottom = starts // height, (ends - 1) // height, starts % height, (ends - 1) % height
    whole = right > left  # it goes on in the next column: from the bottom of this one, and from the top of that
    edges = (
        np.minimum.reduceat(left, firsts),
        np.minimum.reduceat(np.where(whole, 0, top), firsts),
        np.maximum.reduceat(right, firsts) + 1,
        np.maximum.reduceat(np.where(whole, height - 1, bottom), firsts) + 1,
    )
    areas = np.add.reduceat(ends - starts, firsts)
    return Regions(values[firsts].astype(np.int64), areas, np.stack(edges, axis=1).astype(np.float32))


def _runs(
    numbers: Integer[np.ndarray, "y x"],
) -> tuple[Integer[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Down the columns, one after another: each number, where a run of it starts, and where it ends."""
    flat = numbers.ravel(order="F")
    if not flat.size:
        return flat, np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]).astype(np.int64)
    return flat[starts], starts, np.append(starts[1:], flat.size)


def _written(starts: Int64[np.ndarray, " n"], ends: Int64[np.ndarray, " n"], size: tuple[int, int]) -> RunLengths:
    """Run lengths from where runs start and end, down the columns; runs that touch are one.

    Each count but the first three is written as its difference from the last but one, in groups of five bits from the
    lowest on, as letters from "0" (48) on; 32 is added where more groups follow.
    """
    apart = starts[1:] > ends[:-1] if len(starts) else np.zeros(0, bool)
    starts, ends = starts[np.append(len(starts) > 0, apart)[: len(starts)]], ends[np.append(apart, True)[: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0)
    if not len(edges) or edges[-1] < size[0] * size[1]:
        counts = np.append(counts, size[0] * size[1] - (edges[-1] if len(edges) else 0))
    steps = counts.copy()
    steps[3:] -= counts[1:-2]
    letters, known = [], []
    open_ = np.ones(len(steps), dtype=bool)
    while open_.any():
        low, steps = steps & 31, steps >> 5
        more = np.where(low & 16, steps != -1, steps != 0)
        letters.append((48 + low + 32 * more).astype(np.uint8))
        known.append(open_)
        open_ = open_ & more
    text = np.stack(letters, axis=1)[np.stack(known, axis=1)] if letters else np.zeros(0, np.uint8)
    return {"size": [int(size[0]), int(size[1])], "counts": text.tobytes().decode("ascii")}


def _size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that run lengths say."""
    size = rle.get("size")
    sides = [as_integer(side) for side in size] if isinstance(size, list | tuple | np.ndarray) else []
    if len(sides) != 2 or any(side is None or side < 0 for side in sides):
        raise UsageError(f"The size of run lengths must be two whole numbers, height and width; {size!r} came.")
    height, width = int(sides[0] or 0), int(sides[1] or 0)
    if height * width > MAX_PIXELS:
        raise UsageError(f"Run lengths of {height} × {width} pixels came; pictures have up to {MAX_PIXELS:,}.")
    return height, width


def _counts_of(counts: Any) -> Int64[np.ndarray, " n"]:
    """The lengths that run lengths say, whatever they are written as."""
    if isinstance(counts, list | tuple | np.ndarray):
        told = np.asarray(counts)
        if told.ndim != 1 or (told.size and told.dtype.kind not in "iu") or (told.size and told.max() > MAX_PIXELS):
            raise UsageError("Damaged run lengths: counts in a list must be whole numbers, none above that of the pixels.")
        return told.astype(np.int64)
    if not isinstance(counts, str | bytes):
        raise UsageError(f"The counts of run lengths must be text, bytes or a list; {type(counts).__name__} came.")
    letters = np.frombuffer(counts.encode("utf-8") if isinstance(counts, str) else counts, dtype=np.uint8)
    codes = letters.astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        raise UsageError("Damaged run lengths: counts have letters that run lengths do not have.")
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    last = codes < 32
    if not last[-1]:
        raise UsageError("Damaged run lengths: counts end within a number; something was cut off.")
    ends = np.flatnonzero(last)
    firsts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - firsts + 1
    if groups.max() > 7:  # 35 bits: more than any picture has pixels
        raise UsageError("Damaged run lengths: counts hold a number that no picture has pixels for.")
    place = np.arange(len(codes)) - np.repeat(firsts, groups)
    steps = np.add.reduceat((codes & 31) << (5 * place), firsts)
    steps -= np.where(codes[ends] & 16, 1 << (5 * groups), 0)
    steps[1::2] = np.cumsum(steps[1::2])
    steps[2::2] = np.cumsum(steps[2::2])
    return steps


# -- outlines -----------------------------------------------------------------------------------------------------------

_FINE = 5  # parts of a pixel that outlines are rounded to before they are filled
_FAR = 1e8  # pixels from the picture


def polygons_to_mask(polygons: Sequence[Any], size: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """The pixels within any of an object's outlines, the same ones as pycocotools has.

    Points are rounded to fifths of a pixel. Down the middle of each column, a pixel is inside where an odd number of edges
    has been crossed, so that an outline that touches or crosses itself leaves out what it goes round twice.

    Args:
        polygons: each x, y, x, y, … of at least three points, in pixels, or a point in each row; they may reach beyond the
            picture.
        size: (height, width) of the picture.

    Raises:
        UsageError: an outline of less than three points, or of an odd number of numbers, or one that is not finite.
    """
    height, width = (whole_number("a side of a mask", side, least=0) for side in size)
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        columns, rows = _crossings(_points_of(polygon), height, width)
        if not len(columns):
            continue
        left, right = int(columns.min()), int(columns.max()) + 1
        top, bottom = int(rows.min()), int(rows.max())
        places, often = np.unique((columns - left) * (bottom - top + 1) + rows - top, return_counts=True)
        turns = np.zeros((right - left, bottom - top + 1), dtype=bool)
        turns.ravel()[places[often % 2 == 1]] = True
        mask[top:bottom, left:right] |= np.logical_xor.accumulate(turns, axis=1)[:, :-1].T
    return mask


def _points_of(polygon: Any) -> Float64[np.ndarray, "n 2"]:
    """The points of an outline, checked."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"An outline must be numbers x, y, x, y, …; {str(polygon)[:60]} came.") from None
    if numbers.size < 6 or numbers.size % 2 or not (numbers.ndim == 1 or (numbers.ndim == 2 and numbers.shape[1] == 2)):
        raise UsageError(
            f"An outline needs at least three points, x and y of each; {' × '.join(map(str, numbers.shape)) or 'one'} "
            f"number{'' if numbers.size == 1 else 's'} came."
        )
    if not (np.abs(numbers) < _FAR).all():
        raise UsageError(f"An outline has points that are not finite, or farther than {_FAR:,.0f} pixels from the picture.")
    return numbers.reshape(-1, 2)


def _crossings(
    points: Float64[np.ndarray, "n 2"], height: int, width: int
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Where an outline crosses the middles of the picture's columns: the column, and the first row below."""
    corners = np.trunc(_FINE * points + 0.5).astype(np.int64)
    others = np.roll(corners, -1, axis=0)
    flat = np.abs(others - corners)
    flat = flat[:, 0] >= flat[:, 1]
    # Both ways along an edge are the same: from left to right, or, of a steep one, from top to bottom.
    turned = np.where(flat, corners[:, 0] > others[:, 0], corners[:, 1] > others[:, 1])[:, None]
    (xs, ys), (xe, ye) = np.where(turned, others, corners).T, np.where(turned, corners, others).T
    # A column's middle lies between 5 x + 2 and 5 x + 3.
    first = np.maximum(-(-(np.minimum(xs, xe) - 2) // _FINE), 0)
    last = np.minimum((np.maximum(xs, xe) - 3) // _FINE, width - 1)
    often = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(points)), often)
    column = np.arange(often.sum()) - np.repeat(np.cumsum(often) - often, often) + first[edge]
    xs, ys, xe, ye, flat = xs[edge], ys[edge], xe[edge], ye[edge], flat[edge]
    middle = _FINE * column + 2
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(flat, (ye - ys) / (xe - xs), (xe - xs) / (ye - ys))
    step = middle - xs
    one, other = (np.trunc(ys + slope * along + 0.5) for along in (step, step + 1))
    fine = np.where(flat, np.minimum(one, other), 0)
    steep = np.flatnonzero(~flat)
    fine[steep] = ys[steep] + _last_before(xs[steep], slope[steep], middle[steep], (ye - ys)[steep])
    rows = np.ceil(np.clip((fine + 0.5) / _FINE - 0.5, 0, height))
    return column, rows.astype(np.int64)


def _last_before(
    start: Int64[np.ndarray, " m"],
    slope: Float64[np.ndarray, " m"],
    middle: Int64[np.ndarray, " m"],
    longest: Int64[np.ndarray, " m"],
) -> Int64[np.ndarray, " m"]:
    """How many steps down a steep edge its rounded x leaves `middle` for `middle` + 1, or the other way round.

    Division says it to within a step; which one it is, is read from the very numbers that rounding sees.
    """
    guess = np.floor((middle + 0.5 - start) / slope).astype(np.int64)
    found = np.clip(guess, 0, longest - 1)
    for near in (-2, -1, 0, 1, 2):
        step = np.clip(guess + near, 0, longest - 1)
        one, other = (np.trunc(start + slope * along + 0.5) for along in (step, step + 1))
        found = np.where((one != other) & (np.minimum(one, other) == middle), step, found)
    return found


def mask_to_polygons(mask: Bool[np.ndarray, "y x"]) -> list[list[int]]:
    """The outlines of what a mask covers, along the edges of its pixels: x, y, x, y, …

    There is one for each part; parts that touch at a corner only are two. A hole is gone round within the outline of its
    part, along a seam there and back. Filled as COCO's are, they give exactly the mask.
    """
    left, top, right, bottom = box_of(mask)
    if right == left:
        return []
    framed = np.zeros((bottom - top + 2, right - left + 2), dtype=np.int8)
    framed[1:-1, 1:-1] = mask[top:bottom, left:right]
    rings, holes = _rings(framed)
    offset = np.array([left - 1, top - 1])
    outlines = {number: [ring] for number, ring in rings.items() if number not in holes}
    for number, owner in holes.items():
        outlines[owner].append(rings[number])
    return [(_stitched(parts) + offset).ravel().tolist() for parts in outlines.values()]


def _rings(framed: Integer[np.ndarray, "y x"]) -> tuple[dict[int, Int64[np.ndarray, "_ 2"]], dict[int, int]]:
    """The closed lines between pixels inside and outside, with what is inside on their right, as corners (x, y); and for
    each that is the edge of a hole, which one is the outer edge of its part.

    Straight pieces are found all at once; then each that lies is followed by one that stands, and that by one that lies.
    """
    stride = framed.shape[1] + 1
    x0, x1, y, rightwards = _pieces(np.diff(framed, axis=0))
    y += 1
    lying = np.where(rightwards, y * stride + x0, y * stride + x1), np.where(rightwards, y * stride + x1, y * stride + x0)
    y0, y1, x, upwards = _pieces(np.diff(framed, axis=1).T)
    x += 1
    standing = np.where(upwards, y1 * stride + x, y0 * stride + x), np.where(upwards, y0 * stride + x, y1 * stride + x)
    # Where two lines meet at a corner, each turns right: rightwards goes down, leftwards up, down left, and up right.
    then, back = np.empty(len(x0), dtype=np.int64), np.empty(len(y0), dtype=np.int64)
    then[np.lexsort((~rightwards, lying[1]))] = np.lexsort((upwards, standing[0]))
    back[np.lexsort((upwards, standing[1]))] = np.lexsort((rightwards, lying[0]))
    after, ring_of, rings = back[then].tolist(), np.full(len(x0), -1), {}
    seen = [False] * len(after)
    for begin in range(len(after)):  # from top to bottom, so that the first piece of a ring is its highest
        if seen[begin]:
            continue
        chain, piece = [], begin
        while not seen[piece]:
            seen[piece] = True
            chain.append(piece)
            piece = after[piece]
        ring_of[chain] = begin
        corners = np.stack([lying[0][chain], lying[1][chain]], axis=1).ravel()
        rings[begin] = np.stack([corners % stride, corners // stride], axis=1)
    # Above the top of a hole are pixels inside. The line to their left is the outer edge, or that of a hole further up.
    up_order = np.flatnonzero(upwards)
    keys = x[up_order] * (framed.shape[0] + 1) + y0[up_order]
    up_order, keys = up_order[np.argsort(keys)], np.sort(keys)
    standing_ring = np.empty(len(y0), dtype=np.int64)
    standing_ring[then] = ring_of
    holes: dict[int, int] = {}
    for number in rings:
        if rightwards[number]:
            continue
        row, column = int(y[number]) - 1, int(x0[number])
        edge = column + 1 - int(framed[row, column::-1].argmin())  # behind the last pixel outside
        piece = up_order[np.searchsorted(keys, edge * (framed.shape[0] + 1) + row, side="right") - 1]
        owner = int(standing_ring[piece])
        holes[number] = holes.get(owner, owner)
    return rings, holes


def _pieces(
    turns: Integer[np.ndarray, "i j"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Unbroken runs of 1 or -1 along the lines of an array: first place, place behind the last, line, whether of 1."""
    framed = np.zeros((turns.shape[0], turns.shape[1] + 2), dtype=np.int8)
    framed[:, 1:-1] = turns
    changes = framed[:, 1:] != framed[:, :-1]
    lines, starts = np.nonzero(changes & (framed[:, 1:] != 0))
    ends = np.nonzero(changes & (framed[:, :-1] != 0))[1]
    return starts, ends, lines, turns[lines, starts] > 0


def _stitched(parts: list[Int64[np.ndarray, "_ 2"]]) -> Int64[np.ndarray, "_ 2"]:
    """An outer ring and the rings of its holes as one, with seams from each hole to the nearest corner of what is there."""
    whole = parts[0]
    for hole in parts[1:]:
        at = int(np.abs(whole - hole[0]).sum(axis=1).argmin())
        whole = np.concatenate([whole[: at + 1], hole, hole[:1], whole[at:]])
    return whole


# -- what two share -----------------------------------------------------------------------------------------------------


def mask_iou(
    one: Bool[np.ndarray, "n y x"], other: Bool[np.ndarray, "m y x"], crowd: Bool[np.ndarray, " m"] | None = None
) -> Float64[np.ndarray, "n m"]:
    """Intersection over union of every mask of one set with every one of the other; 0 for two empty ones.

    Args:
        one: masks found, for example.
        other: masks there are.
        crowd: which of `other` are regions of many objects. What lies within one is no less right for being smaller: there,
            the intersection is divided by the area of `one` alone, as COCO's evaluation has it.
    """
    boxes, others = ([box_of(mask) for mask in masks] for masks in (one, other))
    areas, theirs = (np.array([np.count_nonzero(mask) for mask in masks], dtype=np.float64) for masks in (one, other))
    shared = np.zeros((len(one), len(other)))
    for row, (left, top, right, bottom) in enumerate(boxes):
        for column, box in enumerate(others):
            x0, y0, x1, y1 = max(left, box[0]), max(top, box[1]), min(right, box[2]), min(bottom, box[3])
            if x0 < x1 and y0 < y1:
                shared[row, column] = np.count_nonzero(one[row, y0:y1, x0:x1] & other[column, y0:y1, x0:x1])
    union = areas[:, None] + theirs - shared
    if crowd is not None:
        union = np.where(crowd, areas[:, None], union)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


# -- boundaries ---------------------------------------------------------------------------------------------------------


def boundary_thickness(size: tuple[int, int], ratio: float = 0.02) -> int:
    """How thick boundaries are in a picture of (height, width), in pixels: a share of its diagonal, and at least 1.

    Cheng et al. 2021 (Boundary IoU), section 5.1: 2 % for COCO's pictures. They take 0.5 % for Cityscapes'.

    Raises:
        UsageError: a share that is no number above 0.
    """
    if real_number("ratio", ratio) <= 0:
        raise UsageError(f"ratio must be above 0; {ratio!r} came.")
    return max(1, round(ratio * math.hypot(*size)))


def boundary_of(mask: Bool[np.ndarray, "y x"], thickness: int | None = None) -> Bool[np.ndarray, "y x"]:
    """The pixels of a mask that lie near its edge (Cheng et al. 2021, Boundary IoU, section 4).

    The edge of the picture is an edge of the mask too. Distances are counted as a king walks.

    Args:
        mask: any.
        thickness: how near, in pixels; None: that of `boundary_thickness`.

    Raises:
        UsageError: a thickness that is no whole number of at least 1.
    """
    height, width = mask.shape
    reach = boundary_thickness((height, width)) if thickness is None else whole_number("thickness", thickness)
    left, top, right, bottom = box_of(mask)
    boundary = mask.copy()
    boundary[top:bottom, left:right] &= ~eroded(mask[top:bottom, left:right], reach)
    return boundary


def eroded(mask: Bool[np.ndarray, "y x"], reach: int, *, beyond: bool = False) -> Bool[np.ndarray, "y x"]:
    """The pixels around which all others up to `reach` away, along rows, columns and diagonals, are in the mask.

    Args:
        mask: any.
        reach: in pixels, from 0.
        beyond: whether what lies beyond the picture counts as in the mask.
    """
    small = mask
    for axis in (0, 1):
        small = _eroded_along(small, reach, axis, beyond)
    return small


def _eroded_along(mask: Bool[np.ndarray, "y x"], reach: int, axis: int, beyond: bool) -> Bool[np.ndarray, "y x"]:
    """The same along one axis: windows of twice the length from two of the length, until they are long enough."""
    length = mask.shape[axis]
    span = min(2 * reach + 1, 2 * length + 1)
    margin = [(0, 0), (0, 0)]
    margin[axis] = ((span - 1) // 2, (span - 1) // 2)
    window = np.moveaxis(np.pad(mask, margin, constant_values=beyond), axis, 0)
    done = 1
    while done < span:
        more = min(done, span - done)
        window = window[:-more] & window[more:]
        done += more
    return np.moveaxis(window, 0, axis)
