"""The catalogue: every architecture by the name everyone knows."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError
from vitral.models.backbones import cct, vit
from vitral.models.network import Network
from vitral.models.record import Record

__all__ = ["CATALOGUE", "FAMILIES", "Entry", "Family", "configured", "create_model", "list_models"]


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
    "vit": Family(vit.ViT, vit.ViTConfig, vit.VARIANTS, vit.PAPERS),
    "cct": Family(cct.CCT, cct.CCTConfig, cct.VARIANTS, cct.PAPERS),
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
        UsageError: a value that does not fit the others.
    """
    if name not in CATALOGUE:
        raise UnknownNameError("model", name, CATALOGUE)
    entry = CATALOGUE[name]
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    model = entry.build(configured(entry.config, overrides))
    model.record = Record(architecture=name, preprocessing=_usual_preprocessing(model.config))
    return model


def configured(config: Any, overrides: Mapping[str, Any]) -> Any:
    """A configuration with some fields changed; one number for a size is a square, and a list will do for a tuple.

    Raises:
        UnknownNameError: no such field; the message names the nearest.
        UsageError: a value that does not fit the others.
    """
    known = [field.name for field in fields(config)]
    changed: dict[str, Any] = {}
    for option, value in overrides.items():
        if option not in known:
            raise UnknownNameError(f"field of {type(config).__name__}", option, known)
        if isinstance(value, int) and option.endswith("_size"):
            value = (value, value)  # image_size=384
        changed[option] = tuple(value) if isinstance(value, list) else value
    return replace(config, **changed)


def _usual_preprocessing(config: Any) -> Preprocessing | None:
    """The whole picture at the model's size in [−1, 1] (ViT paper's code), until a training says otherwise."""
    if config.channels not in (1, 3):
        return None
    middle = (0.5,) * config.channels
    return Preprocessing(resize="exact", size=config.image_size, interpolation="bilinear", mean=middle, std=middle)
