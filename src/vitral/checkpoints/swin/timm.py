"""timm's layout of Swin Transformers: a folder with config.json and model.safetensors, or a bare state dictionary.

timm settles windows and shifts when a network is built, from the picture's size: along a side of a map that one window
spans, the window is that side and is not shifted. For that size they are therefore computed here as there. A bare state
dictionary of version 1 shows its windows in its tables; one of version 2 shows none, and the architecture must be named.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import from_timm, to_timm
from vitral.checkpoints.swin.microsoft import (
    BUFFERS,
    block_rows,
    catalogue_name,
    is_swin,
    of_timm,
    outer_rows,
    query_and_value_biases,
    seen,
    usual_preprocessing,
)
from vitral.checkpoints.table import Row, Tensors
from vitral.checkpoints.vocabulary import add_timm_record, timm_labels
from vitral.errors import CheckpointError, UsageError
from vitral.layers.position import Grid
from vitral.layers.window import applied_shift
from vitral.models.backbones.swin import Swin, SwinConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_Sides = tuple[Grid, ...]


def _recognises(files: Files) -> bool:
    return is_swin(files.tensors) and of_timm(files.tensors)


def _plan(files: Files, architecture: SwinConfig | None) -> Plan:
    told = files.config
    config = _config(files, architecture)
    pretrained = told.get("pretrained_cfg") or {}
    record = Record(
        architecture=str(told.get("architecture") or catalogue_name(config)),
        layout="timm",
        source=files.source,
        preprocessing=from_timm(pretrained, config.image_size) if pretrained else usual_preprocessing(config),
        labels=timm_labels(told, config.num_classes),
        licence=pretrained.get("license"),
    )
    return Plan(
        build=Swin,
        config=config,
        rows=_rows(config),
        tensors=files.tensors,
        record=usual_labels(record, config.num_classes),
        ignored=BUFFERS,
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='swin_ti').",
    )


def _config(files: Files, architecture: SwinConfig | None) -> SwinConfig:
    """What the tensors show, completed by what the file, its architecture's name or the user says."""
    tensors, args, name = files.tensors, files.config.get("model_args") or {}, str(files.config.get("architecture") or "")
    config = replace(seen(tensors), shift_rule="always", shift_first=True, rest="left_out")
    stages = len(config.widths)
    size = _image_size(files, name, args, architecture)
    wanted = _wanted(args, name, stages)
    if wanted is None and architecture is not None:
        wanted = architecture.windows
    if config.version == 1:
        size = size or (config.windows[-1][0] * config.stride,) * 2
        if wanted is None:
            wanted = config.windows
    if wanted is None or size is None or len(wanted) != stages:
        raise CheckpointError(
            f"No tensor of {files.source} shows its windows and the size of its pictures, and no config.json tells. Name "
            "the architecture: load_model(…, architecture='swinv2_ti_w8_256'), or pass a SwinConfig."
        )
    windows, shifts = _settled(config, size, wanted, always=bool(args.get("always_partition")))
    if config.version == 1:
        _check_tables(tensors, windows, files.source)
        return replace(config, image_size=size, windows=windows, shifts=shifts)
    before = _sides(args.get("pretrained_window_sizes"), stages) or (
        _sides([12, 12, 12, 6], stages) if "12to" in name else None
    )
    if before is None and architecture is not None and not args:
        before = architecture.pretrained_windows
    if before is not None:  # 0 stands for none
        before = tuple(one if one[0] else own for one, own in zip(before, windows, strict=True))
    activation = args.get("act_layer", "gelu")
    return replace(
        config,
        image_size=size,
        windows=windows,
        shifts=shifts,
        pretrained_windows=None if before == windows else before,
        activation=activation,
    )


def _image_size(files: Files, name: str, args: dict[str, Any], architecture: SwinConfig | None) -> tuple[int, int] | None:
    said = args.get("img_size") or (files.config.get("pretrained_cfg") or {}).get("input_size")
    if said is not None:
        return (int(said), int(said)) if isinstance(said, int) else (int(said[-2]), int(said[-1]))
    if architecture is not None:
        return architecture.image_size
    ends = re.search(r"_(?:\d+to)?(\d+)(?:\.|$)", name)
    return (int(ends[1]), int(ends[1])) if ends else None


def _wanted(args: dict[str, Any], name: str, stages: int) -> _Sides | None:
    """The windows that a network was asked to have, before its maps are looked at."""
    told = args.get("window_size")
    if told is None and name.startswith("swin_s3_"):
        told = (14, 14, 14, 7) if "small" in name else (7, 7, 14, 7)
    if told is None and (side := re.search(r"window(?:\d+to)?(\d+)", name)):
        told = int(side[1])
    return _sides(told, stages)


def _sides(told: Any, stages: int) -> _Sides | None:
    """timm's ways to write windows: a number, a pair, or one of either for each stage."""
    if told is None:
        return None
    if isinstance(told, int):
        return ((told, told),) * stages
    if len(told) == 2 and all(isinstance(one, int) for one in told):
        return (cast(Grid, tuple(told)),) * stages
    return tuple((one, one) if isinstance(one, int) else (int(one[0]), int(one[1])) for one in told)


def _settled(config: SwinConfig, size: tuple[int, int], wanted: _Sides, *, always: bool) -> tuple[_Sides, _Sides]:
    """Windows and shifts as timm settles them for pictures of a size."""
    halves = tuple((high // 2, wide // 2) for high, wide in wanted)
    if always:
        return wanted, halves
    maps = replace(config, image_size=size).maps_of(size)
    windows = tuple((min(grid[0], window[0]), min(grid[1], window[1])) for grid, window in zip(maps, wanted, strict=True))
    each = zip(maps, windows, halves, strict=True)
    return windows, tuple(applied_shift(grid, window, half, "each_side") for grid, window, half in each)


def _check_tables(tensors: Tensors, windows: _Sides, source: str) -> None:
    for stage, (high, wide) in enumerate(windows):
        rows = int(tensors[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape[0])
        if rows != (2 * high - 1) * (2 * wide - 1):
            raise CheckpointError(
                f"The biases of stage {stage} in {source} are {rows} offsets, which are not those of windows of {high} × "
                f"{wide}. Name another architecture, or pass a SwinConfig with the windows and the image_size they are for."
            )


def _rows(config: SwinConfig) -> list[Row]:
    rows = block_rows(config, lambda stage, place: f"layers.{stage}.blocks.{place}")
    return rows + query_and_value_biases(config) + outer_rows(config, merged="first", head="head.fc")


def _compose(model: nn.Module) -> Written:
    swin = cast(Swin, model)
    config, record = swin.config, swin.record
    args = {
        "img_size": list(config.image_size),
        "patch_size": config.first_patch,
        "in_chans": config.channels,
        "embed_dim": config.widths[0],
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": [list(window) for window in config.windows],
        "always_partition": _always(config),
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "drop_path_rate": config.drop_path,
    }
    if config.version == 2:
        args |= {"act_layer": config.activation}
        if config.pretrained_windows is not None:
            args |= {"pretrained_window_sizes": [list(window) for window in config.pretrained_windows]}
    _refuse_unstatable(config)
    described: dict[str, Any] = {
        "architecture": "swin_tiny_patch4_window7_224" if config.version == 1 else "swinv2_tiny_window8_256",
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": {
            "tag": "vitral",
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
            "fixed_input_size": True,
            **(
                to_timm(record.preprocessing, config.channels)
                if record.preprocessing
                else {"input_size": [config.channels, *config.image_size]}
            ),
        },
    }
    add_timm_record(described, record)
    return Written(model=swin, rows=_rows(config), documents={"config.json": described})


def _always(config: SwinConfig) -> bool | None:
    """Whether timm must be told to shift always, for windows and shifts to be ours; None where neither will do."""
    maps = config.maps_of(config.image_size)
    shifts = [config.shift_of(stage) for stage in range(len(maps))]
    each = zip(maps, config.windows, shifts, strict=True)
    ours = tuple(applied_shift(grid, window, shift, config.shift_rule) for grid, window, shift in each)
    settles = (answer for answer in (False, True) if (config.windows, ours) == _settles(config, answer))
    return next(settles, None)


def _settles(config: SwinConfig, always: bool) -> tuple[_Sides, _Sides]:
    return _settled(config, config.image_size, config.windows, always=always)


def _refuse_unstatable(config: SwinConfig) -> None:
    """Refuse what timm has no argument for, or would compute differently for pictures of the network's own size."""
    maps = config.maps_of(config.image_size)
    padded = any(s % w for grid, window in zip(maps, config.windows, strict=True) for s, w in zip(grid, window, strict=True))
    reasons = {
        "absolute positions": config.position == "learned",
        f"widths of {config.widths}": config.widths != tuple(config.widths[0] * 2**i for i in range(len(config.widths))),
        f"the activation {config.activation}": config.version == 1 and config.activation != "gelu",
        f"windows of {config.windows} for pictures of {config.image_size}": _always(config) is None,
        "maps that are filled up before they are shifted": padded and not config.shift_first,
        f"pictures of {config.image_size}, which are no whole patches": any(
            s % config.first_patch for s in config.image_size
        ),
    }
    found = [reason for reason, present in reasons.items() if present]
    if found:
        raise UsageError(f"timm's layout cannot state {', '.join(found)}. Use layout='vitral'.")


LAYOUT = Layout(name="timm", network=Swin, recognises=_recognises, plan=_plan, compose=_compose)
