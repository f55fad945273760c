"""transformers' layout of UPerNet (UperNetForSemanticSegmentation), as in openmmlab/upernet-swin-tiny.

The backbone within is a Swin Transformer or a ResNet in the names of SwinBackbone and ResNetBackbone. transformers knows no
dropout before the classifiers, with which the published networks were trained; one that is read has the usual 0.1, and
answers the same in evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.convolutional.names import conv_norm, counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, variant_name
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.checkpoints.trunk.transformers import UNREAD, described_trunk, trunk_config, trunk_names, trunk_rows
from vitral.checkpoints.vocabulary import check_described, transformers_documents, transformers_record
from vitral.errors import CheckpointError, UsageError
from vitral.models.segmentation.upernet import VARIANTS, UPerNet, UPerNetConfig

__all__ = ["LAYOUT"]

_TYPE = "upernet"
_BODY = "backbone."
_HEAD = "decode_head"
_AUXILIARY = "auxiliary_head"
_LEVEL = 2  # the map that the second head reads
# What a config.json may leave out.
_USUAL: dict[str, Any] = {
    "hidden_size": 512,
    "pool_scales": (1, 2, 3, 6),
    "use_auxiliary_head": True,
    "auxiliary_channels": 256,
    "auxiliary_num_convs": 1,
    "auxiliary_concat_input": False,
}
_SIGN = f"{_HEAD}.psp_modules.0.1.batch_norm.weight"


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    return _SIGN in files.tensors


def _plan(files: Files, architecture: UPerNetConfig | None) -> Plan:
    check_described(files)
    # What reads files may have taken the first part off the backbone's names.
    tensors = trunk_names({name.removeprefix(_BODY): files.tensors[name] for name in files.tensors})
    prepared = from_transformers(files.preprocessor, "segformer", UPerNetConfig().image_size)
    config = _config(files.config, tensors)
    if prepared is not None and prepared.input_size is not None:
        config = replace(config, image_size=prepared.input_size)
    rows = _rows(config, "")
    return Plan(
        build=UPerNet,
        config=config,
        rows=rows,
        tensors=counted(tensors, rows),
        record=transformers_record(
            files,
            architecture=_name(config) or _TYPE,
            num_classes=config.num_classes,
            preprocessing=prepared if config.channels == 3 else None,
        ),
        ignored=UNREAD if config.auxiliary else (*UNREAD, rf"{_AUXILIARY}\..*"),
    )


def _config(files_told: dict[str, Any], tensors: Tensors) -> UPerNetConfig:
    told = {**_USUAL, **{name: value for name, value in files_told.items() if value is not None}}
    backbone = trunk_config(told.get("backbone_config") or {"model_type": None, "backbone": told.get("backbone")})
    classes = tensors.get(f"{_HEAD}.classifier.weight")
    if classes is None:
        raise CheckpointError("The file holds a UPerNet without its classifier. Take a whole one.")
    config = UPerNetConfig(
        channels=backbone.channels,
        num_classes=int(classes.shape[0]),
        backbone=backbone,
        width=int(told["hidden_size"]),
        pool_grids=tuple(map(int, told["pool_scales"])),
        auxiliary=bool(told["use_auxiliary_head"]),
        auxiliary_level=_LEVEL,
        auxiliary_width=int(told["auxiliary_channels"]),
        auxiliary_depth=int(told["auxiliary_num_convs"]),
        auxiliary_joined=bool(told["auxiliary_concat_input"]),
    )
    inputs, read = told.get("auxiliary_in_channels"), _channels(config)
    if config.auxiliary and inputs is not None and int(inputs) != read:
        raise CheckpointError(
            f"config.json has a second head that reads {inputs} channels; the map of the backbone has {read}."
        )
    # A head of no convolutions would be one there: the first is always built, and left out of what is computed.
    if config.auxiliary and not config.auxiliary_depth:
        raise CheckpointError("config.json asks for a second head of no convolutions, as none was published.")
    return config


def _channels(config: UPerNetConfig) -> int:
    """Of the map that the second head reads."""
    backbone: Any = config.backbone
    return int((backbone.widths if hasattr(backbone, "widths") else backbone.stage_channels)[config.auxiliary_level])


def _name(config: UPerNetConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes, pictures and what matters in training only."""
    fields = ("image_size", "channels", "num_classes", "auxiliary")
    return variant_name(config, VARIANTS, fields, inside=("drop_path",))


def _rows(config: UPerNetConfig, body: str) -> list[Row]:
    """The table; `body` stands before the names of the backbone."""
    stages = len(config.backbone.depths)
    rows = trunk_rows(config.backbone, "trunk", body)
    parts = [(f"pooling.pooled.{place}", f"psp_modules.{place}.1") for place in range(len(config.pool_grids))]
    parts += [("pooling.join", "bottleneck"), ("join", "fpn_bottleneck")]
    for place in range(stages - 1):
        parts += [(f"lateral.{place}", f"lateral_convs.{place}"), (f"smooth.{place}", f"fpn_convs.{place}")]
    named = [(ours, f"{_HEAD}.{theirs}") for ours, theirs in parts]
    if config.auxiliary:
        named += [
            (f"auxiliary.convolutions.{place}", f"{_AUXILIARY}.convs.{place}") for place in range(config.auxiliary_depth)
        ]
        named += [("auxiliary.join", f"{_AUXILIARY}.conv_cat")] if config.auxiliary_joined else []
    for ours, theirs in named:
        rows += conv_norm(ours, f"{theirs}.conv", f"{theirs}.batch_norm", "batch")
    rows += renamed("head", f"{_HEAD}.classifier")
    return rows + (renamed("auxiliary.head", f"{_AUXILIARY}.classifier") if config.auxiliary else [])


def _compose(model: nn.Module) -> Written:
    network = cast(UPerNet, model)
    config, record = network.config, network.record
    wrong = {
        f"a second head of {config.auxiliary_depth} convolutions": config.auxiliary_depth < 1,
        f"a second head that reads map {config.auxiliary_level}": config.auxiliary_level != _LEVEL,
    }
    found = [what for what, present in wrong.items() if present and config.auxiliary]
    if found:
        raise UsageError(f"transformers' layout of UPerNet cannot state {' and '.join(found)}. Use layout='vitral'.")
    described: dict[str, Any] = {
        "architectures": ["UperNetForSemanticSegmentation"],
        "model_type": _TYPE,
        "backbone_config": described_trunk(config.backbone),
        "hidden_size": config.width,
        "pool_scales": list(config.pool_grids),
        "use_auxiliary_head": config.auxiliary,
        "auxiliary_loss_weight": 0.4,
        "auxiliary_in_channels": _channels(config) if config.auxiliary else None,
        "auxiliary_channels": config.auxiliary_width,
        "auxiliary_num_convs": config.auxiliary_depth,
        "auxiliary_concat_input": config.auxiliary_joined,
        "loss_ignore_index": 255,
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes, processor="Segformer")
    return Written(model=network, rows=_rows(config, _BODY), documents=documents)


LAYOUT = Layout(name="transformers", network=UPerNet, recognises=_recognises, plan=_plan, compose=_compose)
