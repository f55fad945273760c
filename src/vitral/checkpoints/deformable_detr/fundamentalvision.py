"""The layout of the authors' repository (fundamentalvision/Deformable-DETR): {"model": state dictionary}, as .pth.

A state dictionary shows every size but these: the number of heads, which is eight in every published network; whether the
last map is kept larger, which the name of a published file tells ("dc5"); how many proposals become queries, which is 300;
and the size of pictures. They are taken from the architecture that the user names, else so. The layout is read; what
transformers' holds is the same.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, resnet_seen
from vitral.checkpoints.deformable_detr.transformers import BACKBONE, architecture_of, heads_once, rows
from vitral.checkpoints.detr.facebook import coco_numbers
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.table import Tensors
from vitral.errors import CheckpointError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.deformable_detr import DeformableDETR, DeformableDETRConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_BLOCK = "model.decoder.layers.0"
_HEADS = 8
# The authors' names → transformers', each applied once. In the authors' decoder norms are numbered as they were written,
# and not as they are passed.
_SPELLINGS = (
    (r"^(backbone\.)?0\.body\.", BACKBONE),  # the residual network's own name may have been taken for a wrapper's
    (r"^transformer\.", "model."),
    (r"^input_proj\.", "model.input_proj."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"(\.layers\.\d+)\.linear([12])\.", r"\1.fc\2."),
    (r"(encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm1\.", r"\1.encoder_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"(decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
)


def _recognises(files: Files) -> bool:
    if not {"transformer.level_embed", "class_embed.0.weight"} <= set(files.tensors):
        return False
    return any(name.endswith("0.body.layer1.0.conv1.weight") for name in files.tensors)


def _spelt(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors by transformers' names, the one matrix of queries, keys and values in three."""
    found: dict[str, Tensor] = {}
    for name in tensors:
        spelt = name
        for pattern, replacement in _SPELLINGS:
            spelt = re.sub(pattern, replacement, spelt)
        if fused := re.fullmatch(r"(.+)\.in_proj_(weight|bias)", spelt):
            thirds = tensors[name].chunk(3)
            found |= {f"{fused[1]}.{part}_proj.{fused[2]}": third for part, third in zip("qkv", thirds, strict=False)}
        else:
            found[spelt] = tensors[name]
    return found


def _plan(files: Files, architecture: DeformableDETRConfig | None) -> Plan:
    tensors = _spelt(files.tensors)
    refine = any(name.startswith("model.decoder.bbox_embed.") for name in tensors)
    depth = _depth(tensors, "decoder")
    tensors = heads_once(tensors, "model.decoder.", refine, depth, files.source)
    notes: list[str] = []
    config = replace(_config(tensors, files.source, architecture, notes), refine=refine)
    record = Record(
        architecture=architecture_of(config),
        layout="fundamentalvision",
        source=files.source,
        preprocessing=detection() if config.channels == 3 else None,
        labels=coco_numbers(config.num_classes),
        licence="apache-2.0",
        notes=tuple(notes),
    )
    return Plan(
        build=DeformableDETR,
        config=config,
        rows=rows(config),
        tensors=tensors,
        record=record,
        ignored=(FOREIGN_COUNTERS,),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='deformable_detr_r50').",
    )


def _config(
    tensors: Tensors, source: str, architecture: DeformableDETRConfig | None, notes: list[str]
) -> DeformableDETRConfig:
    body: dict[str, Any] = {name.removeprefix(BACKBONE): tensors[name] for name in tensors if name.startswith(BACKBONE)}
    seen = {name: value for name, value in resnet_seen(body, source).items() if name != "num_classes"}
    levels, width = map(int, tensors["model.level_embed"].shape)
    base, two_stage = architecture or DeformableDETRConfig(), "model.enc_output.weight" in tensors
    if architecture is None:
        larger = "dc5" in source.lower()
        kept = "kept at twice the usual size, as its name says" if larger else "of the usual size"
        notes.append(
            f"The file does not tell the number of heads, {_HEADS} here, and whether its last map is larger: {kept}."
        )
        base = replace(base, backbone=replace(base.backbone, dilated=int(larger)))
    asked = {part: _places(tensors, name, levels) for part, name in (("encoder", "self_attn"), ("decoder", "encoder_attn"))}
    if width % base.heads or any(places % base.heads for places in asked.values()):
        raise CheckpointError(
            f"How many heads share {width} channels cannot be seen from {source}. Name a configuration: "
            "load_model(…, architecture=DeformableDETRConfig(…))."
        )
    queries = base.queries if two_stage else int(tensors["model.query_position_embeddings.weight"].shape[0])
    return replace(
        base,
        channels=seen["channels"],
        num_classes=int(tensors["class_embed.0.weight"].shape[0]),
        backbone=ResNetConfig(**seen, norm="frozen", dilated=base.backbone.dilated),
        queries=queries,
        width=width,
        levels=levels,
        encoder_points=asked["encoder"] // base.heads or base.encoder_points,
        decoder_points=asked["decoder"] // base.heads,
        encoder_depth=_depth(tensors, "encoder"),
        decoder_depth=_depth(tensors, "decoder"),
        mlp_width=int(tensors[f"{_BLOCK}.fc1.weight"].shape[0]),
        refine=two_stage or base.refine,
        two_stage=two_stage,
    )


def _places(tensors: Tensors, attention: str, levels: int) -> int:
    """Places that all heads of a token look at on each map; 0 where there is no such attention."""
    part = "encoder" if attention == "self_attn" else "decoder"
    name = f"model.{part}.layers.0.{attention}.attention_weights.bias"
    return int(tensors[name].shape[0]) // levels if name in tensors else 0


def _depth(tensors: Tensors, part: str) -> int:
    pattern = re.compile(rf"model\.{part}\.layers\.(\d+)\.fc1\.weight")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.fullmatch(name))), default=-1)


LAYOUT = Layout(name="fundamentalvision", network=DeformableDETR, recognises=_recognises, plan=_plan)
