"""transformers' layout of Swin Transformers: model types swin and swinv2, with a classifier or bare.

Version 1 shifts its windows only where both sides of a map are longer. Version 2 settles windows and shifts when it is
built, from the rows of its maps, and keeps them for pictures of all sizes. Since version 5 transformers uses other names in
memory than on disk; state dictionaries saved from memory are brought back to the names on disk.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import from_transformers
from vitral.checkpoints.table import Row, Tensors, renamed, same, stacked
from vitral.checkpoints.vocabulary import activation_of, hidden_act_of, transformers_documents, transformers_record
from vitral.errors import CheckpointError, UsageError
from vitral.layers.position import Grid
from vitral.layers.window import applied_shift
from vitral.models.backbones.swin import Swin, SwinConfig

__all__ = ["LAYOUT", "described_swin", "swin_config", "swin_names", "swin_rows"]

_TYPES = {"swin": (1, "Swin"), "swinv2": (2, "Swinv2")}
# What transformers assumes where a config.json does not say.
_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "drop_path_rate": 0.1,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
    "pretrained_window_sizes": None,
}
# Names in memory since transformers 5 → names on disk.
_IN_MEMORY = (
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.relative", ".attention.self.relative"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def _recognises(files: Files) -> bool:
    return str(files.config.get("model_type")) in _TYPES


def _plan(files: Files, architecture: SwinConfig | None) -> Plan:
    told, model_type = files.config, str(files.config["model_type"])
    tensors = swin_names(files.tensors, model_type)
    config = swin_config(told, _TYPES[model_type][0], tensors)
    preprocessing = from_transformers(files.preprocessor, model_type, config.image_size)
    record = transformers_record(files, architecture=model_type, num_classes=config.num_classes, preprocessing=preprocessing)
    return Plan(
        build=Swin,
        config=config,
        rows=swin_rows(config),
        tensors=tensors,
        record=record,
        # The decoder of masked image modelling, what stands for a masked token there, and indices that can be computed.
        ignored=(r"decoder\..*", r"embeddings\.mask_token", r".*\.relative_(position_index|coords_table)"),
    )


def swin_names(tensors: Tensors, model_type: str) -> Tensors:
    """The tensors under the names on disk, without the prefix of a model with a head.

    Args:
        tensors: under names on disk or in memory.
        model_type: which is the prefix.
    """
    spelt = {}
    for name in tensors:
        disk = name.removeprefix(f"{model_type}.")
        for pattern, replacement in _IN_MEMORY:
            disk = re.sub(pattern, replacement, disk)
        spelt[disk] = name
    return {disk: tensors[name] for disk, name in spelt.items()}


def swin_config(told: dict[str, Any], version: int, tensors: Tensors) -> SwinConfig:
    """The network that a config.json tells of.

    Args:
        told: its content.
        version: 1 or 2.
        tensors: which tell how many classes there are.

    Raises:
        CheckpointError: something that was never published, or no numbers where numbers belong.
    """
    said = {**_DEFAULTS, **{name: value for name, value in told.items() if value is not None}}
    if said["layer_norm_eps"] != 1e-5:
        raise CheckpointError(f"config.json asks for layer_norm_eps={said['layer_norm_eps']}; only 1e-5 was ever published.")
    size, stages, side = said["image_size"], len(said["depths"]), _whole(said["window_size"])
    patch = said["patch_size"]
    if isinstance(patch, list | tuple):
        patch = patch[0] if len(set(patch)) == 1 else None
    config = SwinConfig(
        image_size=(int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (_whole(size), _whole(size)),
        channels=_whole(said["num_channels"]),
        num_classes=int(tensors["classifier.weight"].shape[0]) if "classifier.weight" in tensors else 0,
        version=cast(Any, version),
        first_patch=_whole(patch),
        widths=tuple(_whole(said["embed_dim"]) * 2**stage for stage in range(stages)),
        depths=tuple(map(_whole, said["depths"])),
        heads=tuple(map(_whole, said["num_heads"])),
        windows=((side, side),) * stages,
        shift_rule="both_sides",
        position="learned" if said["use_absolute_embeddings"] else "none",
        mlp_ratio=float(said["mlp_ratio"]),
        activation=activation_of(said["hidden_act"]),
        qkv_bias=bool(said["qkv_bias"]),
        drop_path=float(said["drop_path_rate"]),
    )
    _check_positions(config)
    if version == 1:
        return config
    windows, shifts = _settled(config, side)
    before = tuple(_whole(one) for one in said["pretrained_window_sizes"] or (0,) * stages)[:stages]
    pretrained = tuple((one, one) if one else own for one, own in zip(before, windows, strict=True))
    return replace(
        config,
        windows=windows,
        shifts=shifts,
        shift_rule="always",
        pretrained_windows=None if pretrained == windows else pretrained,
    )


def _check_positions(config: SwinConfig) -> None:
    if config.position == "learned" and (config.version == 2 or any(side % config.stride for side in config.image_size)):
        raise CheckpointError(
            f"config.json asks for absolute positions in version {config.version} for pictures of {config.image_size}. They "
            f"are read in version 1, for sides that are multiples of {config.stride}."
        )


def _settled(config: SwinConfig, side: int) -> tuple[tuple[Grid, ...], tuple[Grid, ...]]:
    """Windows and shifts of version 2, as transformers settles them: by pairs of a map's rows, the odd one left out."""
    rows = [config.image_size[0] // config.first_patch // 2**stage for stage in range(len(config.widths))]
    spans = [min(side, count) for count in rows]
    shifts = [0 if count <= span else side // 2 for count, span in zip(rows, spans, strict=True)]
    return tuple((span, span) for span in spans), tuple((shift, shift) for shift in shifts)


def swin_rows(config: SwinConfig) -> list[Row]:
    """The table of a network, with names as they are inside the encoder, to which a model with a head adds a prefix."""
    rows = renamed("patch.projection", "embeddings.patch_embeddings.projection") + renamed("stem_norm", "embeddings.norm")
    rows += [same("position_table", "embeddings.position_embeddings")] if config.position == "learned" else []
    for stage, depth in enumerate(config.depths):
        for place in range(depth):
            rows += _block_rows(config, f"stages.{stage}.blocks.{place}", f"encoder.layers.{stage}.blocks.{place}")
        if stage:
            merging = f"encoder.layers.{stage - 1}.downsample"
            rows += renamed(f"stages.{stage}.merging.norm", f"{merging}.norm")
            rows += renamed(f"stages.{stage}.merging.projection", f"{merging}.reduction", bias=False)
    return rows + renamed("norm", "layernorm") + (renamed("head", "classifier") if config.num_classes else [])


def _block_rows(config: SwinConfig, ours: str, theirs: str) -> list[Row]:
    attention, first = f"{theirs}.attention.self", config.version == 1
    rows = renamed(f"{ours}.norm1", f"{theirs}.layernorm_before") + renamed(f"{ours}.norm2", f"{theirs}.layernorm_after")
    rows += renamed(f"{ours}.mlp.up", f"{theirs}.intermediate.dense") + renamed(f"{ours}.mlp.down", f"{theirs}.output.dense")
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attention.output.dense")
    parts = ("query", "key", "value")
    rows += [stacked(f"{ours}.attention.qkv.weight", *(f"{attention}.{part}.weight" for part in parts))]
    if config.qkv_bias and first:
        rows += [stacked(f"{ours}.attention.qkv.bias", *(f"{attention}.{part}.bias" for part in parts))]
    elif config.qkv_bias:
        rows += [same(f"{ours}.attention.{part}_bias", f"{attention}.{part}.bias") for part in ("query", "value")]
    if first:
        return [*rows, same(f"{ours}.attention.relative.table", f"{attention}.relative_position_bias_table")]
    network = f"{attention}.continuous_position_bias_mlp"
    rows += [same(f"{ours}.attention.log_scale", f"{attention}.logit_scale")]
    rows += renamed(f"{ours}.attention.relative.up", f"{network}.0")
    return rows + renamed(f"{ours}.attention.relative.down", f"{network}.2", bias=False)


def _compose(model: nn.Module) -> Written:
    swin = cast(Swin, model)
    config, record = swin.config, swin.record
    _refuse_unstatable(config)
    model_type = "swin" if config.version == 1 else "swinv2"
    stem = _TYPES[model_type][1]
    described = {
        "architectures": [f"{stem}{'ForImageClassification' if config.num_classes else 'Model'}"],
        **described_swin(config),
        "dtype": "float32",
    }
    rows = swin_rows(config)
    if config.num_classes:
        prefix = f"{model_type}."
        rows = [
            replace(row, theirs=tuple(name if name.startswith("classifier") else prefix + name for name in row.theirs))
            for row in rows
        ]
    documents = transformers_documents(described, record, config.num_classes)
    return Written(model=swin, rows=rows, documents=documents)


def described_swin(config: SwinConfig) -> dict[str, Any]:
    """A network in the words of a config.json, as far as they do not depend on its head."""
    described: dict[str, Any] = {
        "model_type": "swin" if config.version == 1 else "swinv2",
        "image_size": config.image_size[0] if len(set(config.image_size)) == 1 else list(config.image_size),
        "patch_size": config.first_patch,
        "num_channels": config.channels,
        "embed_dim": config.widths[0],
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.windows[0][0],
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": config.drop_path,
        "hidden_act": hidden_act_of(config.activation),
        "use_absolute_embeddings": config.position == "learned",
        "layer_norm_eps": 1e-5,
    }
    if config.version == 2:
        described["pretrained_window_sizes"] = [
            window[0] for window in config.pretrained_windows or ((0, 0),) * len(config.widths)
        ]
    return described


def _refuse_unstatable(config: SwinConfig) -> None:
    """Refuse what transformers has no field for, or would compute differently for pictures of the network's own size."""
    maps, side = config.maps_of(config.image_size), config.windows[0][0]
    each = [
        (grid, window, config.shift_of(stage)) for stage, (grid, window) in enumerate(zip(maps, config.windows, strict=True))
    ]
    ours = tuple(applied_shift(grid, window, shift, config.shift_rule) for grid, window, shift in each)
    if config.version == 1:
        windows: tuple[Grid, ...] = ((side, side),) * len(maps)
        # Where a map is smaller than its tables, transformers does not run.
        fits = all(min(grid) >= side for grid in maps)
        shifts = tuple(applied_shift(grid, (side, side), (side // 2, side // 2), "both_sides") for grid in maps)
    else:
        fits = True
        windows, shifts = _settled(config, side)
    padded = any(s % w for grid, window, _ in each for s, w in zip(grid, window, strict=True))
    squares = all(one[0] == one[1] for one in config.pretrained_windows or ())
    reasons = {
        f"windows of {config.windows} for pictures of {config.image_size}": not fits
        or (windows, shifts) != (config.windows, ours),
        f"widths of {config.widths}": config.widths != tuple(config.widths[0] * 2**i for i in range(len(config.widths))),
        "maps that are shifted before they are filled up": padded and config.shift_first,
        "absolute positions of version 2": config.position == "learned" and config.version == 2,
        f"absolute positions for pictures of {config.image_size}": config.position == "learned"
        and any(length % config.stride for length in config.image_size),
        "patches that are left out": config.rest == "left_out" and any(s % config.first_patch for s in config.image_size),
        f"a pre-training with windows of {config.pretrained_windows}": not squares,
    }
    found = [reason for reason, present in reasons.items() if present]
    if found:
        raise UsageError(f"transformers' layout cannot state {', '.join(found)}. Use layout='vitral'.")


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int | float) or int(number) != number:
        raise CheckpointError(f"config.json has {number!r} where a whole number belongs.")
    return int(number)


LAYOUT = Layout(name="transformers", network=Swin, recognises=_recognises, plan=_plan, compose=_compose)
