"""timm's layout of MLP-Mixer: a folder with config.json and model.safetensors, or a bare state dictionary.

The tensors show every size but the picture's sides where they are not equal, which come from config.json or from the
architecture that the user names. No file can state the activation: it is GELU unless the user's architecture has another.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import evaluation, from_timm, to_timm
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.checkpoints.vocabulary import add_timm_record, timm_labels
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.mixer import VARIANTS, Mixer, MixerConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_TOKENS = "blocks.0.mlp_tokens.fc1.weight"
_WRITTEN = ("mixer_s32", "mixer_s16", "mixer_b32", "mixer_b16", "mixer_l32", "mixer_l16")
# What the variants of timm's page on Mixers have, and a Mixer has not.
_FOREIGN = {
    "stem.norm.weight": "a norm behind the patches",
    "blocks.0.mlp_channels.gate.norm.weight": "gating units",
}


def _recognises(files: Files) -> bool:
    return "stem.proj.weight" in files.tensors and _TOKENS in files.tensors


def _plan(files: Files, architecture: MixerConfig | None) -> Plan:
    told = files.config
    config = _config(files, architecture)
    pretrained = told.get("pretrained_cfg") or {}
    name = str(told.get("architecture", ""))
    # The networks of the paper were trained on pictures in [−1, 1].
    prepared = from_timm(pretrained, config.image_size) if pretrained else None
    if prepared is None and config.channels == 3:
        prepared = evaluation(config.image_size, resize=math.floor(config.image_size[0] / 0.875), inception=True)
    record = Record(
        architecture=name,
        layout="timm",
        source=files.source,
        preprocessing=prepared,
        labels=timm_labels(told, config.num_classes),
        licence=pretrained.get("license"),
    )
    return Plan(
        build=Mixer,
        config=config,
        rows=_rows(config),
        tensors=files.tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='mixer_b16').",
    )


def _config(files: Files, architecture: MixerConfig | None) -> MixerConfig:
    """What the tensors show, completed by what the file or the user says."""
    tensors = files.tensors
    foreign = next((told for name, told in _FOREIGN.items() if name in tensors), None)
    if foreign is None and _hidden(tensors, "mlp_tokens") != int(tensors[_TOKENS].shape[0]):
        foreign = "gated mixing"
    if foreign is not None:
        raise CheckpointError(f"{files.source} is a relative of MLP-Mixer with {foreign}, which is not read yet.")
    width, channels, high, wide = (int(side) for side in tensors["stem.proj.weight"].shape)
    return MixerConfig(
        image_size=_image_size(files, architecture, (high, wide)),
        patch_size=(high, wide),
        channels=channels,
        width=width,
        depth=1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))),
        token_hidden=_hidden(tensors, "mlp_tokens"),
        channel_hidden=_hidden(tensors, "mlp_channels"),
        num_classes=int(tensors["head.weight"].shape[0]) if "head.weight" in tensors else 0,
        activation=architecture.activation if architecture else "gelu",
    )


def _hidden(tensors: Tensors, mixing: str) -> int:
    """Hidden channels of a mixing in the first block, as its second layer takes them."""
    name = f"blocks.0.{mixing}.fc2.weight"
    if name not in tensors:
        raise CheckpointError(f"The file has patches and a token mixing but no {name}; it is no whole Mixer.")
    return int(tensors[name].shape[1])


def _image_size(files: Files, architecture: MixerConfig | None, patch: tuple[int, int]) -> tuple[int, int]:
    """The size whose patches the token mixing counts: told, named, or a square's."""
    count = int(files.tensors[_TOKENS].shape[1])
    said = (files.config.get("model_args") or {}).get("img_size")
    said = said or (files.config.get("pretrained_cfg") or {}).get("input_size")
    sizes = [(said, said) if isinstance(said, int) else tuple(map(int, said[-2:]))] if said else []
    sizes += [architecture.image_size] if architecture else []
    sizes += [(math.isqrt(count) * patch[0], math.isqrt(count) * patch[1])]
    for size in sizes:
        if (size[0] // patch[0]) * (size[1] // patch[1]) == count:
            return cast(tuple[int, int], size)
    raise CheckpointError(
        f"The token mixing of {files.source} is for {count} patches: no square of them, and no size that was told fits. Put "
        "the config.json it was published with beside the file, or pass a MixerConfig with that image_size as architecture."
    )


def _rows(config: MixerConfig) -> list[Row]:
    rows = renamed("patch.projection", "stem.proj")
    for index in range(config.depth):
        block = f"blocks.{index}"
        rows += renamed(f"{block}.norm1", f"{block}.norm1") + renamed(f"{block}.norm2", f"{block}.norm2")
        for ours, theirs in (("attention", "mlp_tokens"), ("mlp", "mlp_channels")):
            rows += renamed(f"{block}.{ours}.up", f"{block}.{theirs}.fc1")
            rows += renamed(f"{block}.{ours}.down", f"{block}.{theirs}.fc2")
    return rows + renamed("norm", "norm") + (renamed("head", "head") if config.num_classes else [])


def _compose(model: nn.Module) -> Written:
    mixer = cast(Mixer, model)
    config, record = mixer.config, mixer.record
    height, width = config.image_size
    described: dict[str, Any] = {
        "architecture": _architecture(config),
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": "avg",
        "model_args": {
            "img_size": height if height == width else [height, width],
            "in_chans": config.channels,
            # timm multiplies and rounds down; half a channel more keeps the product from falling just short.
            "mlp_ratio": [(hidden + 0.5) / config.width for hidden in (config.token_hidden, config.channel_hidden)],
            "drop_path_rate": config.drop_path,
        },
        "pretrained_cfg": {
            "num_classes": config.num_classes,
            "first_conv": "stem.proj",
            "classifier": "head",
            "fixed_input_size": True,
            **(to_timm(record.preprocessing, config.channels) if record.preprocessing else {}),
        },
    }
    add_timm_record(described, record)
    return Written(model=mixer, rows=_rows(config), documents={"config.json": described})


def _architecture(config: MixerConfig) -> str:
    """timm's name for a Mixer. Its patches, depth and width go with the name; all else is an argument.

    Raises:
        UsageError: no name of timm's goes with them, or the activation is another.
    """
    if config.activation != "gelu":
        raise UsageError(f"timm's layout cannot state the activation {config.activation}. Use layout='vitral'.")
    for name in _WRITTEN:
        variant = VARIANTS[name]
        if (variant.patch_size, variant.depth, variant.width) == (config.patch_size, config.depth, config.width):
            return f"{name}_224"
    raise UsageError(
        f"timm has no Mixer of {config.depth} blocks, {config.width} channels and patches of {config.patch_size}, only the "
        f"paper's: {', '.join(_WRITTEN)}. Use layout='vitral'."
    )


LAYOUT = Layout(name="timm", network=Mixer, recognises=_recognises, plan=_plan, compose=_compose)
