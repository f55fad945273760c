"""Reading maps at points instead of everywhere: masks are learned from some thousand points each, most of them in doubt.

A point is (x, y) in [0, 1] of a map, from its left top corner to its right bottom one, so that the same point is the same
place in maps of different sizes. Between the middles of cells values are interpolated bilinearly; beyond the edge there are
zeros, which the half of a cell along the edge feels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Draw", "random_points", "sampled", "sampled_masks", "uncertain_points"]

Draw = Callable[[int, int, torch.device], Tensor]
"""How points are drawn: how many sets, how many points in each, and where they are to lie -> (sets, points, 2)."""


def random_points(sets: int, points: int, device: torch.device) -> Float[Tensor, "k p 2"]:
    """Points spread evenly, from torch's own random numbers."""
    return torch.rand(sets, points, 2, device=device)


def sampled(maps: Float[Tensor, "b c i j"], points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b c p"]:
    """What maps hold at the points of each picture; gradients reach the maps."""
    return F.grid_sample(maps, (2 * points - 1)[:, :, None], align_corners=False)[..., 0]


def sampled_masks(
    masks: Bool[Tensor, "n y x"], points: Float[Tensor, "#k p 2"], chosen: Int[Tensor, " k"]
) -> Float[Tensor, "k p"]:
    """What masks hold at points, as `sampled` would say it of masks that are numbers; only the cells asked for are read.

    Args:
        masks: of a picture or of a whole batch.
        points: of each chosen mask, or once for all of them.
        chosen: which masks are read; one may be read several times.
    """
    height, width = masks.shape[-2:]
    x, y = (points * points.new_tensor([width, height]) - 0.5).unbind(-1)
    left, top = x.floor(), y.floor()
    cells, starts = masks.flatten(), chosen[:, None] * (height * width)
    told = x.new_zeros(())
    for row, by_row in ((top, top + 1 - y), (top + 1, y - top)):
        for column, by_column in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            told = told + cells[place + starts] * (by_row * by_column * inside)
    return told


@torch.no_grad()
def uncertain_points(
    logits: Float[Tensor, "k i j"], points: int, oversample: float, importance: float, draw: Draw = random_points
) -> Float[Tensor, "k p 2"]:
    """Points for each mask, most of them where it is in doubt (Kirillov et al. 2020, PointRend, section 3.1, training).

    Many more points than needed are drawn, and of them those kept whose logits are nearest to 0; the rest is spread evenly.

    Args:
        logits: of the masks' cells.
        points: how many are wanted for each mask.
        oversample: how many times as many are drawn.
        importance: the share of the points wanted that is chosen so.
        draw: how points are drawn.
    """
    drawn = draw(len(logits), int(points * oversample), logits.device)
    count = int(points * importance)
    doubtful = sampled(logits[:, None], drawn)[:, 0].abs().topk(count, dim=1, largest=False, sorted=False).indices
    chosen = drawn.gather(1, doubtful[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, draw(len(logits), points - count, logits.device)], dim=1) if count < points else chosen
