"""The layout of the authors' repository (github.com/lyuwenyu/RT-DETR, Apache 2.0): bare state dictionaries, no config.json.

What shapes do not show is as in all published networks: heads of 32 channels, bilinear places, norms of the backbone that
stay as they are. Name the architecture (`rtdetr_r50_m`, `rtdetrv2_r18_dsp`) where it is otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.convolutional.names import counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.region.torchvision import COCO_NUMBERS
from vitral.checkpoints.rtdetr.transformers import architecture_of, prepared, rows
from vitral.checkpoints.table import Tensors
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.denoising import Noise
from vitral.models.detection.hybrid_encoder import HybridEncoderConfig
from vitral.models.detection.rtdetr import RTDETR, RTDETRConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_HEAD = 32  # channels of a head in every published network; encoders of 384 channels have 8 heads of 48
_ENCODER_HEADS = 8
_COCO = tuple(name for name in COCO_NUMBERS if name not in ("N/A", "__background__"))
_GIVEN = "The file names no classes; as there are 80, COCO's names are given."

# Their names → transformers', in whose spelling the table is written; the first that fits counts for a part of a name.
_SPELLINGS = (
    *(
        (rf"^(backbone\.)?conv1\.conv1_{place + 1}\.{part}\.", f"model.backbone.model.embedder.embedder.{place}.{theirs}.")
        for place in range(3)
        for part, theirs in (("conv", "convolution"), ("norm", "normalization"))
    ),
    (r"^(backbone\.)?res_layers\.(\d+)\.blocks\.(\d+)\.", r"model.backbone.model.encoder.stages.\2.layers.\3."),
    *((rf"(?<=\.)branch2{letter}\.", f"layer.{place}.") for place, letter in enumerate("abc")),
    (r"(?<=\.)short\.conv\.conv\.", "shortcut.1.convolution."),
    (r"(?<=\.)short\.conv\.norm\.", "shortcut.1.normalization."),
    (r"(?<=\.)short\.conv\.", "shortcut.convolution."),
    (r"(?<=\.)short\.norm\.", "shortcut.normalization."),
    (r"(?<=\.layer\.\d\.)conv\.", "convolution."),
    (r"(?<=\.layer\.\d\.)norm\.", "normalization."),
    (r"^encoder\.input_proj\.(\d+)\.conv\.", r"model.encoder_input_proj.\1.0."),
    (r"^encoder\.input_proj\.(\d+)\.norm\.", r"model.encoder_input_proj.\1.1."),
    (r"^encoder\.input_proj\.", "model.encoder_input_proj."),
    (r"^encoder\.", "model.encoder."),
    (r"^decoder\.input_proj\.(\d+)\.conv\.", r"model.decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d+)\.norm\.", r"model.decoder_input_proj.\1.1."),
    (r"^decoder\.enc_output\.proj\.", "model.enc_output.0."),
    (r"^decoder\.enc_output\.norm\.", "model.enc_output.1."),
    (r"^decoder\.(enc_|denoising_class_embed)", r"model.\1"),
    (r"^decoder\.decoder\.", "model.decoder."),
    (r"^decoder\.query_pos_head\.", "model.decoder.query_pos_head."),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"(?<=\.)cross_attn\.", "encoder_attn."),
    (r"(?<=\.)linear([12])\.", r"fc\1."),
    (r"(?<=\.)norm1\.", "self_attn_layer_norm."),
    (r"^(model\.decoder\..*\.)norm2\.", r"\1encoder_attn_layer_norm."),
    (r"(?<=\.)norm[23]\.", "final_layer_norm."),
)
_CONSTANTS = r"decoder\.(anchors|valid_mask)|.*\.num_points_scale|(backbone\.)?(conv1|res_layers)\..*\.num_batches_tracked"


def _recognises(files: Files) -> bool:
    parts = ("decoder.dec_score_head.0.weight", "encoder.lateral_convs.0.conv.weight")
    return not files.config and all(part in files.tensors for part in parts)


def _plan(files: Files, named: RTDETRConfig | None) -> Plan:
    tensors = dict(_spelt(files.tensors))
    config = _config(tensors, named or RTDETRConfig())
    second = "decoder.decoder.layers.0.cross_attn.num_points_scale" in files.tensors
    record = Record(
        architecture=architecture_of(config, 1 + second),
        layout="lyuwenyu",
        source=files.source,
        preprocessing=prepared({}, config),
        labels=_COCO if config.num_classes == len(_COCO) else (),
        licence="apache-2.0",
        notes=(_GIVEN,) if config.num_classes == len(_COCO) else (),
    )
    table = rows(config)
    return Plan(
        build=RTDETR,
        config=config,
        rows=table,
        tensors=counted(tensors, table),
        record=record,
        advice="If the network has another evaluated_depth, sampling or number of heads, name its architecture.",
    )


def _spelt(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The tensors in transformers' spelling; what one matrix holds for queries, keys and values, apart."""
    for name in tensors:
        if re.fullmatch(_CONSTANTS, name):
            continue
        spelt = name
        for pattern, replacement in _SPELLINGS:
            spelt = re.sub(pattern, replacement, spelt)
        joint = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", spelt)
        if joint is None:
            yield spelt, tensors[name]
        else:
            for part, tensor in zip("qkv", tensors[name].chunk(3), strict=True):
                yield f"{joint[1]}{part}_proj.{joint[2]}", tensor


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many numbers stand at the place of (\\d+) in names that begin so."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _config(tensors: dict[str, Tensor], like: RTDETRConfig) -> RTDETRConfig:
    stages = "model.backbone.model.encoder.stages"
    bottleneck = f"{stages}.0.layers.0.layer.2.convolution.weight" in tensors
    last = f"layers.0.layer.{2 if bottleneck else 1}.convolution.weight"
    depths = tuple(
        _count(tensors, rf"model\.backbone\.model\.encoder\.stages\.{stage}\.layers\.(\d+)\.")
        for stage in range(_count(tensors, r"model\.backbone\.model\.encoder\.stages\.(\d+)\."))
    )
    stem = tensors["model.backbone.model.embedder.embedder.2.convolution.weight"]
    encoder = tensors["model.encoder.lateral_convs.0.conv.weight"].shape[0]
    block, decoder = "model.encoder.encoder.0.layers", "model.decoder.layers"
    classes, width = tensors["model.enc_score_head.weight"].shape
    levels = _count(tensors, r"model\.decoder_input_proj\.(\d+)\.")
    heads = like.heads if width == like.width else max(1, width // _HEAD)
    places = tensors[f"{decoder}.0.encoder_attn.attention_weights.bias"].shape[0] // heads
    uneven = sum(like.points) == places and len(like.points) == levels
    return replace(
        like,
        channels=int(tensors["model.backbone.model.embedder.embedder.0.convolution.weight"].shape[1]),
        num_classes=int(classes),
        backbone=ResNetConfig(
            block="bottleneck" if bottleneck else "basic",
            stem="deep",
            stem_width=int(stem.shape[0]),
            stage_channels=tuple(int(tensors[f"{stages}.{stage}.{last}"].shape[0]) for stage in range(len(depths))),
            depths=depths,
            norm=like.backbone.norm,
            pooled=True,
            projected=True,
        ),
        encoder=HybridEncoderConfig(
            width=int(encoder),
            heads=like.encoder.heads if encoder % like.encoder.heads == 0 else _ENCODER_HEADS,
            hidden=int(tensors[f"{block}.0.fc1.weight"].shape[0]) if f"{block}.0.fc1.weight" in tensors else 1,
            depth=_count(tensors, r"model\.encoder\.encoder\.0\.layers\.(\d+)\."),
            expansion=tensors["model.encoder.fpn_blocks.0.conv1.conv.weight"].shape[0] / encoder,
            fusion_depth=_count(tensors, r"model\.encoder\.fpn_blocks\.0\.bottlenecks\.(\d+)\."),
        ),
        width=int(width),
        heads=heads,
        hidden=int(tensors[f"{decoder}.0.fc1.weight"].shape[0]),
        decoder_depth=_count(tensors, r"model\.decoder\.layers\.(\d+)\."),
        points=like.points if uneven else (places // levels,) * levels,
        noise=like.noise if "model.denoising_class_embed.weight" in tensors else Noise(queries=0),
    )


LAYOUT = Layout(name="lyuwenyu", network=RTDETR, recognises=_recognises, plan=_plan)
