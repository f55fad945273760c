"""Maps of attention in windows, along lines, and to coarser maps, against dense attention with what is not seen left out."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.explanation.capture import attention_layers, capture
from vitral.layers.attention import Rearranging, ScaledDotProduct
from vitral.layers.axial import AxialAttention
from vitral.layers.block import Block
from vitral.layers.cross_covariance import CrossCovarianceAttention
from vitral.layers.mlp import Mlp
from vitral.layers.spatial_reduction import SpatialReductionAttention
from vitral.layers.window import OffsetTable, WindowAttention

WIDTH, HEADS = 8, 2


class OneBlock(nn.Module):
    """One block on a grid: the smallest thing that can be watched."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = nn.Identity(), nn.Identity()
        self.blocks = nn.ModuleList([Block(attention, Mlp(WIDTH, 12), norms)])
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7)
        self.eval()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        out: Tensor = self.blocks[0](tokens, grid)
        return out


def windows(shift: int = 0) -> WindowAttention:
    return WindowAttention(WIDTH, HEADS, OffsetTable((3, 3), HEADS), (shift, shift))


def by_hand(attention: WindowAttention, tokens: Tensor, grid: tuple[int, int], shift: int) -> tuple[Tensor, Tensor]:
    """Dense attention token by token: who lies in whose window, by rolling places, not tokens; and what comes of it."""
    rows, columns = grid
    qkv = attention.qkv(tokens).view(len(tokens), rows * columns, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    logits = qkv[0] @ qkv[1].transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
    maps, table = torch.zeros_like(logits), cast(Tensor, attention.relative.table)
    for n in range(rows * columns):
        y, x = divmod(n, columns)
        seen, found = [], []
        for m in range(rows * columns):
            v, u = divmod(m, columns)
            # Shifted windows end where the map does: places before the shift are windows of their own.
            if (y - shift) // 3 == (v - shift) // 3 and (x - shift) // 3 == (u - shift) // 3:
                seen.append(m)
                offset = (y - v + 2) * 5 + (x - u + 2)
                found.append(logits[:, :, n, m] + table[offset])
        maps[:, :, n, seen] = torch.stack(found, dim=-1).softmax(-1)
    mixed = (maps @ qkv[2]).transpose(1, 2).flatten(2)
    return maps, attention.projection(mixed)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("grid", [(6, 6), (6, 9)])
def test_windows_are_laid_out_over_the_grid(shift: int, grid: tuple[int, int]) -> None:
    model = OneBlock(windows(shift))
    tokens = torch.randn(2, grid[0] * grid[1], WIDTH)
    with torch.no_grad(), capture(model, parts=["attention", "attention_output"]) as seen:
        model(tokens, grid)
    maps, out = by_hand(model.blocks[0].attention, tokens, grid, shift)  # type: ignore[arg-type]
    found = seen[0]
    torch.testing.assert_close(found, maps, atol=1e-6, rtol=1e-5)
    assert torch.equal(found == 0, maps == 0), "pairs that do not see each other have exactly nothing"
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    torch.testing.assert_close(seen[0, "attention_output"], out, atol=1e-5, rtol=1e-4)
    assert seen.grid(0) == seen.asked_grid(0) == grid
    assert seen.prefix(0) == 0


@torch.no_grad()
def test_filled_windows_leave_out_what_only_fills_them() -> None:
    model, grid = OneBlock(windows(1)), (5, 7)
    tokens = torch.randn(1, 35, WIDTH)
    with capture(model) as seen, capture(model, whole=False) as cut:
        model(tokens, grid)
    assert seen[0].shape == (1, HEADS, 35, 35)
    assert cut[0].shape == (6, HEADS, 9, 9)
    sums = seen[0].sum(-1)
    assert sums.max() <= 1 + 1e-5
    assert (sums < 0.999).any()
    # Of each window every token is somebody's: as much is laid out as the rows of tokens held.
    torch.testing.assert_close(cut.whole(0, cut[0]), seen[0])
    torch.testing.assert_close(cut.whole(0, cut[0].mean(1, keepdim=True))[:, 0], seen[0].mean(1))


@torch.no_grad()
def test_some_heads_and_rows() -> None:
    model, grid = OneBlock(windows(1)), (6, 6)
    tokens = torch.randn(2, 36, WIDTH)
    with capture(model, parts=["attention", "queries", "keys"]) as seen:
        model(tokens, grid)
    with capture(model, heads=1, queries=[7, -1], parts=["attention", "queries"]) as some:
        model(tokens, grid)
    torch.testing.assert_close(some[0], seen[0][:, 1:, [7, -1]])
    assert seen[0, "queries"].shape == seen[0, "keys"].shape == (8, HEADS, 9, 4)
    assert some[0, "queries"].shape == (8, 1, 9, 4), "rows of the grid are none of a window"
    with pytest.raises(UsageError, match=r"no asking token 36: blocks\.0\.attention has 36"), capture(model, queries=36):
        model(tokens, grid)
    with pytest.raises(UsageError, match="leave whole=False out"), capture(model, queries=0, whole=False):
        pass


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
def test_a_score_is_differentiated_by_the_whole_map(grid: tuple[int, int]) -> None:
    """Against the dense sum: with O = A V, the derivative by A between two tokens of a window is dO · V."""
    model = OneBlock(windows(1)).double()
    attention: Any = model.blocks[0].attention
    tokens = torch.randn(2, grid[0] * grid[1], WIDTH, requires_grad=True, dtype=torch.float64)
    usual = model(tokens, grid)
    weight = torch.randn(usual.shape, dtype=torch.float64)
    [expected_tokens] = torch.autograd.grad((usual * weight).sum(), [tokens])
    with capture(model, gradients=True, parts=["attention", "attention_output"]) as seen:
        out = model(tokens, grid)
    torch.testing.assert_close(out, usual)
    by_map, by_output, by_tokens = torch.autograd.grad((out * weight).sum(), [seen[0], seen[0, "attention_output"], tokens])
    torch.testing.assert_close(by_tokens, expected_tokens)
    values = attention.qkv(tokens).view(2, -1, 3, HEADS, 4)[:, :, 2].transpose(1, 2)
    back = (by_output @ attention.projection.weight).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    dense = back @ values.transpose(-2, -1)
    laid = seen[0] != 0
    assert laid.any(-1).all()
    torch.testing.assert_close(by_map[laid], dense[laid])
    assert by_map[~laid].abs().max() == 0


def test_lines_are_laid_out_over_the_grid() -> None:
    model, (rows, columns) = OneBlock(AxialAttention(WIDTH, HEADS)), (3, 4)
    attention: Any = model.blocks[0].attention
    tokens = torch.randn(2, 12, WIDTH)
    with capture(model, parts=["attention"]) as seen, torch.no_grad():
        model(tokens, (rows, columns))
    assert seen.layers == ("blocks.0.attention.rows", "blocks.0.attention.columns")
    same_row = torch.arange(12)[:, None] // columns == torch.arange(12) // columns
    same_column = torch.arange(12)[:, None] % columns == torch.arange(12) % columns
    x = tokens
    for name, part, see in (("rows", attention.rows, same_row), ("columns", attention.columns, same_column)):
        qkv = part.qkv(x).view(2, 12, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        logits = qkv[0] @ qkv[1].transpose(-2, -1) * 0.5
        expected = logits.masked_fill(~see, -torch.inf).softmax(-1)
        torch.testing.assert_close(seen[f"blocks.0.attention.{name}"], expected, atol=1e-6, rtol=1e-5)
        x = part.projection((expected @ qkv[2]).transpose(1, 2).flatten(2))
    with capture(model, gradients=True) as open_:
        out = model(tokens.requires_grad_(), (rows, columns))
    for found in torch.autograd.grad(out.sum(), list(open_)):
        assert found.abs().max() > 0


@pytest.mark.parametrize(
    ("reduction", "linear", "grid", "asked"),
    [
        (2, False, (4, 6), (2, 3)),
        (2, False, (5, 7), (2, 3)),  # the remainder is left out, as the convolution does
        (4, False, (3, 2), (1, 1)),
        (1, False, (3, 5), (3, 5)),
        (1, True, (14, 9), (7, 7)),
        (1, True, (3, 4), (7, 7)),
    ],
)
@torch.no_grad()
def test_asking_a_coarser_map(reduction: int, linear: bool, grid: tuple[int, int], asked: tuple[int, int]) -> None:
    model = OneBlock(SpatialReductionAttention(WIDTH, HEADS, reduction, linear=linear))
    tokens = torch.randn(2, grid[0] * grid[1], WIDTH)
    with capture(model) as seen:
        model(tokens, grid)
    assert seen[0].shape == (2, HEADS, grid[0] * grid[1], asked[0] * asked[1])
    assert (seen.grid(0), seen.asked_grid(0)) == (grid, asked)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(seen[0].shape[:-1]))


@torch.no_grad()
def test_channels_are_told_from_tokens() -> None:
    model = OneBlock(CrossCovarianceAttention(WIDTH, HEADS))
    with capture(model) as seen:
        model(torch.randn(2, 12, WIDTH), (3, 4))
    assert seen[0].shape == (2, HEADS, 4, 4)
    assert seen.channels(0)
    assert seen.grid(0) == (3, 4)


class Halves(nn.Module):
    """An attention of somebody's own: the first half of the tokens and the second look at themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.product = ScaledDotProduct(1.0)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        halves = tokens.reshape(-1, 1, tokens.shape[1] // 2, WIDTH)
        mixed: Tensor = self.product(halves, halves, halves)
        return mixed.reshape(tokens.shape)

    def whole_map(self, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        halves = weights.unflatten(0, (-1, 2)).transpose(1, 2)
        whole = torch.zeros(*halves.shape[:2], grid[0] * grid[1], grid[0] * grid[1], dtype=weights.dtype)
        count = halves.shape[-1]
        whole[:, :, :count, :count], whole[:, :, count:, count:] = halves[:, :, 0], halves[:, :, 1]
        return whole


def test_whoever_tells_the_whole_map_is_laid_out() -> None:
    assert isinstance(Halves(), Rearranging)
    model = OneBlock(Halves())
    tokens = torch.randn(2, 8, WIDTH, requires_grad=True)
    with capture(model, gradients=True) as seen:
        out = model(tokens, (2, 4))
    logits = tokens @ tokens.transpose(1, 2)
    apart = torch.arange(8)[:, None] // 4 != torch.arange(8) // 4
    torch.testing.assert_close(seen[0][:, 0], logits.masked_fill(apart, -torch.inf).softmax(-1))
    [gradient] = torch.autograd.grad(out.sum(), [seen[0]])
    assert gradient.shape == (2, 1, 8, 8)
    assert gradient[:, 0][:, apart].abs().max() == 0


def test_grids_nobody_told_are_a_sentence() -> None:
    model = OneBlock(windows())
    layer = attention_layers(model)[0].name
    with capture(model) as seen, pytest.raises(UsageError, match="Nothing passed"):
        seen.grid(0)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = ScaledDotProduct(1.0)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.product(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]

    bare = Bare()
    with capture(bare) as seen:
        bare(torch.randn(1, 6, 4))
    with pytest.raises(UsageError, match="does not tell on which grid its 6 tokens lie"):
        seen.grid(0)
    assert layer == "blocks.0.attention"
