"""Numbers that callers give: whole ones, of whatever library, as Python's own; and none that are NaN or infinite."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from vitral.errors import UsageError

__all__ = ["all_finite", "as_integer", "real_number", "whole_number"]


def as_integer(number: Any) -> int | None:
    """A whole number as Python's own, whether it came from Python, numpy or torch; None for all else, also for True."""
    if isinstance(number, bool | np.bool_):
        return None
    try:
        return operator.index(number)
    except TypeError:
        return None


def whole_number(name: str, number: Any, *, least: int = 1) -> int:
    """A whole number as Python's own.

    Args:
        name: what it is called, for the message.
        number: what came.
        least: the least that it may be.

    Raises:
        UsageError: it is no whole number, or less.
    """
    whole = as_integer(number)
    if whole is None or whole < least:
        raise UsageError(f"{name} must be a whole number of at least {least}; {number!r} came.")
    return whole


def real_number(name: str, number: Any) -> float:
    """A number as Python's own, for its range to be checked.

    Raises:
        UsageError: it is no finite number.
    """
    if isinstance(number, numbers.Real | np.number) and not isinstance(number, bool) and math.isfinite(number):
        return float(number)
    raise UsageError(f"{name} must be a finite number; {number!r} came.")


def all_finite(what: str, *arrays: np.ndarray) -> None:
    """Refuse numbers that are NaN or infinite.

    Raises:
        UsageError: naming them by `what`, a plural.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise UsageError(f"The {what} are not all finite (NaN or infinity).")
