"""transformers' layout of hybrids, which is refused: the library gave up its class ViTHybrid with version 5.

The page keeps a hybrid from being written as transformers' plain vision transformer, without its trunk.
"""

from __future__ import annotations

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.errors import CheckpointError
from vitral.models.backbones.hybrid import HybridConfig, HybridViT

__all__ = ["LAYOUT"]


def _recognises(files: Files) -> bool:
    return files.config.get("model_type") == "vit-hybrid"


def _plan(files: Files, architecture: HybridConfig | None) -> Plan:
    raise CheckpointError(
        f"{files.source} is a vit-hybrid, a kind that transformers itself no longer knows and that is not read. The same "
        "weights are published in timm's layout: timm/vit_base_r50_s16_384.orig_in21k_ft_in1k."
    )


LAYOUT = Layout(name="transformers", network=HybridViT, recognises=_recognises, plan=_plan)
