"""Patches against cutting by hand."""

from __future__ import annotations

import pytest
import torch

from vitral.errors import UsageError
from vitral.layers.patch import PatchEmbedding


@pytest.mark.parametrize("size", [(32, 32), (97, 131), (8, 23)])
@pytest.mark.parametrize("patch", [(8, 8), (4, 16)])
def test_every_patch_is_projected_on_its_own(size: tuple[int, int], patch: tuple[int, int]) -> None:
    embedding, pixels = PatchEmbedding(3, 12, patch), torch.randn(2, 3, *size)
    tokens, grid = embedding(pixels)
    assert grid == (size[0] // patch[0], size[1] // patch[1])
    flat = embedding.projection.weight.flatten(1)
    for token, (i, j) in enumerate((i, j) for i in range(grid[0]) for j in range(grid[1])):
        cut = pixels[:, :, i * patch[0] : (i + 1) * patch[0], j * patch[1] : (j + 1) * patch[1]]
        expected = cut.flatten(1) @ flat.T + embedding.projection.bias
        torch.testing.assert_close(tokens[:, token], expected, atol=1e-5, rtol=1e-5)


def test_the_remainder_at_the_bottom_and_right_is_left_out() -> None:
    embedding, pixels = PatchEmbedding(3, 12, (8, 8)), torch.randn(1, 3, 20, 30)
    assert torch.equal(embedding(pixels)[0], embedding(pixels[:, :, :16, :24].contiguous())[0])


def test_without_a_bias_black_is_zero() -> None:
    assert not PatchEmbedding(1, 12, (8, 8), bias=False)(torch.zeros(1, 1, 8, 8))[0].any()


def test_wrong_channels_and_pictures_below_one_patch_are_refused() -> None:
    embedding = PatchEmbedding(3, 12, (8, 8))
    with pytest.raises(UsageError, match="takes pictures of 3 channels; 1 came"):
        embedding(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UsageError, match=r"7×20 pixels is smaller than one patch of 8×8\. Enlarge it"):
        embedding(torch.zeros(1, 3, 7, 20))
