"""transformers' layout of PVTv2 (model type pvt_v2), as in OpenGVLab/pvt_v2_b0.

transformers has one epsilon for all norms, where the authors have 1e-6 in blocks and 1e-5 behind convolutions. Its published
files are the authors' weights with 1e-6 throughout. A model with the authors' two is written as those files are: its answers
differ in the sixth digit.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, renamed, stacked
from vitral.checkpoints.vocabulary import activation_of, hidden_act_of, transformers_documents, transformers_record
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.pvt import PVTConfig, PVTv2

__all__ = ["LAYOUT"]

_TYPE = "pvt_v2"
_PREFIX = "pvt_v2."
# What transformers assumes where a config.json does not say.
_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "num_channels": 3,
    "depths": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "hidden_sizes": [32, 64, 160, 256],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [8, 8, 4, 4],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "linear_attention": False,
}


def _recognises(files: Files) -> bool:
    return files.config.get("model_type") == _TYPE


def _plan(files: Files, architecture: PVTConfig | None) -> Plan:
    told = {**_DEFAULTS, **files.config}
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in files.tensors.items()}
    config = _config(told, tensors["classifier.weight"].shape[0] if "classifier.weight" in tensors else 0)
    prepared = _prepared(files.preprocessor, config.image_size)
    record = transformers_record(files, architecture=_TYPE, num_classes=config.num_classes, preprocessing=prepared)
    return Plan(build=PVTv2, config=config, rows=_rows(config), tensors=tensors, record=record)


def _config(told: dict[str, Any], num_classes: int) -> PVTConfig:
    stages, size, activation = len(told["hidden_sizes"]), told["image_size"], told["hidden_act"]
    windows = {"patch_sizes": [7] + [3] * (stages - 1), "strides": [4] + [2] * (stages - 1)}
    for name, usual in windows.items():
        if list(told[name]) != usual:
            raise CheckpointError(f"config.json has {name} {told[name]!r}; only {usual!r} was ever published.")
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    return PVTConfig(
        image_size=(size, size) if isinstance(size, int) else cast(tuple[int, int], tuple(size)),
        channels=told["num_channels"],
        num_classes=int(num_classes),
        widths=tuple(told["hidden_sizes"]),
        depths=tuple(told["depths"]),
        heads=tuple(told["num_attention_heads"]),
        reductions=tuple(told["sr_ratios"]),
        mlp_ratios=tuple(_whole(ratio) for ratio in told["mlp_ratios"]),
        linear=bool(told["linear_attention"]),
        qkv_bias=bool(told["qkv_bias"]),
        activation=activation_of(activation),
        norm_eps=float(told["layer_norm_eps"]),
        conv_norm_eps=float(told["layer_norm_eps"]),
    )


def _whole(number: Any) -> int:
    if int(number) != number:
        raise CheckpointError(f"config.json has {number!r} where a whole number belongs.")
    return int(number)


def _prepared(processor: dict[str, Any], image_size: tuple[int, int]) -> Preprocessing | None:
    """As the file says; PvtImageProcessor is ViT's with ImageNet's statistics and a bicubic filter."""
    if str(processor.get("image_processor_type", "Pvt")).startswith("Pvt"):
        height, width = image_size
        usual = {"size": {"height": height, "width": width}, "resample": 3}
        usual |= {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
        processor = {**usual, **processor, "image_processor_type": "ViTImageProcessor"}
    return from_transformers(processor, _TYPE, image_size)


def _rows(config: PVTConfig) -> list[Row]:
    """Names inside the encoder; `_compose` adds the prefix of a model with a head."""
    rows: list[Row] = []
    for stage, depth in enumerate(config.depths):
        ours, theirs = f"stages.{stage}", f"encoder.layers.{stage}"
        rows += renamed(f"{ours}.embedding.projection", f"{theirs}.patch_embedding.proj")
        rows += renamed(f"{ours}.embedding.norm", f"{theirs}.patch_embedding.layer_norm")
        reduces = config.linear or config.reductions[stage] > 1
        for index in range(depth):
            rows += _block_rows(f"{ours}.blocks.{index}", f"{theirs}.blocks.{index}", config.qkv_bias, reduces)
        rows += renamed(f"{ours}.norm", f"{theirs}.layer_norm")
    return rows + (renamed("head", "classifier") if config.num_classes else [])


def _block_rows(ours: str, theirs: str, qkv_bias: bool, reduces: bool) -> list[Row]:
    rows = renamed(f"{ours}.norm1", f"{theirs}.layer_norm_1") + renamed(f"{ours}.norm2", f"{theirs}.layer_norm_2")
    rows += renamed(f"{ours}.attention.query", f"{theirs}.attention.query", bias=qkv_bias)
    for part in ("weight", "bias") if qkv_bias else ("weight",):
        names = (f"{theirs}.attention.key.{part}", f"{theirs}.attention.value.{part}")
        rows += [stacked(f"{ours}.attention.key_value.{part}", *names)]
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attention.proj")
    if reduces:
        rows += renamed(f"{ours}.attention.reduce", f"{theirs}.attention.spatial_reduction")
        rows += renamed(f"{ours}.attention.norm", f"{theirs}.attention.layer_norm")
    rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.dense1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.dense2")
    return rows + renamed(f"{ours}.mlp.neighbours", f"{theirs}.mlp.dwconv.dwconv")


def _compose(model: nn.Module) -> Written:
    network = cast(PVTv2, model)
    config, record = network.config, network.record
    if (config.norm_eps, config.conv_norm_eps) != (1e-6, 1e-5) and config.norm_eps != config.conv_norm_eps:
        raise UsageError(
            f"transformers has one epsilon for all norms of a PVTv2; this one has {config.norm_eps:g} in its blocks and "
            f"{config.conv_norm_eps:g} behind convolutions. Use layout='vitral'."
        )
    rows = _rows(config)
    if config.num_classes:
        rows = [_prefixed(row) for row in rows]
    height, width = config.image_size
    stages = len(config.widths)
    described: dict[str, Any] = {
        "architectures": ["PvtV2ForImageClassification" if config.num_classes else "PvtV2Model"],
        "model_type": _TYPE,
        "image_size": height if height == width else [height, width],
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
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "linear_attention": config.linear,
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes)
    return Written(model=model, rows=rows, documents=documents)


def _prefixed(row: Row) -> Row:
    names = tuple(name if name.startswith("classifier.") else _PREFIX + name for name in row.theirs)
    return Row(row.ours, names, row.read, row.write)


LAYOUT = Layout(name="transformers", network=PVTv2, recognises=_recognises, plan=_plan, compose=_compose)
