"""What timm's layout and the authors' share: the names of a block's parts, and how a configuration is seen from shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.errors import CheckpointError
from vitral.models.backbones.pvt import VARIANTS, PVTConfig

__all__ = ["Spelling", "seen", "table"]


@dataclass(frozen=True)
class Spelling:
    """Where a layout keeps the parts of a stage; `{stage}` counts from 0, `{number}` from 1.

    Attributes:
        first: the embedding of the first stage.
        embedding: that of the others.
        blocks: the blocks' common prefix.
        norm: the norm at the end.
        neighbours: the convolution of the feed-forward network, in a block.
    """

    first: str
    embedding: str
    blocks: str
    norm: str
    neighbours: str

    def at(self, part: str, stage: int) -> str:
        """Where a part of a stage is kept."""
        pattern = self.first if part == "embedding" and stage == 0 else str(getattr(self, part))
        return pattern.format(stage=stage, number=stage + 1)


def table(config: PVTConfig, spelling: Spelling) -> list[Row]:
    """The name table."""
    rows: list[Row] = []
    for stage, depth in enumerate(config.depths):
        ours, theirs = f"stages.{stage}", spelling.at("embedding", stage)
        rows += renamed(f"{ours}.embedding.projection", f"{theirs}.proj") + renamed(
            f"{ours}.embedding.norm", f"{theirs}.norm"
        )
        for index in range(depth):
            rows += _block(f"{ours}.blocks.{index}", f"{spelling.at('blocks', stage)}{index}", config, stage, spelling)
        rows += renamed(f"{ours}.norm", spelling.at("norm", stage))
    return rows + (renamed("head", "head") if config.num_classes else [])


def _block(ours: str, theirs: str, config: PVTConfig, stage: int, spelling: Spelling) -> list[Row]:
    rows = renamed(f"{ours}.norm1", f"{theirs}.norm1") + renamed(f"{ours}.norm2", f"{theirs}.norm2")
    rows += renamed(f"{ours}.attention.query", f"{theirs}.attn.q", bias=config.qkv_bias)
    rows += renamed(f"{ours}.attention.key_value", f"{theirs}.attn.kv", bias=config.qkv_bias)
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attn.proj")
    if config.linear or config.reductions[stage] > 1:
        rows += renamed(f"{ours}.attention.reduce", f"{theirs}.attn.sr")
        rows += renamed(f"{ours}.attention.norm", f"{theirs}.attn.norm")
    rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    return rows + renamed(f"{ours}.mlp.neighbours", f"{theirs}.{spelling.neighbours}")


def seen(
    tensors: Tensors,
    spelling: Spelling,
    architecture: PVTConfig | None,
    notes: list[str],
    heads: tuple[int, ...] | None = None,
) -> PVTConfig:
    """The configuration that the shapes show; heads, epsilons and the size are as named, or as usual.

    Args:
        tensors: the checkpoint.
        spelling: of its names.
        architecture: the one that was named, by the user or by the file.
        notes: what had to be guessed is added here.
        heads: by stage, if the file tells.

    Raises:
        CheckpointError: the tensors are those of another network, or of none.
    """
    stages = 0
    while spelling.at("embedding", stages) + ".proj.weight" in tensors:
        stages += 1
    depths = tuple(_depth(tensors, spelling.at("blocks", stage)) for stage in range(stages))
    if 0 in depths:
        raise CheckpointError(f"The stages of the file have {depths} blocks; each should have one at least.")
    firsts = [f"{spelling.at('blocks', stage)}0" for stage in range(stages)]
    widths = tuple(_shape(tensors, spelling.at("embedding", stage) + ".proj.weight", 4)[0] for stage in range(stages))
    hidden = tuple(_shape(tensors, f"{first}.mlp.fc1.weight", 2)[0] for first in firsts)
    if any(many % width for many, width in zip(hidden, widths, strict=True)):
        raise CheckpointError(
            f"The feed-forward networks have {hidden} hidden channels, no multiples of the widths {widths}."
        )
    sides = tuple(
        _shape(tensors, f"{first}.attn.sr.weight", 4)[-1] if f"{first}.attn.sr.weight" in tensors else 1 for first in firsts
    )
    linear = f"{firsts[-1]}.attn.sr.weight" in tensors and sides[-1] == 1
    same = next((config for config in VARIANTS.values() if (config.widths, config.linear) == (widths, linear)), None)
    usual = architecture or same or PVTConfig()
    if heads is None and architecture is None and same is None:
        heads = _guessed(widths, notes)
    return replace(
        usual,
        channels=_shape(tensors, spelling.at("embedding", 0) + ".proj.weight", 4)[1],
        num_classes=_shape(tensors, "head.weight", 2)[0] if "head.weight" in tensors else 0,
        widths=widths,
        depths=depths,
        heads=heads or usual.heads,
        reductions=usual.reductions if linear and len(usual.reductions) == stages else sides,
        mlp_ratios=tuple(many // width for many, width in zip(hidden, widths, strict=True)),
        linear=linear,
        qkv_bias=f"{firsts[0]}.attn.q.bias" in tensors,
    )


def _guessed(widths: tuple[int, ...], notes: list[str]) -> tuple[int, ...]:
    """The heads of all published networks, with a note."""
    heads = VARIANTS["pvt_v2_b2"].heads
    if len(widths) != len(heads) or any(width % many for width, many in zip(widths, heads, strict=True)):
        raise CheckpointError(
            f"The number of attention heads cannot be seen from stages of {widths} channels. Name the architecture: "
            "load_model(…, architecture='pvt_v2_b2'), or pass a PVTConfig."
        )
    notes.append(f"{heads} heads in the stages were assumed, as in every published PVTv2; the file does not say.")
    return heads


def _depth(tensors: Tensors, prefix: str) -> int:
    numbers = {match[1] for name in tensors if (match := re.match(re.escape(prefix) + r"(\d{1,4})\.", name))}
    return len(numbers)


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != dimensions:
        came = "is missing" if name not in tensors else f"has {tensors[name].ndim} dimensions"
        raise CheckpointError(f"{name} {came}; one of {dimensions} dimensions was expected.")
    return tuple(int(side) for side in tensors[name].shape)
