"""The original layout: npz files of google-research/vision_transformer, and of its successor big_vision.

Flax keeps matrices as (in, out), splits heads into their own dimension, and numbers layers by kind; big_vision adds the
prefix params/ and attention pooling (MAPHead_0). Heads are seen from the shapes. GELU is computed
exactly, as timm and transformers do; the original code may use its tanh approximation, as flax does unless told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, Tensors, permuted, same
from vitral.errors import CheckpointError
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_PREFIXES = ("opt/target/", "params/img/", "params/", "target/")
# Layers in a block: vision_transformer numbers across kinds, big_vision within each.
_NAMES = {
    "vision_transformer": ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "big_vision": ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}


def _recognises(files: Files) -> bool:
    return files.kind == "npz" and any(name.endswith("embedding/kernel") for name in files.tensors)


def _plan(files: Files, architecture: ViTConfig | None) -> Plan:
    prefix = next((p for p in _PREFIXES if f"{p}embedding/kernel" in files.tensors), "")
    tensors = _unstacked({name.removeprefix(prefix): tensor for name, tensor in files.tensors.items()})
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    dialect = "vision_transformer" if attention in tensors else "big_vision"
    config = _config(tensors, dialect)
    record = Record(
        architecture=f"{config.width} wide, {config.depth} deep",
        layout="google",
        source=files.source,
        preprocessing=evaluation(config.image_size, interpolation="bilinear", inception=True),
        licence="apache-2.0",
    )
    return Plan(
        build=ViT,
        config=config,
        rows=_rows(config, dialect),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
        ignored=(r"(params/)?(txt|t|b|bias_init)(/.*)?", r"opt/.*", r"extra/.*", r"step"),
    )


def _unstacked(tensors: Tensors) -> Tensors:
    """Blocks that were trained in one scan lie in one array; give each its own."""
    stacked = [name for name in tensors if name.startswith("Transformer/encoderblock/")]
    apart = {name: tensor for name, tensor in tensors.items() if name not in stacked}
    for name in stacked:
        for index, tensor in enumerate(tensors[name]):
            apart[name.replace("encoderblock/", f"encoderblock_{index}/")] = tensor
    return apart


def _config(tensors: Tensors, dialect: str) -> ViTConfig:
    depth = 1 + max((int(m[1]) for n in tensors if (m := re.match(r"Transformer/encoderblock_(\d+)/", n))), default=-1)
    _, attention, _, mlp = _NAMES[dialect]
    query = f"Transformer/encoderblock_0/{attention}/query/kernel"
    if depth == 0 or query not in tensors:
        raise CheckpointError(
            "The npz file has an embedding but no attention layers; it is no vision transformer of Google's."
        )
    *patch, channels, width = (int(side) for side in tensors["embedding/kernel"].shape)
    class_token, pooled = "cls" in tensors, "MAPHead_0/probe" in tensors
    positions = tensors.get("Transformer/posembed_input/pos_embedding", tensors.get("pos_embedding"))
    rows = int(positions.shape[1]) if positions is not None else 0
    placed = int(class_token and math.isqrt(rows) ** 2 != rows)
    side = math.isqrt(rows - placed) if rows else 14
    return ViTConfig(
        image_size=(side * patch[0], side * patch[1]),
        patch_size=(patch[0], patch[1]),
        channels=channels,
        width=width,
        depth=depth,
        heads=int(tensors[query].shape[1]),
        mlp_width=int(tensors[f"Transformer/encoderblock_0/{mlp}/Dense_0/kernel"].shape[1]),
        num_classes=int(tensors["head/kernel"].shape[1]) if "head/kernel" in tensors else 0,
        class_token=class_token,
        position="learned" if rows else "none",
        prefix_positions=placed,
        pool="attention" if pooled else "class" if class_token else "mean",
        representation=int(tensors["pre_logits/kernel"].shape[1]) if "pre_logits/kernel" in tensors else None,
    )


def _rows(config: ViTConfig, dialect: str) -> list[Row]:
    rows = [permuted("patch.projection.weight", "embedding/kernel", (3, 2, 0, 1))]
    rows += [same("patch.projection.bias", "embedding/bias")]
    if config.class_token:
        rows += [same("class_token", "cls")]
    if config.position == "learned":
        table = "Transformer/posembed_input/pos_embedding" if dialect == "vision_transformer" else "pos_embedding"
        rows += [same("position_table", table)]
    norm1, attention, norm2, mlp = _NAMES[dialect]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        rows += _norm(f"{ours}.norm1", f"{theirs}/{norm1}") + _norm(f"{ours}.norm2", f"{theirs}/{norm2}")
        rows += _attention(f"{ours}.attention", f"{theirs}/{attention}", config) + _mlp(f"{ours}.mlp", f"{theirs}/{mlp}")
    rows += _norm("norm", "Transformer/encoder_norm")
    if config.pool == "attention":
        rows += [same("pool.query", "MAPHead_0/probe"), *_norm("pool.norm", "MAPHead_0/LayerNorm_0")]
        rows += _pool_attention("pool", "MAPHead_0/MultiHeadDotProductAttention_0", config) + _mlp(
            "pool.mlp", "MAPHead_0/MlpBlock_0"
        )
    if config.representation:
        rows += _dense("representation.0", "pre_logits")
    return rows + (_dense("head", "head") if config.num_classes else [])


def _norm(ours: str, theirs: str) -> list[Row]:
    return [same(f"{ours}.weight", f"{theirs}/scale"), same(f"{ours}.bias", f"{theirs}/bias")]


def _dense(ours: str, theirs: str) -> list[Row]:
    return [permuted(f"{ours}.weight", f"{theirs}/kernel", (1, 0)), same(f"{ours}.bias", f"{theirs}/bias")]


def _mlp(ours: str, theirs: str) -> list[Row]:
    return _dense(f"{ours}.up", f"{theirs}/Dense_0") + _dense(f"{ours}.down", f"{theirs}/Dense_1")


def _attention(ours: str, theirs: str, config: ViTConfig) -> list[Row]:
    return [*_heads(f"{ours}.qkv", theirs, ("query", "key", "value"), config), *_output(ours, theirs, config)]


def _pool_attention(ours: str, theirs: str, config: ViTConfig) -> list[Row]:
    rows = _heads(f"{ours}.query_projection", theirs, ("query",), config)
    return [*rows, *_heads(f"{ours}.key_value", theirs, ("key", "value"), config), *_output(ours, theirs, config)]


def _heads(ours: str, theirs: str, parts: tuple[str, ...], config: ViTConfig) -> list[Row]:
    """Kernels (d, h, k) of queries, keys and values stand one above the other as a matrix (…·h·k, d)."""
    width, heads = config.width, config.heads

    def read_weight(kernels: Sequence[Tensor]) -> Tensor:
        return torch.cat([kernel.reshape(width, width).T for kernel in kernels])

    def write_weight(weight: Tensor) -> list[Tensor]:
        return [part.T.reshape(width, heads, width // heads) for part in weight.chunk(len(parts))]

    def read_bias(biases: Sequence[Tensor]) -> Tensor:
        return torch.cat([bias.reshape(width) for bias in biases])

    def write_bias(bias: Tensor) -> list[Tensor]:
        return [part.reshape(heads, width // heads) for part in bias.chunk(len(parts))]

    return [
        Row(f"{ours}.weight", tuple(f"{theirs}/{part}/kernel" for part in parts), read_weight, write_weight),
        Row(f"{ours}.bias", tuple(f"{theirs}/{part}/bias" for part in parts), read_bias, write_bias),
    ]


def _output(ours: str, theirs: str, config: ViTConfig) -> list[Row]:
    """The output kernel (h, k, d) makes a matrix (d, h·k)."""
    width, heads = config.width, config.heads
    return [
        Row(
            f"{ours}.projection.weight",
            (f"{theirs}/out/kernel",),
            lambda kernels: kernels[0].reshape(width, width).T,
            lambda weight: [weight.T.reshape(heads, width // heads, width)],
        ),
        same(f"{ours}.projection.bias", f"{theirs}/out/bias"),
    ]


LAYOUT = Layout(name="google", network=ViT, recognises=_recognises, plan=_plan)
