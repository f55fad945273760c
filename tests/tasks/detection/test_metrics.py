"""Average precision against the code that COCO publishes, and against a second implementation of it; the rest by hand."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest

from vitral.data.objects import Annotations
from vitral.errors import UsageError
from vitral.tasks.detection.metrics import BYTES_PER_DETECTION, ObjectMetric, ObjectScores, overlaps_of
from vitral.tasks.detection.result import Detections

Shown = list[tuple[Detections, Annotations]]
SIDE = 440


def annotated(boxes: Any, labels: Any, crowd: Any = None, areas: Any = None) -> Annotations:
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    own = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float64)
    return Annotations(
        boxes=boxes,
        labels=np.asarray(labels, dtype=np.int64).reshape(-1),
        crowd=np.zeros(len(boxes), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool),
        areas=own if areas is None else np.asarray(areas, dtype=np.float64),
        ids=np.arange(len(boxes)),
    )


def found(name: str, boxes: Any, classes: Any, scores: Any) -> Detections:
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    classes = np.asarray(classes, dtype=np.int64).reshape(-1)
    labels = tuple(f"c{one}" for one in classes)
    return Detections(name, (SIDE, SIDE), boxes, np.asarray(scores, dtype=np.float32).reshape(-1), labels, classes)


def made_up(seed: int, *, classes: int = 4, boxes: int = 30, levels: int = 20, pictures: int = 8) -> Shown:
    """Pictures with crowds, without objects, without boxes; a class without objects; scores and fits that are equal.

    Corners are whole numbers, so that every format of boxes says the same to the last bit.
    """
    chance, shown = np.random.default_rng(seed), []
    for number in range(pictures):

        def anywhere(count: int) -> np.ndarray:
            corner = chance.integers(0, 260, (count, 2))
            small = chance.random((count, 1)) < 0.4
            side = np.where(small, chance.integers(4, 40, (count, 2)), chance.integers(20, 180, (count, 2)))
            return np.concatenate([corner, corner + side], axis=1)

        count = int(chance.integers(1, 9)) if chance.random() > 0.15 else 0
        there, labels = anywhere(count), chance.integers(0, max(classes - 1, 1), count)
        areas = (there[:, 2:] - there[:, :2]).prod(1) * np.where(chance.random(count) < 0.5, 1, 0.75)
        areas[chance.random(count) < 0.2] = 1024.0  # on the border of small and medium: both
        said = int(chance.integers(1, boxes + 1)) if chance.random() > 0.15 else 0
        guesses, kinds = anywhere(said), chance.integers(0, classes, said)
        if count and said:
            meant = chance.integers(0, count, said)
            near = there[meant] + chance.integers(-6, 7, (said, 4)) * (chance.random((said, 1)) < 0.8)
            sound = (chance.random(said) < 0.7) & (near[:, 2:] > near[:, :2] + 1).all(1)
            guesses[sound] = near[sound]
            kinds = np.where(sound & (chance.random(said) < 0.8), labels[meant], kinds)
        scores = chance.integers(1, levels + 1, said) / levels
        crowd = chance.random(count) < 0.15
        shown.append((found(f"p{number}", guesses, kinds, scores), annotated(there, labels, crowd, areas)))
    return shown


def scored(shown: Shown, classes: int, **options: Any) -> ObjectScores:
    metric = ObjectMetric([f"c{one}" for one in range(classes)], **options)
    for one in shown:
        metric.add(*one)
    return metric.result()


def published(shown: Shown, classes: int, *, second: bool) -> Any:
    """What pycocotools, or the second implementation, says of the same."""
    truth: dict[str, Any] = {"info": {}, "categories": [{"id": one + 1, "name": f"c{one}"} for one in range(classes)]}
    truth["images"] = [{"id": number, "height": SIDE, "width": SIDE} for number in range(len(shown))]
    truth["annotations"] = []
    results = []
    for number, (detections, there) in enumerate(shown):
        for row in range(len(there)):
            left, top, right, bottom = there.boxes[row].tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(there.labels[row]) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(there.areas[row]),
                    "iscrowd": int(there.crowd[row]),
                }
            )
        results += detections.to_coco(number, range(1, classes + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        if second:
            package = pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval, of the extra `dev`")
            coco = package.COCO(truth)
            judge = package.COCOeval_faster(coco, coco.loadRes(results), "bbox")
        else:
            api = pytest.importorskip("pycocotools.coco", reason="needs pycocotools, of the extra `dev`")
            from pycocotools.cocoeval import COCOeval

            coco = api.COCO()
            coco.dataset = truth
            coco.createIndex()
            judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.parametrize("second", [False, True], ids=["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("seed", range(7))
def test_every_number_is_the_published_codes(seed: int, second: bool) -> None:
    classes, levels, boxes = (1, 4, 7)[seed % 3], (3, 20, 1000)[seed % 3], 250 if seed == 6 else 30
    shown = made_up(seed, classes=classes, levels=levels, boxes=boxes)
    scores, judge = scored(shown, classes), published(shown, classes, second=second)
    precision = judge.eval["precision"].reshape(10, 101, classes, 4, 3)[..., 2]
    np.testing.assert_allclose(scores.precision, precision, atol=1e-12)
    np.testing.assert_allclose(scores.recall, judge.eval["recall"].reshape(10, classes, 4, 3), atol=1e-12)
    np.testing.assert_allclose(scores.confidence, judge.eval["scores"].reshape(10, 101, classes, 4, 3)[..., 0, 2])
    told = [-1 if one is None else one for one in scores.numbers.values()]
    np.testing.assert_allclose(told, judge.stats[:12], atol=1e-12)
    for place in range(classes):
        own = precision[:, :, place, 0]
        assert scores.of_class(place)["ap"] == (None if own.min() < 0 else pytest.approx(own.mean()))


def test_the_order_in_which_pictures_are_shown_changes_nothing() -> None:
    shown = made_up(3, levels=3)
    straight = scored(shown, 4)
    metric = ObjectMetric(["c0", "c1", "c2", "c3"])
    for place in np.random.default_rng(1).permutation(len(shown)).tolist():
        metric.add(*shown[place], place=place)
        if len(metric) == 5:
            with contextlib.suppress(UsageError):
                metric.result()  # looking does not disturb
    np.testing.assert_array_equal(metric.result().precision, straight.precision)
    np.testing.assert_array_equal(metric.result().confusion, straight.confusion)
    assert metric.result().false == straight.false
    assert metric.result().missed == straight.missed


def test_boxes_of_one_score_count_in_the_order_of_the_pictures_numbers() -> None:
    right = found("right", [0, 0, 50, 50], [0], [0.5]), annotated([0, 0, 50, 50], [0])
    wrong = found("wrong", [200, 200, 250, 250], [0], [0.5]), annotated([0, 0, 50, 50], [0])
    for first, expected in ((1, 0.5 * 51 / 50), (2, 0.5)):  # half the objects are found: recalls 0 to .5 are 51 of 101
        metric = ObjectMetric(["c0"])
        metric.add(*right, image_id=first)
        metric.add(*wrong, image_id=3 - first)
        precision = 1.0 if first == 1 else 0.5
        assert metric.result().ap == pytest.approx(precision * 51 / 101), expected


def test_what_is_kept_is_counted_in_boxes() -> None:
    shown = made_up(6, classes=2, boxes=250)
    metric = ObjectMetric(["c0", "c1"], kept=3, threshold=1.0)
    for one in shown:
        metric.add(*one)
    counted = sum(min(int((one.indices == place).sum()), 100) for one, _ in shown for place in (0, 1))
    assert metric.nbytes == counted * BYTES_PER_DETECTION
    assert BYTES_PER_DETECTION <= 32
    scores = metric.result()
    assert scores.said.sum() == counted
    assert len(scores.false) == len(scores.missed) == 3


def test_the_confusion_matrix_by_hand() -> None:
    """Objects: a dog that is found, one taken for a cat, one missed; a cat found twice; a crowd of cats with a cat in it."""
    there = [[0, 0, 100, 100], [150, 0, 250, 100], [300, 0, 400, 100], [0, 200, 100, 300], [200, 200, 400, 400]]
    picture = annotated(there, [0, 0, 0, 1, 1], [False] * 4 + [True])
    boxes = [
        [0, 0, 100, 95],
        [150, 5, 250, 100],
        [0, 200, 100, 290],
        [2, 202, 102, 302],
        [210, 210, 260, 260],
        [0, 400, 30, 430],
    ]
    answer = found("p", [*boxes, [0, 0, 100, 100]], [0, 1, 1, 1, 1, 0, 1], [0.9, 0.8, 0.95, 0.7, 0.9, 0.6, 0.4])
    scores = scored([(answer, picture)], 2)
    assert scores.confusion.tolist() == [[1, 1, 1], [0, 1, 0], [1, 1, 0]]
    assert scores.confusions() == [(0, 1, 1)]
    assert [(one.kind, round(one.score, 2)) for one in scores.false] == [("twice", 0.7), ("nothing", 0.6)]
    assert [(one.label, one.truth, round(one.score, 2)) for one in scores.confused] == [(1, 0, 0.8), (1, 0, 0.4)]
    assert [(one.box, one.area) for one in scores.missed] == [((300.0, 0.0, 400.0, 100.0), 10_000.0)]
    # From a lower score the last box counts too, but the dog it is on is taken by the surer one of its own class.
    assert scored([(answer, picture)], 2, threshold=0.3).confusion.tolist() == [[1, 1, 1], [0, 1, 0], [1, 2, 0]]
    # And where boxes must fit better, only those of 95 % do.
    assert scored([(answer, picture)], 2, overlap=0.93).confusion.tolist() == [[1, 1, 1], [0, 0, 1], [1, 2, 0]]


def test_a_box_beside_its_object_is_called_misplaced() -> None:
    answer = found("p", [[0, 0, 100, 100]], [0], [0.9])
    scores = scored([(answer, annotated([[60, 0, 160, 100]], [0]))], 1)
    miss = scores.false[0]
    assert (miss.kind, miss.truth, miss.object) == ("misplaced", 0, (60.0, 0.0, 160.0, 100.0))  # IoU 40 / 160
    assert (miss.picture, miss.place) == ("p", 0)


def test_curves_are_the_columns_of_the_table() -> None:
    scores = scored(made_up(4, classes=4), 4)
    there = scores.support[:, 0] > 0
    np.testing.assert_array_equal(scores.curve(overlap=0.75), scores.precision[5][:, there, 0].mean(1))
    np.testing.assert_array_equal(scores.curve(0), scores.precision[0, :, 0, 0])
    assert scores.curve(3) is None
    assert scores.support[3, 0] == 0
    assert (np.diff(scores.curve(0)) <= 0).all()
    mean = np.mean([scores.average_precision(overlap=one) for one in np.linspace(0.5, 0.95, 10)])
    assert scores.ap == pytest.approx(mean)
    json.dumps(scores.to_dict(), allow_nan=False)


def test_a_crowd_is_shared_by_the_boxes_own_area() -> None:
    there = np.array([[0, 0, 100, 100]], dtype=np.float32)
    box = np.array([[50, 50, 150, 100]], dtype=np.float32)
    assert overlaps_of(box, there, np.array([True])).tolist() == [[0.5]]
    assert overlaps_of(box, there, np.array([False])).tolist() == [[2500 / 12500]]
    assert overlaps_of(box * 0, there * 0, np.array([False])).tolist() == [[0.0]]


def test_nothing_is_counted_of_what_is_refused() -> None:
    metric = ObjectMetric(["c0"])
    good = found("p", [0, 0, 9, 9], [0], [0.5]), annotated([0, 0, 9, 9], [0])
    with pytest.raises(UsageError, match="There are no pictures"):
        metric.result()
    metric.add(*good)
    for wrong, sentence in (
        ((found("p", [0, 0, 9, 9], [1], [0.5]), good[1]), "The classes of p are from 1 to 1, and there are 1 from 0"),
        ((good[0], annotated([0, 0, 9, 9], [1])), "from 1 to 1"),
        ((good[0], annotated([0, 0, np.nan, 9], [0])), "not all finite"),
    ):
        with pytest.raises(UsageError, match=sentence):
            metric.add(*wrong)
    with pytest.raises(UsageError, match="was shown already"):
        metric.add(*good, place=0)
    assert len(metric) == 1
    assert metric.result().ap == pytest.approx(1)
    empty = ObjectMetric(["c0"])
    empty.add(good[0], annotated([], []))
    with pytest.raises(UsageError, match="1 picture without any object"):
        empty.result()


def test_odd_questions_are_answered() -> None:
    scores = scored(made_up(4), 4)
    with pytest.raises(UsageError, match="matched at IoU"):
        scores.average_precision(overlap=0.42)
    with pytest.raises(UsageError, match="Areas are all, small, medium, large"):
        scores.average_precision(area="tiny")
    with pytest.raises(UsageError, match="at most 1, 10, 100 boxes"):
        scores.average_recall(most=7)
    for options, sentence in (({"threshold": 2}, "threshold must be from 0 to 1"), ({"kept": -1}, "kept must be")):
        with pytest.raises(UsageError, match=sentence):
            ObjectMetric(["c0"], **options)
    with pytest.raises(UsageError, match="at least one class"):
        ObjectMetric([])
    assert repr(scores).startswith("ObjectScores(AP 0.")
