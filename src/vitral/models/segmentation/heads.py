"""Heads that several segmenters share, how they begin, and the norm of what they read."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.conv import ConvNorm

__all__ = ["FCNHead", "classifier", "initialise_head", "normed"]

_CLASSIFIER_STD = 0.01


class FCNHead(nn.Module):
    """Convolutions of 3 × 3 over one map, and a classifier of every cell (Long et al. 2015; Zhao et al. 2017, figure 4).

    Args:
        inputs: channels c of the map.
        width: channels of the convolutions.
        num_classes: classes k.
        depth: number of convolutions.
        joined: whether a further convolution sees the map beside what the others made of it.
        dropout: probability of dropping a channel before the classifier in training.
    """

    def __init__(
        self, inputs: int, width: int, num_classes: int, *, depth: int = 1, joined: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        channels = (inputs, *[width] * depth)
        self.convolutions = nn.ModuleList(
            ConvNorm(before, after, 3, activation="relu") for before, after in pairwise(channels)
        )
        self.join = ConvNorm(inputs + channels[-1], width, 3, activation="relu") if joined else None
        self.dropout = nn.Dropout2d(dropout)
        self.head = classifier(width if joined else channels[-1], num_classes)
        initialise_head(self)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b k i j"]:
        """The logits of every cell."""
        seen = x
        for convolution in self.convolutions:
            seen = convolution(seen)
        if self.join is not None:
            seen = self.join(torch.cat([x, seen], dim=1))
        return cast(Tensor, self.head(self.dropout(seen)))

    def reset(self, num_classes: int) -> None:
        """Put a fresh, small random classifier in place of the present one."""
        self.head = classifier(self.head.in_channels, num_classes)


def classifier(width: int, num_classes: int) -> nn.Conv2d:
    """A fresh classifier of cells: a convolution of 1 × 1 with small random weights."""
    head = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(head.weight, std=_CLASSIFIER_STD)
    nn.init.zeros_(cast(Tensor, head.bias))
    return head


def initialise_head(module: nn.Module) -> None:
    """Convolutions with a norm behind them from a normal distribution of variance 2 / fan-out (He et al. 2015)."""
    for part in module.modules():
        if isinstance(part, ConvNorm):
            nn.init.kaiming_normal_(part.conv.weight, mode="fan_out", nonlinearity="relu")


def normed(x: Float[Tensor, "b d i j"], norm: nn.Module) -> Float[Tensor, "b d i j"]:
    """A map whose every cell is normed over its channels, which lie side by side from here on, as convolutions like them.

    Args:
        x: the map.
        norm: of vectors of its channels.
    """
    return cast(Tensor, norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
