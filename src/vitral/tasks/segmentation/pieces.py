"""Maps over a model's input, read at the pixels of the picture it was made from, a piece of the picture at a time.

A picture of 6000 × 4000 pixels and 150 classes would be 14 GB of numbers, of which only the greatest of each pixel is asked
for. So the picture is gone through in squares. All its pixels lie between the cells of a small part of the map, and between
two cells there is nothing greater or smaller than both: the cells alone tell which of the maps can be the greatest anywhere
in a square. Most often that is one, and nothing is interpolated at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.frame import Frame
from vitral.errors import UsageError

__all__ = ["Line", "Piece", "greatest", "lines", "nearest", "pieces"]

_SIDE = 96  # of a square, in pixels of the picture; fewer cost more calls, more cost more values (measured, 48 to 160)
# Numbers from which PyTorch shares an operation out among threads. Squares are worth less than the threads' waiting for each
# other, which on a busy machine takes a hundred times as long as the square.
_ALONE = 32768


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
        cells = self.cells if which is None else self.cells.index_select(0, which)
        if self.squashed:
            cells = cells.sigmoid()
        wide = _between(cells, 2, self.across)
        return _between(wide, 1, (*self.down[:2], self.down[2][:, None], self.down[3][:, None]))

    def groups(self, which: Int[Tensor, " n"]) -> Iterator[tuple[int, Float[Tensor, "_ y x"]]]:
        """The values of some maps, a few maps at a time, each time with the place in `which` of the first of them."""
        few = max(1, (_ALONE - 1) // max(self.area, self.cells[0].numel()))
        for start in range(0, len(which), few):
            yield start, self.values(which[start : start + few])


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
    down, across = (list(_stretches(line, start)) for line, start in zip((rows, columns), corner, strict=True))
    numbers = maps.detach().numpy()
    for span_y, cells_y, line_y in down:
        band = numbers[:, cells_y] if which is None else np.stack([numbers[place, cells_y] for place in which.tolist()])
        lowest, highest = band.min(1), band.max(1)  # along the columns first, where numbers lie one beside the other
        cells = torch.from_numpy(band)
        for span_x, cells_x, line_x in across:
            least, most = (torch.from_numpy(bound) for bound in (lowest[:, cells_x].min(1), highest[:, cells_x].max(1)))
            bounds = (least.sigmoid_(), most.sigmoid_()) if squashed else (least, most)
            yield Piece(span_y, span_x, cells[:, :, cells_x], bounds, line_y, line_x, squashed)


def greatest(groups: Iterable[tuple[int, Float[Tensor, "_ y x"]]]) -> Int[np.ndarray, "y x"]:
    """Which map is the greatest at every pixel, the first one of those that are equal; see `Piece.groups`."""
    best = places = better = None
    for start, values in groups:
        for place, one in enumerate(values.numpy(), start):
            if best is None or places is None:
                best, places, better = one.copy(), np.full(one.shape, place), np.empty(one.shape, dtype=bool)
                continue
            np.greater(one, best, out=better)
            np.copyto(places, place, where=better)
            np.maximum(one, best, out=best)
    if places is None:
        raise UsageError("There are no maps, so none of them is the greatest.")
    return places


def _between(
    values: Float[Tensor, "n _ _"],
    axis: int,
    line: tuple[Int[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, "*_"], Float[Tensor, "*_"]],
) -> Float[Tensor, "n _ _"]:
    """Values between neighbours along one side, in the order of operations that `torch.nn.functional.interpolate` has.

    numpy takes the neighbours, for PyTorch would share even these few out among threads.
    """
    low, high, of_low, of_high = line
    before, behind = (torch.from_numpy(np.take(values.numpy(), cells.numpy(), axis)) for cells in (low, high))
    return torch.addcmul(behind.mul_(of_high), before, of_low)


def _stretches(
    line: Line, start: int
) -> Iterator[tuple[slice, slice, tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]]]:
    """A line in stretches, a square's side each: the pixels, the cells they lie in, and how."""
    for first in range(0, len(line.low), _SIDE):
        part = slice(first, first + _SIDE)
        low, high, weight = line.low[part], line.high[part], line.weight[part]
        begin, end = int(low[0]), int(high[-1]) + 1
        span = slice(line.first + first, line.first + first + len(low))
        yield span, slice(begin - start, end - start), (low - begin, high - begin, 1 - weight, weight)
