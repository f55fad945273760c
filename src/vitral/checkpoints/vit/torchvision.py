"""torchvision's layout: the state dictionaries of its vit_b_16, vit_b_32, vit_l_16, vit_l_32 and vit_h_14."""

from __future__ import annotations

import math
import re

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

# torchvision builds B with heads of 64 channels, L too, and H with 16 heads.
_HEADS = {768: 12, 1024: 16, 1280: 16}


def _recognises(files: Files) -> bool:
    return "conv_proj.weight" in files.tensors and "encoder.pos_embedding" in files.tensors


def _plan(files: Files, architecture: ViTConfig | None) -> Plan:
    # Files of before torchvision 0.13 call the feed-forward layers linear_1 and linear_2.
    spelt = {re.sub(r"mlp\.linear_(\d)", lambda m: f"mlp.{(0, 3)[int(m[1]) - 1]}", name): name for name in files.tensors}
    tensors = {name: files.tensors[original] for name, original in spelt.items()}
    config = _config(tensors, architecture)
    record = Record(
        architecture=f"{config.width} wide, {config.depth} deep",
        layout="torchvision",
        source=files.source,
        preprocessing=_preprocessing(config),
        notes=()
        if architecture or config.width in _HEADS
        else (f"{config.heads} heads were assumed; the file does not say.",),
        licence="bsd-3-clause",
    )
    return Plan(
        build=ViT,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='vit_b16').",
    )


def _preprocessing(config: ViTConfig) -> Preprocessing:
    """As torchvision's weights state it: 256 → 224 bilinear for those from scratch, no margin and bicubic above."""
    side = config.image_size[0]
    if side == 224:
        return evaluation(config.image_size, resize=256, interpolation="bilinear")
    return evaluation(config.image_size, resize=side, interpolation="bicubic")


def _config(tensors: Tensors, architecture: ViTConfig | None) -> ViTConfig:
    width, channels, *patch = (int(side) for side in tensors["conv_proj.weight"].shape)
    numbers = [int(m[1]) for name in tensors if (m := re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", name))]
    if not numbers:
        raise CheckpointError("The file has torchvision's conv_proj but no encoder.layers; it is no whole transformer.")
    side = math.isqrt(int(tensors["encoder.pos_embedding"].shape[1]) - 1)
    up = "encoder.layers.encoder_layer_0.mlp.0.weight"
    if architecture is None and width not in _HEADS and width % 64:
        raise CheckpointError(
            f"The number of attention heads cannot be seen from a state dictionary of width {width}. Name the architecture: "
            "load_model(…, architecture='vit_b16'), or pass a ViTConfig."
        )
    return ViTConfig(
        image_size=(side * patch[0], side * patch[1]),
        patch_size=(patch[0], patch[1]),
        channels=channels,
        width=width,
        depth=1 + max(numbers),
        heads=architecture.heads if architecture else _HEADS.get(width, max(1, width // 64)),
        mlp_width=int(tensors[up].shape[0]) if up in tensors else 4 * width,
        num_classes=int(tensors["heads.head.weight"].shape[0]) if "heads.head.weight" in tensors else 0,
        representation=int(tensors["heads.pre_logits.weight"].shape[0]) if "heads.pre_logits.weight" in tensors else None,
    )


def _rows(config: ViTConfig) -> list[Row]:
    rows = [same("class_token", "class_token"), same("position_table", "encoder.pos_embedding")]
    rows += renamed("patch.projection", "conv_proj") + renamed("norm", "encoder.ln")
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"encoder.layers.encoder_layer_{index}"
        rows += renamed(f"{ours}.norm1", f"{theirs}.ln_1") + renamed(f"{ours}.norm2", f"{theirs}.ln_2")
        rows += [same(f"{ours}.attention.qkv.weight", f"{theirs}.self_attention.in_proj_weight")]
        rows += [same(f"{ours}.attention.qkv.bias", f"{theirs}.self_attention.in_proj_bias")]
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.self_attention.out_proj")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.0") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.3")
    if config.representation:
        rows += renamed("representation.0", "heads.pre_logits")
    return rows + (renamed("head", "heads.head") if config.num_classes else [])


LAYOUT = Layout(name="torchvision", network=ViT, recognises=_recognises, plan=_plan)
