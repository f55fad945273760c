"""Scores of maps against scikit-learn and erosion; average precision of masks against the code that COCO publishes."""

from __future__ import annotations

import contextlib
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_erosion
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score

from vitral.base.masks import boxes_of, encode_rle
from vitral.data.objects import Annotations
from vitral.errors import UnknownNameError, UsageError
from vitral.tasks.detection.metrics import ObjectMetric, ObjectScores
from vitral.tasks.detection.result import Detections
from vitral.tasks.segmentation.metrics import MapMetric, MapScores
from vitral.tasks.segmentation.result import Instances

IGNORE = 255
NAMES = ("sky", "sea", "sand", "ship", "bird")  # a bird is seen nowhere


def pictures(seed: int, count: int = 4, dtype: Any = np.int64) -> list[tuple[np.ndarray, np.ndarray]]:
    chance, shown = np.random.default_rng(seed), []
    for _ in range(count):
        size = tuple(chance.integers(5, 30, 2))
        truth = chance.integers(0, 4, size)
        said = np.where(chance.random(size) < 0.6, truth, chance.integers(0, 4, size))
        truth[chance.random(size) < 0.2] = IGNORE
        shown.append((said.astype(dtype), truth.astype(dtype)))
    return shown


def scored(shown: list[tuple[np.ndarray, np.ndarray]], **options: Any) -> MapScores:
    metric = MapMetric(NAMES, **options)
    for one in shown:
        metric.add(*one)
    return metric.result()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("at_once", [1, 50, 1 << 20])
def test_every_number_is_scikit_learns(dtype: Any, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.tasks.segmentation.metrics._AT_ONCE", at_once)
    shown = pictures(at_once, dtype=dtype)
    scores = scored(shown)
    said, truth = (np.concatenate([one[place].ravel() for one in shown]) for place in (0, 1))
    said, truth = said[truth != IGNORE], truth[truth != IGNORE]
    np.testing.assert_array_equal(scores.confusion[:, :-1], confusion_matrix(truth, said, labels=range(5)))
    assert not scores.confusion[:, -1].any()
    np.testing.assert_allclose(scores.iou[:4], jaccard_score(truth, said, labels=range(4), average=None), rtol=1e-12)
    assert scores.miou == pytest.approx(jaccard_score(truth, said, average="macro"), rel=1e-12)
    assert scores.pixel_accuracy == pytest.approx((said == truth).mean(), rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(recall_score(truth, said, average="macro"), rel=1e-12)
    np.testing.assert_array_equal([scores.iou[4], scores.accuracy[4]], -1)
    assert scores.boundary_iou is None
    assert scores.pictures == 4
    told = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert told["classes"][4] == {"label": "bird", "pixels": 0, "iou": None, "accuracy": None}
    true, other, pixels = scores.confusions()[0]
    assert pixels == ((truth == true) & (said == other)).sum()
    assert true != other


def test_where_nothing_is_said_it_is_wrong() -> None:
    truth = np.array([[0, 0, 1, IGNORE]])
    scores = scored([(np.array([[0, IGNORE, IGNORE, IGNORE]]), truth)])
    np.testing.assert_allclose(scores.iou[:2], [0.5, 0.0])
    assert scores.pixel_accuracy == pytest.approx(1 / 3)
    assert scores.confusion[:, -1].tolist() == [1, 1, 0, 0, 0]


def test_a_class_that_is_to_be_ignored_counts_nowhere() -> None:
    """As of maps in which 0 is what nobody named."""
    scores = scored([(np.array([[1, 1, 0, 2]]), np.array([[0, 1, 1, 2]]))], ignore=0, edges=True)
    np.testing.assert_allclose(scores.iou, [-1, 0.5, 1, -1, -1])
    np.testing.assert_allclose(scores.edge_iou, [-1, 0.5, 1, -1, -1])


@pytest.mark.parametrize("thickness", [1, 3, None])
def test_edges_are_what_erosion_leaves(thickness: int | None) -> None:
    chance, shown, told = np.random.default_rng(0), [], np.zeros((5, 2))
    for _ in range(3):
        truth, said = (np.kron(chance.integers(0, 4, (6, 8)), np.ones((9, 7), dtype=np.int64)) for _ in range(2))
        said = np.where(chance.random((6, 8)).repeat(9, 0).repeat(7, 1) < 0.7, truth, said)
        truth[20:29, 10:30] = IGNORE
        shown.append((said, truth))
        reach = thickness or max(1, round(0.02 * np.hypot(*truth.shape)))
        for place in range(5):
            edges = []
            for numbers in (said, truth):
                whole = numbers == place
                inner = binary_erosion(whole, np.ones((3, 3)), iterations=reach, border_value=0)
                edges.append(whole & ~inner & (truth != IGNORE))
            told[place] += (edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum()
    scores = scored(shown, edges=True, thickness=thickness)
    np.testing.assert_array_equal(scores.edges, told)
    assert scores.boundary_iou == pytest.approx((told[:4, 0] / told[:4, 1]).mean())
    assert scores.to_dict()["classes"][0]["boundary_iou"] == pytest.approx(told[0, 0] / told[0, 1])


def test_nothing_is_counted_of_maps_that_are_refused(unchecked: None) -> None:
    metric = MapMetric(NAMES)
    with pytest.raises(UsageError, match="There are no pictures"):
        metric.result()
    metric.add(np.full((3, 3), 1), np.full((3, 3), IGNORE))
    with pytest.raises(UsageError, match="1 picture without any labelled pixel"):
        metric.result()
    own = metric.add(np.zeros((3, 3), int), np.zeros((3, 3), int))
    assert own[0, 0] == own.sum() == 9
    for wrong in (5, -1, 254):
        bad = np.zeros((3, 3), int)
        bad[2, 2] = wrong
        for said, truth in ((bad, np.zeros_like(bad)), (np.zeros_like(bad), bad)):
            with pytest.raises(UsageError, match=rf"A pixel of p\.png is of class {wrong}, but there are 5 from 0"):
                metric.add(said, truth, name="p.png")
    whole = np.zeros((3, 3), int)
    for kind in (np.float32, bool):
        for said, truth, what in ((whole.astype(kind), whole, "what was said"), (whole, whole.astype(kind), "the truth")):
            with pytest.raises(UsageError, match=rf"Of p\.png, {what} is a map of {np.dtype(kind)}; .* whole numbers"):
                metric.add(said, truth, name="p.png")
    with pytest.raises(UsageError, match="Of the picture, 2 × 3 pixels were said, but it has 3 × 3"):
        metric.add(np.zeros((2, 3), int), np.zeros((3, 3), int))
    assert len(metric) == 2
    assert metric.result().confusion.sum() == 9
    with pytest.raises(UsageError, match="at least one class"):
        MapMetric([])
    with pytest.raises(UsageError, match="thickness must be"):
        MapMetric(NAMES, thickness=0)


# -- average precision of masks ---------------------------------------------------------------------------------------

Shown = list[tuple[Instances, Annotations]]
SIZE = (130, 170)


def blobs(chance: np.random.Generator, count: int) -> np.ndarray:
    """Ellipses with holes, of all sizes, some over the picture's edge; some empty."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = np.zeros((count, *SIZE), dtype=bool)
    for mask in masks:
        (cy, cx), (ry, rx) = chance.uniform(0, SIZE), chance.uniform(2, chance.choice([12, 70]), 2)
        mask[:] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        mask &= chance.random() < 0.95
        if chance.random() < 0.3:
            mask[:, int(cx) : int(cx) + 3] = False
    return masks


def made_up(seed: int, classes: int, levels: int) -> Shown:
    """Pictures with crowds, without objects, without answers; a class without objects; scores that are equal."""
    chance, shown = np.random.default_rng(seed), []
    for number in range(7):
        count = 0 if number == 2 else int(chance.integers(1, 8))
        said = 0 if number == 4 else int(chance.integers(1, 25))
        there, found = blobs(chance, count), blobs(chance, said)
        labels, kinds = chance.integers(0, max(1, classes - 1), count), chance.integers(0, classes, said)
        for place in np.flatnonzero(chance.random(said) < 0.7) if count else ():
            meant = int(chance.integers(0, count))
            found[place] = np.roll(there[meant], chance.integers(-3, 4, 2), (0, 1)) & (chance.random(SIZE) < 0.97)
            kinds[place] = labels[meant]
        areas = there.sum((1, 2)).astype(np.float64)
        areas[chance.random(count) < 0.2] = 1024.0  # on the border of small and medium: both
        scores = (chance.integers(1, levels + 1, said) / levels).astype(np.float32)
        answer = Instances(f"p{number}", SIZE, found, scores, tuple(f"c{one}" for one in kinds), kinds)
        truth = Annotations(
            boxes=boxes_of(there),
            labels=labels,
            crowd=chance.random(count) < 0.2,
            areas=areas,
            ids=np.arange(count),
            masks=there,
        )
        shown.append((answer, truth))
    return shown


def judged(shown: Shown, classes: int) -> ObjectScores:
    metric = ObjectMetric([f"c{one}" for one in range(classes)], by="masks")
    for one in shown:
        metric.add(*one)
    return metric.result()


def published(shown: Shown, classes: int) -> Any:
    """What pycocotools says of the same."""
    coco = COCO()
    coco.dataset = {"info": {}, "categories": [{"id": one + 1, "name": f"c{one}"} for one in range(classes)]}
    coco.dataset["images"] = [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(len(shown))]
    rows = coco.dataset["annotations"] = []
    for number, (_, there) in enumerate(shown):
        for row in range(len(there)):
            assert there.masks is not None
            told = {"area": float(there.areas[row]), "iscrowd": int(there.crowd[row]), "bbox": [0, 0, 1, 1]}
            told |= {"segmentation": encode_rle(there.masks[row]), "category_id": int(there.labels[row]) + 1}
            rows.append({"id": len(rows) + 1, "image_id": number, **told})
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        results = [row for number, one in enumerate(shown) for row in one[0].to_coco(number, range(1, classes + 1))]
        for row in results:
            del row["bbox"]  # which it would measure the area by
        judge = COCOeval(coco, coco.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.parametrize("seed", range(4))
def test_precision_of_masks_is_the_published_codes(seed: int) -> None:
    classes, levels = (1, 3, 5, 2)[seed], (4, 20, 1000, 50)[seed]
    shown = made_up(seed, classes, levels)
    scores, judge = judged(shown, classes), published(shown, classes)
    precision = judge.eval["precision"].reshape(10, 101, classes, 4, 3)[..., 2]
    np.testing.assert_allclose(scores.precision, precision, atol=1e-12)
    np.testing.assert_allclose(scores.recall, judge.eval["recall"].reshape(10, classes, 4, 3), atol=1e-12)
    told = [-1 if one is None else one for one in scores.numbers.values()]
    np.testing.assert_allclose(told, judge.stats[:12], atol=1e-12)
    assert 0.05 < scores.ap < 0.95


def test_masks_and_boxes_of_one_answer_are_two_questions() -> None:
    """A ring and a disc have one box and few pixels in common."""
    y, x = np.mgrid[:40, :40]
    far = np.hypot(y - 20, x - 20)
    disc, ring = far < 12, (far < 12) & (far > 9)
    answer = Instances("p", (40, 40), ring[None], np.ones(1), ("c0",), np.zeros(1, int))
    row = {"labels": np.zeros(1, int), "crowd": np.zeros(1, bool), "ids": np.arange(1)}
    truth = Annotations(boxes=boxes_of(disc[None]), areas=np.array([float(disc.sum())]), masks=disc[None], **row)
    for by, ap in (("boxes", 1.0), ("masks", 0.0)):
        metric = ObjectMetric(["c0"], by=by)  # type: ignore[arg-type]
        metric.add(answer, truth)
        assert metric.result().ap == pytest.approx(ap)


def test_nothing_is_counted_of_masks_that_are_refused(unchecked: None) -> None:
    answer, truth = made_up(0, 1, 4)[0]
    metric = ObjectMetric(["c0"], by="masks")
    boxes = Detections("p", SIZE, answer.boxes, answer.scores, answer.labels, answer.indices)
    bare = {name: getattr(truth, name) for name in ("boxes", "labels", "crowd", "areas", "ids")}
    with pytest.raises(UsageError, match="What was found in p has no masks to be judged by"):
        metric.add(boxes, truth)
    with pytest.raises(UsageError, match="What is there in p0 has no masks to be judged by"):
        metric.add(answer, Annotations(**bare))
    assert truth.masks is not None
    with pytest.raises(UsageError, match="130 × 170 and 129 × 170 pixels large"):
        metric.add(answer, Annotations(**bare, masks=truth.masks[:, 1:]))
    assert len(metric) == 0
    with pytest.raises(UnknownNameError, match="'masks'"):
        ObjectMetric(["c0"], by="mask")  # type: ignore[arg-type]


def test_a_hundred_masks_of_a_large_picture_are_compared_in_moments() -> None:
    chance, size = np.random.default_rng(0), (800, 1200)
    masks = np.zeros((2, 100, *size), dtype=bool)
    for mask in masks.reshape(200, *size):
        top, left = chance.integers(0, (700, 1100))
        tall, wide = chance.integers(20, 300, 2)
        mask[top : top + tall, left : left + wide] = True
    found, there = masks
    answer = Instances("p", size, found, chance.random(100), ("c",) * 100, np.zeros(100, int))
    row = {"labels": np.zeros(100, int), "crowd": np.zeros(100, bool), "ids": np.arange(100)}
    truth = Annotations(boxes=boxes_of(there), areas=there.sum((1, 2)).astype(float), masks=there, **row)
    metric = ObjectMetric(["c"], by="masks")
    start = time.process_time()
    metric.add(answer, truth)
    assert time.process_time() - start < 1.5  # a fifth of it where nobody else works
