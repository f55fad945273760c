"""Large pictures through windows: each is seen on its own, and where windows overlap their answers are blended.

The corridor stays as it is; this walks it with one part of a picture after another. What is kept meanwhile is no more than
the strip that windows still to come will add to: as soon as nothing more comes for some pixels, their class is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Integer
from torch import Tensor, nn

from vitral.base.image import PictureSource, read_picture
from vitral.base.numbers import as_integer, real_number, whole_number
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.network import Network
from vitral.pipelines.predictor import Predictor
from vitral.tasks.catalogue import TASKS
from vitral.tasks.segmentation.decode import (
    Options,
    Shares,
    check_finite,
    class_names,
    class_values,
    empty_map,
    fused_places,
    ignored,
    shares_of,
    subtask_of,
    winners,
)
from vitral.tasks.segmentation.pieces import Line, lines, pieces
from vitral.tasks.segmentation.result import Segmentation

__all__ = ["segment_in_windows"]


def segment_in_windows(
    predictor: Predictor,
    picture: PictureSource,
    *,
    window: int | tuple[int, int] | None = None,
    overlap: float = 0.25,
    shortest: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], object] | None = None,
    timeout: float = 10.0,
    **options: Any,
) -> Segmentation:
    """The class of every pixel of a picture that is larger than what the network is made for.

    Windows lie evenly. Across an overlap the weight of one falls while that of the other rises; weights sum to one.

    Args:
        predictor: of a network that segments.
        picture: a path, address, bytes, file object, Pillow image, array or tensor; it is read whole.
        window: height and width of what the network sees at once, in pixels of the resized picture, or one number for both;
            None for the network's own size. At least a cell of the network's, its patch or the stride of its coarsest map. A
            picture that is smaller is seen whole.
        overlap: the part of a window that it shares with the next one, from 0 to 0.9.
        shortest: the shorter side of the resized picture in pixels; None for the picture as it is.
        batch_size: how many windows the network sees at once.
        progress: called with the number of windows that were seen, and with that of all; first behind the first window,
            which tells how many there will be.
        timeout: seconds that fetching an address may take.
        **options: override the predictor's; see `vitral.tasks.segmentation.decode.Options`.

    Raises:
        PictureError: the picture cannot be read.
        UnknownNameError: a misspelt option, or a class to be fused that the model does not have.
        UsageError: the predictor does not segment; objects or segments are asked for, which windows would cut; a number out
            of its range; or windows smaller than a cell of the network's.
    """
    if predictor.task != "image-segmentation":
        raise UsageError(f"Windows are for segmentation; this predictor does {predictor.task!r}.")
    chosen = TASKS[predictor.task].chosen(options, predictor.options)
    sides = _sides(cast(Any, predictor.model).config.image_size if window is None else window)
    _not_below_a_cell(predictor.model, sides)
    whole_number("batch_size", batch_size)
    if not 0 <= real_number("overlap", overlap) <= 0.9:
        raise UsageError(f"overlap must be from 0 to 0.9; {overlap!r} came.")
    read = read_picture(picture, timeout=timeout)
    pixels, frame = _unresized(predictor.preprocessing, shortest)(read)
    run = _Windows(predictor, pixels, (min(sides[0], pixels.shape[1]), min(sides[1], pixels.shape[2])), chosen)
    first = run.seen([(0, 0)])[0]
    cell = run.cell(first)
    down, across = (
        _Grid.over(math.ceil(length / size), side // size, overlap)
        for length, side, size in zip(pixels.shape[1:], run.window, cell, strict=True)
    )
    rows, columns = lines(
        replace(frame, input=(down.length * cell[0], across.length * cell[1])), (down.length, across.length)
    )
    classes = len(first)
    class_map = empty_map(frame.picture, classes)
    scores = np.zeros(frame.picture, dtype=np.float32) if chosen.scores else None
    total = len(down.starts) * len(across.starts)
    corners = [(y * cell[0], x * cell[1]) for y in down.starts for x in across.starts]

    def answers() -> Iterator[Float[Tensor, "c i j"]]:
        if progress is not None:
            progress(1, total)
        yield run.cells(first, cell)
        for start in range(1, total, batch_size):
            found = run.seen(corners[start : start + batch_size])
            if progress is not None:
                progress(start + len(found), total)
            for values in found:
                yield run.cells(values, cell)

    _blend(answers(), _Side(down, rows), _Side(across, columns), classes, class_map, scores, run.shares)
    return Segmentation(
        read.name, frame.picture, class_map, class_names(predictor.record, classes), scores, read, ignored(classes)
    )


def _sides(window: Any) -> tuple[int, int]:
    """Height and width of a window."""
    pair = window if isinstance(window, tuple | list) else (window, window)
    sides = [as_integer(side) for side in pair]
    if len(sides) != 2 or any(side is None or side < 1 for side in sides):
        raise UsageError(f"window must be a whole number of pixels, or (height, width); {window!r} came.")
    return int(sides[0] or 0), int(sides[1] or 0)


def _not_below_a_cell(model: nn.Module, sides: tuple[int, int]) -> None:
    """Refuse windows of which a network would fill up the most: it would see thousands, and in each next to nothing."""
    if not isinstance(model, Network):
        return
    size = cast(Any, model.config).image_size
    cell = tuple(-(-side // max(1, count)) for side, count in zip(size, cast(Any, model.config).grid_of(size), strict=True))
    if any(side < least for side, least in zip(sides, cell, strict=True)):
        raise UsageError(
            f"Windows of {sides[0]} × {sides[1]} pixels are smaller than a cell of this network, {cell[0]} × {cell[1]}, so "
            f"it would see next to nothing in each. Its own size is {size[0]} × {size[1]}; take windows about as large."
        )


def _unresized(usual: Preprocessing, shortest: int | None) -> Preprocessing:
    """How a picture is prepared of which windows are cut out: as usual, but for its size."""
    if shortest is None:
        return replace(usual, resize="none", crop=None, longest=None, multiple=1)
    side = whole_number("shortest", shortest)
    return replace(usual, resize="shortest_edge", size=(side, side), crop=None, longest=None, multiple=1)


class _Windows:
    """What a network says of windows of one picture."""

    def __init__(
        self, predictor: Predictor, pixels: Float[Tensor, "c y x"], window: tuple[int, int], options: Options
    ) -> None:
        self.predictor, self.pixels, self.window, self.options = predictor, pixels, window, options
        self.shares: Shares | None = None

    @torch.no_grad()
    def seen(self, corners: list[tuple[int, int]]) -> Float[Tensor, "b c i j"]:
        """A number for each class and cell of the windows whose top left corners these are."""
        model = self.predictor.model
        inputs = torch.stack([self._cut(*corner) for corner in corners]).to(self.predictor.device, self.predictor.dtype)
        output = model(inputs)
        subtask = subtask_of(output, self.options)
        if subtask != "semantic":
            told = "" if self.options.subtask else " (this network's answer unless told otherwise)"
            raise UsageError(
                f"subtask={subtask!r}{told} needs the whole picture at once: windows would cut things in two. Use "
                "subtask='semantic', or no windows."
            )
        fused_places(output, self.predictor.record, self.options)  # for what is misspelt; nothing is fused here
        check_finite(output)
        self.shares = shares_of(output, self.options)
        return class_values(output).cpu()

    def _cut(self, top: int, left: int) -> Float[Tensor, "c y x"]:
        """A window; where it reaches beyond the picture by a part of a cell, the last pixels are said again."""
        height, width = self.window
        part = self.pixels[:, top : top + height, left : left + width]
        missing = (0, width - part.shape[2], 0, height - part.shape[1])
        return F.pad(part[None], missing, mode="replicate")[0] if any(missing) else part

    def cell(self, values: Float[Tensor, "c i j"]) -> tuple[int, int]:
        """Height and width of a cell in pixels; 1 where windows are no whole number of cells."""
        down, across = (
            side // count if side % count == 0 else 0 for side, count in zip(self.window, values.shape[1:], strict=True)
        )
        return (down, across) if down and across else (1, 1)

    def cells(self, values: Float[Tensor, "c i j"], cell: tuple[int, int]) -> Float[Tensor, "c u v"]:
        """The values at cells of this size."""
        count = self.window[0] // cell[0], self.window[1] // cell[1]
        if values.shape[1:] == count:
            return values
        return F.interpolate(values[None], count, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where windows lie along one side, in cells.

    Attributes:
        length: cells along the whole side.
        window: cells of a window.
        starts: the first cell of each.
        weights: how much each window's cells count (k n); of every place they sum to one.
    """

    length: int
    window: int
    starts: tuple[int, ...]
    weights: Float[Tensor, "k n"]

    @classmethod
    def over(cls, length: int, window: int, overlap: float) -> _Grid:
        """Windows over so many cells, evenly, each sharing at least `overlap` of itself with the next."""
        window = min(window, length)
        shared = min(round(window * overlap), window - 1)
        count = 1 + math.ceil((length - window) / (window - shared))
        starts = tuple(round(one * (length - window) / max(count - 1, 1)) for one in range(count))
        within = torch.arange(window, dtype=torch.float64) + 0.5
        ramp = torch.minimum(within, window - within).clamp(max=max(shared, 0.5))
        total = torch.zeros(length, dtype=torch.float64)
        for start in starts:
            total[start : start + window] += ramp
        return cls(length, window, starts, torch.stack([ramp / total[start : start + window] for start in starts]).float())


class _Side:
    """Along one side: which cells are kept, and which pixels decided, when a window has been added.

    Attributes:
        grid: the windows.
        line: where the picture's pixels lie.
        decided: for each window the pixels (first, behind the last) whose cells no later window adds to.
        kept: for each window the first cell that is still needed once its predecessors' pixels are decided; and, behind all
            windows, the side's length.
    """

    def __init__(self, grid: _Grid, line: Line) -> None:
        self.grid, self.line = grid, line
        done = [0, *(int((line.high < start).sum()) for start in grid.starts[1:]), len(line.low)]
        self.decided = list(pairwise(done))
        self.kept = [0, *(min(start, int(line.low[at])) for start, at in zip(grid.starts[1:], done[1:-1], strict=True))]
        self.kept.append(grid.length)

    def stop(self, place: int) -> int:
        """The cell behind a window's last one."""
        return self.grid.starts[place] + self.grid.window


def _blend(
    answers: Iterator[Float[Tensor, "c i j"]],
    down: _Side,
    across: _Side,
    classes: int,
    class_map: Integer[np.ndarray, "y x"],
    scores: Float32[np.ndarray, "y x"] | None,
    shares: Shares | None,
) -> None:
    """Sum windows up, from left to right and from the top down, and decide pixels as soon as their cells are complete.

    Two sums are kept: `above`, of the lowest rows so far, over the whole width, to which the next row of windows adds; and
    `block`, from the last undecided column to the end of the present window.
    """
    above = torch.zeros(classes, max(_left_over(down, place) for place in range(len(down.grid.starts))), across.grid.length)
    for i, start in enumerate(down.grid.starts):
        top, waiting = down.kept[i], _left_over(down, i - 1) if i else 0
        block, previous = torch.zeros(classes, down.stop(i) - top, 0), 0
        for j, begin in enumerate(across.grid.starts):
            left, right = across.kept[j], across.stop(j)
            wider = torch.zeros(classes, block.shape[1], right - left)
            held = previous - left  # columns that the last block has too
            wider[:, :, :held] = block[:, :, block.shape[2] - held :]
            wider[:, :waiting, held:] = above[:, :waiting, previous:right]
            weights = down.grid.weights[i][:, None] * across.grid.weights[j]
            wider[:, start - top :, begin - left :].addcmul_(next(answers), weights)
            block, previous = wider, right
            rows, columns = down.line.part(*down.decided[i]), across.line.part(*across.decided[j])
            for piece in pieces(block, rows, columns, (top, left)):
                winners(piece, class_map, scores, shares)
            if i + 1 < len(down.grid.starts):
                over = _left_over(down, i)
                # These columns were read from `above` already: a later window begins behind them.
                until = across.kept[j + 1]
                above[:, :over, left:until] = block[:, down.kept[i + 1] - top :, : until - left]


def _left_over(down: _Side, place: int) -> int:
    """How many rows of a row of windows the next one needs."""
    return down.stop(place) - down.kept[place + 1] if place + 1 < len(down.grid.starts) else 0
