"""timm's layout of XCiT: a folder with config.json and model.safetensors, or a bare state dictionary.

The tensors show every size and, by one temperature per head, the number of heads. Two facts are in none of them: which
tokens the second norm of a class attention block acts on, and the picture's size. They come from config.json, from the
architecture's name or the one the user names, else from what is usual.
"""

from __future__ import annotations

import re
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import evaluation, from_timm, to_timm
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped, stacked
from vitral.checkpoints.vocabulary import add_timm_record, timm_labels
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.xcit import VARIANTS, XCiT, XCiTConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_NANO = 128  # width of the networks whose class attention norms the class token alone
# Arguments of timm's class for which this family has no other value than these.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_layer": (None, "gelu"),
    "norm_layer": (None, "layernorm"),
    "global_pool": (None, "", "token"),
}


def _recognises(files: Files) -> bool:
    return "cls_attn_blocks.0.attn.q.weight" in files.tensors and "blocks.0.attn.temperature" in files.tensors


def _plan(files: Files, architecture: XCiTConfig | None) -> Plan:
    told = files.config if "architecture" in files.config else {}
    args, pretrained = told.get("model_args") or {}, told.get("pretrained_cfg") or {}
    for arg, values in _FIXED.items():
        if args.get(arg, told.get(arg)) not in values:
            raise CheckpointError(
                f"config.json asks for {arg}={args.get(arg, told.get(arg))!r}, which XCiT does not have here."
            )
    name = str(told.get("architecture", ""))
    notes: list[str] = []
    config = _config(files.tensors, args, pretrained, name, architecture, notes)
    usual = evaluation(config.image_size, resize=config.image_size[0]) if config.channels == 3 else None
    record = Record(
        architecture=name or _variant(config) or f"{config.width} wide, {config.depth} deep",
        layout="timm",
        source=files.source,
        preprocessing=from_timm(pretrained, config.image_size) if pretrained else usual,
        labels=timm_labels(told, config.num_classes),
        licence=pretrained.get("license"),
        notes=tuple(notes),
    )
    return Plan(
        build=XCiT,
        config=config,
        rows=_rows(config),
        tensors=files.tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='xcit_small_12_p16').",
    )


def _config(
    tensors: Tensors,
    args: dict[str, Any],
    pretrained: dict[str, Any],
    name: str,
    architecture: XCiTConfig | None,
    notes: list[str],
) -> XCiTConfig:
    """What the tensors show, completed by what the file, the name or the user says."""
    convolutions = _count(tensors, r"patch_embed\.proj\.(\d+)\.0\.weight")
    first, depth = "patch_embed.proj.0.0.weight", _count(tensors, r"blocks\.(\d+)\.attn\.temperature")
    if first not in tensors or tensors[first].ndim != 4 or "blocks.0.mlp.fc1.weight" not in tensors:
        raise CheckpointError("The file has the attention of an XCiT, but no convolutions before it or no whole block.")
    hidden, width = (int(side) for side in tensors["blocks.0.mlp.fc1.weight"].shape)
    said = args.get("img_size") or (pretrained.get("input_size") or [])[-2:]
    size = (said, said) if isinstance(said, int) else tuple(int(side) for side in said)
    if not size:
        size = architecture.image_size if architecture else (224, 224)
        if architecture is None:
            notes.append("The file does not tell the size of its pictures; 224 × 224 was assumed, and any other is taken.")
    if "tokens_norm" in args:
        norm_all = bool(args["tokens_norm"])
    elif architecture is not None:
        norm_all = architecture.class_norm_all
    else:
        norm_all = "nano" not in name if name else width != _NANO
        if not name:
            which = "all tokens" if norm_all else "the class token alone"
            notes.append(f"The second norm of class attention was taken to act on {which}; the file does not say.")
    return XCiTConfig(
        image_size=cast(Any, size),
        patch=2 ** (convolutions // 2 + 1),  # activations have numbers too: 0, 2, 4, 6
        channels=int(tensors[first].shape[1]),
        width=width,
        depth=depth,
        heads=int(tensors["blocks.0.attn.temperature"].shape[0]),
        mlp_width=hidden,
        class_depth=_count(tensors, r"cls_attn_blocks\.(\d+)\.norm1\.weight"),
        num_classes=int(tensors["head.weight"].shape[0]) if "head.weight" in tensors else 0,
        positions="pos_embed.token_projection.weight" in tensors,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        class_norm_all=norm_all,
        layer_scale=float(args.get("eta", 1.0 if depth <= 12 else 1e-5)),
        drop_path=float(args.get("drop_path_rate", 0.0)),
    )


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number in the names that a pattern fits."""
    return 1 + max((int(match[1]) for name in tensors if (match := re.fullmatch(pattern, name))), default=-1)


def _variant(config: XCiTConfig) -> str | None:
    """The catalogue's name for a network, whatever its pictures and classes."""
    sizes = ("patch", "width", "depth", "heads", "mlp_width", "class_depth", "positions", "qkv_bias", "class_norm_all")
    found = (name for name, one in VARIANTS.items() if all(getattr(one, f) == getattr(config, f) for f in sizes))
    return next(found, None)


def _rows(config: XCiTConfig) -> list[Row]:
    width, bias = config.width, config.qkv_bias
    rows: list[Row] = []
    for index in range(config.patch.bit_length() - 1):
        ours, theirs = f"stem.convolutions.{index}", f"patch_embed.proj.{2 * index}"
        rows += [same(f"{ours}.conv.weight", f"{theirs}.0.weight"), *_batch_norm(f"{ours}.norm", f"{theirs}.1")]
    if config.positions:
        ours, theirs = "positions.projection", "pos_embed.token_projection"
        features = 64
        rows += [shaped(f"{ours}.weight", f"{theirs}.weight", (width, features), (width, features, 1, 1))]
        rows += [same(f"{ours}.bias", f"{theirs}.bias")]
    for index in range(config.depth):
        block = f"blocks.{index}"
        rows += _branches(block, block, ("1", "2", "3"))
        rows += [same(f"{block}.attention.temperature", f"{block}.attn.temperature")]
        rows += renamed(f"{block}.attention.qkv", f"{block}.attn.qkv", bias=bias)
        rows += renamed(f"{block}.local.first.conv", f"{block}.local_mp.conv1")
        rows += _batch_norm(f"{block}.local.norm", f"{block}.local_mp.bn")
        rows += renamed(f"{block}.local.second.conv", f"{block}.local_mp.conv2")
    rows += [same("reading.token", "cls_token")]
    for index in range(config.class_depth):
        ours, theirs = f"reading.blocks.{index}", f"cls_attn_blocks.{index}"
        rows += _branches(ours, theirs, ("1", "2"))
        rows += renamed(f"{ours}.attention.query", f"{theirs}.attn.q", bias=bias)
        for part in ("weight", "bias") if bias else ("weight",):
            rows += [stacked(f"{ours}.attention.key_value.{part}", f"{theirs}.attn.k.{part}", f"{theirs}.attn.v.{part}")]
    return rows + renamed("norm", "norm") + (renamed("head", "head") if config.num_classes else [])


def _branches(ours: str, theirs: str, numbers: tuple[str, ...]) -> list[Row]:
    """What both kinds of blocks have: norms and gains by number, the projection of attention, the feed-forward network."""
    rows = renamed(f"{ours}.attention.projection", f"{theirs}.attn.proj")
    rows += renamed(f"{ours}.mlp.up", f"{theirs}.mlp.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    for number in numbers:
        rows += renamed(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        rows += [same(f"{ours}.scale{number}.gain", f"{theirs}.gamma{number}")]
    return rows


def _batch_norm(ours: str, theirs: str) -> list[Row]:
    counted = [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("running_mean", "running_var", "num_batches_tracked")]
    return renamed(ours, theirs) + counted


def _compose(model: nn.Module) -> Written:
    """Write the model as an architecture of timm with its arguments spelt out."""
    model = cast(XCiT, model)
    config, record = model.config, model.record
    if config.patch not in (8, 16):
        raise UsageError(f"timm's XCiT has patches of 8 or 16 pixels, not of {config.patch}. Use layout='vitral'.")
    height, width = config.image_size
    near = _variant(config) or f"xcit_{'tiny' if config.class_norm_all else 'nano'}_12_p{config.patch}"
    args: dict[str, Any] = {
        "patch_size": config.patch,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        # timm multiplies and rounds down; half a channel more keeps the product from falling just short.
        "mlp_ratio": (config.mlp_width + 0.5) / config.width,
        "qkv_bias": config.qkv_bias,
        "cls_attn_layers": config.class_depth,
        "use_pos_embed": config.positions,
        "tokens_norm": config.class_norm_all,
        "eta": config.layer_scale,
        "drop_path_rate": config.drop_path,
    }
    pictures = {"input_size": [config.channels, height, width]}
    described: dict[str, Any] = {
        "architecture": f"{near}_224",
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": "token",
        "model_args": args,
        "pretrained_cfg": {
            "tag": "vitral",
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj.0.0",
            "classifier": "head",
            **(to_timm(record.preprocessing, config.channels) if record.preprocessing else {}),
            **pictures,
        },
    }
    add_timm_record(described, record)
    return Written(model=model, rows=_rows(config), documents={"config.json": described})


LAYOUT = Layout(name="timm", network=XCiT, recognises=_recognises, plan=_plan, compose=_compose)
