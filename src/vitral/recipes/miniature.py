"""The quick form of recipes for networks that look at places: the same choices, within seconds on a processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitral.training.recipe import Recipe

__all__ = ["miniature"]


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
