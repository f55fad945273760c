"""The hybrid encoder of RT-DETR: attention where maps are small, convolutions where they are large.

Zhao et al. 2024, "DETRs Beat YOLOs on Real-time Object Detection", https://arxiv.org/abs/2304.08069, section 4.2. Of the
maps of a picture only the coarsest has its cells attend to each other (AIFI: what is far apart in a picture meets in few,
telling tokens); then all maps are told of each other by convolutions, from coarse to fine and back (CCFF).

    strides 8, 16, 32 ──► project ──► attention on 32 ──► down to 16, to 8 ──► up to 16, to 32 ──► three maps
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.layers.decoding import EncoderBlock
from vitral.layers.mlp import Activation
from vitral.layers.position import sinusoids_2d
from vitral.layers.repvgg import RepConvNorm
from vitral.models.network import check_ranges

__all__ = ["Fusion", "HybridEncoder", "HybridEncoderConfig"]

_RANGES: dict[str, tuple[float, float]] = {
    "width": (4, 100_000),
    "heads": (1, 10_000),
    "hidden": (1, 1_000_000),
    "depth": (0, 1_000),
    "expansion": (1e-6, 100.0),
    "fusion_depth": (0, 1_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class HybridEncoderConfig:
    """Everything that tells one hybrid encoder from another.

    Attributes:
        width: channels of every map.
        heads: heads of the attention on the coarsest map.
        hidden: channels of the hidden layer behind it.
        depth: how many blocks of attention there are.
        activation: of that hidden layer.
        expansion: channels in which maps are fused, in units of `width`.
        fusion_depth: convolutions of 3 × 3 in a row where two maps are fused.
        fusion_activation: of all convolutions.
        dropout: probability of dropping what a branch of a block says, in training.
    """

    width: int = 256
    heads: int = 8
    hidden: int = 1024
    depth: int = 1
    activation: Activation = "gelu"
    expansion: float = 1.0
    fusion_depth: int = 3
    fusion_activation: Activation = "silu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.width % self.heads or self.width % 4:
            raise UsageError(
                f"width of an encoder is shared among heads and among four kinds of positions; {self.width} channels and "
                f"{self.heads} heads came. Take a multiple of both."
            )
        if not self.fused:
            raise UsageError(f"{self.width} channels times an expansion of {self.expansion} leave none to fuse maps in.")

    @property
    def fused(self) -> int:
        """Channels in which maps are fused."""
        return int(self.width * self.expansion)


class Fusion(nn.Module):
    """Two maps, one beside the other, become one (Zhao et al. 2024, figure 4; after Wang et al. 2020, CSPNet).

    Both halves see both maps; one goes through a row of `RepConvNorm`, the other straight to the sum.

    Args:
        config: which encoder's.
    """

    def __init__(self, config: HybridEncoderConfig) -> None:
        super().__init__()
        activation, fused = config.fusion_activation, config.fused
        self.deep = ConvNorm(2 * config.width, fused, 1, activation=activation)
        self.blocks = nn.Sequential(*(RepConvNorm(fused, activation) for _ in range(config.fusion_depth)))
        self.straight = ConvNorm(2 * config.width, fused, 1, activation=activation)
        self.widen = None if fused == config.width else ConvNorm(fused, config.width, 1, activation=activation)

    def forward(self, one: Float[Tensor, "b d y x"], other: Float[Tensor, "b d y x"]) -> Float[Tensor, "b d y x"]:
        """Fuse."""
        both = torch.cat([one, other], dim=1)
        fused: Tensor = self.blocks(self.deep(both)) + self.straight(both)
        return fused if self.widen is None else cast(Tensor, self.widen(fused))


class HybridEncoder(nn.Module):
    """Maps of a picture that know of each other.

    Args:
        inputs: channels of the maps that come in, from fine to coarse.
        config: which encoder.
    """

    def __init__(self, inputs: Sequence[int], config: HybridEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, activation, steps = config.width, config.fusion_activation, len(inputs) - 1
        self.projections = nn.ModuleList(ConvNorm(channels, width, 1) for channels in inputs)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.heads, config.hidden, config.activation, dropout=config.dropout)
            for _ in range(config.depth)
        )
        self.laterals = nn.ModuleList(ConvNorm(width, width, 1, activation=activation) for _ in range(steps))
        self.down = nn.ModuleList(Fusion(config) for _ in range(steps))
        self.strides = nn.ModuleList(ConvNorm(width, width, 3, 2, activation=activation) for _ in range(steps))
        self.up = nn.ModuleList(Fusion(config) for _ in range(steps))

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b d _ _"]]:
        """Encode.

        Args:
            maps: of a picture, from fine to coarse, each of half the height and width of the one before, rounded up.
        """
        projected = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        coarse = self._attended(projected.pop())
        waiting: list[Tensor] = []
        for lateral, fuse in zip(self.laterals, self.down, strict=True):
            coarse, fine = lateral(coarse), projected.pop()
            waiting.append(coarse)
            # Each cell becomes 2 × 2; of the last row and column of an odd map half is cut off.
            coarse = fuse(F.interpolate(coarse, size=fine.shape[2:], mode="nearest"), fine)
        encoded = [coarse]
        for step, fuse in zip(self.strides, self.up, strict=True):
            encoded.append(fuse(step(encoded[-1]), waiting.pop()))
        return encoded

    def _attended(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b d i j"]:
        if not self.blocks:
            return x
        grid = (x.shape[2], x.shape[3])
        positions = torch.as_tensor(_positions(grid, self.config.width), device=x.device).to(x.dtype)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, positions)
        return tokens.transpose(1, 2).unflatten(2, grid)  # the channels of a cell lie side by side


@functools.lru_cache(maxsize=16)
def _positions(grid: tuple[int, int], width: int) -> Float[np.ndarray[Any, Any], "1 n d"]:
    """Sinusoids of the row, then of the column; elsewhere the column comes first."""
    return sinusoids_2d(grid, width).roll(width // 2, 1)[None].numpy()
