"""Attention within windows of a map, shifted in every other block so that windows talk to each other.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", section 3.2
(https://arxiv.org/abs/2103.14030), and its second version, Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and
Resolution", sections 3.3 and 3.4 (https://arxiv.org/abs/2111.09883).

Which token lies in which window is told by one row of numbers, computed when a map's size is first seen. Cutting a map into
windows, shifted and padded or not, is then one gathering of rows, and putting it together again another.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int8
from torch import Tensor, nn

from vitral.layers.attention import ScaledDotProduct
from vitral.layers.linear import Linear
from vitral.layers.position import Grid

__all__ = [
    "CosineWindowAttention",
    "OffsetNetwork",
    "OffsetTable",
    "ShiftRule",
    "WindowAttention",
    "Windows",
    "applied_shift",
    "relative_offsets",
]

ShiftRule = Literal["each_side", "both_sides", "always"]
"""Where windows are shifted: along each side of the map that is longer than the window, only if both are, or always.

A side that one window spans needs no shift, and every published network agrees on that. They differ in what becomes of the
other side, and in whether it is asked of every map or was settled when the network was built.
"""

# Added to the product of two tokens that only the shift brought into one window, as in the published code; not −∞.
_APART = -100.0


def applied_shift(grid: Grid, window: Grid, shift: Grid, rule: ShiftRule) -> Grid:
    """Rows and columns by which windows are shifted on a map of some grid.

    Args:
        grid: rows and columns of the map.
        window: of a window.
        shift: by which they are shifted where they are.
        rule: on which maps they are.
    """
    longer = [side > span for side, span in zip(grid, window, strict=True)]
    along = {"each_side": longer, "both_sides": [all(longer)] * 2, "always": [True] * 2}[rule]
    return shift[0] if along[0] else 0, shift[1] if along[1] else 0


class _Layout(NamedTuple):
    """Where the tokens of a map lie once it is cut into windows; n stands for a token that only fills up."""

    places: Int[np.ndarray, " ws"]
    slots: Int[np.ndarray, " n"]
    regions: Int8[np.ndarray, "w s"] | None


@dataclass(frozen=True)
class Windows:
    """A way to cut a map of tokens into windows.

    The map is filled up with zeros at the bottom and at the right to whole windows, and moved up and left by the shift; what
    leaves it comes in again on the other side.

    Attributes:
        grid: rows i and columns j of the map; n = i · j tokens.
        size: rows and columns of a window; s tokens.
        shift: rows and columns by which the map is moved.
        shift_first: whether it is moved before it is filled up. Where nothing is to be filled up, that makes no difference.
    """

    grid: Grid
    size: Grid
    shift: Grid = (0, 0)
    shift_first: bool = False

    @property
    def count(self) -> int:
        """Windows w that the map is cut into."""
        return math.prod(-(-side // span) for side, span in zip(self.grid, self.size, strict=True))

    @property
    def padded(self) -> bool:
        """Whether the map has to be filled up."""
        return any(side % span for side, span in zip(self.grid, self.size, strict=True))

    def cut(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "bw s d"]:
        """The tokens of every window: first all windows of the first picture, row by row, then those of the next."""
        places = torch.as_tensor(_layout(self).places, device=tokens.device)
        if self.padded:
            tokens = F.pad(tokens, (0, 0, 0, 1))  # row n, which all places that only fill up point to
        return tokens.index_select(1, places).view(-1, math.prod(self.size), tokens.shape[2])

    def join(self, windows: Float[Tensor, "bw s d"]) -> Float[Tensor, "b n d"]:
        """The map put together again: the shift undone, what only filled up left out."""
        slots = torch.as_tensor(_layout(self).slots, device=windows.device)
        return windows.view(-1, self.count * windows.shape[1], windows.shape[2]).index_select(1, slots)

    def apart(self, device: torch.device) -> Bool[Tensor, "w s s"] | None:
        """Which tokens of a window are no neighbours, being there from opposite ends of the map; None without a shift."""
        regions = _layout(self).regions
        if regions is None:
            return None
        places = torch.as_tensor(regions, device=device)
        return places[:, :, None] != places[:, None, :]

    def mask(self, like: Tensor) -> Float[Tensor, "w 1 s s"] | None:
        """What is added to the logits so that such tokens do not see each other; None without a shift.

        Args:
            like: a tensor whose device and precision it is to have.
        """
        apart = self.apart(like.device)
        return None if apart is None else (apart.to(like.dtype) * _APART).unsqueeze(1)

    def whole_map(self, weights: Float[Tensor, "bw h s s"]) -> Float[Tensor, "b h n n"]:
        """Attention maps of windows as one map between all tokens in reading order, through which gradients flow.

        Tokens of different windows pay each other exactly 0. Columns of what only fills up are left out, so that the rows of
        windows that have any sum to less than one.
        """
        count, tokens = math.prod(self.size), math.prod(self.grid)
        places = _layout(self).places.reshape(-1, count)
        pairs = places[:, :, None] * tokens + places[:, None, :]
        real = places < tokens
        kept = np.flatnonzero(real[:, :, None] & real[:, None, :])
        heads = weights.shape[1]
        each = weights.view(-1, self.count, heads, count * count).transpose(1, 2).flatten(2)
        each = each.index_select(2, torch.as_tensor(kept, device=weights.device)).flatten(0, 1)
        where = torch.as_tensor(pairs.ravel()[kept], device=weights.device).expand(each.shape[0], -1)
        whole = each.new_zeros(each.shape[0], tokens * tokens).scatter(1, where, each)
        return whole.view(-1, heads, tokens, tokens)


@functools.lru_cache(maxsize=64)
def _layout(windows: Windows) -> _Layout:
    tokens = math.prod(windows.grid)
    along = zip(windows.grid, windows.size, windows.shift, strict=True)
    (rows, row_regions), (columns, column_regions) = (_side(*side, windows.shift_first) for side in along)
    outside = (rows[:, None] < 0) | (columns[None, :] < 0)
    numbers = np.where(outside, tokens, rows[:, None] * windows.grid[1] + columns[None, :])
    places = _partitioned(numbers, windows.size)
    slots = np.empty(tokens, dtype=np.int64)
    real = places.ravel() < tokens
    slots[places.ravel()[real]] = np.flatnonzero(real)
    regions = _partitioned(row_regions[:, None] * 3 + column_regions[None, :], windows.size) if any(windows.shift) else None
    return _Layout(places.ravel(), slots, regions)


def _side(
    side: int, span: int, shift: int, shift_first: bool
) -> tuple[Int[np.ndarray, " padded"], Int[np.ndarray, " padded"]]:
    """For every place along a side of the shifted map: whence it comes (−1 where it fills up), and its region.

    Regions are the paper's (figure 4): what no shift tears, and the two parts of the last window, which came from
    opposite ends.
    """
    padded = -(-side // span) * span
    now = np.arange(padded)
    before = (now + shift) % (side if shift_first else padded)
    real = now < side if shift_first else before < side
    regions = (now >= padded - span).astype(np.int8) + (now >= padded - shift)
    return np.where(real, before, -1), regions


def _partitioned(numbers: Int[np.ndarray, "y x"], size: Grid) -> Int[np.ndarray, "w s"]:
    """A map of numbers cut into windows, row by row."""
    (rows, columns), (high, wide) = numbers.shape, size
    apart = numbers.reshape(rows // high, high, columns // wide, wide)
    return np.ascontiguousarray(apart.transpose(0, 2, 1, 3).reshape(-1, high * wide))


@functools.lru_cache(maxsize=16)
def relative_offsets(window: Grid) -> Int[np.ndarray, " ss"]:
    """For every pair of tokens of a window, asking token first: the number of the offset between them.

    Offsets are counted row by row, from (1 − rows, 1 − columns) to (rows − 1, columns − 1).
    """
    rows, columns = (places.ravel() for places in np.indices(window))
    down = rows[:, None] - rows[None, :] + window[0] - 1
    across = columns[:, None] - columns[None, :] + window[1] - 1
    return (down * (2 * window[1] - 1) + across).ravel().astype(np.int64)


def _between_pairs(offsets: Float[Tensor, "o h"], window: Grid) -> Float[Tensor, "1 h s s"]:
    """One number per head and offset, laid out for every pair of tokens of a window."""
    index = torch.as_tensor(relative_offsets(window), device=offsets.device)
    tokens = math.prod(window)
    # A row per head is gathered several times as quickly as a column.
    return offsets.t().contiguous().index_select(1, index).view(1, -1, tokens, tokens)


class OffsetTable(nn.Module):
    """A learned number per head and offset between two tokens of a window (Swin, section 3.2, equation 4).

    Args:
        window: rows and columns of a window.
        heads: number of heads h.
    """

    def __init__(self, window: Grid, heads: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Float[Tensor, "1 h s s"]:
        """The bias between all tokens of a window."""
        return _between_pairs(self.table, self.window)


class OffsetNetwork(nn.Module):
    """A small network that makes such a number of any offset, and so serves windows of any size (Swin V2, section 3.4).

    It reads offsets on a logarithmic scale, in units in which the window of the pre-training ends at 1, and gives numbers
    from 0 to 16.

    Args:
        window: rows and columns of a window.
        heads: number of heads h.
        pretrained: rows and columns of the window that the network was trained with; None for this one.
    """

    def __init__(self, window: Grid, heads: int, pretrained: Grid | None = None) -> None:
        super().__init__()
        self.window, self.pretrained = window, pretrained or window
        self.up = Linear(2, 512)
        self.down = Linear(512, heads, bias=False)

    def forward(self) -> Float[Tensor, "1 h s s"]:
        """The bias between all tokens of a window."""
        offsets = torch.as_tensor(_logarithmic_offsets(self.window, self.pretrained), device=self.up.weight.device)
        numbers = self.down(F.relu(self.up(offsets.to(self.up.weight.dtype))))
        return _between_pairs(16 * torch.sigmoid(numbers), self.window)


@functools.lru_cache(maxsize=16)
def _logarithmic_offsets(window: Grid, pretrained: Grid) -> Float32[np.ndarray, "o 2"]:
    """Every offset of a window as sign · log₈(1 + 8 · |offset| / (side − 1)), the side being the pre-training's."""
    sides = [np.arange(1 - side, side) / max(before - 1, 1) for side, before in zip(window, pretrained, strict=True)]
    offsets = 8 * np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    return (np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3).astype(np.float32)


class WindowAttention(nn.Module):
    """Tokens attending to those of their window, with a learned bias for every offset (Swin, section 3.2).

    What fills a map up takes part as tokens of zeros do, as in the published code: it is seen, and not left out.

    Args:
        width: channels d of a token.
        heads: number of heads h.
        relative: makes the biases (1 h s s) between the tokens of a window; it knows the window.
        shift: rows and columns by which the windows are shifted.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        shift_rule: on which maps they are.
        shift_first: whether a map is shifted before it is filled up to whole windows, see `Windows`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        relative: OffsetTable | OffsetNetwork,
        shift: Grid = (0, 0),
        *,
        qkv_bias: bool = True,
        shift_rule: ShiftRule = "each_side",
        shift_first: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, relative.window, shift
        self.shift_rule, self.shift_first = shift_rule, shift_first
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.relative = relative
        self.product = ScaledDotProduct((width // heads) ** -0.5)
        self.projection = Linear(width, width)

    def windows(self, grid: Grid) -> Windows:
        """How a map of some rows and columns is cut."""
        shift = applied_shift(grid, self.window, self.shift, self.shift_rule)
        return Windows(grid, self.window, shift, self.shift_first)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b n d"]:
        """Attend within windows.

        Args:
            tokens: of a map, in reading order.
            grid: its rows and columns.
        """
        windows = self.windows(grid)
        queries, keys, values = self.asking_and_asked(windows.cut(tokens))
        bias = self.relative()
        mask = windows.mask(bias)
        if mask is not None:
            bias = bias + mask
            bias = bias.repeat(tokens.shape[0], 1, 1, 1) if tokens.shape[0] > 1 else bias
        mixed = self.product(queries, keys, values, bias)
        return self.projection(windows.join(mixed.transpose(1, 2).flatten(2)))

    def asking_and_asked(
        self, tokens: Float[Tensor, "w s d"]
    ) -> tuple[Float[Tensor, "w h s k"], Float[Tensor, "w h s k"], Float[Tensor, "w h s k"]]:
        """Queries, keys and values of the tokens of any number of windows."""
        queries, keys, values = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def whole_map(self, weights: Float[Tensor, "bw h s s"], grid: Grid) -> Float[Tensor, "b h n n"]:
        """The attention maps of the windows as one map between all tokens of a map, see `Windows.whole_map`."""
        return self.windows(grid).whole_map(weights)


class CosineWindowAttention(WindowAttention):
    """Attention within windows by the cosine between queries and keys (Swin V2, section 3.3).

    The cosine is multiplied with a number that each head learns, at most 100. Keys have no bias.

    Args:
        width: channels d of a token.
        heads: number of heads h.
        relative: makes the biases (1 h s s) between the tokens of a window; it knows the window.
        shift: rows and columns by which the windows are shifted.
        qkv_bias: whether the projections to queries and values have a bias.
        shift_rule: on which maps they are.
        shift_first: whether a map is shifted before it is filled up to whole windows, see `Windows`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        relative: OffsetTable | OffsetNetwork,
        shift: Grid = (0, 0),
        *,
        qkv_bias: bool = True,
        shift_rule: ShiftRule = "each_side",
        shift_first: bool = False,
    ) -> None:
        super().__init__(width, heads, relative, shift, qkv_bias=False, shift_rule=shift_rule, shift_first=shift_first)
        self.query_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.value_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.product = ScaledDotProduct(1.0)

    def asking_and_asked(
        self, tokens: Float[Tensor, "w s d"]
    ) -> tuple[Float[Tensor, "w h s k"], Float[Tensor, "w h s k"], Float[Tensor, "w h s k"]]:
        """Queries as long as the learned scale and keys of length one, so that products are scaled cosines; and values."""
        bias = None
        if self.query_bias is not None and self.value_bias is not None:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        parts = F.linear(tokens, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1))
        scale = self.log_scale.clamp(max=math.log(100)).exp().squeeze(2)
        lengths = parts[:, :, :2].norm(dim=-1, keepdim=True).clamp(min=1e-12)
        directed = parts[:, :, :2] * (torch.stack([scale, torch.ones_like(scale)]) / lengths)
        queries, keys = directed.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, parts[:, :, 2].transpose(1, 2)
