"""Configurations are frozen dataclasses; here their values meet their annotations, and are read from JSON or text."""

from __future__ import annotations

import ast
import math
import numbers
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vitral.base.numbers import as_integer
from vitral.errors import CheckpointError, UnknownNameError, UsageError

__all__ = ["check_choices", "restored", "value_of"]

_T = TypeVar("_T")

_BITS = 64  # of the largest whole number
_LONGEST = 200  # signs of a value in a message


def check_choices(config: Any) -> None:
    """Refuse a field that does not hold what its annotation says: none of its choices, or a value of another type.

    A whole number will do for a number, and a list for a tuple; ranges are for the class itself to check.

    Raises:
        UnknownNameError: none of the values of a `Literal`; it names the field and the nearest value.
        UsageError: a value of another type.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        among = next((one for one in (hint, *get_args(hint)) if get_origin(one) is Literal), None)
        if among is not None and value not in get_args(among) and (among is hint or isinstance(value, str)):
            raise UnknownNameError(f"{name} of a {type(config).__name__}", value, map(str, get_args(among)))
        if not _fits(hint, value):
            raise UsageError(f"{name} of a {type(config).__name__} must be {_in_words(hint)}; {_shown(value)} came.")


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the type an annotation asks for; what is no type of a configuration's field takes anything."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(one, value) for one in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        several = isinstance(value, tuple | list)
        kinds = [args[0]] * len(value) if several and args[-1] is Ellipsis else args
        return several and len(value) == len(kinds) and all(map(_fits, kinds, value))
    if hint is int:
        whole = as_integer(value)
        return whole is not None and whole.bit_length() <= _BITS
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and not _is_huge(value)
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_huge(value: Any) -> bool:
    """Whether a whole number is larger than any computer counts, and too large to be a float or to be written out."""
    return isinstance(value, int) and value.bit_length() > _BITS


def _shown(value: Any) -> str:
    """A value as a message shows it, which may be a whole network."""
    if _is_huge(value):
        return f"a number of about {round(value.bit_length() * math.log10(2)):,} digits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


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
        return _value(_meant([arg for arg in args if arg is not type(None)], value), value, where, file)
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


def _meant(kinds: list[Any], value: Any) -> Any:
    """Of several annotations the one that a JSON value is of: the dataclass with the likest fields, or the first."""
    if not isinstance(value, dict) or not all(map(is_dataclass, kinds)):
        return kinds[0]
    named = [{field.name for field in fields(kind)} for kind in kinds]
    differing = [len(names ^ value.keys()) for names in named]
    return kinds[differing.index(min(differing))]


def value_of(kind: Any, given: Any, name: str) -> Any:
    """A value for an option, from Python or from a command line's text, held against the option's annotation.

    Args:
        kind: the annotation; None for whatever the text reads as.
        given: the value, or its text: "3", "1e-3", "none", "yes", "0.2,1", "(0.2, 1)".
        name: what the option is called, for the message.

    Raises:
        UnknownNameError: none of the option's choices.
        UsageError: of another type.
    """
    if kind is None:
        return _literally(given) if isinstance(given, str) else given
    if is_dataclass(kind) and isinstance(given, cast(type, kind)):
        return given
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in args and (given is None or (isinstance(given, str) and given.casefold() == "none")):
            return None
        choices = [arg for arg in args if arg is not type(None)]
        return _first_that_fits(choices, given, name)
    if origin is Literal:
        if given in args:
            return given
        raise UnknownNameError(f"value of {name}", given, map(str, args))
    if origin is tuple:
        parts = _listed(given) if isinstance(given, str) else given
        several = parts if isinstance(parts, tuple | list) else ()
        kinds = [args[0]] * len(several) if args[-1] is Ellipsis else list(args)
        if several and len(several) == len(kinds):
            return tuple(value_of(one, part, name) for one, part in zip(kinds, several, strict=True))
    elif kind is str and isinstance(given, str):
        return given
    elif kind is bool:
        word = given.casefold() if isinstance(given, str) else given
        if word in ("true", "yes", "on", "false", "no", "off") or isinstance(word, bool):
            return word in ("true", "yes", "on", True)
    else:
        number = _literally(given) if isinstance(given, str) else given
        whole = as_integer(number)
        if kind is int and whole is not None and _fits(int, whole):
            return whole
        if kind is float and _fits(float, number):
            return float(number)
    listed = " between commas" if origin is tuple else ""
    raise UsageError(f"{name} takes {_in_words(kind)}{listed}; {_shown(given)} came.")


def _literally(text: str) -> Any:
    """A text as the Python value it spells, else as itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.casefold(), text)


def _listed(text: str) -> Any:
    """A text as the tuple it spells, with or without brackets around it: "7,7", "(7, 7)", "(7,7),(4,4)"."""
    spelt = _literally(text)
    return spelt if isinstance(spelt, tuple | list) else _literally(f"({text},)")


def _first_that_fits(kinds: list[Any], given: Any, name: str) -> Any:
    """The value under the first of several annotations that takes it; if none does, the last one's complaint."""
    for kind in kinds[:-1]:
        try:
            return value_of(kind, given, name)
        except UsageError:
            continue
    return value_of(kinds[-1], given, name)


def _in_words(kind: Any) -> str:
    """What an annotation asks for."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        several = {int: "whole numbers", float: "numbers"}.get(args[0], "values")
        return several if args[-1] is Ellipsis else f"{('no', 'one', 'two', 'three')[len(args)]} {several}"
    told = {int: "a whole number", float: "a number", bool: "yes or no", str: "a text", type(None): "None"}
    return told.get(kind) or f"of type {getattr(origin or kind, '__name__', kind)}"
