"""What the layouts of Segmenter share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitral.models.segmentation.segmenter import VARIANTS, SegmenterConfig

__all__ = ["catalogue_name"]


def catalogue_name(config: SegmenterConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes and pictures, and what is dropped in training."""
    fields = ("image_size", "channels", "num_classes", "decoder_dropout", "decoder_drop_path")
    free: dict[str, Any] = {field: getattr(config, field) for field in fields}
    inside: dict[str, Any] = {field: getattr(config.backbone, field) for field in ("norm_eps", "dropout", "drop_path")}
    for name, variant in VARIANTS.items():
        if replace(variant, backbone=replace(variant.backbone, **inside), **free) == config:
            return name
    return None
