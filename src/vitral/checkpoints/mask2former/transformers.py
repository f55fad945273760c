"""transformers' layout of Mask2Former: config.json, preprocessor_config.json, the names of its class for segmentation.

The attention to the picture is torch's there, with one matrix for queries, keys and values. Masks are always brought to
384 × 384 cells before anything is decided from them, whatever a config.json says; a network that was told otherwise here is
written, and comes back with that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, variant_name
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.checkpoints.trunk.queries import PIXELS, QUERIES, TRUNK, query_plan
from vitral.checkpoints.trunk.transformers import described_trunk, trunk_config, trunk_names, trunk_rows
from vitral.checkpoints.vocabulary import transformers_documents
from vitral.errors import CheckpointError, UsageError
from vitral.layers.cross import CrossAttention
from vitral.models.segmentation.mask2former import VARIANTS, Mask2Former, Mask2FormerConfig

__all__ = ["LAYOUT", "catalogue_name"]

_TYPE = "mask2former"
# What a config.json may leave out.
_USUAL: dict[str, Any] = {
    "feature_size": 256,
    "mask_feature_size": 256,
    "hidden_dim": 256,
    "encoder_feedforward_dim": 1024,
    "activation_function": "relu",
    "encoder_layers": 6,
    "decoder_layers": 10,
    "num_attention_heads": 8,
    "dropout": 0.0,
    "dim_feedforward": 2048,
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": (4, 8, 16, 32),
    "num_queries": 100,
}
# Of these no network with another value was published.
_FIXED = ("activation_function", "pre_norm", "enforce_input_projection", "common_stride")
_GROUPS, _STAGES = 32, 4
_DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "projection": "output_proj",
}
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "projection": "out_proj"}
_THIRDS = ("query", "key", "value")


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    return f"{QUERIES}queries_features.weight" in files.tensors


def _plan(files: Files, architecture: Mask2FormerConfig | None) -> Plan:
    return query_plan(files, Mask2Former, "Mask2FormerForUniversalSegmentation", _spelled, _config, _rows, catalogue_name)


def catalogue_name(config: Mask2FormerConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes, queries and pictures."""
    fields = ("image_size", "channels", "num_classes", "queries", "dropout", "canvas")
    return variant_name(config, VARIANTS, fields, inside=("drop_path",))


def _spelled(tensors: Tensors) -> Tensors:
    """The tensors under their names on disk, with three for the one matrix of queries, keys and values."""
    inner: Tensors = {name.removeprefix(TRUNK): tensors[name] for name in tensors if name.startswith(TRUNK)}
    found: dict[str, Tensor] = {f"{TRUNK}{name}": tensor for name, tensor in trunk_names(inner).items()}
    for name in tensors:
        if fused := re.fullmatch(r"(.+\.cross_attn)\.in_proj_(weight|bias)", name):
            for part, third in zip(_THIRDS, tensors[name].chunk(3), strict=False):
                found[f"{fused[1]}.{part}.{fused[2]}"] = third
        elif not name.startswith(TRUNK):
            found[name] = tensors[name]
    return found


def _config(config: dict[str, Any], tensors: Tensors) -> Mask2FormerConfig:
    told = {**_USUAL, **{name: value for name, value in config.items() if value is not None}}
    for name in _FIXED:
        if told[name] != _USUAL[name]:
            raise CheckpointError(
                f"config.json asks for {name}={told[name]!r}; Mask2Former was published with {_USUAL[name]!r} only."
            )
    if told["feature_size"] != told["hidden_dim"]:
        raise CheckpointError(
            f"config.json asks for feature_size={told['feature_size']!r} and hidden_dim={told['hidden_dim']!r}; pixel "
            "decoder and decoder are of one width here."
        )
    backbone = trunk_config(dict(told.get("backbone_config") or {}))
    if list(told["feature_strides"]) != [4, 8, 16, 32] or len(backbone.depths) != _STAGES:
        raise CheckpointError(
            f"config.json asks for maps of strides {told['feature_strides']!r} of a backbone of {len(backbone.depths)} "
            "stages; those of 4, 8, 16 and 32 were published."
        )
    return Mask2FormerConfig(
        channels=backbone.channels,
        num_classes=int(tensors["class_predictor.weight"].shape[0]) - 1,
        backbone=backbone,
        queries=int(told["num_queries"]),
        width=int(told["hidden_dim"]),
        mask_width=int(told["mask_feature_size"]),
        encoder_depth=int(told["encoder_layers"]),
        encoder_mlp_width=int(told["encoder_feedforward_dim"]),
        decoder_depth=int(told["decoder_layers"]) - 1,  # what is said before the first block counts as one
        heads=int(told["num_attention_heads"]),
        mlp_width=int(told["dim_feedforward"]),
        dropout=float(told["dropout"]),
    )


def _rows(config: Mask2FormerConfig, *, joined: bool = False) -> list[Row]:
    """The table; `joined` for a model whose attention to the picture has one matrix."""
    rows = trunk_rows(config.backbone, "trunk", TRUNK)
    ours, theirs = "pixel_decoder", f"{PIXELS}decoder"
    for place in range(_STAGES - 1):
        rows += renamed(f"{ours}.projections.{place}.conv.conv", f"{theirs}.input_projections.{place}.0")
        rows += renamed(f"{ours}.projections.{place}.norm", f"{theirs}.input_projections.{place}.1")
    rows += [same(f"{ours}.level_positions.weight", f"{theirs}.level_embed")]
    for place in range(config.encoder_depth):
        block, layer = f"{ours}.encoder.{place}", f"{theirs}.encoder.layers.{place}"
        rows += _parts(f"{block}.attention", f"{layer}.self_attn", _DEFORMABLE.items())
        rows += renamed(f"{block}.norm1", f"{layer}.self_attn_layer_norm") + _ending(block, layer, "norm2")
    for part, name in (("lateral", "adapter_1"), ("smooth", "layer_1")):
        rows += renamed(f"{ours}.{part}.conv.conv", f"{theirs}.{name}.0", bias=False)
        rows += renamed(f"{ours}.{part}.norm", f"{theirs}.{name}.1")
    rows += renamed(f"{ours}.mask_projection.conv", f"{theirs}.mask_projection")
    for part, name in (
        ("level_positions", "level_embed"),
        ("queries", "queries_features"),
        ("query_positions", "queries_embedder"),
    ):
        rows += renamed(part, f"{QUERIES}{name}", bias=False)
    for place in range(config.decoder_depth):
        block, layer = f"decoder.{place}", f"{QUERIES}decoder.layers.{place}"
        if joined:
            rows += [
                same(f"{block}.cross_attention.joint.{part}", f"{layer}.cross_attn.in_proj_{part}")
                for part in ("weight", "bias")
            ]
        else:
            rows += _parts(f"{block}.cross_attention", f"{layer}.cross_attn", zip(_THIRDS, _THIRDS, strict=True))
        rows += renamed(f"{block}.cross_attention.projection", f"{layer}.cross_attn.out_proj")
        rows += renamed(f"{block}.norm1", f"{layer}.cross_attn_layer_norm")
        rows += _parts(f"{block}.attention", f"{layer}.self_attn", _ATTENTION.items())
        rows += renamed(f"{block}.norm2", f"{layer}.self_attn_layer_norm") + _ending(block, layer, "norm3")
    rows += renamed("norm", f"{QUERIES}decoder.layernorm") + renamed("head", "class_predictor")
    for place in range(3):
        rows += renamed(f"mask_head.layers.{place}", f"{QUERIES}decoder.mask_predictor.mask_embedder.{place}.0")
    return rows


def _parts(ours: str, theirs: str, parts: Iterable[tuple[str, str]]) -> list[Row]:
    return [row for part, name in parts for row in renamed(f"{ours}.{part}", f"{theirs}.{name}")]


def _ending(ours: str, theirs: str, norm: str) -> list[Row]:
    return (
        renamed(f"{ours}.mlp.up", f"{theirs}.fc1")
        + renamed(f"{ours}.mlp.down", f"{theirs}.fc2")
        + renamed(f"{ours}.{norm}", f"{theirs}.final_layer_norm")
    )


class _Joined(nn.Module):
    """An attention to a picture with one matrix for queries, keys and values; only there to be written."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        parts = attention.query, attention.key, attention.value
        self.joint = nn.Module()
        self.joint.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        self.joint.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
        self.projection = attention.projection


def _joined(model: Mask2Former) -> Mask2Former:
    """The same network with joined matrices; all other tensors are shared."""
    with torch.device("meta"):
        twin = Mask2Former(model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    for block in twin.decoder:
        cast(Any, block).cross_attention = _Joined(cast(CrossAttention, block.cross_attention))
    return twin


def _compose(model: nn.Module) -> Written:
    network = cast(Mask2Former, model)
    config, record = network.config, network.record
    trunk = described_trunk(config.backbone)
    wrong = {
        f"a width of {config.width}, for norms of {_GROUPS} groups": config.width % _GROUPS > 0,
        f"{config.encoder_points} places that a head looks at": config.encoder_points != 4,
        f"a backbone of {len(trunk['depths'])} stages": len(trunk["depths"]) != _STAGES,
        "a backbone whose last map is kept larger": config.stride != 32,
    }
    found = [what for what, present in wrong.items() if present]
    if found:
        raise UsageError(f"transformers' Mask2Former cannot state {', '.join(found)}. Use layout='vitral'.")
    described: dict[str, Any] = {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": _TYPE,
        "backbone_config": trunk,
        "feature_size": config.width,
        "mask_feature_size": config.mask_width,
        "hidden_dim": config.width,
        "encoder_feedforward_dim": config.encoder_mlp_width,
        "encoder_layers": config.encoder_depth,
        "decoder_layers": config.decoder_depth + 1,
        "num_attention_heads": config.heads,
        "dropout": config.dropout,
        "dim_feedforward": config.mlp_width,
        "num_queries": config.queries,
        **{name: _USUAL[name] for name in _FIXED},
        "feature_strides": list(_USUAL["feature_strides"]),
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes, processor="Mask2Former")
    return Written(model=_joined(network), rows=_rows(config, joined=True), documents=documents)


LAYOUT = Layout(name="transformers", network=Mask2Former, recognises=_recognises, plan=_plan, compose=_compose)
