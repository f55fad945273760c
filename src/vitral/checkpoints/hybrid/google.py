"""The original layout of hybrids: npz files of google-research/vision_transformer, as its ViT paper and AugReg have them.

Behind the trunk it is Google's vision transformer; see `checkpoints.vit.google`. Flax keeps filters as (y, x, in, out).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitral.checkpoints.files import Files
from vitral.checkpoints.hybrid.trunk import depths_of, on_trunk, units
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, permuted, shaped
from vitral.checkpoints.vit import google
from vitral.models.backbones.hybrid import HybridConfig, HybridViT

__all__ = ["LAYOUT"]

_ROOT = "conv_root/kernel"
_TRUNK = ("conv_root/", "gn_root/", "block")


def _recognises(files: Files) -> bool:
    return google.LAYOUT.recognises(files) and any(name.endswith(_ROOT) for name in files.tensors)


def _plan(files: Files, architecture: HybridConfig | None) -> Plan:
    prefix = next(name.removesuffix(_ROOT) for name in files.tensors if name.endswith(_ROOT))
    beside = tuple(prefix + part for part in _TRUNK)
    trunk = {name.removeprefix(prefix): tensor for name, tensor in files.tensors.items() if name.startswith(beside)}
    rest = {name: tensor for name, tensor in files.tensors.items() if not name.startswith(beside)}
    plan = google.LAYOUT.plan(replace(files, tensors=rest), None)
    # Blocks of the trunk count from 1.
    config = on_trunk(plan.config, trunk[_ROOT].permute(3, 2, 0, 1), depths_of(trunk, r"block(\d{1,4})/unit(\d{1,4})/"))
    return replace(
        plan,
        build=HybridViT,
        config=config,
        rows=_trunk_rows(config, trunk) + plan.rows,
        tensors={**plan.tensors, **trunk},
        record=replace(
            plan.record,
            architecture=f"{plan.record.architecture} on a trunk of {sum(config.trunk_depths)} units",
            preprocessing=evaluation(config.image_size, interpolation="bilinear", inception=True),
        ),
    )


def _trunk_rows(config: HybridConfig, trunk: dict[str, Tensor]) -> list[Row]:
    rows = _layer("trunk.root", "trunk.root_norm", "conv_root", "gn_root", config.trunk_width, trunk)
    for stage, unit, changes in units(config.trunk_depths):
        ours, theirs = f"trunk.stages.{stage}.{unit}", f"block{stage + 1}/unit{unit + 1}"
        outer = 4 * config.trunk_width * 2**stage
        if changes:
            names = (f"{ours}.shortcut", f"{ours}.shortcut_norm", f"{theirs}/conv_proj", f"{theirs}/gn_proj")
            rows += _layer(*names, outer, trunk)
        for number, width in ((1, outer // 4), (2, outer // 4), (3, outer)):
            names = (f"{ours}.conv{number}", f"{ours}.norm{number}", f"{theirs}/conv{number}", f"{theirs}/gn{number}")
            rows += _layer(*names, width, trunk)
    return rows


def _layer(conv: str, norm: str, their_conv: str, their_norm: str, width: int, trunk: dict[str, Tensor]) -> list[Row]:
    """A convolution and its norm, whose gains lie in four dimensions in older files."""
    rows = [permuted(f"{conv}.weight", f"{their_conv}/kernel", (3, 2, 0, 1))]
    for ours, theirs in (("weight", "scale"), ("bias", "bias")):
        name = f"{their_norm}/{theirs}"
        shape = (1, 1, 1, width) if name in trunk and trunk[name].ndim == 4 else (width,)
        rows.append(shaped(f"{norm}.{ours}", name, (width,), shape))
    return rows


LAYOUT = Layout(name="google", network=HybridViT, recognises=_recognises, plan=_plan)
