"""What the layouts of convolutional networks share: the names of a norm's parts, and the tables of ResNet and of VGG's map.

torchvision named both, and timm and most code of papers kept to it.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.backbones.vgg import VGGConfig

__all__ = ["FOREIGN_COUNTERS", "conv_norm", "counted", "resnet_rows", "resnet_seen", "vgg_rows", "vgg_seen"]

_COUNTER = "num_batches_tracked"

FOREIGN_COUNTERS = rf".*\.{_COUNTER}"
"""Names of what batch norms count, which a frozen one does not."""


def conv_norm(ours: str, conv: str, norm: str, kind: str, *, bias: bool = False) -> list[Row]:
    """The rows of a `ConvNorm`.

    Args:
        ours: its name.
        conv: the foreign convolution's.
        norm: the foreign normalisation's.
        kind: the normalisation.
        bias: whether the convolution has a bias.
    """
    rows = renamed(f"{ours}.conv", conv, bias=bias)
    if kind != "none":
        parts = ("weight", "bias", "running_mean", "running_var", *((_COUNTER,) if kind == "batch" else ()))
        rows += [same(f"{ours}.norm.{part}", f"{norm}.{part}") for part in parts]
    return rows


def counted(tensors: Tensors, rows: Sequence[Row]) -> Tensors:
    """The tensors with a count of zero wherever a batch norm's is missing: files of before 2018 have none."""
    wanted = (name for row in rows for name in row.theirs if name.endswith(f".{_COUNTER}"))
    zeros: dict[str, Tensor] = {name: torch.tensor(0) for name in wanted if name not in tensors}
    return ChainMap(cast(Any, tensors), zeros) if zeros else tensors


def resnet_seen(tensors: Tensors, source: str) -> dict[str, Any]:
    """The fields of a `ResNetConfig` that a state dictionary in torchvision's names shows.

    Raises:
        CheckpointError: its blocks are none that a ResNet has.
    """
    depths: list[int] = []
    while f"layer{len(depths) + 1}.0.conv1.weight" in tensors:
        pattern = re.compile(rf"layer{len(depths) + 1}\.(\d+)\.conv1\.weight")
        depths.append(1 + max(int(match[1]) for name in tensors if (match := pattern.fullmatch(name))))
    bottleneck = "layer1.0.conv3.weight" in tensors
    last, window = "conv3" if bottleneck else "conv2", tensors["layer1.0.conv2.weight"]
    channels = tuple(int(tensors[f"layer{stage + 1}.0.{last}.weight"].shape[0]) for stage in range(len(depths)))
    narrow = int(window.shape[0])
    groups = narrow // int(window.shape[1]) if bottleneck else 1
    deep = "conv1.weight" not in tensors
    stem, last_stem = (tensors[name] for name in (("conv1.0.weight", "conv1.6.weight") if deep else ("conv1.weight",) * 2))
    seen: dict[str, Any] = {
        "block": "bottleneck" if bottleneck else "basic",
        "channels": int(stem.shape[1]),
        "stem_width": int(last_stem.shape[0]),
        "stem": "deep" if deep else "plain",
        "pooled": any(re.fullmatch(r"layer\d+\.0\.downsample\.2\.weight", name) for name in tensors),
        "stage_channels": channels,
        "depths": tuple(depths),
        "groups": groups,
        "base_width": -(-narrow * 64 // (groups * (channels[0] // 4))) if bottleneck else 64,
        "num_classes": int(tensors["fc.weight"].shape[0]) if "fc.weight" in tensors else 0,
    }
    if bottleneck and ResNetConfig(**seen).narrow(0) != narrow:
        raise CheckpointError(f"The bottlenecks of {source} have {narrow} channels in {groups} groups, as no ResNet has.")
    return seen


def resnet_rows(config: ResNetConfig) -> list[Row]:
    """The table of a ResNet in torchvision's names; what torchvision does not have, a ResNet-D's parts, in timm's.

    Raises:
        UsageError: shortcuts that are projected where nothing changes, which no library has names for.
    """
    if config.projected:
        raise UsageError("A ResNet that projects where nothing changes has no names in this layout. Use layout='vitral'.")
    stem = [("stem", "conv1", "bn1")]
    if config.stem == "deep":  # a list of convolutions, norms and activations, but for the last norm
        stem = [("stem.0", "conv1.0", "conv1.1"), ("stem.1", "conv1.3", "conv1.4"), ("stem.2", "conv1.6", "bn1")]
    rows = [row for names in stem for row in conv_norm(*names, config.norm)]
    convolution, norm = (1, 2) if config.pooled else (0, 1)  # behind what averages
    before = config.stem_width
    for stage, (channels, depth) in enumerate(zip(config.stage_channels, config.depths, strict=True)):
        for place in range(depth):
            ours, theirs = f"stages.{stage}.{place}", f"layer{stage + 1}.{place}"
            parts = ("first", "second", "third")[: 3 if config.block == "bottleneck" else 2]
            for number, part in enumerate(parts, 1):
                rows += conv_norm(f"{ours}.{part}", f"{theirs}.conv{number}", f"{theirs}.bn{number}", config.norm)
            strided = stage > 0 and config.strides[stage] != config.strides[stage - 1]
            if place == 0 and (strided or before != channels):
                shortcut = f"{theirs}.downsample"
                rows += conv_norm(f"{ours}.shortcut", f"{shortcut}.{convolution}", f"{shortcut}.{norm}", config.norm)
        before = channels
    return rows + (renamed("head", "fc") if config.num_classes else [])


def vgg_seen(tensors: Tensors) -> dict[str, Any]:
    """The fields of a `VGGConfig` that the convolutions of a state dictionary show.

    Convolutions stand in one numbered list with norms, activations and poolings; a gap more between two is a pooling.
    """
    found = [(int(match[1]), name) for name in tensors if (match := re.fullmatch(r"features\.(\d+)\.weight", name))]
    shapes = {number: tensors[name].shape for number, name in sorted(found) if tensors[name].ndim == 4}
    normed = "features.1.weight" in tensors
    channels, depths, last = [], [], -10
    for number, shape in shapes.items():
        if number - last > 2 + normed:
            channels.append(int(shape[0]))
            depths.append(0)
        depths[-1] += 1
        last = number
    return {
        "channels": int(shapes[0][1]),
        "stage_channels": tuple(channels),
        "depths": tuple(depths),
        "norm": "batch" if normed else "none",
    }


def vgg_rows(config: VGGConfig) -> list[Row]:
    """The table of a VGG's convolutions in torchvision's names."""
    rows: list[Row] = []
    block = place = 0
    for depth in config.depths:
        for _ in range(depth):
            rows += conv_norm(f"blocks.{block}", f"features.{place}", f"features.{place + 1}", config.norm, bias=True)
            block, place = block + 1, place + (2 if config.norm == "none" else 3)
        place += 1
    return rows
