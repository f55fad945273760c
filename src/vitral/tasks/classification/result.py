"""Image classification: which classes a picture shows, with a score for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitral.base.config import check_choices
from vitral.base.draw import draw_bars
from vitral.base.frame import Seen
from vitral.base.image import Picture
from vitral.errors import UsageError
from vitral.models.output import EncoderOutput
from vitral.models.record import Record

__all__ = ["Classification", "Options", "ScoreFunction", "check_top_k", "decode", "scores_of"]

ScoreFunction = Literal["default", "softmax", "sigmoid", "none"]
"""How logits become scores; "default" is what the record's problem asks for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How logits become an answer.

    Attributes:
        top_k: how many classes to keep; None for all.
        function: how logits become scores.

    Raises:
        UsageError: top_k is not a whole number of at least 1.
        UnknownNameError: no such function.
    """

    top_k: int | None = None
    function: ScoreFunction = "default"

    def __post_init__(self) -> None:
        check_choices(self)
        check_top_k(self.top_k)


def check_top_k(top_k: Any) -> None:
    """Refuse a number of classes that is none."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise UsageError(f"top_k must be a whole number of at least 1, or None for all classes; {top_k!r} came.")


@dataclass(frozen=True, eq=False)
class Classification:
    """The classes of one picture, best first.

    Attributes:
        name: the picture's path, address or description.
        size: its height and width in pixels.
        labels: names of the classes.
        scores: their scores, from high to low; probabilities unless asked otherwise.
        indices: their places in the model's output.
        picture: the picture itself, where it was kept.
    """

    name: str
    size: tuple[int, int]
    labels: tuple[str, ...]
    scores: Float[np.ndarray, " k"]
    indices: Int[np.ndarray, " k"]
    picture: Picture | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Any) -> Classification:
        """Some of the classes: by slice, by places, or by a mask such as `result.scores > 0.1`."""
        places = np.atleast_1d(np.arange(len(self))[chosen])
        labels = tuple(self.labels[place] for place in places)
        return replace(self, labels=labels, scores=self.scores[places], indices=self.indices[places])

    def __repr__(self) -> str:
        best = ", ".join(f"{label} {score:.3f}" for label, score in zip(self.labels[:3], self.scores[:3], strict=True))
        return f"Classification({self.name}: {best}{', …' if len(self) > 3 else ''})"

    def top(self, k: int | None) -> Classification:
        """The k best classes; all of them for None, or where there are fewer.

        Raises:
            UsageError: k is not a whole number of at least 1.
        """
        check_top_k(k)
        return self[:k]

    def draw(self, top: int = 5) -> Image.Image:
        """A copy of the picture with a bar for each of the best classes below it.

        Raises:
            UsageError: the picture was not kept.
        """
        if self.picture is None:
            raise UsageError(
                f"The picture of {self.name} was not kept; predict it on its own, or stream with keep_pictures=True."
            )
        best = self.top(top)
        return draw_bars(self.picture.image, list(zip(best.labels, best.scores.tolist(), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = zip(self.labels, self.scores.tolist(), self.indices.tolist(), strict=True)
        return {
            "name": self.name,
            "size": list(self.size),
            "classes": [{"label": label, "score": score, "index": index} for label, score, index in rows],
        }


_AS_USUAL = Options()


def scores_of(logits: Float[Tensor, "*b c"], function: ScoreFunction, record: Record) -> Float[Tensor, "*b c"]:
    """Scores out of logits, in single precision.

    Raises:
        UsageError: a logit is not a finite number.
    """
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise UsageError("The model's logits are not finite numbers (NaN or infinity). Try dtype='float32'.")
    if function == "default":
        independent = record.problem == "multi_label" or logits.shape[-1] == 1
        function = "none" if record.problem == "regression" else "sigmoid" if independent else "softmax"
    return logits.softmax(-1) if function == "softmax" else logits.sigmoid() if function == "sigmoid" else logits


def decode(
    output: EncoderOutput, seen: Sequence[Seen], record: Record, options: Options = _AS_USUAL
) -> list[Classification]:
    """Results of a batch.

    Args:
        output: the model's.
        seen: what the model saw, one for each row of the output.
        record: the model's.
        options: how logits become an answer.
    """
    scores = scores_of(cast(Tensor, output.logits), options.function, record).cpu()
    values, order = scores.topk(min(options.top_k or scores.shape[1], scores.shape[1]), dim=1)
    return [
        Classification(one.name, one.frame.picture, tuple(map(record.label, places.tolist())), row, places, one.picture)
        for one, row, places in zip(seen, values.numpy(), order.numpy(), strict=True)
    ]
