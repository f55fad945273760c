"""A picture made into tokens by convolutions, which overlap where patches would not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError

__all__ = ["ConvTokenizer"]


class ConvTokenizer(nn.Module):
    """Convolution, ReLU and max pooling, once or several times (Hassani et al. 2021, the convolutional
    tokenizer).

    Pictures of any size are taken: borders are padded by half a window, so that a layer of strides s (of its convolution)
    and t (of its pooling) makes ⌈n / (s · t)⌉ of n rows.

    Args:
        channels: channels c of a picture.
        widths: channels behind each convolution; the last one's are those of a token.
        kernel: side of a convolution's window, odd.
        stride: pixels from one of its windows to the next.
        pool_kernel: side of the pooling's window, odd.
        pool_stride: from one of its windows to the next.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], kernel: int, stride: int, *, pool_kernel: int = 3, pool_stride: int = 2
    ) -> None:
        super().__init__()
        self.pool_kernel, self.pool_stride = pool_kernel, pool_stride
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
            for before, after in zip([channels, *widths], widths, strict=False)
        )

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b p d"], tuple[int, int]]:
        """Tokens in reading order (row by row from the top left) and their grid (rows i, columns j).

        Raises:
            UsageError: the channels are not the model's.
        """
        taken = self.convolutions[0].in_channels
        if pixels.shape[1] != taken:
            raise UsageError(f"The model takes pictures of {taken} channels; {pixels.shape[1]} came.")
        # A pixel's channels lie together from here on, as they will in a token: a training step on a CPU is quicker so.
        features = pixels.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            features = F.relu(convolution(features))
            features = F.max_pool2d(features, self.pool_kernel, self.pool_stride, self.pool_kernel // 2)
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
