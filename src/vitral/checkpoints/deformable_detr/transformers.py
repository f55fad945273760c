"""transformers' layout of Deformable DETR: config.json of model type deformable_detr, and names of its own.

The names are those of the files on the Hub. Newer releases of transformers call some parts otherwise, read the old names
and write them; both are read here. Where the blocks of the decoder share their heads, a file has them once or for every
block; where they do not, those that correct boxes are there twice, under `model.decoder.` and before it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, resnet_rows, resnet_seen
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, variant_name
from vitral.checkpoints.preprocessing import from_transformers, landscape_size
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.checkpoints.vocabulary import check_described, transformers_documents, transformers_record
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones import resnet
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.deformable_detr import VARIANTS, DeformableDETR, DeformableDETRConfig

__all__ = ["BACKBONE", "LAYOUT", "architecture_of", "heads_once", "rows"]

_TYPE = "deformable_detr"
BACKBONE = "model.backbone.conv_encoder.model."
"""What the names of the backbone's tensors begin with."""

# What transformers assumes where a config.json does not say.
_USUAL: dict[str, Any] = {
    "num_channels": 3,
    "num_queries": 300,
    "encoder_layers": 6,
    "encoder_ffn_dim": 1024,
    "encoder_attention_heads": 8,
    "decoder_layers": 6,
    "decoder_ffn_dim": 1024,
    "decoder_attention_heads": 8,
    "activation_function": "relu",
    "d_model": 256,
    "dropout": 0.1,
    "position_embedding_type": "sine",
    "dilation": False,
    "num_feature_levels": 4,
    "encoder_n_points": 4,
    "decoder_n_points": 4,
    "two_stage": False,
    "two_stage_num_proposals": 300,
    "with_box_refine": False,
}
# Networks that timm has under the catalogue's name, for whoever builds one from a config.json.
_TIMM = {name: config for name, config in resnet.VARIANTS.items() if not config.strides_first}

_DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "projection": "output_proj",
}
_PROPOSALS = {
    "projection": "enc_output",
    "norm": "enc_output_norm",
    "position": "pos_trans",
    "position_norm": "pos_trans_norm",
}

# Names of newer releases → the names on the Hub.
_SPELLINGS = (
    (r"^model\.backbone\.model\.", BACKBONE),
    (r"(self_attn\.)o_proj\.", r"\1out_proj."),
    (r"(layers\.\d+\.)mlp\.(fc\d)", r"\1\2"),
)


def _recognises(files: Files) -> bool:
    if "model_type" in files.config:
        return files.config["model_type"] == _TYPE
    return "model.level_embed" in files.tensors and any(".sampling_offsets." in name for name in files.tensors)


def _plan(files: Files, named: DeformableDETRConfig | None) -> Plan:
    check_described(files)
    told = {**_USUAL, **{key: value for key, value in files.config.items() if value is not None}}
    refine, depth = bool(told["with_box_refine"]), int(told["decoder_layers"])
    tensors = heads_once(_spelt(files.tensors), "model.decoder.", refine, depth, files.source)
    config = _config(told, tensors, files.source, named)
    prepared = from_transformers(files.preprocessor, _TYPE, config.image_size) if config.channels == 3 else None
    config = replace(config, image_size=landscape_size(prepared) or config.image_size)
    record = transformers_record(
        files, architecture=architecture_of(config), num_classes=config.num_classes, preprocessing=prepared
    )
    return Plan(
        build=DeformableDETR,
        config=config,
        rows=rows(config),
        tensors=tensors,
        record=record,
        ignored=(FOREIGN_COUNTERS,),
    )


def _spelt(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors by the names on the Hub, those of the backbone as timm has them."""
    found: dict[str, Tensor] = {}
    for name in tensors:
        spelt = name
        for pattern, replacement in _SPELLINGS:
            spelt = re.sub(pattern, replacement, spelt)
        if spelt.startswith(BACKBONE):
            spelt = BACKBONE + _of_transformers(spelt.removeprefix(BACKBONE))
        found[spelt] = tensors[name]
    return found


def _of_transformers(name: str) -> str:
    """A tensor of transformers' own ResNet by torchvision's name, which is timm's too; other names stay."""
    found = re.fullmatch(
        r"(?:embedder\.embedder|encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.(\d+)|shortcut))\.(\w+)\.(\w+)", name
    )
    if found is None:
        return name
    stage, place, within, number, kind, part = found.groups()
    layer = {"convolution": "conv", "normalization": "bn"}.get(kind, kind)
    if within == "shortcut":
        return f"layer{int(stage) + 1}.{place}.downsample.{0 if layer == 'conv' else 1}.{part}"
    return f"{layer}1.{part}" if stage is None else f"layer{int(stage) + 1}.{place}.{layer}{int(number) + 1}.{part}"


def _to_transformers(name: str) -> str:
    """The same the other way."""
    found = re.fullmatch(r"(?:layer(\d+)\.(\d+)\.)?(conv|bn|downsample\.)(\d+)\.(\w+)", name)
    stage, place, layer, number, part = cast(re.Match[str], found).groups()
    kind = "convolution" if layer == "conv" or (layer, number) == ("downsample.", "0") else "normalization"
    if stage is None:
        return f"embedder.embedder.{kind}.{part}"
    within = "shortcut" if layer == "downsample." else f"layer.{int(number) - 1}"
    return f"encoder.stages.{int(stage) - 1}.layers.{place}.{within}.{kind}.{part}"


def heads_once(tensors: Tensors, decoder: str, refine: bool, depth: int, source: str) -> dict[str, Tensor]:
    """The tensors with every head once, under its name before the decoder's; of shared ones the first block's.

    Args:
        tensors: of a file.
        decoder: what names of heads begin with that belong to the decoder.
        refine: whether each block of the decoder has heads of its own.
        depth: blocks of the decoder.
        source: what to call the file in a message.

    Raises:
        CheckpointError: two that ought to be one differ.
    """
    found: dict[str, Tensor] = dict(tensors)
    for name in tensors:
        match = re.fullmatch(rf"({re.escape(decoder)})?((?:class|bbox)_embed)\.(\d+)\.(.+)", name)
        if match is None:
            continue
        one_of_many = not refine and int(match[3]) < depth
        plain = f"{match[2]}.{0 if one_of_many else match[3]}.{match[4]}"
        if plain == name:
            continue
        tensor = found.pop(name)
        if plain in found and not torch.equal(found[plain], tensor):
            raise CheckpointError(f"{name} and {plain} in {source} are one layer, and differ. Which of them counts?")
        found[plain] = tensor
    if refine:  # classes may be told by one head for all
        for place in range(1, depth):
            for part in ("weight", "bias"):
                first = f"class_embed.0.{part}"
                if first in found and f"class_embed.1.{part}" not in tensors:
                    found.setdefault(f"class_embed.{place}.{part}", found[first])
    return found


def _config(told: dict[str, Any], tensors: Tensors, source: str, named: DeformableDETRConfig | None) -> DeformableDETRConfig:
    for one, other in (("encoder_attention_heads", "decoder_attention_heads"), ("encoder_ffn_dim", "decoder_ffn_dim")):
        if told[one] != told[other]:
            raise CheckpointError(
                f"config.json asks for {one}={told[one]!r} and {other}={told[other]!r}; encoder and decoder are alike here."
            )
    for name in ("activation_function", "position_embedding_type"):
        if told[name] != _USUAL[name]:
            raise CheckpointError(
                f"config.json asks for {name}={told[name]!r}; Deformable DETRs were published with {_USUAL[name]!r}."
            )
    head = tensors.get("class_embed.0.weight")
    if head is None:
        raise CheckpointError(f"{source} holds no heads for classes and boxes; a detector was expected.")
    two_stage = bool(told["two_stage"])
    size = {} if named is None else {"image_size": named.image_size}
    return DeformableDETRConfig(
        **size,
        channels=int(told["num_channels"]),
        num_classes=int(head.shape[0]),
        backbone=_backbone(told, tensors, source),
        queries=int(told["two_stage_num_proposals" if two_stage else "num_queries"]),
        width=int(told["d_model"]),
        levels=int(told["num_feature_levels"]),
        encoder_points=int(told["encoder_n_points"]),
        decoder_points=int(told["decoder_n_points"]),
        encoder_depth=int(told["encoder_layers"]),
        decoder_depth=int(told["decoder_layers"]),
        heads=int(told["encoder_attention_heads"]),
        mlp_width=int(told["encoder_ffn_dim"]),
        refine=bool(told["with_box_refine"]),
        two_stage=two_stage,
        dropout=float(told["dropout"]),
    )


def _backbone(told: dict[str, Any], tensors: Tensors, source: str) -> ResNetConfig:
    """What the tensors show of the residual network, and what only config.json tells."""
    inside: dict[str, Any] = {name.removeprefix(BACKBONE): tensors[name] for name in tensors if name.startswith(BACKBONE)}
    described = dict(told.get("backbone_config") or {})
    kind = described.get("backbone") or described.get("model_type") or told.get("backbone") or "resnet50"
    if not {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"} <= set(inside):
        raise CheckpointError(f"{source} has a backbone of kind {kind!r}; Deformable DETRs on a ResNet are read.")
    if described.get("hidden_act", "relu") != "relu" or described.get("downsample_in_first_stage"):
        raise CheckpointError("config.json asks for a ResNet with another activation, or one that is halved once more.")
    # A backbone that is described has its stride there; `dilation` is for those of older files, which are only named.
    stride = (described.get("output_stride") or 32) if described else (16 if told["dilation"] else 32)
    if stride not in (16, 32):
        raise CheckpointError(f"config.json asks for a backbone of output_stride {stride!r}; 16 and 32 are known.")
    seen = {key: value for key, value in resnet_seen(inside, source).items() if key not in ("channels", "num_classes")}
    early = bool(described.get("downsample_in_bottleneck")) and seen["block"] == "bottleneck"
    return ResNetConfig(**seen, strides_first=early, dilated=int(stride == 16), norm="frozen")


def architecture_of(config: DeformableDETRConfig) -> str:
    """The catalogue's name for a network, whatever it was trained for; else that of its family."""
    return variant_name(config, VARIANTS, ("num_classes", "image_size", "queries", "dropout")) or _TYPE


def rows(config: DeformableDETRConfig) -> list[Row]:
    """The table, with every head once and the backbone's tensors by timm's names."""
    found = [
        replace(row, ours=f"backbone.{row.ours}", theirs=tuple(BACKBONE + name for name in row.theirs))
        for row in resnet_rows(config.backbone)
    ]
    for place in range(config.levels):
        for number in (0, 1):
            found += renamed(f"projections.{place}.{number}", f"model.input_proj.{place}.{number}")
    found.append(same("level_positions.weight", "model.level_embed"))
    for place in range(config.encoder_depth):
        ours, theirs = f"encoder.{place}", f"model.encoder.layers.{place}"
        found += _deformable(f"{ours}.attention", f"{theirs}.self_attn")
        found += renamed(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm")
        found += _ending(ours, theirs, "norm2")
    for place in range(config.decoder_depth):
        ours, theirs = f"decoder.{place}", f"model.decoder.layers.{place}"
        for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("projection", "out_proj")):
            found += renamed(f"{ours}.attention.{part}", f"{theirs}.self_attn.{name}")
        found += renamed(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm")
        found += _deformable(f"{ours}.cross_attention", f"{theirs}.encoder_attn")
        found += renamed(f"{ours}.norm2", f"{theirs}.encoder_attn_layer_norm")
        found += _ending(ours, theirs, "norm3")
    if config.two_stage:
        for part, name in _PROPOSALS.items():
            found += renamed(f"proposals.{part}", f"model.{name}")
    else:
        found.append(same("queries.weight", "model.query_position_embeddings.weight"))
        found += renamed("reference", "model.reference_points")
    return found + _head_rows(config)


def _deformable(ours: str, theirs: str) -> list[Row]:
    return [row for part, name in _DEFORMABLE.items() for row in renamed(f"{ours}.{part}", f"{theirs}.{name}")]


def _ending(ours: str, theirs: str, norm: str) -> list[Row]:
    return (
        renamed(f"{ours}.mlp.up", f"{theirs}.fc1")
        + renamed(f"{ours}.mlp.down", f"{theirs}.fc2")
        + renamed(f"{ours}.{norm}", f"{theirs}.final_layer_norm")
    )


def _head_rows(config: DeformableDETRConfig) -> list[Row]:
    """The rows of the heads, under their names before the decoder's; shared ones under the first block's."""
    own = range(config.decoder_depth if config.refine else 1)
    names = [(f"heads.{place}", f"class_embed.{place}") for place in own]
    names += [
        (f"box_heads.{place}.layers.{part}", f"bbox_embed.{place}.layers.{part}") for place in own for part in range(3)
    ]
    if config.two_stage:
        last = config.decoder_depth
        names.append(("proposals.head", f"class_embed.{last}"))
        names += [(f"proposals.box_head.layers.{part}", f"bbox_embed.{last}.layers.{part}") for part in range(3)]
    return [row for ours, theirs in names for row in renamed(ours, theirs)]


def _written_rows(config: DeformableDETRConfig, names_of_backbone: dict[str, str]) -> list[Row]:
    """The rows with every head under all its names, and the backbone's tensors by other ones."""
    found = []
    for row in rows(config):
        (name,) = row.theirs
        names = [names_of_backbone.get(name, name)]
        match = re.fullmatch(r"(class|bbox)_embed\.0\.(.+)", name)
        if match and not config.refine:
            names = [f"{match[1]}_embed.{place}.{match[2]}" for place in range(config.decoder_depth)]
        elif (config.refine and name.startswith("bbox_embed.")) or (config.two_stage and name.startswith("class_embed.")):
            names.append(f"model.decoder.{name}")
        found.append(_under(row, tuple(names)))
    return found


def _under(row: Row, theirs: tuple[str, ...]) -> Row:
    """The row with its tensor under several names."""
    return Row(row.ours, theirs, lambda parts: parts[0], lambda tensor: [tensor] * len(theirs))


def _compose(model: nn.Module) -> Written:
    network = cast(DeformableDETR, model)
    config, record = network.config, network.record
    if config.backbone.norm != "frozen":
        raise UsageError(
            "transformers' Deformable DETR has a backbone with norms that stay as they are. Use layout='vitral'."
        )
    described, names = _described_backbone(config)
    described |= {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": _TYPE,
        "num_channels": config.channels,
        "num_queries": config.queries,
        "encoder_layers": config.encoder_depth,
        "encoder_ffn_dim": config.mlp_width,
        "encoder_attention_heads": config.heads,
        "decoder_layers": config.decoder_depth,
        "decoder_ffn_dim": config.mlp_width,
        "decoder_attention_heads": config.heads,
        "activation_function": "relu",
        "d_model": config.width,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "position_embedding_type": "sine",
        "dilation": config.backbone.dilated == 1,
        "num_feature_levels": config.levels,
        "encoder_n_points": config.encoder_points,
        "decoder_n_points": config.decoder_points,
        "two_stage": config.two_stage,
        "two_stage_num_proposals": config.queries,
        "with_box_refine": config.refine,
        "tie_word_embeddings": not config.refine,
        "dtype": "float32",
    }
    documents = transformers_documents(described, record, config.num_classes, processor="DeformableDetr")
    return Written(model=model, rows=_written_rows(config, names), documents=documents)


def _described_backbone(config: DeformableDETRConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The backbone in the words of config.json, and what its tensors are called where it is not timm's.

    Raises:
        UsageError: neither timm nor transformers has such a ResNet.
    """
    backbone = config.backbone
    free: dict[str, Any] = {"image_size": backbone.image_size, "channels": backbone.channels, "num_classes": 0}
    plain = replace(backbone, norm="batch", dilated=0)
    name = next((name for name, known in _TIMM.items() if replace(known, **free) == plain), None)
    if name is not None and backbone.dilated <= 1:
        told = {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": name, "backbone_config": None}
        return told, {}
    wrong = [
        (backbone.dilated > 0, "dilated stages"),
        ((backbone.groups, backbone.base_width) != (1, 64), "groups, or bottlenecks of another width"),
        ((backbone.stem, backbone.pooled, backbone.projected) != ("plain", False, False), "deep stem or other shortcuts"),
        (len(backbone.depths) != 4, f"{len(backbone.depths)} stages"),
    ]
    found = [what for present, what in wrong if present]
    if found:
        raise UsageError(
            f"The backbone is none that timm has a name for, and transformers' own has no {', '.join(found)}. Use "
            "layout='vitral'."
        )
    theirs = (name for row in resnet_rows(backbone) for name in row.theirs)
    names = {BACKBONE + name: BACKBONE + _to_transformers(name) for name in theirs}
    described = {
        "model_type": "resnet",
        "num_channels": config.channels,
        "embedding_size": backbone.stem_width,
        "hidden_sizes": list(backbone.stage_channels),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": backbone.strides_first,
        "out_features": ["stage4"] if config.levels == 1 else ["stage2", "stage3", "stage4"],
    }
    return {"use_timm_backbone": False, "backbone": None, "backbone_config": described}, names


LAYOUT = Layout(name="transformers", network=DeformableDETR, recognises=_recognises, plan=_plan, compose=_compose)
