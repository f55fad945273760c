"""torchvision's layout: state dictionaries of its fully convolutional networks on a ResNet.

A state dictionary shows every size; which stages are dilated it does not, and the last two of the published networks are.
What we write has a config.json beside it that says all of it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, cast

from torch import nn

from vitral.base.config import restored
from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, conv_norm, counted, resnet_rows, resnet_seen
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, variant_name
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.record import Record
from vitral.models.segmentation.fcn import FCN, VARIANTS, FCNConfig

__all__ = ["LAYOUT", "VOC_CLASSES"]

_TYPE = "torchvision"
_BODY = "backbone."
_HEADS = {"head": "classifier", "auxiliary": "aux_classifier"}
_FREE = ("image_size", "channels", "num_classes", "auxiliary", "dropout")

VOC_CLASSES: tuple[str, ...] = (
    "__background__",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of Pascal VOC, as torchvision names them; the first is what is none of them."""


def _recognises(files: Files) -> bool:
    bare = not files.config or files.config.get("model_type") == _TYPE
    last = files.tensors.get("classifier.4.weight")
    stem = {f"{_BODY}conv1.weight", "conv1.weight"} & files.tensors.keys()
    return bare and bool(stem) and last is not None and last.ndim == 4 and "classifier.1.running_mean" in files.tensors


def _plan(files: Files, named: FCNConfig | None) -> Plan:
    told = files.config
    # What reads files may have taken the first part off the backbone's names.
    tensors: Tensors = {name.removeprefix(_BODY): files.tensors[name] for name in files.tensors}
    if "network" in told:
        named = named or restored(FCNConfig, told["network"], "network", "config.json")
    base = named or FCNConfig()
    seen = {name: value for name, value in resnet_seen(tensors, files.source).items() if name != "num_classes"}
    config = replace(
        base,
        channels=seen["channels"],
        num_classes=int(tensors["classifier.4.weight"].shape[0]),
        backbone=replace(cast(ResNetConfig, base.backbone), **seen),
        auxiliary="aux_classifier.4.weight" in tensors,
    )
    rows = _rows(config, "")
    labels, notes = tuple(map(str, told.get("label_names", ()))), list[str]()
    if not labels and config.num_classes == len(VOC_CLASSES):
        labels = VOC_CLASSES
        notes.append(f"The file names no classes; as there are {len(labels)}, Pascal VOC's are given.")
    record = Record(
        architecture=_name(config),
        layout="torchvision",
        source=files.source,
        preprocessing=_preprocessing(told, config),
        labels=labels,
        licence=told.get("license", "bsd-3-clause"),
        notes=tuple(notes),
    )
    frozen = cast(ResNetConfig, config.backbone).norm == "frozen"
    ignored = (FOREIGN_COUNTERS,) if frozen else ()
    return Plan(build=FCN, config=config, rows=rows, tensors=counted(tensors, rows), record=record, ignored=ignored)


def _preprocessing(told: dict[str, Any], config: FCNConfig) -> Preprocessing | None:
    """As torchvision's weights are evaluated, the shorter side to 520 pixels, or as the config.json says."""
    if "preprocessing" in told:
        return restored(Preprocessing, told["preprocessing"], "preprocessing", "config.json")
    if config.channels != 3:
        return None
    side = min(config.image_size)
    usual = evaluation(config.image_size, resize=side, interpolation="bilinear")
    return replace(usual, crop=None)


def _rows(config: FCNConfig, body: str) -> list[Row]:
    """The table; `body` stands before the names of the backbone."""
    backbone = resnet_rows(replace(cast(ResNetConfig, config.backbone), num_classes=0))
    rows = [
        replace(row, ours=f"trunk.network.{row.ours}", theirs=tuple(body + name for name in row.theirs)) for row in backbone
    ]
    for ours, theirs in _HEADS.items():
        if ours == "head" or config.auxiliary:
            rows += conv_norm(f"{ours}.convolutions.0", f"{theirs}.0", f"{theirs}.1", "batch")
            rows += renamed(f"{ours}.head", f"{theirs}.4")
    return rows


def _name(config: FCNConfig) -> str:
    """The catalogue's name for a network, whatever its classes and pictures; else its sizes."""
    return variant_name(config, VARIANTS, _FREE) or f"{config.width} wide, {config.depth} deep"


def _compose(model: nn.Module) -> Written:
    network = cast(FCN, model)
    config, record = network.config, network.record
    backbone = config.backbone
    if not isinstance(backbone, ResNetConfig) or backbone.pooled or backbone.stem != "plain":
        raise UsageError("torchvision's fully convolutional networks stand on a plain ResNet only. Use layout='vitral'.")
    described: dict[str, Any] = {"model_type": _TYPE, "architecture": _name(config), "network": asdict(config)}
    if record.preprocessing is not None:
        described["preprocessing"] = asdict(record.preprocessing)
    if record.labels:
        described["label_names"] = list(record.labels)
    if record.licence:
        described["license"] = record.licence
    return Written(model=network, rows=_rows(config, _BODY), documents={"config.json": described})


LAYOUT = Layout(name="torchvision", network=FCN, recognises=_recognises, plan=_plan, compose=_compose)
