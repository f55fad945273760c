"""transformers' layout of CvT: config.json, preprocessor_config.json, and the names of CvtForImageClassification.

Its names are those of the authors' repository in other words. Its classes compute GELU where the authors' compute the
sigmoid form of it, so a network that is read from this layout has activation "gelu".
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.cvt import microsoft
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import evaluation, from_transformers
from vitral.checkpoints.table import Row
from vitral.checkpoints.vocabulary import transformers_documents, transformers_record
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.cvt import CvT, CvTConfig

__all__ = ["LAYOUT"]

# What a config.json may leave out, and what this family has no other values for.
_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "embed_dim": (64, 192, 384),
    "num_heads": (1, 3, 6),
    "depth": (1, 2, 10),
    "mlp_ratio": (4.0, 4.0, 4.0),
    "qkv_bias": (True, True, True),
    "drop_path_rate": (0.0, 0.0, 0.1),
}
_FIXED: dict[str, Any] = {
    "patch_sizes": (7, 3, 3),
    "patch_stride": (4, 2, 2),
    "patch_padding": (2, 1, 1),
    "cls_token": (False, False, True),
    "qkv_projection_method": ("dw_bn", "dw_bn", "dw_bn"),
    "kernel_qkv": (3, 3, 3),
    "padding_kv": (1, 1, 1),
    "stride_kv": (2, 2, 2),
    "padding_q": (1, 1, 1),
    "stride_q": (1, 1, 1),
}
# The authors' names → transformers', each applied once.
_SPELLINGS = [
    (r"^stage(\d+)\.", r"cvt.encoder.stages.\1."),
    (r"\.patch_embed\.proj\.", ".embedding.convolution_embeddings.projection."),
    (r"\.patch_embed\.norm\.", ".embedding.convolution_embeddings.normalization."),
    (r"\.blocks\.", ".layers."),
    (r"\.conv_proj_(\w)\.conv\.", r".attention.convolution_projection_\1.convolution_projection.convolution."),
    (r"\.conv_proj_(\w)\.bn\.", r".attention.convolution_projection_\1.convolution_projection.normalization."),
    (r"\.attn\.proj_(\w)\.", r".attn.attention.projection_\1."),
    (r"\.attn\.proj\.", ".attn.output.dense."),
    (r"projection_q\.", "projection_query."),
    (r"projection_k\.", "projection_key."),
    (r"projection_v\.", "projection_value."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
]
_WARPED_FROM = 384  # pixels of a side from which ConvNeXt's processor cuts nothing off


def _recognises(files: Files) -> bool:
    return files.config.get("model_type") == "cvt"


def _plan(files: Files, architecture: CvTConfig | None) -> Plan:
    told, tensors = files.config, files.tensors
    if "layernorm.weight" not in tensors:
        raise CheckpointError(
            f"{files.source} holds the encoder of a CvT without the norm that its class token is read behind. Take the "
            "checkpoint of a CvtForImageClassification, which has both."
        )
    config = _config(told, int(tensors["classifier.weight"].shape[0]) if "classifier.weight" in tensors else 0)
    size = _side(files.preprocessor)
    if size or architecture:
        config = replace(config, image_size=size or (architecture or config).image_size)
    prepared = _preprocessing(files.preprocessor, config)
    record = transformers_record(
        files, architecture=microsoft.catalogue_name(config) or "cvt", num_classes=config.num_classes, preprocessing=prepared
    )
    return Plan(build=CvT, config=config, rows=_rows(config), tensors=tensors, record=record)


def _config(told: dict[str, Any], num_classes: int) -> CvTConfig:
    for name, fixed in _FIXED.items():
        if tuple(told.get(name, fixed)) != fixed:
            raise CheckpointError(
                f"config.json asks for {name}={told[name]!r}; CvT was only ever published with {list(fixed)}."
            )
    value = {name: told.get(name, default) for name, default in _DEFAULTS.items()}
    ratios, biases = set(value["mlp_ratio"]), set(value["qkv_bias"])
    if len(ratios) > 1 or len(biases) > 1:
        raise CheckpointError(
            f"config.json asks for mlp_ratio={value['mlp_ratio']} and qkv_bias={value['qkv_bias']}; in a CvT they are "
            "the same in all stages."
        )
    return CvTConfig(
        channels=value["num_channels"],
        num_classes=num_classes,
        widths=tuple(value["embed_dim"]),
        depths=tuple(value["depth"]),
        heads=tuple(value["num_heads"]),
        mlp_ratio=float(ratios.pop()),
        activation="gelu",
        qkv_bias=bool(biases.pop()),
        drop_path=float(value["drop_path_rate"][-1]),
    )


def _side(processor: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of the prepared pictures, if a preprocessor_config.json tells them."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        return (int(size["height"]), int(size["width"])) if side is None else (int(side), int(side))
    return (int(size), int(size)) if isinstance(size, int) else None


def _preprocessing(processor: dict[str, Any], config: CvTConfig) -> Preprocessing | None:
    """How pictures are prepared. CvT's publisher does it as ConvNeXt's: shorter side to 8/7 of the cut, below 384 pixels."""
    named = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    if not processor and config.channels == 3:
        return evaluation(config.image_size, resize=int(config.image_size[0] / 0.875))
    if not named.startswith("ConvNext"):
        return from_transformers(processor, "cvt", config.image_size)
    side, warped = config.image_size[0], config.image_size[0] >= _WARPED_FROM
    resized = side if warped else int(side / float(processor.get("crop_pct") or 0.875))
    plain = {
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 3,
        **{name: value for name, value in processor.items() if value is not None and name != "crop_pct"},
        "image_processor_type": "ViTImageProcessor" if warped else "BitImageProcessor",
        "size": {"height": side, "width": side} if warped else {"shortest_edge": resized},
        "do_center_crop": not warped,
        "crop_size": {"height": side, "width": side},
    }
    return from_transformers(plain, "cvt", config.image_size)


def _rows(config: CvTConfig) -> list[Row]:
    return [replace(row, theirs=tuple(map(_spelled, row.theirs))) for row in microsoft.rows(config)]


def _spelled(name: str) -> str:
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _compose(model: nn.Module) -> Written:
    model = cast(CvT, model)
    config, record = model.config, model.record
    if config.activation != "gelu":
        raise UsageError(
            f"transformers' CvT computes 'gelu', not activation={config.activation!r}. Use layout='vitral'"
            + (" or 'microsoft'." if config.activation == "quick_gelu" else ".")
        )
    if any(depth < least for depth, least in zip(config.depths, (1, 2, 3), strict=True)):
        raise UsageError(
            f"transformers builds stages of at least 1, 2 and 3 blocks; this network has {config.depths}. Use "
            "layout='vitral'."
        )
    described: dict[str, Any] = {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "num_channels": config.channels,
        "embed_dim": list(config.widths),
        "num_heads": list(config.heads),
        "depth": list(config.depths),
        "mlp_ratio": [config.mlp_ratio] * 3,
        "qkv_bias": [config.qkv_bias] * 3,
        "drop_rate": [config.dropout] * 3,
        "attention_drop_rate": [config.dropout] * 3,
        "drop_path_rate": [0.0, 0.0, config.drop_path],
        **{name: list(value) for name, value in _FIXED.items()},
        "id2label": {},  # else transformers would build a classifier of two classes where there is none
        "label2id": {},
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes)
    return Written(model=model, rows=_rows(config), documents=documents)


LAYOUT = Layout(name="transformers", network=CvT, recognises=_recognises, plan=_plan, compose=_compose)
