"""Deformable attention: every token looks at a few places of its own choice, on maps of several sizes.

Zhu et al. 2021, "Deformable DETR", https://arxiv.org/abs/2010.04159, equations 2 and 3. Where attention compares a token
with every cell, here the token says where to look, relative to a point it stands at, and how much each place counts:

    asking (n d) ──► offsets ──► + reference ──► locations (n h l p 2) ──┐
                └──► weights ──► softmax over l · p ──► (n h l p) ───────┤
                                                                         ▼
    memory (m d) ──► value ──► (m h k), laid out as l maps ──► what lies there, weighted and added ──► projection ──► (n d)

With n tokens, h heads, l maps, p places on each and d channels: 4nlpd multiplications for the places and 2nd² + md² for the
projections, whatever the number of cells m. `WeightedSamples` is the seam for looking inside: it is handed locations and
weights, and whoever wants them listens to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.linear import Linear, unrecorded
from vitral.layers.position import Grid

__all__ = ["DeformableAttention", "Sampling", "WeightedSamples"]

Sampling = Literal["bilinear", "discrete"]
"""What is found at a place between cells: the mean of the four around it, by their distance, or the nearest one."""

# Places that are looked up at once where nothing is recorded: what is computed of each then stays in the processor's cache.
_PIECE = 2**17


class WeightedSamples(nn.Module):
    """Looks up places on maps and adds what it finds there, weighted.

    On a CPU maps are a table with a row for each cell and head, and every place is its four rows with a weight each: a bag
    of rows, which PyTorch adds up without writing them anywhere. Elsewhere each map is sampled as a picture.

    Args:
        sampling: what is found between cells. Beyond the edge lies zero for "bilinear", the edge itself for "discrete".
    """

    def __init__(self, sampling: Sampling = "bilinear") -> None:
        super().__init__()
        self.sampling = sampling

    def forward(
        self,
        values: Float[Tensor, "b m h k"],
        locations: Float[Tensor, "b n h l p 2"],
        weights: Float[Tensor, "b n h l p"],
        grids: Sequence[Grid],
    ) -> Float[Tensor, "b n h k"]:
        """Look up.

        Args:
            values: the cells of all maps, one map behind the other, each in reading order.
            locations: x and y, from 0 at the left and upper edge of a map to 1 at the right and lower one.
            weights: how much each place counts.
            grids: rows and columns of each map.
        """
        if values.device.type != "cpu" or not _may_use_bags():
            look = _on_maps if self.sampling == "bilinear" else _gathered
            return look(values, locations, weights, grids)
        count, step = locations.shape[1], max(1, _PIECE // max(1, locations[:, :1].numel() // 2))
        if count <= step or not unrecorded(values):
            return _in_bags(values, locations, weights, grids, self.sampling)
        out = values.new_empty(values.shape[0], count, *values.shape[2:])
        for start in range(0, count, step):
            piece = slice(start, start + step)
            out[:, piece] = _in_bags(values, locations[:, piece], weights[:, piece], grids, self.sampling)
        return out

    def extra_repr(self) -> str:
        """What is found between cells, as `print` shows it."""
        return f"sampling={self.sampling!r}"


class DeformableAttention(nn.Module):
    """Tokens that ask a few places of one or several maps.

    Args:
        width: channels d of a token, and of a cell.
        heads: number of heads h.
        levels: number of maps l.
        points: places p that a head looks at on each map, or on every one of them a number of its own (Lv et al. 2024,
            RT-DETRv2, section 2.1).
        sampling: what is found between cells (RT-DETRv2, section 2.2, for "discrete").
        reach: where tokens stand at boxes: how far the outermost place lies from the centre as training begins, in heights
            and widths of the box; half of it is its edge.

    Raises:
        UsageError: the channels cannot be shared among the heads, or `points` does not fit `levels`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        levels: int,
        points: int | Sequence[int] = 4,
        *,
        sampling: Sampling = "bilinear",
        reach: float = 0.5,
    ) -> None:
        super().__init__()
        self.points = (points,) * levels if isinstance(points, int) else tuple(points)
        if width % heads:
            raise UsageError(f"{width} channels cannot be shared among {heads} heads; take a multiple.")
        if len(self.points) != levels or min(self.points, default=0) < 1:
            raise UsageError(f"points is at least 1 for each of {levels} levels; {points} came.")
        self.heads, self.levels, self.reach = heads, levels, reach
        places = heads * sum(self.points)
        self.offsets = Linear(width, 2 * places)
        self.weights = Linear(width, places)
        self.value = Linear(width, width)
        self.samples = WeightedSamples(sampling)
        self.projection = Linear(width, width)
        self.initialise()

    def forward(
        self,
        asking: Float[Tensor, "b n d"],
        reference: Float[Tensor, "#b n #l c"],
        memory: Float[Tensor, "b m d"],
        grids: Sequence[Grid],
        present: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Ask.

        Args:
            asking: the tokens that ask.
            reference: where each stands, on each map or on all alike: a point (x y), offsets then being in cells; or a box
                (cxcywh), offsets then being in its widths and heights. From 0 to 1 over a map.
            memory: the cells of all maps, one map behind the other, each in reading order.
            grids: rows and columns of each map.
            present: True where a cell shows something of the picture; other cells tell nothing. None for all.

        Raises:
            UsageError: `memory` does not hold the cells of `levels` maps of these sizes, or `reference` neither points nor
                boxes.
        """
        cells = sum(rows * columns for rows, columns in grids)
        if len(grids) != self.levels or memory.shape[1] != cells:
            raise UsageError(
                f"The attention asks {self.levels} maps; {len(grids)} of {cells} cells together and a memory of "
                f"{memory.shape[1]} came."
            )
        values = self.value(memory)
        if present is not None:
            values = values.masked_fill(~present[..., None], 0.0)
        locations = self._locations(self.offsets(asking), reference, grids)
        weights = self.weights(asking).unflatten(-1, (self.heads, -1)).softmax(-1)
        found = self.samples(values.unflatten(-1, (self.heads, -1)), locations, self._by_level(weights), grids)
        return cast(Tensor, self.projection(found.flatten(2)))

    @torch.no_grad()
    def initialise(self) -> None:
        """Begin as published: every head looks in a direction of its own, one step further with each place, at all alike.

        Zhu et al. 2021, appendix A.2 for the weights and offsets.
        """
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1.0, 1 + points) for points in self.points])
        self.offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.projection.bias):
            nn.init.zeros_(zero)
        for layer in (self.value, self.projection):
            nn.init.xavier_uniform_(layer.weight)

    def _locations(
        self, offsets: Float[Tensor, "b n e"], reference: Float[Tensor, "#b n #l c"], grids: Sequence[Grid]
    ) -> Float[Tensor, "b n h l p 2"]:
        """In single precision at least: a bfloat16 of 0.6 is as coarse as a 256th of a map."""
        precise = torch.promote_types(offsets.dtype, torch.float32)
        offsets = self._by_level(offsets.unflatten(-1, (self.heads, -1, 2)).to(precise), behind=1)
        reference = reference.to(precise)[:, :, None, :, None]
        if reference.shape[-1] == 2:
            sides = offsets.new_tensor([(columns, rows) for rows, columns in grids])
            return reference + offsets / sides[:, None]
        if reference.shape[-1] == 4:
            steps = self.reach / offsets.new_tensor(self.points)
            return reference[..., :2] + offsets * (reference[..., 2:] * steps[:, None, None])
        raise UsageError(f"Tokens stand at points of 2 numbers or at boxes of 4; {reference.shape[-1]} came.")

    def _by_level(self, x: Float[Tensor, "b n h *s"], behind: int = 0) -> Float[Tensor, "b n h l p *_"]:
        """Numbers of all places → by map; where maps have different numbers of places, zeros fill up the shorter ones."""
        most = max(self.points)
        if min(self.points) == most:
            return x.unflatten(3, (self.levels, most))
        parts = x.split(self.points, dim=3)
        return torch.stack([F.pad(part, (0, 0) * behind + (0, most - part.shape[3])) for part in parts], dim=3)


def _may_use_bags() -> bool:
    """Whether nobody compiles, traces or transforms what is done, for which maps are better understood than bags."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _in_bags(
    values: Float[Tensor, "b m h k"],
    locations: Float[Tensor, "b n h l p 2"],
    weights: Float[Tensor, "b n h l p"],
    grids: Sequence[Grid],
    sampling: Sampling,
) -> Float[Tensor, "b n h k"]:
    """Every place as rows of the table of all cells and heads, each with a weight."""
    batch, cells, heads, _ = values.shape
    # Half the bytes wherever the table has fewer than 2³¹ rows.
    kind = torch.int32 if values.numel() < 2**31 else torch.int64
    if sampling == "discrete":
        columns, rows = _nearest(locations, grids, kind)
        places, shares = [(rows, columns)], [weights]
    else:
        places, shares = _corners(locations, weights, grids, kind)
    wide = torch.tensor([columns for _, columns in grids], dtype=kind)[:, None]
    starts = torch.tensor([0, *accumulate(rows * columns for rows, columns in grids)][:-1], dtype=kind)[:, None]
    starts = starts + torch.arange(batch, dtype=kind).view(-1, 1, 1, 1, 1) * cells
    head = torch.arange(heads, dtype=kind)[:, None, None]
    indices = torch.stack([(starts + row * wide + column) * heads + head for row, column in places], dim=-1)
    bags = locations.shape[:3].numel()
    found = F.embedding_bag(
        indices.view(bags, -1),
        values.reshape(batch * cells * heads, -1),
        per_sample_weights=torch.stack(shares, dim=-1).to(values.dtype).view(bags, -1),
        mode="sum",
    )
    return found.view(*locations.shape[:3], -1)


def _corners(
    locations: Float[Tensor, "b n h l p 2"], weights: Float[Tensor, "b n h l p"], grids: Sequence[Grid], kind: torch.dtype
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """The rows and columns of the four cells around each place, and what each counts; those beyond an edge count nothing."""
    found: list[list[tuple[Tensor, Tensor]]] = []
    for axis in (1, 0):
        side = locations.new_tensor([grid[1 - axis] for grid in grids])[:, None]
        # A cell's value is at its middle. From a cell beyond the edge on all is zero, so there numbers may stop growing.
        place = (locations[..., axis] * side - 0.5).clamp_(min=-1).minimum(side)
        low = place.floor()
        after = place - low
        before = (1 - after) * ((low >= 0) & (low < side))
        after = after * (low < side - 1)
        if axis:
            before, after = before * weights, after * weights
        # Numbers that are not finite are no index of anything; they stay in the shares, and so in the result.
        cell, last = low.to(kind), (side - 1).to(kind)
        first, second = (one.clamp(min=0).minimum(last) for one in (cell, cell + 1))
        found.append([(first, before), (second, after)])
    pairs = [(row, column) for row in found[0] for column in found[1]]
    return [(row[0], column[0]) for row, column in pairs], [row[1] * column[1] for row, column in pairs]


def _nearest(locations: Float[Tensor, "b n h l p 2"], grids: Sequence[Grid], kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Columns and rows of cells, as RT-DETRv2 rounds: ⌊x + ½⌋ of the place in cells from the edge, kept on the map."""
    sides = locations.new_tensor([(columns, rows) for rows, columns in grids])[:, None]
    cells = (locations.detach() * sides + 0.5).nan_to_num(0.0).clamp(min=0).minimum(sides - 1).to(kind)
    columns, rows = cells.unbind(-1)
    return columns, rows


def _on_maps(
    values: Float[Tensor, "b m h k"],
    locations: Float[Tensor, "b n h l p 2"],
    weights: Float[Tensor, "b n h l p"],
    grids: Sequence[Grid],
) -> Float[Tensor, "b n h k"]:
    """Every map as pictures, one for each head, that are sampled bilinearly."""
    batch, _, heads, _ = values.shape
    maps = values.split([rows * columns for rows, columns in grids], dim=1)
    around = (2 * locations - 1).to(values.dtype).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    found = [
        F.grid_sample(one.permute(0, 2, 3, 1).reshape(batch * heads, -1, *grid), places, align_corners=False)
        for one, grid, places in zip(maps, grids, around.unbind(0), strict=True)
    ]
    counted = weights.to(values.dtype).transpose(1, 2).flatten(0, 1).flatten(2)[:, None]  # (b h) 1 n (l p)
    return (torch.cat(found, dim=-1) * counted).sum(-1).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)


def _gathered(
    values: Float[Tensor, "b m h k"],
    locations: Float[Tensor, "b n h l p 2"],
    weights: Float[Tensor, "b n h l p"],
    grids: Sequence[Grid],
) -> Float[Tensor, "b n h k"]:
    """The nearest cell of every place."""
    columns, rows = _nearest(locations, grids, torch.int64)
    wide = rows.new_tensor([columns for _, columns in grids])[:, None]
    starts = rows.new_tensor([0, *accumulate(high * across for high, across in grids)][:-1])[:, None]
    places = (starts + rows * wide + columns).flatten(3).transpose(1, 2)  # b h n (l p)
    table = values.transpose(1, 2)  # b h m k
    found = table.gather(2, places.flatten(2)[..., None].expand(-1, -1, -1, values.shape[-1]))
    found = found.unflatten(2, places.shape[2:])
    return (found * weights.to(values.dtype).flatten(3).transpose(1, 2)[..., None]).sum(-2).transpose(1, 2)
