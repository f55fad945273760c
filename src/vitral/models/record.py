"""What travels with a model's weights: how pictures are prepared for it, what its classes are called, whence it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError

__all__ = ["Record"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a checkpoint.

    Attributes:
        architecture: a name for the network, of the catalogue where one fits, else of the publisher.
        layout: the layout the weights were read from: "vitral", "transformers", "timm", "torchvision", "google".
        source: the path or Hub id they were read from.
        preprocessing: how a picture becomes the model's input; None where nobody said.
        labels: the name of every class, in the order of the logits; empty where nobody said.
        problem: what the logits mean: classes that exclude each other (softmax), that do not (sigmoid), or plain numbers.
        licence: the weights' licence as their publisher states it.
        notes: what a user should know about the reading: tensors left out on purpose, guesses made.
    """

    architecture: str = ""
    layout: str = "vitral"
    source: str = ""
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    licence: str | None = None
    notes: tuple[str, ...] = field(default=())

    def label(self, index: int) -> str:
        """The name of a class; "LABEL_7" where nobody named it."""
        return self.labels[index] if self.labels else f"LABEL_{index}"

    def index(self, label: str) -> int:
        """The class of a name.

        Raises:
            UsageError: no class, or more than one, is called so.
        """
        found = [index for index, name in enumerate(self.labels) if name == label]
        if len(found) != 1:
            raise UsageError(f"{len(found)} of the model's {len(self.labels)} classes are called {label!r}.")
        return found[0]
