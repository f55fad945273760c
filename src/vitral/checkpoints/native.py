"""Our own layout: vitral.json (which network, its configuration, its record) beside model.safetensors."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written
from vitral.checkpoints.table import Row, same
from vitral.errors import CheckpointError, UnknownNameError
from vitral.models.catalogue import NETWORKS
from vitral.models.record import Record

__all__ = ["LAYOUT"]

_FORMAT = 1
_T = TypeVar("_T")


def _recognises(files: Files) -> bool:
    return "network" in files.native


def _plan(files: Files, architecture: Any) -> Plan:
    told = files.native
    if told.get("format") != _FORMAT:
        raise CheckpointError(
            f"vitral.json is of format {told.get('format')!r}; this version of Vitral reads {_FORMAT}. Update Vitral."
        )
    if told["network"] not in NETWORKS:
        raise UnknownNameError("network in vitral.json", told["network"], NETWORKS)
    network = NETWORKS[told["network"]]
    config: Any = _restored(network.config, told.get("config"), "config")
    record = _restored(Record, {**told.get("record", {}), "source": files.source}, "record")
    return Plan(
        build=network.build,
        config=config,
        rows=_identity(network.build, config),
        tensors=files.tensors,
        record=record,
    )


def _identity(build: Callable[[Any], nn.Module], config: Any) -> list[Row]:
    with torch.device("meta"):
        return [same(name, name) for name, _ in build(config).named_parameters()]


def _compose(model: nn.Module) -> Written:
    config = cast(Any, model).config
    network = next(name for name, network in NETWORKS.items() if isinstance(config, network.config))
    described = {
        "format": _FORMAT,
        "network": network,
        "config": asdict(config),
        "record": asdict(cast(Any, model).record),
    }
    return Written(
        model=model,
        rows=[same(name, name) for name, _ in model.named_parameters()],
        documents={"vitral.json": described},
    )


def _restored(kind: type[_T], told: Any, where: str) -> _T:
    """A frozen dataclass from JSON, every field's name and type checked.

    Raises:
        UnknownNameError: a field that the class does not have.
        CheckpointError: a value of another type than the field's.
    """
    if not isinstance(told, dict):
        raise CheckpointError(f"{where} in vitral.json should be an object, not {told!r}.")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(cast(Any, kind))]
    for name in told:
        if name not in known:
            raise UnknownNameError(f"entry of {where} in vitral.json", name, known)
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in told.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as the type an annotation asks for: tuples from lists, dataclasses from objects."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(arg for arg in args if arg is not type(None)), value, where)
    if is_dataclass(hint):
        return _restored(cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if origin is Literal:
        if value in args:
            return value
        raise UnknownNameError(f"value of {where} in vitral.json", value, [str(arg) for arg in args])
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise CheckpointError(f"{where} in vitral.json is {value!r}; expected {getattr(hint, '__name__', hint)}.")


LAYOUT = Layout(name="vitral", recognises=_recognises, plan=_plan, compose=_compose)
