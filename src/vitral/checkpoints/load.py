"""From a checkpoint anybody published to one of our models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vitral.base.labels import imagenet1k_labels
from vitral.checkpoints import native
from vitral.checkpoints.files import Files, open_files
from vitral.checkpoints.layout import Layout, Plan
from vitral.checkpoints.table import fill
from vitral.checkpoints.vit import google, timm, torchvision, transformers
from vitral.errors import CheckpointError, UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE

__all__ = ["LAYOUTS", "load_model"]

LAYOUTS: tuple[Layout, ...] = (native.LAYOUT, transformers.LAYOUT, timm.LAYOUT, torchvision.LAYOUT, google.LAYOUT)
"""Every layout we read, in the order they are tried."""


# Their published classifiers are ImageNet's and do not say so; transformers' files name their classes, if only LABEL_7.
_IMAGENET_BY_DEFAULT = ("timm", "torchvision", "google")


def load_model(source: str | Path, architecture: Any = None, num_classes: int | None = None) -> nn.Module:
    """Read a checkpoint in whatever layout it was published.

    Args:
        source: a folder, a weights file, or the id of a Hub repository ("google/vit-base-patch16-224").
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
    plan = _plan(files, _configuration(architecture))
    with torch.device("meta"):
        model = cast(Any, plan.build(plan.config))
    dropped = fill(model, plan.rows, plan.tensors, source=files.source, ignored=plan.ignored, advice=plan.advice)
    notes = plan.record.notes
    if dropped:
        notes += (f"Left out on purpose, being no part of the encoder: {', '.join(sorted(dropped))}.",)
    labels = plan.record.labels
    if not labels and plan.config.num_classes == 1000 and plan.record.layout in _IMAGENET_BY_DEFAULT:
        labels, notes = (
            imagenet1k_labels(),
            (*notes, "The file names no classes; as there are 1000, ImageNet-1k's names are given."),
        )
    if num_classes is not None and num_classes != plan.config.num_classes:
        model.reset_head(num_classes)
        labels = ()
    model.record = replace(plan.record, labels=labels, notes=notes)
    return cast(nn.Module, model.eval())


def _plan(files: Files, architecture: Any) -> Plan:
    layout = next((layout for layout in LAYOUTS if layout.recognises(files)), None)
    if layout is None:
        layouts, names = ", ".join(layout.name for layout in LAYOUTS), ", ".join(sorted(files.tensors)[:4])
        said = f" of model_type {files.config['model_type']!r}" if "model_type" in files.config else ""
        raise CheckpointError(
            f"{files.source} is a checkpoint{said} in no layout we know ({layouts}). "
            f"It holds {len(files.tensors)} tensors: {names}, …"
        )
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
    if not isinstance(architecture, str):
        return architecture
    if architecture not in CATALOGUE:
        raise UnknownNameError("architecture", architecture, CATALOGUE)
    return CATALOGUE[architecture].config
