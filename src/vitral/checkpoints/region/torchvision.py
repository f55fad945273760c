"""torchvision's layout: state dictionaries of its Faster R-CNN, RetinaNet and FCOS on a ResNet with a feature pyramid.

What classes are called. torchvision counts 91 "classes" for COCO, by COCO's own numbers: 0 stands for what is nothing, and
eleven numbers were never used. Faster R-CNN's first logit is that of nothing: ours is the last, and the classes of objects
are the other 90, so that our class i is torchvision's label i + 1. RetinaNet and FCOS have a logit for each of the 91, the
first of which nobody taught: ours are the same, so that our class i is torchvision's label i.

A state dictionary shows every size but those of anchors. What we write has a config.json beside it that says all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, cast

from torch import nn

from vitral.base.config import restored
from vitral.checkpoints.convolutional.names import FOREIGN_COUNTERS, conv_norm, counted, resnet_rows, resnet_seen
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.table import Row, Tensors, renamed
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection import faster_rcnn, fcos, retinanet
from vitral.models.detection.faster_rcnn import FasterRCNN, FasterRCNNConfig
from vitral.models.detection.fcos import FCOS, FCOSConfig
from vitral.models.detection.pyramidal import PyramidConfig, PyramidDetector
from vitral.models.detection.retinanet import RetinaNet, RetinaNetConfig
from vitral.models.record import Record

__all__ = ["COCO_NUMBERS", "LAYOUTS"]

_TYPE = "torchvision"
_VARIANTS: dict[type, dict[str, Any]] = {
    FasterRCNN: faster_rcnn.VARIANTS,
    RetinaNet: retinanet.VARIANTS,
    FCOS: fcos.VARIANTS,
}
# Files of weights that were trained with nothing added to the variance of their frozen norms.
_NO_EPS = ("258fb6c6", "eeacb38b")
_BODY, _FPN, _RPN, _ROI = "backbone.body.", "backbone.fpn", "rpn.head", "roi_heads"

_NAMES = """
__background__, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, N/A,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, N/A, backpack,
umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, dining table, N/A, N/A,
toilet, N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, N/A, book,
clock, vase, scissors, teddy bear, hair drier, toothbrush"""

COCO_NUMBERS: tuple[str, ...] = tuple(" ".join(name.split()) for name in _NAMES.split(","))
"""The classes of COCO by its own numbers, as torchvision names them; "N/A" where a number was never used."""


def _is_bare(files: Files) -> bool:
    """Whether no config.json says that somebody else published the file."""
    return not files.config or files.config.get("model_type") == _TYPE


def _recognised(files: Files, *names: str) -> bool:
    """Whether a file holds a backbone with a pyramid, and these."""
    return _is_bare(files) and {f"{_BODY}conv1.weight", *names} <= files.tensors.keys()


def _modern(tensors: Tensors) -> dict[str, str]:
    """Names of today for those of files from before 2022, in which convolutions stood without a room of their own."""
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", lambda m: f"{m[1]}.0.{m[2]}"),
        (r"(rpn\.head\.conv)\.(weight|bias)", lambda m: f"{m[1]}.0.0.{m[2]}"),
    ]
    # FCOS still has its towers in one numbered list, norms included.
    if "head.regression_head.bbox_ctrness.weight" not in tensors:
        rules.append(
            (
                r"(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)",
                lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
            )
        )
    found = {}
    for name in tensors:
        for pattern, made in rules:
            match = re.fullmatch(pattern, name)
            if match:
                found[name] = made(match)
    return found


def _shared_seen(tensors: Tensors, source: str) -> dict[str, Any]:
    """The fields that every detector's state dictionary shows: the backbone and the pyramid's width."""
    body = {name.removeprefix(_BODY): tensor for name, tensor in tensors.items() if name.startswith(_BODY)}
    seen = resnet_seen(body, source)
    learns = any(name.endswith("num_batches_tracked") for name in body)
    backbone = ResNetConfig(**seen, norm="batch" if learns else "frozen")
    return {
        "channels": backbone.channels,
        "backbone": backbone,
        "pyramid_width": int(tensors[f"{_FPN}.inner_blocks.0.0.weight"].shape[0]),
        "norm_eps": 0.0 if any(sign in source for sign in _NO_EPS) else 1e-5,
    }


def _count(tensors: Tensors, pattern: str) -> int:
    """How many parts are numbered so, from 0 on."""
    count = 0
    while pattern.format(count) in tensors:
        count += 1
    return count


def _faster_rcnn_seen(tensors: Tensors) -> dict[str, Any]:
    convolutions = _count(tensors, f"{_ROI}.box_head.{{}}.0.weight")
    hidden = f"{_ROI}.box_head.{convolutions + 1}" if convolutions else f"{_ROI}.box_head.fc6"
    return {
        "norm": "batch" if f"{_FPN}.inner_blocks.0.1.weight" in tensors else "none",
        "rpn_depth": _count(tensors, f"{_RPN}.conv.{{}}.0.weight"),
        "head_convolutions": convolutions,
        "head_width": int(tensors[f"{hidden}.weight"].shape[0]),
        "num_classes": int(tensors[f"{_ROI}.box_predictor.cls_score.weight"].shape[0]) - 1,
    }


def _retinanet_seen(tensors: Tensors) -> dict[str, Any]:
    normed = "head.classification_head.conv.0.1.weight" in tensors
    width = tensors[f"{_FPN}.inner_blocks.0.0.weight"].shape[0]
    return {
        "more": "from_pyramid" if tensors[f"{_FPN}.extra_blocks.p6.weight"].shape[1] == width else "from_backbone",
        "tower_norm": "group" if normed else "none",
        "taught": "giou" if normed else "l1",
        "num_classes": int(tensors["head.classification_head.cls_logits.weight"].shape[0]) // 9,
    }


def _fcos_seen(tensors: Tensors) -> dict[str, Any]:
    return {"num_classes": int(tensors["head.classification_head.cls_logits.weight"].shape[0])}


def _shared_rows(config: PyramidConfig, norm: str, first: int, more: bool) -> list[Row]:
    """The table of a backbone and its pyramid."""
    rows = [
        Row(f"backbone.{row.ours}", tuple(_BODY + name for name in row.theirs), row.read, row.write)
        for row in resnet_rows(config.backbone)
    ]
    for place in range(4 - first):
        for ours, theirs in (("lateral", "inner_blocks"), ("smooth", "layer_blocks")):
            name = f"{_FPN}.{theirs}.{place}"
            rows += conv_norm(f"neck.{ours}.{place}", f"{name}.0", f"{name}.1", norm, bias=norm == "none")
    for place, name in enumerate(("p6", "p7") if more else ()):
        rows += renamed(f"neck.coarser.{place}.conv", f"{_FPN}.extra_blocks.{name}")
    return rows


def _rolled(ours: str, theirs: str, each: int) -> list[Row]:
    """A layer whose first `each` rows, those of nothing, are our last ones."""
    return [
        Row(
            f"{ours}.{part}",
            (f"{theirs}.{part}",),
            lambda parts: parts[0].roll(-each, 0),
            lambda tensor: [tensor.roll(each, 0)],
        )
        for part in ("weight", "bias")
    ]


def _faster_rcnn_rows(config: FasterRCNNConfig) -> list[Row]:
    rows = _shared_rows(config, config.norm, 0, more=False)
    for place in range(config.rpn_depth):
        rows += renamed(f"rpn.convolutions.{place}.conv", f"{_RPN}.conv.{place}.0")
    rows += renamed("objectness.conv", f"{_RPN}.cls_logits") + renamed("offsets.conv", f"{_RPN}.bbox_pred")
    head, count = f"{_ROI}.box_head", config.head_convolutions
    for place in range(count):
        name = f"{head}.{place}"
        plain = config.norm == "none"
        rows += conv_norm(f"head.convolutions.{place}", f"{name}.0", f"{name}.1", config.norm, bias=plain)
    for place, name in enumerate([str(count + 1)] if count else ["fc6", "fc7"]):
        rows += renamed(f"head.hidden.{place}", f"{head}.{name}")
    rows += _rolled("classes", f"{_ROI}.box_predictor.cls_score", 1)
    return rows + _rolled("region_offsets", f"{_ROI}.box_predictor.bbox_pred", 4)


def _tower_rows(ours: str, theirs: str, names: Iterable[tuple[str, str | None]], bias: bool) -> list[Row]:
    """A tower's table, from the names of its convolutions and norms."""
    rows: list[Row] = []
    for place, (convolution, norm) in enumerate(names):
        rows += renamed(f"{ours}.convolutions.{place}.conv", f"{theirs}.{convolution}", bias=bias)
        rows += renamed(f"{ours}.norms.{place}", f"{theirs}.{norm}") if norm is not None else []
    return rows


def _retinanet_rows(config: RetinaNetConfig) -> list[Row]:
    rows = _shared_rows(config, "none", 1, more=True)
    normed = config.tower_norm == "group"
    names = [(f"conv.{place}.0", f"conv.{place}.1" if normed else None) for place in range(4)]
    rows += _tower_rows("class_tower", "head.classification_head", names, bias=not normed)
    rows += renamed("classes.conv", "head.classification_head.cls_logits")
    rows += _tower_rows("box_tower", "head.regression_head", names, bias=not normed)
    return rows + renamed("offsets.conv", "head.regression_head.bbox_reg")


def _fcos_rows(config: FCOSConfig) -> list[Row]:
    rows = _shared_rows(config, "none", 1, more=True)
    names = [(f"conv.{3 * place}", f"conv.{3 * place + 1}") for place in range(4)]
    rows += _tower_rows("class_tower", "head.classification_head", names, bias=True)
    rows += renamed("classes.conv", "head.classification_head.cls_logits")
    rows += _tower_rows("box_tower", "head.regression_head", names, bias=True)
    rows += renamed("edges.conv", "head.regression_head.bbox_reg")
    return rows + renamed("centerness.conv", "head.regression_head.bbox_ctrness")


def _layout(
    build: type[PyramidDetector],
    config: type[Any],
    needed: tuple[str, ...],
    seen: Callable[[Tensors], dict[str, Any]],
    rows: Callable[[Any], list[Row]],
) -> Layout:
    """The layout of one family, from what is its own."""

    def recognises(files: Files) -> bool:
        return _recognised(files, *needed)

    def plan(files: Files, named: Any) -> Plan:
        told, modern = files.config, _modern(files.tensors)
        tensors = {modern.get(name, name): tensor for name, tensor in files.tensors.items()}
        shared = _shared_seen(tensors, files.source)
        if "network" in told:
            named = named or restored(config, told["network"], "network", "config.json")
        if named is not None:
            shared["norm_eps"] = named.norm_eps
            if named.backbone.norm == "frozen":
                shared["backbone"] = replace(shared["backbone"], norm="frozen")
            shared["backbone"] = replace(named.backbone, **_sizes_of(shared["backbone"]))
        shown = seen(tensors)
        if named is not None:
            shown.pop("taught", None)  # a guess from the norms
        found = replace(named or config(), **shared, **shown)
        table = rows(found)
        notes = []
        if found.norm_eps == 0:
            notes.append("By its file's name, it was trained with nothing added to the variance of its frozen norms.")
        labels, first = tuple(map(str, told.get("label_names", ()))), int(build is FasterRCNN)
        if not labels and found.num_classes == len(COCO_NUMBERS) - first:
            labels = COCO_NUMBERS[first:]
            notes.append(f"The file names no classes; as there are {len(labels)}, COCO's are given.")
        record = Record(
            architecture=_name(build, found),
            layout="torchvision",
            source=files.source,
            preprocessing=_preprocessing(files, found),
            labels=labels,
            licence=told.get("license", "bsd-3-clause"),
            notes=tuple(notes),
        )
        frozen = found.backbone.norm == "frozen"
        return Plan(
            build=build,
            config=found,
            rows=table,
            tensors=counted(tensors, table),
            record=record,
            ignored=(FOREIGN_COUNTERS,) if frozen else (),
        )

    def compose(model: nn.Module) -> Written:
        network = cast(PyramidDetector, model)
        record = network.record
        same_width = network.config.pyramid_width == network.config.backbone.width
        if same_width and getattr(network.config, "more", "") == "from_backbone":
            raise UsageError(
                "Where the pyramid is as wide as the backbone's last map, torchvision makes the coarser maps from the "
                "pyramid; this model makes them from the backbone. Use layout='vitral'."
            )
        described: dict[str, Any] = {
            "model_type": _TYPE,
            "architecture": _name(build, network.config),
            "network": asdict(network.config),
        }
        if record.preprocessing is not None:
            described["preprocessing"] = asdict(record.preprocessing)
        if record.labels:
            described["label_names"] = list(record.labels)
        if record.licence:
            described["license"] = record.licence
        return Written(model=model, rows=rows(network.config), documents={"config.json": described})

    return Layout(name="torchvision", network=build, recognises=recognises, plan=plan, compose=compose)


def _sizes_of(backbone: ResNetConfig) -> dict[str, Any]:
    """The fields of a backbone that a state dictionary shows."""
    shown = ("block", "stem_width", "stage_channels", "depths", "groups", "base_width", "norm")
    return {field: getattr(backbone, field) for field in shown}


def _name(build: type[PyramidDetector], config: PyramidConfig) -> str:
    """The catalogue's name for a network, whatever its number of classes and what is not seen; else its sizes."""
    free = {"num_classes": config.num_classes, "image_size": config.image_size, "norm_eps": config.norm_eps}
    for name, variant in _VARIANTS[build].items():
        backbone = replace(variant.backbone, norm=config.backbone.norm, image_size=config.backbone.image_size)
        if replace(variant, **free, backbone=backbone) == config:
            return str(name)
    return f"{config.width} wide, {config.depth} deep"


def _preprocessing(files: Files, config: PyramidConfig) -> Preprocessing | None:
    """As torchvision's weights are evaluated, or as the config.json says."""
    if "preprocessing" in files.config:
        return restored(Preprocessing, files.config["preprocessing"], "preprocessing", "config.json")
    if config.channels != 3:
        return None
    short, long = min(config.image_size), max(config.image_size)
    return Preprocessing(
        resize="shortest_edge",
        size=(short, short),
        longest=long,
        interpolation="bilinear",
        resizer="torch_plain",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


LAYOUTS: tuple[Layout, ...] = (
    _layout(
        FasterRCNN,
        FasterRCNNConfig,
        (f"{_RPN}.cls_logits.weight", f"{_ROI}.box_predictor.cls_score.weight"),
        _faster_rcnn_seen,
        _faster_rcnn_rows,
    ),
    _layout(
        FCOS,
        FCOSConfig,
        ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_ctrness.weight"),
        _fcos_seen,
        _fcos_rows,
    ),
    _layout(
        RetinaNet,
        RetinaNetConfig,
        ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight"),
        _retinanet_seen,
        _retinanet_rows,
    ),
)
"""One layout for each family; RetinaNet's last, whose names are among FCOS's."""
