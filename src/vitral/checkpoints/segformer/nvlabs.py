"""The layout of the authors' repository (NVlabs/SegFormer): state dictionaries of mmsegmentation, as .pth.

The encoder has the names of PVT, from whose code it was made. What tells the two apart are the hidden layers of the first
stage, which are half as wide here. Those of PVT v2's B5 are too: it is MiT-B5 but for what it was taught, no tensor tells
which, and it is PVT's if the name of the file says so. A state dictionary shows every size but the heads, which are the same
in all networks of the repository.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.pvt.spelling import Spelling, seen, table
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.errors import CheckpointError
from vitral.models.backbones import mit
from vitral.models.backbones.mit import MiT, MiTConfig
from vitral.models.record import Record
from vitral.models.segmentation import segformer
from vitral.models.segmentation.segformer import SegFormer, SegFormerConfig

__all__ = ["LAYOUTS", "holds_mit"]

_SPELLING = Spelling(
    first="patch_embed1",
    embedding="patch_embed{number}",
    blocks="block{number}.",
    norm="norm{number}",
    neighbours="mlp.dwconv.dwconv",
)
_EMBEDDING, _UP = "patch_embed1.proj.weight", "block1.0.mlp.fc1.weight"
_SIGNS = (_EMBEDDING, _UP, "block1.0.attn.kv.weight", "block1.0.mlp.dwconv.dwconv.weight")
_FUSE, _HEAD = "decode_head.linear_fuse.conv.weight", "decode_head.linear_pred.weight"
_RATIO = 4  # of hidden channels to the width in the first stage; PVT v2 has 8 in all but its B5
_LICENCE = "NVIDIA Source Code License for SegFormer"
# A layer that mmsegmentation gives every head, and this one does not call.
_IDLE = (r"decode_head\.conv_seg\..*",)
_CITYSCAPES = 19


def holds_mit(files: Files) -> bool:
    """Whether files in the names of PVT and SegFormer hold SegFormer or its encoder."""
    prefix = _prefix(files)
    if not all(prefix + name in files.tensors for name in _SIGNS):
        return False
    thin = files.tensors[prefix + _UP].shape[0] == _RATIO * files.tensors[prefix + _EMBEDDING].shape[0]
    return _segments(files) or (thin and "pvt" not in Path(files.source).name.lower())


def _segments(files: Files) -> bool:
    prefix = _prefix(files)
    return all(name in files.tensors for name in (*(prefix + name for name in _SIGNS), _FUSE, _HEAD))


def _only_encodes(files: Files) -> bool:
    return holds_mit(files) and not _segments(files)


def _prefix(files: Files) -> str:
    return "" if _EMBEDDING in files.tensors else "backbone."


def _spelled(files: Files) -> Tensors:
    return {name.removeprefix("backbone."): files.tensors[name] for name in files.tensors}


def _plan_segmenter(files: Files, architecture: SegFormerConfig | None) -> Plan:
    tensors, notes = _spelled(files), cast(list[str], [])
    classes, width = tensors[_HEAD].shape[:2]
    encoder = _encoder(tensors, files.source, architecture.backbone if architecture else None, notes)
    named = next((name for name, one in segformer.VARIANTS.items() if _same_sizes(one.backbone, encoder)), None)
    base = architecture or segformer.VARIANTS.get(named or "", SegFormerConfig())
    if architecture is None:
        encoder = replace(encoder, drop_path=base.backbone.drop_path)
        if classes == _CITYSCAPES:
            base = replace(base, image_size=(1024, 1024))
    config = replace(
        base,
        channels=encoder.channels,
        num_classes=int(classes),
        backbone=encoder,
        decoder_width=int(width),
    )
    record = Record(
        architecture=named or "segformer",
        layout="nvlabs",
        source=files.source,
        # As the authors' own files for transformers have it.
        preprocessing=evaluation(config.image_size, interpolation="bilinear") if config.channels == 3 else None,
        licence=_LICENCE,
        notes=tuple(notes),
    )
    return Plan(
        build=SegFormer,
        config=config,
        rows=_rows(config),
        tensors=tensors,
        record=record,
        ignored=_IDLE,
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='segformer_b2').",
    )


def _plan_encoder(files: Files, architecture: MiTConfig | None) -> Plan:
    tensors, notes = _spelled(files), cast(list[str], [])
    config = _encoder(tensors, files.source, architecture, notes)
    record = Record(
        architecture=next((name for name, one in mit.VARIANTS.items() if _same_sizes(one, config)), "mit"),
        layout="nvlabs",
        source=files.source,
        preprocessing=(
            evaluation(config.image_size, resize=int(256 / 224 * config.image_size[0])) if config.channels == 3 else None
        ),
        licence=_LICENCE,
        notes=tuple(notes),
    )
    return Plan(
        build=MiT,
        config=config,
        rows=table(config, _SPELLING),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='mit_b2').",
    )


def _same_sizes(one: MiTConfig, other: MiTConfig) -> bool:
    return (one.widths, one.depths) == (other.widths, other.depths)


def _encoder(tensors: Tensors, source: str, architecture: MiTConfig | None, notes: list[str]) -> MiTConfig:
    """The encoder that the shapes show."""
    heads = None
    if architecture is None:
        heads, stages = MiTConfig().heads, [name for name in tensors if name.endswith(".proj.weight") and "embed" in name]
        widths = [int(tensors[name].shape[0]) for name in sorted(stages)]
        if len(widths) != len(heads) or any(width % many for width, many in zip(widths, heads, strict=True)):
            raise CheckpointError(
                f"How many heads share the channels {widths} of the stages cannot be seen from {source}. Name a "
                "configuration: load_model(…, architecture=MiTConfig(…)), or a SegFormerConfig with one."
            )
        if tuple(widths) not in {one.widths for one in mit.VARIANTS.values()}:
            notes.append(f"{heads} heads in the stages were assumed, as in every published network; the file does not say.")
    found = seen(tensors, _SPELLING, architecture or MiTConfig(), notes, heads)
    known: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(found)}
    return MiTConfig(**known)


def _rows(config: SegFormerConfig) -> list[Row]:
    rows = [replace(row, ours=f"backbone.{row.ours}") for row in table(config.backbone, _SPELLING)]
    for stage in range(len(config.backbone.widths)):
        rows += renamed(f"decoder.projections.{stage}", f"decode_head.linear_c{stage + 1}.proj")
    rows += [same("decoder.fuse.weight", _FUSE)]
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        rows += [same(f"decoder.norm.{part}", f"decode_head.linear_fuse.bn.{part}")]
    flat = (config.num_classes, config.decoder_width)
    rows += [shaped("head.weight", "decode_head.linear_pred.weight", flat, (*flat, 1, 1))]
    return [*rows, same("head.bias", "decode_head.linear_pred.bias")]


LAYOUTS: tuple[Layout, ...] = (
    Layout(name="nvlabs", network=SegFormer, recognises=_segments, plan=_plan_segmenter),
    Layout(name="nvlabs", network=MiT, recognises=_only_encodes, plan=_plan_encoder),
)
"""The segmenter's layout, and that of the encoder alone."""
