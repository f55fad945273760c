"""Standardised convolutions and their padding against timm."""

from __future__ import annotations

import pytest
import torch
from timm.layers import StdConv2dSame
from timm.layers.padding import get_same_padding

from vitral.layers.standardised import StandardisedConv2d, same_padding


def test_padding_is_tensorflows() -> None:
    for size in range(1, 30):
        for kernel in (1, 3, 7):
            for stride in (1, 2, 3):
                before, behind = same_padding(size, kernel, stride)
                assert before + behind == get_same_padding(size, kernel, stride, 1)
                assert behind - before in (0, 1)


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1), (1, 2)])
def test_it_is_timms(kernel: int, stride: int) -> None:
    ours, theirs = StandardisedConv2d(5, 8, kernel, stride), StdConv2dSame(5, 8, kernel, stride, eps=1e-8)
    theirs.load_state_dict(ours.state_dict())
    for size in ((16, 16), (9, 12), (1, 2), (2, 3)):
        x = torch.randn(2, 5, *size)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-5)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-2, rtol=1e-4)


def test_filters_have_mean_zero_and_variance_one() -> None:
    layer = StandardisedConv2d(4, 3, 3)
    with torch.no_grad():
        layer.weight.add_(2)
    impulse = torch.zeros(4, 4, 9, 9)
    impulse[range(4), range(4), 4, 4] = 1  # each channel's impulse is answered by the filters for it
    filters = layer(impulse)[:, :, 3:6, 3:6].transpose(0, 1).flatten(1)
    torch.testing.assert_close(filters.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(filters.var(1, correction=0), torch.ones(3), atol=1e-4, rtol=0)
