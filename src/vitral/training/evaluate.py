"""A classifier held against pictures whose classes are known.

    pictures → the record's preprocessing → batches of one size → model → probabilities → an `Evaluation`

The numbers themselves are pure functions of probabilities and labels, in `tasks.classification.metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from vitral.base.numbers import whole_number
from vitral.data.pictures import BadPictures, PictureSet
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.record import Record
from vitral.tasks.classification import metrics
from vitral.training.answers import Decoding, answers_of, check_reading

__all__ = ["Evaluation", "check_fits", "evaluate"]

_CONFUSIONS = 100
"""Of the commonest mistakes, how many `Evaluation.to_dict` lists."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a classifier said of pictures whose classes are known, and how good that is.

    Attributes:
        data: what the set of pictures is called.
        model: what the network is called.
        classes: the names of the model's classes, in the order of its scores.
        names: what the pictures are called, those left out that could not be read.
        labels: their true classes, places in `classes`.
        scores: the probability of each class, in single precision.
        places: where each picture stands in its set.
        skipped: why a picture was left out, one sentence each.
        seconds: how long it took, reading included.
    """

    data: str
    model: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]
    scores: Float32[np.ndarray, "n c"]
    places: Int64[np.ndarray, " n"]
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        metrics.check_scores(self.scores, self.labels)
        if not len(self.names) == len(self.labels) == len(self.places) or len(self.classes) != self.scores.shape[1]:
            raise UsageError(
                f"{len(self.names)} names, {len(self.labels)} labels and {len(self.places)} places came for scores of "
                f"{self.scores.shape[0]} pictures, and {len(self.classes)} classes for {self.scores.shape[1]}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Evaluation({self.model} on {self.data}: top-1 {self.top1:.1%} of {len(self)} pictures{skipped})"

    @cached_property
    def answers(self) -> Int64[np.ndarray, " n"]:
        """The likeliest class of each picture; of equal ones, the first."""
        return metrics.answers_of(self.scores)

    @cached_property
    def confidence(self) -> Float32[np.ndarray, " n"]:
        """The probability of each answer."""
        return self.scores.max(1)

    @cached_property
    def ranks(self) -> Int64[np.ndarray, " n"]:
        """Where the true class stands among all, likeliest first, from 0."""
        return metrics.ranks_of(self.scores, self.labels)

    @property
    def top1(self) -> float:
        """The share of right answers, in [0, 1]."""
        return float((self.ranks < 1).mean())

    @property
    def top5(self) -> float:
        """The share of pictures whose class is among the five likeliest; 1 where there are no more classes than that."""
        return float((self.ranks < 5).mean())

    @cached_property
    def _losses(self) -> Float[np.ndarray, " n"]:
        return metrics.log_losses(self.scores, self.labels)

    @cached_property
    def _briers(self) -> Float[np.ndarray, " n"]:
        return metrics.brier_scores(self.scores, self.labels)

    @property
    def nll(self) -> float:
        """The mean of −ln p of the true class, in nats: negative log likelihood, which is the cross-entropy."""
        return float(self._losses.mean())

    @property
    def brier(self) -> float:
        """The mean squared distance of the probabilities from the truth, in [0, 2]."""
        return float(self._briers.mean())

    @cached_property
    def reliability(self) -> metrics.ReliabilityBins:
        """Pictures gathered by confidence, in 15 bins of one width."""
        return metrics.reliability_bins(self.scores, self.labels)

    @property
    def ece(self) -> float:
        """The expected calibration error over 15 bins of one width, in [0, 1]."""
        return self.reliability.error

    @cached_property
    def adaptive_ece(self) -> float:
        """The same over 15 bins of about as many pictures each."""
        return metrics.expected_calibration_error(self.scores, self.labels, adaptive=True)

    @cached_property
    def per_class(self) -> metrics.ClassTable:
        """Precision, recall, F1 and support of every class."""
        return metrics.class_table(self.labels, self.answers, len(self.classes))

    @cached_property
    def confusion(self) -> Int64[np.ndarray, "c c"]:
        """How often each class (rows) was taken for each class (columns)."""
        return metrics.confusion_matrix(self.labels, self.answers, len(self.classes))

    def confusions(self, k: int | None = 10) -> list[metrics.Confusion]:
        """The commonest mistakes, most frequent first."""
        return metrics.confusions(self.labels, self.answers, k)

    def intervals(self, seed: int = 0, *, level: float = 0.95, resamples: int = 1000) -> dict[str, tuple[float, float]]:
        """Where top-1, top-5, negative log likelihood and Brier score would lie for other pictures of the same kind.

        By drawing the pictures again; see `metrics.bootstrap_intervals`. The calibration error has no such interval: it is
        made of absolute values, which drawing again only makes greater.

        Args:
            seed: fixes the draws.
            level: how much of the draws lies inside, between 0 and 1.
            resamples: how often pictures are drawn.
        """
        columns = {"top1": self.ranks < 1, "top5": self.ranks < 5, "nll": self._losses, "brier": self._briers}
        values = np.stack(list(columns.values()), axis=1).astype(np.float64)
        ends = metrics.bootstrap_intervals(values, level=level, resamples=resamples, seed=seed).tolist()
        return {name: (low, high) for name, (low, high) in zip(columns, ends, strict=True)}

    def worst(self, k: int | None = None) -> Int64[np.ndarray, " k"]:
        """The rows of the mistakes that were surest of themselves, the surest first; at most k of them."""
        wrong = np.flatnonzero(self.answers != self.labels)
        order = np.argsort(-self.confidence[wrong], kind="stable")
        return wrong[order][: None if k is None else whole_number("k", k)].astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; of the confusions only the commonest."""
        table = self.per_class
        return {
            "data": self.data,
            "model": self.model,
            "pictures": len(self),
            "skipped": list(self.skipped),
            "seconds": self.seconds,
            "top1": self.top1,
            "top5": self.top5,
            "nll": self.nll,
            "brier": self.brier,
            "ece": self.ece,
            "adaptive_ece": self.adaptive_ece,
            "intervals": {name: list(ends) for name, ends in self.intervals().items()},
            "macro": table.macro,
            "classes": [
                {
                    "label": label,
                    "support": int(table.support[place]),
                    "said": int(table.said[place]),
                    "precision": float(table.precision[place]),
                    "recall": float(table.recall[place]),
                    "f1": float(table.f1[place]),
                }
                for place, label in enumerate(self.classes)
            ],
            "confusions": [
                {"true": self.classes[one.true], "said": self.classes[one.said], "count": one.count}
                for one in self.confusions(_CONFUSIONS)
            ],
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    pictures: PictureSet,
    *,
    batch_size: int = 64,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    decoding: Decoding = "fast",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask a classifier about every picture of a set, and keep what it says.

    Pictures are prepared as the model's record says. Classes are matched by their names (`Record.index`: one of several
    names of a label is enough, in any case); those of a model without names, by their numbers. A model may know more classes
    than the set: its answers are then from all of its own, and saying one that the set does not have is a mistake.

    The model comes back as it was: in its mode, part by part, and on its device. The caller's random state is not touched.

    Args:
        model: a classifier of Vitral's with a record.
        pictures: a set that knows its classes.
        batch_size: how many pictures the model sees at once; of those, inputs of one size are computed together.
        device: where to compute; by default where the model is.
        dtype: "bfloat16" or "float16" computes under autocast; by default in the precision of the weights. Probabilities are
            in single precision either way.
        workers: processes that read and prepare; 0 does it here.
        bad_pictures: "refuse" ends at a picture that cannot be read; "skip" leaves it out and says so in `skipped`.
        decoding: "fast" reads large JPEGs as a predictor does by default; "exact" always reads them whole.
        on_progress: called with the pictures done and their number after each batch.

    Raises:
        UsageError: the model has no classes or its classes do not fit, nobody said how pictures are prepared for it, there
            are no pictures to judge by, logits that are not finite, or an option out of its range.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, decoding)
    record, preprocessing, count = _checked_model(model)
    columns = _columns(record, count, pictures)
    started = time.perf_counter()
    scores = np.empty((len(pictures), count), dtype=np.float32)
    done, skipped, seen = np.zeros(len(pictures), dtype=bool), list[str](), 0
    for batch in answers_of(
        model,
        pictures,
        preprocessing,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        workers=workers,
        bad_pictures=bad_pictures,
        decoding=decoding,
    ):
        skipped += batch.skipped
        for places, _, output in batch.answers:
            scores[places] = _probabilities(output.logits, [pictures.where(place) for place in places])
            done[places] = True
            seen += len(places)
        if on_progress is not None:
            on_progress(seen + len(skipped), len(pictures))
    rows = np.flatnonzero(done)
    if not len(rows):
        raise UsageError(f"None of the {len(pictures)} pictures of {pictures.name} could be read; the first: {skipped[0]}")
    whole = len(rows) == len(pictures)
    return Evaluation(
        data=pictures.name,
        model=record.architecture or record.source or type(model).__name__,
        classes=tuple(map(record.label, range(count))) if record.labels else pictures.classes,
        names=tuple(pictures.names[row] for row in rows.tolist()),
        labels=columns[pictures.labels[rows]],
        scores=scores if whole else scores[rows],
        places=rows.astype(np.int64),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - started,
    )


def check_fits(model: nn.Module, pictures: PictureSet) -> None:
    """Refuse, before any work, a model that cannot be judged by these pictures.

    Raises:
        UsageError: the model has no classes or its classes do not fit, nobody said how pictures are prepared for it, or
            there are no pictures.
    """
    record, _, count = _checked_model(model)
    _columns(record, count, pictures)


def _checked_model(model: nn.Module) -> tuple[Record, Preprocessing, int]:
    """What the model's record says, and how many classes it has."""
    if not hasattr(model, "record"):
        raise UsageError(
            f"A {type(model).__name__} is not one of Vitral's models; build it with create_model or load_model."
        )
    record, count = cast(Record, model.record), int(cast(Any, model).config.num_classes)
    if count < 2:
        raise UsageError(
            f"A model of {count} classes cannot be judged as a classifier. Load it with num_classes=… and train the new one."
        )
    if record.problem != "single_label":
        raise UsageError(
            f"The model's record says its problem is {record.problem!r}; here each picture has one class of several that "
            "exclude each other. If that is what the model learned, give it a record with problem='single_label'."
        )
    return record, record.preparing(), count


def _columns(record: Record, count: int, pictures: PictureSet) -> Int64[np.ndarray, " k"]:
    """For each class of the set, its place among the model's; −1 for one that no picture has and the model does not know.

    Raises:
        UsageError: no pictures, or classes that do not fit.
    """
    classes = pictures.classes
    if not len(pictures):
        raise UsageError(f"{pictures.name} holds no pictures to judge by.")
    if not record.labels:
        if len(classes) != count:
            raise UsageError(
                f"The model has {count} classes without names and {pictures.name} has {len(classes)}, so nobody knows which "
                "is which. Give the model's record the names of its classes, in their order: replace(record, labels=(…))."
            )
        return np.arange(count, dtype=np.int64)
    columns = np.full(len(classes), -1, dtype=np.int64)
    unknown: list[str] = []
    for place in np.unique(pictures.labels).tolist():
        try:
            columns[place] = record.index(classes[place])
        except UsageError as error:
            unknown.append(str(error))
    if unknown:
        raise UsageError(
            f"{len(unknown)} of the classes of {pictures.name} do not fit the {len(record.labels)} of the model, the first: "
            f"{unknown[0]} Name the classes of the pictures as the model does."
        )
    found, times = np.unique(columns[columns >= 0], return_counts=True)
    if found[-1] >= count:
        raise UsageError(f"Class {found[-1]} is not one of the {count} of the model, whatever its record says.")
    for column in found[times > 1].tolist():
        both = [name for name, one in zip(classes, columns.tolist(), strict=True) if one == column]
        raise UsageError(
            f"{' and '.join(map(repr, both))} of {pictures.name} are one class of the model, {record.label(column)!r}. "
            "Put their pictures together, or name them apart."
        )
    return columns


def _probabilities(logits: Float[Tensor, "b c"], names: Sequence[str]) -> Float32[np.ndarray, "b c"]:
    logits = logits.float()
    finite = logits.isfinite().all(1)
    if not bool(finite.all()):
        name = names[int(finite.int().argmin())]
        raise UsageError(f"The model's logits for {name} are not finite numbers (NaN or infinity). Try single precision.")
    return logits.softmax(-1).cpu().numpy()
