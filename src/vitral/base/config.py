"""Configurations are frozen dataclasses; here their values are held against their annotations, and read from JSON."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vitral.errors import CheckpointError, UnknownNameError

__all__ = ["check_choices", "restored"]

_T = TypeVar("_T")


def check_choices(config: Any) -> None:
    """Refuse a field annotated as a `Literal` that holds none of its values.

    Raises:
        UnknownNameError: naming the field and the nearest value.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            raise UnknownNameError(f"{name} of a {type(config).__name__}", getattr(config, name), map(str, get_args(hint)))


def restored(kind: type[_T], told: Any, where: str, file: str) -> _T:
    """A frozen dataclass from JSON, every field's name and type checked.

    Args:
        kind: the dataclass.
        told: what the JSON holds.
        where: what to call it in a message ("config").
        file: the file it stands in ("vitral.json").

    Raises:
        UnknownNameError: a field that the class does not have, or a value that is none of a field's choices.
        CheckpointError: a value of another type than the field's.
    """
    if not isinstance(told, dict):
        raise CheckpointError(f"{where} in {file} should be an object, not {told!r}.")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(cast(Any, kind))]
    for name in told:
        if name not in known:
            raise UnknownNameError(f"entry of {where} in {file}", name, known)
    return kind(**{name: _value(hints[name], value, f"{where}.{name}", file) for name, value in told.items()})


def _value(hint: Any, value: Any, where: str, file: str) -> Any:
    """A JSON value as the type an annotation asks for: tuples from lists, dataclasses from objects."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(arg for arg in args if arg is not type(None)), value, where, file)
    if is_dataclass(hint):
        return restored(cast(type, hint), value, where, file)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where, file) for kind, item in zip(kinds, value, strict=True))
    if origin is Literal:
        if value in args:
            return value
        raise UnknownNameError(f"value of {where} in {file}", value, [str(arg) for arg in args])
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise CheckpointError(f"{where} in {file} is {value!r}; expected {getattr(hint, '__name__', hint)}.")
