"""Our own layout: vitral.json (which network, its configuration, its record) beside model.safetensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import torch
from torch import nn

from vitral.base.config import restored
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.table import Row, same
from vitral.errors import CheckpointError, UnknownNameError
from vitral.models.catalogue import FAMILIES
from vitral.models.network import Network
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_FORMAT = 1


def _recognises(files: Files) -> bool:
    return "network" in files.native


def _plan(files: Files, architecture: Any) -> Plan:
    told = files.native
    if told.get("format") != _FORMAT:
        raise CheckpointError(
            f"vitral.json is of format {told.get('format')!r}; this version of Vitral reads {_FORMAT}. Update Vitral."
        )
    if told["network"] not in FAMILIES:
        raise UnknownNameError("network in vitral.json", told["network"], FAMILIES)
    family = FAMILIES[told["network"]]
    config: Any = restored(family.config, told.get("config"), "config", "vitral.json")
    record = restored(Record, {**told.get("record", {}), "source": files.source}, "record", "vitral.json")
    return Plan(
        build=family.build,
        config=config,
        rows=_identity(family.build, config),
        tensors=files.tensors,
        record=record,
    )


def _identity(build: type[Network], config: Any) -> list[Row]:
    with torch.device("meta"):
        return [same(name, name) for name in build(config).state_dict()]


def _compose(model: nn.Module) -> Written:
    config = cast(Any, model).config
    family = next(name for name, family in FAMILIES.items() if type(config) is family.config)
    described = {
        "format": _FORMAT,
        "network": family,
        "config": asdict(config),
        "record": asdict(cast(Any, model).record),
    }
    return Written(
        model=model,
        rows=[same(name, name) for name in model.state_dict()],
        documents={"vitral.json": described},
    )


LAYOUT = Layout(name="vitral", network=None, recognises=_recognises, plan=_plan, compose=_compose)
