"""Convolutions whose weights are standardised before they are used.

Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
https://arxiv.org/abs/1903.10520, section 3.1: with group normalisation behind them they train as well with few pictures at
a time as networks of batch normalisation do with many. Big Transfer (Kolesnikov et al. 2020, section 3.1) and the hybrids
of the ViT paper are built so.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["StandardisedConv2d", "same_padding"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Rows of zeros before and behind `size` rows so that windows at this stride make ⌈size / stride⌉.

    Where their number is odd, the larger half is behind: the padding that TensorFlow and JAX call "SAME". It hangs on the
    size, and at a stride of 2 and an even size it is not the one that PyTorch's networks use.
    """
    whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return whole // 2, whole - whole // 2


class StandardisedConv2d(nn.Conv2d):
    """A convolution without bias whose filters have mean zero and variance one each, whatever the parameters are.

    Borders are padded as `same_padding` says.

    Args:
        inputs: channels c of the map.
        outputs: channels d of the result.
        kernel: side of the window.
        stride: cells from one window to the next.
        eps: added to the variance of a filter.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, eps: float = 1e-8) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.eps = eps

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Apply the layer."""
        filters = self.weight.flatten(1)
        weight = F.layer_norm(filters, filters.shape[1:], eps=self.eps).view_as(self.weight)
        sides = [same_padding(size, self.kernel_size[0], self.stride[0]) for size in input.shape[2:]]
        (top, bottom), (left, right) = sides
        if top != bottom or left != right:  # only what is more behind needs a larger map
            input = F.pad(input, (0, right - left, 0, bottom - top))
        return F.conv2d(input, weight, None, self.stride, (top, left))
