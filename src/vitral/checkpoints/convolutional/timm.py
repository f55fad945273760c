"""timm's layout of ResNet, Wide ResNet, ResNeXt and VGG: config.json beside weights in (nearly) torchvision's names.

Relatives that share these names but compute otherwise (ResNet-D, anti-aliased and blurring networks, ResNet-RS) are refused
by their names: some of them could not be told from a ResNet by any tensor.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.convolutional.names import (
    FOREIGN_COUNTERS,
    counted,
    resnet_rows,
    resnet_seen,
    vgg_rows,
    vgg_seen,
)
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels, variant_name
from vitral.checkpoints.preprocessing import from_timm, to_timm
from vitral.checkpoints.table import Row, renamed, shaped
from vitral.checkpoints.vocabulary import add_timm_record, timm_labels
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import VARIANTS, ResNet, ResNetConfig
from vitral.models.backbones.vgg import VARIANTS as VGGS
from vitral.models.backbones.vgg import VGG, VGGConfig
from vitral.models.network import Network
from vitral.models.record import Record

__all__ = ["LAYOUTS"]

_RESNETS = re.compile(r"((gluon|ssl|swsl|tv|ig)_)?(wide_resnet\d+_2|resnet\d+(_v1b|d)?|resnext\d+_\d+x\d+d)(\..*)?")
# Arguments of timm's ResNet that change what is computed and leave a ResNet's names as they are.
_ARGS = (
    "layers",
    "channels",
    "in_chans",
    "cardinality",
    "base_width",
    "output_stride",
    "num_classes",
    "block",
    "global_pool",
)
_FREE = ("image_size", "channels", "num_classes")  # fields that do not make another network


def _recognises_resnet(files: Files) -> bool:
    stem = "conv1.weight" in files.tensors or "conv1.6.weight" in files.tensors
    return _is_timms(files) and stem and {"bn1.weight", "layer1.0.conv1.weight"} <= files.tensors.keys()


def _recognises_vgg(files: Files) -> bool:
    return {"features.0.weight", "pre_logits.fc1.weight"} <= files.tensors.keys()


def _is_timms(files: Files) -> bool:
    return "architecture" in files.config and "model_type" not in files.config


def _plan_resnet(files: Files, named: ResNetConfig | None) -> Plan:
    name, args = str(files.config["architecture"]), files.config.get("model_args") or {}
    if not _RESNETS.fullmatch(name) or set(args) - set(_ARGS):
        other = ", ".join(sorted(set(args) - set(_ARGS))) or name
        raise CheckpointError(
            f"{files.source} is a relative of ResNet with parts that this reader does not know ({other}). It was refused "
            "rather than computed wrongly."
        )
    stride = args.get("output_stride", 32)
    if stride not in (8, 16, 32) or args.get("global_pool", "avg") != "avg":
        raise CheckpointError(f"config.json asks for {args}; output_stride may be 8, 16 or 32, and global_pool 'avg'.")
    base = named or ResNetConfig(dilated=int(math.log2(32 // stride)))
    config = replace(base, image_size=_image_size(files, base), **resnet_seen(files.tensors, files.source))
    ignored = (FOREIGN_COUNTERS,) if config.norm == "frozen" else ()
    return _plan(files, ResNet, config, resnet_rows(config), ignored)


def _plan_vgg(files: Files, named: VGGConfig | None) -> Plan:
    tensors, seen = files.tensors, vgg_seen(files.tensors)
    if named is not None and named.norm == "frozen" and seen["norm"] == "batch":
        seen["norm"] = "frozen"
    base = named or VGGConfig()
    config = replace(
        base,
        **seen,
        image_size=_image_size(files, base),
        classifier_width=int(tensors["pre_logits.fc1.weight"].shape[0]),
        reading="windows",
        num_classes=int(tensors["head.fc.weight"].shape[0]) if "head.fc.weight" in tensors else 0,
    )
    ignored = (FOREIGN_COUNTERS,) if config.norm == "frozen" else ()
    return _plan(files, VGG, config, _vgg_table(config), ignored)


def _vgg_table(config: VGGConfig) -> list[Row]:
    hidden, cells = config.classifier_width, (config.width, 7, 7)
    rows = vgg_rows(config)
    for number, shape in enumerate((cells, (hidden, 1, 1))):
        ours, theirs = f"hidden.{number}", f"pre_logits.fc{number + 1}"
        rows += [shaped(f"{ours}.weight", f"{theirs}.weight", (hidden, math.prod(shape)), (hidden, *shape))]
        rows += renamed(ours, theirs)[1:]
    return rows + (renamed("head", "head.fc") if config.num_classes else [])


def _plan(files: Files, build: type[Network], config: Any, rows: list[Row], ignored: tuple[str, ...]) -> Plan:
    told = files.config
    pretrained = told.get("pretrained_cfg") or {}
    record = Record(
        architecture=str(told.get("architecture", "")),
        layout="timm",
        source=files.source,
        preprocessing=from_timm(pretrained, config.image_size) if config.channels in (1, 3) else None,
        labels=timm_labels(told, config.num_classes),
        licence=pretrained.get("license"),
    )
    return Plan(
        build=build,
        config=config,
        rows=rows,
        tensors=counted(files.tensors, rows),
        record=usual_labels(record, config.num_classes),
        ignored=ignored,
    )


def _image_size(files: Files, config: Any) -> tuple[int, int]:
    said = (files.config.get("pretrained_cfg") or {}).get("input_size")
    return (int(said[-2]), int(said[-1])) if said else config.image_size


def _compose_resnet(model: nn.Module) -> Written:
    config = cast(ResNet, model).config
    frozen = replace(config, norm="batch") != config
    expansion = 4 if config.block == "bottleneck" else 1
    wrong = {
        f"a first convolution of {config.stem_width} channels (64 it must have)": config.stem_width != 64,
        f"{len(config.depths)} stages (4 there must be)": len(config.depths) != 4,
        "a stride in the first convolution of a bottleneck": config.strides_first,
        "norms that stay as they are": frozen,
        "one half of what makes a ResNet-D": (config.stem == "deep") != config.pooled,
        "three dilated stages": config.dilated > 2,
        f"stages of {config.stage_channels} channels, which are no multiples of 4": any(
            channels % expansion for channels in config.stage_channels
        ),
    }
    _refuse(wrong)
    name = ("resnet34" if config.block == "basic" else "resnet50") + ("d" if config.pooled else "")
    args = {
        "layers": list(config.depths),
        "channels": [channels // expansion for channels in config.stage_channels],
        "in_chans": config.channels,
        "cardinality": config.groups,
        "base_width": config.base_width,
        "output_stride": 32 >> config.dilated,
    }
    exact = variant_name(config, VARIANTS, _FREE)
    if exact is not None:  # a network of timm's own, which needs no arguments
        name, args = exact, {"in_chans": config.channels}
    return _written(cast(Network, model), name, args, resnet_rows(config), "conv1", "fc")


def _compose_vgg(model: nn.Module) -> Written:
    config = cast(VGG, model).config
    plain = replace(config, reading="averaged", dropout=VGGConfig().dropout)
    name = variant_name(plain, VGGS, _FREE)
    _refuse(
        {
            "a VGG of other sizes than the published": name is None,
            "fully connected layers that read an averaged map, except for pictures of 224 × 224": config.reading
            == "averaged"
            and config.grid != (7, 7),
        }
    )
    return _written(
        cast(Network, model), str(name), {"in_chans": config.channels}, _vgg_table(config), "features.0", "head.fc"
    )


def _refuse(wrong: dict[str, bool]) -> None:
    found = [what for what, present in wrong.items() if present]
    if found:
        raise UsageError(f"timm's layout cannot state {', '.join(found)}. Use layout='vitral' or 'torchvision'.")


def _written(model: Network, name: str, args: dict[str, Any], rows: list[Row], first: str, classifier: str) -> Written:
    config, record = model.config, model.record
    prepared = record.preprocessing
    described: dict[str, Any] = {
        "architecture": name,
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": {
            "tag": "vitral",
            "num_classes": config.num_classes,
            "first_conv": first,
            "classifier": classifier,
            **(to_timm(prepared, config.channels) if prepared else {"input_size": [config.channels, *config.image_size]}),
        },
    }
    add_timm_record(described, record)
    return Written(model=model, rows=rows, documents={"config.json": described})


LAYOUTS: tuple[Layout, ...] = (
    Layout(name="timm", network=ResNet, recognises=_recognises_resnet, plan=_plan_resnet, compose=_compose_resnet),
    Layout(name="timm", network=VGG, recognises=_recognises_vgg, plan=_plan_vgg, compose=_compose_vgg),
)
"""One layout for each family."""
