"""Maps over a model's input, read at the pixels of the picture it was made from, a piece of the picture at a time.

A picture of 6000 × 4000 pixels and 150 classes would be 14 GB of numbers, of which only the greatest of each pixel is asked
for. So the picture is gone through in squares. All its pixels lie between the cells of a small part of the map, and between
two cells there is nothing greater or smaller than both: the cells alone tell which of the maps can be the greatest anywhere
in a square. Most often that is one, and nothing is interpolated at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.frame import Frame

__all__ = ["Line", "Piece", "lines", "nearest", "pieces"]

_SIDE = 64  # of a square, in pixels of the picture
_SIDE_OF_LARGE = 128
_LARGE = (
    4_000_000  # pixels, from which squares are larger: there are cells enough in each, or it is the cells that are large
)


@dataclass(frozen=True, eq=False)
class Line:
    """Where the pixels along one side of a picture lie in a map: each between two of its cells.

    Attributes:
        first: the first pixel that the map says anything of.
        low: of each such pixel, the cell before it.
        high: the cell behind it; the same one at the map's end.
        weight: how much of `high` it has; the rest is of `low`.
        length: pixels along the whole side.
    """

    first: int
    low: Int[Tensor, " n"]
    high: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    length: int

    @property
    def stop(self) -> int:
        """The pixel behind the last one that the map says anything of."""
        return self.first + len(self.low)

    def part(self, start: int, stop: int) -> Line:
        """Some of the pixels that the map says anything of, counted from the first of them."""
        span = slice(start, stop)
        return Line(self.first + start, self.low[span], self.high[span], self.weight[span], self.length)


def lines(frame: Frame, cells: tuple[int, int]) -> tuple[Line, Line]:
    """Where the rows and the columns of a picture lie in a map that covers the model's whole input.

    The rule is `torch.nn.functional.interpolate`'s for "bilinear" without aligned corners, digit by digit where the picture
    was only resized.

    Args:
        frame: the way from the input to the picture.
        cells: rows and columns of the map.
    """
    rows, columns = (_line(frame, axis, count) for axis, count in enumerate(cells))
    return rows, columns


def _line(frame: Frame, axis: int, cells: int) -> Line:
    length, scale, per_pixel = frame.picture[axis], frame.scale[axis], cells / frame.input[axis]
    middles = np.arange(length) + 0.5
    in_input = middles * scale - frame.offset[axis]
    inside = np.flatnonzero((in_input >= 0) & (in_input <= frame.input[axis]))
    first, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    step = float(np.float32(scale * per_pixel))
    places = (middles[first:stop] * step - (0.5 + frame.offset[axis] * per_pixel)).astype(np.float32).clip(0)
    low = places.astype(np.int64).clip(max=cells - 1)
    weight = (places - low.astype(np.float32)).clip(0, 1)
    high = (low + 1).clip(max=cells - 1)
    return Line(first, torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(weight), length)


def nearest(frame: Frame, cells: tuple[int, int]) -> tuple[slice, slice, Int[np.ndarray, " y"], Int[np.ndarray, " x"]]:
    """Which cell of a map each pixel of a picture takes its value from, where nothing is mixed.

    The rule is `torch.nn.functional.interpolate`'s for "nearest", which asks where a pixel begins, not where its middle is.

    Returns:
        The rows and the columns of the picture that the map says anything of, and the cell of each.
    """
    spans, chosen = [], []
    for axis, count in enumerate(cells):
        line = _line(frame, axis, count)
        per_pixel = count / frame.input[axis]
        pixels = np.arange(line.first, line.stop, dtype=np.float32)
        places = pixels * np.float32(frame.scale[axis] * per_pixel) - np.float32(frame.offset[axis] * per_pixel)
        spans.append(slice(line.first, line.stop))
        chosen.append(places.astype(np.int64).clip(0, count - 1))
    return spans[0], spans[1], chosen[0], chosen[1]


@dataclass(frozen=True, eq=False)
class Piece:
    """A square of the picture, and the part of the maps that its pixels lie in.

    Attributes:
        rows: of the picture.
        columns: of the picture.
        cells: the part of every map (k i j).
        bounds: for every map what none of the square's values is below, and above, but for the last digit.
        down: of its rows `low` and `high`, counted from the first row of `cells`, how much each has of `low`, and of `high`.
        across: likewise of its columns.
        squashed: whether the values are the sigmoid of what the maps hold.
    """

    rows: slice
    columns: slice
    cells: Float[Tensor, "k i j"]
    bounds: tuple[Float[Tensor, " k"], Float[Tensor, " k"]]
    down: tuple[Int[Tensor, " y"], Int[Tensor, " y"], Float[Tensor, " y"], Float[Tensor, " y"]]
    across: tuple[Int[Tensor, " x"], Int[Tensor, " x"], Float[Tensor, " x"], Float[Tensor, " x"]]
    squashed: bool

    @property
    def area(self) -> int:
        """How many pixels it has."""
        return len(self.down[0]) * len(self.across[0])

    def values(self, which: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n y x"]:
        """The maps' values at the pixels, interpolated linearly along both sides.

        Args:
            which: of the maps; None for all.
        """
        cells = self.cells if which is None else self.cells[which]
        if self.squashed:
            cells = cells.sigmoid()
        low, high, of_low, of_high = self.across
        wide = torch.addcmul(cells.index_select(2, high).mul_(of_high), cells.index_select(2, low), of_low)
        low, high, of_low, of_high = self.down
        return torch.addcmul(wide.index_select(1, high).mul_(of_high[:, None]), wide.index_select(1, low), of_low[:, None])


def pieces(
    maps: Float[Tensor, "k i j"],
    rows: Line,
    columns: Line,
    corner: tuple[int, int] = (0, 0),
    *,
    which: Int[Tensor, " n"] | None = None,
    squashed: bool = False,
) -> Iterator[Piece]:
    """The squares of a picture, from left to right and from the top down; pixels that no map covers belong to none.

    Args:
        maps: over the whole input, or a part of them that holds all the cells the pixels need.
        rows: where the picture's rows lie in the maps.
        columns: where its columns do.
        corner: row and column of the first cell of `maps`.
        which: of the maps; None for all.
        squashed: whether the sigmoid of what the maps hold is asked for. It is taken where it is needed only.
    """
    side = _SIDE if rows.length * columns.length < _LARGE else _SIDE_OF_LARGE
    down, across = (list(_stretches(line, side, start)) for line, start in zip((rows, columns), corner, strict=True))
    for span_y, cells_y, line_y in down:
        band = maps[:, cells_y] if which is None else maps[:, cells_y].index_select(0, which)
        lowest, highest = band.amin(1), band.amax(1)  # along the columns first, where numbers lie one beside the other
        if squashed:
            lowest, highest = lowest.sigmoid(), highest.sigmoid()
        for span_x, cells_x, line_x in across:
            bounds = lowest[:, cells_x].amin(1), highest[:, cells_x].amax(1)
            yield Piece(span_y, span_x, band[:, :, cells_x], bounds, line_y, line_x, squashed)


def _stretches(
    line: Line, side: int, start: int
) -> Iterator[tuple[slice, slice, tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]]]:
    """A line in stretches of so many pixels: the pixels, the cells they lie in, and how."""
    for first in range(0, len(line.low), side):
        part = slice(first, first + side)
        low, high, weight = line.low[part], line.high[part], line.weight[part]
        begin, end = int(low[0]), int(high[-1]) + 1
        span = slice(line.first + first, line.first + first + len(low))
        yield span, slice(begin - start, end - start), (low - begin, high - begin, 1 - weight, weight)
