"""How the classes of a model are those of the pictures it is judged by: by their names, or by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from vitral.errors import UsageError
from vitral.models.record import Record

__all__ = ["places_of_classes"]


def places_of_classes(
    record: Record, count: int, classes: Sequence[str], there: Bool[np.ndarray, " _"], name: str
) -> Int64[np.ndarray, " c"]:
    """For each class of a model, its place among a set's; −1 for one that the set does not have.

    Classes are the same if they are called so (`Record.index`); those of a model without names, if they have one number.

    Args:
        record: the model's.
        count: how many classes it has.
        classes: the names of the set's.
        there: which of them occur; one that does not may be unknown to the model.
        name: what messages call the set.

    Raises:
        UsageError: classes that do not fit.
    """
    if not record.labels:
        if len(classes) != count:
            raise UsageError(
                f"The model has {count} classes without names and {name} has {len(classes)}, so nobody knows which "
                "is which. Give the model's record the names of its classes, in their order: replace(record, labels=(…))."
            )
        return np.arange(count, dtype=np.int64)
    found = np.full(count, -1, dtype=np.int64)
    unknown: list[str] = []
    for place, own_name in enumerate(classes):
        try:
            own = record.index(own_name)
        except UsageError as error:
            if there[place]:
                unknown.append(str(error))
            continue
        if own >= count:
            raise UsageError(f"Class {own} is not one of the {count} of the model, whatever its record says.")
        if found[own] >= 0:
            raise UsageError(
                f"{classes[found[own]]!r} and {own_name!r} of {name} are one class of the model, {record.label(own)!r}. "
                "Name them apart."
            )
        found[own] = place
    if unknown:
        raise UsageError(
            f"{len(unknown)} of the classes of {name} do not fit the {count} of the model, the first: {unknown[0]} "
            "Name the classes of the pictures as the model does."
        )
    return found
