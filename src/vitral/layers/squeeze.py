"""Squeeze-and-excitation: channels of a map weighted by what the whole map holds.

Hu et al. 2018, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507, section 3.

    map (c i j) ──┬─────────────────────────────────────────────── × ──► (c i j)
                  │                                                ▲
                  └─► mean (c 1 1) ─► reduce (r) ─► relu ─► expand (c) ─► σ

With n = i · j cells and c channels: 2nc multiplications and additions for the mean and the weighting, and 2rc for the
weights, whatever the size of the map.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.mlp import Activation, Nonlinearity

__all__ = ["SqueezeExcitation"]


class SqueezeExcitation(nn.Module):
    """Weigh every channel of a map by a number from 0 to 1.

    Args:
        channels: channels c of the map.
        reduced: channels r of the bottleneck; the paper has c / 16, the mobile networks c / 4.
        activation: nonlinearity of the bottleneck: ReLU in the paper, SiLU in EfficientNet.
        gate: what makes a weight: the sigmoid, or straight lines instead (MobileNetV3).
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        *,
        activation: Activation = "relu",
        gate: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.nonlinearity = Nonlinearity(activation)
        self.expand = nn.Conv2d(reduced, channels, 1)
        self.gate = gate

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """Weigh the channels."""
        weights = self.expand(self.nonlinearity(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * (weights.sigmoid() if self.gate == "sigmoid" else F.hardsigmoid(weights))
