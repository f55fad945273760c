"""What the layouts of hybrids share: their files are those of a plain vision transformer, and a trunk beside it.

The transformer's part is read by the page of the same layout in `checkpoints.vit`, which sees a network whose pictures are
the trunk's maps and whose pixels are their cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from torch import Tensor

from vitral.errors import CheckpointError
from vitral.models.backbones.hybrid import HybridConfig
from vitral.models.backbones.vit import ViTConfig

__all__ = ["depths_of", "on_trunk", "seen_from_within", "units"]


def depths_of(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """How many units each stage has.

    Args:
        names: of tensors.
        pattern: of the names of a unit's tensors, with two groups: the stage's and the unit's number.
    """
    found: dict[int, set[int]] = {}
    for name in names:
        if match := re.match(pattern, name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    return tuple(len(found[stage]) for stage in sorted(found))


def units(depths: tuple[int, ...]) -> Iterator[tuple[int, int, bool]]:
    """Number of the stage, of the unit, and whether the unit's shortcut is a convolution; both count from 0."""
    for stage, depth in enumerate(depths):
        for unit in range(depth):
            yield stage, unit, unit == 0


def on_trunk(plain: ViTConfig, root: Tensor, depths: tuple[int, ...], size: tuple[int, int] | None = None) -> HybridConfig:
    """The hybrid of a transformer that was seen from within.

    Args:
        plain: the transformer; its sizes are in cells of the trunk's last map.
        root: the filters of the trunk's root (d c y x).
        depths: of the trunk.
        size: height and width of pictures, if the file tells; else they are as large as the map's cells.

    Raises:
        CheckpointError: the root is no convolution.
    """
    if root.ndim != 4:
        raise CheckpointError(f"The root of the trunk has {root.ndim} dimensions; the filters of a convolution have 4.")
    stride = 4 * 2 ** max(min(len(depths), 16) - 1, 0)  # as many stages as a hostile file likes: HybridConfig refuses them
    cells = plain.image_size
    if size is None or (-(-size[0] // stride), -(-size[1] // stride)) != cells:
        size = (cells[0] * stride, cells[1] * stride)
    told: dict[str, Any] = {field.name: getattr(plain, field.name) for field in fields(ViTConfig)}
    told |= {"image_size": size, "patch_size": (plain.patch_size[0] * stride, plain.patch_size[1] * stride)}
    return HybridConfig(**told | {"channels": int(root.shape[1])}, trunk_depths=depths, trunk_width=int(root.shape[0]))


def seen_from_within(config: HybridConfig) -> ViTConfig:
    """A hybrid's transformer, whose pictures are the trunk's maps."""
    told: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(ViTConfig)}
    high, wide = (-(-side // config.trunk_stride) for side in config.image_size)
    return ViTConfig(**told | {"image_size": (high, wide), "patch_size": config.cells})
