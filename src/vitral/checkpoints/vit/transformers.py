"""transformers' layout: config.json, preprocessor_config.json, and names as published on the Hub since 2021.

One page serves the model types vit, deit, beit, data2vec-vision, dinov2, dinov2_with_registers, dinov3_vit, vit_msn and
vit_mae (its encoder). Since version 5 transformers uses other names in memory than on disk; state dictionaries saved
from memory are brought back to the names on disk first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped, stacked
from vitral.checkpoints.vit.prefix import with_prefix_positions
from vitral.checkpoints.vocabulary import (
    activation_of,
    check_described,
    hidden_act_of,
    transformers_documents,
    transformers_record,
)
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.vit import ViT, ViTConfig

__all__ = ["LAYOUT"]

# model type → the prefix of the encoder's names in a model with a head, and the class name's stem.
_TYPES = {
    "vit": ("vit.", "ViT"),
    "deit": ("deit.", "DeiT"),
    "beit": ("beit.", "Beit"),
    "data2vec-vision": ("data2vec_vision.", "Data2VecVision"),
    "dinov2": ("dinov2.", "Dinov2"),
    "dinov2_with_registers": ("dinov2_with_registers.", "Dinov2WithRegisters"),
    "dinov3_vit": ("dinov3_vit.", "DINOv3ViT"),
    "vit_msn": ("vit.", "ViTMSN"),
    "vit_mae": ("vit.", "ViTMAE"),
}
_BEIT = ("beit", "data2vec-vision")
_DINOV2 = ("dinov2", "dinov2_with_registers")


# Names in memory since transformers 5 → names on disk.
_IN_MEMORY = [
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"^shared_position_bias\.", "encoder.relative_position_bias."),
    (r"(layer\.\d+)\.relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
]
_IN_MEMORY_MLP = [(r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense.")]


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return str(files.config["model_type"]) in _TYPES
    return any("embeddings.patch_embeddings" in name for name in files.tensors)


def _plan(files: Files, architecture: ViTConfig | None) -> Plan:
    check_described(files)
    told = files.config
    model_type = str(told["model_type"])
    tensors = _disk_names(files.tensors, model_type)
    config = _config(told, model_type, tensors)
    preprocessing = from_transformers(files.preprocessor, model_type, config.image_size)
    record = transformers_record(files, architecture=model_type, num_classes=config.num_classes, preprocessing=preprocessing)
    return Plan(
        build=ViT,
        config=config,
        rows=_rows(config, model_type),
        tensors=tensors,
        record=record,
        # Decoders of masked image modelling, its head over visual words, and indices that can be computed.
        ignored=(r"decoder\..*", r"lm_head\..*", r".*relative_position_index"),
    )


def _disk_names(tensors: Tensors, model_type: str) -> Tensors:
    """The tensors under the names on disk, without the prefix of a model with a head."""
    prefix = _TYPES[model_type][0]
    spellings = _IN_MEMORY + ([] if model_type in (*_DINOV2, "dinov3_vit") else _IN_MEMORY_MLP)
    names = {}
    for name in tensors:
        spelled = name.removeprefix(prefix).removeprefix("model.")
        if model_type != "dinov3_vit" and not name.startswith("decoder."):
            for pattern, replacement in spellings:
                spelled = re.sub(pattern, replacement, spelled)
        names[spelled] = name
    renamed_tensors = {spelled: tensors[name] for spelled, name in names.items()}
    for name in [name for name in renamed_tensors if ".mlp.gate_proj." in name and model_type in _DINOV2]:
        gate, up = renamed_tensors.pop(name), renamed_tensors.pop(name.replace("gate_proj", "up_proj"))
        renamed_tensors[name.replace("gate_proj", "weights_in")] = torch.cat([gate, up])
        down = name.replace("gate_proj", "down_proj")
        renamed_tensors[name.replace("gate_proj", "weights_out")] = renamed_tensors.pop(down)
    return renamed_tensors


def _config(told: dict[str, Any], model_type: str, tensors: Tensors) -> ViTConfig:
    """Our configuration from transformers'; what the tensors show is not asked of the file."""
    defaults = _defaults(model_type)
    value: Callable[[str], Any] = lambda name: told.get(name, defaults.get(name))  # noqa: E731
    width = _whole(value("hidden_size"))
    activation = value("hidden_act")
    head = next((name for name in ("classifier.weight", "cls_classifier.weight") if name in tensors), None)
    if "pooler.dense.weight" in tensors and value("pooler_act") not in (None, "tanh"):
        raise CheckpointError(f"The pooler's activation is {value('pooler_act')!r}; only tanh was ever published.")
    beit, dinov2, dinov3 = model_type in _BEIT, model_type in _DINOV2, model_type == "dinov3_vit"
    swiglu = bool(value("use_swiglu_ffn") or value("use_gated_mlp"))
    ratio_width = width * _whole(value("mlp_ratio") or 4)
    base = ViTConfig(
        image_size=_pair(value("image_size")),
        patch_size=_pair(value("patch_size")),
        channels=_whole(value("num_channels")),
        width=width,
        depth=_whole(value("num_hidden_layers")),
        heads=_whole(value("num_attention_heads")),
        mlp_width=_whole(value("intermediate_size") or ratio_width),
        num_classes=tensors[head].shape[0] if head else 0,
        activation=activation_of(activation),
        norm_eps=float(value("layer_norm_eps")),
        qkv_bias=bool(value("qkv_bias") if "qkv_bias" in told else True),
        position_antialias=False,
        mask_token="embeddings.mask_token" in tensors,
        representation=tensors["pooler.dense.weight"].shape[0] if "pooler.dense.weight" in tensors else None,
    )
    if model_type == "deit":
        return replace(
            base,
            distillation_token=True,
            prefix_positions=2,
            distillation_head="distillation_classifier.weight" in tensors,
        )
    if beit:
        shared, per_block = value("use_shared_relative_position_bias"), value("use_relative_position_bias")
        learned, mean = bool(value("use_absolute_position_embeddings")), "pooler.layernorm.weight" in tensors
        return replace(
            base,
            key_bias=False,
            position="learned" if learned else "none",
            prefix_positions=int(learned),
            relative_bias="shared" if shared else "per_block" if per_block else "none",
            layer_scale=float(value("layer_scale_init_value")) or None,
            pool="mean" if mean else "class",
            pool_norm=mean,
            final_norm="layernorm.weight" in tensors,
        )
    if dinov2:
        # transformers rounds two thirds of the width up to a multiple of eight, as DINOv2 does.
        gated = (int(ratio_width * 2 / 3) + 7) // 8 * 8
        return replace(
            base,
            layer_scale=float(value("layerscale_value")),
            mlp="swiglu" if swiglu else "plain",
            mlp_width=gated if swiglu else ratio_width,
            registers=_whole(value("num_register_tokens") or 0) if model_type == "dinov2_with_registers" else 0,
            pool="class_and_mean" if head else "class",
            position_antialias=model_type == "dinov2_with_registers",
        )
    if dinov3:
        if value("key_bias") or (swiglu and activation != "silu"):
            raise CheckpointError(
                "This DINOv3 has a bias on the keys or a gate other than SiLU; neither was ever published."
            )
        return replace(
            base,
            registers=_whole(value("num_register_tokens")),
            position="none",
            prefix_positions=0,
            rotary=True,
            rotary_base=float(value("rope_theta")),
            qkv_bias=bool(value("query_bias")),
            key_bias=False,
            layer_scale=float(value("layerscale_value")),
            mlp="swiglu" if swiglu else "plain",
        )
    return base


def _defaults(model_type: str) -> dict[str, Any]:
    """What transformers assumes where a config.json does not say."""
    base = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "intermediate_size": 3072,
        "layer_scale_init_value": 0.1,
        "layerscale_value": 1.0,
    }
    if model_type in _DINOV2:
        patch = 14 if model_type == "dinov2" else 16
        return base | {"layer_norm_eps": 1e-6, "patch_size": patch, "intermediate_size": None, "num_register_tokens": 4}
    if model_type == "dinov3_vit":
        sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
        return base | sizes | {"layer_norm_eps": 1e-5, "rope_theta": 100.0, "num_register_tokens": 0, "query_bias": True}
    return base


def _rows(config: ViTConfig, model_type: str) -> list[Row]:
    """Names inside the encoder; `_compose` adds the prefix of a model with a head."""
    if model_type == "dinov3_vit":
        return _dinov3_rows(config)
    rows = renamed("patch.projection", "embeddings.patch_embeddings.projection", bias=config.patch_bias)
    rows += [same("class_token", "embeddings.cls_token")]
    if config.distillation_token:
        rows += [same("distillation_token", "embeddings.distillation_token")]
    if config.registers:
        rows += [same("register_tokens", "embeddings.register_tokens")]
    if config.mask_token:
        flat = (1, config.width) if model_type in _DINOV2 else (1, 1, config.width)
        rows += [shaped("mask_token", "embeddings.mask_token", (1, 1, config.width), flat)]
    if config.position == "learned":
        rows += [same("position_table", "embeddings.position_embeddings")]
    bias_table = "relative_position_bias.relative_position_bias_table"
    if config.relative_bias == "shared":
        rows += [same("relative_bias.table", f"encoder.{bias_table}")]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
        rows += _block_rows(config, model_type, ours, theirs)
        if config.relative_bias == "per_block":
            rows += [same(f"block_biases.{index}.table", f"{theirs}.attention.attention.{bias_table}")]
    if config.final_norm:
        rows += renamed("norm", "layernorm")
    if config.pool_norm:
        rows += renamed("pool_norm", "pooler.layernorm")
    if config.representation:
        rows += renamed("representation.0", "pooler.dense")
    if config.num_classes:
        rows += renamed("head", "cls_classifier" if config.distillation_head else "classifier")
    if config.num_classes and config.distillation_head:
        rows += renamed("distillation_head", "distillation_classifier")
    return rows


def _block_rows(config: ViTConfig, model_type: str, ours: str, theirs: str) -> list[Row]:
    attention = f"{theirs}.attention.attention"
    rows = [stacked(f"{ours}.attention.qkv.weight", *(f"{attention}.{part}.weight" for part in ("query", "key", "value")))]
    if config.qkv_bias and config.key_bias:
        rows += [stacked(f"{ours}.attention.qkv.bias", *(f"{attention}.{part}.bias" for part in ("query", "key", "value")))]
    elif config.qkv_bias:
        rows += [same(f"{ours}.attention.{part}_bias", f"{attention}.{part}.bias") for part in ("query", "value")]
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attention.output.dense")
    dinov2 = model_type in _DINOV2
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    rows += renamed(f"{ours}.norm1", f"{theirs}.{norms[0]}") + renamed(f"{ours}.norm2", f"{theirs}.{norms[1]}")
    if config.mlp == "swiglu":
        rows += renamed(f"{ours}.mlp.gate_up", f"{theirs}.mlp.weights_in") + renamed(
            f"{ours}.mlp.down", f"{theirs}.mlp.weights_out"
        )
    else:
        up, down = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.{up}") + renamed(f"{ours}.mlp.down", f"{theirs}.{down}")
    if config.layer_scale is not None:
        gains = ("layer_scale1.lambda1", "layer_scale2.lambda1") if dinov2 else ("lambda_1", "lambda_2")
        rows += [same(f"{ours}.scale{number}.gain", f"{theirs}.{gain}") for number, gain in enumerate(gains, 1)]
    return rows


def _dinov3_rows(config: ViTConfig) -> list[Row]:
    rows = [*renamed("patch.projection", "embeddings.patch_embeddings"), same("class_token", "embeddings.cls_token")]
    if config.registers:
        rows += [same("register_tokens", "embeddings.register_tokens")]
    if config.mask_token:
        rows += [same("mask_token", "embeddings.mask_token")]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"layer.{index}"
        rows += [stacked(f"{ours}.attention.qkv.weight", *(f"{theirs}.attention.{part}_proj.weight" for part in "qkv"))]
        if config.qkv_bias:
            rows += [same(f"{ours}.attention.query_bias", f"{theirs}.attention.q_proj.bias")]
            rows += [same(f"{ours}.attention.value_bias", f"{theirs}.attention.v_proj.bias")]
        rows += renamed(f"{ours}.attention.projection", f"{theirs}.attention.o_proj")
        for number in (1, 2):
            rows += renamed(f"{ours}.norm{number}", f"{theirs}.norm{number}")
            rows += [same(f"{ours}.scale{number}.gain", f"{theirs}.layer_scale{number}.lambda1")]
        if config.mlp == "swiglu":
            joint = [(f"{theirs}.mlp.gate_proj.{part}", f"{theirs}.mlp.up_proj.{part}") for part in ("weight", "bias")]
            rows += [
                stacked(f"{ours}.mlp.gate_up.{part}", *names) for part, names in zip(("weight", "bias"), joint, strict=True)
            ]
        else:
            rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.up_proj")
        rows += renamed(f"{ours}.mlp.down", f"{theirs}.mlp.down_proj")
    return rows + renamed("norm", "norm") + (renamed("head", "classifier") if config.num_classes else [])


def _compose(model: nn.Module) -> Written:
    """Write the model as the type of transformers that computes the same."""
    model = cast(ViT, model)
    model = _stated_as_theirs(model)
    config, record = model.config, model.record
    model_type = _model_type(config)
    prefix, stem = _TYPES[model_type]
    kind = (
        "ForImageClassificationWithTeacher"
        if config.distillation_head
        else "ForImageClassification"
        if config.num_classes
        else "Model"
    )
    rows = _rows(config, model_type)
    if config.num_classes:
        rows = [replace(row, theirs=tuple(n if "classifier" in n else prefix + n for n in row.theirs)) for row in rows]
    described: dict[str, Any] = {
        "architectures": [stem + kind],
        "model_type": model_type,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": hidden_act_of(config.activation),
        "layer_norm_eps": config.norm_eps,
        "image_size": _plain(config.image_size),
        "patch_size": _plain(config.patch_size),
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "dtype": "float32",
    }
    if model_type == "beit":
        described |= {
            "use_absolute_position_embeddings": config.position == "learned",
            "use_relative_position_bias": config.relative_bias == "per_block",
            "use_shared_relative_position_bias": config.relative_bias == "shared",
            "use_mean_pooling": config.pool == "mean",
            "use_mask_token": config.mask_token,
            "layer_scale_init_value": config.layer_scale or 0.0,
            "drop_path_rate": config.drop_path,
        }
    if model_type in _DINOV2:
        described |= {
            "mlp_ratio": 4 if config.mlp == "swiglu" else config.mlp_width // config.width,
            "use_swiglu_ffn": config.mlp == "swiglu",
            "use_mask_token": config.mask_token,
            "num_register_tokens": config.registers,
            "layerscale_value": config.layer_scale,
            "drop_path_rate": config.drop_path,
        }
    if model_type == "dinov3_vit":
        described |= {
            "num_register_tokens": config.registers,
            "rope_theta": config.rotary_base,
            "query_bias": config.qkv_bias,
            "key_bias": False,
            "value_bias": config.qkv_bias,
            "use_gated_mlp": config.mlp == "swiglu",
            "layerscale_value": config.layer_scale,
            "drop_path_rate": config.drop_path,
        }
    if config.representation:
        described["pooler_output_size"] = config.representation
    documents = transformers_documents(described, record, config.num_classes)
    return Written(model=model, rows=rows, documents=documents)


def _stated_as_theirs(model: ViT) -> ViT:
    """The same function with the parts that transformers' classes always have: a row for the class token, a mask token."""
    if model.config.position == "learned" and model.config.class_token:
        model = with_prefix_positions(model, 1 + model.config.distillation_token)
    if model.config.registers and not model.config.mask_token:
        model = copy.deepcopy(model)
        model.config = replace(model.config, mask_token=True)
        model.mask_token = nn.Parameter(torch.zeros(1, 1, model.config.width))
    return model


def _model_type(config: ViTConfig) -> str:
    """The type of transformers that computes what this configuration computes.

    Each type fixes the fields that it does not name; the first whose fixed fields all agree is it.
    """
    plain = ViTConfig()
    free = {"image_size", "patch_size", "channels", "width", "depth", "heads", "mlp_width", "num_classes", "activation"}
    free |= {"norm_eps", "qkv_bias", "dropout", "drop_path", "position_antialias", "rotary_base"}
    classes, gain = config.num_classes > 0, config.layer_scale
    dinov2 = replace(
        plain,
        layer_scale=gain,
        mlp=config.mlp,
        mask_token=config.mask_token,
        pool="class_and_mean" if classes else "class",
    )
    mean = config.pool == "mean"
    beit = replace(
        plain,
        key_bias=False,
        layer_scale=gain,
        relative_bias=config.relative_bias,
        mask_token=config.mask_token,
        position="learned" if config.position == "learned" else "none",
        prefix_positions=int(config.position == "learned"),
        pool="mean" if mean else "class",
        pool_norm=mean,
        final_norm=not mean,
    )
    representation = None if classes else config.representation
    deit = replace(
        plain,
        distillation_token=True,
        prefix_positions=2,
        distillation_head=config.distillation_head and classes,
        representation=representation,
    )
    dinov3 = replace(
        plain,
        registers=config.registers,
        position="none",
        prefix_positions=0,
        rotary=True,
        key_bias=False,
        layer_scale=gain or 1.0,
        mlp=config.mlp,
        mask_token=True,
        activation="silu" if config.mlp == "swiglu" else config.activation,
    )
    candidates = {
        "vit": replace(plain, representation=representation),
        "deit": deit,
        "dinov2": dinov2 if gain is not None else None,
        "dinov2_with_registers": replace(dinov2, registers=config.registers, mask_token=True) if config.registers else None,
        "beit": beit,
        "dinov3_vit": dinov3,
    }
    differences = {}
    for name, candidate in candidates.items():
        if candidate is not None:
            differing = [f for f in vars(plain) if f not in free and getattr(candidate, f) != getattr(config, f)]
            if not differing and _sizes_agree(config, name):
                return name
            differences[name] = differing or ["mlp_width"]
    name, fields = min(differences.items(), key=lambda item: len(item[1]))
    shown = ", ".join(f"{field}={getattr(config, field)!r}" for field in fields)
    raise UsageError(
        f"transformers has no such model: the nearest type is {name}, which has no {shown}. Use layout='vitral' or 'timm'."
    )


def _sizes_agree(config: ViTConfig, model_type: str) -> bool:
    """Whether the type's way to state the feed-forward width can state this one."""
    if model_type not in _DINOV2:
        return True
    if config.mlp == "swiglu":
        return config.mlp_width == (int(config.width * 4 * 2 / 3) + 7) // 8 * 8
    return config.mlp_width % config.width == 0


def _whole(number: Any) -> int:
    if isinstance(number, bool) or int(number) != number:
        raise CheckpointError(f"config.json has {number!r} where a whole number belongs.")
    return int(number)


def _pair(size: Any) -> tuple[int, int]:
    return (
        cast(tuple[int, int], tuple(int(side) for side in size))
        if isinstance(size, list | tuple)
        else (int(size), int(size))
    )


def _plain(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


LAYOUT = Layout(name="transformers", network=ViT, recognises=_recognises, plan=_plan, compose=_compose)
