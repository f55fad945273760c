"""The layout of the authors' repository (whai362/PVT, classification/pvt_v2.py): state dictionaries as .pth.

A state dictionary shows every size but the heads, which are the same in all networks of the repository. Those of SegFormer's
encoder have the same names; see `segformer/nvlabs.py` for how they are told apart.
"""

from __future__ import annotations

from typing import cast

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.pvt.spelling import Spelling, seen, table
from vitral.checkpoints.segformer.nvlabs import holds_mit
from vitral.models.backbones.pvt import PVTConfig, PVTv2
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_SPELLING = Spelling(
    first="patch_embed1",
    embedding="patch_embed{number}",
    blocks="block{number}.",
    norm="norm{number}",
    neighbours="mlp.dwconv.dwconv",
)
_SIGNS = ("patch_embed1.proj.weight", "block1.0.attn.kv.weight", "block1.0.mlp.dwconv.dwconv.weight")


def _recognises(files: Files) -> bool:
    return all(name in files.tensors for name in _SIGNS) and not holds_mit(files)


def _plan(files: Files, architecture: PVTConfig | None) -> Plan:
    notes: list[str] = cast(list[str], [])
    config = seen(files.tensors, _SPELLING, architecture, notes)
    height = config.image_size[0]
    record = Record(
        layout="whai362",
        source=files.source,
        # As its datasets.py evaluates: the shorter side to 256/224 of the cut.
        preprocessing=evaluation(config.image_size, resize=int(256 / 224 * height)) if config.channels == 3 else None,
        licence="apache-2.0",
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


LAYOUT = Layout(name="whai362", network=PVTv2, recognises=_recognises, plan=_plan)
