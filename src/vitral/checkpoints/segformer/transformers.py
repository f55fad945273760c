"""transformers' layout of SegFormer (model type segformer), as in nvidia/segformer-b0-finetuned-ade-512-512, nvidia/mit-b0.

A file holds a segmenter or, without a decoder, the Mix Transformer alone. transformers has an epsilon of 1e-5 in all norms,
whatever its config.json says (`layer_norm_eps` is there, and no module reads it), where the authors have 1e-6 in blocks. A
network with the authors', as `create_model` builds it, is written as their own files are; what is read again, here and by
transformers, has 1e-5, and its logits differ by about 1e-5. Vitral's own layout keeps 1e-6. Names have changed with
transformers' versions, in files and in memory; all are read, and those of the published files are written.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped, stacked
from vitral.checkpoints.vocabulary import activation_of, hidden_act_of, transformers_documents, transformers_record
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones import mit
from vitral.models.backbones.mit import MiT, MiTConfig
from vitral.models.segmentation import segformer
from vitral.models.segmentation.segformer import SegFormer, SegFormerConfig

__all__ = ["LAYOUTS"]

_TYPE = "segformer"
_PREFIX = "segformer."
_EPS = 1e-5
_SIGN = "decode_head.classifier.weight"
# What transformers assumes where a config.json does not say.
_USUAL: dict[str, Any] = {
    "num_channels": 3,
    "depths": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "hidden_sizes": [32, 64, 160, 256],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
    "drop_path_rate": 0.1,
    "decoder_hidden_size": 256,
}
# Names in memory → names in files, each applied once.
_SPELLINGS = [
    (r"^stages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
    (r"^stages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".self.sr."),
    (r"\.sequence_reduction\.layer_norm\.", ".self.layer_norm."),
    (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
    (r"\.layernorm_before\.", ".layer_norm_1."),
    (r"\.layernorm_after\.", ".layer_norm_2."),
    (r"^decode_head\.linear_projections\.", "decode_head.linear_c."),
]


def _is_of_the_type(files: Files) -> bool:
    return files.config.get("model_type") == _TYPE


def _segments(files: Files) -> bool:
    return _is_of_the_type(files) and _SIGN in files.tensors


def _only_encodes(files: Files) -> bool:
    return _is_of_the_type(files) and _SIGN not in files.tensors


def _spelled(files: Files) -> Tensors:
    """The tensors by the names of the published files, without the prefix of a model with a head."""
    found: dict[str, str] = {}
    for name in files.tensors:
        spelled = name.removeprefix(_PREFIX)
        for pattern, replacement in _SPELLINGS:
            spelled = re.sub(pattern, replacement, spelled)
        found[spelled] = name
    return {spelled: files.tensors[name] for spelled, name in found.items()}


def _plan_segmenter(files: Files, architecture: SegFormerConfig | None) -> Plan:
    told, tensors = {**_USUAL, **files.config}, _spelled(files)
    prepared = from_transformers(files.preprocessor, _TYPE, SegFormerConfig().image_size)
    config = SegFormerConfig(
        image_size=_size(prepared, SegFormerConfig().image_size),
        channels=int(told["num_channels"]),
        num_classes=int(tensors[_SIGN].shape[0]),
        backbone=_encoder(told),
        decoder_width=int(told["decoder_hidden_size"]),
        decoder_dropout=float(told["classifier_dropout_prob"]),
    )
    record = transformers_record(
        files,
        architecture=_name_of(config),
        num_classes=config.num_classes,
        preprocessing=prepared if config.channels == 3 else None,
    )
    return Plan(build=SegFormer, config=config, rows=_segmenter_rows(config), tensors=tensors, record=record)


def _plan_encoder(files: Files, architecture: MiTConfig | None) -> Plan:
    told, tensors = {**_USUAL, **files.config}, _spelled(files)
    prepared = from_transformers(files.preprocessor, _TYPE, MiTConfig().image_size)
    config = replace(
        _encoder(told),
        image_size=_size(prepared, MiTConfig().image_size),
        num_classes=int(tensors["classifier.weight"].shape[0]) if "classifier.weight" in tensors else 0,
    )
    free: dict[str, Any] = {
        field: getattr(config, field) for field in ("image_size", "channels", "num_classes", "norm_eps", "drop_path")
    }
    name = next((name for name, one in mit.VARIANTS.items() if replace(one, **free) == config), "mit")
    record = transformers_record(
        files,
        architecture=name,
        num_classes=config.num_classes,
        preprocessing=prepared if config.channels == 3 else None,
    )
    return Plan(build=MiT, config=config, rows=_encoder_rows(config), tensors=tensors, record=record)


def _size(prepared: Preprocessing | None, usual: tuple[int, int]) -> tuple[int, int]:
    return (prepared.input_size if prepared is not None else None) or usual


def _name_of(config: SegFormerConfig) -> str:
    """The catalogue's name of the network of the same encoder."""
    return next(
        (
            name
            for name, one in segformer.VARIANTS.items()
            if one.backbone.widths == config.backbone.widths and one.backbone.depths == config.backbone.depths
        ),
        _TYPE,
    )


def _encoder(told: dict[str, Any]) -> MiTConfig:
    stages = len(told["hidden_sizes"])
    windows = {"patch_sizes": [7] + [3] * (stages - 1), "strides": [4] + [2] * (stages - 1)}
    for name, usual in windows.items():
        if list(told[name]) != usual:
            raise CheckpointError(f"config.json has {name} {told[name]!r}; only {usual!r} was ever published.")
    ratios = [int(ratio) for ratio in told["mlp_ratios"]]
    if ratios != list(told["mlp_ratios"]):
        raise CheckpointError(f"config.json has mlp_ratios {told['mlp_ratios']!r}; whole numbers belong there.")
    return MiTConfig(
        channels=int(told["num_channels"]),
        num_classes=0,
        widths=tuple(told["hidden_sizes"]),
        depths=tuple(told["depths"]),
        heads=tuple(told["num_attention_heads"]),
        reductions=tuple(told["sr_ratios"]),
        mlp_ratios=tuple(ratios),
        activation=activation_of(told["hidden_act"]),
        norm_eps=_EPS,
        conv_norm_eps=_EPS,
        dropout=float(told["hidden_dropout_prob"]),
        attention_dropout=float(told["attention_probs_dropout_prob"]),
        drop_path=float(told["drop_path_rate"]),
    )


def _encoder_rows(config: MiTConfig) -> list[Row]:
    """Names inside the encoder; `_compose` adds the prefix of a model with a head."""
    rows: list[Row] = []
    for stage, depth in enumerate(config.depths):
        ours, embedding = f"stages.{stage}", f"encoder.patch_embeddings.{stage}"
        rows += renamed(f"{ours}.embedding.projection", f"{embedding}.proj")
        rows += renamed(f"{ours}.embedding.norm", f"{embedding}.layer_norm")
        for place in range(depth):
            theirs = f"encoder.block.{stage}.{place}"
            rows += _block_rows(f"{ours}.blocks.{place}", theirs, reduces=config.reductions[stage] > 1)
        rows += renamed(f"{ours}.norm", f"encoder.layer_norm.{stage}")
    return rows + (renamed("head", "classifier") if config.num_classes else [])


def _block_rows(ours: str, theirs: str, *, reduces: bool) -> list[Row]:
    asked = f"{theirs}.attention.self"
    rows = renamed(f"{ours}.norm1", f"{theirs}.layer_norm_1") + renamed(f"{ours}.norm2", f"{theirs}.layer_norm_2")
    rows += renamed(f"{ours}.attention.query", f"{asked}.query")
    for part in ("weight", "bias"):
        rows += [stacked(f"{ours}.attention.key_value.{part}", f"{asked}.key.{part}", f"{asked}.value.{part}")]
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attention.output.dense")
    if reduces:
        rows += renamed(f"{ours}.attention.reduce", f"{asked}.sr")
        rows += renamed(f"{ours}.attention.norm", f"{asked}.layer_norm")
    rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.dense1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.dense2")
    return rows + renamed(f"{ours}.mlp.neighbours", f"{theirs}.mlp.dwconv.dwconv")


def _segmenter_rows(config: SegFormerConfig) -> list[Row]:
    rows = [replace(row, ours=f"backbone.{row.ours}") for row in _encoder_rows(config.backbone)]
    for stage in range(len(config.backbone.widths)):
        rows += renamed(f"decoder.projections.{stage}", f"decode_head.linear_c.{stage}.proj")
    rows += [same("decoder.fuse.weight", "decode_head.linear_fuse.weight")]
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        rows += [same(f"decoder.norm.{part}", f"decode_head.batch_norm.{part}")]
    flat = (config.num_classes, config.decoder_width)
    rows += [shaped("head.weight", "decode_head.classifier.weight", flat, (*flat, 1, 1))]
    return [*rows, same("head.bias", "decode_head.classifier.bias")]


def _compose_segmenter(model: nn.Module) -> Written:
    network = cast(SegFormer, model)
    config, record = network.config, network.record
    described = {
        "architectures": ["SegformerForSemanticSegmentation"],
        **_described(config.backbone),
        "decoder_hidden_size": config.decoder_width,
        "classifier_dropout_prob": config.decoder_dropout,
        "semantic_loss_ignore_index": 255,
    }
    rows = [_prefixed(row) for row in _segmenter_rows(config)]
    documents = transformers_documents(described, record, config.num_classes, processor="Segformer")
    return Written(model=model, rows=rows, documents=documents)


def _compose_encoder(model: nn.Module) -> Written:
    network = cast(MiT, model)
    config, record = network.config, network.record
    described = {
        "architectures": ["SegformerForImageClassification" if config.num_classes else "SegformerModel"],
        **_described(config),
    }
    rows = _encoder_rows(config)
    if config.num_classes:
        rows = [_prefixed(row) for row in rows]
    documents = transformers_documents(described, record, config.num_classes)
    return Written(model=model, rows=rows, documents=documents)


def _prefixed(row: Row) -> Row:
    heads = ("classifier.", "decode_head.")
    return replace(row, theirs=tuple(name if name.startswith(heads) else _PREFIX + name for name in row.theirs))


def _described(config: MiTConfig) -> dict[str, Any]:
    if (config.norm_eps, config.conv_norm_eps) not in ((1e-6, _EPS), (_EPS, _EPS)) or not config.qkv_bias:
        raise UsageError(
            f"transformers' SegFormer has biases at queries, keys and values, and epsilons of {_EPS:g}; this one has "
            f"{config.norm_eps:g} in its blocks, {config.conv_norm_eps:g} behind convolutions and "
            f"{'biases' if config.qkv_bias else 'no biases'}. Use layout='vitral'."
        )
    stages = len(config.widths)
    return {
        "model_type": _TYPE,
        "num_channels": config.channels,
        "num_encoder_blocks": stages,
        "depths": list(config.depths),
        "sr_ratios": list(config.reductions),
        "hidden_sizes": list(config.widths),
        "patch_sizes": [7] + [3] * (stages - 1),
        "strides": [4] + [2] * (stages - 1),
        "num_attention_heads": list(config.heads),
        "mlp_ratios": list(config.mlp_ratios),
        "hidden_act": hidden_act_of(config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "drop_path_rate": config.drop_path,
        "layer_norm_eps": 1e-6,
        "reshape_last_stage": True,
        "dtype": "float32",
    }


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="transformers",
        network=SegFormer,
        recognises=_segments,
        plan=_plan_segmenter,
        compose=_compose_segmenter,
    ),
    Layout(name="transformers", network=MiT, recognises=_only_encodes, plan=_plan_encoder, compose=_compose_encoder),
)
"""The segmenter's layout, and that of the encoder alone."""
