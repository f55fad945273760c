"""The catalogue: every architecture by the name everyone knows."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_origin, get_type_hints

import torch
from torch import nn

from vitral.base.config import value_of
from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.models.backbones import (
    alexnet,
    cct,
    cvt,
    googlenet,
    hybrid,
    lstm,
    mit,
    mixer,
    mlp,
    pvt,
    resnet,
    swin,
    vgg,
    vit,
    xcit,
)
from vitral.models.detection import deformable_detr, detr, faster_rcnn, fcos, retinanet, rtdetr, yolos
from vitral.models.network import Network
from vitral.models.record import Record
from vitral.models.segmentation import (
    detr_masks,
    fcn,
    fcn_vgg,
    mask2former,
    maskformer,
    segformer,
    segmenter,
    semantic_fpn,
    setr,
    transunet,
    unet,
    upernet,
)

__all__ = ["CATALOGUE", "FAMILIES", "Entry", "Family", "configured", "create_model", "enough_memory", "list_models"]


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        build: the module, from a configuration.
        config: the class of its configuration.
        variants: its networks by the name everyone knows.
        papers: beginning of a name → where the network was published; the longest that fits counts.
    """

    build: type[Network]
    config: type
    variants: Mapping[str, Any]
    papers: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """One row: how a network is built, from which configuration, and where it was published."""

    build: type[Network]
    config: Any
    paper: str


FAMILIES: dict[str, Family] = {
    # Before the family whose configuration it extends: a model is of the first family that its configuration fits.
    "hybrid": Family(hybrid.HybridViT, hybrid.HybridConfig, hybrid.VARIANTS, hybrid.PAPERS),
    "vit": Family(vit.ViT, vit.ViTConfig, vit.VARIANTS, vit.PAPERS),
    "cct": Family(cct.CCT, cct.CCTConfig, cct.VARIANTS, cct.PAPERS),
    "mlp": Family(mlp.MLP, mlp.MLPConfig, mlp.VARIANTS, mlp.PAPERS),
    "mixer": Family(mixer.Mixer, mixer.MixerConfig, mixer.VARIANTS, mixer.PAPERS),
    "lstm": Family(lstm.LSTM, lstm.LSTMConfig, lstm.VARIANTS, lstm.PAPERS),
    "pvt": Family(pvt.PVTv2, pvt.PVTConfig, pvt.VARIANTS, pvt.PAPERS),
    "mit": Family(mit.MiT, mit.MiTConfig, mit.VARIANTS, mit.PAPERS),
    "xcit": Family(xcit.XCiT, xcit.XCiTConfig, xcit.VARIANTS, xcit.PAPERS),
    "alexnet": Family(alexnet.AlexNet, alexnet.AlexNetConfig, alexnet.VARIANTS, alexnet.PAPERS),
    "vgg": Family(vgg.VGG, vgg.VGGConfig, vgg.VARIANTS, vgg.PAPERS),
    "googlenet": Family(googlenet.GoogLeNet, googlenet.GoogLeNetConfig, googlenet.VARIANTS, googlenet.PAPERS),
    "resnet": Family(resnet.ResNet, resnet.ResNetConfig, resnet.VARIANTS, resnet.PAPERS),
    "cvt": Family(cvt.CvT, cvt.CvTConfig, cvt.VARIANTS, cvt.PAPERS),
    "swin": Family(swin.Swin, swin.SwinConfig, swin.VARIANTS, swin.PAPERS),
    "detr": Family(detr.DETR, detr.DETRConfig, detr.VARIANTS, detr.PAPERS),
    "deformable_detr": Family(
        deformable_detr.DeformableDETR,
        deformable_detr.DeformableDETRConfig,
        deformable_detr.VARIANTS,
        deformable_detr.PAPERS,
    ),
    "yolos": Family(yolos.YOLOS, yolos.YOLOSConfig, yolos.VARIANTS, yolos.PAPERS),
    "rtdetr": Family(rtdetr.RTDETR, rtdetr.RTDETRConfig, rtdetr.VARIANTS, rtdetr.PAPERS),
    "faster_rcnn": Family(faster_rcnn.FasterRCNN, faster_rcnn.FasterRCNNConfig, faster_rcnn.VARIANTS, faster_rcnn.PAPERS),
    "retinanet": Family(retinanet.RetinaNet, retinanet.RetinaNetConfig, retinanet.VARIANTS, retinanet.PAPERS),
    "fcos": Family(fcos.FCOS, fcos.FCOSConfig, fcos.VARIANTS, fcos.PAPERS),
    "detr_masks": Family(detr_masks.MaskedDETR, detr_masks.MaskedDETRConfig, detr_masks.VARIANTS, detr_masks.PAPERS),
    "segformer": Family(segformer.SegFormer, segformer.SegFormerConfig, segformer.VARIANTS, segformer.PAPERS),
    "maskformer": Family(maskformer.MaskFormer, maskformer.MaskFormerConfig, maskformer.VARIANTS, maskformer.PAPERS),
    "mask2former": Family(mask2former.Mask2Former, mask2former.Mask2FormerConfig, mask2former.VARIANTS, mask2former.PAPERS),
    "setr": Family(setr.SETR, setr.SETRConfig, setr.VARIANTS, setr.PAPERS),
    "segmenter": Family(segmenter.Segmenter, segmenter.SegmenterConfig, segmenter.VARIANTS, segmenter.PAPERS),
    "transunet": Family(transunet.TransUNet, transunet.TransUNetConfig, transunet.VARIANTS, transunet.PAPERS),
    "fcn": Family(fcn.FCN, fcn.FCNConfig, fcn.VARIANTS, fcn.PAPERS),
    "fcn_vgg": Family(fcn_vgg.FCNVGG, fcn_vgg.FCNVGGConfig, fcn_vgg.VARIANTS, fcn_vgg.PAPERS),
    "unet": Family(unet.UNet, unet.UNetConfig, unet.VARIANTS, unet.PAPERS),
    "semantic_fpn": Family(
        semantic_fpn.SemanticFPN, semantic_fpn.SemanticFPNConfig, semantic_fpn.VARIANTS, semantic_fpn.PAPERS
    ),
    "upernet": Family(upernet.UPerNet, upernet.UPerNetConfig, upernet.VARIANTS, upernet.PAPERS),
}
"""Name → family. A new family adds its row here."""

CATALOGUE: dict[str, Entry] = {
    name: Entry(family.build, config, family.papers[max(filter(name.startswith, family.papers), key=len)])
    for family in FAMILIES.values()
    for name, config in family.variants.items()
}
"""Name → entry, of all families."""


def list_models(pattern: str | None = None) -> list[str]:
    """Names of the catalogue, sorted.

    Args:
        pattern: a shell pattern ("vit_*") or a part of a name ("b16"); None for all.
    """
    if pattern is None:
        return sorted(CATALOGUE)
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return sorted(name for name in CATALOGUE if fnmatch.fnmatch(name, wanted))


def create_model(name: str, num_classes: int | None = None, **overrides: Any) -> Network:
    """A network with fresh random weights, in training mode, and a record that prepares pictures in the usual way.

    Args:
        name: a name of the catalogue ("vit_b16"); `list_models()` lists them.
        num_classes: classes of its classifier; 0 for none, None for the published number.
        **overrides: any other field of its configuration (`image_size=(384, 384)`, `drop_path=0.1`).

    Raises:
        UnknownNameError: no such network, or no such field; the message names the nearest.
        UsageError: a value of another type than the field's, or that does not fit the others; or memory that does not
            suffice.
    """
    if name not in CATALOGUE:
        raise UnknownNameError("model", name, CATALOGUE)
    entry = CATALOGUE[name]
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    config = configured(entry.config, overrides)
    with enough_memory(entry.build, config):
        model = entry.build(config)
    model.record = Record(architecture=name, preprocessing=model.usual_preprocessing())
    return model


def configured(config: Any, overrides: Mapping[str, Any]) -> Any:
    """A configuration with some fields changed; see `base.config.value_of` for what a field takes.

    One number for a size is a square; "backbone.depths" is a field of the configuration "backbone" within.

    Raises:
        UnknownNameError: no such field; the message names the nearest.
        UsageError: a value of another type than the field's, or that does not fit the others.
    """
    known, hints = [field.name for field in fields(config)], get_type_hints(type(config))
    changed: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for option, value in overrides.items():
        part, dot, within = option.partition(".")
        if part not in known or (dot and not is_dataclass(getattr(config, part))):
            raise UnknownNameError(f"field of {type(config).__name__}", option, known)
        if dot:
            inner.setdefault(part, {})[within] = value
            continue
        square = option.endswith("_size") and get_origin(hints[option]) is tuple and as_integer(value) is not None
        changed[option] = value_of(hints[option], (value, value) if square else value, option)  # image_size=384
    for part, values in inner.items():
        changed[part] = configured(changed.get(part, getattr(config, part)), values)
    return replace(config, **changed)


@contextmanager
def enough_memory(build: Callable[[Any], nn.Module], config: Any) -> Iterator[None]:
    """While this lasts, memory that cannot be had for a network's weights is refused with how much they need.

    Args:
        build: makes the network.
        config: from this configuration.

    Raises:
        UsageError: the memory could not be had.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's allocator for the CPU has no class of error of its own
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        with torch.device("meta"):
            needed = sum(parameter.nbytes for parameter in build(config).parameters())
        height, width = config.image_size
        raise UsageError(
            f"The weights of this network for pictures of {height} by {width} pixels need {needed / 2**30:,.1f} GiB of "
            "memory, which could not be had. Take a smaller image_size, or a smaller network."
        ) from error
