"""Attention within windows: held against attention over the whole map, written out token by token."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision.models.swin_transformer as peer
from torch import Tensor

from tests.models.harness import assert_close
from vitral.layers.window import (
    CosineWindowAttention,
    OffsetNetwork,
    OffsetTable,
    ShiftRule,
    WindowAttention,
    Windows,
    applied_shift,
    relative_offsets,
)

Grid = tuple[int, int]

# grid, window, shift, shifted first; and whether the map has to be filled up.
CUTS: list[tuple[Grid, Grid, Grid, bool]] = [
    ((6, 4), (3, 2), (0, 0), False),
    ((6, 4), (3, 2), (1, 1), False),
    ((6, 4), (3, 2), (1, 0), True),
    ((5, 7), (3, 4), (0, 0), False),
    ((5, 7), (3, 4), (1, 2), False),
    ((5, 7), (3, 4), (1, 2), True),
    ((2, 9), (3, 4), (0, 2), False),
]


def placed(windows: Windows) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """Of every token (row, column): window, place in it, and region, by the words of the paper, one token at a time."""
    found = {}
    whole = [-(-side // span) * span for side, span in zip(windows.grid, windows.size, strict=True)]
    for row, column in itertools.product(*map(range, windows.grid)):
        now, region = [], []
        for at, side, full, span, shift in zip((row, column), windows.grid, whole, windows.size, windows.shift, strict=True):
            moved = (at - shift) % (side if windows.shift_first else full)
            now.append(moved)
            region.append(0 if moved < full - span else 1 if moved < full - shift else 2)
        high, wide = windows.size
        window = now[0] // high * (whole[1] // wide) + now[1] // wide
        found[row, column] = (window, now[0] % high * wide + now[1] % wide, region[0], region[1])
    return found


@pytest.mark.parametrize("case", CUTS, ids=str)
def test_a_map_is_cut_as_the_paper_says_and_joined_again(case: tuple[Grid, Grid, Grid, bool]) -> None:
    windows = Windows(*case)
    tokens = torch.randn(2, windows.grid[0] * windows.grid[1], 3)
    cut = windows.cut(tokens)
    space = windows.size[0] * windows.size[1]
    assert cut.shape == (2 * windows.count, space, 3)
    expected = torch.zeros(2, windows.count, space, 3)
    for (row, column), (window, place, _, _) in placed(windows).items():
        expected[:, window, place] = tokens[:, row * windows.grid[1] + column]
    assert torch.equal(cut, expected.flatten(0, 1))
    assert torch.equal(windows.join(cut), tokens)


@pytest.mark.parametrize("case", CUTS, ids=str)
def test_neighbours_are_those_that_no_shift_tore_apart(case: tuple[Grid, Grid, Grid, bool]) -> None:
    windows = Windows(*case)
    mask = windows.mask(torch.zeros(1, dtype=torch.float64))
    if not any(windows.shift):
        assert mask is None
        return
    assert mask is not None
    assert mask.dtype == torch.float64
    for (window, one, *regions), (other, two, *others) in itertools.product(placed(windows).values(), repeat=2):
        if window == other:
            assert mask[window, 0, one, two] == (0 if regions == others else -100)


def test_where_windows_are_shifted() -> None:
    def at(grid: Grid, rule: ShiftRule) -> Grid:
        return applied_shift(grid, (4, 4), (2, 2), rule)

    assert [at((9, 9), rule) for rule in ("each_side", "both_sides", "always")] == [(2, 2)] * 3
    assert [at((4, 9), rule) for rule in ("each_side", "both_sides", "always")] == [(0, 2), (0, 0), (2, 2)]
    assert [at((4, 3), rule) for rule in ("each_side", "both_sides", "always")] == [(0, 0), (0, 0), (2, 2)]


def test_offsets_are_numbered_as_in_torchvision() -> None:
    theirs = peer.ShiftedWindowAttention(4, [3, 5], [0, 0], 1)
    assert torch.equal(torch.as_tensor(relative_offsets((3, 5))), theirs.relative_position_index)


def attention(kind: str, window: Grid, shift: Grid, shift_first: bool = False) -> WindowAttention:
    relative = OffsetTable(window, 2) if kind == "table" else OffsetNetwork(window, 2, (5, 6))
    build = WindowAttention if kind == "table" else CosineWindowAttention
    made = build(8, 2, relative, shift, shift_rule="always", shift_first=shift_first)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.4)
    return made.double()


def dense(made: WindowAttention, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The answer, and the map, of attention over all tokens of the filled-up map, with −∞ between windows."""
    windows = made.windows(grid)
    where = placed(windows)
    relative, space = made.relative()[0], windows.size[0] * windows.size[1]
    empty = {(window, place) for window in range(windows.count) for place in range(space)}
    empty -= {(window, place) for window, place, *_ in where.values()}
    # What fills up stands behind all tokens. Its regions follow from its place in the shifted map.
    mask = windows.mask(relative)
    slots = [where[row, column][:2] for row, column in itertools.product(*map(range, grid))] + sorted(empty)
    everything = torch.cat([tokens, tokens.new_zeros(len(tokens), len(empty), tokens.shape[2])], dim=1)
    queries, keys, values = made.asking_and_asked(everything)
    logits = queries @ keys.transpose(-2, -1) * made.product.scale
    window, place = torch.tensor(slots).unbind(1)
    bias = relative[:, place[:, None], place[None, :]]
    if mask is not None:
        bias = bias + mask[window[:, None], 0, place[:, None], place[None, :]]
    bias = bias.masked_fill(window[:, None] != window[None, :], -torch.inf)
    weights = (logits + bias).softmax(-1)
    count = tokens.shape[1]
    mixed = (weights @ values).transpose(1, 2).flatten(2)[:, :count]
    return made.projection(mixed), weights[:, :, :count, :count]


@pytest.mark.parametrize("case", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["table", "network"])
def test_windowed_attention_is_masked_attention_over_the_map(kind: str, case: tuple[Grid, Grid, Grid, bool]) -> None:
    grid, window, shift, first = case
    made = attention(kind, window, shift, first)
    tokens = torch.randn(2, grid[0] * grid[1], 8, dtype=torch.float64)
    seen: list[Tensor] = []
    made.product.register_forward_hook(lambda product, taken, _: seen.append(product.weights(taken[0], taken[1], taken[3])))
    expected, expected_map = dense(made, tokens, grid)
    assert_close(made(tokens, grid), expected, 1e-6)
    whole = made.whole_map(seen[0], grid)
    assert_close(whole, expected_map, 1e-6)
    assert torch.equal(whole == 0, expected_map == 0)


def test_gradients_flow_through_the_whole_map() -> None:
    windows = Windows((5, 7), (3, 4), (1, 2))
    weights = torch.rand(2 * windows.count, 2, 12, 12, requires_grad=True)
    whole = windows.whole_map(weights)
    wanted = torch.randn_like(whole)
    (whole * wanted).sum().backward()
    assert weights.grad is not None
    # The map holds every weight between real tokens once, so the gradient's numbers are those of `wanted` there.
    kept = whole != 0
    assert_close(weights.grad.sum(), wanted[kept].sum(), 1e-5)
    assert (weights.grad != 0).sum() == kept.sum()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("grid", [(8, 8), (4, 9), (7, 11), (3, 3)], ids=str)
def test_the_same_as_torchvision(version: int, grid: Grid) -> None:
    theirs = (peer.ShiftedWindowAttention if version == 1 else peer.ShiftedWindowAttentionV2)(8, [4, 4], [2, 2], 2)
    relative = OffsetTable((4, 4), 2) if version == 1 else OffsetNetwork((4, 4), 2)
    made = (WindowAttention if version == 1 else CosineWindowAttention)(8, 2, relative, (2, 2))
    names = {"proj.weight": "projection.weight", "proj.bias": "projection.bias", "qkv.weight": "qkv.weight"}
    names |= {"qkv.bias": "qkv.bias", "relative_position_bias_table": "relative.table"} if version == 1 else {}
    names |= {"logit_scale": "log_scale", "cpb_mlp.0.weight": "relative.up.weight"} if version == 2 else {}
    names |= {"cpb_mlp.0.bias": "relative.up.bias", "cpb_mlp.2.weight": "relative.down.weight"} if version == 2 else {}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.5)
        for name, ours in names.items():
            made.get_parameter(ours).copy_(theirs.get_parameter(name))
        if isinstance(made, CosineWindowAttention):
            made.query_bias.copy_(theirs.qkv.bias[:8])
            made.value_bias.copy_(theirs.qkv.bias[16:])
        tokens = torch.randn(3, *grid, 8)
        assert_close(made(tokens.flatten(1, 2), grid), theirs(tokens).flatten(1, 2), 1e-5)


@torch.no_grad()
def test_the_scale_of_cosines_ends_at_a_hundred() -> None:
    made = attention("network", (2, 2), (0, 0))
    made.log_scale.fill_(9.0)
    queries, keys, _ = made.asking_and_asked(torch.randn(1, 4, 8, dtype=torch.float64))
    assert_close(queries.norm(dim=-1), torch.full((1, 2, 4), 100.0), 1e-6)
    assert_close(keys.norm(dim=-1), torch.ones(1, 2, 4), 1e-6)
