"""What a layout page offers: how files of that layout are recognised, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vitral.base.labels import imagenet1k_labels
from vitral.checkpoints.files import Files
from vitral.checkpoints.table import Row, Tensors
from vitral.models.record import Record

__all__ = ["Layout", "Plan", "Written", "usual_labels", "variant_name"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to turn opened files into a model.

    Attributes:
        build: from configuration to model.
        config: which model.
        rows: the name table for it.
        tensors: the checkpoint, with its names brought into the table's spelling.
        record: what travels with the weights.
        ignored: regular expressions of names left out on purpose (a decoder of the pre-training, say).
        advice: what a user might do if the tensors do not fit.
    """

    build: Callable[[Any], nn.Module]
    config: Any
    rows: list[Row]
    tensors: Tensors
    record: Record
    ignored: tuple[str, ...] = ()
    advice: str = ""


def usual_labels(record: Record, num_classes: int) -> Record:
    """A record with ImageNet-1k's labels where the file has a thousand classes and, as its publisher does, names none."""
    if record.labels or num_classes != 1000:
        return record
    note = "The file names no classes; as there are 1000, ImageNet-1k's names are given."
    return replace(record, labels=imagenet1k_labels(), notes=(*record.notes, note))


def variant_name(config: Any, variants: Mapping[str, Any], free: Sequence[str], inside: Sequence[str] = ()) -> str | None:
    """The catalogue's name for a network, whatever some of its numbers are; None where it has none.

    Args:
        config: of the network.
        variants: the configurations of its family, by name.
        free: fields that may differ.
        inside: fields of its backbone that may differ; looked at where the variant's backbone is of the same class.
    """
    told = {field: getattr(config, field) for field in free}
    for name, variant in variants.items():
        known = replace(variant, **told)
        if inside and type(known.backbone) is type(config.backbone):
            own = {field: getattr(config.backbone, field) for field in inside if hasattr(known.backbone, field)}
            known = replace(known, backbone=replace(known.backbone, **own))
        if known == config:
            return name
    return None


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model in a foreign layout.

    Attributes:
        model: the model whose parameters are written; where the layout states a thing differently, one that computes the
            same as the user's.
        rows: its name table.
        documents: the JSON files by name.
    """

    model: nn.Module
    rows: list[Row]
    documents: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One published layout.

    Attributes:
        name: what users call it.
        network: the family of networks it holds; None for any.
        recognises: whether files are of this layout, judged by their content.
        plan: how to read them. Its second argument is the configuration of the architecture the user named, or None.
        compose: how to write a model, or None where nobody needs the layout written.
    """

    name: str
    network: type[nn.Module] | None
    recognises: Callable[[Files], bool]
    plan: Callable[[Files, Any], Plan]
    compose: Callable[[nn.Module], Written] | None = None
