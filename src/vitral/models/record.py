"""What travels with a model's weights: how pictures are prepared for it, what its classes are called, whence it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError

__all__ = ["Record", "Training"]

_UNNAMED = "LABEL_"
"""What a class is called that nobody named, with its number, as transformers does."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model came to its weights.

    Attributes:
        data: what it learned from, as the set calls itself.
        pictures: how many of them.
        recipe: the recipe's name.
        steps: of the optimiser.
        epochs: how often it saw as many pictures as there are.
        date: the day it was saved, as in 2026-11-21.
        judged_by: the pictures it was judged by; None where there were none.
        judged: how many of them.
        top1: the share of them that it names rightly, in [0, 1]; of a classifier.
        ap: its average precision over overlaps from .50 to .95, in [0, 1]; of a detector, or of a segmenter of objects.
        miou: its mean intersection over union, in [0, 1]; of a segmenter of classes.
        pq: its panoptic quality, in [0, 1]; of a segmenter of things and stuff.
    """

    data: str
    pictures: int
    recipe: str
    steps: int
    epochs: float
    date: str
    judged_by: str | None = None
    judged: int = 0
    top1: float | None = None
    ap: float | None = None
    miou: float | None = None
    pq: float | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a checkpoint.

    Attributes:
        architecture: a name for the network, of the catalogue where one fits, else of the publisher.
        layout: the layout the weights were read from: "vitral", "transformers", "timm", "torchvision", "google",
            "shi-labs", "microsoft", "facebook", "whai362", "hustvl", "fundamentalvision", "lyuwenyu", "nvlabs",
            "milesial", "openmmlab", "rstrudel", "beckschen".
        source: the path or Hub id they were read from.
        preprocessing: how a picture becomes the model's input; None where nobody said.
        labels: the name of every class, in the order of the logits; empty where nobody said.
        problem: what the logits mean: classes that exclude each other (softmax), that do not (sigmoid), or plain numbers.
        licence: the weights' licence as their publisher states it.
        training: how a model trained here came to its weights.
        notes: what a user should know about the reading: tensors left out on purpose, guesses made.
    """

    architecture: str = ""
    layout: str = "vitral"
    source: str = ""
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    licence: str | None = None
    training: Training | None = None
    notes: tuple[str, ...] = field(default=())

    def preparing(self) -> Preprocessing:
        """How pictures are prepared.

        Raises:
            UsageError: nobody said.
        """
        if self.preprocessing is None:
            raise UsageError("Nobody said how pictures are prepared for this model; give its record a Preprocessing(…).")
        return self.preprocessing

    def label(self, index: int) -> str:
        """The name of a class; "LABEL_7" where nobody named it."""
        return self.labels[index] if index < len(self.labels) else f"{_UNNAMED}{index}"

    def index(self, label: str) -> int:
        """The class of a name, or of one of the names that a label lists ("tabby" of "tabby, tabby cat"), in any case.

        Raises:
            UnknownNameError: no class is called so.
            UsageError: several are.
        """
        unnamed = label.removeprefix(_UNNAMED)
        if label != unnamed and unnamed.isdecimal() and int(unnamed) >= len(self.labels):
            return int(unnamed)
        found = [index for index, name in enumerate(self.labels) if name == label]
        if not found:
            wanted = label.strip().casefold()
            found = [index for index, name in enumerate(self.labels) if wanted in _names(name.casefold())]
        if not found:
            raise UnknownNameError(
                "class", label, dict.fromkeys(one for name in self.labels for one in (*_names(name), name))
            )
        if len(found) > 1:
            raise UsageError(f"{label!r} names the classes {', '.join(map(str, found))}. Give one of these numbers.")
        return found[0]


def _names(label: str) -> list[str]:
    """A label is one name, or several between commas."""
    return [name.strip() for name in label.split(",")]
