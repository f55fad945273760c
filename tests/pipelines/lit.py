"""Segmenters whose answers are known: what is bright is light."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.pipelines.brightest import TinyConfig
from vitral.data.transforms import Preprocessing
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.record import Record
from vitral.models.segmentation.kinds import MapNetwork, MaskNetwork

RECORD = Record(labels=("dark", "light", "thing"), preprocessing=Preprocessing(size=(48, 64), mean=(0.5,) * 3))


@dataclass(frozen=True, kw_only=True)
class LitConfig(TinyConfig):
    """A network whose cells are single pixels."""

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


class Lit(MapNetwork):
    """Says of every pixel whether it is dark or light."""

    def __init__(self) -> None:
        super().__init__(LitConfig(num_classes=3, image_size=(48, 64)))
        self.scale, self.blocks = nn.Parameter(torch.tensor(4.0)), nn.ModuleList()
        self.record = RECORD

    def reset_head(self, num_classes: int) -> None:
        self.config = replace(self.config, num_classes=num_classes)

    def forward(self, pixels: Tensor) -> MapOutput:
        bright = self.scale * pixels.mean(1, keepdim=True)
        return MapOutput(torch.cat([-bright, bright, torch.full_like(bright, -9.0)], 1))


class LitMasks(MaskNetwork):
    """Draws a mask for what is dark, one for what is light, and one for a thing it is unsure of, over both."""

    def __init__(self) -> None:
        super().__init__(TinyConfig(num_classes=3, image_size=(48, 64)))
        self.scale, self.blocks = nn.Parameter(torch.tensor(9.0)), nn.ModuleList()
        self.record = RECORD

    def reset_head(self, num_classes: int) -> None:
        self.config = replace(self.config, num_classes=num_classes)

    def forward(self, pixels: Tensor, mask: Any = None) -> MaskOutput:
        bright = self.scale * pixels.mean(1, keepdim=True)
        logits = torch.tensor([[9.0, 0, 0, 0], [0, 6.0, 0, 0], [0, 0, 0.5, 0]]).expand(len(pixels), 3, 4)
        masks = torch.cat([-bright, bright, torch.full_like(bright, 3.0)], 1)
        return MaskOutput(logits, masks, torch.zeros(len(pixels), 3, 2))
