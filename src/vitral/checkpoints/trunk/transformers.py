"""A trunk in transformers' words: the backbone_config of a config.json, and the names of SwinBackbone and ResNetBackbone.

The windows of a SwinBackbone are always shifted in every other block, whatever the map's size; those of a classifier only
where both sides of a map are longer than a window. The norms behind its stages are called `hidden_states_norms`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitral.checkpoints.convolutional.transformers import described_resnet
from vitral.checkpoints.convolutional.transformers import resnet_rows as transformers_rows
from vitral.checkpoints.swin.transformers import described_swin, swin_config, swin_names, swin_rows
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.backbones.swin import SwinConfig
from vitral.models.segmentation.trunk import BackboneConfig

__all__ = ["UNREAD", "described_trunk", "trunk_config", "trunk_names", "trunk_rows"]

UNREAD = (r"layernorm\.(weight|bias)", r".*\.relative_(position_index|coords_table)", r"embeddings\.mask_token")
"""Names within a trunk of what no segmenter reads: the norm before a classifier, and indices that can be computed."""

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
# What transformers assumes where a backbone_config does not say.
_RESNET: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


def trunk_config(told: dict[str, Any]) -> SwinConfig | ResNetConfig:
    """The backbone that a backbone_config tells of.

    Args:
        told: its content.

    Raises:
        CheckpointError: a kind of backbone that is not read, or one that gives other maps than those of its four stages.
    """
    kind = told.get("model_type")
    if kind not in ("swin", "resnet"):
        name = f"{kind!r} ({told['backbone']!r})" if told.get("backbone") else repr(kind)
        raise CheckpointError(
            f"config.json has a backbone of model_type {name}; those of 'swin' and 'resnet' are read. Take a checkpoint on "
            "one of them."
        )
    stages = [f"stage{stage + 1}" for stage in range(len(told.get("depths", _STAGES)))]
    if list(told.get("out_features") or stages[-1:]) != stages:
        raise CheckpointError(
            f"config.json takes the backbone's maps {told.get('out_features')!r}; those of all its stages, {stages}, are "
            "read."
        )
    if kind == "resnet":
        return _resnet({**_RESNET, **{name: value for name, value in told.items() if value is not None}})
    if told.get("use_absolute_embeddings"):
        raise CheckpointError("config.json asks for a backbone with absolute positions; those published have none.")
    return replace(swin_config(told, 1, {}), shift_rule="always")


def _resnet(said: dict[str, Any]) -> ResNetConfig:
    if said["hidden_act"] != "relu" or said["downsample_in_first_stage"]:
        raise CheckpointError(
            f"config.json asks for a backbone of hidden_act {said['hidden_act']!r} and downsample_in_first_stage "
            f"{said['downsample_in_first_stage']!r}; ResNets were published with 'relu' and False."
        )
    bottleneck = said["layer_type"] == "bottleneck"
    return ResNetConfig(
        block="bottleneck" if bottleneck else "basic",
        channels=int(said["num_channels"]),
        stem_width=int(said["embedding_size"]),
        stage_channels=tuple(map(int, said["hidden_sizes"])),
        depths=tuple(map(int, said["depths"])),
        strides_first=bottleneck and bool(said["downsample_in_bottleneck"]),
    )


def trunk_names(tensors: Tensors) -> Tensors:
    """A trunk's tensors, whose names begin with its own parts, under the names that are on disk."""
    return swin_names(tensors, "swin")


def trunk_rows(config: BackboneConfig, ours: str, theirs: str) -> list[Row]:
    """The table of a trunk.

    Args:
        config: which backbone.
        ours: what the trunk is called in our model.
        theirs: what stands before the names in theirs, with its point.

    Raises:
        UsageError: a backbone that has no names there.
    """
    if isinstance(config, SwinConfig) and config.version == 1:
        rows = [row for row in swin_rows(replace(config, num_classes=0)) if not row.ours.startswith("norm.")]
    elif isinstance(config, ResNetConfig):
        rows = transformers_rows(replace(config, num_classes=0))
    else:
        raise UsageError(
            f"transformers' layout of segmenters states backbones that are a ResNet or a Swin Transformer of version 1; a "
            f"{type(config).__name__} came. Use layout='vitral'."
        )
    rows = [replace(row, ours=f"network.{row.ours}") for row in rows]
    if isinstance(config, SwinConfig):
        for stage in range(len(config.depths)):
            rows += renamed(f"norms.{stage}", f"hidden_states_norms.stage{stage + 1}")
    return [replace(row, ours=f"{ours}.{row.ours}", theirs=tuple(theirs + name for name in row.theirs)) for row in rows]


def described_trunk(config: BackboneConfig) -> dict[str, Any]:
    """A trunk in the words of a backbone_config.

    Raises:
        UsageError: a backbone that transformers does not have, or computes otherwise.
    """
    if isinstance(config, ResNetConfig):
        described = described_resnet(config)
    elif isinstance(config, SwinConfig):
        wrong = {
            "version 2": config.version == 2,
            "absolute positions": config.position == "learned",
            f"windows of {config.windows}": len({side for window in config.windows for side in window}) > 1,
            f"shifts by {config.shifts}": config.shifts is not None,
            f"shifts by the rule {config.shift_rule!r}": config.shift_rule != "always",
            "maps that are shifted before they are filled up": config.shift_first,
            "patches that are left out": config.rest == "left_out",
            f"widths of {config.widths}": config.widths != tuple(config.widths[0] * 2**i for i in range(len(config.widths))),
        }
        found = [what for what, present in wrong.items() if present]
        if found:
            raise UsageError(f"transformers' SwinBackbone has no {', '.join(found)}. Use layout='vitral'.")
        described = described_swin(config)
    else:
        raise UsageError(
            f"transformers' segmenters stand on a ResNet or a Swin Transformer; a {type(config).__name__} came. Use "
            "layout='vitral'."
        )
    return {**described, "out_features": [f"stage{stage + 1}" for stage in range(len(config.depths))]}
