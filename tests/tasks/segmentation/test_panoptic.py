"""Panoptic quality against its definition, told pixel by pixel in sets as the code that COCO publishes counts it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.base.masks import boxes_of, regions_of
from vitral.data.objects import Annotations
from vitral.errors import UsageError
from vitral.tasks.segmentation.metrics import PanopticMetric, PanopticScores
from vitral.tasks.segmentation.result import Panoptic, Segment

CLASSES, THINGS = ("sky", "car", "dog", "wall"), (False, True, True, False)
Shown = list[tuple[Panoptic, Annotations]]


def panoptic(numbers: Any, classes: dict[int, int]) -> Panoptic:
    numbers = np.asarray(numbers, dtype=np.int32)
    found = regions_of(numbers)
    segments = tuple(
        Segment(
            id=id_, index=classes[id_], label=CLASSES[classes[id_] % 4], score=0.9, fused=False, area=area, box=tuple(box)
        )
        for id_, area, box in zip(found.values.tolist(), found.areas.tolist(), found.boxes.tolist(), strict=True)
        if id_
    )
    return Panoptic("p", numbers.shape, numbers, segments)


def truth_of(numbers: Any, labels: list[int], crowd: list[bool] | None = None) -> Annotations:
    """Segments 1, 2, … of a map."""
    numbers = np.asarray(numbers)
    masks = (
        np.stack([numbers == place for place in range(1, len(labels) + 1)]) if labels else np.zeros((0, *numbers.shape)) > 0
    )
    return Annotations(
        boxes=boxes_of(masks),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.array(crowd or [False] * len(labels), dtype=bool),
        areas=masks.sum((1, 2)).astype(np.float64),
        ids=np.arange(len(labels)),
        masks=masks,
    )


def made_up(seed: int, pictures: int = 4) -> Shown:
    """Maps of patches that mostly agree, with pixels of nothing, and crowds, sometimes two of a class."""
    chance, shown = np.random.default_rng(seed), []
    for _ in range(pictures):
        count = int(chance.integers(0, 7))
        size = (3, 4)
        patch = np.ones((6, 5), dtype=np.int32)
        coarse = chance.integers(0, count + 1, size)
        labels = chance.integers(0, 4, count).tolist()
        crowd = [False] * count
        for one in range(4):
            own = [place for place, label in enumerate(labels) if label == one]
            if own and chance.random() < 0.3:
                crowd[own[0]] = True
                crowd[own[-1]] |= chance.random() < 0.3
        truth = np.kron(coarse, patch)
        ids = chance.permutation(40)[: count + 2] + 1
        meant = np.concatenate([[0], ids[:count]])
        said = np.where(chance.random(size) < 0.85, meant[coarse], ids[count]).repeat(6, 0).repeat(5, 1)
        said = np.where(chance.random(truth.shape) < 0.2, np.roll(said, 2, 1), said)
        said[chance.random(truth.shape) < 0.1] = 0
        kinds = {int(id_): int(chance.integers(0, 4)) for id_ in ids}
        for place in range(count):
            if chance.random() < 0.8:
                kinds[int(ids[place])] = labels[place]
        shown.append((panoptic(said, kinds), truth_of(truth, labels, crowd)))
    return shown


def by_sets(shown: Shown) -> list[tuple[float, int, int, int]]:
    """Of each class: the overlaps added up, found, wrong, missed."""
    told = [[0.0, 0, 0, 0] for _ in CLASSES]
    for said, there in shown:
        assert there.masks is not None
        true = [set(np.flatnonzero(mask.ravel()).tolist()) for mask in there.masks]
        known: set[int] = set().union(*true)
        free = {row for row in range(len(true)) if not there.crowd[row]}
        for segment in said.segments:
            own = set(np.flatnonzero(said.mask(segment.id).ravel()).tolist())
            hit = None
            for row in sorted(free):
                overlap = len(own & true[row]) / max(len((own & known) | true[row]), 1)
                if there.labels[row] == segment.index and overlap > 0.5:
                    assert hit is None
                    hit = row
                    told[segment.index][0] += overlap
                    told[segment.index][1] += 1
            if hit is not None:
                free.remove(hit)
                continue
            crowds = [true[row] for row in range(len(true)) if there.crowd[row] and there.labels[row] == segment.index]
            excused = own - known | (own & set().union(*crowds[-1:]))
            told[segment.index][2] += len(excused) / len(own) <= 0.5
        for row in free:
            told[int(there.labels[row])][3] += 1
    return [tuple(one) for one in told]  # type: ignore[misc]


def scored(shown: Shown) -> PanopticScores:
    metric = PanopticMetric(CLASSES, THINGS)
    for one in shown:
        metric.add(*one)
    return metric.result()


def averaged(rows: list[tuple[float, int, int, int]]) -> tuple[float, float, float, int]:
    """PQ, SQ, RQ over the classes that count, and how many do."""
    each = []
    for iou, found, wrong, missed in rows:
        if found + wrong + missed:
            whole = found + 0.5 * wrong + 0.5 * missed
            each.append((iou / whole, iou / found if found else 0.0, found / whole))
    return (*np.mean(each, axis=0).tolist(), len(each))


@settings(max_examples=10)
@given(st.integers(0, 100_000))
def test_every_number_is_that_of_the_definition(seed: int) -> None:
    shown = [*made_up(seed), *made_up(777)]
    scores, rows = scored(shown), by_sets(shown)
    np.testing.assert_allclose(scores.iou, [row[0] for row in rows], rtol=1e-12)
    counts = np.stack([scores.found, scores.wrong, scores.missed], 1)
    np.testing.assert_array_equal(counts, [row[1:] for row in rows])
    kinds = ((scores.all, [0, 1, 2, 3]), (scores.of_things, [1, 2]), (scores.of_stuff, [0, 3]), (scores.of_class(2), [2]))
    for quality, chosen in kinds:
        expected = averaged([rows[place] for place in chosen])
        assert (quality.pq, quality.sq, quality.rq, quality.classes) == pytest.approx(expected, rel=1e-12)
    assert scores.pictures == 8


def test_made_up_pictures_have_everything() -> None:
    """Else the comparison would say little."""
    rows = np.array(by_sets([one for seed in range(20) for one in made_up(seed)]))
    assert (rows[:, 1:] > 5).all()
    assert any(there.crowd.any() for seed in range(5) for _, there in made_up(seed))


def test_more_than_half_is_found_and_half_is_not() -> None:
    """Six of eight pixels fit; of a half, 4 of 8, there may be two answers, so none is taken."""
    truth = truth_of([[1] * 8], [1])
    assert scored([(panoptic([[7] * 6 + [0] * 2], {7: 1}), truth)]).of_class(1).pq == pytest.approx(0.75)
    half = scored([(panoptic([[7] * 4 + [0] * 4], {7: 1}), truth)])
    assert (half.found[1], half.wrong[1], half.missed[1]) == (0, 1, 1)


def test_pixels_of_nothing_neither_help_nor_harm() -> None:
    truth = truth_of([[1] * 4 + [0] * 6], [1])
    assert scored([(panoptic([[7] * 10], {7: 1}), truth)]).of_class(1).pq == pytest.approx(1)
    excused = scored([(panoptic([[0] * 3 + [7] * 4 + [0] * 3], {7: 2}), truth)])  # 3 of 4 on nothing, of another class
    assert (excused.wrong[2], excused.missed[1]) == (0, 1)
    as_many = scored([(panoptic([[0] * 2 + [7] * 4 + [0] * 4], {7: 2}), truth)])  # half on nothing is not more than half
    assert as_many.wrong[2] == 1


def test_the_last_crowd_of_a_class_excuses_it_alone() -> None:
    truth = truth_of([[1] * 6 + [2] * 2], [1, 3], [True, False])
    for kind, wrong in ((1, 0), (2, 1)):
        scores = scored([(panoptic([[5] * 5 + [0] * 3], {5: kind}), truth)])
        assert (scores.wrong[kind], scores.missed[3], scores.found.sum()) == (wrong, 1, 0)
    both = truth_of([[1] * 3 + [2] * 3 + [3] * 3], [1, 1, 3], [True, True, False])
    for columns, wrong in (
        ((0, 8), 1),
        ((1, 6), 0),
    ):  # of 8 pixels 3 are on each; of 5 pixels 3 on the last
        row = [5 if columns[0] <= place < columns[1] else 0 for place in range(9)]
        assert scored([(panoptic([row], {5: 1}), both)]).wrong[1] == wrong


def test_scores_are_told() -> None:
    scores = scored(made_up(3))
    told = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert told["pq"] == scores.pq == scores.all.pq
    assert told["pq_things"] == scores.of_things.pq
    assert [row["thing"] for row in told["classes"]] == list(THINGS)
    assert repr(scores).startswith("PanopticScores(PQ 0.")
    alone = scored([(panoptic([[1, 1]], {1: 1}), truth_of([[1, 1]], [1]))])
    assert alone.of_stuff is None
    assert alone.numbers["pq_stuff"] is None
    assert (alone.pq, alone.of_class(0)) == (1.0, None)


def test_nothing_is_counted_of_what_is_refused(unchecked: None) -> None:
    metric = PanopticMetric(CLASSES, THINGS)
    with pytest.raises(UsageError, match="There are no pictures"):
        metric.result()
    metric.add(panoptic([[0, 0]], {}), truth_of([[0, 0]], []))
    with pytest.raises(UsageError, match="1 picture without any segment"):
        metric.result()
    good, truth = panoptic([[1, 1, 0]], {1: 1}), truth_of([[1, 1, 0]], [1])
    metric.add(good, truth)
    with pytest.raises(UsageError, match="classes of p are from 4 to 4, and there are 4 from 0"):
        metric.add(panoptic([[1, 1, 0]], {1: 4}), truth)
    with pytest.raises(UsageError, match="from 5 to 5"):
        metric.add(good, truth_of([[1, 1, 0]], [5]))
    with pytest.raises(UsageError, match="2 × 3 pixels large, and what was said 1 × 3"):
        metric.add(good, truth_of([[1, 1, 0]] * 2, [1]))
    bare = {name: getattr(truth, name) for name in ("boxes", "labels", "crowd", "areas", "ids")}
    with pytest.raises(UsageError, match="no masks to be judged by"):
        metric.add(good, Annotations(**bare))
    twice = truth_of([[1, 1, 2]], [1, 2])
    twice.masks[1, 0, 0] = True
    with pytest.raises(UsageError, match="Segments 0 and 1 there are in p overlap"):
        metric.add(good, twice)
    assert len(metric) == 2
    assert metric.result().of_class(1).pq == 1
    for classes, things in (((), ()), (CLASSES, THINGS[:2])):
        with pytest.raises(UsageError, match="Panoptic quality needs classes"):
            PanopticMetric(classes, things)
