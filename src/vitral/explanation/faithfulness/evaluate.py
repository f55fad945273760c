"""Many pictures, every method, every measure: which explanations are true, beside baselines and with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vitral.base.image import PictureSource
from vitral.base.numbers import all_finite, real_number, whole_number
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.explain import explain
from vitral.explanation.faithfulness.baselines import BASELINES, baseline
from vitral.explanation.faithfulness.curves import best_class, insertion_deletion, perturbation
from vitral.explanation.faithfulness.localisation import energy_inside, pointing_game, segmentation_scores
from vitral.explanation.faithfulness.randomisation import ranks
from vitral.explanation.methods import METHODS
from vitral.explanation.prepares import Prepares, check_predictor
from vitral.explanation.result import Explanation

__all__ = ["MEASURES", "Estimate", "Faithfulness", "Sample", "bootstrap_interval", "evaluate", "judge"]

MEASURES: dict[str, int] = {
    "insertion": 1,
    "deletion": -1,
    "negative": 1,
    "positive": -1,
    "pointing": 1,
    "energy": 1,
    "miou": 1,
    "average_precision": 1,
    "pixel_accuracy": 0,
}
"""Measure → 1 where more is better, -1 where less is, 0 where it is told but not ranked (background alone scores well)."""

_CURVES = ("insertion", "deletion", "negative", "positive")
_BY_PLACE = ("pointing", "energy")
_BY_MASK = ("miou", "average_precision", "pixel_accuracy")


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture to judge explanations on.

    Attributes:
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        target: the class to explain, by place or name; by default the model's best.
        mask: which pixels of the original picture show it, boolean (y x), for `segmentation_scores` and, where there are no
            boxes, for the others.
        boxes: where it is, rows (x0, y0, x1, y1) in pixels of the original picture, for `pointing_game` and
            `energy_inside`.

    Raises:
        UsageError: a mask that is no boolean picture, or boxes without extent.
    """

    picture: PictureSource
    target: SupportsIndex | str | None = None
    mask: Shaped[np.ndarray, "*y_x"] | None = None
    boxes: Shaped[np.ndarray, "*n_4"] | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.dtype != bool or mask.ndim != 2:
                raise UsageError(f"A mask is boolean, one value per pixel (y, x); {mask.dtype} of {mask.shape} came.")
            object.__setattr__(self, "mask", mask)
        if self.boxes is not None:
            boxes = np.asarray(self.boxes, dtype=np.float64)
            if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or not (boxes[:, 2:] > boxes[:, :2]).all():
                raise UsageError(f"Boxes are rows (x0, y0, x1, y1) with x0 < x1 and y0 < y1; {self.boxes!r:.80} came.")
            object.__setattr__(self, "boxes", boxes)


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures, and where it may lie.

    Attributes:
        mean: of the pictures measured.
        low, high: the ends of its bootstrap interval.
        pictures: how many were measured.
    """

    mean: float
    low: float
    high: float
    pictures: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness:
    """How methods compare, and against heat that knows nothing.

    Attributes:
        scores: method → measure → one number per picture on which it was measured, in the order of the pictures.
        seconds: method → what each explanation took.
        settings: how it was measured.
        level: of the bootstrap intervals.
    """

    scores: Mapping[str, Mapping[str, tuple[float, ...]]]
    seconds: Mapping[str, tuple[float, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    level: float = 0.95

    def __post_init__(self) -> None:
        for method, measures in self.scores.items():
            for measure, values in measures.items():
                if measure not in MEASURES:
                    raise UnknownNameError("measure", measure, MEASURES)
                all_finite(f"scores of {method} ({measure})", np.array(values))

    def __repr__(self) -> str:
        counts = ", ".join(f"{measure} on {count}" for measure, count in self.pictures.items())
        best = "".join(f", best {method}" for method, _ in self.ranking()[:1])
        return f"Faithfulness({len(self.scores)} methods{best}; pictures: {counts})"

    @property
    def pictures(self) -> dict[str, int]:
        """Measure → on how many pictures it was taken."""
        any_method = next(iter(self.scores.values()))
        return {measure: len(any_method[measure]) for measure in MEASURES if any_method.get(measure)}

    def estimate(self, method: str, measure: str) -> Estimate:
        """The mean of a measure for a method, with its interval."""
        return self._estimate(self._values(method, measure))

    def difference(self, method: str, other: str, measure: str) -> Estimate:
        """How much more a method scores than another on the same pictures, with its interval.

        Pictures differ more than methods do, so this tells two methods apart where the intervals of their means overlap.
        """
        pairs = zip(self._values(method, measure), self._values(other, measure), strict=True)
        return self._estimate(tuple(one - two for one, two in pairs))

    def ranking(self) -> tuple[tuple[str, float], ...]:
        """Methods and baselines with their mean rank, the best first.

        The rule: on every ranked measure that was taken the best mean has rank 1, equal means share their ranks, and the
        mean of a method's ranks decides.
        """
        found = []
        for measure in self.pictures:
            if MEASURES[measure]:
                means = np.array([np.mean(self._values(method, measure)) for method in self.scores])
                found.append(ranks(-MEASURES[measure] * means))
        mean_ranks = zip(self.scores, np.mean(found, axis=0).tolist() if found else [], strict=bool(found))
        return tuple(sorted(mean_ranks, key=lambda row: row[1]))

    def table(self) -> str:
        """A table in Markdown, best method first; the best mean of each measure is bold, baselines are slanted."""
        measures = list(self.pictures)
        arrows = {1: " ↑", -1: " ↓", 0: ""}
        mean_ranks = dict(self.ranking()) or dict.fromkeys(self.scores, 0.0)
        found = {measure: {method: self.estimate(method, measure) for method in mean_ranks} for measure in measures}
        head = ["method", *(measure.replace("_", " ") + arrows[MEASURES[measure]] for measure in measures)]
        lines = [[*head, "mean rank", "s per picture"], ["---"] * (len(head) + 2)]
        lines.append(["pictures", *(str(count) for count in self.pictures.values()), "", ""])
        for method, rank in mean_ranks.items():
            cells = [f"*{method}*" if method in BASELINES else method]
            for measure in measures:
                one, sign = found[measure][method], MEASURES[measure] or 1
                best = sign * one.mean == max(sign * other.mean for other in found[measure].values())
                mean = f"**{one.mean:.3f}**" if best else f"{one.mean:.3f}"
                cells.append(f"{mean} ({one.low:.2f}–{one.high:.2f})")
            lines.append([*cells, f"{rank:.2f}", f"{np.mean(self.seconds[method]):.3f}"])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "ranking": [{"method": method, "mean_rank": rank} for method, rank in self.ranking()],
            "means": {
                method: {measure: vars(self.estimate(method, measure)) for measure in self.pictures}
                for method in self.scores
            },
            "scores": {method: {name: list(values) for name, values in one.items()} for method, one in self.scores.items()},
            "seconds": {method: list(values) for method, values in self.seconds.items()},
            "settings": dict(self.settings),
            "level": self.level,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Faithfulness:
        """What `to_dict` gave, read back."""
        return cls(
            scores={
                method: {name: tuple(values) for name, values in one.items()} for method, one in plain["scores"].items()
            },
            seconds={method: tuple(values) for method, values in plain["seconds"].items()},
            settings=plain["settings"],
            level=plain["level"],
        )

    @classmethod
    def joined(cls, parts: Sequence[Faithfulness]) -> Faithfulness:
        """The pictures of several evaluations as one.

        Raises:
            UsageError: no parts, or parts of other methods or settings.
        """
        if not parts:
            raise UsageError("There are no evaluations to join.")
        first = parts[0]
        if any(set(one.scores) != set(first.scores) or one.settings != first.settings for one in parts):
            raise UsageError("Evaluations of different methods or with different settings cannot be joined.")
        return cls(
            scores={
                method: {
                    measure: values
                    for measure in MEASURES
                    if (values := tuple(x for part in parts for x in part.scores[method].get(measure, ())))
                }
                for method in first.scores
            },
            seconds={method: tuple(x for part in parts for x in part.seconds[method]) for method in first.scores},
            settings=first.settings,
            level=first.level,
        )

    def _values(self, method: str, measure: str) -> tuple[float, ...]:
        if method not in self.scores:
            raise UnknownNameError("method of this evaluation", method, self.scores)
        if not self.scores[method].get(measure):
            raise UnknownNameError("measure of this evaluation", measure, self.pictures)
        return self.scores[method][measure]

    def _estimate(self, values: tuple[float, ...]) -> Estimate:
        low, high = bootstrap_interval(values, self.level)
        return Estimate(float(np.mean(values)), low, high, len(values))


def bootstrap_interval(
    values: Iterable[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Where the mean of numbers like these lies: percentiles of the means of resamples (Efron and Tibshirani 1993, chapter
    13).

    Args:
        values: one number per picture.
        level: the share of resampled means that lie between the ends.
        resamples: how often as many numbers are drawn, with replacement.
        seed: of the draws.

    Raises:
        UsageError: no numbers, numbers that are not finite, a level that is not between 0 and 1.
    """
    numbers = np.array(list(values), dtype=np.float64)
    if not len(numbers):
        raise UsageError("An interval needs at least one number; none came.")
    all_finite("numbers to be averaged", numbers)
    if not 0 < real_number("level", level) < 1:
        raise UsageError(f"level must be between 0 and 1; {level!r} came.")
    resamples = whole_number("resamples", resamples)
    draws = np.random.default_rng(seed)
    means = [numbers[draws.integers(len(numbers), size=len(numbers))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate(
    predictor: Prepares,
    samples: Iterable[Sample],
    *,
    methods: Iterable[str] | None = None,
    measures: Iterable[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    steps: int = 32,
    tolerance: float = 15.0,
    batch_size: int = 32,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Faithfulness:
    """Explain pictures by several methods, and measure which explanations are true; baselines always take part.

    Args:
        predictor: see `pipelines.predictor.load`.
        samples: the pictures, and where things are if that is known.
        methods: keys of `explanation.methods.METHODS`; None for all.
        measures: keys of `MEASURES`; None for all that a sample allows.
        options: method → its options.
        steps: see `insertion_deletion`.
        tolerance: see `pointing_game`.
        batch_size: changed pictures computed at once.
        level: of the bootstrap intervals.
        seed: of the random baselines.
        progress: called after each explanation with how many are done, and of how many.

    Raises:
        UnknownNameError: no such method or measure.
        UsageError: no samples, a box outside its picture, a model without classes, heat that is not finite, or measures
            that no sample allows.
    """
    check_predictor(predictor)
    samples, wanted = list(samples), _wanted(measures)
    strangers = [type(one).__name__ for one in samples if not isinstance(one, Sample)]
    if strangers:
        raise UsageError(f"Samples were expected; a {strangers[0]} came. Make one of a picture with Sample(picture).")
    if not 0 < real_number("level", level) < 1 or real_number("tolerance", tolerance) < 0:
        raise UsageError(f"level must be between 0 and 1, tolerance at least 0; {level!r} and {tolerance!r} came.")
    whole_number("seed", seed, least=0)
    if not samples:
        raise UsageError("There are no samples to evaluate on. Pass at least one Sample(picture).")
    names = list(METHODS) if methods is None else list(dict.fromkeys(methods))
    for name in (*names, *(options or {})):
        if name not in METHODS:
            raise UnknownNameError("method", name, METHODS)
    if not any(_allowed(sample) & wanted for sample in samples):
        raise UsageError(f"No sample says where the thing is, which {', '.join(sorted(wanted))} need: give masks or boxes.")
    rows = (*names, *BASELINES)
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in rows}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for place, sample in enumerate(samples):
        pixels, seen = predictor.prepare(sample.picture)
        picture = sample.picture if seen.picture is None else seen.picture
        if sample.target is None:
            sample = replace(sample, target=best_class(predictor, pixels))
        for number, name in enumerate(rows):
            start = time.perf_counter()
            if name in BASELINES:
                explanation = baseline(name, predictor, picture, seed)
            else:
                target = sample.target if METHODS[name].needs_target else None
                explanation = explain(predictor, picture, method=name, target=target, **(options or {}).get(name, {}))
            seconds[name].append(time.perf_counter() - start)
            found = judge(
                predictor,
                explanation,
                sample,
                measures=wanted,
                steps=steps,
                tolerance=tolerance,
                batch_size=batch_size,
                pixels=pixels,
            )
            for measure, value in found.items():
                scores[name].setdefault(measure, []).append(value)
            if progress is not None:
                progress(place * len(rows) + number + 1, len(samples) * len(rows))
    return Faithfulness(
        scores={name: {measure: tuple(values) for measure, values in one.items()} for name, one in scores.items()},
        seconds={name: tuple(values) for name, values in seconds.items()},
        settings={
            "steps": steps,
            "tolerance": tolerance,
            "seed": seed,
            "options": {name: dict(chosen) for name, chosen in (options or {}).items()},
        },
        level=level,
    )


def judge(
    predictor: Prepares,
    explanation: Explanation,
    sample: Sample,
    *,
    measures: Iterable[str] | None = None,
    steps: int = 32,
    tolerance: float = 15.0,
    batch_size: int = 32,
    pixels: Float[Tensor, "c y x"] | None = None,
) -> dict[str, float]:
    """Every measure of an explanation that its sample allows; of curves, the area under them.

    Args:
        predictor: the model that was explained.
        explanation: heat of the sample's picture, from wherever.
        sample: the picture, and where the thing is if that is known.
        measures: keys of `MEASURES`; None for all.
        steps: see `insertion_deletion`.
        tolerance: see `pointing_game`.
        batch_size: changed pictures computed at once.
        pixels: the model's input, where it is at hand.
    """
    wanted = _wanted(measures) & _allowed(sample)
    found: dict[str, float] = {}
    if {"insertion", "deletion"} & wanted:
        changed = insertion_deletion(
            predictor, explanation, target=sample.target, steps=steps, pixels=pixels, batch_size=batch_size
        )
        found |= {"insertion": changed.insertion.auc, "deletion": changed.deletion.auc}
    if {"positive", "negative"} & wanted:
        masked = perturbation(predictor, explanation, target=sample.target, pixels=pixels, batch_size=batch_size)
        found |= {"positive": masked.positive.auc, "negative": masked.negative.auc}
    place: dict[str, Any] = {"mask": sample.mask} if sample.boxes is None else {"boxes": sample.boxes}
    if "pointing" in wanted:
        found["pointing"] = float(pointing_game(explanation, tolerance=tolerance, **place))
    if "energy" in wanted:
        found["energy"] = energy_inside(explanation, **place)
    if sample.mask is not None and wanted & set(_BY_MASK):
        found |= vars(segmentation_scores(explanation, sample.mask))
    return {measure: found[measure] for measure in MEASURES if measure in wanted}


def _wanted(measures: Iterable[str] | None) -> set[str]:
    wanted = set(MEASURES) if measures is None else set(measures)
    for measure in wanted:
        if measure not in MEASURES:
            raise UnknownNameError("measure", measure, MEASURES)
    if not wanted:
        raise UsageError(f"No measure was named. Known: {', '.join(MEASURES)}.")
    return wanted


def _allowed(sample: Sample) -> set[str]:
    """The measures that what is known of a sample allows."""
    by_place = () if sample.mask is None and sample.boxes is None else _BY_PLACE
    return {*_CURVES, *by_place, *(() if sample.mask is None else _BY_MASK)}
