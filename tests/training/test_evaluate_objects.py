"""A detector that sees is judged to see; what it cannot be judged by is refused; the page shows what was found."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tasks.detection.drawn import DrawnObjects
from vitral.base.image import Picture
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.models.output import SetOutput
from vitral.models.record import Record
from vitral.tasks.detection.result import Detections
from vitral.training.evaluate_objects import ObjectEvaluation, check_fits_objects, evaluate_objects, judge_objects
from vitral.training.object_page import object_evaluation_page

CLASSES = ("red", "green", "blue")


def drawn(count: int = 6, *, broken: int | None = None) -> DrawnObjects:
    """Black pictures of several sizes with one box of each of one to three colours."""
    chance = np.random.default_rng(1)
    pictures: list[Any] = []
    boxes, labels = [], []
    for number in range(count):
        height, width = (96, 128) if number % 2 else (160, 120)
        picture, own, kinds = np.zeros((height, width, 3), dtype=np.uint8), [], []
        for colour in range(1 + number % 3):
            top, left = chance.integers(0, height // 2), chance.integers(0, width // 2)
            bottom, right = top + chance.integers(20, height // 2), left + chance.integers(20, width // 2)
            picture[top:bottom, left:right, colour] = 255
            own.append([left, top, right, bottom])
            kinds.append(colour)
        pictures.append(None if number == broken else picture)
        boxes.append(own)
        labels.append(kinds)
    return DrawnObjects(pictures, boxes, labels, CLASSES)


@dataclass
class Shape:
    num_classes: int = 3


class Seeing(nn.Module):
    """Says that there is one object of each colour that it sees, around all of its pixels; so it needs no training."""

    tasks = ("object-detection",)

    def __init__(self, order: tuple[str, ...] = CLASSES, *, named: bool = True) -> None:
        super().__init__()
        self.order, self.config = [CLASSES.index(one) if one in CLASSES else None for one in order], Shape(len(order))
        preprocessing = Preprocessing(size=(64, 80), resize="exact", mean=(0, 0, 0), std=(1, 1, 1))
        self.record = Record(architecture="seeing", preprocessing=preprocessing, labels=order if named else ())
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixels: Tensor) -> SetOutput:
        assert not self.training
        logits, boxes = (
            torch.full((len(pixels), len(self.order), len(self.order)), -20.0),
            torch.zeros(len(pixels), len(self.order), 4),
        )
        for row, picture in enumerate(pixels):
            for query, colour in enumerate(self.order):
                if colour is None or not (picture[colour] > 0.5).any():
                    logits[row, query, query] = 5.0 if colour is None else -20
                    boxes[row, query] = torch.tensor([0.5, 0.5, 1, 1])
                    continue
                down, across = (picture[colour] > 0.5).nonzero().unbind(1)
                low, high = (
                    torch.stack([across.min() / 80, down.min() / 64]),
                    torch.stack([(across.max() + 1) / 80, (down.max() + 1) / 64]),
                )
                logits[row, query, query] = 4.0 + query
                boxes[row, query] = torch.cat([(low + high) / 2, high - low])
        return SetOutput(logits * self.scale, boxes, "sigmoid", torch.zeros(len(pixels), len(self.order), 8))


def test_a_detector_that_sees_is_found_to_see() -> None:
    pictures, model, seen = drawn(), Seeing(), []
    model.train()
    before = torch.random.get_rng_state()
    evaluation = evaluate_objects(model, pictures, batch_size=4, on_progress=lambda *both: seen.append(both))
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    assert seen == [(4, 6), (6, 6)]
    assert evaluation.scores.ap50 == pytest.approx(1)
    assert evaluation.ap > 0.8  # corners are rounded to the pixels of the input
    assert (len(evaluation), evaluation.data, evaluation.model) == (6, "drawn", "seeing")
    assert evaluation.scores.support[:, 0].tolist() == [6, 4, 2]
    assert "ap_large" not in evaluation.numbers
    assert evaluation.scores.numbers["ap_large"] is None
    told = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert told["ap"] == evaluation.ap
    assert [one["objects"] for one in told["classes"]] == [6, 4, 2]
    assert repr(evaluation).startswith("ObjectEvaluation(seeing on drawn: AP 0.")
    # One by one, and read by another process, it is the same to the last bit.
    for options in ({"batch_size": 1}, {"batch_size": 3, "workers": 1}):
        again = evaluate_objects(model, pictures, **options)
        np.testing.assert_array_equal(again.scores.precision, evaluation.scores.precision)


def test_classes_are_matched_by_their_names() -> None:
    """The model knows the colours in another order, and one more, of which it is always sure: that counts for nothing."""
    pictures = drawn()
    evaluation = evaluate_objects(Seeing(("violet", "blue", "red", "green")), pictures)
    np.testing.assert_array_equal(evaluation.scores.precision, evaluate_objects(Seeing(), pictures).scores.precision)
    assert evaluation.scores.confusion[-1].sum() == 0
    assert evaluate_objects(Seeing(named=False), pictures).ap == evaluation.ap


def test_a_model_that_does_not_fit_is_refused_before_any_work() -> None:
    pictures = drawn(broken=0)
    named, preparing = Seeing(("red", "green", "violet")), Seeing()
    preparing.record = replace(preparing.record, preprocessing=None)
    blind = Seeing()
    blind.tasks = ("image-classification",)
    for model, sentence in (
        (named, "1 of the classes of drawn do not fit the 3 of the model"),
        (Seeing(("red", "green"), named=False), "2 classes without names and drawn has 3"),
        (preparing, "Nobody said how pictures are prepared"),
        (blind, "does not say where things are"),
        (nn.Linear(2, 2), "not one of Vitral's models"),
    ):
        with pytest.raises(UsageError, match=sentence):
            check_fits_objects(model, pictures)
        with pytest.raises(UsageError, match=sentence):
            evaluate_objects(model, pictures)
    with pytest.raises(UsageError, match="drawn holds no objects to judge by, in 1 pictures"):
        evaluate_objects(Seeing(), DrawnObjects(pictures.pictures[1:2], [[]], [[]], CLASSES))
    twice = DrawnObjects(pictures.pictures, pictures.boxes, pictures.labels, ("red", "green", "Red"))
    with pytest.raises(UsageError, match="are one class of the model"):
        evaluate_objects(Seeing(), twice)


def test_a_picture_that_cannot_be_read_is_refused_or_named() -> None:
    pictures = drawn(broken=2)
    for workers in (0, 1):
        with pytest.raises(PictureError, match=r"drawn/002.png: It is broken."):
            evaluate_objects(Seeing(), pictures, workers=workers)
    evaluation = evaluate_objects(Seeing(), pictures, bad_pictures="skip")
    assert evaluation.skipped == ("drawn/002.png: It is broken.",)
    assert len(evaluation) == 5
    assert "1 picture left out" in object_evaluation_page(evaluation, pictures)
    alone = DrawnObjects([None], pictures.boxes[:1], pictures.labels[:1], CLASSES)
    with pytest.raises(UsageError, match="None of the 1 pictures of drawn could be read; the first: drawn/000"):
        evaluate_objects(Seeing(), alone, bad_pictures="skip")


def test_misspelt_options_are_refused(unchecked: None) -> None:
    with pytest.raises(UnknownNameError, match="'skip'"):
        evaluate_objects(Seeing(), drawn(), bad_pictures="skipp")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="'exact'"):
        evaluate_objects(Seeing(), drawn(), decoding="exakt")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size"):
        evaluate_objects(Seeing(), drawn(), batch_size=0)
    with pytest.raises(UnknownNameError, match="'refuse'"):
        judge_objects(lambda picture: nothing(picture), drawn(), bad_pictures="refuze")  # type: ignore[arg-type]


def nothing(picture: Picture) -> Detections:
    empty = np.zeros((0, 4), dtype=np.float32)
    return Detections(picture.name, picture.size, empty, np.zeros(0, dtype=np.float32), (), np.zeros(0, dtype=np.int64))


def careless(pictures: DrawnObjects) -> ObjectEvaluation:
    """One that finds the first object of each picture, calls it by the next class, and sees another in the corner."""
    places = {pictures.where(place): place for place in range(len(pictures))}

    def find(picture: Picture) -> Detections:
        place = places[picture.name]
        boxes = np.array([pictures.boxes[place][0], [0, 0, 15, 15]], dtype=np.float32)
        classes = np.array([(pictures.labels[place][0] + 1) % 3, 2])
        return Detections(
            "a name of its own", picture.size, boxes, np.array([0.9, 0.6], dtype=np.float32), ("x", "y"), classes
        )

    return judge_objects(find, pictures, model="<careless>", bad_pictures="skip")


def test_whatever_finds_objects_can_be_judged() -> None:
    pictures, seen = drawn(), []
    evaluation = judge_objects(nothing, pictures, on_progress=lambda *both: seen.append(both))
    assert evaluation.ap == 0
    assert seen[-1] == (6, 6)
    assert len(evaluation.scores.missed) == 12
    largest = max((one for boxes in pictures.boxes for one in boxes), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    assert evaluation.scores.missed[0].box == tuple(largest)
    scores = careless(pictures).scores
    assert scores.confusions() == [(0, 1, 6)]
    assert [one.kind for one in scores.confused] == ["confused"] * 6
    assert scores.confused[0].picture == "drawn/000.png"


def test_the_page_shows_numbers_curves_and_mistakes() -> None:
    pictures = drawn(broken=5)
    evaluation = careless(pictures)
    told = object_evaluation_page(evaluation, pictures)
    assert "<h1>0.0 AP on drawn</h1>" in told
    assert "&lt;careless&gt;" in told
    assert "<careless>" not in told
    assert told.count("<img") == len(evaluation.scores.false + evaluation.scores.confused + evaluation.scores.missed)
    assert told.count("Precision over recall") == 4  # all, and each of three classes
    assert "red → green" in told
    assert told.count('<td class="miss">5</td>') == 2  # red taken for green, and blue where nothing is
    assert 'src="http' not in told
    without = object_evaluation_page(evaluation, title="A title")
    assert "<img" not in without
    assert "<h1>A title</h1>" in without
    other = drawn(4)
    with pytest.raises(UsageError, match="not those of drawn"):
        object_evaluation_page(evaluation, other)


def test_of_many_classes_the_page_shows_the_best_and_the_worst() -> None:
    pictures = drawn()
    many = DrawnObjects(pictures.pictures, pictures.boxes, pictures.labels, tuple(f"kind {one}" for one in range(30)))
    told = object_evaluation_page(careless(many), many)
    assert "27 classes have no objects here" in told
    assert "kind 0 → kind 1" in told
    assert "<table" not in told
    spread = DrawnObjects(
        pictures.pictures,
        pictures.boxes,
        [[4 * n + one for one in row] for n, row in enumerate(pictures.labels)],
        many.classes,
    )
    assert "Found worst" not in object_evaluation_page(judge_objects(nothing, spread), spread)
    boxes = [[[0, 0, 50, 60]] * 30 for _ in range(6)]
    each = DrawnObjects(pictures.pictures, boxes, [list(range(30))] * 6, many.classes)
    assert "Found worst" in object_evaluation_page(judge_objects(nothing, each), each)
