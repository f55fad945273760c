"""What the layouts of Segmenter share."""

from __future__ import annotations

from vitral.checkpoints.layout import variant_name
from vitral.models.segmentation.segmenter import VARIANTS, SegmenterConfig

__all__ = ["catalogue_name"]


def catalogue_name(config: SegmenterConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes and pictures, and what is dropped in training."""
    fields = ("image_size", "channels", "num_classes", "decoder_dropout", "decoder_drop_path")
    return variant_name(config, VARIANTS, fields, inside=("norm_eps", "dropout", "drop_path"))
