"""Tokens by convolution against PyTorch's layers in a row, in the usual memory layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitral.errors import UsageError
from vitral.layers.tokenizer import ConvTokenizer


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "kernel", "stride", "pool"), [((8,), 3, 1, (3, 2)), ((4, 6), 7, 2, (3, 2)), ((5, 5), 5, 3, (1, 1))]
)
@pytest.mark.parametrize("size", [(32, 32), (17, 30), (1, 2)])
def test_convolution_relu_and_pooling_in_a_row(
    widths: tuple[int, ...], kernel: int, stride: int, pool: tuple[int, int], size: tuple[int, int]
) -> None:
    ours = ConvTokenizer(3, widths, kernel, stride, pool_kernel=pool[0], pool_stride=pool[1])
    layers: list[nn.Module] = []
    for before, after, convolution in zip((3, *widths), widths, ours.convolutions, strict=False):
        theirs = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        theirs.load_state_dict(convolution.state_dict(), strict=True)
        layers += [theirs, nn.ReLU(), nn.MaxPool2d(pool[0], pool[1], padding=pool[0] // 2)]
    pixels = torch.randn(2, 3, *size)
    tokens, grid = ours(pixels)
    features = nn.Sequential(*layers)(pixels)
    assert grid == features.shape[2:] == tuple(math.ceil(side / (stride * pool[1]) ** len(widths)) for side in size)
    torch.testing.assert_close(tokens, features.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)
    assert tokens.is_contiguous(), "a token's channels lie together"


def test_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="takes pictures of 3 channels; 4 came"):
        ConvTokenizer(3, (8,), 3, 1)(torch.zeros(1, 4, 8, 8))
