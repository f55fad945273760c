"""RoIAlign: what a map says within boxes, each brought to the same small grid (He et al. 2017, Mask R-CNN, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.boxes import area_of

__all__ = ["pyramid_levels", "roi_align", "roi_align_pyramid"]

# A box of this side, in pixels, is looked at on the map of this level (Lin et al. 2017, FPN, section 4.2).
_USUAL_SIDE, _USUAL_LEVEL = 224, 4


def roi_align(
    maps: Float[Tensor, "b c y x"],
    boxes: Float[Tensor, "k 4"],
    pictures: Int[Tensor, " k"],
    *,
    size: tuple[int, int] = (7, 7),
    scale: float = 1.0,
    samples: int = 2,
    aligned: bool = False,
) -> Float[Tensor, "k c i j"]:
    """The means of a few points of a map within each cell of a grid over each box.

    A point lies between four cells of the map, the nearer ones counting more.
    A point more than one cell outside the map counts as zero, one less far as the nearest at the edge. No gradient reaches
    the boxes.

    Every cell of the result is a weighted sum of cells of the map, the weights being products of one for the row and one for
    the column. It is summed up as it is read, so that what lies at the points is never written down.

    Args:
        maps: one for each picture.
        boxes: xyxy in pixels of the pictures.
        pictures: of which picture each is.
        size: rows and columns of the grid.
        scale: cells of the map in a pixel.
        samples: points in a cell of the grid along each side.
        aligned: whether the middle of the map's first cell is at half a cell, as it should be, or at 0, as in the networks
            of the time, which also take every box to be a cell of the map wide and high at least.

    Returns:
        For each box its grid, of the maps' precision.
    """
    height, width = maps.shape[2:]
    with torch.no_grad():
        corners = boxes.float() * scale - (0.5 if aligned else 0.0)
        rows, down = _taps(corners[:, 1], corners[:, 3], size[0], samples, height, aligned)
        columns, across = _taps(corners[:, 0], corners[:, 2], size[1], samples, width, aligned)
        # For each box and cell of its grid: the cells of the map it is made of, and their weights.
        start = pictures[:, None, None, None, None] * (height * width)
        places = start + rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
        weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    table = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    summed = F.embedding_bag(
        places.reshape(-1, places.shape[-2] * places.shape[-1]),
        table,
        per_sample_weights=weights.reshape(-1, places.shape[-2] * places.shape[-1]).to(table.dtype),
        mode="sum",
    )
    return summed.view(len(boxes), *size, maps.shape[1]).permute(0, 3, 1, 2)


def _taps(
    low: Float[Tensor, " k"], high: Float[Tensor, " k"], cells: int, samples: int, length: int, aligned: bool
) -> tuple[Int[Tensor, "k i t"], Float[Tensor, "k i t"]]:
    """Along one side: for each cell of the grid, cells of the map that its points lie between, and how much each counts."""
    extent = high - low
    if not aligned:
        extent = extent.clamp(min=1.0)
    cell = extent / cells
    offsets = (torch.arange(samples, device=low.device) + 0.5) * (cell / samples)[:, None]
    at = low[:, None, None] + torch.arange(cells, device=low.device)[:, None] * cell[:, None, None] + offsets[:, None, :]
    inside = (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    first = at.floor().long().clamp(max=length - 1)
    second = (first + 1).clamp(max=length - 1)
    part = at - first
    places = torch.cat([first, second], dim=-1)
    weights = torch.cat([(1 - part) * inside, part * inside], dim=-1) / samples
    return places, weights


def pyramid_levels(boxes: Float[Tensor, "k 4"], strides: Sequence[int]) -> Int[Tensor, " k"]:
    """The map of a pyramid on which each box is looked at: a large box on a coarse one (Lin et al. 2017, FPN, equation 1).

    Args:
        boxes: xyxy in pixels.
        strides: of the maps, from fine to coarse, each twice the one before.

    Returns:
        Places in `strides`.
    """
    lowest = round(math.log2(strides[0]))
    exact = _USUAL_LEVEL + torch.log2(area_of(boxes.float()).sqrt() / _USUAL_SIDE)
    # A side of exactly 224 pixels belongs to the upper level, whatever rounding makes of it; one of none to the lowest.
    return ((exact + 1e-6).floor().clamp(lowest, lowest + len(strides) - 1) - lowest).long()


def roi_align_pyramid(
    maps: Sequence[Float[Tensor, "b c _ _"]],
    strides: Sequence[int],
    boxes: Float[Tensor, "k 4"],
    pictures: Int[Tensor, " k"],
    *,
    size: tuple[int, int] = (7, 7),
    samples: int = 2,
) -> Float[Tensor, "k c i j"]:
    """RoIAlign of each box on that map of a pyramid which suits its size; see `roi_align` and `pyramid_levels`.

    Args:
        maps: from fine to coarse.
        strides: of each, pixels from one cell to the next; each twice the one before.
        boxes: xyxy in pixels.
        pictures: of which picture each is.
        size: rows and columns of the grid.
        samples: points in a cell of the grid along each side.
    """
    levels = pyramid_levels(boxes, strides)
    found = maps[0].new_empty(len(boxes), *size, maps[0].shape[1]).permute(0, 3, 1, 2)
    for level, (one, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        part = roi_align(one, boxes[chosen], pictures[chosen], size=size, scale=1 / stride, samples=samples)
        found = found.index_copy(0, chosen, part) if torch.is_grad_enabled() else found.index_copy_(0, chosen, part)
    return found
