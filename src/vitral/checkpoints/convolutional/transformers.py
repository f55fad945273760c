"""transformers' layout of ResNet: config.json of model type resnet, preprocessor_config.json, and names of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, conv_norm, counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, renamed
from vitral.checkpoints.vocabulary import check_described, transformers_documents, transformers_record
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNet, ResNetConfig

__all__ = ["LAYOUT", "described_resnet", "resnet_rows"]

_TYPE = "resnet"
# What transformers assumes where a config.json does not say.
_USUAL: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    return any(name.endswith("embedder.embedder.convolution.weight") for name in files.tensors) and any(
        ".layers.0.layer.0.convolution.weight" in name for name in files.tensors
    )


def _plan(files: Files, named: ResNetConfig | None) -> Plan:
    check_described(files)
    told = {**_USUAL, **files.config}
    tensors = {name.removeprefix("resnet."): files.tensors[name] for name in files.tensors}
    if told["hidden_act"] != "relu" or told["downsample_in_first_stage"]:
        raise CheckpointError(
            f"config.json asks for hidden_act {told['hidden_act']!r} and downsample_in_first_stage "
            f"{told['downsample_in_first_stage']!r}; ResNets were published with 'relu' and False."
        )
    head = tensors.get("classifier.1.weight")
    config = replace(
        named or ResNetConfig(),
        block=told["layer_type"],
        channels=int(told["num_channels"]),
        stem_width=int(told["embedding_size"]),
        stage_channels=tuple(map(int, told["hidden_sizes"])),
        depths=tuple(map(int, told["depths"])),
        groups=1,
        base_width=64,
        strides_first=bool(told["downsample_in_bottleneck"]) and told["layer_type"] == "bottleneck",
        num_classes=0 if head is None else int(head.shape[0]),
    )
    prepared = _prepared(files.preprocessor, config)
    if prepared is not None and prepared.input_size is not None:
        config = replace(config, image_size=prepared.input_size)
    record = transformers_record(files, architecture=_TYPE, num_classes=config.num_classes, preprocessing=prepared)
    rows = resnet_rows(config)
    return Plan(
        build=ResNet,
        config=config,
        rows=rows,
        tensors=counted(tensors, rows),
        record=record,
        ignored=(FOREIGN_COUNTERS,) if config.norm == "frozen" else (),
    )


def _prepared(processor: dict[str, Any], config: ResNetConfig) -> Preprocessing | None:
    """As the processor of ConvNeXT does, which ResNets were published with: below 384 pixels with a margin of crop_pct."""
    named = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "ConvNext")
    if config.channels != 3:
        return None
    if not re.match("ConvNext(ImageProcessor|FeatureExtractor)?", named):
        return from_transformers(processor, _TYPE, config.image_size)
    size = processor.get("size", min(config.image_size))
    edge = int(size.get("shortest_edge") or size["height"]) if isinstance(size, dict) else int(size)
    margin = edge < 384
    usual: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor" if margin else "ViTImageProcessor",
        "resample": 3,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    whole = {"height": edge, "width": edge}
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": int(edge / float(processor.get("crop_pct") or 224 / 256))} if margin else whole,
        "do_center_crop": margin,
        "crop_size": whole,
    }
    kept = {key: value for key, value in processor.items() if key not in ("crop_pct", *usual, *sizes) and value is not None}
    usual |= {key: processor[key] for key in ("resample", "image_mean", "image_std") if processor.get(key) is not None}
    return from_transformers({**kept, **usual, **sizes}, _TYPE, config.image_size)


def resnet_rows(config: ResNetConfig) -> list[Row]:
    """The table of a network, with names as they are in a bare one, to which a model with a head adds a prefix."""
    stem = "embedder.embedder"
    rows = conv_norm("stem", f"{stem}.convolution", f"{stem}.normalization", config.norm)
    before = config.stem_width
    for stage, (channels, depth) in enumerate(zip(config.stage_channels, config.depths, strict=True)):
        for place in range(depth):
            ours, theirs = f"stages.{stage}.{place}", f"encoder.stages.{stage}.layers.{place}"
            for number, part in enumerate(("first", "second", "third")[: 3 if config.block == "bottleneck" else 2]):
                layer = f"{theirs}.layer.{number}"
                rows += conv_norm(f"{ours}.{part}", f"{layer}.convolution", f"{layer}.normalization", config.norm)
            strided = stage > 0 and config.strides[stage] != config.strides[stage - 1]
            if place == 0 and (strided or before != channels):
                layer = f"{theirs}.shortcut"
                rows += conv_norm(f"{ours}.shortcut", f"{layer}.convolution", f"{layer}.normalization", config.norm)
        before = channels
    return rows + (renamed("head", "classifier.1") if config.num_classes else [])


def _compose(model: nn.Module) -> Written:
    network = cast(ResNet, model)
    config, record = network.config, network.record
    rows = resnet_rows(config)
    if config.num_classes:
        names = [tuple(n if n.startswith("classifier") else f"resnet.{n}" for n in row.theirs) for row in rows]
        rows = [replace(row, theirs=theirs) for row, theirs in zip(rows, names, strict=True)]
    described = {
        "architectures": ["ResNetForImageClassification" if config.num_classes else "ResNetModel"],
        **described_resnet(config),
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes)
    return Written(model=model, rows=rows, documents=documents)


def described_resnet(config: ResNetConfig) -> dict[str, Any]:
    """A network in the words of a config.json, as far as they do not depend on its head.

    Raises:
        UsageError: transformers has no such ResNet.
    """
    wrong = [
        (config.norm == "frozen", "norms that stay as they are"),
        (config.dilated > 0, "dilated stages"),
        (config.stem == "deep" or config.pooled or config.projected, "deep stem, nor shortcuts that average (ResNet-D)"),
        ((config.groups, config.base_width) != (1, 64), "groups, or bottlenecks of another width"),
    ]
    found = [what for present, what in wrong if present]
    if found:
        raise UsageError(f"transformers' ResNet has no {', '.join(found)}. Use layout='vitral' or 'torchvision'.")
    return {
        "model_type": _TYPE,
        "num_channels": config.channels,
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.stage_channels),
        "depths": list(config.depths),
        "layer_type": config.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": config.strides_first,
    }


LAYOUT = Layout(name="transformers", network=ResNet, recognises=_recognises, plan=_plan, compose=_compose)
