"""torchvision's layout: the state dictionaries of its swin_t, swin_s, swin_b, and of their second version, swin_v2_t, ….

Windows are seen from the buffers beside the weights. The picture's size is that at which the last stage has one window,
unless the user names an architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.swin.microsoft import BUFFERS, block_rows, catalogue_name, ratio
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError
from vitral.models.backbones.swin import Swin, SwinConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

# The shorter side before the cut, by version, width and depth, as the published weights state it.
_RESIZED = {
    (1, 96, 12): 232,
    (1, 96, 24): 246,
    (1, 128, 24): 238,
    (2, 96, 12): 260,
    (2, 96, 24): 260,
    (2, 128, 24): 272,
}


def _recognises(files: Files) -> bool:
    return "features.0.0.weight" in files.tensors and "features.1.0.attn.relative_position_index" in files.tensors


def _plan(files: Files, architecture: SwinConfig | None) -> Plan:
    config = _config(files.tensors)
    side = config.windows[-1][0] * config.stride
    config = replace(config, image_size=architecture.image_size if architecture else (side, side))
    record = Record(
        architecture=catalogue_name(config),
        layout="torchvision",
        source=files.source,
        preprocessing=_preprocessing(config),
        licence="bsd-3-clause",
    )
    return Plan(
        build=Swin,
        config=config,
        rows=_rows(config),
        tensors=files.tensors,
        record=usual_labels(record, config.num_classes),
        ignored=BUFFERS,
    )


def _config(tensors: Tensors) -> SwinConfig:
    """Stages are at the odd places; between two of them tokens are merged."""
    found = [re.fullmatch(r"features\.(\d+)\.(\d+)\.norm1\.weight", name) for name in tensors]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    places = sorted({place for place, _ in blocks})
    if places != list(range(1, 2 * len(places), 2)):
        raise CheckpointError(f"The file has blocks at {places} of a Swin Transformer's features; some are missing.")
    first = [f"features.{place}.0" for place in places]
    second = f"{first[0]}.attn.logit_scale" in tensors
    told = "logit_scale" if second else "relative_position_bias_table"
    width, channels, patch, _ = (int(side) for side in tensors["features.0.0.weight"].shape)
    pairs = [int(tensors[f"{block}.attn.relative_position_index"].numel()) for block in first]
    windows = tuple((side, side) for side in (math.isqrt(math.isqrt(count)) for count in pairs))
    if any(side**4 != count for (side, _), count in zip(windows, pairs, strict=True)):
        raise CheckpointError("The windows of the file are no squares; those that torchvision publishes are.")
    return SwinConfig(
        image_size=(2 ** len(places) * patch, 2 ** len(places) * patch),  # until the windows are known
        channels=channels,
        num_classes=int(tensors["head.weight"].shape[0]) if "head.weight" in tensors else 0,
        version=2 if second else 1,
        first_patch=patch,
        widths=tuple(int(tensors[f"{block}.norm1.weight"].shape[0]) for block in first),
        depths=tuple(1 + max(index for at, index in blocks if at == place) for place in places),
        heads=tuple(int(tensors[f"{block}.attn.{told}"].shape[0 if second else 1]) for block in first),
        windows=windows,
        rest="left_out",
        mlp_ratio=ratio(int(tensors[f"{first[0]}.mlp.0.weight"].shape[0]), width),
        qkv_bias=f"{first[0]}.attn.qkv.bias" in tensors,
    )


def _preprocessing(config: SwinConfig) -> Preprocessing | None:
    if config.channels != 3:
        return None
    side = min(config.image_size)
    return evaluation(config.image_size, resize=_RESIZED.get((config.version, config.widths[0], config.depth), side))


def _rows(config: SwinConfig) -> list[Row]:
    rows = renamed("patch.projection", "features.0.0") + renamed("stem_norm", "features.0.2")
    for stage in range(1, len(config.widths)):
        rows += renamed(f"stages.{stage}.merging.norm", f"features.{2 * stage}.norm")
        rows += renamed(f"stages.{stage}.merging.projection", f"features.{2 * stage}.reduction", bias=False)
    rows += block_rows(config, _named, ("mlp.0", "mlp.3"))
    if config.version == 2 and config.qkv_bias:
        for stage, depth in enumerate(config.depths):
            for place in range(depth):
                rows += _biases(f"stages.{stage}.blocks.{place}.attention", f"{_named(stage, place)}.attn.qkv.bias")
    return rows + renamed("norm", "norm") + (renamed("head", "head") if config.num_classes else [])


def _named(stage: int, place: int) -> str:
    return f"features.{2 * stage + 1}.{place}"


def _biases(ours: str, theirs: str) -> list[Row]:
    """The first and the last third of a tensor whose second third, the keys' bias, torchvision sets to zero."""

    def row(part: str, third: int) -> Row:
        def read(whole: Sequence[Tensor]) -> Tensor:
            return whole[0].chunk(3)[third]

        def write(bias: Tensor) -> list[Tensor]:
            return [torch.cat([bias if place == third else torch.zeros_like(bias) for place in range(3)])]

        return Row(f"{ours}.{part}_bias", (theirs,), read, write)

    return [row("query", 0), row("value", 2)]


LAYOUT = Layout(name="torchvision", network=Swin, recognises=_recognises, plan=_plan)
