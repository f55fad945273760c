"""The layout of milesial's Pytorch-UNet, which most U-Nets of today were trained with or named after.

A state dictionary shows every size, and whether maps are enlarged by a transposed convolution. Pictures are not normalised;
they were made smaller by one factor, which the published files have in their names, and are of that size here. Where there
is a single logit, it is read as that of the second of two classes.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from vitral.checkpoints.convolutional.names import conv_norm, counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.table import Row, renamed
from vitral.data.transforms import Preprocessing
from vitral.models.record import Record
from vitral.models.segmentation.unet import UNet, UNetConfig

__all__ = ["LAYOUT"]

_SIGN = "inc.double_conv.0.weight"
_STAGES = 5
_CARVANA = (1280, 1918)  # height and width of the pictures of the published files
_LABELS = ("background", "car")


def _recognises(files: Files) -> bool:
    return not files.config and {_SIGN, "outc.conv.weight"} <= files.tensors.keys()


def _plan(files: Files, named: UNetConfig | None) -> Plan:
    tensors = files.tensors
    classes = int(tensors["outc.conv.weight"].shape[0])
    width = int(tensors[_SIGN].shape[0])
    config = replace(
        named or UNetConfig(),
        channels=int(tensors[_SIGN].shape[1]),
        num_classes=max(classes, 2),
        stage_channels=tuple(width * 2**stage for stage in range(_STAGES)),
        border="zeros",
        norm="batch",
        bias="inc.double_conv.0.bias" in tensors,
        enlarging="learned" if "up1.up.weight" in tensors else "bilinear",
    )
    scale = re.search(r"carvana_scale(\d+(?:\.\d+)?)", files.source)
    if scale is not None:
        times = float(scale[1])
        config = replace(config, image_size=(int(_CARVANA[0] * times), int(_CARVANA[1] * times)))
    rows = _rows(config, classes)
    prepared = Preprocessing(
        resize="exact" if scale else "none",
        size=config.image_size,
        interpolation="bicubic",
        mean=(0.0,) * config.channels,
        std=(1.0,) * config.channels,
    )
    record = Record(
        architecture="unet",
        layout="milesial",
        source=files.source,
        preprocessing=prepared if config.channels in (1, 3) else None,
        labels=_LABELS if scale and config.num_classes == len(_LABELS) else (),
        licence="gpl-3.0",
    )
    return Plan(build=UNet, config=config, rows=rows, tensors=counted(tensors, rows), record=record)


def _rows(config: UNetConfig, classes: int) -> list[Row]:
    pairs = {"down.0": "inc.double_conv"}
    rows: list[Row] = []
    for place in range(1, _STAGES):
        pairs[f"down.{place}"] = f"down{place}.maxpool_conv.1.double_conv"
        pairs[f"up.{place - 1}.pair"] = f"up{place}.conv.double_conv"
        if config.enlarging == "learned":
            rows += renamed(f"up.{place - 1}.enlarge", f"up{place}.up")
    for ours, theirs in pairs.items():
        rows += conv_norm(f"{ours}.first", f"{theirs}.0", f"{theirs}.1", "batch", bias=config.bias)
        rows += conv_norm(f"{ours}.second", f"{theirs}.3", f"{theirs}.4", "batch", bias=config.bias)
    if classes > 1:
        return rows + renamed("head", "outc.conv")
    return rows + [_beside_nothing(part) for part in ("weight", "bias")]


def _beside_nothing(part: str) -> Row:
    """A single logit, whose sigmoid is a probability, as the second of two of which the first is always zero."""
    return Row(
        f"head.{part}",
        (f"outc.conv.{part}",),
        lambda parts: torch.cat([torch.zeros_like(parts[0]), parts[0]]),
        lambda tensor: [tensor[1:]],
    )


LAYOUT = Layout(name="milesial", network=UNet, recognises=_recognises, plan=_plan)
