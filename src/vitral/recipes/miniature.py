"""Small networks that look at places, and the quick form of their recipes: the same choices, in seconds on a processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitral.training.recipe import Recipe

__all__ = ["SMALL_RESNET", "TINY_RESNET", "miniature"]

SMALL_RESNET: dict[str, Any] = {
    "backbone.block": "basic",
    "backbone.stem_width": 16,
    "backbone.stage_channels": (24, 48, 96, 128),
    "backbone.depths": (1, 1, 1, 1),
    "backbone.norm": "batch",
}
"""Fields of a configuration whose backbone is a narrow residual network that learns from nothing."""

TINY_RESNET: dict[str, Any] = SMALL_RESNET | {"backbone.stem_width": 8, "backbone.stage_channels": (8, 8, 16, 16)}
"""Those of one as narrow as a network can be."""


def miniature(recipe: Recipe, network: Mapping[str, Any]) -> Recipe:
    """The whole way in seconds: a tiny network, which learns from nothing, and pictures of 64 pixels.

    Args:
        recipe: whose other choices stay.
        network: fields of the network's configuration that make it tiny.
    """
    return replace(
        recipe,
        network=network,
        backbone=None,
        backbone_rate=1.0,
        frozen_depth=0,
        image_size=(64, 64),
        epochs=1,
        batch_size=8,
        learning_rate=1e-3,
        warmup_epochs=0.1,
        precision="fp32",
        workers=0,
        evaluate_every=1,
        save_every=1,
    )
