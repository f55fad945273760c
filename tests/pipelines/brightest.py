"""A detector whose answer is known, so that every box can be worked out, and pictures for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitral.base.boxes import Objects
from vitral.data.transforms import Preprocessing
from vitral.models.detection.detector import Detector
from vitral.models.network import MapConfig
from vitral.models.output import SetOutput
from vitral.models.record import Record


@dataclass(frozen=True, kw_only=True)
class TinyConfig(MapConfig):
    width: int = 4
    depth: int = 1


class Brightest(Detector):
    """Finds a "light" where the picture is bright, in the left or the right half, and once a thing it is unsure of."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(TinyConfig(num_classes=num_classes))
        self.blocks = torch.nn.ModuleList()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))
        self.record = Record(
            labels=("light", "thing"), preprocessing=Preprocessing(resize="shortest_edge", size=(16, 16), mean=(0.5,) * 3)
        )

    def reset_head(self, num_classes: int) -> None:
        self.config = replace(self.config, num_classes=num_classes)

    def forward(self, pixels: Tensor, mask: Any = None, targets: Sequence[Objects] | None = None) -> SetOutput:
        half = pixels.shape[3] // 2
        bright = torch.stack([pixels[..., :half].mean((1, 2, 3)), pixels[..., half:].mean((1, 2, 3))], 1)
        logits = torch.stack([self.scale * bright, torch.full_like(bright, -9.0), torch.zeros_like(bright)], 2)
        unsure = torch.tensor([-9.0, -0.5, 0.0]).expand(len(pixels), 1, 3)
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 0.2, 0.4]]).expand(len(pixels), 3, 4)
        return SetOutput(torch.cat([logits, unsure], 1), boxes, "softmax", boxes)


def painted(folder: Path) -> list[Path]:
    """Pictures of which the left half, the right, both or none are bright."""
    paths = []
    for place, (lit, (height, width)) in enumerate([("l", (40, 60)), ("r", (64, 32)), ("lr", (40, 60)), ("", (33, 90))]):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 2] = 255 * ("l" in lit)
        pixels[:, width // 2 :] = 255 * ("r" in lit)
        paths.append(folder / f"{place}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
