"""The seam: every name gives its kind, and each looks where it says it does."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitral.errors import UsageError
from vitral.layers.attention import ScaledDotProduct, SelfAttention
from vitral.layers.axial import AxialAttention
from vitral.layers.cross_covariance import CrossCovarianceAttention
from vitral.layers.kinds import ON_A_GRID, Kind, attention_of
from vitral.layers.performer import PerformerAttention
from vitral.layers.spatial_reduction import SpatialReductionAttention
from vitral.layers.window import WindowAttention

KINDS: dict[Kind, type[nn.Module]] = {
    "global": SelfAttention,
    "window": WindowAttention,
    "axial": AxialAttention,
    "spatial_reduction": SpatialReductionAttention,
    "performer": PerformerAttention,
    "cross_covariance": CrossCovarianceAttention,
}


def made(kind: Kind, block: int = 0, width: int = 16, **options: int) -> nn.Module:
    attention = attention_of(kind, width, 2, block=block, **options).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.3)
    return attention


def attend(kind: Kind, attention: nn.Module, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return attention(tokens) if kind == "global" else attention(tokens, grid)


def test_every_name_gives_its_kind() -> None:
    assert set(KINDS) == set(get_args(Kind))
    for kind, expected in KINDS.items():
        assert type(made(kind)) is expected
    assert set(get_args(Kind)) >= ON_A_GRID


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "performer"])
@torch.no_grad()
def test_what_is_mixed_is_mixed_in_one_place(kind: Kind) -> None:
    """Whoever watches `ScaledDotProduct` sees it; a Performer has no map."""
    attention, seen = made(kind), []
    for module in attention.modules():
        if isinstance(module, ScaledDotProduct):
            module.register_forward_hook(lambda *args: seen.append(args))
    attend(kind, attention, torch.randn(1, 64, 16), (8, 8))
    assert len(seen) == (2 if kind == "axial" else 1)


def reached(kind: Kind, block: int = 0, **options: int) -> set[tuple[int, int]]:
    """Where, on a grid of 8 × 8, a change of the token at (1, 2) is noticed."""
    attention, tokens = made(kind, block, **options), torch.randn(1, 64, 16)
    changed = tokens.clone()
    changed[0, 10] += 1
    moved = (attend(kind, attention, changed, (8, 8)) - attend(kind, attention, tokens, (8, 8))).abs().amax(-1)
    return {divmod(int(place), 8) for place in (moved[0] > 1e-6).nonzero()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "window"])
@torch.no_grad()
def test_these_see_the_whole_grid(kind: Kind) -> None:
    assert len(reached(kind)) == 64


@torch.no_grad()
def test_windows_stay_and_are_shifted_in_turns() -> None:
    everywhere = [(row, column) for row in range(8) for column in range(8)]
    assert reached("window", 0, window=4) == {(row, column) for row, column in everywhere if row < 4 and column < 4}
    # Shifted by two: rows 0 and 1, which the shift brings to rows 6 and 7, are masked from those; columns 2 to 5.
    assert reached("window", 1, window=4) == {(row, column) for row, column in everywhere if row < 2 and 2 <= column < 6}


def multiplications(kind: Kind, side: int, **options: int) -> int:
    """Of the products alone: what is counted, less what the projections take."""
    with torch.device("meta"):
        attention = attention_of(kind, 32, 2, block=0, **options)
        tokens = torch.empty(1, side * side, 32)
    with FlopCounterMode(display=False) as counter:
        attend(kind, attention, tokens, (side, side))
    counts = counter.get_flop_counts()["Global"]
    linear = (
        2 * tokens.shape[1] * sum(module.weight.numel() for module in attention.modules() if isinstance(module, nn.Linear))
    )
    return (sum(counts.values()) - linear) // 2


# The table of the module, of d = 32 channels, windows of 4, features of 8, h = 2 heads.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("global", lambda n: 2 * n**2 * 32),
        ("window", lambda n: 2 * n * 4**2 * 32),
        ("axial", lambda n: 4 * n * math.isqrt(n) * 32),
        ("performer", lambda n: 4 * n * 8 * 32 + n * 8 * 2),  # and the sums that it is divided by
        ("cross_covariance", lambda n: 2 * n * 32**2 // 2),
    ],
)
def test_they_cost_what_is_stated(kind: Kind, expected: object) -> None:
    for side in (8, 16):
        assert multiplications(kind, side, window=4, features=8) == expected(side * side)


def test_spatial_reduction_costs_what_is_stated() -> None:
    """Keys and values are projected for a quarter of the tokens only; the convolution takes n · d²."""
    for side in (8, 16):
        n = side * side
        found = multiplications("spatial_reduction", side, reduction=2)
        assert found == 2 * n**2 * 32 // 4 + n * 32**2 - (n - n // 4) * 2 * 32**2


def test_windows_have_no_dropout() -> None:
    with pytest.raises(UsageError, match=r"in windows has no dropout; 0\.1 came"):
        attention_of("window", 16, 2, block=0, dropout=0.1)
