"""From a checkpoint anybody published to one of our models."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vitral.checkpoints import native
from vitral.checkpoints.cct import shi_labs
from vitral.checkpoints.convolutional import timm as convolutional_timm
from vitral.checkpoints.convolutional import torchvision as convolutional_torchvision
from vitral.checkpoints.convolutional import transformers as convolutional_transformers
from vitral.checkpoints.cvt import microsoft as cvt_microsoft
from vitral.checkpoints.cvt import transformers as cvt_transformers
from vitral.checkpoints.deformable_detr import fundamentalvision as deformable_detr_fundamentalvision
from vitral.checkpoints.deformable_detr import transformers as deformable_detr_transformers
from vitral.checkpoints.detr import facebook as detr_facebook
from vitral.checkpoints.detr import transformers as detr_transformers
from vitral.checkpoints.fcn import torchvision as fcn_torchvision
from vitral.checkpoints.files import Files, open_files
from vitral.checkpoints.hybrid import google as hybrid_google
from vitral.checkpoints.hybrid import timm as hybrid_timm
from vitral.checkpoints.hybrid import transformers as hybrid_transformers
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.mask2former import transformers as mask2former_transformers
from vitral.checkpoints.maskformer import transformers as maskformer_transformers
from vitral.checkpoints.mixer import google as mixer_google
from vitral.checkpoints.mixer import timm as mixer_timm
from vitral.checkpoints.pvt import timm as pvt_timm
from vitral.checkpoints.pvt import transformers as pvt_transformers
from vitral.checkpoints.pvt import whai362 as pvt_whai362
from vitral.checkpoints.region import torchvision as region_torchvision
from vitral.checkpoints.rtdetr import lyuwenyu as rtdetr_lyuwenyu
from vitral.checkpoints.rtdetr import transformers as rtdetr_transformers
from vitral.checkpoints.segformer import nvlabs as segformer_nvlabs
from vitral.checkpoints.segformer import transformers as segformer_transformers
from vitral.checkpoints.segmenter import openmmlab as segmenter_openmmlab
from vitral.checkpoints.segmenter import rstrudel as segmenter_rstrudel
from vitral.checkpoints.setr import openmmlab as setr_openmmlab
from vitral.checkpoints.swin import microsoft as swin_microsoft
from vitral.checkpoints.swin import timm as swin_timm
from vitral.checkpoints.swin import torchvision as swin_torchvision
from vitral.checkpoints.swin import transformers as swin_transformers
from vitral.checkpoints.table import fill
from vitral.checkpoints.transunet import beckschen as transunet_beckschen
from vitral.checkpoints.unet import milesial as unet_milesial
from vitral.checkpoints.upernet import transformers as upernet_transformers
from vitral.checkpoints.vit import google, timm, torchvision, transformers
from vitral.checkpoints.xcit import facebook as xcit_facebook
from vitral.checkpoints.xcit import timm as xcit_timm
from vitral.checkpoints.yolos import hustvl as yolos_hustvl
from vitral.checkpoints.yolos import transformers as yolos_transformers
from vitral.errors import CheckpointError, UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE, FAMILIES

__all__ = ["LAYOUTS", "load_model"]

LAYOUTS: tuple[Layout, ...] = (
    native.LAYOUT,
    # Before the plain ViT, whose names are among theirs.
    yolos_transformers.LAYOUT,
    yolos_hustvl.LAYOUT,
    transunet_beckschen.LAYOUT,
    hybrid_transformers.LAYOUT,
    hybrid_timm.LAYOUT,
    hybrid_google.LAYOUT,
    *segformer_transformers.LAYOUTS,  # before PVT's, which a Mix Transformer is one of
    *segformer_nvlabs.LAYOUTS,
    upernet_transformers.LAYOUT,  # before what it stands on
    pvt_timm.LAYOUT,
    swin_transformers.LAYOUT,
    swin_timm.LAYOUT,
    swin_microsoft.LAYOUT,
    swin_torchvision.LAYOUT,
    transformers.LAYOUT,
    timm.LAYOUT,
    torchvision.LAYOUT,
    google.LAYOUT,
    shi_labs.LAYOUT,
    pvt_transformers.LAYOUT,
    pvt_whai362.LAYOUT,
    mixer_timm.LAYOUT,
    mixer_google.LAYOUT,
    xcit_timm.LAYOUT,
    xcit_facebook.LAYOUT,
    cvt_transformers.LAYOUT,
    cvt_microsoft.LAYOUT,
    *detr_transformers.LAYOUTS,
    *detr_facebook.LAYOUTS,
    fcn_torchvision.LAYOUT,  # before the residual network that it stands on
    convolutional_transformers.LAYOUT,
    *convolutional_timm.LAYOUTS,  # before torchvision, whose names they use
    *convolutional_torchvision.LAYOUTS,
    *region_torchvision.LAYOUTS,
    deformable_detr_transformers.LAYOUT,
    deformable_detr_fundamentalvision.LAYOUT,
    rtdetr_transformers.LAYOUT,
    rtdetr_lyuwenyu.LAYOUT,
    setr_openmmlab.LAYOUT,
    segmenter_openmmlab.LAYOUT,
    segmenter_rstrudel.LAYOUT,
    maskformer_transformers.LAYOUT,
    mask2former_transformers.LAYOUT,
    unet_milesial.LAYOUT,
)
"""Every layout we read, in the order they are tried."""


def load_model(source: str | Path, architecture: Any = None, num_classes: int | None = None) -> nn.Module:
    """Read a checkpoint in whatever layout it was published.

    Args:
        source: a folder, a weights file, the id of a Hub repository ("google/vit-base-patch16-224"), or "vitral/cifar10"
            for the model in the box (see `checkpoints.box`).
        architecture: a name of the catalogue ("vit_s16") or a configuration, for what a bare state dictionary does not show:
            the number of heads, epsilon, activation.
        num_classes: give the model a fresh, untrained classifier for so many classes; 0 takes the classifier off; None, or
            the number it has, keeps the trained one.

    Returns:
        The model in evaluation mode, in single precision on the CPU. `model(pixels)` gives a
        `models.output.EncoderOutput`; `model.record` says where it came from and how pictures are prepared for it.

    Raises:
        CheckpointError: the files cannot be understood; as `MismatchError`, the tensors do not fit the model.
        HubError: the Hub cannot be reached or has no such repository.
        UnknownNameError: no such architecture.
        UsageError: a negative number of classes.
    """
    if num_classes is not None and num_classes < 0:
        raise UsageError(f"num_classes must be 0 or more; {num_classes} came.")
    files = open_files(source)
    named = _configuration(architecture)
    plan = _plan(files, named)
    if named is not None:
        _agree(named, plan.config)
    with torch.device("meta"):
        model = cast(Any, plan.build(plan.config))
    dropped = fill(model, plan.rows, plan.tensors, source=files.source, ignored=plan.ignored, advice=plan.advice)
    notes = plan.record.notes
    if dropped:
        notes += (f"Left out on purpose, being no part of the encoder: {', '.join(sorted(dropped))}.",)
    model.record = replace(plan.record, notes=notes)
    if num_classes is not None and num_classes != plan.config.num_classes:
        model.reset_head(num_classes)
    return cast(nn.Module, model.eval())


def _agree(architecture: Any, config: Any) -> None:
    """Refuse files whose network is not the one the user named. Depth and patch may differ: people train shallower ones."""
    _same_family(architecture, type(config))
    if architecture.width != config.width:
        raise CheckpointError(
            f"The file's tokens have {config.width} channels, those of the named architecture "
            f"{architecture.width}. Name another."
        )


def _same_family(architecture: Any, config: type) -> None:
    if type(architecture) is not config:
        raise CheckpointError(
            f"The files hold a {config.__name__}; the architecture named is a {type(architecture).__name__}."
        )


def _plan(files: Files, architecture: Any) -> Plan:
    layout = next((layout for layout in LAYOUTS if layout.recognises(files)), None)
    if layout is None and (part := files.part) is not None:
        files, layout = part, next((layout for layout in LAYOUTS if layout.recognises(part)), None)
    if layout is None:
        layouts, names = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS)), ", ".join(sorted(files.tensors)[:4])
        said = f" of model_type {files.config['model_type']!r}" if "model_type" in files.config else ""
        raise CheckpointError(
            f"{files.source} is a checkpoint{said} in no layout we know ({layouts}). "
            f"It holds {len(files.tensors)} tensors: {names}, …"
        )
    if architecture is not None and layout.network is not None:
        _same_family(architecture, next(family.config for family in FAMILIES.values() if family.build is layout.network))
    try:
        return layout.plan(files, architecture)
    except CheckpointError:
        raise
    except UsageError as error:
        raise CheckpointError(
            f"The configuration in {files.source} asks for a network that cannot be built. {error}"
        ) from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(
            f"The configuration in {files.source} has a value of an unexpected kind ({type(error).__name__}: {error})."
        ) from error


def _configuration(architecture: Any) -> Any:
    if architecture is None or dataclasses.is_dataclass(architecture):
        return architecture
    if not isinstance(architecture, str):
        raise UsageError(f"architecture must be a name of the catalogue or a configuration; {architecture!r} came.")
    if architecture not in CATALOGUE:
        raise UnknownNameError("architecture", architecture, CATALOGUE)
    return CATALOGUE[architecture].config
