"""transformers' layout of YOLOS: config.json, preprocessor_config.json, and the names of YolosForObjectDetection."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, Tensors, renamed, same, stacked
from vitral.checkpoints.vocabulary import (
    activation_of,
    check_described,
    hidden_act_of,
    transformers_documents,
    transformers_record,
)
from vitral.checkpoints.yolos.names import catalogue_name, middle_positions, perceptron, position_table
from vitral.errors import CheckpointError, UsageError
from vitral.models.detection.yolos import YOLOS, YOLOSConfig

__all__ = ["LAYOUT"]

_TYPE = "yolos"
# What a config.json may leave out.
_USUAL: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": (512, 864),
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "num_detection_tokens": 100,
    "use_mid_position_embeddings": True,
}
_PARTS = ("query", "key", "value")


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    return any(name.endswith("embeddings.detection_tokens") for name in files.tensors)


def _plan(files: Files, architecture: YOLOSConfig | None) -> Plan:
    check_described(files)
    # In memory the tables between blocks have a room of their own.
    tensors: Tensors = {
        name.removeprefix("model.").replace(".interpolation.mid_", ".mid_"): files.tensors[name] for name in files.tensors
    }
    told, classifier = {**_USUAL, **files.config}, tensors.get("class_labels_classifier.layers.2.weight")
    if classifier is None:
        raise CheckpointError(
            f"{files.source} holds a YOLOS without the layers that read classes and boxes from its detection tokens. Take "
            "the checkpoint of a YolosForObjectDetection, which has them."
        )
    config = YOLOSConfig(
        image_size=_pair(told["image_size"]),
        patch_size=_pair(told["patch_size"]),
        channels=int(told["num_channels"]),
        num_classes=int(classifier.shape[0]) - 1,
        queries=int(told["num_detection_tokens"]),
        width=int(told["hidden_size"]),
        depth=int(told["num_hidden_layers"]),
        heads=int(told["num_attention_heads"]),
        mlp_width=int(told["intermediate_size"]),
        middle_positions=bool(told["use_mid_position_embeddings"]),
        norm_eps=float(told["layer_norm_eps"]),
        activation=activation_of(told["hidden_act"]),
        qkv_bias=bool(told["qkv_bias"]),
        dropout=float(told["hidden_dropout_prob"]),
    )
    prepared = from_transformers(files.preprocessor, _TYPE, config.image_size) if config.channels == 3 else None
    return Plan(
        build=YOLOS,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=transformers_record(
            files,
            architecture=catalogue_name(config) or _TYPE,
            num_classes=config.num_classes,
            preprocessing=prepared,
        ),
    )


def _pair(size: Any) -> tuple[int, int]:
    high, wide = size if isinstance(size, list | tuple) else (size, size)
    return int(high), int(wide)


def _rows(config: YOLOSConfig) -> list[Row]:
    rows = renamed("vit.patch.projection", "vit.embeddings.patch_embeddings.projection")
    rows += [same("vit.class_token", "vit.embeddings.cls_token")]
    rows += [same("vit.register_tokens", "vit.embeddings.detection_tokens")]
    rows += [position_table("vit.embeddings.position_embeddings", config)]
    if config.middle_positions:
        rows += [middle_positions("vit.encoder.mid_position_embeddings", config)]
    for index in range(config.depth):
        ours, theirs = f"vit.blocks.{index}", f"vit.encoder.layer.{index}"
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            names = (f"{theirs}.attention.attention.{part}.{kind}" for part in _PARTS)
            rows += [stacked(f"{ours}.attention.qkv.{kind}", *names)]
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.attention.output.dense")
        rows += renamed(f"{ours}.norm1", f"{theirs}.layernorm_before")
        rows += renamed(f"{ours}.norm2", f"{theirs}.layernorm_after")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.intermediate.dense")
        rows += renamed(f"{ours}.mlp.down", f"{theirs}.output.dense")
    rows += renamed("vit.norm", "vit.layernorm")
    return rows + perceptron("head", "class_labels_classifier") + perceptron("box_head", "bbox_predictor")


def _compose(model: nn.Module) -> Written:
    model = cast(YOLOS, model)
    config, record = model.config, model.record
    described: dict[str, Any] = {
        "architectures": ["YolosForObjectDetection"],
        "model_type": _TYPE,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": hidden_act_of(config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": config.norm_eps,
        "image_size": list(config.image_size),
        "patch_size": config.patch_size[0],
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
        "num_detection_tokens": config.queries,
        "use_mid_position_embeddings": config.middle_positions,
        "dtype": "float32",
    }
    if config.patch_size[0] != config.patch_size[1]:
        raise UsageError(f"transformers' YOLOS has square patches, not {config.patch_size}. Use layout='vitral'.")
    documents = transformers_documents(described, record, config.num_classes, processor="Yolos")
    return Written(model=model, rows=_rows(config), documents=documents)


LAYOUT = Layout(name="transformers", network=YOLOS, recognises=_recognises, plan=_plan, compose=_compose)
