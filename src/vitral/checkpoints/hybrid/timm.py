"""timm's layout of hybrids: vit_base_r50_s16, vit_small_r26_s32, vit_large_r50_s32, vit_tiny_r_s16_p8.

Behind the trunk, whose tensors begin with patch_embed.backbone, it is timm's vision transformer; see `checkpoints.vit.timm`
for what no tensor shows. timm's hybrids on other convolutions (ResNet-D, MobileCLIP's) are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.hybrid.trunk import depths_of, on_trunk, seen_from_within, units
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.preprocessing import evaluation, from_timm
from vitral.checkpoints.table import Row, renamed
from vitral.checkpoints.vit import timm
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.backbones.hybrid import HybridConfig, HybridViT

__all__ = ["LAYOUT"]

_TRUNK = "patch_embed.backbone."
_ROOTS = (f"{_TRUNK}stem.", _TRUNK)  # with stages behind it, and alone
_UNIT = r"patch_embed\.backbone\.stages\.(\d{1,4})\.blocks\.(\d{1,4})\."
# Trunks that timm builds, each with the name that brings it along.
_ARCHITECTURES = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
_WIDTH = 64


def _recognises(files: Files) -> bool:
    return "patch_embed.proj.weight" in files.tensors and any(
        f"{root}conv.weight" in files.tensors and f"{root}norm.weight" in files.tensors for root in _ROOTS
    )


def _plan(files: Files, architecture: HybridConfig | None) -> Plan:
    told, tensors = files.config, files.tensors
    stem = next(root for root in _ROOTS if f"{root}conv.weight" in tensors)
    depths = depths_of(tensors, _UNIT) if stem != _TRUNK else ()
    pretrained = told.get("pretrained_cfg") or (told if "input_size" in told else {})
    said = (told.get("model_args") or {}).get("img_size") or pretrained.get("input_size")
    size = (said, said) if isinstance(said, int) else tuple(said[-2:]) if said else None
    if size is None and architecture is not None:
        size = architecture.image_size
    within = replace(
        files,
        tensors={name: tensor for name, tensor in tensors.items() if not name.startswith(_TRUNK)},
        config=_in_cells(told, size, 4 * 2 ** max(min(len(depths), 16) - 1, 0)),
    )
    plan = timm.LAYOUT.plan(within, None if architecture is None else seen_from_within(architecture))
    config = on_trunk(plan.config, tensors[f"{stem}conv.weight"], depths, size)
    return replace(
        plan,
        build=HybridViT,
        config=config,
        rows=_trunk_rows(config.trunk_depths) + plan.rows,
        tensors=tensors,
        record=replace(plan.record, preprocessing=_prepared(pretrained, config)),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='r50_vit_b16').",
    )


def _in_cells(told: dict[str, Any], size: Any, stride: int) -> dict[str, Any]:
    """A config.json as the transformer within would have it: its pictures are the trunk's maps."""
    if size is None:
        return told
    cells = [-(-int(side) // stride) for side in size]
    return told | {"model_args": (told.get("model_args") or {}) | {"img_size": cells}}


def _prepared(pretrained: dict[str, Any], config: HybridConfig) -> Preprocessing | None:
    """How pictures are prepared: as the file says, else as timm evaluates all its hybrids of this trunk."""
    if config.channels not in (1, 3):
        return None
    if pretrained:
        return from_timm(pretrained, config.image_size)
    height = config.image_size[0]
    return evaluation(config.image_size, resize=height if height >= 384 else int(height / 0.9), inception=True)


def _trunk_rows(depths: tuple[int, ...]) -> list[Row]:
    stem = _ROOTS[0] if depths else _ROOTS[1]
    rows = renamed("trunk.root", f"{stem}conv", bias=False) + renamed("trunk.root_norm", f"{stem}norm")
    for stage, unit, changes in units(depths):
        ours, theirs = f"trunk.stages.{stage}.{unit}", f"{_TRUNK}stages.{stage}.blocks.{unit}"
        if changes:
            rows += renamed(f"{ours}.shortcut", f"{theirs}.downsample.conv", bias=False)
            rows += renamed(f"{ours}.shortcut_norm", f"{theirs}.downsample.norm")
        for number in (1, 2, 3):
            rows += renamed(f"{ours}.conv{number}", f"{theirs}.conv{number}", bias=False)
            rows += renamed(f"{ours}.norm{number}", f"{theirs}.norm{number}")
    return rows


def _compose(model: nn.Module) -> Written:
    """Write the model as an architecture of timm with its arguments spelt out."""
    config = cast(HybridViT, model).config
    if config.trunk_depths not in _ARCHITECTURES or config.trunk_width != _WIDTH:
        raise UsageError(
            f"timm has no hybrid whose trunk has {config.trunk_depths} units in its stages and {config.trunk_width} "
            f"channels behind its root: it has {', '.join(map(str, _ARCHITECTURES))}, all with {_WIDTH}. "
            "Use layout='vitral'."
        )
    written = cast(Callable[[nn.Module], Written], timm.LAYOUT.compose)(model)
    described = written.documents["config.json"]
    if described["architecture"] != "vit_base_patch16_224":
        raise UsageError(
            f"timm's hybrids are built as plain as its vit_base_patch16_224; this one would need a "
            f"{described['architecture']}. Use layout='vitral'."
        )
    stem = _ROOTS[0] if config.trunk_depths else _ROOTS[1]
    described["architecture"] = _ARCHITECTURES[config.trunk_depths]
    described["model_args"]["patch_size"] = config.cells[0]
    described["pretrained_cfg"]["first_conv"] = f"{stem}conv"
    return replace(written, rows=_trunk_rows(config.trunk_depths) + written.rows)


LAYOUT = Layout(name="timm", network=HybridViT, recognises=_recognises, plan=_plan, compose=_compose)
