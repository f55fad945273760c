"""Anchors: boxes laid over a picture before it is looked at, which a network says to hold an object or not, and corrects.

Ren et al. 2015, "Faster R-CNN", https://arxiv.org/abs/1506.01497, section 3.1. Here they are laid, corrected, held against
the objects that there are, and drawn from for training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "BETWEEN",
    "NOTHING",
    "cell_anchors",
    "corrected",
    "correction",
    "edge_distances",
    "grid_anchors",
    "matched",
    "sampled",
    "within_edges",
]

NOTHING = -1
"""Instead of an object's number: the anchor holds nothing."""

BETWEEN = -2
"""Instead of an object's number: it overlaps one too little to hold it, and too much to be told that it holds nothing."""

# Logarithm of the largest factor by which a side may grow, lest e to the power of nonsense overflow.
_LARGEST = math.log(1000 / 16)


def cell_anchors(sides: Sequence[int], ratios: Sequence[float]) -> Float[Tensor, "a 4"]:
    """The anchors of one cell, xyxy around its corner, in whole pixels.

    Args:
        sides: of the square of the same area, in pixels.
        ratios: height over width. The anchors of the first come first, in the order of the sides.
    """
    down = torch.tensor(ratios, dtype=torch.float32).sqrt()
    lengths = torch.tensor(sides, dtype=torch.float32)
    heights, widths = (down[:, None] * lengths).flatten(), ((1 / down)[:, None] * lengths).flatten()
    return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()


def grid_anchors(cell: Float[Tensor, "a 4"], grid: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "q 4"]:
    """The anchors of all cells of a map, xyxy in pixels, cell by cell in reading order.

    Cells are as far apart as the size of the picture, divided by that of the map, says in whole pixels. This is less than
    the stride of a map that ends in a part of a cell; networks were trained so.

    Args:
        cell: the anchors of one.
        grid: rows and columns of the map.
        size: height and width of the picture with what fills it up.
    """
    down, across = (
        torch.arange(cells, device=cell.device) * (side // cells) for cells, side in zip(grid, size, strict=True)
    )
    y, x = torch.meshgrid(down.to(cell.dtype), across.to(cell.dtype), indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (corners + cell).view(-1, 4)


def corrected(
    offsets: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*#n 4"], weights: tuple[float, float] = (1.0, 1.0)
) -> Float[Tensor, "*n 4"]:
    """Anchors moved and stretched as a network says (Girshick et al. 2014, R-CNN, equations 1 to 4).

    Args:
        offsets: of the centre, in sides of the anchor, and of the logarithms of the sides, times their weights.
        anchors: xyxy.
        weights: of the centre and of the sides.

    Returns:
        Boxes xyxy.
    """
    centre, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    moved = offsets[..., :2] / weights[0] * size + centre
    half = (offsets[..., 2:] / weights[1]).clamp(max=_LARGEST).exp() * size / 2
    return torch.cat([moved - half, moved + half], dim=-1)


def correction(
    boxes: Float[Tensor, "n 4"], anchors: Float[Tensor, "n 4"], weights: tuple[float, float] = (1.0, 1.0)
) -> Float[Tensor, "n 4"]:
    """The offsets that make boxes of anchors: the inverse of `corrected` (Girshick et al. 2014, equations 6 to 9)."""
    size, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    moved = ((boxes[:, :2] + boxes[:, 2:]) / 2 - (anchors[:, :2] + anchors[:, 2:]) / 2) / size
    return torch.cat([moved * weights[0], (wanted / size).log() * weights[1]], dim=1)


def within_edges(offsets: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*n 4"]:
    """Boxes xyxy from how far their left, top, right and bottom edges are from the middle of a square anchor, in its sides.

    Tian et al. 2019, FCOS, section 3.1.
    """
    centre, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    return torch.cat([centre - offsets[..., :2] * size, centre + offsets[..., 2:] * size], dim=-1)


def edge_distances(boxes: Float[Tensor, "*#n 4"], anchors: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*_ 4"]:
    """How far left, top, right and bottom of boxes are from the middles of anchors, in pixels; negative where outside."""
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    return torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], dim=-1)


def matched(overlaps: Float[Tensor, "k n"], *, above: float, below: float, best_at_least: bool) -> Int[Tensor, " n"]:
    """Which object each anchor is to hold (Ren et al. 2015, section 3.1.2).

    Args:
        overlaps: IoU of every object with every anchor.
        above: from here on an anchor holds the object it overlaps most.
        below: under it, it holds nothing.
        best_at_least: whether the anchors that overlap an object most hold one in any case: so every object is held, however
            small. What they hold is the object that they overlap most, which may be another one.

    Returns:
        The object's number, `NOTHING` or `BETWEEN`.
    """
    if not len(overlaps):
        return torch.full((overlaps.shape[1],), NOTHING, device=overlaps.device)
    most, objects = overlaps.max(0)
    held = objects.where(most >= above, BETWEEN).where(most >= below, NOTHING)
    if best_at_least:
        best = ((overlaps == overlaps.amax(1, keepdim=True)) & (overlaps > 0)).any(0)
        held = objects.where(best, held)
    return held


def sampled(
    held: Int[Tensor, " n"], *, count: int, share: float, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, " p"], Int[Tensor, " m"]]:
    """Anchors drawn by chance for a step of training, since nearly all hold nothing (Ren et al. 2015, section 3.1.3).

    Args:
        held: what each holds, as `matched` says.
        count: how many are drawn; fewer where there are not as many.
        share: of them hold an object at most; the others hold nothing.
        generator: where chance comes from, of the CPU; None for PyTorch's own.

    Returns:
        The places of those that hold an object, and of those that hold nothing, each in rising order.
    """
    holding, empty = (held >= 0).nonzero()[:, 0], (held == NOTHING).nonzero()[:, 0]
    wanted = min(len(holding), int(count * share))

    def drawn(places: Tensor, many: int) -> Tensor:
        chosen = torch.randperm(len(places), generator=generator)[:many].sort().values
        return places[chosen.to(places.device)]

    return drawn(holding, wanted), drawn(empty, min(len(empty), count - wanted))
