"""The layout of the authors' repository (microsoft/CvT): bare state dictionaries of its class, as .pth.

A state dictionary shows every size but two: the number of heads, which have 64 channels in every published network, and the
picture's size, on which no tensor depends. They are taken from the architecture that the user names, else from what is
usual. What we write has a config.json beside it with the entries of the repository's own configurations, so that reading it
back takes no guess.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import evaluation, from_timm, to_timm
from vitral.checkpoints.table import Row, Tensors, renamed, same
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.cvt import VARIANTS, CvT, CvTConfig
from vitral.models.record import Record

__all__ = ["LAYOUT", "catalogue_name", "rows"]

_TYPE = "microsoft-cvt"
_FIRST = "stage0.patch_embed.proj.weight"
_BLOCK = "stage0.blocks.0.mlp.fc1.weight"
_HEAD_WIDTH = 64
_CROPPED = 0.875  # of the resized picture, what the repository evaluates
_PARTS = (("query", "q"), ("key", "k"), ("value", "v"))


def _recognises(files: Files) -> bool:
    return _FIRST in files.tensors and "stage0.blocks.0.attn.conv_proj_q.conv.weight" in files.tensors


def _plan(files: Files, architecture: CvTConfig | None) -> Plan:
    told = files.config if files.config.get("model_type") == _TYPE else {}
    notes: list[str] = []
    config = _config(files.tensors, told, architecture, notes)
    pictures = told.get("pretrained_cfg")
    usual = evaluation(config.image_size, resize=int(config.image_size[0] / _CROPPED)) if config.channels == 3 else None
    record = Record(
        architecture=catalogue_name(config) or f"{config.width} wide, {config.depth} deep",
        layout="microsoft",
        source=files.source,
        preprocessing=from_timm(pictures, config.image_size) if pictures else usual,
        labels=tuple(map(str, told.get("label_names", ()))),
        licence=told.get("license", "mit"),
        notes=tuple(notes),
    )
    return Plan(
        build=CvT,
        config=config,
        rows=rows(config),
        tensors=files.tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='cvt_13').",
    )


def _config(tensors: Tensors, told: dict[str, Any], architecture: CvTConfig | None, notes: list[str]) -> CvTConfig:
    stages = [name for name in (f"stage{place}.patch_embed.proj.weight" for place in range(9)) if name in tensors]
    if len(stages) != 3 or _BLOCK not in tensors:
        raise CheckpointError(f"The file has {len(stages)} token embeddings of a CvT; three, with blocks behind, make one.")
    widths = tuple(int(tensors[name].shape[0]) for name in stages)
    patterns = (rf"stage{place}\.blocks\.(\d+)\.mlp\.fc1\.weight" for place in range(3))
    depths = tuple(1 + max((int(m[1]) for n in tensors if (m := re.fullmatch(p, n))), default=-1) for p in patterns)
    config = CvTConfig(
        image_size=cast(Any, tuple(told.get("TEST", {}).get("IMAGE_SIZE", (224, 224)))),
        channels=int(tensors[_FIRST].shape[1]),
        widths=cast(Any, widths),
        depths=cast(Any, depths),
        heads=_heads(widths, told, architecture, notes),
        mlp_ratio=_mlp_ratio(tensors, told),
        qkv_bias="stage0.blocks.0.attn.proj_q.bias" in tensors,
        num_classes=int(tensors["head.weight"].shape[0]) if "head.weight" in tensors else 0,
    )
    if told:
        return config
    known = architecture or VARIANTS.get(catalogue_name(config) or "", config)
    if architecture is None:
        high, wide = known.image_size
        notes.append(
            f"The file does not tell the size of its pictures; {high} × {wide} was assumed, and any other is taken."
        )
    return replace(config, image_size=known.image_size, activation=known.activation)


def _mlp_ratio(tensors: Tensors, told: dict[str, Any]) -> float:
    """Hidden channels for each channel of a token: the least number that, rounded down, gives what every stage has."""
    if told:
        return float(told["MODEL"]["SPEC"]["MLP_RATIO"][0])
    shapes = [tensors[name].shape for name in (_BLOCK.replace("0", str(place), 1) for place in range(3)) if name in tensors]
    ratio = max(hidden / width for hidden, width in shapes)
    exact = all(int(width * ratio) == hidden for hidden, width in shapes)
    return ratio if exact else math.nextafter(ratio, math.inf)


def _heads(
    widths: tuple[int, ...], told: dict[str, Any], architecture: CvTConfig | None, notes: list[str]
) -> tuple[int, int, int]:
    """How many heads each stage has."""
    if told:
        return cast(Any, tuple(int(count) for count in told["MODEL"]["SPEC"]["NUM_HEADS"]))
    if architecture is not None:
        return architecture.heads
    if any(width % _HEAD_WIDTH for width in widths):
        raise CheckpointError(
            f"The number of attention heads cannot be seen from stages of {widths} channels. Name the architecture: "
            "load_model(…, architecture='cvt_13'), or pass a CvTConfig."
        )
    if widths not in {one.widths for one in VARIANTS.values()}:
        notes.append(f"Heads of {_HEAD_WIDTH} channels were assumed, as is usual; the file does not say.")
    return cast(Any, tuple(width // _HEAD_WIDTH for width in widths))


def catalogue_name(config: CvTConfig) -> str | None:
    """The catalogue's name for a network of these widths, depths and heads; None where it has none."""
    sizes = (config.widths, config.depths, config.heads)
    return next((name for name, one in VARIANTS.items() if (one.widths, one.depths, one.heads) == sizes), None)


def rows(config: CvTConfig) -> list[Row]:
    """The name table; every tensor is the same in both, under another name."""
    table: list[Row] = []
    for place, depth in enumerate(config.depths):
        stage, theirs = f"stages.{place}", f"stage{place}"
        table += renamed(f"{stage}.embedding.projection.conv", f"{theirs}.patch_embed.proj")
        table += renamed(f"{stage}.embedding.norm", f"{theirs}.patch_embed.norm")
        if place == len(config.depths) - 1:
            table += [same(f"{stage}.class_token", f"{theirs}.cls_token")]
        for index in range(depth):
            table += _block_rows(f"{stage}.blocks.{index}", f"{theirs}.blocks.{index}", config.qkv_bias)
    return table + renamed("norm", "norm") + (renamed("head", "head") if config.num_classes else [])


def _block_rows(ours: str, theirs: str, qkv_bias: bool) -> list[Row]:
    table = renamed(f"{ours}.norm1", f"{theirs}.norm1") + renamed(f"{ours}.norm2", f"{theirs}.norm2")
    for part, letter in _PARTS:
        convolution, convolved = f"{ours}.attention.{part}_convolution", f"{theirs}.attn.conv_proj_{letter}"
        table += [same(f"{convolution}.conv.weight", f"{convolved}.conv.weight")]
        table += renamed(f"{convolution}.norm", f"{convolved}.bn")
        gathered = ("running_mean", "running_var", "num_batches_tracked")
        table += [same(f"{convolution}.norm.{one}", f"{convolved}.bn.{one}") for one in gathered]
        table += renamed(f"{ours}.attention.{part}", f"{theirs}.attn.proj_{letter}", bias=qkv_bias)
    table += renamed(f"{ours}.attention.projection", f"{theirs}.attn.proj")
    return table + renamed(f"{ours}.mlp.up", f"{theirs}.mlp.fc1") + renamed(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")


def _compose(model: nn.Module) -> Written:
    model = cast(CvT, model)
    config, record = model.config, model.record
    if config.activation != "quick_gelu":
        raise UsageError(
            f"The layout microsoft cannot state activation={config.activation!r}: its classes have 'quick_gelu'. Use "
            "layout='vitral'" + (" or 'transformers'." if config.activation == "gelu" else ".")
        )
    if config.num_classes == 0:
        raise UsageError("The layout microsoft cannot state a network without classes. Use layout='vitral'.")
    described: dict[str, Any] = {
        "model_type": _TYPE,
        "MODEL": {
            "NUM_CLASSES": config.num_classes,
            "SPEC": {
                "NUM_STAGES": 3,
                "DIM_EMBED": list(config.widths),
                "DEPTH": list(config.depths),
                "NUM_HEADS": list(config.heads),
                "MLP_RATIO": [config.mlp_ratio] * 3,
                "QKV_BIAS": [config.qkv_bias] * 3,
                "CLS_TOKEN": [False, False, True],
            },
        },
        "TEST": {"IMAGE_SIZE": list(config.image_size)},
    }
    if record.preprocessing:
        described["pretrained_cfg"] = to_timm(record.preprocessing, config.channels)
    if record.licence:
        described["license"] = record.licence
    if record.labels:
        described["label_names"] = list(record.labels)
    return Written(model=model, rows=rows(config), documents={"config.json": described})


LAYOUT = Layout(name="microsoft", network=CvT, recognises=_recognises, plan=_plan, compose=_compose)
