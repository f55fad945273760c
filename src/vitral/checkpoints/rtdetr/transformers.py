"""transformers' layout of RT-DETR: config.json of model type rt_detr or rt_detr_v2, and names of its own.

The names are those of the files on the Hub. Newer releases of transformers call some parts otherwise, read the old names
and write them; both are read here. The decoder's heads are in a file once or twice, under `model.decoder.` and before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitral.checkpoints.convolutional.names import conv_norm, counted
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import Processor, from_transformers
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.checkpoints.vocabulary import (
    activation_of,
    check_described,
    hidden_act_of,
    transformers_documents,
    transformers_record,
)
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.denoising import Noise
from vitral.models.detection.hybrid_encoder import HybridEncoderConfig
from vitral.models.detection.rtdetr import RTDETR, VARIANTS, RTDETRConfig

__all__ = ["LAYOUT", "architecture_of", "prepared", "rows"]

_TYPES = ("rt_detr", "rt_detr_v2")
_PROCESSOR: Processor = "RTDetr"
# What transformers assumes where a config.json does not say.
_USUAL: dict[str, Any] = {
    "freeze_backbone_batch_norms": True,
    "encoder_hidden_dim": 256,
    "encoder_layers": 1,
    "encoder_ffn_dim": 1024,
    "encoder_attention_heads": 8,
    "encoder_activation_function": "gelu",
    "activation_function": "silu",
    "hidden_expansion": 1.0,
    "dropout": 0.0,
    "d_model": 256,
    "num_queries": 300,
    "decoder_in_channels": (256, 256, 256),
    "decoder_ffn_dim": 1024,
    "decoder_n_points": 4,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "decoder_activation_function": "relu",
    "num_denoising": 100,
    "label_noise_ratio": 0.5,
    "box_noise_scale": 1.0,
    "decoder_offset_scale": 0.5,
    "decoder_method": "default",
}
# What all published networks have in common, and a network here cannot have otherwise.
_FIXED: dict[str, Any] = {
    "batch_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "learn_initial_query": False,
    "normalize_before": False,
    "positional_encoding_temperature": 10000,
    "with_box_refine": True,
}
_USUAL_BACKBONE: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "layer_type": "bottleneck",
    "downsample_in_bottleneck": False,
}
_FIXED_BACKBONE: dict[str, Any] = {
    "model_type": "rt_detr_resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
}
_SAMPLING = {"default": "bilinear", "discrete": "discrete"}
_FUSED = 3  # convolutions in a row where two maps are fused

# Names of newer releases, and those of the heads that are there twice → the names on the Hub.
_SPELLINGS = (
    (r"(self_attn\.)o_proj\.", r"\1out_proj."),
    (r"(layers\.\d+\.)mlp\.(fc\d)", r"\1\2"),
    (r"^(model\.encoder\.)aifi\.", r"\1encoder."),
    (r"^(class|bbox)_embed\.", r"model.decoder.\1_embed."),
)
_CONSTANT = ".n_points_scale"  # one over the number of places, which the configuration tells


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] in _TYPES
    return "model.enc_score_head.weight" in files.tensors and "model.encoder.lateral_convs.0.conv.weight" in files.tensors


def _plan(files: Files, named: RTDETRConfig | None) -> Plan:
    check_described(files)
    if "model_type" not in files.config:
        raise CheckpointError(
            f"The config.json of {files.source} does not say its model_type: {' or '.join(_TYPES)}. The tensors of both "
            "have the same names; write the right one into it."
        )
    tensors = _spelt(files.tensors)
    head = tensors.get("model.enc_score_head.weight")
    if head is None:
        raise CheckpointError(f"{files.source} holds no heads for classes and boxes; a detector was expected.")
    config = _config(files.config, int(head.shape[0]))
    preparation = prepared(files.preprocessor, config)
    if preparation is not None and preparation.input_size is not None:
        config = replace(config, image_size=preparation.input_size)
    record = transformers_record(
        files,
        architecture=architecture_of(config, 1 + _TYPES.index(files.config["model_type"])),
        num_classes=config.num_classes,
        preprocessing=preparation,
    )
    table = rows(config)
    if config.backbone.norm == "frozen":  # which counts no batches
        pattern = re.compile(r"model\.backbone\..*\.num_batches_tracked")
        tensors = {name: tensor for name, tensor in tensors.items() if not pattern.fullmatch(name)}
    return Plan(build=RTDETR, config=config, rows=table, tensors=counted(tensors, table), record=record)


def _spelt(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors by the names on the Hub, each once, without constants."""
    found: dict[str, Tensor] = {}
    for name in tensors:
        spelt = name
        for pattern, replacement in _SPELLINGS:
            spelt = re.sub(pattern, replacement, spelt)
        if not name.endswith(_CONSTANT) and (spelt == name or spelt not in tensors):
            found[spelt] = tensors[name]
    return found


def _config(told: dict[str, Any], num_classes: int) -> RTDETRConfig:
    backbone = dict(told.get("backbone_config") or {})
    _check_fixed(told, _FIXED, "")
    _check_fixed(backbone, _FIXED_BACKBONE, "backbone_config.")
    if told.get("backbone") or told.get("use_timm_backbone"):
        raise CheckpointError(
            f"config.json asks for the backbone {told.get('backbone')!r} of another library; RT-DETRs on transformers' own "
            "ResNet (model type rt_detr_resnet) are read."
        )
    value, base = {**_USUAL, **told}, {**_USUAL_BACKBONE, **backbone}
    levels, stages = len(value["decoder_in_channels"]), len(base["depths"])
    width = int(value["encoder_hidden_dim"])
    _check_maps(value, backbone, levels, stages)
    channels = (int(base["embedding_size"]), *map(int, base["hidden_sizes"]))
    alike = [one == other for one, other in pairwise(channels)]
    if alike[0] if base["layer_type"] == "bottleneck" else alike != [True] + [False] * (stages - 1):
        raise CheckpointError(
            f"In a backbone of {base['layer_type']!r} blocks with channels {channels} transformers leaves shortcuts out, or "
            "halves maps otherwise than published networks do."
        )
    return RTDETRConfig(
        channels=int(base["num_channels"]),
        num_classes=num_classes,
        backbone=ResNetConfig(
            block=base["layer_type"],
            stem="deep",
            stem_width=channels[0],
            stage_channels=channels[1:],
            depths=tuple(map(int, base["depths"])),
            strides_first=bool(base["downsample_in_bottleneck"]) and base["layer_type"] == "bottleneck",
            norm="frozen" if value["freeze_backbone_batch_norms"] else "batch",
            pooled=True,
            projected=True,
        ),
        encoder=HybridEncoderConfig(
            width=width,
            heads=int(value["encoder_attention_heads"]),
            hidden=int(value["encoder_ffn_dim"]),
            depth=int(value["encoder_layers"]),
            activation=activation_of(value["encoder_activation_function"]),
            expansion=float(value["hidden_expansion"]),
            fusion_activation=activation_of(value["activation_function"]),
            dropout=float(value["dropout"]),
        ),
        width=int(value["d_model"]),
        heads=int(value["decoder_attention_heads"]),
        hidden=int(value["decoder_ffn_dim"]),
        activation=activation_of(value["decoder_activation_function"]),
        decoder_depth=int(value["decoder_layers"]),
        queries=int(value["num_queries"]),
        points=(int(value["decoder_n_points"]),) * levels,
        sampling=cast(Any, _SAMPLING.get(value["decoder_method"], value["decoder_method"])),
        reach=float(value["decoder_offset_scale"]),
        noise=Noise(
            queries=int(value["num_denoising"]),
            labels=float(value["label_noise_ratio"]),
            boxes=float(value["box_noise_scale"]),
        ),
        dropout=float(value["dropout"]),
    )


def _check_fixed(told: dict[str, Any], fixed: dict[str, Any], where: str) -> None:
    for name, value in fixed.items():
        if told.get(name, value) != value:
            raise CheckpointError(
                f"config.json asks for {where}{name}={told[name]!r}; RT-DETRs were published with {value!r}."
            )


def _check_maps(value: dict[str, Any], backbone: dict[str, Any], levels: int, stages: int) -> None:
    """Refuse a network that takes other maps than the last ones, or attends on another than the coarsest."""
    width = value["encoder_hidden_dim"]
    usual: dict[str, Any] = {
        "decoder_in_channels": [width] * levels,
        "encode_proj_layers": [levels - 1],
        "num_feature_levels": levels,
        "decoder_n_levels": levels,
    }
    last = list(range(stages + 1 - levels, stages + 1))
    taken = {"out_indices": last, "out_features": [f"stage{place}" for place in last]}
    for told, expected in ((value, usual), (backbone, taken)):
        for name, like in expected.items():
            came = told.get(name)
            came = list(came) if isinstance(came, list | tuple) else came
            if came is not None and came != like:
                raise CheckpointError(
                    f"config.json asks for {name}={came!r}; a network that takes {levels} maps of {width} channels and "
                    f"attends on the coarsest has {like!r}."
                )


def architecture_of(config: RTDETRConfig, version: int) -> str:
    """The catalogue's name for a network, whatever its norms, its noise and its classes; the family's where it has none.

    Args:
        config: the network's.
        version: 1, or 2 for RT-DETRv2.
    """

    def plain(one: RTDETRConfig) -> RTDETRConfig:
        norm, usual = replace(one.backbone, norm="frozen"), RTDETRConfig()
        like = {"image_size": usual.image_size, "num_classes": usual.num_classes, "noise": usual.noise}
        return replace(one, backbone=norm, **cast(Any, like))

    family, wanted = "rtdetr" if version == 1 else "rtdetrv2", plain(config)
    found = (name for name, one in VARIANTS.items() if name.startswith(f"{family}_") and plain(one) == wanted)
    return next(found, family)


def prepared(processor: dict[str, Any], config: RTDETRConfig) -> Preprocessing | None:
    """How pictures are prepared: resized to the network's size whatever their shape, and scaled to [0, 1].

    Args:
        processor: a preprocessor_config.json; empty where there is none.
        config: the network's.

    Returns:
        None for a processor, or a step of one, that is not known here.
    """
    if config.channels != 3:
        return None
    height, width = config.image_size
    told = processor or {"size": {"height": height, "width": width}}
    if not (told.get("image_processor_type") or told.get("feature_extractor_type")):
        told = {**told, "image_processor_type": f"{_PROCESSOR}ImageProcessor"}
    return from_transformers(told, _TYPES[0], config.image_size)


def rows(config: RTDETRConfig) -> list[Row]:
    """The table of a network in the names on the Hub."""
    table = _backbone_rows(config.backbone) + _encoder_rows(config)
    for place in range(len(config.points)):
        theirs = f"model.decoder_input_proj.{place}"
        table += conv_norm(f"memory.{place}", f"{theirs}.0", f"{theirs}.1", "batch")
    for part in (0, 1):
        table += renamed(f"proposal.{part}", f"model.enc_output.{part}")
    table += renamed("proposal_classes", "model.enc_score_head")
    table += _perceptron("proposal_box", "model.enc_bbox_head", 3)
    if config.noise.queries:
        table += [same("noisy.weight", "model.denoising_class_embed.weight")]
    table += _perceptron("position", "model.decoder.query_pos_head", 2)
    for place in range(config.decoder_depth):
        table += _block_rows(f"decoder.{place}", f"model.decoder.layers.{place}", decoder=True)
        table += renamed(f"classes.{place}", f"model.decoder.class_embed.{place}")
        table += _perceptron(f"boxes.{place}", f"model.decoder.bbox_embed.{place}", 3)
    return table


def _backbone_rows(config: ResNetConfig) -> list[Row]:
    table: list[Row] = []

    def layer(ours: str, theirs: str) -> None:
        nonlocal table
        theirs = f"model.backbone.model.{theirs}"
        table += conv_norm(f"backbone.{ours}", f"{theirs}.convolution", f"{theirs}.normalization", config.norm)

    for place in range(3):
        layer(f"stem.{place}", f"embedder.embedder.{place}")
    for stage, depth in enumerate(config.depths):
        for place in range(depth):
            ours, theirs = f"stages.{stage}.{place}", f"encoder.stages.{stage}.layers.{place}"
            for number, part in enumerate(("first", "second", "third")[: 3 if config.block == "bottleneck" else 2]):
                layer(f"{ours}.{part}", f"{theirs}.layer.{number}")
            if place == 0:
                layer(f"{ours}.shortcut", f"{theirs}.shortcut.1" if stage else f"{theirs}.shortcut")
    return table


def _encoder_rows(config: RTDETRConfig) -> list[Row]:
    table: list[Row] = []

    def layer(ours: str, theirs: str) -> None:
        nonlocal table
        table += conv_norm(f"encoder.{ours}", f"model.encoder.{theirs}.conv", f"model.encoder.{theirs}.norm", "batch")

    levels, encoder = len(config.points), config.encoder
    for place in range(levels):
        theirs = f"model.encoder_input_proj.{place}"
        table += conv_norm(f"encoder.projections.{place}", f"{theirs}.0", f"{theirs}.1", "batch")
    for place in range(encoder.depth):
        table += _block_rows(f"encoder.blocks.{place}", f"model.encoder.encoder.0.layers.{place}", decoder=False)
    for place in range(levels - 1):
        layer(f"laterals.{place}", f"lateral_convs.{place}")
        layer(f"strides.{place}", f"downsample_convs.{place}")
        for ours, theirs in ((f"down.{place}", f"fpn_blocks.{place}"), (f"up.{place}", f"pan_blocks.{place}")):
            layer(f"{ours}.deep", f"{theirs}.conv1")
            layer(f"{ours}.straight", f"{theirs}.conv2")
            if encoder.fused != encoder.width:
                layer(f"{ours}.widen", f"{theirs}.conv3")
            for number in range(encoder.fusion_depth):
                layer(f"{ours}.blocks.{number}", f"{theirs}.bottlenecks.{number}.conv1")
                layer(f"{ours}.blocks.{number}.point", f"{theirs}.bottlenecks.{number}.conv2")
    return table


def _block_rows(ours: str, theirs: str, *, decoder: bool) -> list[Row]:
    names = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.projection": "self_attn.out_proj",
        "norm1": "self_attn_layer_norm",
        "mlp.up": "fc1",
        "mlp.down": "fc2",
        "norm3" if decoder else "norm2": "final_layer_norm",
    }
    if decoder:
        names |= {
            "cross_attention.offsets": "encoder_attn.sampling_offsets",
            "cross_attention.weights": "encoder_attn.attention_weights",
            "cross_attention.value": "encoder_attn.value_proj",
            "cross_attention.projection": "encoder_attn.output_proj",
            "norm2": "encoder_attn_layer_norm",
        }
    return [row for one, other in names.items() for row in renamed(f"{ours}.{one}", f"{theirs}.{other}")]


def _perceptron(ours: str, theirs: str, layers: int) -> list[Row]:
    return [row for place in range(layers) for row in renamed(f"{ours}.layers.{place}", f"{theirs}.layers.{place}")]


def _compose(model: nn.Module) -> Written:
    network = cast(RTDETR, model)
    config, record = network.config, network.record
    backbone, encoder = config.backbone, config.encoder
    wrong = [
        (len(set(config.points)) > 1, "a number of places that differs from map to map"),
        (encoder.fusion_depth != _FUSED, f"other than {_FUSED} convolutions in a row where maps are fused"),
        ((backbone.groups, backbone.base_width) != (1, 64), "groups in its backbone, or bottlenecks of another width"),
        ((backbone.stem, backbone.pooled, backbone.projected) != ("deep", True, True), "a backbone that is no ResNet-D"),
        (encoder.dropout != config.dropout, "one dropout in its encoder and another in its decoder"),
    ]
    found = [what for present, what in wrong if present]
    if found:
        raise UsageError(f"transformers' RT-DETR has no {', no '.join(found)}. Use layout='vitral'.")
    if config.evaluated_depth is not None:
        # transformers has no blocks that only training uses; without them the network answers the same.
        config = replace(config, decoder_depth=config.evaluated_depth, evaluated_depth=None)
    second = record.architecture.startswith("rtdetrv2") or (config.sampling, config.reach) != ("bilinear", 0.5)
    documents = transformers_documents(_described(config, second), record, config.num_classes, processor=_PROCESSOR)
    try:
        reread = _config(documents["config.json"], config.num_classes)
    except CheckpointError as error:
        raise UsageError(f"transformers' RT-DETR cannot state this network. {error} Use layout='vitral'.") from error
    if replace(reread, image_size=config.image_size) != config:
        raise UsageError("transformers' RT-DETR cannot state this network. Use layout='vitral'.")
    table = rows(config)
    return Written(model=network, rows=_with_constants(table, config) if second else table, documents=documents)


def _described(config: RTDETRConfig, second: bool) -> dict[str, Any]:
    backbone, encoder, levels = config.backbone, config.encoder, len(config.points)
    stages = len(backbone.depths)
    last = list(range(stages + 1 - levels, stages + 1))
    described: dict[str, Any] = {
        "architectures": ["RTDetrV2ForObjectDetection" if second else "RTDetrForObjectDetection"],
        "model_type": _TYPES[second],
        **_FIXED,
        "backbone_config": {
            **_FIXED_BACKBONE,
            "num_channels": config.channels,
            "embedding_size": backbone.stem_width,
            "hidden_sizes": list(backbone.stage_channels),
            "depths": list(backbone.depths),
            "layer_type": backbone.block,
            "downsample_in_bottleneck": backbone.strides_first,
            "out_indices": last,
            "out_features": [f"stage{place}" for place in last],
        },
        "freeze_backbone_batch_norms": backbone.norm == "frozen",
        "encoder_hidden_dim": encoder.width,
        "encoder_in_channels": list(backbone.stage_channels[-levels:]),
        "feat_strides": list(backbone.strides[-levels:]),
        "encoder_layers": encoder.depth,
        "encoder_ffn_dim": encoder.hidden,
        "encoder_attention_heads": encoder.heads,
        "encode_proj_layers": [levels - 1],
        "encoder_activation_function": hidden_act_of(encoder.activation),
        "activation_function": hidden_act_of(encoder.fusion_activation),
        "hidden_expansion": encoder.expansion,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "d_model": config.width,
        "num_queries": config.queries,
        "decoder_in_channels": [encoder.width] * levels,
        "decoder_ffn_dim": config.hidden,
        "num_feature_levels": levels,
        "decoder_n_points": config.points[0],
        "decoder_layers": config.decoder_depth,
        "decoder_attention_heads": config.heads,
        "decoder_activation_function": hidden_act_of(config.activation),
        "num_denoising": config.noise.queries,
        "label_noise_ratio": config.noise.labels,
        "box_noise_scale": config.noise.boxes,
        "dtype": "float32",
    }
    if second:
        described |= {
            "decoder_n_levels": levels,
            "decoder_offset_scale": config.reach,
            "decoder_method": next(theirs for theirs, ours in _SAMPLING.items() if ours == config.sampling),
        }
    return described


def _with_constants(table: Sequence[Row], config: RTDETRConfig) -> list[Row]:
    """The table with the constants that transformers keeps beside the offsets of version 2."""
    scales = torch.cat([torch.full((points,), 1 / points) for points in config.points])

    def beside(row: Row) -> Row:
        constant = row.theirs[0].replace(".sampling_offsets.bias", _CONSTANT)
        return replace(row, theirs=(*row.theirs, constant), write=lambda tensor: [tensor, scales])

    return [beside(row) if row.ours.endswith(".offsets.bias") else row for row in table]


LAYOUT = Layout(name="transformers", network=RTDETR, recognises=_recognises, plan=_plan, compose=_compose)
