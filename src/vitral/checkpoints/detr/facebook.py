"""The layout of the authors' repository (facebookresearch/detr): {"model": state dictionary} of its class, as .pth.

A state dictionary shows every size but three: the number of heads, which is eight in every published network; whether the
last map is kept larger, which the name of a published file tells ("dc5"); and the size of pictures. They are taken from the
architecture that the user names, else so. A network that also makes masks is read as the detector it is built on.

Their evaluation rounds the shorter side of a long picture before the longer follows from it; here, as in transformers, it
follows from the unrounded one, which can move it by two pixels. The layout is read; what transformers' holds is the same.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, resnet_rows, resnet_seen
from vitral.checkpoints.detr.transformers import catalogue_name
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.region.torchvision import COCO_NUMBERS
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.errors import CheckpointError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.detr import DETR, DETRConfig
from vitral.models.record import Record

__all__ = ["LAYOUT", "coco_numbers"]

_BODY = "backbone.0.body."
_HEADS = 8
_THIRDS = ("query", "key", "value")


def _recognises(files: Files) -> bool:
    names = {_spelled(name) for name in files.tensors}
    needed = {"query_embed.weight", "class_embed.weight", "input_proj.weight", "transformer.decoder.norm.weight"}
    return needed <= names and f"{_BODY}layer1.0.conv1.weight" in names


def _spelled(name: str) -> str:
    """A name without what wrappers put before it; that of the residual network itself may have been taken for one."""
    return re.sub(r"^(backbone\.)?0\.body\.", _BODY, name.removeprefix("detr."))


def _plan(files: Files, architecture: DETRConfig | None) -> Plan:
    tensors = _in_thirds({_spelled(name): files.tensors[name] for name in files.tensors})
    notes: list[str] = []
    config = _config(tensors, files.source, architecture, notes)
    record = Record(
        architecture=catalogue_name(config) or "detr",
        layout="facebook",
        source=files.source,
        preprocessing=detection() if config.channels == 3 else None,
        labels=coco_numbers(config.num_classes),
        licence="apache-2.0",
        notes=tuple(notes),
    )
    return Plan(
        build=DETR,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=record,
        ignored=(r"mask_head\..*", r"bbox_attention\..*", FOREIGN_COUNTERS),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='detr_r50_dc5').",
    )


def coco_numbers(num_classes: int) -> tuple[str, ...]:
    """The names of COCO's classes by its own numbers, for a network that has 91; none for another.

    Numbers that were never used are called "N/A", as is 0.
    """
    return ("N/A", *COCO_NUMBERS[1:]) if num_classes == len(COCO_NUMBERS) else ()


def _config(tensors: Tensors, source: str, architecture: DETRConfig | None, notes: list[str]) -> DETRConfig:
    body: Tensors = {name.removeprefix(_BODY): tensors[name] for name in tensors if name.startswith(_BODY)}
    seen = {name: value for name, value in resnet_seen(body, source).items() if name != "num_classes"}
    queries, width = tensors["query_embed.weight"].shape
    base = architecture or DETRConfig()
    if architecture is None:
        larger = "dc5" in source.lower()
        kept = "kept at twice the usual size, as its name says" if larger else "of the usual size"
        notes.append(
            f"The file does not tell the number of heads, {_HEADS} here, and whether its last map is larger: {kept}."
        )
        base = replace(base, backbone=replace(base.backbone, dilated=int(larger)), heads=_HEADS)
        if width % _HEADS:
            raise CheckpointError(
                f"How many heads share {width} channels cannot be seen from {source}. Name a configuration: "
                "load_model(…, architecture=DETRConfig(…))."
            )
    return replace(
        base,
        channels=seen["channels"],
        num_classes=int(tensors["class_embed.weight"].shape[0]) - 1,
        backbone=ResNetConfig(**seen, norm="frozen", dilated=base.backbone.dilated),
        queries=int(queries),
        width=int(width),
        encoder_depth=_depth(tensors, "encoder"),
        decoder_depth=_depth(tensors, "decoder"),
        mlp_width=int(tensors["transformer.decoder.layers.0.linear1.weight"].shape[0]),
    )


def _depth(tensors: Tensors, part: str) -> int:
    pattern = re.compile(rf"transformer\.{part}\.layers\.(\d+)\.norm1\.weight")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.fullmatch(name))), default=-1)


def _in_thirds(tensors: Tensors) -> Tensors:
    """The tensors with the one matrix of queries, keys and values, and its bias, in three."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if fused := re.fullmatch(r"(.+)\.in_proj_(weight|bias)", name):
            for part, third in zip(_THIRDS, tensor.chunk(3), strict=False):
                found[f"{fused[1]}.{part}.{fused[2]}"] = third
        else:
            found[name] = tensor
    return found


def _rows(config: DETRConfig) -> list[Row]:
    rows = [
        replace(row, ours=f"backbone.{row.ours}", theirs=tuple(_BODY + name for name in row.theirs))
        for row in resnet_rows(config.backbone)
    ]
    flat = (config.width, config.backbone.width)
    rows += [
        shaped("projection.weight", "input_proj.weight", flat, (*flat, 1, 1)),
        same("projection.bias", "input_proj.bias"),
    ]
    rows += [same("query_positions.weight", "query_embed.weight")]
    for kind, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
        attentions = {"attention": "self_attn"} | ({"cross_attention": "multihead_attn"} if kind == "decoder" else {})
        for index in range(depth):
            ours, theirs = f"{kind}.{index}", f"transformer.{kind}.layers.{index}"
            for mine, other in attentions.items():
                parts = {**{part: part for part in _THIRDS}, "projection": "out_proj"}
                for part, their_part in parts.items():
                    rows += renamed(f"{ours}.{mine}.{part}", f"{theirs}.{other}.{their_part}")
            rows += renamed(f"{ours}.mlp.up", f"{theirs}.linear1") + renamed(f"{ours}.mlp.down", f"{theirs}.linear2")
            for number in range(1, 2 + len(attentions)):
                rows += renamed(f"{ours}.norm{number}", f"{theirs}.norm{number}")
    rows += renamed("norm", "transformer.decoder.norm") + renamed("head", "class_embed")
    return rows + [row for layer in range(3) for row in renamed(f"box_head.layers.{layer}", f"bbox_embed.layers.{layer}")]


LAYOUT = Layout(name="facebook", network=DETR, recognises=_recognises, plan=_plan)
