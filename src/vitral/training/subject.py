"""What a network is trained for: all that the training loop does not know itself.

The loop knows steps, rates, gradients and checkpoints. What stands in a batch, what is made small, what that is divided by
and how good the network is at last, its subject tells: `training.classification` for classes of pictures,
`training.detection` for objects in them, `training.segmentation` for their pixels. A new task is one more page like these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.data.loader import Share
from vitral.models.network import Network
from vitral.training.recipe import Recipe

__all__ = ["Judgement", "Loss", "Pictures", "Piece", "Subject", "computing"]


@runtime_checkable
class Pictures(Protocol):
    """A set of pictures with whatever is known of them."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest: two sets that have the same hold the same samples under the same numbers."""
        ...

    def __len__(self) -> int: ...


@runtime_checkable
class Piece(Protocol):
    """A piece of a batch, ready for the model."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Sentences about pictures that could not be read and are left out."""
        ...


class Loss(NamedTuple):
    """What a piece of a batch adds to the loss of the whole batch.

    Attributes:
        total: to be made small; the totals of all pieces add up to the loss.
        parts: what it is made of, in the order of the subject's `parts`; to be looked at only.
    """

    total: Float[Tensor, ""]
    parts: Float[Tensor, " p"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """How good a network is on the pictures held out.

    Attributes:
        data: what the set calls itself.
        count: how many of its pictures were judged by.
        numbers: what was measured, for the journal, by short names.
        value: of these the one that the best model is chosen by; more is better.
        line: the numbers in half a line, for whoever watches.
        recorded: what the model's record tells of them, by the names of the fields of `models.record.Training`.
        details: all that was found; for a classifier a `training.evaluate.Evaluation`.
    """

    data: str
    count: int
    numbers: Mapping[str, float]
    value: float
    line: str
    recorded: Mapping[str, float] = field(default_factory=dict)
    details: Any = None


_Batch = TypeVar("_Batch", bound=Piece)


@runtime_checkable
class Subject(Protocol[_Batch]):
    """What a network is trained for."""

    @property
    def pictures(self) -> Pictures:
        """What is learned from."""
        ...

    @property
    def held_out(self) -> Pictures | None:
        """What the network is judged by."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """What the loss is made of, where it is made of several parts."""
        ...

    def check(self, model: Network) -> None:
        """Refuse, before the first step, what would fail after the first epoch.

        Raises:
            UsageError: the model cannot be trained for this.
        """
        ...

    def batches(
        self, model: Network, share: Share, *, steps: range, workers: int, pin_memory: bool
    ) -> Iterator[list[_Batch]]:
        """The batches of some steps, each in its pieces: a pure function of the recipe's seed and the step.

        Raises:
            PictureError: a picture cannot be read, and the recipe refuses that.
        """
        ...

    def amounts(self, batch: _Batch) -> tuple[float, ...]:
        """How much of what the loss is divided by lies in a piece: pictures for a classifier, objects for a detector."""
        ...

    def loss(self, network: nn.Module, batch: _Batch, whole: tuple[float, ...], device: torch.device) -> Loss:
        """What a piece adds to the loss of its batch.

        Args:
            network: the model, or what several processes call in its place.
            batch: the piece, wherever it lies.
            whole: the `amounts` of the whole batch, added up over all its pieces and processes.
            device: where to compute.
        """
        ...

    def judge(self, model: Network, *, device: torch.device, workers: int) -> Judgement | None:
        """How good the model is, as it is; None where no pictures are held out."""
        ...


def computing(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """While this lasts, networks compute in the recipe's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
