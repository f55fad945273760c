"""Two convolutions side by side that learn as two and answer as one.

Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", https://arxiv.org/abs/2101.03697, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitral.layers.conv import ConvActivation, ConvNorm

__all__ = ["RepConvNorm"]


class RepConvNorm(ConvNorm):
    """activation(norm(3 × 3 convolution of x) + norm(1 × 1 convolution of x)).

    A window of 1 × 1 is one of 3 × 3 with zeros around it, so where nothing is recorded for a gradient both convolutions
    and both norms are one convolution, made and forgotten by the rules of `ConvNorm` (equation 1 and figure 4 of the
    paper). The parameters stay the two branches' own.

    Args:
        width: channels c of the map and of the result.
        activation: what follows the sum.
        eps: the norms' epsilon.
    """

    def __init__(self, width: int, activation: ConvActivation = "none", *, eps: float = 1e-5) -> None:
        super().__init__(width, width, 3, activation=activation, eps=eps)
        self.point = ConvNorm(width, width, 1, eps=eps)

    def forward(
        self, x: Float[Tensor, "b c y x"], shortcut: Float[Tensor, "b c y x"] | None = None
    ) -> Float[Tensor, "b c y x"]:
        """Apply the layer; see `ConvNorm`."""
        if self._is_whole() and self._may_fold(x):
            return self._in_one(x, shortcut)
        beside = self.point(x)
        return super().forward(x, beside if shortcut is None else beside + shortcut)

    def _sources(self) -> Iterator[Tensor]:
        yield from super()._sources()
        yield from self.point._sources()

    def _is_whole(self) -> bool:
        return super()._is_whole() and self.point._is_whole() and not self.point._forward_hooks

    def _may_fold(self, x: Tensor) -> bool:
        return super()._may_fold(x) and self.point._may_fold(x)

    def _folded_anew(self) -> tuple[Tensor, Tensor | None]:
        parts = (super()._folded_anew(), self.point._folded_anew())
        (window, shift), (point, other) = (cast(tuple[Tensor, Tensor], part) for part in parts)
        return window + F.pad(point, (1, 1, 1, 1)), shift + other
