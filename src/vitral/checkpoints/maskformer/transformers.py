"""transformers' layout of MaskFormer: config.json, preprocessor_config.json, the names of its class for segmentation.

Its Swin Transformer is one of its own, with other names around those of transformers' usual one; published files call it
"swin" in config.json, newer ones "maskformer-swin". The decoder is described as a whole DETR, of which an encoder, a
backbone and heads are never built. Names of the decoder have changed with transformers' versions; both are read, and those
of the published files written.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, variant_name
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.checkpoints.trunk.queries import PIXELS, QUERIES, TRUNK, query_plan
from vitral.checkpoints.trunk.transformers import described_trunk, trunk_config, trunk_names, trunk_rows
from vitral.checkpoints.vocabulary import transformers_documents
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.swin import SwinConfig
from vitral.models.segmentation.maskformer import VARIANTS, MaskFormer, MaskFormerConfig

__all__ = ["LAYOUT", "catalogue_name"]

_TYPE = "maskformer"
# What a config.json may leave out, and what its decoder_config may.
_USUAL: dict[str, Any] = {"fpn_feature_size": 256, "mask_feature_size": 256}
_USUAL_DECODER: dict[str, Any] = {
    "num_queries": 100,
    "decoder_layers": 6,
    "decoder_ffn_dim": 2048,
    "decoder_attention_heads": 8,
    "activation_function": "relu",
    "d_model": 256,
    "dropout": 0.1,
    "auxiliary_loss": False,
}
_GROUPS = 32
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "projection": "out_proj"}
# Names in memory since transformers 5 → names on disk.
_IN_MEMORY = ((r"_attn\.o_proj\.", "_attn.out_proj."), (r"(layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2."))


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    return f"{PIXELS}decoder.fpn.stem.0.weight" in files.tensors


def _plan(files: Files, architecture: MaskFormerConfig | None) -> Plan:
    return query_plan(files, MaskFormer, "MaskFormerForInstanceSegmentation", _spelled, _config, _rows, catalogue_name)


def catalogue_name(config: MaskFormerConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes, queries and pictures."""
    fields = ("image_size", "channels", "num_classes", "queries", "dropout")
    return variant_name(config, VARIANTS, fields, inside=("drop_path",))


def _spelled(tensors: Tensors) -> Tensors:
    """The tensors under their names on disk, those of the backbone as transformers' usual one has them."""
    inner: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name in tensors:
        if name.startswith(TRUNK):
            usual = name.removeprefix(TRUNK).removeprefix("model.")
            number = re.fullmatch(r"hidden_states_norms\.(\d+)\.(\w+)", usual)
            inner[f"hidden_states_norms.stage{int(number[1]) + 1}.{number[2]}" if number else usual] = tensors[name]
            continue
        disk = name
        for pattern, replacement in _IN_MEMORY:
            disk = re.sub(pattern, replacement, disk)
        found[disk] = tensors[name]
    return found | {f"{TRUNK}{name}": tensor for name, tensor in trunk_names(inner).items()}


def _written(name: str) -> str:
    """A name of transformers' usual Swin Transformer → that of MaskFormer's."""
    if not name.startswith(TRUNK):
        return name
    inner = name.removeprefix(TRUNK)
    if number := re.fullmatch(r"hidden_states_norms\.stage(\d+)\.(\w+)", inner):
        return f"{TRUNK}hidden_states_norms.{int(number[1]) - 1}.{number[2]}"
    return f"{TRUNK}model.{inner}"


def _config(config: dict[str, Any], tensors: Tensors) -> MaskFormerConfig:
    told = {**_USUAL, **{name: value for name, value in config.items() if value is not None}}
    decoder = {**_USUAL_DECODER, **{k: v for k, v in (told.get("decoder_config") or {}).items() if v is not None}}
    backbone = dict(told.get("backbone_config") or {})
    if backbone.get("model_type") in ("swin", "maskformer-swin"):  # whatever it says, all its maps are taken
        backbone |= {
            "model_type": "swin",
            "out_features": [f"stage{1 + i}" for i in range(len(backbone.get("depths", "four")))],
        }
    for name in ("activation_function", "auxiliary_loss"):
        if decoder[name] != _USUAL_DECODER[name]:
            raise CheckpointError(
                f"config.json asks for {name}={decoder[name]!r} of the decoder; MaskFormer was published with "
                f"{_USUAL_DECODER[name]!r} only."
            )
    if told["fpn_feature_size"] != decoder["d_model"]:
        raise CheckpointError(
            f"config.json asks for fpn_feature_size={told['fpn_feature_size']!r} and d_model={decoder['d_model']!r}; pixel "
            "decoder and decoder are of one width here."
        )
    trunk = trunk_config(backbone)
    return MaskFormerConfig(
        channels=trunk.channels,
        num_classes=int(tensors["class_predictor.weight"].shape[0]) - 1,
        backbone=trunk,
        queries=int(decoder["num_queries"]),
        width=int(decoder["d_model"]),
        mask_width=int(told["mask_feature_size"]),
        decoder_depth=int(decoder["decoder_layers"]),
        heads=int(decoder["decoder_attention_heads"]),
        mlp_width=int(decoder["decoder_ffn_dim"]),
        dropout=float(decoder["dropout"]),
    )


def _rows(config: MaskFormerConfig) -> list[Row]:
    rows = trunk_rows(config.backbone, "trunk", TRUNK)
    ours, theirs = "pixel_decoder", f"{PIXELS}decoder"
    named = [("first", "fpn.stem")]
    for place in range(len(cast(Any, config.backbone).depths) - 1):
        named += [(f"lateral.{place}", f"fpn.layers.{place}.proj"), (f"smooth.{place}", f"fpn.layers.{place}.block")]
    for part, name in named:
        rows += renamed(f"{ours}.{part}.conv.conv", f"{theirs}.{name}.0", bias=False)
        rows += renamed(f"{ours}.{part}.norm", f"{theirs}.{name}.1")
    rows += renamed(f"{ours}.mask_projection.conv", f"{theirs}.mask_projection")
    flat = (config.width, config.backbone.width)
    if flat[0] != flat[1]:
        rows += [shaped("projection.weight", f"{QUERIES}input_projection.weight", flat, (*flat, 1, 1))]
        rows += [same("projection.bias", f"{QUERIES}input_projection.bias")]
    rows += renamed("query_positions", f"{QUERIES}queries_embedder", bias=False)
    for place in range(config.decoder_depth):
        block, layer = f"decoder.{place}", f"{QUERIES}decoder.layers.{place}"
        for part, name in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
            for inside, their in _ATTENTION.items():
                rows += renamed(f"{block}.{part}.{inside}", f"{layer}.{name}.{their}")
        rows += renamed(f"{block}.norm1", f"{layer}.self_attn_layer_norm")
        rows += renamed(f"{block}.norm2", f"{layer}.encoder_attn_layer_norm")
        rows += renamed(f"{block}.mlp.up", f"{layer}.fc1") + renamed(f"{block}.mlp.down", f"{layer}.fc2")
        rows += renamed(f"{block}.norm3", f"{layer}.final_layer_norm")
    rows += renamed("norm", f"{QUERIES}decoder.layernorm") + renamed("head", "class_predictor")
    return rows + [row for place in range(3) for row in renamed(f"mask_head.layers.{place}", f"mask_embedder.{place}.0")]


def _compose(model: nn.Module) -> Written:
    network = cast(MaskFormer, model)
    config, record = network.config, network.record
    trunk = described_trunk(config.backbone)
    if config.width % _GROUPS:
        raise UsageError(
            f"transformers' MaskFormer cannot state a width of {config.width}, for norms of {_GROUPS} groups. Use "
            "layout='vitral'."
        )
    described: dict[str, Any] = {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": _TYPE,
        "backbone_config": trunk,
        "decoder_config": {
            "model_type": "detr",
            "num_queries": config.queries,
            "d_model": config.width,
            "decoder_layers": config.decoder_depth,
            "decoder_ffn_dim": config.mlp_width,
            "decoder_attention_heads": config.heads,
            "encoder_attention_heads": config.heads,
            "activation_function": "relu",
            "dropout": config.dropout,
            "auxiliary_loss": False,
        },
        "fpn_feature_size": config.width,
        "mask_feature_size": config.mask_width,
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes, processor="MaskFormer")
    rows = _rows(config)
    if isinstance(config.backbone, SwinConfig):
        rows = [replace(row, theirs=tuple(_written(name) for name in row.theirs)) for row in rows]
    return Written(model=network, rows=rows, documents=documents)


LAYOUT = Layout(name="transformers", network=MaskFormer, recognises=_recognises, plan=_plan, compose=_compose)
