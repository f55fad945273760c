"""Normalisation and the gain that follows a branch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LayerScale", "Norm", "norm_layer"]

Norm = Literal["layer", "rms"]
"""Layer normalisation (Ba et al. 2016) or root-mean-square normalisation (Zhang and Sennrich 2019)."""


def norm_layer(width: int, kind: Norm, eps: float) -> nn.Module:
    """A normalisation over the last `width` channels with a learned gain (and a shift, for "layer")."""
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else nn.RMSNorm(width, eps=eps)


class LayerScale(nn.Module):
    """One learned gain per channel at the end of a branch (Touvron et al. 2021, CaiT, equation 4).

    Args:
        width: channels d.
        initial: the gain at the start of training; small, so that deep networks begin close to the identity.
    """

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Scale every channel."""
        return x * self.gain
