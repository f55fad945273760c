"""The layout of the authors' repository (facebookresearch/detr): {"model": state dictionary} of its class, as .pth.

A state dictionary shows every size but three: the number of heads, which is eight in every published network; whether the
last map is kept larger, which the name of a published file tells ("dc5"); and the size of pictures. They are taken from the
architecture that the user names, else so. A network that also makes masks has a detector within, and a layout of its own.

Their evaluation rounds the shorter side of a long picture before the longer follows from it; here, as in transformers, it
follows from the unrounded one, which can move it by two pixels. The layout is read; what transformers' holds is the same.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, resnet_rows, resnet_seen
from vitral.checkpoints.detr.transformers import catalogue_name, mask_rows
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.region.torchvision import COCO_NUMBERS
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.errors import CheckpointError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.detr import DETR, DETRConfig
from vitral.models.record import Record
from vitral.models.segmentation.detr_masks import MaskedDETR, MaskedDETRConfig

__all__ = ["LAYOUTS", "coco_numbers"]

_BODY = "backbone.0.body."
_HEADS = 8
_THIRDS = ("query", "key", "value")
# A layer that only a network that makes masks has.
_MASKS = "bbox_attention.q_linear.weight"

# COCO's kinds of stuff, by their numbers in its panoptic annotations (Kirillov et al. 2019, "Panoptic Segmentation").
_STUFF = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}
_PANOPTIC = 250


def _is_of_the_authors(files: Files) -> bool:
    names = {_spelled(name) for name in files.tensors}
    needed = {"query_embed.weight", "class_embed.weight", "input_proj.weight", "transformer.decoder.norm.weight"}
    return needed <= names and f"{_BODY}layer1.0.conv1.weight" in names


def _detects(files: Files) -> bool:
    return _is_of_the_authors(files) and _MASKS not in files.tensors


def _segments(files: Files) -> bool:
    return _is_of_the_authors(files) and _MASKS in files.tensors


def _spelled(name: str) -> str:
    """A name without what wrappers put before it; that of the residual network itself may have been taken for one."""
    return re.sub(r"^(backbone\.)?0\.body\.", _BODY, name.removeprefix("detr."))


def _plan_detector(files: Files, architecture: DETRConfig | None) -> Plan:
    return _plan(files, architecture, DETRConfig())


def _plan_segmenter(files: Files, architecture: MaskedDETRConfig | None) -> Plan:
    return _plan(files, architecture, MaskedDETRConfig())


def _plan(files: Files, architecture: DETRConfig | None, usual: DETRConfig) -> Plan:
    tensors = _in_thirds({_spelled(name): files.tensors[name] for name in files.tensors})
    notes: list[str] = []
    config, masks = _config(tensors, files.source, architecture, usual, notes), isinstance(usual, MaskedDETRConfig)
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
        build=MaskedDETR if masks else DETR,
        config=config,
        rows=[*(replace(row, ours=f"detr.{row.ours}") for row in _rows(config)), *mask_rows()] if masks else _rows(config),
        tensors=tensors,
        record=record,
        ignored=(FOREIGN_COUNTERS,),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='detr_r50_dc5').",
    )


def coco_numbers(num_classes: int) -> tuple[str, ...]:
    """The names of COCO's classes by its own numbers, for a network that has 91, or 250 with stuff; none for another.

    Numbers that were never used are called "N/A", as is 0.
    """
    if num_classes == _PANOPTIC:
        return (
            *coco_numbers(len(COCO_NUMBERS)),
            *(_STUFF.get(number, "N/A") for number in range(len(COCO_NUMBERS), _PANOPTIC)),
        )
    return ("N/A", *COCO_NUMBERS[1:]) if num_classes == len(COCO_NUMBERS) else ()


def _config(
    tensors: Tensors, source: str, architecture: DETRConfig | None, usual: DETRConfig, notes: list[str]
) -> DETRConfig:
    body: Tensors = {name.removeprefix(_BODY): tensors[name] for name in tensors if name.startswith(_BODY)}
    seen = {name: value for name, value in resnet_seen(body, source).items() if name != "num_classes"}
    queries, width = tensors["query_embed.weight"].shape
    base = architecture or usual
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


LAYOUTS: tuple[Layout, ...] = (
    Layout(name="facebook", network=DETR, recognises=_detects, plan=_plan_detector),
    Layout(name="facebook", network=MaskedDETR, recognises=_segments, plan=_plan_segmenter),
)
"""The detector's layout, and that of a network that also makes masks."""
