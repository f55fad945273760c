"""The authors' layout of MLP-Mixer: npz files of google-research/vision_transformer.

Flax keeps matrices as (in, out). GELU is computed by its tanh approximation, as flax does unless told otherwise, and as the
networks were trained.
"""

from __future__ import annotations

import math
import re

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, permuted, same
from vitral.errors import CheckpointError
from vitral.models.backbones.mixer import Mixer, MixerConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_TOKENS = "MixerBlock_0/token_mixing/Dense_0/kernel"
_CHANNELS = "MixerBlock_0/channel_mixing/Dense_0/kernel"


def _recognises(files: Files) -> bool:
    return files.kind == "npz" and _TOKENS in files.tensors


def _plan(files: Files, architecture: MixerConfig | None) -> Plan:
    tensors = files.tensors
    missing = [name for name in ("stem/kernel", _CHANNELS) if name not in tensors]
    if missing:
        raise CheckpointError(f"{files.source} has a token mixing but no {' and no '.join(missing)}; it is no whole Mixer.")
    high, wide, channels, width = (int(side) for side in tensors["stem/kernel"].shape)
    count, token_hidden = (int(side) for side in tensors[_TOKENS].shape)
    side = math.isqrt(count)
    size = (side * high, side * wide)
    if architecture is not None and math.prod(architecture.grid) == count:
        size = architecture.image_size
    elif side * side != count:
        raise CheckpointError(
            f"The token mixing of {files.source} is for {count} patches, which make no square. Pass a MixerConfig with that "
            "image_size as architecture."
        )
    config = MixerConfig(
        image_size=size,
        patch_size=(high, wide),
        channels=channels,
        width=width,
        depth=1 + max(int(match[1]) for name in tensors if (match := re.match(r"MixerBlock_(\d+)/", name))),
        token_hidden=token_hidden,
        channel_hidden=int(tensors[_CHANNELS].shape[1]),
        num_classes=int(tensors["head/kernel"].shape[1]) if "head/kernel" in tensors else 0,
        activation="gelu_tanh",
    )
    record = Record(
        architecture=f"{width} wide, {config.depth} deep",
        layout="google",
        source=files.source,
        preprocessing=evaluation(config.image_size, interpolation="bilinear", inception=True),
        licence="apache-2.0",
    )
    return Plan(
        build=Mixer,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
    )


def _rows(config: MixerConfig) -> list[Row]:
    rows = [permuted("patch.projection.weight", "stem/kernel", (3, 2, 0, 1)), same("patch.projection.bias", "stem/bias")]
    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"MixerBlock_{index}"
        rows += _norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0") + _norm(f"{ours}.norm2", f"{theirs}/LayerNorm_1")
        for part, mixing in (("attention", "token_mixing"), ("mlp", "channel_mixing")):
            rows += _dense(f"{ours}.{part}.up", f"{theirs}/{mixing}/Dense_0")
            rows += _dense(f"{ours}.{part}.down", f"{theirs}/{mixing}/Dense_1")
    rows += _norm("norm", "pre_head_layer_norm")
    return rows + (_dense("head", "head") if config.num_classes else [])


def _dense(ours: str, theirs: str) -> list[Row]:
    return [permuted(f"{ours}.weight", f"{theirs}/kernel", (1, 0)), same(f"{ours}.bias", f"{theirs}/bias")]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [same(f"{ours}.weight", f"{theirs}/scale"), same(f"{ours}.bias", f"{theirs}/bias")]


LAYOUT = Layout(name="google", network=Mixer, recognises=_recognises, plan=_plan)
