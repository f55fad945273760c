"""The vision transformer in mmsegmentation's names (mmseg/models/backbones/vit.py), as part of a segmenter's file.

A file shows every size but two: the number of heads, which are 64 channels wide in every published network, and rows and
columns of the table of positions, of which only the product is seen. They are taken from the architecture that the user
names, else so. There is always a class token and a place for it, in files of networks that leave it out too.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.errors import CheckpointError
from vitral.models.backbones.vit import ViTConfig

__all__ = ["IGNORED", "block_rows", "is_there", "spelled", "vit_rows", "vit_seen"]

_HEAD = 64
_FIRST = "patch_embed.projection.weight"

IGNORED = (r"cls_token",)
"""Names that a network without a class token leaves out."""


def spelled(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors with the names of the transformer's as in a file of a transformer alone.

    What reads pickled files takes wrappers' prefixes off, "backbone." among them; in other files it is still there.
    """
    return {name.removeprefix("backbone."): tensors[name] for name in tensors}


def is_there(tensors: Tensors) -> bool:
    """Whether a file holds such a transformer."""
    names = {name.removeprefix("backbone.") for name in tensors}
    return {_FIRST, "layers.0.ln1.weight", "layers.0.attn.attn.in_proj_weight"} <= names


def vit_seen(
    tensors: Tensors,
    source: str,
    named: ViTConfig | None,
    image_size: tuple[int, int] | None,
    notes: list[str],
    *,
    class_token: bool = True,
) -> tuple[ViTConfig, tuple[int, int]]:
    """The transformer that a file holds, and the size of pictures it is made for.

    Args:
        tensors: in the spelling of `spelled`.
        source: the file, for messages.
        named: the transformer of the architecture that the user names.
        image_size: of that architecture.
        notes: guesses are added.
        class_token: whether the network uses the class token.

    Raises:
        CheckpointError: the number of heads, or rows and columns of the table, cannot be told.
    """
    patches = tensors[_FIRST]
    if patches.ndim != 4 or tensors["layers.0.ffn.layers.0.0.weight"].ndim != 2 or tensors["pos_embed"].ndim != 3:
        raise CheckpointError(f"{source} has parts of a vision transformer in unexpected dimensions.")
    width, channels, high, wide = (int(side) for side in patches.shape)
    if named is None and width % _HEAD:
        raise CheckpointError(
            f"How many heads share {width} channels cannot be seen from {source}. Name a configuration: "
            "load_model(…, architecture=SETRConfig(…))."
        )
    if named is None:
        notes.append(f"{width // _HEAD} heads, as heads of {_HEAD} channels are usual; the file does not say.")
    places = (re.match(r"layers\.(\d{1,4})\.", name) for name in tensors)
    rows = int(tensors["pos_embed"].shape[1]) - 1
    size = image_size
    if size is None or -(-size[0] // high) * -(-size[1] // wide) != rows:
        side = math.isqrt(rows)
        if side < 1 or side * side != rows:
            raise CheckpointError(
                f"How {rows} patches lie in rows and columns cannot be seen from {source}. Name a configuration of that "
                "image_size: load_model(…, architecture=SETRConfig(…))."
            )
        size = (side * high, side * wide)
    base = named or ViTConfig(heads=width // _HEAD, width=width, position_antialias=False)
    config = replace(
        base,
        image_size=(-(-size[0] // high) * high, -(-size[1] // wide) * wide),
        patch_size=(high, wide),
        channels=channels,
        width=width,
        depth=1 + max((int(place[1]) for place in places if place), default=-1),
        mlp_width=int(tensors["layers.0.ffn.layers.0.0.weight"].shape[0]),
        num_classes=0,
        class_token=class_token,
        prefix_positions=int(class_token),
        pool="class" if class_token else "mean",
        qkv_bias="layers.0.attn.attn.in_proj_bias" in tensors,
        final_norm="ln1.weight" in tensors,
    )
    return config, size


def vit_rows(ours: str, theirs: str, config: ViTConfig) -> list[Row]:
    """The table of the transformer.

    Args:
        ours: what stands before our names ("backbone.").
        theirs: what stands before theirs.
        config: of the transformer.
    """
    rows = renamed(f"{ours}patch.projection", f"{theirs}patch_embed.projection")
    if config.class_token:
        rows += [same(f"{ours}class_token", f"{theirs}cls_token"), same(f"{ours}position_table", f"{theirs}pos_embed")]
    else:
        rows += [_without_class(f"{ours}position_table", f"{theirs}pos_embed")]
    for index in range(config.depth):
        rows += block_rows(f"{ours}blocks.{index}", f"{theirs}layers.{index}", bias=config.qkv_bias)
    return rows + (renamed(f"{ours}norm", f"{theirs}ln1") if config.final_norm else [])


def block_rows(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """The table of one block, which mmsegmentation's Segmenter also has in its decoder.

    Args:
        ours: our block's name.
        theirs: their layer's.
        bias: whether queries, keys and values have one.
    """
    rows = renamed(f"{ours}.norm1", f"{theirs}.ln1")
    parts = ("weight", "bias") if bias else ("weight",)
    rows += [same(f"{ours}.attention.qkv.{part}", f"{theirs}.attn.attn.in_proj_{part}") for part in parts]
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attn.attn.out_proj")
    rows += renamed(f"{ours}.norm2", f"{theirs}.ln2")
    return (
        rows + renamed(f"{ours}.mlp.up", f"{theirs}.ffn.layers.0.0") + renamed(f"{ours}.mlp.down", f"{theirs}.ffn.layers.1")
    )


def _without_class(ours: str, theirs: str) -> Row:
    """A table of positions without the place of the class token, which is zero where it is written."""
    return Row(
        ours,
        (theirs,),
        lambda parts: parts[0][:, 1:],
        lambda table: [torch.cat([table.new_zeros(1, 1, table.shape[2]), table], dim=1)],
    )
