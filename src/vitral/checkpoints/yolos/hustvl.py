"""The layout of the authors' repository (hustvl/YOLOS): {"model": state dictionary} of its class, as .pth.

A state dictionary shows every size but two: the number of heads, and rows and columns of the tables of positions, of which
only the product is seen. They are taken from the architecture that the user names, else from the published network of the
same width, depth and product. The layout is read; what transformers' holds is the same.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vitral.checkpoints.detr.facebook import coco_numbers
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import detection
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.checkpoints.yolos.names import catalogue_name, middle_positions, perceptron, position_table
from vitral.errors import CheckpointError
from vitral.models.detection.yolos import VARIANTS, YOLOS, YOLOSConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_SHORTER, _LONGER, _TINY = 800, 1333, 512  # pixels they were evaluated at, the smallest network at fewer


def _recognises(files: Files) -> bool:
    names = {name.removeprefix("backbone.") for name in files.tensors}
    return {"det_token", "pos_embed", "class_embed.layers.2.weight", "bbox_embed.layers.2.weight"} <= names


def _plan(files: Files, architecture: YOLOSConfig | None) -> Plan:
    tensors: Tensors = {name.removeprefix("backbone."): files.tensors[name] for name in files.tensors}
    config = _config(tensors, files.source, architecture)
    name = catalogue_name(config)
    shorter = _TINY if name == "yolos_ti" else _SHORTER
    prepared = detection(shorter, shorter * _LONGER // _SHORTER, multiple=16)
    record = Record(
        architecture=name or "yolos",
        layout="hustvl",
        source=files.source,
        preprocessing=prepared if config.channels == 3 else None,
        labels=coco_numbers(config.num_classes),
        licence="mit",
    )
    return Plan(
        build=YOLOS,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=record,
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='yolos_s').",
    )


def _config(tensors: Tensors, source: str, architecture: YOLOSConfig | None) -> YOLOSConfig:
    queries, width = tensors["det_token"].shape[1:]
    patches = int(tensors["pos_embed"].shape[1]) - 1 - queries
    places = (re.fullmatch(r"blocks\.(\d+)\.norm1\.weight", name) for name in tensors)
    depth = 1 + max((int(place[1]) for place in places if place), default=-1)
    base = architecture or next((one for one in VARIANTS.values() if (one.width, one.depth) == (width, depth)), None)
    if base is None:
        raise CheckpointError(
            f"How many heads share {width} channels cannot be seen from {source}. Name a configuration: "
            "load_model(…, architecture=YOLOSConfig(…))."
        )
    sizes = (base.image_size, *(one.image_size for one in VARIANTS.values()))
    patch = tensors["patch_embed.proj.weight"]
    seen = replace(
        base,
        patch_size=(int(patch.shape[2]), int(patch.shape[3])),
        channels=int(patch.shape[1]),
        num_classes=int(tensors["class_embed.layers.2.weight"].shape[0]) - 1,
        queries=int(queries),
        width=int(width),
        depth=depth,
        mlp_width=int(tensors["blocks.0.mlp.fc1.weight"].shape[0]),
        middle_positions="mid_pos_embed" in tensors,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
    )
    for size in sizes:
        rows, columns = seen.grid_of(size)
        if rows * columns == patches:
            return replace(seen, image_size=size)
    raise CheckpointError(
        f"How {patches} patches lie in rows and columns cannot be seen from {source}. Name a configuration of that "
        "image_size: load_model(…, architecture=YOLOSConfig(…))."
    )


def _rows(config: YOLOSConfig) -> list[Row]:
    rows = renamed("vit.patch.projection", "patch_embed.proj")
    rows += [same("vit.class_token", "cls_token"), same("vit.register_tokens", "det_token")]
    rows += [position_table("pos_embed", config)]
    rows += [middle_positions("mid_pos_embed", config)] if config.middle_positions else []
    for index in range(config.depth):
        ours, theirs = f"vit.blocks.{index}", f"blocks.{index}"
        rows += renamed(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", bias=config.qkv_bias)
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.attn.proj")
        rows += renamed(f"{ours}.norm1", f"{theirs}.norm1") + renamed(f"{ours}.norm2", f"{theirs}.norm2")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    rows += renamed("vit.norm", "norm")
    return rows + perceptron("head", "class_embed") + perceptron("box_head", "bbox_embed")


LAYOUT = Layout(name="hustvl", network=YOLOS, recognises=_recognises, plan=_plan)
