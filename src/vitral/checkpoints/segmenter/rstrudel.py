"""The layout of the authors' repository (rstrudel/segmenter): {"model": state dictionary} of its class, as checkpoint.pth.

The transformer, whose names begin with "encoder.", is in timm's names; see `checkpoints.vit.timm` for what no tensor shows.
The classifier of its pre-training is still there, and is left out. What the variant.yml beside a checkpoint says is seen
from the tensors: pictures are normalised to [−1, 1], but as ImageNet's are where there is a distillation token, and the
networks are made for squares.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.segmenter.names import catalogue_name
from vitral.checkpoints.table import Row, Tensors, permuted, renamed, same
from vitral.checkpoints.vit import timm
from vitral.models.record import Record
from vitral.models.segmentation.segmenter import Segmenter, SegmenterConfig

__all__ = ["LAYOUT"]

_ENCODER = "encoder."
_CLASSIFIERS = ("encoder.head.", "encoder.head_dist.")


def _recognises(files: Files) -> bool:
    heads = {"decoder.cls_emb", "decoder.head.weight"}
    return "encoder.patch_embed.proj.weight" in files.tensors and not heads.isdisjoint(files.tensors)


def _plan(files: Files, architecture: SegmenterConfig | None) -> Plan:
    tensors = files.tensors
    within = {
        name.removeprefix(_ENCODER): tensors[name]
        for name in tensors
        if name.startswith(_ENCODER) and not name.startswith(_CLASSIFIERS)
    }
    named = None if architecture is None else architecture.backbone
    plan = timm.LAYOUT.plan(replace(files, tensors=within, config={}), named)
    backbone = replace(plan.config, norm_eps=1e-5, position_antialias=False)
    mask = "decoder.cls_emb" in tensors
    config = replace(
        architecture or SegmenterConfig(backbone=backbone),
        image_size=backbone.image_size,
        channels=backbone.channels,
        num_classes=int(tensors["decoder.cls_emb"].shape[1] if mask else tensors["decoder.head.weight"].shape[0]),
        backbone=backbone,
        decoder="mask" if mask else "linear",
        decoder_depth=_depth(tensors) if mask else 2,
    )
    inception = not backbone.distillation_token
    record = Record(
        architecture=catalogue_name(config) or "segmenter",
        layout="rstrudel",
        source=files.source,
        preprocessing=evaluation(config.image_size, interpolation="bilinear", inception=inception)
        if config.channels == 3
        else None,
        licence="mit",
        notes=plan.record.notes,
    )
    before = [
        replace(row, ours=f"backbone.{row.ours}", theirs=tuple(_ENCODER + name for name in row.theirs)) for row in plan.rows
    ]
    return Plan(
        build=Segmenter,
        config=config,
        rows=before + _rows(config),
        tensors=tensors,
        record=record,
        ignored=(r"encoder\.head(_dist)?\..*",),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='segmenter_vit_b16_mask').",
    )


def _depth(tensors: Tensors) -> int:
    pattern = re.compile(r"decoder\.blocks\.(\d{1,4})\.norm1\.weight")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.fullmatch(name))), default=-1)


def _rows(config: SegmenterConfig) -> list[Row]:
    if config.decoder == "linear":
        return renamed("head", "decoder.head")
    rows = [*renamed("head.projection", "decoder.proj_dec"), same("head.class_tokens", "decoder.cls_emb")]
    for index in range(config.decoder_depth):
        ours, theirs = f"head.blocks.{index}", f"decoder.blocks.{index}"
        rows += renamed(f"{ours}.norm1", f"{theirs}.norm1") + renamed(f"{ours}.norm2", f"{theirs}.norm2")
        rows += renamed(f"{ours}.attention.qkv", f"{theirs}.attn.qkv")
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.attn.proj")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    rows += renamed("head.norm", "decoder.decoder_norm") + renamed("head.mask_norm", "decoder.mask_norm")
    rows += [permuted("head.patch_projection.weight", "decoder.proj_patch", (1, 0))]
    return [*rows, permuted("head.class_projection.weight", "decoder.proj_classes", (1, 0))]


LAYOUT = Layout(name="rstrudel", network=Segmenter, recognises=_recognises, plan=_plan)
