"""How good a classifier is: how often it is right, whom it takes for whom, and whether it is as sure as it is right.

Everything here is a pure function of arrays: `scores` (n c) are probabilities, a row for each picture; `labels` (n) are the
true classes, from 0; `answers` (n) are the classes that were said.

Of equal scores the class of the lower number stands first, everywhere: it is what `argmax` answers, and so a model that
gives every class the same score is right about class 0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray

from vitral.base.numbers import real_number, whole_number
from vitral.errors import UsageError

__all__ = [
    "BINS",
    "LEAST_PROBABILITY",
    "ClassTable",
    "Confusion",
    "ReliabilityBins",
    "accuracy",
    "answers_of",
    "bootstrap_intervals",
    "brier_scores",
    "check_scores",
    "class_table",
    "confusion_matrix",
    "confusions",
    "expected_calibration_error",
    "log_losses",
    "ranks_of",
    "reliability_bins",
    "top_k_accuracy",
]

BINS = 15
"""Bins of confidence, as in Guo et al. 2017, section 4.2."""

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""What a probability of zero counts as in a logarithm, 1.2e-38: single precision knows no smaller one to all its digits.
One picture then costs at most 87 nats, and never infinitely many."""


def check_scores(scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"]) -> None:
    """Refuse scores that are no probabilities, and labels that name no class.

    Raises:
        UsageError: no pictures, a score that is NaN or outside 0 to 1, or a label that is no class; it names the row.
    """
    if not len(scores) or not scores.shape[1]:
        raise UsageError(f"Scores of at least one picture and one class are needed; {scores.shape} came.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"Labels must be whole numbers; {labels.dtype} came.")
    finite = np.isfinite(scores).all(1)
    if not finite.all():
        row = int(finite.argmin())
        raise UsageError(f"The scores of row {row} are not all finite (NaN or infinity); {_wrong(~finite)}.")
    # Softmax in half precision may end a little above 1.
    within = ((scores >= 0) & (scores <= 1 + 1e-3)).all(1)
    if not within.all():
        row = int(within.argmin())
        low, high = float(scores[row].min()), float(scores[row].max())
        raise UsageError(
            f"The scores of row {row} reach from {low:.4g} to {high:.4g}, so they are no probabilities. Give those, such as "
            "the softmax of the logits."
        )
    known = (labels >= 0) & (labels < scores.shape[1])
    if not known.all():
        row = int(known.argmin())
        raise UsageError(f"The label of row {row} is {int(labels[row])}, and there are {scores.shape[1]} classes from 0.")


def _wrong(rows: Bool[ndarray, " n"]) -> str:
    return f"{int(rows.sum())} of {len(rows)} rows are so"


# -- how often it is right --------------------------------------------------------------------------------------------


def answers_of(scores: Float[ndarray, "n c"]) -> Int64[ndarray, " n"]:
    """The likeliest class of each picture; of equal ones, the first."""
    return scores.argmax(1).astype(np.int64)


def ranks_of(scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"]) -> Int64[ndarray, " n"]:
    """Where the true class stands among all classes, likeliest first, from 0: the answer is right where it is 0.

    Classes of the same score stand in the order of their numbers.

    Raises:
        UsageError: see `check_scores`.
    """
    check_scores(scores, labels)
    true = np.take_along_axis(scores, labels[:, None], 1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true) | ((scores == true) & before)).sum(1)


def accuracy(labels: Int[ndarray, " n"], answers: Int[ndarray, " n"]) -> float:
    """The share of pictures whose answer is right, in [0, 1].

    Raises:
        UsageError: no pictures.
    """
    if not len(labels):
        raise UsageError("There are no pictures to be right about.")
    return float((labels == answers).mean())


def top_k_accuracy(scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"], k: int = 1) -> float:
    """The share of pictures whose true class is among the k likeliest, in [0, 1]; it is 1 where there are only k classes.

    Raises:
        UsageError: k is not a whole number of at least 1; see also `check_scores`.
    """
    return float((ranks_of(scores, labels) < whole_number("k", k)).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTable:
    """How it fares class by class.

    Attributes:
        precision: of the pictures said to be of a class, the share that are; 0 for a class that was never said.
        recall: of the pictures of a class, the share that were said to be; 0 for a class without pictures.
        f1: the harmonic mean of the two; 0 where both are.
        support: how many pictures a class has.
        said: how many pictures were said to be of it.
    """

    precision: Float[ndarray, " c"]
    recall: Float[ndarray, " c"]
    f1: Float[ndarray, " c"]
    support: Int[ndarray, " c"]
    said: Int[ndarray, " c"]

    def __len__(self) -> int:
        return len(self.support)

    @property
    def macro(self) -> dict[str, float]:
        """Precision, recall and F1, each the plain mean over the classes that have pictures or were said."""
        seen = (self.support > 0) | (self.said > 0)
        return {name: float(getattr(self, name)[seen].mean()) for name in ("precision", "recall", "f1")}


def class_table(labels: Int[ndarray, " n"], answers: Int[ndarray, " n"], classes: int) -> ClassTable:
    """Precision, recall, F1 and support of every class.

    Raises:
        UsageError: no pictures, or a label or an answer that is none of the classes.
    """
    _check_classes(labels, answers, classes)
    hits = np.bincount(labels[labels == answers], minlength=classes)
    support, said = np.bincount(labels, minlength=classes), np.bincount(answers, minlength=classes)
    return ClassTable(
        precision=hits / np.maximum(said, 1),
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(support + said, 1),
        support=support,
        said=said,
    )


def confusion_matrix(labels: Int[ndarray, " n"], answers: Int[ndarray, " n"], classes: int) -> Int64[ndarray, "c c"]:
    """How often each class (rows) was taken for each class (columns).

    Raises:
        UsageError: no pictures, or a label or an answer that is none of the classes.
    """
    _check_classes(labels, answers, classes)
    pairs = labels.astype(np.int64) * classes + answers
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Confusion:
    """One class taken for another.

    Attributes:
        true: the class.
        said: what it was taken for.
        count: how often.
    """

    true: int
    said: int
    count: int


def confusions(labels: Int[ndarray, " n"], answers: Int[ndarray, " n"], k: int | None = None) -> list[Confusion]:
    """The commonest mistakes, most frequent first; equally frequent ones in the order of their classes.

    Args:
        labels: the true classes.
        answers: the classes said.
        k: how many at most; None for all.

    Raises:
        UsageError: k is not a whole number of at least 1.
    """
    wrong = labels != answers
    pairs, counts = np.unique(np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: None if k is None else whole_number("k", k)]
    return [Confusion(int(pairs[place, 0]), int(pairs[place, 1]), int(counts[place])) for place in order]


def _check_classes(labels: ndarray, answers: ndarray, classes: int) -> None:
    whole_number("classes", classes)
    if not len(labels):
        raise UsageError("There are no pictures to be counted.")
    for what, numbers in (("labels", labels), ("answers", answers)):
        if numbers.min() < 0 or numbers.max() >= classes:
            raise UsageError(
                f"The {what} are from {int(numbers.min())} to {int(numbers.max())}, and there are {classes} classes from 0."
            )


# -- whether it is as sure as it is right -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ReliabilityBins:
    """Pictures gathered by how sure the answer was (DeGroot and Fienberg 1983; Guo et al. 2017, section 2).

    Attributes:
        edges: from 0 to 1; a bin holds its upper edge, and the first its lower one as well.
        counts: pictures in each bin.
        confidence: the mean probability of their answers; 0 in a bin without pictures.
        accuracy: the share of the answers that are right; 0 in a bin without pictures.
    """

    counts: Int[ndarray, " k"]
    confidence: Float[ndarray, " k"]
    accuracy: Float[ndarray, " k"]
    edges: Float[ndarray, " k+1"]

    @property
    def error(self) -> float:
        """The expected calibration error: how far confidence and accuracy are apart, Σ counts/n · |accuracy − confidence|
        (Guo et al. 2017, equation 3), in [0, 1].
        """
        return float((self.counts * np.abs(self.accuracy - self.confidence)).sum() / self.counts.sum())


def reliability_bins(
    scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"], *, bins: int = BINS, adaptive: bool = False
) -> ReliabilityBins:
    """How right answers are, by how sure they are.

    Args:
        scores: probabilities.
        labels: the true classes.
        bins: how many.
        adaptive: False: bins ((i−1)/bins, i/bins] of one width, as in Guo et al. 2017. True: bins of one number of
            pictures, as nearly as may be (Nguyen and O'Connor 2015, section 3.2; for the likeliest class alone, as in
            Mukhoti et al. 2020). Pictures of the same confidence are never parted, so that the order in which they come
            changes nothing; there may then be fewer bins than asked for.

    Raises:
        UsageError: bins is not a whole number of at least 1; see also `check_scores`.
    """
    check_scores(scores, labels)
    number = whole_number("bins", bins)
    confidence = scores.max(1).astype(np.float64).clip(0, 1)
    right = answers_of(scores) == labels
    edges = _even_edges(confidence, number) if adaptive else np.linspace(0, 1, number + 1)
    places = np.searchsorted(edges[1:-1], confidence, side="left")  # what lies on an edge belongs to the bin below it
    counts = np.bincount(places, minlength=len(edges) - 1)
    at_least_one = np.maximum(counts, 1)
    return ReliabilityBins(
        edges=edges,
        counts=counts,
        confidence=np.bincount(places, confidence, minlength=len(counts)) / at_least_one,
        accuracy=np.bincount(places, right, minlength=len(counts)) / at_least_one,
    )


def _even_edges(confidence: Float[ndarray, " n"], bins: int) -> Float[ndarray, " k"]:
    """Edges between which there are about as many pictures each, and never none."""
    ordered = np.sort(confidence)
    last = np.ceil(np.arange(1, bins) * len(ordered) / bins).astype(int) - 1  # the last picture of each bin but the last
    inner = np.unique(ordered[last])
    return np.concatenate([[0.0], inner[(inner < ordered[-1]) & (inner > 0)], [1.0]])


def expected_calibration_error(
    scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"], *, bins: int = BINS, adaptive: bool = False
) -> float:
    """How far the probability of the answer is from the share of right answers, in [0, 1].

    0 does not mean a good model: one that says "10 %" of every picture of ten classes is calibrated and knows nothing. And
    of few pictures even a calibrated model gets more than 0, by chance, the more the finer the bins.

    Args:
        scores: probabilities.
        labels: the true classes.
        bins: how many.
        adaptive: see `reliability_bins`.

    Raises:
        UsageError: see `reliability_bins`.
    """
    return reliability_bins(scores, labels, bins=bins, adaptive=adaptive).error


def brier_scores(scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"]) -> Float[ndarray, " n"]:
    """The squared distance of each picture's probabilities from the truth, Σ (p − y)² over the classes, in [0, 2]
    (Brier 1950, equation 2). Their mean is the Brier score of several classes; for two, some halve it.

    Raises:
        UsageError: see `check_scores`.
    """
    check_scores(scores, labels)
    precise = scores.astype(np.float64)
    true = np.take_along_axis(precise, labels[:, None], 1)[:, 0]
    # Σ p² − p_true² + (p_true − 1)²: no second array of n × c.
    return np.einsum("nc,nc->n", precise, precise) - 2 * true + 1


def log_losses(scores: Float[ndarray, "n c"], labels: Int[ndarray, " n"]) -> Float[ndarray, " n"]:
    """−ln of each picture's probability of the true class, in nats; their mean is the negative log likelihood, which is the
    cross-entropy. A probability of zero counts as `LEAST_PROBABILITY`.

    Raises:
        UsageError: see `check_scores`.
    """
    check_scores(scores, labels)
    true = np.take_along_axis(scores, labels[:, None], 1)[:, 0].astype(np.float64)
    return -np.log(true.clip(LEAST_PROBABILITY, 1.0))


# -- how much of it is chance -----------------------------------------------------------------------------------------

_AT_ONCE = 4_000_000
"""Pictures drawn at once: 32 MB of indices."""


def bootstrap_intervals(
    values: Float[ndarray, "n m"], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Float[ndarray, "m 2"]:
    """Intervals for means over pictures, by the percentile bootstrap (Efron and Tibshirani 1993, section 13.3).

    The pictures are drawn again, with replacement, as many as there are; the interval holds the middle `level` of the means
    of such draws. It says what other pictures of the same kind would have given; it says nothing of other trainings.

    Args:
        values: a row for each picture, a column for each quantity whose mean is wanted, such as 1 where the answer is right.
            All columns are drawn with the same pictures.
        level: how much of the draws lies inside, between 0 and 1.
        resamples: how often pictures are drawn.
        seed: fixes the draws.

    Returns:
        The lower and the upper end for each column.

    Raises:
        UsageError: no pictures, a value that is not finite, or a number out of its range.
    """
    count, columns = values.shape
    if not count:
        raise UsageError("There are no pictures to draw from.")
    if not np.isfinite(values).all():
        raise UsageError(f"The values of row {int(np.isfinite(values).all(1).argmin())} are not all finite.")
    if not 0 < real_number("level", level) < 1:
        raise UsageError(f"level must be between 0 and 1; {level!r} came.")
    generator = np.random.default_rng(whole_number("seed", seed, least=0))
    precise = values.astype(np.float64)
    means: list[Any] = []
    left = whole_number("resamples", resamples)
    while left:
        rows = min(left, max(1, _AT_ONCE // count))
        drawn = generator.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        # How often each picture was drawn, times its values: a matrix product instead of a gathering for each column.
        often = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        means.append(often @ precise / count)
        left -= rows
    tail = (1 - level) / 2
    ends = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return ends.T.reshape(columns, 2)
