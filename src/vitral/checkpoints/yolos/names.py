"""What the layouts of YOLOS share: tables of positions in which the detection tokens stand behind the patches."""

from __future__ import annotations

import torch
from torch import Tensor

from vitral.checkpoints.layout import variant_name
from vitral.checkpoints.table import Row, renamed
from vitral.models.detection.yolos import VARIANTS, YOLOSConfig

__all__ = ["catalogue_name", "middle_positions", "perceptron", "position_table"]


def position_table(theirs: str, config: YOLOSConfig) -> Row:
    """The row of the first table of positions."""
    queries = config.queries
    return Row(
        "vit.position_table",
        (theirs,),
        lambda parts: _before(parts[0], queries),
        lambda table: [_behind(table, queries)],
    )


def middle_positions(theirs: str, config: YOLOSConfig) -> Row:
    """The row of the tables of positions between blocks, which others keep as of one picture each."""
    queries = config.queries
    return Row(
        "middle_positions",
        (theirs,),
        lambda parts: _before(parts[0].squeeze(1), queries),
        lambda table: [_behind(table, queries).unsqueeze(1)],
    )


def perceptron(ours: str, theirs: str) -> list[Row]:
    """The rows of what reads classes or boxes."""
    return [row for layer in range(3) for row in renamed(f"{ours}.layers.{layer}", f"{theirs}.layers.{layer}")]


def catalogue_name(config: YOLOSConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes, detection tokens and pictures."""
    fields = ("image_size", "channels", "num_classes", "queries", "middle_positions", "norm_eps", "dropout", "drop_path")
    return variant_name(config, VARIANTS, fields)


def _before(table: Tensor, queries: int) -> Tensor:
    """class, patches, detection → class, detection, patches."""
    patches = table.shape[1] - 1 - queries
    first, patch, detection = table.split([1, patches, queries], dim=1)
    return torch.cat([first, detection, patch], dim=1)


def _behind(table: Tensor, queries: int) -> Tensor:
    """The inverse."""
    first, detection, patch = table.split([1, queries, table.shape[1] - 1 - queries], dim=1)
    return torch.cat([first, patch, detection], dim=1)
