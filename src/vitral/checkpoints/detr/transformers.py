"""transformers' layout of DETR: config.json, preprocessor_config.json, and the names of DetrForObjectDetection.

The residual network within is timm's, in timm's names, as all published files have it, or transformers' own. A network that
also makes masks (DetrForSegmentation) has a detector within, and a layout of its own here. Names have changed with
transformers' versions, in files and in memory; all are read, and those of the published files are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, resnet_rows, resnet_seen
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, variant_name
from vitral.checkpoints.preprocessing import from_transformers, landscape_size
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.checkpoints.vocabulary import check_described, transformers_documents, transformers_record
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones import resnet
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.detr import DETR, VARIANTS, DETRConfig
from vitral.models.segmentation import detr_masks
from vitral.models.segmentation.detr_masks import MaskedDETR, MaskedDETRConfig

__all__ = ["LAYOUTS", "catalogue_name", "mask_rows"]

_TYPE = "detr"
# What a config.json may leave out.
_USUAL: dict[str, Any] = {
    "num_channels": 3,
    "num_queries": 100,
    "d_model": 256,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "dropout": 0.1,
    "dilation": False,
}
_BODY = "backbone.conv_encoder.model."
# Names in memory, and what wrappers put before names → names in files, each applied once.
_SPELLINGS = [
    (r"^(detr\.)?(model\.)?", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", _BODY),
    (r"\.o_proj\.", ".out_proj."),
    (r"(layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv(\d)\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv(\d)\.norm\.", r"mask_head.gn\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
]
_FINER = re.compile(r"^mask_head\.fpn_stages\.(\d)\.(fpn_adapter|refine\.conv|refine\.norm)\.")
# A layer that only a network that makes masks has.
_MASKS = "bbox_attention.q_linear.weight"
_OURS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "projection": "out_proj"}


def _is_of_the_type(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    names = {_spelled(name) for name in files.tensors if "query_position_embeddings" in name or "class_labels" in name}
    return {"query_position_embeddings.weight", "class_labels_classifier.weight"} <= names


def _makes_masks(files: Files) -> bool:
    return any(_spelled(name) == _MASKS for name in files.tensors if name.startswith("bbox_attention."))


def _detects(files: Files) -> bool:
    return _is_of_the_type(files) and not _makes_masks(files)


def _segments(files: Files) -> bool:
    return _is_of_the_type(files) and _makes_masks(files)


def _spelled(name: str) -> str:
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    if finer := _FINER.match(name):  # the numbers of the layers go on where the first two end
        stage, part = int(finer[1]), finer[2]
        spelled = {"fpn_adapter": f"adapter{stage + 1}", "refine.conv": f"lay{stage + 3}", "refine.norm": f"gn{stage + 3}"}
        name = f"mask_head.{spelled[part]}.{name[finer.end() :]}"
    return name


def _plan_detector(files: Files, architecture: DETRConfig | None) -> Plan:
    return _plan(files, DETR, DETRConfig)


def _plan_segmenter(files: Files, architecture: MaskedDETRConfig | None) -> Plan:
    return _plan(files, MaskedDETR, MaskedDETRConfig)


def _plan(files: Files, build: type[DETR | MaskedDETR], kind: type[DETRConfig]) -> Plan:
    check_described(files)
    tensors: Tensors = {_spelled(name): files.tensors[name] for name in files.tensors}
    if "class_labels_classifier.weight" not in tensors:
        raise CheckpointError(
            f"{files.source} holds a DETR without the layers that read classes and boxes from its queries. Take the "
            "checkpoint of a DetrForObjectDetection, which has them."
        )
    prepared = from_transformers(files.preprocessor, _TYPE, DETRConfig().image_size)
    config = _config(files, tensors, kind)
    config = replace(config, image_size=landscape_size(prepared) or config.image_size)
    spelled = _of_timm if _is_timm(files.config) else _of_transformers
    rows = _rows(config, spelled)
    return Plan(
        build=build,
        config=config,
        rows=[*_within(rows), *mask_rows()] if build is MaskedDETR else rows,
        tensors=tensors,
        record=transformers_record(
            files,
            architecture=catalogue_name(config) or _TYPE,
            num_classes=config.num_classes,
            preprocessing=prepared if config.channels == 3 else None,
        ),
        ignored=(FOREIGN_COUNTERS,),
    )


def _within(rows: list[Row]) -> list[Row]:
    """The table of a detector that is part of a network with masks."""
    return [replace(row, ours=f"detr.{row.ours}") for row in rows]


def mask_rows() -> list[Row]:
    """The table of what a network with masks has beside its detector, in the names of the authors and of files."""
    rows = renamed("attention_maps.query", "bbox_attention.q_linear") + renamed(
        "attention_maps.key", "bbox_attention.k_linear"
    )
    layers = ("first", "second", "finer.0", "finer.1", "finer.2")
    for number, ours in enumerate(layers, start=1):
        rows += renamed(f"mask_head.{ours}.conv", f"mask_head.lay{number}")
        rows += renamed(f"mask_head.{ours}.norm", f"mask_head.gn{number}")
    for number in range(3):
        rows += renamed(f"mask_head.adapters.{number}", f"mask_head.adapter{number + 1}")
    return rows + renamed("mask_head.last", "mask_head.out_lay")


def catalogue_name(config: DETRConfig) -> str | None:
    """The catalogue's name for a network, whatever its classes, queries and pictures."""
    variants = {**VARIANTS, **detr_masks.VARIANTS}  # those of another class are never equal
    return variant_name(config, variants, ("image_size", "channels", "num_classes", "queries", "dropout"))


def _config(files: Files, tensors: Tensors, kind: type[DETRConfig]) -> DETRConfig:
    told = {**_USUAL, **files.config}
    wrong = {
        "activation_function": (told["activation_function"], "relu"),
        "position_embedding_type": (told["position_embedding_type"], "sine"),
        "decoder_attention_heads": (told["decoder_attention_heads"], told["encoder_attention_heads"]),
        "decoder_ffn_dim": (told["decoder_ffn_dim"], told["encoder_ffn_dim"]),
    }
    for name, (came, expected) in wrong.items():
        if came != expected:
            raise CheckpointError(f"config.json asks for {name}={came!r}; DETR was published with {expected!r} only.")
    return kind(
        channels=int(told["num_channels"]),
        num_classes=int(tensors["class_labels_classifier.weight"].shape[0]) - 1,
        backbone=_backbone(told, tensors, files.source, masks=kind is MaskedDETRConfig),
        queries=int(told["num_queries"]),
        width=int(told["d_model"]),
        encoder_depth=int(told["encoder_layers"]),
        decoder_depth=int(told["decoder_layers"]),
        heads=int(told["encoder_attention_heads"]),
        mlp_width=int(told["encoder_ffn_dim"]),
        dropout=float(told["dropout"]),
    )


def _is_timm(told: dict[str, Any]) -> bool:
    inner = told.get("backbone_config")
    return inner["model_type"] == "timm_backbone" if inner else bool(told.get("use_timm_backbone", True))


def _backbone(told: dict[str, Any], tensors: Tensors, source: str, *, masks: bool) -> ResNetConfig:
    """The residual network: timm's is seen from its tensors, transformers' is told."""
    inner = told.get("backbone_config") or {}
    if _is_timm(told):
        body: Tensors = {name.removeprefix(_BODY): tensors[name] for name in tensors if name.startswith(_BODY)}
        if "layer1.0.conv1.weight" not in body or body.get("conv1.weight") is None:
            name = inner.get("backbone") or told.get("backbone")
            raise CheckpointError(f"{source} has a DETR on timm's {name!r}; those on a plain ResNet are read.")
        stride = inner.get("output_stride") or (16 if told["dilation"] else 32)
        seen = {name: value for name, value in resnet_seen(body, source).items() if name != "num_classes"}
        return ResNetConfig(**seen, norm="frozen", dilated={32: 0, 16: 1, 8: 2}[int(stride)])
    if inner.get("model_type", "resnet") != "resnet":
        raise CheckpointError(f"{source} has a DETR on a {inner['model_type']!r}; those on a ResNet are read.")
    depths = tuple(map(int, inner.get("depths", (3, 4, 6, 3))))
    fixed = {"hidden_act": "relu", "downsample_in_first_stage": False, "out_features": _read_maps(len(depths), masks=masks)}
    for name, expected in fixed.items():
        if inner.get(name, expected) != expected:
            raise CheckpointError(
                f"config.json asks for {name}={inner[name]!r} of the backbone; {expected!r} is what is read."
            )
    bottleneck = inner.get("layer_type", "bottleneck") == "bottleneck"
    return ResNetConfig(
        block="bottleneck" if bottleneck else "basic",
        stem_width=int(inner.get("embedding_size", 64)),
        stage_channels=tuple(map(int, inner.get("hidden_sizes", (256, 512, 1024, 2048)))),
        depths=depths,
        strides_first=bottleneck and bool(inner.get("downsample_in_bottleneck")),
        norm="frozen",
    )


def _read_maps(stages: int, *, masks: bool) -> list[str]:
    """The stages whose maps transformers' own residual network hands on: for masks all of them, else the last."""
    return [f"stage{number}" for number in range(1 if masks else stages, stages + 1)]


def _of_timm(name: str) -> str:
    return name


def _of_transformers(name: str) -> str:
    """torchvision's name of a tensor of a ResNet, which is timm's too → transformers'."""
    norm_or_conv = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{norm_or_conv[stem[1]]}.{stem[2]}"
    stage, place, rest = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
    within = f"encoder.stages.{int(stage) - 1}.layers.{place}"
    if shortcut := re.fullmatch(r"downsample\.(\d)\.(\w+)", rest):
        return f"{within}.shortcut.{norm_or_conv[shortcut[1]]}.{shortcut[2]}"
    part, number, last = re.fullmatch(r"(conv|bn)(\d)\.(\w+)", rest).groups()  # type: ignore[union-attr]
    return f"{within}.layer.{int(number) - 1}.{norm_or_conv[part]}.{last}"


def _rows(config: DETRConfig, spelled: Callable[[str], str]) -> list[Row]:
    backbone = replace(config.backbone, norm="frozen")
    rows = [
        replace(row, ours=f"backbone.{row.ours}", theirs=tuple(_BODY + spelled(name) for name in row.theirs))
        for row in resnet_rows(backbone)
    ]
    flat = (config.width, config.backbone.width)
    rows += [shaped("projection.weight", "input_projection.weight", flat, (*flat, 1, 1))]
    rows += [same("projection.bias", "input_projection.bias")]
    for index in range(config.encoder_depth):
        ours, theirs = f"encoder.{index}", f"encoder.layers.{index}"
        rows += _attention(f"{ours}.attention", f"{theirs}.self_attn")
        rows += renamed(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.fc2")
        rows += renamed(f"{ours}.norm2", f"{theirs}.final_layer_norm")
    rows += [same("query_positions.weight", "query_position_embeddings.weight")]
    for index in range(config.decoder_depth):
        ours, theirs = f"decoder.{index}", f"decoder.layers.{index}"
        rows += _attention(f"{ours}.attention", f"{theirs}.self_attn")
        rows += renamed(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm")
        rows += _attention(f"{ours}.cross_attention", f"{theirs}.encoder_attn")
        rows += renamed(f"{ours}.norm2", f"{theirs}.encoder_attn_layer_norm")
        rows += renamed(f"{ours}.mlp.up", f"{theirs}.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.fc2")
        rows += renamed(f"{ours}.norm3", f"{theirs}.final_layer_norm")
    rows += renamed("norm", "decoder.layernorm") + renamed("head", "class_labels_classifier")
    return rows + [
        row for layer in range(3) for row in renamed(f"box_head.layers.{layer}", f"bbox_predictor.layers.{layer}")
    ]


def _attention(ours: str, theirs: str) -> list[Row]:
    return [row for part, name in _OURS.items() for row in renamed(f"{ours}.{part}", f"{theirs}.{name}")]


def _compose(model: nn.Module) -> Written:
    model = cast(DETR | MaskedDETR, model)
    masks = isinstance(model, MaskedDETR)
    config, record, backbone = model.config, model.record, model.config.backbone
    plain = replace(backbone, norm="batch", dilated=0)
    free: dict[str, Any] = {"image_size": backbone.image_size, "channels": backbone.channels, "num_classes": 0}
    name = next((name for name, one in resnet.VARIANTS.items() if replace(one, **free) == plain and "_v1" not in name), None)
    _refuse_unwritable(config, by_timm=name is not None)
    described: dict[str, Any] = {
        "architectures": ["DetrForSegmentation" if masks else "DetrForObjectDetection"],
        "model_type": _TYPE,
        "use_timm_backbone": name is not None,
        "use_pretrained_backbone": False,
        "backbone": name,
        "backbone_config": None if name is not None else _described_backbone(backbone, masks=masks),
        "dilation": backbone.dilated == 1,
        "num_channels": config.channels,
        "num_queries": config.queries,
        "d_model": config.width,
        "encoder_layers": config.encoder_depth,
        "decoder_layers": config.decoder_depth,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.mlp_width,
        "decoder_ffn_dim": config.mlp_width,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "is_encoder_decoder": True,
        "dtype": "float32",
    }
    heads = ("class_labels_classifier.", "bbox_predictor.")
    rows = [
        replace(row, theirs=tuple(one if one.startswith(heads) else f"model.{one}" for one in row.theirs))
        for row in _rows(config, _of_timm if name is not None else _of_transformers)
    ]
    documents = transformers_documents(described, record, config.num_classes, processor="Detr")
    if masks:
        rows = [replace(row, theirs=tuple(f"detr.{one}" for one in row.theirs)) for row in _within(rows)] + mask_rows()
        if "preprocessor_config.json" in documents:
            documents["preprocessor_config.json"]["format"] = "coco_panoptic"
    return Written(model=model, rows=rows, documents=documents)


def _described_backbone(backbone: ResNetConfig, *, masks: bool) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "num_channels": backbone.channels,
        "embedding_size": backbone.stem_width,
        "hidden_sizes": list(backbone.stage_channels),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": backbone.strides_first,
        "out_features": _read_maps(len(backbone.depths), masks=masks),
    }


def _refuse_unwritable(config: DETRConfig, *, by_timm: bool) -> None:
    backbone = config.backbone
    own = replace(
        ResNetConfig(norm="frozen", num_classes=0),
        **{
            field: getattr(backbone, field)
            for field in ("image_size", "channels", "block", "stem_width", "stage_channels", "depths", "strides_first")
        },
    )
    wrong = {
        "norms of the residual network that learn": backbone.norm != "frozen",
        f"{backbone.dilated} dilated stages": by_timm and backbone.dilated > 1,
        "a residual network that neither timm nor transformers has": not by_timm and replace(backbone, norm="frozen") != own,
    }
    found = [what for what, present in wrong.items() if present]
    if found:
        raise UsageError(f"transformers' DETR has no {', '.join(found)}. Use layout='vitral'.")


LAYOUTS: tuple[Layout, ...] = (
    Layout(name="transformers", network=DETR, recognises=_detects, plan=_plan_detector, compose=_compose),
    Layout(name="transformers", network=MaskedDETR, recognises=_segments, plan=_plan_segmenter, compose=_compose),
)
"""The detector's layout, and that of a network that also makes masks."""
