"""The layout of the authors' repository (SHI-Labs/Compact-Transformers): state dictionaries of its CCT and CVT, as .pth.

A state dictionary shows every size but three: the number of heads, the strides, and the picture's size where the positions
do not tell it. They are taken from the architecture that the user names; else heads have 64 channels and strides follow the
kernel, as in every network of the repository. What we write has a config.json beside it with the arguments of its classes,
so that reading it back takes no guess.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels, variant_name
from vitral.checkpoints.preprocessing import evaluation, from_timm, to_timm
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError, UsageError
from vitral.layers.position import sinusoids_1d
from vitral.models.backbones.cct import CCT, VARIANTS, CCTConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_TYPE = "compact-transformer"
_FIRST = "tokenizer.conv_layers.0.0.weight"
_POSITIONS = "classifier.positional_emb"
_HEAD_WIDTH = 64
_CONV_CHANNELS = 64
# Mean and deviation by number of classes, for pictures of 32 × 32 and of 102 kinds of flowers (configs/datasets/*.yml).
_STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    102: ((0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698)),
}


def _recognises(files: Files) -> bool:
    return _FIRST in files.tensors and any(name.startswith("classifier.blocks.") for name in files.tensors)


def _plan(files: Files, architecture: CCTConfig | None) -> Plan:
    told = files.config if files.config.get("model_type") == _TYPE else {}
    if "classifier.class_emb" in files.tensors:
        raise CheckpointError(
            f"{files.source} reads a class token, as ViT-Lite does; of this repository CCT and CVT are read, which pool."
        )
    notes: list[str] = []
    config = _config(files.tensors, told, architecture, notes)
    # Sinusoids lie in the file, but are computed here; _config has compared them.
    tensors = files.tensors
    if config.position == "sinusoidal_1d":
        tensors = {name: tensor for name, tensor in tensors.items() if name != _POSITIONS}
    record = Record(
        architecture=_name(config),
        layout="shi-labs",
        source=files.source,
        preprocessing=_preprocessing(config, told, notes),
        labels=tuple(map(str, told.get("label_names", ()))),
        licence=told.get("license", "apache-2.0"),
        notes=tuple(notes),
    )
    return Plan(
        build=CCT,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='cct_7_3x1_32').",
    )


def _config(tensors: Tensors, told: dict[str, Any], architecture: CCTConfig | None, notes: list[str]) -> CCTConfig:
    convolutions = [tensors[name].shape for name in _numbered(tensors, r"tokenizer\.conv_layers\.(\d+)\.0\.weight")]
    blocks = _numbered(tensors, r"classifier\.blocks\.(\d+)\.linear1\.weight")
    if not blocks:
        raise CheckpointError("The file has the tokenizer of a compact transformer but no whole block.")
    width, channels, kernel, _ = int(convolutions[-1][0]), *map(int, convolutions[0][1:])
    named = architecture or CCTConfig(stride=max(1, kernel // 2 - 1))
    table = tensors.get(_POSITIONS)
    config = replace(
        named,
        image_size=(kernel, kernel),  # until the positions have been counted
        channels=channels,
        tokens="patches" if "tokenizer.conv_layers.0.0.bias" in tensors else "convolutions",
        conv_channels=tuple(int(shape[0]) for shape in convolutions[:-1]),
        kernel=kernel,
        stride=int(told.get("stride", named.stride)),
        pool_kernel=int(told.get("pooling_kernel_size", named.pool_kernel)),
        pool_stride=int(told.get("pooling_stride", named.pool_stride)),
        width=width,
        depth=len(blocks),
        heads=_heads(width, told, architecture, notes),
        mlp_width=int(tensors[blocks[0]].shape[0]),
        num_classes=int(tensors["classifier.fc.weight"].shape[0]) if "classifier.fc.weight" in tensors else 0,
        position="none" if table is None else "sinusoidal_1d" if _sinusoidal(table) else "learned",
    )
    if architecture is not None and (
        (config.tokens, config.kernel, config.conv_channels) != (named.tokens, named.kernel, named.conv_channels)
    ):
        raise CheckpointError(
            f"The file's tokenizer has {len(convolutions)} convolutions of {kernel} × {kernel}, those of the named "
            f"architecture are {len(named.conv_channels) + 1} of {named.kernel} × {named.kernel}, or of other channels. "
            "Name another."
        )
    return replace(config, image_size=_image_size(config, table, told, architecture, notes))


def _numbered(tensors: Tensors, pattern: str) -> list[str]:
    """The names that a pattern with a number fits, in the order of their numbers."""
    found = [(int(match[1]), name) for name in tensors if (match := re.fullmatch(pattern, name))]
    return [name for _, name in sorted(found)]


def _heads(width: int, told: dict[str, Any], architecture: CCTConfig | None, notes: list[str]) -> int:
    if told.get("num_heads") or architecture:
        return int(told.get("num_heads") or (architecture.heads if architecture else 0))
    if width % _HEAD_WIDTH:
        raise CheckpointError(
            f"The number of attention heads cannot be seen from a state dictionary of width {width}; published networks "
            "are 128 (2 heads), 256 (4) and 384 (6) wide. Name the architecture: load_model(…, "
            "architecture='cct_7_3x1_32'), or pass a CCTConfig."
        )
    if width not in {config.width for config in VARIANTS.values()}:
        notes.append(f"{width // _HEAD_WIDTH} heads were assumed; the file does not say.")
    return width // _HEAD_WIDTH


def _sinusoidal(table: torch.Tensor) -> bool:
    """Whether a table holds the sinusoids, which were never trained."""
    if table.ndim != 3 or table.shape[2] % 2:
        return False
    return torch.allclose(table[0].float(), sinusoids_1d(table.shape[1], table.shape[2]), atol=1e-4)


def _image_size(
    config: CCTConfig,
    table: torch.Tensor | None,
    told: dict[str, Any],
    architecture: CCTConfig | None,
    notes: list[str],
) -> tuple[int, int]:
    """The size that the positions are for: named, or a square of as many cells as there are positions."""
    named = (int(told["img_size"]),) * 2 if "img_size" in told else architecture.image_size if architecture else None
    rows = None if table is None else int(table.shape[1])
    if named is not None and rows in (None, math.prod(config.grid_of(named))):
        return named
    if "img_size" in told:
        raise CheckpointError(
            f"config.json tells of pictures of {named}, but the file's {rows} positions are for others. One of the two was "
            "changed; put back what belongs together."
        )
    if rows is None:
        side = 32 if config.kernel < 7 else 224
        notes.append(f"The file has no positions and so tells no size; pictures of {side} × {side} were assumed.")
    else:
        side = math.isqrt(rows) * config.patch_size[0]
        if math.isqrt(rows) ** 2 != rows:
            raise CheckpointError(
                f"The file has {rows} positions, which make no square, so the picture's size cannot be seen from it. Pass a "
                "CCTConfig with that image_size as architecture."
            )
    return side, side


def _name(config: CCTConfig) -> str:
    """The catalogue's name for a network, whatever its number of classes; else its sizes."""
    name = variant_name(config, VARIANTS, ("num_classes", "position"))
    return name or f"{config.width} wide, {config.depth} deep"


def _preprocessing(config: CCTConfig, told: dict[str, Any], notes: list[str]) -> Preprocessing | None:
    """As the config.json states it, else as the repository's configs do: by the data set that the sizes give away."""
    if "pretrained_cfg" in told:
        return from_timm(told["pretrained_cfg"], config.image_size)
    if config.channels != 3:
        return None
    side = min(config.image_size)
    if side >= 224 and config.num_classes not in _STATISTICS:
        return evaluation(config.image_size, resize=math.floor(side / 0.9))
    mean, std = _STATISTICS.get(config.num_classes, _STATISTICS[10])
    sets = {10: "CIFAR-10", 100: "CIFAR-100", 102: "Flowers-102"}
    notes.append(f"Pictures are prepared as those of {sets.get(config.num_classes, 'CIFAR-10')}; the file does not say.")
    return replace(evaluation(config.image_size, resize=side), mean=mean, std=std)


def _rows(config: CCTConfig) -> list[Row]:
    if config.tokens == "patches":
        rows = renamed("tokenizer.projection", "tokenizer.conv_layers.0.0")
    else:
        layers = range(len(config.conv_channels) + 1)
        rows = [same(f"tokenizer.convolutions.{i}.weight", f"tokenizer.conv_layers.{i}.0.weight") for i in layers]
    if config.position == "learned":
        rows += [same("position_table", _POSITIONS)]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"classifier.blocks.{index}"
        rows += renamed(f"{ours}.norm1", f"{theirs}.pre_norm") + renamed(f"{ours}.norm2", f"{theirs}.norm1")
        rows += renamed(f"{ours}.attention.qkv", f"{theirs}.self_attn.qkv", bias=False)
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.self_attn.proj")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.linear1") + renamed(f"{ours}.mlp.down", f"{theirs}.linear2")
    rows += renamed("norm", "classifier.norm") + renamed("pool.score", "classifier.attention_pool")
    return rows + (renamed("head", "classifier.fc") if config.num_classes else [])


def _compose(model: nn.Module) -> Written:
    compact = cast(CCT, model)
    config, record = compact.config, compact.record
    _refuse_unstatable(config)
    described: dict[str, Any] = {
        "model_type": _TYPE,
        "class": "CVT" if config.tokens == "patches" else "CCT",
        "img_size": config.image_size[0],
        "embedding_dim": config.width,
        "n_input_channels": config.channels,
        "kernel_size": config.kernel,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_width / config.width,
        "num_classes": config.num_classes,
        "positional_embedding": {"learned": "learnable", "sinusoidal_1d": "sine", "none": "none"}[config.position],
    }
    if config.tokens == "convolutions":
        described |= {
            "n_conv_layers": len(config.conv_channels) + 1,
            "stride": config.stride,
            "padding": config.kernel // 2,
            "pooling_kernel_size": config.pool_kernel,
            "pooling_stride": config.pool_stride,
            "pooling_padding": config.pool_kernel // 2,
        }
    if record.preprocessing:
        described["pretrained_cfg"] = to_timm(record.preprocessing, config.channels)
    if record.licence:
        described["license"] = record.licence
    if record.labels:
        described["label_names"] = list(record.labels)
    compact = _with_table(compact)
    return Written(model=compact, rows=_rows(compact.config), documents={"config.json": described})


def _refuse_unstatable(config: CCTConfig) -> None:
    """Refuse what the repository's classes have no argument for."""
    wrong = [
        (config.num_classes == 0, "a network without classes"),
        (config.image_size[0] != config.image_size[1], f"pictures of {config.image_size}, which are no squares"),
        (set(config.conv_channels) - {_CONV_CHANNELS}, f"convolutions of {config.conv_channels} channels before the last"),
    ]
    for said, what in wrong:
        if said:
            raise UsageError(f"The layout shi-labs cannot state {what}. Use layout='vitral'.")


@torch.no_grad()
def _with_table(model: CCT) -> CCT:
    """A network that computes the same, whose sinusoids lie in its position table, where the layout has them."""
    _, positions = model.positions(model.config.grid)
    if model.config.position != "sinusoidal_1d" or positions is None:
        return model
    changed = copy.deepcopy(model)
    changed.position_table = nn.Parameter(positions.to(model.pool.score.weight))
    changed.config = replace(model.config, position="learned")
    return changed


LAYOUT = Layout(name="shi-labs", network=CCT, recognises=_recognises, plan=_plan, compose=_compose)
