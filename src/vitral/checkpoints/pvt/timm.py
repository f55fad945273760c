"""timm's layout of PVTv2 (pvt_v2_b0 … pvt_v2_b5, pvt_v2_b2_li)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import evaluation, from_timm, to_timm
from vitral.checkpoints.pvt.spelling import Spelling, seen, table
from vitral.checkpoints.vocabulary import add_timm_record, timm_labels
from vitral.errors import UsageError
from vitral.models.backbones.pvt import VARIANTS, PVTConfig, PVTv2
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_SPELLING = Spelling(
    first="patch_embed",
    embedding="stages.{stage}.downsample",
    blocks="stages.{stage}.blocks.",
    norm="stages.{stage}.norm",
    neighbours="mlp.dwconv",
)
_SIGNS = ("patch_embed.proj.weight", "stages.0.blocks.0.attn.kv.weight", "stages.0.blocks.0.mlp.dwconv.weight")


def _recognises(files: Files) -> bool:
    return all(name in files.tensors for name in _SIGNS)


def _plan(files: Files, architecture: PVTConfig | None) -> Plan:
    told, notes = files.config, cast(list[str], [])
    name, args = str(told.get("architecture", "")), told.get("model_args") or {}
    heads = tuple(map(int, args["num_heads"])) if "num_heads" in args else None
    config = seen(files.tensors, _SPELLING, architecture or VARIANTS.get(name), notes, heads)
    pretrained = told.get("pretrained_cfg") or {}
    prepared = None
    if pretrained:
        prepared = from_timm(pretrained, config.image_size)
        config = replace(config, image_size=prepared.crop or prepared.size)
    elif config.channels == 3:
        prepared = evaluation(config.image_size, resize=int(config.image_size[0] / 0.9))
    record = Record(
        architecture=name,
        layout="timm",
        source=files.source,
        preprocessing=prepared,
        labels=timm_labels(told, config.num_classes),
        licence=pretrained.get("license"),
        notes=tuple(notes),
    )
    return Plan(
        build=PVTv2,
        config=config,
        rows=table(config, _SPELLING),
        tensors=files.tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='pvt_v2_b2').",
    )


def _compose(model: nn.Module) -> Written:
    """Write the model as timm's pvt_v2_b2 with its arguments spelt out."""
    network = cast(PVTv2, model)
    config, record = network.config, network.record
    # timm fixes the epsilons; transformers' files have 1e-6 everywhere, which timm's own conversion takes for the same.
    if config.activation != "gelu" or config.norm_eps != 1e-6 or config.conv_norm_eps not in (1e-6, 1e-5):
        raise UsageError(
            f"timm's PVTv2 has gelu and epsilons of 1e-6 and 1e-5; this one has {config.activation}, {config.norm_eps:g} "
            f"and {config.conv_norm_eps:g}. Use layout='vitral'."
        )
    args: dict[str, Any] = {
        "in_chans": config.channels,
        "depths": list(config.depths),
        "embed_dims": list(config.widths),
        "num_heads": list(config.heads),
        "sr_ratios": list(config.reductions),
        "mlp_ratios": list(config.mlp_ratios),
        "qkv_bias": config.qkv_bias,
        "linear": config.linear,
        "drop_path_rate": config.drop_path,
    }
    prepared = to_timm(record.preprocessing, config.channels) if record.preprocessing else {}
    described: dict[str, Any] = {
        "architecture": next((name for name in (record.architecture,) if name in VARIANTS), "pvt_v2_b2"),
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": {
            "tag": "vitral",
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "input_size": [config.channels, *config.image_size],
            **prepared,
        },
    }
    add_timm_record(described, record)
    return Written(model=model, rows=table(config, _SPELLING), documents={"config.json": described})


LAYOUT = Layout(name="timm", network=PVTv2, recognises=_recognises, plan=_plan, compose=_compose)
