"""Positions against the peers that publish them, and against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from transformers import BeitConfig, DINOv3ViTConfig
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from vitral.layers.position import RelativeBias, Rotary2d, resample_grid, sinusoids_1d, sinusoids_2d


def test_sinusoids_1d_are_the_papers_formula() -> None:
    came = sinusoids_1d(50, 16)
    expected = np.array(
        [[(math.sin if c % 2 == 0 else math.cos)(pos / 10000 ** (c // 2 * 2 / 16)) for c in range(16)] for pos in range(50)]
    )
    np.testing.assert_allclose(came.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (14, 14), (3, 5)])
def test_sinusoids_2d_are_maes(grid: tuple[int, int]) -> None:
    # MAE's own code has the column's half first (`grid_w` "goes first"); transformers 5 has the row's first.
    theirs = build_2d_sinusoidal_position_embedding(*grid, embed_dim=32)
    row, column = theirs.chunk(2, dim=1)
    torch.testing.assert_close(sinusoids_2d(grid, 32), torch.cat([column, row], dim=1), atol=1e-5, rtol=1e-5)


def test_sinusoids_2d_tell_the_column_in_the_first_half_and_the_row_in_the_second() -> None:
    table = sinusoids_2d((3, 5), 16).unflatten(0, (3, 5))
    assert torch.equal(table[0, :, :8], table[2, :, :8])
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])
    assert not torch.equal(table[0, 0, :8], table[0, 1, :8])
    assert not torch.equal(table[0, 0, 8:], table[1, 0, 8:])


@pytest.mark.parametrize("new", [(7, 9), (2, 3), (4, 4), (1, 30)])
@pytest.mark.parametrize("antialias", [True, False])
def test_resampling_a_table_is_timms(new: tuple[int, int], antialias: bool) -> None:
    table = torch.randn(1, 16, 12)
    theirs = resample_abs_pos_embed(table, list(new), [4, 4], num_prefix_tokens=0, antialias=antialias)
    torch.testing.assert_close(resample_grid(table, (4, 4), new, antialias=antialias), theirs)


def test_resampling_to_the_same_grid_changes_nothing_and_to_others_keeps_the_dtype() -> None:
    table = torch.randn(1, 6, 12, dtype=torch.bfloat16)
    assert torch.equal(resample_grid(table, (2, 3), (2, 3), antialias=True), table)
    assert resample_grid(table, (2, 3), (3, 3), antialias=True).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_relative_biases_are_one_number_per_offset(grid: tuple[int, int]) -> None:
    bias = RelativeBias(grid, 2)
    torch.nn.init.normal_(bias.table)
    came = bias(grid)[0]
    across = 2 * grid[1] - 1
    offsets = (2 * grid[0] - 1) * across
    patches = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    for asking, (i, j) in enumerate(patches, 1):
        for asked, (p, q) in enumerate(patches, 1):
            row = (i - p + grid[0] - 1) * across + (j - q + grid[1] - 1)
            assert torch.equal(came[:, asking, asked], bias.table[row])
        assert torch.equal(came[:, 0, asking], bias.table[offsets]), "class to patch"
        assert torch.equal(came[:, asking, 0], bias.table[offsets + 1]), "patch to class"
    assert torch.equal(came[:, 0, 0], bias.table[offsets + 2]), "class to class"


@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 7), (2, 2)])
def test_relative_biases_on_any_grid_are_beits(grid: tuple[int, int]) -> None:
    theirs = BeitRelativePositionBias(BeitConfig(image_size=32, patch_size=8, num_attention_heads=2))
    ours = RelativeBias((4, 4), 2)
    torch.nn.init.normal_(ours.table)
    theirs.relative_position_bias_table = ours.table
    torch.testing.assert_close(ours(grid), theirs(grid))


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 1)])
@pytest.mark.parametrize("base", [100.0, 37.5])
def test_rotary_angles_are_dinov3s(grid: tuple[int, int], base: float) -> None:
    config = DINOv3ViTConfig(hidden_size=64, num_attention_heads=2, patch_size=8, image_size=32, rope_theta=base)
    theirs = DINOv3ViTRopePositionEmbedding(config).eval()
    cos, sin = Rotary2d(32, base)(grid, torch.zeros(1))
    their_cos, their_sin = theirs(torch.zeros(1, 3, grid[0] * 8, grid[1] * 8))
    torch.testing.assert_close(cos, their_cos)
    torch.testing.assert_close(sin, their_sin)


def test_what_is_kept_from_an_inference_serves_a_training_step() -> None:
    grid = (5, 3)
    bias = RelativeBias(grid, 2)
    with torch.inference_mode():
        bias(grid)
        Rotary2d(8)(grid, torch.zeros(1))
    bias(grid).sum().backward()
    assert bias.table.grad is not None
    cos, _ = Rotary2d(8)(grid, torch.zeros(1))
    (torch.ones(1, requires_grad=True) * cos).sum().backward()


def test_what_is_kept_from_shapes_without_numbers_serves_real_ones() -> None:
    grid = (6, 5)
    with torch.device("meta"):
        RelativeBias(grid, 2)(grid)
        Rotary2d(8)(grid, torch.zeros(1))
    assert not RelativeBias(grid, 2)(grid).is_meta
    assert not Rotary2d(8)(grid, torch.zeros(1))[0].is_meta
