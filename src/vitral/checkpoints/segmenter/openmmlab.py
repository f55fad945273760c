"""mmsegmentation's layout of Segmenter: {"state_dict": …} of its EncoderDecoder, as .pth; segmenter_vit-b_mask_… and others.

The transformer is as in `checkpoints.vit.openmmlab`; its norms have an epsilon of 1e-6, where the authors' have 1e-5.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.segmenter.names import catalogue_name
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.checkpoints.vit.openmmlab import block_rows, is_there, spelled, vit_rows, vit_seen
from vitral.models.record import Record
from vitral.models.segmentation.segmenter import Segmenter, SegmenterConfig

__all__ = ["LAYOUT"]

_LINEAR = {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}


def _recognises(files: Files) -> bool:
    head = {name for name in files.tensors if name.startswith("decode_head.")}
    last = any(name.removeprefix("backbone.") == "ln1.weight" for name in files.tensors)
    return is_there(files.tensors) and last and (head == _LINEAR or "decode_head.cls_emb" in head)


def _plan(files: Files, architecture: SegmenterConfig | None) -> Plan:
    tensors, notes = spelled(files.tensors), list[str]()
    config = _config(tensors, files.source, architecture, notes)
    record = Record(
        architecture=catalogue_name(config) or "segmenter",
        layout="openmmlab",
        source=files.source,
        preprocessing=evaluation(config.image_size, interpolation="bilinear", inception=True)
        if config.channels == 3
        else None,
        licence="apache-2.0",
        notes=tuple(notes),
    )
    return Plan(
        build=Segmenter,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=record,
        ignored=(r"decode_head\.conv_seg\..*",) if config.decoder == "mask" else (),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='segmenter_vit_b16_mask').",
    )


def _config(
    tensors: dict[str, Tensor], source: str, architecture: SegmenterConfig | None, notes: list[str]
) -> SegmenterConfig:
    named = None if architecture is None else architecture.backbone
    said = None if architecture is None else architecture.image_size
    backbone, size = vit_seen(tensors, source, named, said, notes)
    mask = "decode_head.cls_emb" in tensors
    classes = tensors["decode_head.cls_emb"].shape[1] if mask else tensors["decode_head.conv_seg.weight"].shape[0]
    return replace(
        architecture or SegmenterConfig(backbone=backbone),
        image_size=size,
        channels=backbone.channels,
        num_classes=int(classes),
        backbone=replace(backbone, norm_eps=1e-6),
        decoder="mask" if mask else "linear",
        decoder_depth=_depth(tensors) if mask else 2,
    )


def _depth(tensors: Tensors) -> int:
    pattern = re.compile(r"decode_head\.layers\.(\d{1,4})\.ln1\.weight")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.fullmatch(name))), default=-1)


def _rows(config: SegmenterConfig) -> list[Row]:
    rows = vit_rows("backbone.", "", config.backbone)
    if config.decoder == "linear":
        flat = (config.num_classes, config.width)
        return [
            *rows,
            shaped("head.weight", "decode_head.conv_seg.weight", flat, (*flat, 1, 1)),
            same("head.bias", "decode_head.conv_seg.bias"),
        ]
    rows += [*renamed("head.projection", "decode_head.dec_proj"), same("head.class_tokens", "decode_head.cls_emb")]
    for index in range(config.decoder_depth):
        rows += block_rows(f"head.blocks.{index}", f"decode_head.layers.{index}")
    rows += renamed("head.norm", "decode_head.decoder_norm") + renamed("head.mask_norm", "decode_head.mask_norm")
    rows += renamed("head.patch_projection", "decode_head.patch_proj", bias=False)
    return rows + renamed("head.class_projection", "decode_head.classes_proj", bias=False)


LAYOUT = Layout(name="openmmlab", network=Segmenter, recognises=_recognises, plan=_plan)
