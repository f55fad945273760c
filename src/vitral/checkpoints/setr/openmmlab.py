"""mmsegmentation's layout of SETR: {"state_dict": …} of its EncoderDecoder, as .pth; setr_naive_…, setr_pup_…, setr_mla_….

Which decoder it is, and every size of it, is in the names and shapes. Behind which blocks maps are taken is in no tensor: it
is the published choice for 24 and for 12 blocks, or as the architecture that the user names has it. A file that was stripped
of its auxiliary heads is read as a network without them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.convolutional.names import conv_norm, counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, variant_name
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.checkpoints.vit.openmmlab import IGNORED, is_there, spelled, vit_rows, vit_seen
from vitral.errors import CheckpointError
from vitral.models.record import Record
from vitral.models.segmentation.setr import SETR, VARIANTS, SETRConfig

__all__ = ["LAYOUT"]

_NECK = "neck.mla.channel_proj"


def _recognises(files: Files) -> bool:
    up = "decode_head.norm.weight" in files.tensors
    branches = f"{_NECK}.0.conv.weight" in files.tensors
    return is_there(files.tensors) and (up or branches) and "decode_head.up_convs.0.0.conv.weight" in files.tensors


def _plan(files: Files, architecture: SETRConfig | None) -> Plan:
    tensors, notes = spelled(files.tensors), list[str]()
    config = _config(tensors, files.source, architecture, notes)
    rows = _rows(config)
    record = Record(
        architecture=_catalogue_name(config) or "setr",
        layout="openmmlab",
        source=files.source,
        preprocessing=evaluation(config.image_size, interpolation="bilinear") if config.channels == 3 else None,
        licence="apache-2.0",
        notes=tuple(notes),
    )
    return Plan(
        build=SETR,
        config=config,
        rows=rows,
        tensors=counted(tensors, rows),
        record=record,
        ignored=() if config.backbone.class_token else IGNORED,
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='setr_pup_l16').",
    )


def _catalogue_name(config: SETRConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes, pictures and auxiliary heads."""
    fields = ("image_size", "channels", "num_classes", "auxiliary", "auxiliary_convolutions")
    return variant_name(config, VARIANTS, fields)


def _config(tensors: dict[str, Tensor], source: str, architecture: SETRConfig | None, notes: list[str]) -> SETRConfig:
    mla = f"{_NECK}.0.conv.weight" in tensors
    named = None if architecture is None else architecture.backbone
    said = None if architecture is None else architecture.image_size
    backbone, size = vit_seen(tensors, source, named, said, notes, class_token=not mla)
    first, classes = tensors["decode_head.up_convs.0.0.conv.weight"], tensors["decode_head.conv_seg.weight"]
    count, inside = _convolutions(tensors, "decode_head"), _convolutions(tensors, "auxiliary_head.0")
    if first.ndim != 4 or first.shape[2] not in (1, 3):
        raise CheckpointError(
            f"The decoder in {source} has windows of {tuple(first.shape[2:])}; SETR's have a side of 1 or 3."
        )
    config = SETRConfig(
        image_size=size,
        channels=backbone.channels,
        num_classes=int(classes.shape[0]),
        backbone=backbone,
        decoder="mla" if mla else "pup" if count > 1 else "naive",
        levels=tuple(range(backbone.depth)),
        auxiliary="auxiliary_head.0.conv_seg.weight" in tensors,
    )
    if mla:
        width = int(tensors[f"{_NECK}.0.conv.weight"].shape[0])
        config = replace(config, decoder_width=width, branch_width=int(first.shape[0]))
    else:
        config = replace(
            config,
            decoder_width=int(first.shape[0]),
            convolutions=count,
            kernel=3 if first.shape[2] == 3 else 1,
            auxiliary_convolutions=max(1, inside),
        )
    return replace(config, levels=_levels(config, source, architecture))


def _convolutions(tensors: Tensors, head: str) -> int:
    """How many convolutions a head has."""
    pattern = re.compile(rf"{re.escape(head)}\.up_convs\.(\d{{1,3}})\.0\.conv\.weight")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.fullmatch(name))), default=-1)


def _levels(config: SETRConfig, source: str, architecture: SETRConfig | None) -> tuple[int, ...]:
    """Behind which blocks maps are taken."""
    if architecture is not None:
        return architecture.levels
    for variant in VARIANTS.values():
        if (variant.decoder == "mla") == (config.decoder == "mla") and variant.depth == config.depth:
            return variant.levels
    raise CheckpointError(
        f"Behind which of {config.depth} blocks maps are taken cannot be seen from {source}. Name a configuration: "
        "load_model(…, architecture=SETRConfig(…))."
    )


def _rows(config: SETRConfig) -> list[Row]:
    rows = vit_rows("backbone.", "", config.backbone)
    if config.decoder != "mla":
        heads = {"head": ("decode_head", config.convolutions)}
        if config.auxiliary:
            for place in range(len(config.levels) - 1):
                heads[f"auxiliary_heads.{place}"] = (f"auxiliary_head.{place}", config.auxiliary_convolutions)
        for ours, (theirs, count) in heads.items():
            rows += renamed(f"{ours}.norm", f"{theirs}.norm") + renamed(f"{ours}.classifier", f"{theirs}.conv_seg")
            for place in range(count):
                rows += _convolution(f"{ours}.convolutions.{place}", f"{theirs}.up_convs.{place}.0")
        return rows
    for place in range(len(config.levels)):
        rows += renamed(f"neck.norms.{place}", f"neck.norm.{place}")
        rows += _convolution(f"neck.projections.{place}", f"{_NECK}.{place}")
        rows += _convolution(f"neck.convolutions.{place}", f"neck.mla.feat_extract.{place}")
        for step in (0, 1):
            rows += _convolution(f"head.branches.{place}.{step}", f"decode_head.up_convs.{place}.{step}")
        rows += renamed(f"auxiliary_heads.{place}", f"auxiliary_head.{place}.conv_seg") if config.auxiliary else []
    return rows + renamed("head.classifier", "decode_head.conv_seg")


def _convolution(ours: str, theirs: str) -> list[Row]:
    return conv_norm(ours, f"{theirs}.conv", f"{theirs}.bn", "batch")


LAYOUT = Layout(name="openmmlab", network=SETR, recognises=_recognises, plan=_plan)
