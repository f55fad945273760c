"""How the classes of a model are those of the pictures it is judged by: by their names, or by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Int64
from torch import nn

from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.network import Network
from vitral.models.record import Record

__all__ = ["asked_record", "places_of_classes"]


def asked_record(model: nn.Module, task: str, without: str) -> tuple[Record, Preprocessing, int]:
    """What the record of a model says that is to be judged, and how many classes it has.

    Args:
        model: the model.
        task: what it must be able to do.
        without: the sentence for one that cannot, beginning behind its name.

    Raises:
        UsageError: it is none of Vitral's, cannot do that, knows no classes, or nobody said how pictures are prepared.
    """
    if not hasattr(model, "record") or not hasattr(model, "tasks"):
        raise UsageError(
            f"A {type(model).__name__} is not one of Vitral's models; build it with create_model or load_model."
        )
    network = cast(Network, model)
    if task not in network.tasks:
        raise UsageError(f"A {type(model).__name__} {without}")
    if network.config.num_classes < 1:
        raise UsageError(f"The {type(model).__name__} knows no classes. Load it with num_classes=… and train it.")
    return network.record, network.record.preparing(), network.config.num_classes


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
