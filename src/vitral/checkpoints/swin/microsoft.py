"""The authors' layout (microsoft/Swin-Transformer): state dictionaries of its SwinTransformer and SwinTransformerV2.

A state dictionary shows nearly everything. Windows are seen from the tables of biases or, in version 2, from the buffers
beside them, and so is the window of a pre-training; the picture's size is seen from the masks of the shifted windows, else
the last stage has one window, as in every network of the repository. timm's layout is close to this one and shares its rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

from torch import Tensor

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError
from vitral.layers.position import Grid
from vitral.models.backbones.swin import VARIANTS, Swin, SwinConfig
from vitral.models.record import Record

__all__ = [
    "BUFFERS",
    "LAYOUT",
    "block_rows",
    "catalogue_name",
    "is_swin",
    "of_timm",
    "outer_rows",
    "query_and_value_biases",
    "ratio",
    "seen",
    "usual_preprocessing",
]

BUFFERS = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.attn_mask", r".*\.attn\.k_bias")
"""Names of what files hold beside the weights, and what can be computed."""

_FIRST = "layers.0.blocks.0.attn."


def is_swin(tensors: Tensors) -> bool:
    """Whether tensors have the names of the authors' classes, or of timm's."""
    embedding = tensors.get("patch_embed.proj.weight")
    biases = (f"{_FIRST}relative_position_bias_table", f"{_FIRST}cpb_mlp.0.weight")
    return embedding is not None and embedding.ndim == 4 and any(name in tensors for name in biases)


def of_timm(tensors: Tensors) -> bool:
    """Whether they are timm's, which merges tokens at the beginning of a stage rather than at the end."""
    merged_first = "layers.0.downsample.reduction.weight" not in tensors and "layers.1.blocks.0.norm1.weight" in tensors
    return "head.fc.weight" in tensors or merged_first


def _recognises(files: Files) -> bool:
    return is_swin(files.tensors) and not of_timm(files.tensors)


def _plan(files: Files, architecture: SwinConfig | None) -> Plan:
    tensors, notes = files.tensors, cast(list[str], [])
    config = _windowed(replace(seen(tensors), shift_rule="both_sides"), tensors, architecture)
    config = replace(config, image_size=_image_size(config, tensors, architecture, notes))
    if config.position == "learned":
        _check_positions(config, tensors)
    record = Record(
        architecture=catalogue_name(config),
        layout="microsoft",
        source=files.source,
        preprocessing=usual_preprocessing(config),
        licence="mit",
        notes=tuple(notes),
    )
    return Plan(
        build=Swin,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
        ignored=BUFFERS,
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='swin_ti').",
    )


def seen(tensors: Tensors) -> SwinConfig:
    """What the tensors of the authors' classes, or of timm's, show without a word from elsewhere.

    The windows of version 2 are not among it.
    """
    numbers = [match for name in tensors if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name))]
    depths = {int(match[1]): 0 for match in numbers}
    for match in numbers:
        depths[int(match[1])] = max(depths[int(match[1])], int(match[2]) + 1)
    if sorted(depths) != list(range(len(depths))) or not depths:
        raise CheckpointError(f"The file has blocks of the stages {sorted(depths)} of a Swin Transformer; some are missing.")
    first = {stage: f"layers.{stage}.blocks.0." for stage in sorted(depths)}
    second = f"{_FIRST}logit_scale" in tensors
    told = "attn.logit_scale" if second else "attn.relative_position_bias_table"
    whole = [f"{block}{name}" for block in first.values() for name in (told, "mlp.fc1.weight")]
    absent = next((name for name in whole if name not in tensors), None)
    if absent is not None:
        raise CheckpointError(f"The file has blocks of a Swin Transformer but no {absent}; it is no whole one.")
    width, channels, high, wide = (int(side) for side in tensors["patch_embed.proj.weight"].shape)
    if high != wide:
        raise CheckpointError(f"The patches of the file are {high} × {wide}; those of a Swin Transformer are square.")
    head = next((tensors[name] for name in ("head.weight", "head.fc.weight") if name in tensors), None)
    windows = [_window(tensors, stage) for stage in first]
    return SwinConfig(
        image_size=(high * 2 ** len(depths), high * 2 ** len(depths)),  # until the windows are known
        channels=channels,
        num_classes=0 if head is None else int(head.shape[0]),
        version=2 if second else 1,
        first_patch=high,
        widths=tuple(int(tensors[f"{block}norm1.weight"].shape[0]) for block in first.values()),
        depths=tuple(depths[stage] for stage in first),
        heads=tuple(int(tensors[f"{block}{told}"].shape[0 if second else 1]) for block in first.values()),
        windows=tuple((window or 1, window or 1) for window in windows),
        position="learned" if "absolute_pos_embed" in tensors else "none",
        mlp_ratio=ratio(int(tensors["layers.0.blocks.0.mlp.fc1.weight"].shape[0]), width),
        qkv_bias=f"{_FIRST}{'q_bias' if second else 'qkv.bias'}" in tensors,
    )


def ratio(hidden: int, width: int) -> float:
    """A ratio whose product with the width, rounded down, is the number of hidden channels."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)


def _window(tensors: Tensors, stage: int) -> int | None:
    """Side of a stage's windows; None where nothing shows it."""
    block = f"layers.{stage}.blocks.0.attn."
    if f"{block}relative_position_bias_table" in tensors:
        rows = int(tensors[f"{block}relative_position_bias_table"].shape[0])
        side = (math.isqrt(rows) + 1) // 2
        return side if (2 * side - 1) ** 2 == rows else None
    if f"{block}relative_coords_table" in tensors:
        return (int(tensors[f"{block}relative_coords_table"].shape[1]) + 1) // 2
    return None


def _windowed(config: SwinConfig, tensors: Tensors, architecture: SwinConfig | None) -> SwinConfig:
    """The configuration with the windows of version 2, and those of its pre-training."""
    sides = [_window(tensors, stage) for stage in range(len(config.widths))]
    if None in sides:
        if architecture is None or config.version == 1 or len(architecture.widths) != len(config.widths):
            raise CheckpointError(
                "The sides of the windows cannot be seen from the file. Name the architecture: load_model(…, "
                "architecture='swinv2_ti_w8_256'), or pass a SwinConfig."
            )
        return replace(config, windows=architecture.windows, pretrained_windows=architecture.pretrained_windows)
    if config.version == 1:
        return config
    tables = [tensors.get(f"layers.{stage}.blocks.0.attn.relative_coords_table") for stage in range(len(config.widths))]
    before = tuple(_pretrained(window, table) for window, table in zip(config.windows, tables, strict=True))
    return replace(config, pretrained_windows=None if before == config.windows else before)


def _pretrained(window: Grid, table: Tensor | None) -> Grid:
    """The window of the pre-training: the side at which offsets on their logarithmic scale reach 1."""
    if table is None or window[0] == 1:
        return window
    furthest = (8 ** float(table[0, -1, -1, 0]) - 1) / 8
    side = round((window[0] - 1) / furthest) + 1 if furthest > 0 else window[0]
    return side, side


def _image_size(config: SwinConfig, tensors: Tensors, architecture: SwinConfig | None, notes: list[str]) -> tuple[int, int]:
    """The size that the masks are for, or the named one, or that of the positions, or of one window in the last stage."""
    stages = range(len(config.widths))
    masks = {stage: tensors[name] for stage in stages if (name := f"layers.{stage}.blocks.1.attn_mask") in tensors}
    for stage, mask in masks.items():
        across = math.isqrt(int(mask.shape[0]))
        if across**2 == int(mask.shape[0]):
            side = across * config.windows[stage][0] * config.first_patch * 2**stage
            return side, side
    if architecture is not None:
        return architecture.image_size
    if config.position == "learned":
        side = math.isqrt(int(tensors["absolute_pos_embed"].shape[1])) * config.first_patch
        return side, side
    side = config.windows[-1][0] * config.stride
    notes.append(f"Pictures of {side} × {side} pixels were assumed, for which the last stage is one window.")
    return side, side


def _check_positions(config: SwinConfig, tensors: Tensors) -> None:
    rows, (high, wide) = int(tensors["absolute_pos_embed"].shape[1]), config.maps_of(config.image_size)[0]
    if rows != high * wide or config.image_size[0] % config.stride or config.image_size[1] % config.stride:
        raise CheckpointError(
            f"The file has {rows} absolute positions; pictures of {config.image_size} need others, or have sides that are "
            f"no multiples of {config.stride}. Pass a SwinConfig with their image_size as architecture."
        )


def usual_preprocessing(config: SwinConfig) -> Preprocessing | None:
    """As the authors evaluate: a margin of an eighth around the cut, and none from 384 pixels on."""
    if config.channels != 3:
        return None
    side = min(config.image_size)
    return evaluation(config.image_size, resize=None if side >= 384 else int(256 / 224 * side))


def catalogue_name(config: SwinConfig) -> str:
    """The catalogue's name for a network, whatever its classes and its way with other pictures; else its sizes."""
    own = ("num_classes", "drop_path", "shift_rule", "shift_first", "shifts", "rest")
    for name, variant in VARIANTS.items():
        if replace(config, **{field: getattr(variant, field) for field in own}) == variant:
            return name
    return f"Swin {config.version}, {config.widths[0]} wide, {'-'.join(map(str, config.depths))} deep"


def block_rows(
    config: SwinConfig, theirs: Callable[[int, int], str], mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
) -> list[Row]:
    """The rows of all blocks, as the authors, timm and torchvision name what is in one.

    Args:
        config: the network.
        theirs: what a block is called, from its stage and its place in it.
        mlp: what the layers of its feed-forward network are called.
    """
    rows: list[Row] = []
    for stage, depth in enumerate(config.depths):
        for place in range(depth):
            block, named = f"stages.{stage}.blocks.{place}", theirs(stage, place)
            rows += renamed(f"{block}.norm1", f"{named}.norm1") + renamed(f"{block}.norm2", f"{named}.norm2")
            rows += renamed(f"{block}.attention.projection", f"{named}.attn.proj")
            rows += renamed(f"{block}.mlp.up", f"{named}.{mlp[0]}") + renamed(f"{block}.mlp.down", f"{named}.{mlp[1]}")
            first = config.version == 1
            rows += renamed(f"{block}.attention.qkv", f"{named}.attn.qkv", bias=config.qkv_bias and first)
            if first:
                rows += [same(f"{block}.attention.relative.table", f"{named}.attn.relative_position_bias_table")]
            else:
                rows += [same(f"{block}.attention.log_scale", f"{named}.attn.logit_scale")]
                rows += renamed(f"{block}.attention.relative.up", f"{named}.attn.cpb_mlp.0")
                rows += renamed(f"{block}.attention.relative.down", f"{named}.attn.cpb_mlp.2", bias=False)
    return rows


def outer_rows(config: SwinConfig, *, merged: Literal["first", "last"], head: str) -> list[Row]:
    """The rows of everything but the blocks.

    Args:
        config: the network.
        merged: whether tokens are merged first in a stage (timm), or last in the one before (the authors).
        head: what the classifier is called.
    """
    rows = renamed("patch.projection", "patch_embed.proj") + renamed("stem_norm", "patch_embed.norm")
    rows += [same("position_table", "absolute_pos_embed")] if config.position == "learned" else []
    for stage in range(1, len(config.widths)):
        theirs = f"layers.{stage if merged == 'first' else stage - 1}.downsample"
        rows += renamed(f"stages.{stage}.merging.norm", f"{theirs}.norm")
        rows += renamed(f"stages.{stage}.merging.projection", f"{theirs}.reduction", bias=False)
    return rows + renamed("norm", "norm") + (renamed("head", head) if config.num_classes else [])


def query_and_value_biases(config: SwinConfig) -> list[Row]:
    """The rows of version 2's biases, which lie apart in the authors' files and in timm's."""
    if config.version == 1 or not config.qkv_bias:
        return []
    places = [(stage, place) for stage, depth in enumerate(config.depths) for place in range(depth)]
    return [
        same(f"stages.{stage}.blocks.{place}.attention.{part}_bias", f"layers.{stage}.blocks.{place}.attn.{part[0]}_bias")
        for stage, place in places
        for part in ("query", "value")
    ]


def _rows(config: SwinConfig) -> list[Row]:
    rows = block_rows(config, lambda stage, place: f"layers.{stage}.blocks.{place}")
    return rows + query_and_value_biases(config) + outer_rows(config, merged="last", head="head")


LAYOUT = Layout(name="microsoft", network=Swin, recognises=_recognises, plan=_plan)
