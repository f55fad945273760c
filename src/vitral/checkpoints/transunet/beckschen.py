"""The layout of the authors' repository (Beckschen/TransUNet): the state dictionary of its VisionTransformer, as .pth.

A file shows every size but two: the number of heads, which are 64 channels wide in every published network, and rows and
columns of the table of positions, which are equal. Both are taken from the architecture that the user names, else so.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from vitral.checkpoints.convolutional.names import conv_norm, counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.hybrid.trunk import depths_of, units
from vitral.checkpoints.layout import Layout, Plan, variant_name
from vitral.checkpoints.table import Row, Tensors, renamed, same, stacked
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError
from vitral.models.record import Record
from vitral.models.segmentation.transunet import VARIANTS, TransUNet, TransUNetConfig

__all__ = ["LAYOUT"]

_TRUNK = "transformer.embeddings.hybrid_model"
_HEAD = 64
_DOUBLINGS = 4


def _recognises(files: Files) -> bool:
    needed = {f"{_TRUNK}.root.conv.weight", "decoder.conv_more.0.weight", "segmentation_head.0.weight"}
    return needed <= set(files.tensors)


def _plan(files: Files, architecture: TransUNetConfig | None) -> Plan:
    notes: list[str] = []
    config = _config(files.tensors, files.source, architecture, notes)
    rows = _rows(config)
    prepared = Preprocessing(
        resize="exact", size=config.image_size, interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    record = Record(
        architecture=_catalogue_name(config) or "transunet",
        layout="beckschen",
        source=files.source,
        preprocessing=prepared if config.channels == 3 else None,
        licence="apache-2.0",
        notes=tuple(notes),
    )
    return Plan(
        build=TransUNet,
        config=config,
        rows=rows,
        tensors=counted(files.tensors, rows),
        record=record,
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='transunet_r50_b16').",
    )


def _catalogue_name(config: TransUNetConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes and pictures."""
    return variant_name(config, VARIANTS, ("image_size", "channels", "num_classes"))


def _config(tensors: Tensors, source: str, architecture: TransUNetConfig | None, notes: list[str]) -> TransUNetConfig:
    root, table = tensors[f"{_TRUNK}.root.conv.weight"], tensors["transformer.embeddings.position_embeddings"]
    rows, width = int(table.shape[1]), int(table.shape[2])
    if architecture is None and width % _HEAD:
        raise CheckpointError(
            f"How many heads share {width} channels cannot be seen from {source}. Name a configuration: "
            "load_model(…, architecture=TransUNetConfig(…))."
        )
    base = architecture or VARIANTS["transunet_r50_b16"]
    heads = base.backbone.heads
    if architecture is None:
        heads = width // _HEAD
        notes.append(f"{heads} heads, as heads of {_HEAD} channels are usual; the file does not say.")
    size = base.image_size
    if math.prod(base.grid_of(size)) != rows:
        side = math.isqrt(rows)
        if side < 1 or side * side != rows:
            raise CheckpointError(f"{source} has positions for {rows} patches, which form no square.")
        size = (side * base.stride, side * base.stride)
    pattern = re.compile(r"transformer\.encoder\.layer\.(\d{1,4})\.ffn\.fc1\.weight")
    depth = 1 + max((int(match[1]) for name in tensors if (match := pattern.fullmatch(name))), default=-1)
    if depth == 0:
        raise CheckpointError(f"{source} has no tensors called transformer.encoder.layer.0.…; it is no whole TransUNet.")
    backbone = replace(
        base.backbone,
        channels=int(root.shape[1]),
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=int(tensors["transformer.encoder.layer.0.ffn.fc1.weight"].shape[0]),
        trunk_width=int(root.shape[0]),
        trunk_depths=depths_of(tensors, re.escape(_TRUNK) + r"\.body\.block(\d{1,4})\.unit(\d{1,4})\."),
    )
    channels = [int(tensors[f"decoder.blocks.{place}.conv2.0.weight"].shape[0]) for place in range(_DOUBLINGS)]
    before = int(tensors["decoder.conv_more.0.weight"].shape[0])
    inputs = [int(tensors[f"decoder.blocks.{place}.conv1.0.weight"].shape[1]) for place in range(_DOUBLINGS)]
    return replace(
        base,
        image_size=size,
        channels=backbone.channels,
        num_classes=int(tensors["segmentation_head.0.weight"].shape[0]),
        backbone=backbone,
        skips=sum(came > had for came, had in zip(inputs, (before, *channels), strict=False)),
        decoder_width=before,
        decoder_channels=tuple(channels),
    )


def _rows(config: TransUNetConfig) -> list[Row]:
    rows = _trunk_rows(config.backbone.trunk_depths)
    rows += renamed("backbone.patch.projection", "transformer.embeddings.patch_embeddings")
    rows += [same("backbone.position_table", "transformer.embeddings.position_embeddings")]
    for index in range(config.depth):
        ours, theirs = f"backbone.blocks.{index}", f"transformer.encoder.layer.{index}"
        rows += renamed(f"{ours}.norm1", f"{theirs}.attention_norm") + renamed(f"{ours}.norm2", f"{theirs}.ffn_norm")
        for part in ("weight", "bias"):
            thirds = (f"{theirs}.attn.{third}.{part}" for third in ("query", "key", "value"))
            rows += [stacked(f"{ours}.attention.qkv.{part}", *thirds)]
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.attn.out")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.ffn.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.ffn.fc2")
    rows += renamed("backbone.norm", "transformer.encoder.encoder_norm")
    rows += conv_norm("projection", "decoder.conv_more.0", "decoder.conv_more.1", "batch")
    for place in range(_DOUBLINGS):
        for ours, number in (("first", 1), ("second", 2)):
            theirs = f"decoder.blocks.{place}.conv{number}"
            rows += conv_norm(f"decoder.{place}.{ours}", f"{theirs}.0", f"{theirs}.1", "batch")
    return rows + renamed("head", "segmentation_head.0")


def _trunk_rows(depths: tuple[int, ...]) -> list[Row]:
    """The residual network's table; stages and units count from 1."""
    rows = renamed("backbone.trunk.root", f"{_TRUNK}.root.conv", bias=False)
    rows += renamed("backbone.trunk.root_norm", f"{_TRUNK}.root.gn")
    for stage, unit, changes in units(depths):
        ours, theirs = f"backbone.trunk.stages.{stage}.{unit}", f"{_TRUNK}.body.block{stage + 1}.unit{unit + 1}"
        for number in (1, 2, 3):
            rows += renamed(f"{ours}.conv{number}", f"{theirs}.conv{number}", bias=False)
            rows += renamed(f"{ours}.norm{number}", f"{theirs}.gn{number}")
        if changes:
            rows += renamed(f"{ours}.shortcut", f"{theirs}.downsample", bias=False)
            rows += renamed(f"{ours}.shortcut_norm", f"{theirs}.gn_proj")
    return rows


LAYOUT = Layout(name="beckschen", network=TransUNet, recognises=_recognises, plan=_plan)
